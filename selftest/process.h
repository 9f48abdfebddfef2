/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * process: a process of the test's, as /proc shows it
 */
#pragma once

#include <dirent.h>
#include <fcntl.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>

#include <cmocka.h>

#include "agent/util.h"

/* Returns when it has stopped. */
static inline void stop_process(pid_t pid)
{
	char path[64], text[256] = "";

	assert_true(pid > 1);
	assert_int_equal(kill(pid, SIGSTOP), 0);
	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	while (!strstr(text, ") T ")) {
		_cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);

		assert_true(read(fd, text, sizeof(text) - 1) > 0);
	}
}

static inline unsigned int count_fds(pid_t pid)
{
	char path[64];
	unsigned int n = 0;
	DIR *d;

	snprintf(path, sizeof(path), "/proc/%d/fd", pid);
	d = opendir(path);
	assert_non_null(d);
	while (readdir(d))
		n++;
	closedir(d);
	return n;
}

/* The system call that its only thread is in, says the kernel; -1: none. */
static inline int system_call_of(pid_t pid)
{
	_cleanup_close_ int fd = -1;
	char path[64], text[256];
	ssize_t n;

	snprintf(path, sizeof(path), "/proc/%d/syscall", pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	n = read(fd, text, sizeof(text) - 1);
	assert_true(n > 0);
	text[n] = '\0';
	return text[0] == 'r' ? -1 : atoi(text);
}

/* An emulator makes other calls than the program does. */
static inline bool tells_system_calls(void)
{
	return system_call_of(getpid()) == SYS_read;
}

#ifdef SYS_recv
#define SYSTEM_CALL_OF_RECV SYS_recv
#else
#define SYSTEM_CALL_OF_RECV SYS_recvfrom
#endif

static inline void wait_until_in(pid_t pid, int number)
{
	while (system_call_of(pid) != number)
		sched_yield();
}
