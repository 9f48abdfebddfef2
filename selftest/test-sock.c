/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test-sock: the socket's door, by packets of every kind, on the real agent with an emulated region
 */
#include "selftest/door.h"

/* ---- what the door stands on ---- */

static void test_shut_rd_keeps_what_is_queued(void **state)
{
	struct pmem_agent_reply reply;
	char c = 'x';
	int ends[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0);
	for (uint64_t id = 1; id <= 3; id++)
		assert_int_equal(raw_flush(ends[0], id, target), 0);
	assert_int_equal(shutdown(ends[1], SHUT_RD), 0);
	/* Who sends from here on is told that it did not arrive, ... */
	assert_int_equal(raw_flush(ends[0], 4, target), -EPIPE);
	assert_int_equal(send(ends[0], &c, 1, MSG_NOSIGNAL), -1);
	/* ... what was sent before is all there, and then comes the end, ... */
	for (uint64_t id = 1; id <= 3; id++)
		assert_int_equal(raw_receive(ends[1], &reply), sizeof(struct pmem_agent_request));
	expect_end(ends[1]);
	/* ... and it can be answered. */
	assert_int_equal(send(ends[1], &c, 1, MSG_NOSIGNAL), 1);
	assert_int_equal(recv(ends[0], &c, 1, 0), 1);
	close(ends[0]);
	close(ends[1]);
}

static void test_shut_rd_wakes_a_blocked_sender(void **state)
{
	struct pmem_agent_request request = raw_request(1);
	int ends[2], status;
	unsigned int sent = 0;
	pid_t child;

	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0);
	while (send(ends[0], &request, sizeof(request), MSG_DONTWAIT | MSG_NOSIGNAL) > 0)
		sent++;
	assert_int_equal(errno, EAGAIN);
	child = fork();
	if (child == 0)
		_exit(send(ends[0], &request, sizeof(request), MSG_NOSIGNAL) < 0 && errno == EPIPE ? 0 : 1);
	assert_int_equal(shutdown(ends[1], SHUT_RD), 0);
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_int_equal(status, 0);
	while (recv(ends[1], &request, sizeof(request), 0) > 0)
		sent--;
	assert_int_equal(sent, 0);
	close(ends[0]);
	close(ends[1]);
}

/* ---- packets ---- */

static void test_flush_and_scopes(void **state)
{
	static const struct {
		enum pmem_agent_scope scope;
		enum pmem_agent_answer answer;
	} rows[] = {
		{ PMEM_AGENT_SCOPE_AUTO, PMEM_AGENT_DURABLE },
		{ PMEM_AGENT_SCOPE_FILE, PMEM_AGENT_DURABLE },
		{ PMEM_AGENT_SCOPE_FILE_DATA, PMEM_AGENT_DURABLE },
		{ PMEM_AGENT_SCOPE_REGION, PMEM_AGENT_DURABLE },
		/* The filesystem of the file that stands for the region. */
		{ PMEM_AGENT_SCOPE_FILESYSTEM, PMEM_AGENT_ORDINARY },
	};
	_cleanup_close_ int fd = connect_agent();
	struct pmem_agent_reply reply;
	uint64_t epoch = 0;

	for (unsigned int i = 0; i < ARRAY_SIZE(rows); i++) {
		struct pmem_agent_request request = raw_request(100 + i);

		request.scope = rows[i].scope;
		request.timeout_usec = UINT64_MAX;
		assert_int_equal(raw_send(fd, &request, sizeof(request), target, 1), 0);
		assert_int_equal(raw_receive(fd, &reply), sizeof(reply));
		assert_int_equal(reply.type, PMEM_AGENT_PACKET_FLUSH);
		assert_int_equal(reply.id, 100 + i);
		assert_int_equal(reply.answer, rows[i].answer);
		if (rows[i].answer != PMEM_AGENT_DURABLE) {
			assert_int_equal(reply.error, ENOTBLK);
			assert_int_equal(reply.n_regions + reply.scope + reply.basis + reply.durable_usec, 0);
			continue;
		}
		assert_int_equal(reply.error, 0);
		assert_int_equal(reply.scope, PMEM_AGENT_SCOPE_REGION);
		assert_int_equal(reply.basis, PMEM_AGENT_BASIS_OWN_FLUSH);
		assert_int_equal(reply.n_regions, 1);
		assert_true(reply.regions[0].epoch > epoch);
		assert_true(reply.durable_usec > 0);
		epoch = reply.regions[0].epoch;
	}
}

static void query(int fd, int what, enum pmem_agent_scope scope, struct pmem_agent_reply *ret)
{
	struct pmem_agent_request request = raw_request(77);

	request.type = PMEM_AGENT_PACKET_QUERY;
	request.scope = scope;
	assert_int_equal(raw_send(fd, &request, sizeof(request), what, 1), 0);
	assert_int_equal(raw_receive(fd, ret), sizeof(*ret));
	assert_int_equal(ret->version, PMEM_AGENT_WIRE_VERSION);
	assert_int_equal(ret->id, 77);
	assert_int_equal(ret->basis + ret->durable_usec, 0);
}

/* It tells without a flush, and what it says can't be taken for a promise. */
static void test_query(void **state)
{
	_cleanup_close_ int fd = connect_agent(), other = open("/proc/self/status", O_RDONLY | O_CLOEXEC);
	struct pmem_agent_request request = raw_request(78);
	struct pmem_agent_reply reply, again;

	query(fd, target, PMEM_AGENT_SCOPE_AUTO, &reply);
	assert_int_equal(reply.type, PMEM_AGENT_PACKET_QUERY);
	assert_int_equal(reply.answer, 0);
	assert_int_equal(reply.error, 0);
	assert_int_equal(reply.scope, PMEM_AGENT_SCOPE_REGION);
	assert_int_equal(reply.method, PMEM_AGENT_METHOD_FILE);
	assert_int_equal(reply.n_regions, 1);
	assert_true(reply.regions[0].page != 0);
	assert_non_null(strstr(reply.detail, "emu0: "));
	query(fd, target, PMEM_AGENT_SCOPE_REGION, &again);
	assert_true(again.regions[0].epoch == reply.regions[0].epoch);
	flush_once();
	query(fd, target, PMEM_AGENT_SCOPE_REGION, &again);
	assert_true(again.regions[0].epoch == reply.regions[0].epoch + 1);

	query(fd, other, PMEM_AGENT_SCOPE_AUTO, &reply);
	assert_int_equal(reply.type, PMEM_AGENT_PACKET_QUERY);
	assert_int_equal(reply.answer, PMEM_AGENT_ORDINARY);
	assert_int_equal(reply.error, ENOTBLK);
	assert_int_equal(reply.method, PMEM_AGENT_METHOD_NONE);
	assert_int_equal(reply.n_regions + reply.scope, 0);

	request.type = PMEM_AGENT_PACKET_QUERY;
	request.timeout_usec = 1;
	assert_int_equal(raw_send(fd, &request, sizeof(request), target, 1), 0);
	assert_int_equal(raw_receive(fd, &reply), sizeof(reply));
	assert_int_equal(reply.type, PMEM_AGENT_PACKET_ERROR);
	assert_int_equal(reply.answer, PMEM_AGENT_REFUSED);
}

/* A client finds the page by the number in the reply. */
static void test_reply_names_the_page(void **state)
{
	_cleanup_close_ int fd = connect_agent(), page_fd = -1;
	struct pmem_agent_reply reply;
	struct pmem_agent_page page;
	char path[128];

	assert_int_equal(raw_flush(fd, 1, target), 0);
	assert_int_equal(raw_receive(fd, &reply), sizeof(reply));
	snprintf(path, sizeof(path), "%s/%016llx.page", served.session.directory,
		 (unsigned long long)reply.regions[0].page);
	page_fd = open(path, O_RDONLY | O_CLOEXEC);
	assert_true(page_fd >= 0);
	assert_int_equal(read(page_fd, &page, sizeof(page)), sizeof(page));
	assert_int_equal(page.worker.durable, reply.regions[0].epoch);
}

/* What a descriptor is of may change before it is sent: only who sees it when it has arrived can tell. */
static void test_only_what_is_expected(void **state)
{
	_cleanup_close_ int fd = connect_agent(), other = open("/proc/self/status", O_RDONLY | O_CLOEXEC);
	struct pmem_agent_request request = raw_request(1);
	const int passed[] = { target, other };
	struct stat st;

	for (unsigned int i = 0; i < ARRAY_SIZE(passed); i++) {
		assert_int_equal(fstat(passed[i], &st), 0);
		for (unsigned int wrong = 0; wrong < 3; wrong++) {
			request.device = st.st_dev + (wrong == 1);
			request.inode = st.st_ino + (wrong == 2);
			assert_int_equal(raw_send(fd, &request, sizeof(request), passed[i], 1), 0);
			if (wrong == 0)
				expect(fd, 1, i == 0 ? PMEM_AGENT_DURABLE : PMEM_AGENT_ORDINARY, NULL);
			else
				expect(fd, 1, PMEM_AGENT_REFUSED, "Stale");
		}
	}
	request.type = PMEM_AGENT_PACKET_REPORT;
	assert_int_equal(raw_send(fd, &request, sizeof(request), target, 1), 0);
	expect(fd, 1, PMEM_AGENT_REFUSED, "Stale");
	request.type = PMEM_AGENT_PACKET_QUERY;
	assert_int_equal(raw_send(fd, &request, sizeof(request), target, 1), 0);
	expect(fd, 1, PMEM_AGENT_REFUSED, "another type");
}

static void test_garbage_is_refused_and_disturbs_nobody(void **state)
{
	static const struct {
		const char *words;
		size_t size;
		unsigned int n_fds;
		size_t at; /* what is set to a wrong value; 0: nothing */
		uint32_t value;
	} rows[] = {
		{ "a packet of 0 bytes", 0, 0 },
		{ "a packet of 0 bytes", 0, 1 },
		{ "a packet of 3 bytes", 3, 1 },
		{ "a packet of 63 bytes", 63, 1 },
		{ "a packet of 65 bytes", 65, 1 },
		{ "a packet of 5000 bytes", 5000, 1 },
		{ "a packet of 5000 bytes", 5000, 253 },
		{ "0 descriptors", 64, 0 },
		{ "2 descriptors", 64, 2 },
		{ "253 descriptors", 64, 253 },
		{ "unknown type 0", 64, 1, offsetof(struct pmem_agent_request, type), 0 },
		{ "unknown type 2", 64, 1, offsetof(struct pmem_agent_request, type), 2 },
		{ "unknown type 6", 64, 1, offsetof(struct pmem_agent_request, type), 6 },
		{ "unknown scope 5", 64, 1, offsetof(struct pmem_agent_request, scope), 5 },
		{ "unknown scope 4294967295", 64, 1, offsetof(struct pmem_agent_request, scope), UINT32_MAX },
		{ "a flag, a reserved", 64, 1, offsetof(struct pmem_agent_request, flags), 1 },
		{ "for one that is kept", 64, 1, 32, 1 },
		{ "reserved field", 64, 1, 60, 0x80000000 },
		{ "version 2; this agent speaks version 1", 64, 1, offsetof(struct pmem_agent_request, version), 2 },
	};
	_cleanup_close_ int fd = connect_agent(), other = connect_agent();
	unsigned int before = count_fds(served.session.agent);
	struct pmem_agent_reply reply;
	char packet[5000];

	for (unsigned int i = 0; i < ARRAY_SIZE(rows); i++) {
		struct pmem_agent_request request = raw_request(1000 + i);

		memset(packet, 0, sizeof(packet));
		memcpy(packet, &request, sizeof(request));
		if (rows[i].at > 0 || strstr(rows[i].words, "version"))
			memcpy(packet + rows[i].at, &rows[i].value, sizeof(rows[i].value));
		assert_int_equal(raw_send(fd, packet, rows[i].size, target, rows[i].n_fds), 0);
		assert_int_equal(raw_flush(other, i, target), 0);
		/* What there is of the id comes back. */
		assert_int_equal(raw_receive(fd, &reply), sizeof(reply));
		if (!strstr(reply.detail, rows[i].words))
			print_error("\"%s\" is not in \"%s\"\n", rows[i].words, reply.detail);
		assert_non_null(strstr(reply.detail, rows[i].words));
		assert_int_equal(reply.version, PMEM_AGENT_WIRE_VERSION);
		assert_int_equal(reply.type, PMEM_AGENT_PACKET_ERROR);
		assert_int_equal(reply.answer, PMEM_AGENT_REFUSED);
		assert_int_equal(reply.error, EINVAL);
		assert_int_equal(reply.id, rows[i].size >= 16 ? 1000 + i : 0);
		expect(other, i, PMEM_AGENT_DURABLE, NULL);
	}
	/* And the connection is as good as before. */
	assert_int_equal(raw_flush(fd, 1, target), 0);
	expect(fd, 1, PMEM_AGENT_DURABLE, NULL);
	while (count_fds(served.session.agent) > before + 2)
		;
}

static void test_refused_descriptors(void **state)
{
	static const char *const paths[] = { "/proc/self/status", "/dev/null", "/tmp" };
	_cleanup_close_ int fd = connect_agent(), path_fd = -1;
	struct pmem_agent_reply reply;
	int ends[2];

	for (unsigned int i = 0; i < ARRAY_SIZE(paths); i++) {
		_cleanup_close_ int refused = open(paths[i], O_RDONLY | O_CLOEXEC);

		assert_int_equal(raw_flush(fd, i, refused), 0);
		assert_int_equal(raw_receive(fd, &reply), sizeof(reply));
		assert_int_equal(reply.type, PMEM_AGENT_PACKET_FLUSH);
		assert_int_not_equal(reply.answer, PMEM_AGENT_DURABLE);
		assert_true(reply.error > 0);
	}
	/* Nothing that proves no right to the file: of emu0 itself. */
	path_fd = open(served.session.emulated, O_PATH | O_CLOEXEC);
	assert_int_equal(raw_flush(fd, 10, path_fd), 0);
	expect(fd, 10, PMEM_AGENT_REFUSED, "O_PATH");
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0);
	assert_int_equal(raw_flush(fd, 11, ends[0]), 0);
	expect(fd, 11, PMEM_AGENT_REFUSED, "socket");
	/* A connection to the agent through itself: it must not keep itself open. */
	assert_int_equal(raw_flush(fd, 12, fd), 0);
	expect(fd, 12, PMEM_AGENT_REFUSED, "socket");
	close(ends[0]);
	close(ends[1]);
}

/* ---- who waits, and who leaves ---- */

static void test_deadline(void **state)
{
	pid_t worker = stop_worker();
	_cleanup_close_ int fd = connect_agent();
	struct pmem_agent_request request = raw_request(5);

	request.timeout_usec = 20000;
	assert_int_equal(raw_send(fd, &request, sizeof(request), target, 1), 0);
	expect(fd, 5, PMEM_AGENT_TIMEOUT, "emu0");
	kill(worker, SIGCONT);
}

static void test_client_leaves(void **state)
{
	unsigned int idle = count_idle_fds();
	pid_t worker = stop_worker();
	int fd = connect_agent();

	for (uint64_t id = 1; id <= 20; id++)
		assert_int_equal(raw_flush(fd, id, target), 0);
	while (get_waiting() != 20)
		;
	close(fd);
	while (get_waiting() != 0)
		;
	kill(worker, SIGCONT);
	wait_for_idle_fds(idle);
}

/* It has said all it wants to say, and still listens. */
static void test_half_closed(void **state)
{
	_cleanup_close_ int fd = connect_agent();

	for (uint64_t id = 1; id <= 3; id++)
		assert_int_equal(raw_flush(fd, id, target), 0);
	assert_int_equal(shutdown(fd, SHUT_WR), 0);
	for (uint64_t id = 1; id <= 3; id++)
		expect(fd, id, PMEM_AGENT_DURABLE, NULL);
	expect_end(fd);
}

/* Whoever takes no replies is not read any more, and costs nothing; whoever then takes them gets all. */
static void test_slow_reader(void **state)
{
	_cleanup_close_ int fd = connect_agent();
	struct pmem_agent_reply reply;
	unsigned int n = 0, answered = 0;

	/* Until the agent has no room for replies, has MAX_OUTSTANDING of them, and reads no more. */
	for (unsigned int i = 0; i < 100; i++) {
		n += send_all(fd);
		flush_once();
	}
	assert_true(n > MAX_OUTSTANDING);
	assert_agent_rests(500);
	while (answered < n) {
		assert_int_equal(raw_receive(fd, &reply), sizeof(reply));
		assert_int_equal(reply.answer, PMEM_AGENT_DURABLE);
		answered++;
	}
	assert_int_equal(raw_flush(fd, 77, target), 0);
	expect(fd, 77, PMEM_AGENT_DURABLE, NULL);
}

/* It neither reads nor is read, and leaves. */
static void test_slow_reader_leaves(void **state)
{
	unsigned int idle = count_idle_fds();
	int fd = connect_agent();

	for (unsigned int i = 0; i < 50; i++) {
		send_all(fd);
		flush_once();
	}
	close(fd);
	wait_for_idle_fds(idle);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_shut_rd_keeps_what_is_queued),
		cmocka_unit_test(test_shut_rd_wakes_a_blocked_sender),
		cmocka_unit_test(test_flush_and_scopes),
		cmocka_unit_test(test_query),
		cmocka_unit_test(test_reply_names_the_page),
		cmocka_unit_test(test_only_what_is_expected),
		cmocka_unit_test(test_garbage_is_refused_and_disturbs_nobody),
		cmocka_unit_test(test_refused_descriptors),
		cmocka_unit_test(test_deadline),
		cmocka_unit_test(test_client_leaves),
		cmocka_unit_test(test_half_closed),
		cmocka_unit_test(test_slow_reader),
		cmocka_unit_test(test_slow_reader_leaves),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, set_up, tear_down);
}
