/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test-sock-end: the socket's door: how it ends, and descriptors whose close does not
 */
#include <grp.h>
#include <netinet/in.h>

#include "selftest/door.h"
#include "selftest/stalled.h"

static struct stalled stalled;
static const char *stalled_missing;
static int lingering_peer;

static int set_up_stalled(void **state)
{
	stalled_missing = stalled_start(&stalled);
	return set_up(state);
}

static int tear_down_stalled(void **state)
{
	stalled_stop(&stalled);
	return tear_down(state);
}

/* ---- the end ---- */

/* More than is read at a time: every packet that could be sent is answered, and the rest was refused when it was sent.
 */
static void test_stop_answers_what_was_sent(void **state)
{
	_cleanup_close_ int fd = connect_agent(), idle = connect_agent();
	struct pmem_agent_reply reply;
	pid_t worker = stop_worker();
	unsigned int n = send_all(fd), answered = 0;
	struct pollfd p = { .fd = idle, .events = POLLIN };

	kill(served.session.agent, SIGTERM);
	/* The idle one is closed as soon as the agent stops. */
	assert_int_equal(poll(&p, 1, -1), 1);
	expect_end(idle);
	assert_int_equal(raw_flush(fd, n, target), -EPIPE);
	kill(worker, SIGCONT);
	while (raw_receive(fd, &reply) > 0) {
		assert_int_equal(reply.answer, PMEM_AGENT_DURABLE);
		answered++;
	}
	assert_int_equal(answered, n);
	assert_int_equal(served_wait_agent(&served), 0);
	assert_int_equal(served_start_agent(&served), 0);
}

/* The host does not answer: who waits is told that nobody knows, and the agent ends in time. */
static void test_stop_does_not_wait_for_ever(void **state)
{
	_cleanup_close_ int fd = -1;
	struct pmem_agent_reply reply;
	unsigned int n, answered = 0;
	pid_t worker;

	assert_int_equal(served_stop_agent(&served), 0);
	assert_int_equal(served_configure(&served, 1), 0);
	assert_int_equal(served_start_agent(&served), 0);
	fd = connect_agent();
	worker = stop_worker();
	n = send_all(fd);
	kill(served.session.agent, SIGTERM);
	assert_int_equal(served_wait_agent(&served), 0);
	while (raw_receive(fd, &reply) > 0) {
		assert_int_equal(reply.answer, PMEM_AGENT_UNKNOWN);
		answered++;
	}
	assert_in_range(answered, 1, n);
	kill(worker, SIGCONT);
	assert_int_equal(served_configure(&served, 30), 0);
	assert_int_equal(served_start_agent(&served), 0);
}

/* Killed: what waited has no answer, and who connects meanwhile gets one from the next agent. */
static void test_kill(void **state)
{
	_cleanup_close_ int fd = connect_agent(), next = -1;
	pid_t worker = stop_worker();

	assert_int_equal(raw_flush(fd, 1, target), 0);
	while (get_waiting() != 1)
		;
	served_kill_agent(&served);
	expect_end(fd);
	next = connect_agent();
	assert_int_equal(raw_flush(next, 2, target), 0);
	kill(worker, SIGCONT);
	assert_int_equal(served_start_agent(&served), 0);
	expect(next, 2, PMEM_AGENT_DURABLE, NULL);
}

/* ---- the bus is lost ---- */

/* A socket whose close waits for a minute, since its peer does not take what is in it. */
static int open_lingering(void)
{
	const struct linger linger = { .l_onoff = 1, .l_linger = 60 };
	_cleanup_close_ int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t size = sizeof(address);
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	char data[4096] = "";

	assert_int_equal(bind(listener, (struct sockaddr *)&address, sizeof(address)), 0);
	assert_int_equal(listen(listener, 1), 0);
	assert_int_equal(getsockname(listener, (struct sockaddr *)&address, &size), 0);
	assert_true(connect(fd, (struct sockaddr *)&address, size) == 0 || errno == EINPROGRESS);
	lingering_peer = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
	assert_true(lingering_peer >= 0);
	while (send(fd, data, sizeof(data), 0) > 0)
		;
	assert_int_equal(errno, EAGAIN);
	assert_int_equal(setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger)), 0);
	assert_int_equal(fcntl(fd, F_SETFL, 0), 0);
	return fd;
}

/*
 * What it has not read yet is closed with its socket: who sent that is not to hold up its end. It does not read a
 * connection with so many requests that wait.
 */
static void test_bus_lost(void **state)
{
	_cleanup_close_ int fd = connect_agent(), pidfd = -1;
	int lingering = open_lingering();
	pid_t worker = stop_worker();
	struct pmem_agent_request request = raw_request(99);
	struct pollfd p = { .events = POLLIN };
	char path[80];

	for (unsigned int i = 0; i < MAX_OUTSTANDING; i++)
		assert_int_equal(raw_flush(fd, i, target), 0);
	while (get_waiting() != MAX_OUTSTANDING)
		;
	assert_int_equal(raw_send(fd, &request, sizeof(request), lingering, 1), 0);
	close(lingering);
	pidfd = (int)syscall(SYS_pidfd_open, served.session.agent, 0);
	session_kill(&served.session.bus);
	p.fd = pidfd;
	assert_int_equal(poll(&p, 1, 20000), 1);
	assert_int_equal(WEXITSTATUS(served_wait_agent(&served)), 1);
	kill(worker, SIGCONT);
	close(lingering_peer);
	snprintf(path, sizeof(path), "%s/bus", served.session.directory);
	unlink(path);
	assert_int_equal(session_start_bus(&served.session), 0);
	assert_int_equal(served_start_agent(&served), 0);
	flush_once();
}

/* ---- without systemd ---- */

static void test_own_socket(void **state)
{
	_cleanup_close_ int fd = -1;
	struct stat st;
	int listener = served.listener;

	assert_int_equal(served_stop_agent(&served), 0);
	/* Its own, in the place of one that nobody listens on any more. */
	served.listener = -1;
	assert_int_equal(served_start_agent(&served), 0);
	assert_int_equal(stat(served.socket, &st), 0);
	assert_int_equal(st.st_mode & 0777, 0666);
	flush_once();
	fd = connect_agent();
	assert_int_equal(raw_flush(fd, 1, target), 0);
	assert_int_equal(served_stop_agent(&served), 0);
	expect(fd, 1, PMEM_AGENT_DURABLE, NULL);
	expect_end(fd);
	assert_int_equal(raw_connect(served.socket), -1);
	assert_int_equal(errno, ECONNREFUSED);
	safe_close(listener);
	unlink(served.socket);
	served.listener = served_listen(served.socket);
	assert_int_equal(served_start_agent(&served), 0);
}

/* ---- descriptors whose close hangs ---- */

/* In a child, which may well hang when it ends: that it has sent comes over a pipe. */
static void send_stalled(unsigned int n_fds, size_t size, bool wait)
{
	struct pmem_agent_request request = raw_request(1);
	struct pmem_agent_reply reply;
	char told = '-';
	int pipes[2];

	assert_int_equal(pipe2(pipes, O_CLOEXEC), 0);
	if (fork() == 0) {
		int to = raw_connect(served.socket), fd = stalled_open(&stalled);

		if (raw_send(to, &request, size, fd, n_fds) == 0 && (!wait || raw_receive(to, &reply) > 0))
			told = reply.answer == PMEM_AGENT_ORDINARY ? 'o' : 'r';
		close(to);
		if (write(pipes[1], &told, 1) != 1)
			_exit(1);
		_exit(0);
	}
	close(pipes[1]);
	assert_int_equal(read(pipes[0], &told, 1), 1);
	assert_int_not_equal(told, '-');
	if (wait)
		assert_int_equal(told, n_fds == 1 && size == sizeof(request) ? 'o' : 'r');
	close(pipes[0]);
}

/* More than the agent may have at all. */
static bool send_flood(int fd)
{
	struct pmem_agent_request request = raw_request(1);
	struct rlimit limit = { 2 * N_FILES, 2 * N_FILES }; /* so many may be under way, too */
	int to;

	if (setrlimit(RLIMIT_NOFILE, &limit) < 0 || setgroups(0, NULL) < 0 || setresgid(NOBODY, NOBODY, NOBODY) < 0 ||
	    setresuid(NOBODY, NOBODY, NOBODY) < 0)
		return false;
	to = raw_connect(served.socket);
	for (unsigned int i = 0; i < N_FILES / 200 + 2; i++)
		if (raw_send(to, &request, sizeof(request), fd, 200) < 0)
			return false;
	return true;
}

static _Noreturn void flood(int told)
{
	int fd = stalled_open(&stalled);

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (send_flood(fd) && write(told, "s", 1) == 1)
		pause();
	close(told); /* first: to close the other one hangs */
	_exit(1);
}

/* Who floods the agent with them is not read any more; others notice nothing, and nothing is left in the end. */
static void test_flood_of_stalled_descriptors(void **state)
{
	unsigned int idle = count_idle_fds();
	int pipes[2];
	pid_t child;
	char c;

	if (stalled_missing || geteuid() != 0) {
		print_message("# no flood without root and %s\n", stalled_missing ?: "FUSE");
		skip();
	}
	assert_int_equal(pipe2(pipes, O_CLOEXEC), 0);
	child = fork();
	if (child == 0)
		flood(pipes[1]);
	close(pipes[1]);
	assert_int_equal(read(pipes[0], &c, 1), 1);
	close(pipes[0]);
	for (unsigned int i = 0; i < 8; i++) {
		assert_true(stalled_wait_for_flush(&stalled));
		flush_once();
		assert_in_range(count_fds(served.session.agent), idle, N_FILES / 2);
	}
	count_idle_fds();
	kill(child, SIGKILL);
	stalled_end_server(&stalled);
	wait_for_idle_fds(idle);
}

static void test_stalled_descriptors(void **state)
{
	if (stalled_missing) {
		print_message("# no stalled close without %s\n", stalled_missing);
		skip();
	}
	send_stalled(1, sizeof(struct pmem_agent_request), true);
	assert_true(stalled_wait_for_flush(&stalled));
	flush_once();
	send_stalled(3, sizeof(struct pmem_agent_request), true);
	flush_once();
	send_stalled(2, 5, true);
	flush_once();
	/* Sent, and not waited for: maybe the agent never sees more of it than the descriptor. */
	send_stalled(1, sizeof(struct pmem_agent_request), false);
	flush_once();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_stop_answers_what_was_sent),
		cmocka_unit_test(test_stop_does_not_wait_for_ever),
		cmocka_unit_test(test_kill),
		cmocka_unit_test(test_bus_lost),
		cmocka_unit_test(test_own_socket),
		cmocka_unit_test(test_stalled_descriptors),
		cmocka_unit_test(test_flood_of_stalled_descriptors),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, set_up_stalled, tear_down_stalled);
}
