/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test-closer: descriptors whose close hangs, on a FUSE filesystem that does not answer
 */
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "agent/closer.h"
#include "agent/util.h"
#include "selftest/stalled.h"

#define MAX_HANGING 64

static struct stalled stalled;
static const char *missing; /* why there is no such file here */

static int set_up(void **state)
{
	/* As in the agent: children go by themselves. A close that does hang must not hang the test for ever. */
	signal(SIGCHLD, SIG_IGN);
	alarm(60);
	missing = stalled_start(&stalled);
	if (missing)
		print_message("# no stalled close without %s\n", missing);
	return 0;
}

static int tear_down(void **state)
{
	stalled_stop(&stalled);
	return 0;
}

static int open_stalled(void)
{
	int fd;

	if (missing)
		skip();
	fd = stalled_open(&stalled);
	assert_true(fd >= 0);
	return fd;
}

static void wait_for_flush(void)
{
	assert_true(stalled_wait_for_flush(&stalled));
}

/* ---- */

/* The control: without the closer this is where we would hang. */
static void test_close_itself_hangs(void **state)
{
	int fd = open_stalled(), pidfd;
	struct pollfd p = { .events = POLLIN };
	pid_t child = fork();

	if (child == 0) {
		close(fd);
		_exit(0);
	}
	pidfd = (int)syscall(SYS_pidfd_open, child, 0);
	assert_true(pidfd >= 0);
	wait_for_flush();
	p.fd = pidfd;
	assert_int_equal(poll(&p, 1, 0), 0);
	close(pidfd);
	closer_close(fd);
	wait_for_flush();
}

static void test_close_does_not_hang(void **state)
{
	int fd = open_stalled();

	closer_close(fd);
	wait_for_flush();
	assert_int_equal(fcntl(fd, F_GETFD), -1);
}

static void test_defused_can_be_closed(void **state)
{
	int fd = open_stalled();

	assert_int_equal(closer_defuse(fd), 0);
	wait_for_flush();
	assert_true(fcntl(fd, F_GETFD) & FD_CLOEXEC);
	assert_int_equal(close(fd), 0);
}

/* A hanging child must not outlive us with what we hold, our bus name and the workers' sockets among it. */
static void test_hanging_child_keeps_nothing(void **state)
{
	int fd = open_stalled(), pipes[2];
	struct pollfd p = { .events = POLLIN };

	assert_int_equal(pipe2(pipes, O_CLOEXEC), 0);
	if (fork() == 0) {
		closer_close(fd);
		_exit(0);
	}
	close(pipes[1]);
	wait_for_flush();
	p.fd = pipes[0];
	assert_int_equal(poll(&p, 1, -1), 1);
	assert_true(p.revents & POLLHUP);
	close(pipes[0]);
	closer_close(fd);
	wait_for_flush();
}

static void test_ordinary_descriptor_is_closed(void **state)
{
	struct pollfd p = { .events = POLLIN };
	int pipes[2];

	assert_int_equal(pipe2(pipes, O_CLOEXEC), 0);
	closer_close(pipes[1]);
	p.fd = pipes[0];
	assert_int_equal(poll(&p, 1, -1), 1);
	assert_true(p.revents & POLLHUP);
	close(pipes[0]);
	closer_close(-1);
}

static void test_copy_is_defused_at_once(void **state)
{
	char name[64], target[64] = "";
	int pipes[2];

	assert_int_equal(pipe2(pipes, O_CLOEXEC), 0);
	assert_int_equal(closer_defuse_copy(pipes[1]), 0);
	snprintf(name, sizeof(name), "/proc/self/fd/%d", pipes[1]);
	assert_true(readlink(name, target, sizeof(target) - 1) > 0);
	assert_memory_equal(target, "anon_inode:", 11);
	close(pipes[0]);
	close(pipes[1]);
}

/* Beyond the bound the descriptor stays as it was, and once the others have ended it goes on. */
static void test_bound(void **state)
{
	unsigned int n = 0;
	int fd = -1, r = 0;

	while (r == 0 && n <= MAX_HANGING) {
		fd = open_stalled();
		r = closer_defuse(fd);
		if (r == 0) {
			close(fd);
			n++;
		}
	}
	assert_int_equal(r, -EBUSY);
	stalled_end_server(&stalled);
	/* With SIGCHLD ignored this waits for all children. */
	assert_int_equal(wait(NULL), -1);
	assert_int_equal(closer_defuse(fd), 0);
	close(fd);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_ordinary_descriptor_is_closed),
		cmocka_unit_test(test_copy_is_defused_at_once),
		cmocka_unit_test(test_close_itself_hangs),
		cmocka_unit_test(test_close_does_not_hang),
		cmocka_unit_test(test_defused_can_be_closed),
		cmocka_unit_test(test_hanging_child_keeps_nothing),
		cmocka_unit_test(test_bound),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, set_up, tear_down);
}
