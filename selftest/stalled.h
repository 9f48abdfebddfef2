/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * stalled: a FUSE filesystem of one file that never answers a FLUSH, so that every close of the file hangs
 */
#pragma once

#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "agent/util.h"

struct stalled {
	char mount_point[64];
	pid_t *answered; /* whose FLUSH is answered; 0: nobody's */
	int flushes;     /* gives a byte for each FLUSH that the server has got */
	pid_t server;
};

static inline void stalled_answer(int fuse, const struct fuse_in_header *in, const void *data, size_t size)
{
	struct {
		struct fuse_out_header header;
		char data[256];
	} out = { .header = { .len = (uint32_t)(sizeof(out.header) + size), .unique = in->unique } };

	if (size > 0)
		memcpy(out.data, data, size);
	if (write(fuse, &out, out.header.len) < 0 && errno != ENOENT)
		_exit(1);
}

static inline void stalled_serve(int fuse, int report, const pid_t *answered)
{
	static char buffer[1 << 17];
	const struct fuse_in_header *in = (const void *)buffer;
	struct fuse_init_out init = { .major = FUSE_KERNEL_VERSION,
				      .minor = FUSE_KERNEL_MINOR_VERSION,
				      .max_write = 4096 };
	struct fuse_attr_out attr = { .attr = { .ino = 1, .mode = S_IFREG | 0644, .nlink = 1 } };
	struct fuse_open_out opened = { .fh = 1 };

	while (read(fuse, buffer, sizeof(buffer)) > 0) {
		switch (in->opcode) {
		case FUSE_INIT:
			stalled_answer(fuse, in, &init, sizeof(init));
			break;
		case FUSE_GETATTR:
			stalled_answer(fuse, in, &attr, sizeof(attr));
			break;
		case FUSE_OPEN:
			stalled_answer(fuse, in, &opened, sizeof(opened));
			break;
		case FUSE_FLUSH:
			if (in->pid == (uint32_t)__atomic_load_n(answered, __ATOMIC_SEQ_CST))
				stalled_answer(fuse, in, NULL, 0);
			else if (write(report, "F", 1) != 1)
				_exit(1);
			break;
		case FUSE_FORGET:
		case FUSE_BATCH_FORGET:
		case FUSE_INTERRUPT:
			break;
		default:
			stalled_answer(fuse, in, NULL, 0);
		}
	}
	_exit(0);
}

static inline bool stalled_write(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	bool ok = fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);

	safe_close(fd);
	return ok;
}

/* Its own mount namespace, so that nothing stays mounted; as root of a user namespace where we aren't root. */
static inline const char *stalled_enter_namespace(void)
{
	char map[64];

	snprintf(map, sizeof(map), "0 %u 1", geteuid());
	if (geteuid() == 0)
		return unshare(CLONE_NEWNS) < 0 ? "mount namespaces" : NULL;
	if (unshare(CLONE_NEWUSER | CLONE_NEWNS) < 0 || !stalled_write("/proc/self/setgroups", "deny") ||
	    !stalled_write("/proc/self/uid_map", map))
		return "user namespaces";
	snprintf(map, sizeof(map), "0 %u 1", getegid());
	return stalled_write("/proc/self/gid_map", map) ? NULL : "user namespaces";
}

/* NULL, or what is missing here. The caller unlinks nothing and unmounts nothing: stalled_stop() does. */
static inline const char *stalled_start(struct stalled *s)
{
	char options[128];
	const char *missing;
	int fuse, pipes[2];

	*s = (struct stalled){ .mount_point = "/tmp/test-stalled-XXXXXX", .flushes = -1 };
	s->answered = mmap(NULL, sizeof(*s->answered), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (s->answered == MAP_FAILED)
		return "memory";
	fuse = mkstemp(s->mount_point);
	if (fuse < 0)
		return "a file in /tmp";
	close(fuse);
	missing = stalled_enter_namespace();
	if (missing)
		return missing;
	fuse = open("/dev/fuse", O_RDWR | O_CLOEXEC);
	if (fuse < 0)
		return "/dev/fuse";
	snprintf(options, sizeof(options), "fd=%d,rootmode=100644,user_id=0,group_id=0", fuse);
	if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
	    mount("stalled", s->mount_point, "fuse", MS_NOSUID | MS_NODEV, options) < 0)
		return "mounting FUSE";
	if (pipe2(pipes, O_CLOEXEC) < 0)
		return "a pipe";
	s->server = fork();
	if (s->server == 0) {
		/* A test that is killed must not leave anyone hanging. */
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		stalled_serve(fuse, pipes[1], s->answered);
	}
	close(fuse);
	close(pipes[1]);
	s->flushes = pipes[0];
	return NULL;
}

static inline int stalled_open(const struct stalled *s)
{
	return open(s->mount_point, O_RDONLY | O_CLOEXEC);
}

static inline bool stalled_wait_for_flush(const struct stalled *s)
{
	char c;

	return read(s->flushes, &c, 1) == 1;
}

/* Every close that hangs returns. */
static inline void stalled_end_server(struct stalled *s)
{
	if (s->server > 0)
		kill(s->server, SIGKILL);
	s->server = 0;
}

static inline void stalled_stop(struct stalled *s)
{
	stalled_end_server(s);
	umount2(s->mount_point, MNT_DETACH);
	unlink(s->mount_point);
}
