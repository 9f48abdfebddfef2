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

#include "agent/child.h"
#include "agent/closer.h"
#include "agent/util.h"
#include "selftest/stalled.h"

#define ME    1
#define OTHER 2

static struct stalled stalled;
static const char *missing; /* why there is no such file here */
static sd_event *event;
static uint32_t stalled_device;

static int set_up_group(void **state)
{
	/* As in the agent: children go by themselves. A close that does hang must not hang the test for ever. */
	signal(SIGCHLD, SIG_IGN);
	alarm(60);
	return sd_event_new(&event) < 0 || closer_start(event) < 0 ? -1 : 0;
}

static int tear_down_group(void **state)
{
	closer_stop();
	sd_event_unref(event);
	return 0;
}

static int set_up(void **state)
{
	missing = stalled_start(&stalled);
	if (missing)
		print_message("# no stalled close without %s\n", missing);
	return 0;
}

static uint32_t device_of(int fd)
{
	struct statx stx;

	return statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_TYPE, &stx) < 0 ? 0 : stx.stx_dev_minor;
}

/* Numbers are used again, so it doesn't say enough that one is open. */
static bool is_stalled(int fd)
{
	return device_of(fd) == stalled_device;
}

/* What is waited for may be another process's doing. */
static void turn(void)
{
	assert_true(sd_event_run(event, USEC_PER_MSEC) >= 0);
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
	stalled_device = device_of(fd);
	return fd;
}

static bool stalls_another(void)
{
	struct pollfd p = { .fd = stalled.flushes, .events = POLLIN };

	return poll(&p, 1, 0) > 0;
}

static void wait_for_flush(void)
{
	while (!stalls_another())
		turn();
	assert_true(stalled_wait_for_flush(&stalled));
}

static bool has_hung_up(int fd, int timeout_msec)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };

	return poll(&p, 1, timeout_msec) > 0 && p.revents & POLLHUP;
}

/* A pipe that `uid` gave is closed in the end. */
static void assert_pipe_is_closed(uid_t uid)
{
	int pipes[2];

	assert_int_equal(pipe2(pipes, O_CLOEXEC), 0);
	closer_close(pipes[1], uid);
	while (!has_hung_up(pipes[0], 0))
		turn();
	close(pipes[0]);
}

static void on_done(void *userdata)
{
	*(bool *)userdata = true;
}

/* ---- */

static void test_ordinary_descriptor_is_closed(void **state)
{
	assert_pipe_is_closed(ME);
	closer_close(-1, ME);
}

static void test_many_are_closed(void **state)
{
	int pipes[2], copy;

	assert_int_equal(pipe2(pipes, O_CLOEXEC), 0);
	for (unsigned int i = 0; i < 600; i++) {
		copy = fcntl(pipes[1], F_DUPFD_CLOEXEC, 0);
		assert_true(copy >= 0);
		closer_close(copy, i % 3);
	}
	close(pipes[1]);
	while (!has_hung_up(pipes[0], 0))
		turn();
	close(pipes[0]);
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

/* The control: without the closer this is where we would hang. */
static void test_close_itself_hangs(void **state)
{
	int fd = open_stalled(), pidfd;
	pid_t child = fork();
	struct pollfd p = { .events = POLLIN };

	if (child == 0) {
		close(fd);
		_exit(0);
	}
	pidfd = (int)syscall(SYS_pidfd_open, child, 0);
	assert_true(pidfd >= 0);
	assert_true(stalled_wait_for_flush(&stalled));
	p.fd = pidfd;
	assert_int_equal(poll(&p, 1, 0), 0);
	close(pidfd);
	closer_close(fd, ME);
	wait_for_flush();
}

static void test_close_does_not_hang(void **state)
{
	int fd = open_stalled();

	assert_true(is_stalled(fd));
	closer_close(fd, ME);
	wait_for_flush();
	while (is_stalled(fd))
		turn();
	assert_pipe_is_closed(ME);
}

static void test_defused_can_be_closed(void **state)
{
	int fds[] = { open_stalled(), dup(0), open_stalled() };
	bool done = false;

	closer_defuse(fds, ARRAY_SIZE(fds), ME, on_done, &done);
	assert_false(done);
	while (!done)
		turn();
	for (unsigned int i = 0; i < ARRAY_SIZE(fds); i++)
		assert_int_equal(close(fds[i]), 0);
}

/* A hanging child must not outlive us with what we hold, our bus name and the workers' sockets among it. */
static void end_with(unsigned int n)
{
	int fds[8], pipes[2];

	for (unsigned int i = 0; i < n; i++)
		fds[i] = open_stalled();
	assert_int_equal(pipe2(pipes, O_CLOEXEC), 0);
	if (fork() == 0) {
		for (unsigned int i = 0; i < n; i++)
			closer_close(fds[i], ME);
		closer_stop();
		_exit(0);
	}
	close(pipes[1]);
	assert_true(stalled_wait_for_flush(&stalled));
	assert_true(has_hung_up(pipes[0], -1));
	close(pipes[0]);
	for (unsigned int i = 0; i < n; i++)
		closer_close(fds[i], ME);
}

static void test_hanging_child_keeps_nothing(void **state)
{
	end_with(1);
}

/* The end comes before all have been closed. */
static void test_end_is_not_held_up(void **state)
{
	end_with(8);
}

/* ---- bounds ---- */

static int many[CLOSER_UID_WAITING + CLOSER_UID_HANGING];

static void close_stalled_of_me(unsigned int from, unsigned int to)
{
	for (unsigned int i = from; i < to; i++) {
		many[i] = open_stalled();
		closer_close(many[i], ME);
	}
}

static unsigned int count_stalled(void)
{
	unsigned int n = 0;

	for (unsigned int i = 0; i < ARRAY_SIZE(many); i++)
		n += is_stalled(many[i]);
	return n;
}

/* Beyond the share of one user theirs stay open, others go on, and once the filesystem has gone nothing is left. */
static void test_bounds(void **state)
{
	unsigned int n = 0;

	close_stalled_of_me(0, CLOSER_UID_HANGING + 1);
	assert_false(closer_is_busy(ME));
	while (!closer_is_busy(ME))
		turn();
	assert_false(closer_is_full(ME));

	close_stalled_of_me(CLOSER_UID_HANGING + 1, ARRAY_SIZE(many));
	assert_true(closer_is_full(ME));
	assert_false(closer_is_full(OTHER) || closer_is_busy(OTHER));
	assert_pipe_is_closed(OTHER);
	for (; stalls_another(); n++)
		wait_for_flush();
	assert_in_range(n, CLOSER_UID_HANGING / 2, CLOSER_UID_HANGING + 1);
	assert_true(count_stalled() >= CLOSER_UID_WAITING);

	stalled_end_server(&stalled);
	while (count_stalled() > 0)
		turn();
	assert_false(closer_is_full(ME));
	while (closer_is_busy(ME))
		turn();
	assert_pipe_is_closed(ME);
}

static void say_hello(int sock, void *userdata)
{
	if (write(sock, "h", 1) != 1)
		_exit(1);
}

/* A worker is forked with all of them, and must get rid of them. */
static void test_worker_starts(void **state)
{
	int sock;
	pid_t pid;
	char c;

	close_stalled_of_me(0, ARRAY_SIZE(many));
	while (!closer_is_busy(ME))
		turn();
	assert_int_equal(child_start("test", say_hello, NULL, &pid, &sock), 0);
	assert_int_equal(read(sock, &c, 1), 1);
	assert_int_equal(read(sock, &c, 1), 0);
	close(sock);
	stalled_end_server(&stalled);
	while (count_stalled() > 0)
		turn();
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_ordinary_descriptor_is_closed),
		TEST(test_many_are_closed),
		TEST(test_copy_is_defused_at_once),
		TEST(test_close_itself_hangs),
		TEST(test_close_does_not_hang),
		TEST(test_defused_can_be_closed),
		TEST(test_hanging_child_keeps_nothing),
		TEST(test_end_is_not_held_up),
		TEST(test_bounds),
		TEST(test_worker_starts),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, set_up_group, tear_down_group);
}
