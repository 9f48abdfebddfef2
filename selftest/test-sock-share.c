/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test-sock-share: the socket's door: what one user may have of it, and what happens where there is no more
 */
#include <grp.h>
#include <sys/epoll.h>

#include "selftest/door.h"

/* ---- bounds ---- */

static void test_connections_of_one_user(void **state)
{
	int fds[MAX_CONNECTIONS];
	unsigned int n = 0;
	struct pmem_agent_reply reply;

	for (;;) {
		assert_true(n < MAX_CONNECTIONS);
		fds[n] = connect_agent();
		/* It may be refused before that is sent. */
		assert_true(raw_flush(fds[n], n, target) == 0 || errno == EPIPE || errno == ECONNRESET);
		assert_int_equal(raw_receive(fds[n], &reply), sizeof(reply));
		if (reply.answer != PMEM_AGENT_DURABLE)
			break;
		n++;
	}
	assert_int_equal(reply.answer, PMEM_AGENT_BUSY);
	assert_int_equal(reply.error, EBUSY);
	assert_int_equal(reply.type, PMEM_AGENT_PACKET_ERROR);
	assert_int_equal(reply.id, 0);
	assert_non_null(strstr(reply.detail, "connections"));
	expect_end(fds[n]);
	close(fds[n]);
	print_message("# one user may have %u connections\n", n);
	/* Room again as soon as one has gone. */
	while (n > 0)
		close(fds[--n]);
	do {
		fds[0] = connect_agent();
		raw_flush(fds[0], 1, target);
		assert_int_equal(raw_receive(fds[0], &reply), sizeof(reply));
		close(fds[0]);
	} while (reply.answer == PMEM_AGENT_BUSY);
	assert_int_equal(reply.answer, PMEM_AGENT_DURABLE);
}

/* As nobody: sends until it is told that its share is used up. */
static _Noreturn void use_up_quota(int told)
{
	struct pmem_agent_reply reply;
	char answer = '-';

	if (setgroups(0, NULL) < 0 || setresgid(NOBODY, NOBODY, NOBODY) < 0 || setresuid(NOBODY, NOBODY, NOBODY) < 0)
		_exit(1);
	for (unsigned int i = 0; i < MAX_CONNECTIONS && answer == '-'; i++) {
		int fd = raw_connect(served.socket);

		for (uint64_t id = 1; id <= MAX_OUTSTANDING; id++)
			if (raw_flush(fd, id, target) < 0)
				_exit(1);
		/* The request before the last one has been looked at when its successor is answered. */
		struct pmem_agent_request garbage = { .version = 9 };
		if (raw_send(fd, &garbage, sizeof(garbage), -1, 0) < 0)
			_exit(1);
		struct pollfd p = { .fd = fd, .events = POLLIN };
		if (poll(&p, 1, 500) == 1 && raw_receive(fd, &reply) > 0 && reply.answer == PMEM_AGENT_BUSY &&
		    strstr(reply.detail, "at the socket"))
			answer = 'b';
	}
	if (write(told, &answer, 1) != 1)
		_exit(1);
	pause();
	_exit(0);
}

static void test_quota_of_a_user(void **state)
{
	char told = '-';
	int pipes[2], fd;
	pid_t worker, child;

	if (geteuid() != 0) {
		print_message("# another user needs root\n");
		skip();
	}
	worker = stop_worker();
	assert_int_equal(pipe2(pipes, O_CLOEXEC), 0);
	child = fork();
	if (child == 0)
		use_up_quota(pipes[1]);
	assert_int_equal(read(pipes[0], &told, 1), 1);
	assert_int_equal(told, 'b');
	/* Others have theirs. */
	fd = connect_agent();
	assert_int_equal(raw_flush(fd, 1, target), 0);
	kill(worker, SIGCONT);
	expect(fd, 1, PMEM_AGENT_DURABLE, NULL);
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
	close(fd);
	close(pipes[0]);
	close(pipes[1]);
}

static int connect_as(uid_t uid)
{
	int fd;

	assert_int_equal(seteuid(uid), 0);
	fd = connect_agent();
	assert_int_equal(seteuid(0), 0);
	return fd;
}

#define N_USERS 5

/* Many users have all connections but those that are kept for root. */
static void test_connection_for_root(void **state)
{
	int fds[MAX_CONNECTIONS], fd;
	struct pmem_agent_reply reply;
	unsigned int n = 0;

	if (geteuid() != 0) {
		print_message("# another user needs root\n");
		skip();
	}
	for (uid_t uid = 1000; uid < 1000 + N_USERS; uid++)
		for (unsigned int i = 0; i < MAX_CONNECTIONS / 4 && n < MAX_CONNECTIONS; i++) {
			fds[n] = connect_as(uid);
			assert_true(raw_flush(fds[n], n, target) == 0 || errno == EPIPE || errno == ECONNRESET);
			assert_int_equal(raw_receive(fds[n], &reply), sizeof(reply));
			if (reply.answer == PMEM_AGENT_DURABLE) {
				n++;
				continue;
			}
			assert_non_null(strstr(reply.detail, "connections already"));
			close(fds[n]);
		}
	fd = connect_agent();
	assert_int_equal(raw_flush(fd, 1, target), 0);
	assert_int_equal(poll(&(struct pollfd){ .fd = fd, .events = POLLIN }, 1, 60000), 1);
	expect(fd, 1, PMEM_AGENT_DURABLE, NULL);
	close(fd);
	while (n > 0)
		close(fds[--n]);
}

/* So it is with requests. They have been looked at when what comes after them is answered. */
static void test_request_for_root(void **state)
{
	const struct pmem_agent_request garbage = { .version = 9 };
	struct pmem_agent_reply reply;
	int fds[2 * N_USERS], fd;
	pid_t worker;

	if (geteuid() != 0) {
		print_message("# another user needs root\n");
		skip();
	}
	worker = stop_worker();
	for (unsigned int i = 0; i < ARRAY_SIZE(fds); i++) {
		fds[i] = connect_as(1000 + i / 2);
		for (uint64_t id = 1; id < MAX_OUTSTANDING; id++)
			assert_int_equal(raw_flush(fds[i], id, target), 0);
		assert_int_equal(raw_send(fds[i], &garbage, sizeof(garbage), -1, 0), 0);
		do
			assert_int_equal(raw_receive(fds[i], &reply), sizeof(reply));
		while (reply.answer == PMEM_AGENT_BUSY);
		assert_int_equal(reply.answer, PMEM_AGENT_REFUSED);
	}
	fd = connect_agent();
	assert_int_equal(raw_flush(fd, 1, target), 0);
	assert_int_equal(raw_send(fd, &garbage, sizeof(garbage), -1, 0), 0);
	expect(fd, 0, PMEM_AGENT_REFUSED, NULL);
	kill(worker, SIGCONT);
	expect(fd, 1, PMEM_AGENT_DURABLE, NULL);
	close(fd);
	for (unsigned int i = 0; i < ARRAY_SIZE(fds); i++)
		close(fds[i]);
}

#define CROWD 16

/* Whoever has one connection that is ready waits for one of another user's, not for all of them. */
static void test_users_take_turns(void **state)
{
	const struct pmem_agent_request garbage = { .version = 9 };
	struct epoll_event events[CROWD + 1];
	int fds[CROWD + 1], order = epoll_create1(EPOLL_CLOEXEC), n = 0;

	if (geteuid() != 0) {
		print_message("# another user needs root\n");
		skip();
	}
	for (uint32_t i = 0; i <= CROWD; i++) {
		assert_int_equal(seteuid(i < CROWD ? NOBODY : 0), 0);
		fds[i] = connect_agent();
		assert_int_equal(seteuid(0), 0);
		assert_int_equal(raw_send(fds[i], &garbage, sizeof(garbage), -1, 0), 0);
		expect(fds[i], 0, PMEM_AGENT_REFUSED, NULL);
		events[0] = (struct epoll_event){ .events = EPOLLIN | EPOLLET, .data.u32 = i };
		assert_int_equal(epoll_ctl(order, EPOLL_CTL_ADD, fds[i], &events[0]), 0);
	}

	stop_process(served.session.agent);
	for (int i = 0; i <= CROWD; i++)
		assert_int_equal(raw_send(fds[i], &garbage, sizeof(garbage), -1, 0), 0);
	kill(served.session.agent, SIGCONT);
	for (int i = 0; i <= CROWD; i++)
		assert_int_equal(poll(&(struct pollfd){ .fd = fds[i], .events = POLLIN }, 1, 60000), 1);
	/* In the order of their answers. */
	assert_int_equal(epoll_wait(order, events, CROWD + 1, 0), CROWD + 1);
	while (events[n].data.u32 != CROWD)
		n++;
	assert_true(n < 2);
	for (int i = 0; i <= CROWD; i++)
		close(fds[i]);
	close(order);
}

static void set_agent_files(rlim_t n)
{
	struct rlimit limit = { n, N_FILES };

	assert_int_equal(prlimit(served.session.agent, RLIMIT_NOFILE, &limit, NULL), 0);
}

static void test_no_descriptor_left_to_accept(void **state)
{
	_cleanup_close_ int fd = -1;
	struct pmem_agent_reply reply;

	set_agent_files(3);
	fd = connect_agent();
	assert_int_equal(raw_flush(fd, 1, target), 0);
	assert_agent_rests(500);
	assert_int_equal(recv(fd, &reply, sizeof(reply), MSG_DONTWAIT), -1);
	set_agent_files(N_FILES);
	expect(fd, 1, PMEM_AGENT_DURABLE, NULL);
}

static void test_no_descriptor_left_for_a_request(void **state)
{
	_cleanup_close_ int fd = connect_agent();

	assert_int_equal(raw_flush(fd, 1, target), 0);
	expect(fd, 1, PMEM_AGENT_DURABLE, NULL);
	set_agent_files(3);
	assert_int_equal(raw_flush(fd, 2, target), 0);
	expect(fd, 2, PMEM_AGENT_BUSY, "no free descriptor");
	set_agent_files(N_FILES);
	assert_int_equal(raw_flush(fd, 3, target), 0);
	expect(fd, 3, PMEM_AGENT_DURABLE, NULL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_connections_of_one_user),
		cmocka_unit_test(test_quota_of_a_user),
		cmocka_unit_test(test_connection_for_root),
		cmocka_unit_test(test_request_for_root),
		cmocka_unit_test(test_users_take_turns),
		cmocka_unit_test(test_no_descriptor_left_to_accept),
		cmocka_unit_test(test_no_descriptor_left_for_a_request),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, set_up, tear_down);
}
