/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * closer: closes descriptors that came from others, without waiting for what their close() waits for
 *
 * A child that shares our descriptor table puts a harmless descriptor into the slot. The kernel exchanges the slot
 * first and only then calls the close of what was there, so the hang is the child's alone. A child that does hang would
 * keep the table, with our sockets in it, beyond our own end; so we move to a copy of the table (the slot is harmless
 * in it already), and a second child empties the one we left.
 */
#include <fcntl.h>
#include <linux/close_range.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>

#include "closer.h"
#include "util.h"

#define CLOSER_MAX_HANGING 64
#define CLOSER_TICKS_MAX   10000

static int hanging[CLOSER_MAX_HANGING];
static unsigned int n_hanging;
static int harmless = -1;

/* As fork(), but with one descriptor table for both. `ret_pidfd` is a descriptor of the parent. */
static pid_t fork_sharing_files(int *ret_pidfd)
{
	return syscall(SYS_clone, CLONE_FILES | CLONE_PIDFD | SIGCHLD, NULL, ret_pidfd, NULL, NULL);
}

static bool has_ended(int pidfd, int timeout_msec)
{
	struct pollfd p = { .fd = pidfd, .events = POLLIN };

	return poll(&p, 1, timeout_msec) > 0;
}

static void forget_ended(void)
{
	unsigned int n = 0;

	for (unsigned int i = 0; i < n_hanging; i++) {
		if (has_ended(hanging[i], 0))
			safe_close(hanging[i]);
		else
			hanging[n++] = hanging[i];
	}
	n_hanging = n;
}

/* POSIX record locks, which belong to the table, do not survive this; open file description locks do. */
static void leave_table(void)
{
	_cleanup_close_ int left = eventfd(0, EFD_CLOEXEC), pidfd = -1;
	_cleanup_close_ int parent = (int)syscall(SYS_pidfd_open, getpid(), 0);
	struct pollfd polls[] = { { .fd = left, .events = POLLIN }, { .fd = parent, .events = POLLIN } };
	uint64_t one = 1;
	pid_t child;

	if (left < 0 || parent < 0)
		return;
	child = fork_sharing_files(&pidfd);
	if (child < 0)
		return;
	if (child == 0) {
		/* The table may be emptied when we are out of it, be it that we have ended. */
		while (poll(polls, ARRAY_SIZE(polls), -1) <= 0)
			;
		syscall(SYS_close_range, 0, ~0U, 0);
		_exit(0);
	}
	if (unshare(CLONE_FILES) < 0 || write(left, &one, sizeof(one)) != sizeof(one))
		kill(child, SIGKILL);
}

/* Waits for the exchange, which is marked by the close-on-exec flag. It depends on the scheduler alone. */
static int wait_for_exchange(int fd, int pidfd)
{
	for (unsigned int i = 0; i < CLOSER_TICKS_MAX; i++) {
		bool ended = has_ended(pidfd, 1);

		if (fcntl(fd, F_GETFD) & FD_CLOEXEC)
			return 0;
		if (ended)
			return -ECHILD;
	}
	return -ETIMEDOUT;
}

static int open_harmless(void)
{
	if (harmless < 0)
		harmless = eventfd(0, EFD_CLOEXEC);
	return harmless < 0 ? -errno : 0;
}

int closer_defuse(int fd)
{
	int pidfd = -1, r;
	pid_t child;

	forget_ended();
	if (n_hanging >= CLOSER_MAX_HANGING)
		return -EBUSY;
	r = open_harmless();
	if (r < 0)
		return r;
	if (fcntl(fd, F_SETFD, 0) < 0)
		return -errno;

	child = fork_sharing_files(&pidfd);
	if (child < 0) {
		r = -errno;
		fcntl(fd, F_SETFD, FD_CLOEXEC);
		return r;
	}
	if (child == 0) {
		dup3(harmless, fd, O_CLOEXEC);
		_exit(0);
	}

	r = wait_for_exchange(fd, pidfd);
	/* One that doesn't hang has ended by now, or is about to. */
	if (has_ended(pidfd, 2)) {
		safe_close(pidfd);
		return r;
	}
	hanging[n_hanging++] = pidfd;
	if (r == 0)
		leave_table();
	return r;
}

int closer_defuse_copy(int fd)
{
	int r = open_harmless();

	return r < 0 ? r : dup3(harmless, fd, O_CLOEXEC) < 0 ? -errno : 0;
}

void closer_close(int fd)
{
	if (fd >= 0 && closer_defuse(fd) == 0)
		safe_close(fd);
}
