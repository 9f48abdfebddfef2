/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test-sock-kept: the socket's door: descriptors that the agent keeps for mappings
 */
#include <grp.h>

#include "selftest/door.h"

/* ---- descriptors that are kept ---- */

static int send_keep(int fd, uint64_t number, int what)
{
	struct pmem_agent_request request = raw_request(number);

	request.type = PMEM_AGENT_PACKET_KEEP;
	return raw_send(fd, &request, sizeof(request), what, 1);
}

static void expect_kept(int fd, uint64_t number, enum pmem_agent_answer answer)
{
	struct pmem_agent_reply reply;

	assert_int_equal(raw_receive(fd, &reply), sizeof(reply));
	assert_int_equal(reply.type, PMEM_AGENT_PACKET_KEEP);
	assert_int_equal(reply.id, number);
	assert_int_equal(reply.answer, answer);
	assert_true((reply.error == 0) == (answer == 0));
}

static void flush_kept(int fd, uint64_t number, enum pmem_agent_answer answer)
{
	struct pmem_agent_request request = raw_request(9);

	request.kept = number;
	assert_int_equal(raw_send(fd, &request, sizeof(request), -1, 0), 0);
	expect(fd, 9, answer, NULL);
}

/* How many descriptors of emu0's file the agent has. */
static unsigned int count_kept(void)
{
	char path[320], to[PATH_MAX];
	unsigned int n = 0;
	struct dirent *e;
	DIR *d;

	snprintf(path, sizeof(path), "/proc/%d/fd", served.session.agent);
	d = opendir(path);
	assert_non_null(d);
	while ((e = readdir(d))) {
		ssize_t size;

		snprintf(path, sizeof(path), "/proc/%d/fd/%s", served.session.agent, e->d_name);
		size = readlink(path, to, sizeof(to) - 1);
		to[size > 0 ? size : 0] = '\0';
		n += strcmp(to, served.session.emulated) == 0;
	}
	closedir(d);
	return n;
}

/* What it only looks at, or flushes, it has closed a moment later; if it hadn't, this would not end. */
static void wait_for_kept(unsigned int n)
{
	while (count_kept() != n)
		;
}

static void test_kept(void **state)
{
	_cleanup_close_ int keeper = connect_agent(), second = connect_agent(), other = connect_agent();
	_cleanup_close_ int ordinary = open("/proc/self/status", O_RDONLY | O_CLOEXEC);
	_cleanup_close_ int file = open(served.session.emulated, O_RDONLY | O_CLOEXEC);

	flush_once();
	wait_for_kept(0);
	flush_kept(other, 4711, PMEM_AGENT_NOT_FOUND);
	assert_int_equal(send_keep(keeper, 1, ordinary), 0);
	expect_kept(keeper, 1, PMEM_AGENT_ORDINARY);
	assert_int_equal(send_keep(keeper, 4711, file), 0);
	expect_kept(keeper, 4711, 0);
	wait_for_kept(1);
	assert_int_equal(send_keep(keeper, 4712, file), 0);
	expect_kept(keeper, 4712, PMEM_AGENT_REFUSED);
	assert_int_equal(send_keep(second, 4711, file), 0);
	expect_kept(second, 4711, PMEM_AGENT_REFUSED);
	for (unsigned int i = 0; i < 3; i++)
		flush_kept(i == 0 ? keeper : other, 4711, PMEM_AGENT_DURABLE);
	flush_kept(other, 4712, PMEM_AGENT_NOT_FOUND);

	/* When the connection ends it has been dropped: that is what who unmounts waits for. */
	wait_for_kept(1);
	assert_int_equal(shutdown(keeper, SHUT_WR), 0);
	expect_end(keeper);
	assert_int_equal(count_kept(), 0);
	flush_kept(other, 4711, PMEM_AGENT_NOT_FOUND);
	assert_int_equal(send_keep(second, 4711, file), 0);
	expect_kept(second, 4711, 0);
	flush_kept(other, 4711, PMEM_AGENT_DURABLE);
	/* Nor does it outlive who has gone without a word. */
	second = safe_close(second);
	wait_for_kept(0);
}

/* A number is of one user: others that guess it have nothing from it. */
static void test_kept_of_another_user(void **state)
{
	_cleanup_close_ int keeper = connect_agent();
	pid_t child;
	int status;

	if (geteuid() != 0)
		skip();
	assert_int_equal(send_keep(keeper, 4711, target), 0);
	expect_kept(keeper, 4711, 0);
	child = fork();
	if (child == 0) {
		struct pmem_agent_request request = raw_request(1);
		struct pmem_agent_reply reply;
		int fd;

		request.kept = 4711;
		fd = setresuid(65534, 65534, 65534) == 0 ? connect_agent() : -1;
		_exit(fd >= 0 && raw_send(fd, &request, sizeof(request), -1, 0) == 0 &&
			      raw_receive(fd, &reply) == sizeof(reply) && reply.answer == PMEM_AGENT_NOT_FOUND
			  ? 0
			  : 1);
	}
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_int_equal(status, 0);
	flush_kept(keeper, 4711, PMEM_AGENT_DURABLE);
}

/* No user has more than a share of them, whatever connections it makes. */
static void test_kept_bound(void **state)
{
	int fds[128], n = 0;
	struct pmem_agent_reply reply = { .answer = 0 };

	while (n < 128 && reply.answer == 0) {
		fds[n] = connect_agent();
		assert_int_equal(send_keep(fds[n], 1000 + (uint64_t)n, target), 0);
		assert_int_equal(raw_receive(fds[n], &reply), sizeof(reply));
		n++;
	}
	assert_int_equal(reply.answer, PMEM_AGENT_BUSY);
	print_message("# %d descriptors kept\n", n - 1);
	assert_true(n > 1);
	while (n > 0)
		close(fds[--n]);
	flush_once();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_kept),
		cmocka_unit_test(test_kept_of_another_user),
		cmocka_unit_test(test_kept_bound),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, set_up, tear_down);
}
