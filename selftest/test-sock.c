/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test-sock: the socket's door, by packets of every kind, on the real agent with an emulated region
 */
#include <dirent.h>
#include <grp.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/epoll.h>

#include <cmocka.h>

#include "selftest/raw.h"
#include "selftest/served.h"
#include "selftest/stalled.h"

#define N_FILES         2100           /* that the agent may have, so that its bounds are within reach */
#define MAX_CONNECTIONS (N_FILES / 16) /* as sock.c says */
#define MAX_OUTSTANDING 64
#define NOBODY          65534

static struct served served;
static struct stalled stalled;
static const char *stalled_missing;
static int target = -1; /* emu0 */

static int set_up(void **state)
{
	const char *missing;

	alarm(120);
	stalled_missing = stalled_start(&stalled);
	served.n_files = N_FILES;
	missing = served_start(&served, false);
	if (missing) {
		print_error("test-sock needs %s\n", missing);
		return -1;
	}
	target = open(served.session.emulated, O_RDONLY | O_CLOEXEC);
	return target < 0 ? -1 : 0;
}

static int tear_down(void **state)
{
	safe_close(target);
	stalled_stop(&stalled);
	served_stop(&served);
	return 0;
}

/* ---- helpers ---- */

static int connect_agent(void)
{
	int fd = raw_connect(served.socket);

	assert_true(fd >= 0);
	return fd;
}

static void expect(int fd, uint64_t id, enum pmem_agent_answer answer, const char *words)
{
	struct pmem_agent_reply reply;

	assert_int_equal(raw_receive(fd, &reply), sizeof(reply));
	assert_int_equal(reply.version, PMEM_AGENT_WIRE_VERSION);
	if (words && !strstr(reply.detail, words))
		print_error("\"%s\" is not in \"%s\"\n", words, reply.detail);
	assert_int_equal(reply.answer, answer);
	assert_int_equal(reply.id, id);
	assert_true((reply.error == 0) == (answer == PMEM_AGENT_DURABLE));
	assert_true(!words || strstr(reply.detail, words));
}

static void expect_end(int fd)
{
	struct pmem_agent_reply reply;

	assert_int_equal(raw_receive(fd, &reply), 0);
}

static void flush_once(void)
{
	_cleanup_close_ int fd = connect_agent();

	assert_int_equal(raw_flush(fd, 7, target), 0);
	expect(fd, 7, PMEM_AGENT_DURABLE, NULL);
}

static unsigned int count_agent_fds(void)
{
	char path[64];
	unsigned int n = 0;
	DIR *d;

	snprintf(path, sizeof(path), "/proc/%d/fd", served.session.agent);
	d = opendir(path);
	assert_non_null(d);
	while (readdir(d))
		n++;
	closedir(d);
	return n;
}

/* What it holds when nobody is connected. What is left of a close goes with the next. */
static unsigned int count_idle_fds(void)
{
	_cleanup_close_ int fd = connect_agent(), refused = open("/proc/self/status", O_RDONLY | O_CLOEXEC);
	unsigned int n, least = UINT_MAX;

	for (unsigned int i = 0; i < 20; i++) {
		assert_int_equal(raw_flush(fd, i, refused), 0);
		expect(fd, i, PMEM_AGENT_ORDINARY, "proc");
		flush_once();
		n = count_agent_fds();
		if (n < least)
			least = n;
	}
	return least;
}

/* It lets go of the rest a moment later; if it didn't, this would not end. */
static void wait_for_idle_fds(unsigned int n)
{
	while (count_idle_fds() > n)
		;
}

static void stop(pid_t pid)
{
	char path[64], text[256] = "";

	kill(pid, SIGSTOP);
	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	while (!strstr(text, ") T ")) {
		_cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);

		assert_true(read(fd, text, sizeof(text) - 1) > 0);
	}
}

static pid_t stop_worker(void)
{
	pid_t pid;

	flush_once();
	pid = session_worker(&served.session);
	assert_true(pid > 1);
	stop(pid);
	return pid;
}

static uint32_t get_waiting(void)
{
	_cleanup_(sd_bus_flush_close_unrefp) sd_bus *bus = NULL;
	uint32_t value = 0;

	assert_true(sd_bus_open_system(&bus) >= 0);
	assert_true(sd_bus_get_property_trivial(bus, BUS_NAME, BUS_PATH "/region/emu0", BUS_INTERFACE_REGION, "Waiting",
						NULL, 'u', &value) >= 0);
	return value;
}

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
	unsigned int before = count_agent_fds();
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
	while (count_agent_fds() > before + 2)
		;
}

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
	assert_int_equal(chmod(served.session.directory, 0711), 0);
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
static _Noreturn void flood(int told)
{
	struct pmem_agent_request request = raw_request(1);
	int fd = stalled_open(&stalled), to;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (setgroups(0, NULL) < 0 || setresgid(NOBODY, NOBODY, NOBODY) < 0 || setresuid(NOBODY, NOBODY, NOBODY) < 0)
		_exit(1);
	to = raw_connect(served.socket);
	for (unsigned int i = 0; i < N_FILES / 200 + 2; i++)
		if (raw_send(to, &request, sizeof(request), fd, 200) < 0)
			_exit(1);
	if (write(told, "s", 1) != 1)
		_exit(1);
	pause();
	_exit(0);
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
		assert_in_range(count_agent_fds(), idle, N_FILES / 2);
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

static unsigned int send_all(int fd)
{
	unsigned int n = 0;

	while (raw_flush(fd, n, target) == 0)
		n++;
	assert_int_equal(errno, EAGAIN);
	return n;
}

static uint64_t agent_cpu_usec(void)
{
	clockid_t clock = (clockid_t)(~(unsigned int)served.session.agent << 3 | 2); /* as clock_getcpuclockid() */

	return now_usec(clock);
}

/* This is a measurement: of who spins, most of the time would be. */
static void assert_agent_rests(int msec)
{
	uint64_t before = agent_cpu_usec();

	poll(NULL, 0, msec);
	assert_in_range(agent_cpu_usec() - before, 0, (unsigned int)msec * 400);
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
	chmod(served.session.directory, 0711);
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
	chmod(served.session.directory, 0711);
	for (uint32_t i = 0; i <= CROWD; i++) {
		assert_int_equal(seteuid(i < CROWD ? NOBODY : 0), 0);
		fds[i] = connect_agent();
		assert_int_equal(seteuid(0), 0);
		assert_int_equal(raw_send(fds[i], &garbage, sizeof(garbage), -1, 0), 0);
		expect(fds[i], 0, PMEM_AGENT_REFUSED, NULL);
		events[0] = (struct epoll_event){ .events = EPOLLIN | EPOLLET, .data.u32 = i };
		assert_int_equal(epoll_ctl(order, EPOLL_CTL_ADD, fds[i], &events[0]), 0);
	}

	stop(served.session.agent);
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
		cmocka_unit_test(test_kept),
		cmocka_unit_test(test_kept_of_another_user),
		cmocka_unit_test(test_kept_bound),
		cmocka_unit_test(test_refused_descriptors),
		cmocka_unit_test(test_deadline),
		cmocka_unit_test(test_client_leaves),
		cmocka_unit_test(test_half_closed),
		cmocka_unit_test(test_slow_reader),
		cmocka_unit_test(test_slow_reader_leaves),
		cmocka_unit_test(test_connections_of_one_user),
		cmocka_unit_test(test_quota_of_a_user),
		cmocka_unit_test(test_users_take_turns),
		cmocka_unit_test(test_no_descriptor_left_to_accept),
		cmocka_unit_test(test_no_descriptor_left_for_a_request),
		cmocka_unit_test(test_stop_answers_what_was_sent),
		cmocka_unit_test(test_stop_does_not_wait_for_ever),
		cmocka_unit_test(test_kill),
		cmocka_unit_test(test_own_socket),
		cmocka_unit_test(test_stalled_descriptors),
		cmocka_unit_test(test_flood_of_stalled_descriptors),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, set_up, tear_down);
}
