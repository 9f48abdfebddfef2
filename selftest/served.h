/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * served: the real pmem-agent on a private bus, with one emulated region, and with a socket that the test listens on
 *
 * The test is the agent's systemd: the listening socket stays when the agent is stopped, killed and started.
 */
#pragma once

#include <libgen.h>
#include <limits.h>
#include <poll.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>

#include "selftest/session.h"

struct served {
	struct session session;
	char socket[96];
	int listener;   /* -1: the agent makes its own */
	rlim_t n_files; /* that the agent may have; 0: as we */
};

/* A program that was built beside this one. */
static inline void served_find(const char *name, char *ret, size_t size)
{
	char self[PATH_MAX] = "";

	if (readlink("/proc/self/exe", self, sizeof(self) - 1) < 0)
		self[0] = '\0';
	snprintf(ret, size, "%s/%s", dirname(self), name);
}

static inline int served_listen(const char *path)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	snprintf(address.sun_path, sizeof(address.sun_path), "%.96s", path);
	if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0 || chmod(path, 0666) < 0 ||
	    listen(fd, 1024) < 0)
		return -1;
	return fd;
}

static inline _Noreturn void served_exec(const struct served *s)
{
	char program[PATH_MAX], conf[128], text[160];
	struct rlimit limit = { s->n_files, s->n_files };

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (s->n_files > 0)
		setrlimit(RLIMIT_NOFILE, &limit);
	snprintf(conf, sizeof(conf), "%s/pmem-agent.conf", s->session.directory);
	served_find("pmem-agent", program, sizeof(program));
	unsetenv("LISTEN_FDS");
	if (s->listener >= 0) {
		snprintf(text, sizeof(text), "%d", getpid());
		setenv("LISTEN_PID", text, 1);
		setenv("LISTEN_FDS", "1", 1);
		if (s->listener == 3 ? fcntl(3, F_SETFD, 0) < 0 : dup2(s->listener, 3) < 0)
			_exit(1);
	}
	/* Its READY=1 comes there. */
	snprintf(text, sizeof(text), "%s/notify", s->session.directory);
	setenv("NOTIFY_SOCKET", text, 1);
	execl(program, "pmem-agent", "--config", conf, "--runtime-dir", s->session.directory, "--state-dir",
	      s->session.directory, NULL);
	_exit(127);
}

/* For the next agent: how long its end may take. 0 or a negative errno. */
static inline int served_configure(const struct served *s, unsigned int stop_sec)
{
	char conf[128], text[256];

	snprintf(conf, sizeof(conf), "%s/pmem-agent.conf", s->session.directory);
	snprintf(text, sizeof(text), "[Agent]\nStopFlushSec=%u\n[Region emu0]\nEmulate=%s\n", stop_sec,
		 s->session.emulated);
	return session_write(conf, text);
}

/* 0 when it is ready. */
static inline int served_start_agent(struct served *s)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	char message[256] = "";
	_cleanup_close_ int notify = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0), pidfd = -1;
	struct pollfd polls[2] = { { .fd = notify, .events = POLLIN } };

	snprintf(address.sun_path, sizeof(address.sun_path), "%.80s/notify", s->session.directory);
	if (notify < 0 || bind(notify, (struct sockaddr *)&address, sizeof(address)) < 0)
		return -1;
	s->session.agent = fork();
	if (s->session.agent == 0)
		served_exec(s);
	pidfd = (int)syscall(SYS_pidfd_open, s->session.agent, 0);
	polls[1] = (struct pollfd){ .fd = pidfd, .events = POLLIN };
	while (!strstr(message, "READY=1") && poll(polls, 2, -1) > 0 && polls[0].revents)
		if (recv(notify, message, sizeof(message) - 1, 0) < 0)
			break;
	unlink(address.sun_path);
	return strstr(message, "READY=1") ? 0 : -1;
}

/* `n_files` is set before. NULL, or what is missing here. */
static inline const char *served_start(struct served *s, bool own_socket)
{
	int fd;

	*s = (struct served){
		.session = { .directory = "/tmp/test-served-XXXXXX" },
		.listener = -1,
		.n_files = s->n_files,
	};
	if (!mkdtemp(s->session.directory))
		return "a directory in /tmp";
	snprintf(s->session.emulated, sizeof(s->session.emulated), "%s/emulated", s->session.directory);
	fd = open(s->session.emulated, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (fd < 0 || ftruncate(fd, 1 << 20) < 0)
		return "a file in /tmp";
	close(fd);
	snprintf(s->socket, sizeof(s->socket), "%s/" PMEM_AGENT_SOCKET_NAME, s->session.directory);
	if (served_configure(s, 30) < 0)
		return "a file in /tmp";
	if (session_start_bus(&s->session) < 0)
		return "dbus-daemon";
	if (!own_socket)
		s->listener = served_listen(s->socket);
	return served_start_agent(s) < 0 ? "an agent that starts" : NULL;
}

/* Its exit status. */
static inline int served_wait_agent(struct served *s)
{
	int status = -1;

	waitpid(s->session.agent, &status, 0);
	s->session.agent = 0;
	return status;
}

/* As systemd stops it: what it has taken it answers. */
static inline int served_stop_agent(struct served *s)
{
	kill(s->session.agent, SIGTERM);
	return served_wait_agent(s);
}

/* With its children that have its descriptors: as long as one is there, its connections and its lock are too. */
static inline void served_kill_agent(struct served *s)
{
	int fd;

	session_kill(&s->session.agent);
	fd = open(s->session.directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	flock(fd, LOCK_EX);
	safe_close(fd);
}

static inline void served_stop(struct served *s)
{
	safe_close(s->listener);
	unlink(s->socket);
	session_stop(&s->session);
}
