/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * child: a process that makes the calls which can hang, at the other end of a socket
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>

#include "child.h"
#include "closer.h"
#include "util.h"

static _Noreturn void child(const char *name, void (*run)(int sock, void *userdata), void *userdata, int sock)
{
	static const int ignored[] = { SIGTERM, SIGINT, SIGHUP, SIGQUIT };
	sigset_t none;

	/* It ends when its agent ends, and not in the middle of a call. */
	for (size_t i = 0; i < ARRAY_SIZE(ignored); i++)
		signal(ignored[i], SIG_IGN);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	prctl(PR_SET_NAME, name);

	/* Nothing of the agent's may stay open here: not its sockets, not those of other children. */
	if (sock != 3 && dup3(sock, 3, O_CLOEXEC) < 0)
		_exit(1);
	if (closer_close_from(4) < 0)
		_exit(1);
	run(3, userdata);
	_exit(0);
}

int child_start(const char *name, void (*run)(int sock, void *userdata), void *userdata, pid_t *ret_pid,
		int *ret_socket)
{
	_cleanup_close_ int ours = -1, theirs = -1;
	int sockets[2];
	pid_t pid;

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets) < 0)
		return -errno;
	ours = sockets[0];
	theirs = sockets[1];
	pid = fork();
	if (pid < 0)
		return -errno;
	if (pid == 0)
		child(name, run, userdata, theirs);

	*ret_pid = pid;
	*ret_socket = ours;
	ours = -1;
	return 0;
}

int child_get_start_time(pid_t pid, uint64_t *ret)
{
	_cleanup_close_ int fd = -1;
	char path[64], buffer[1024], *p;
	uint64_t start_time;
	ssize_t n;

	snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	n = read(fd, buffer, sizeof(buffer) - 1);
	if (n < 0)
		return -errno;
	buffer[n] = '\0';

	p = strrchr(buffer, ')'); /* ends field 2, which may hold anything */
	if (!p || sscanf(p + 1, " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %*d %*d %" SCNu64,
			 &start_time) != 1)
		return -EBADMSG;
	*ret = start_time;
	return 0;
}
