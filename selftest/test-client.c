/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test-client: the client library, against the real agent with an emulated region, and against a false one
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/eventfd.h>

#include <cmocka.h>

#include "lib/pmem-agent.h"
#include "selftest/process.h"
#include "selftest/served.h"

static struct served served;

static int set_up(void **state)
{
	const char *missing;

	alarm(120);
	missing = served_start(&served, false);
	if (missing)
		print_error("test-client needs %s\n", missing);
	return missing ? -1 : 0;
}

static int tear_down(void **state)
{
	served_stop(&served);
	return 0;
}

static struct pmem_agent *connect_agent(void)
{
	struct pmem_agent *agent;

	assert_int_equal(pmem_agent_connect(served.socket, &agent), 0);
	return agent;
}

static int open_emulated(void)
{
	int fd = open(served.session.emulated, O_RDONLY | O_CLOEXEC);

	assert_true(fd >= 0);
	return fd;
}

static void test_flush(void **state)
{
	struct pmem_agent *agent = connect_agent();
	_cleanup_close_ int fd = open_emulated();
	struct pmem_agent_result result;

	assert_int_equal(pmem_agent_flush(agent, fd, PMEM_AGENT_SCOPE_AUTO, PMEM_AGENT_NO_TIMEOUT, &result), 0);
	assert_int_equal(result.answer, PMEM_AGENT_DURABLE);
	assert_int_equal(result.scope, PMEM_AGENT_SCOPE_REGION);
	assert_int_equal(result.basis, PMEM_AGENT_BASIS_OWN_FLUSH);
	assert_int_equal(result.n_regions, 1);
	assert_true(result.durable_usec > 0);
	assert_string_equal(result.detail, "");
	pmem_agent_close(agent);
}

/* Nothing fails, whoever was in the middle of what: what was sent is answered, what was not goes to the next agent. */
static void test_restart(void **state)
{
	struct pmem_agent *agent = connect_agent();
	_cleanup_close_ int fd = open_emulated();
	uint64_t id;

	/* Accepted: else it would wait for the next agent, which is begun only after that. */
	assert_int_equal(pmem_agent_flush(agent, fd, PMEM_AGENT_SCOPE_AUTO, PMEM_AGENT_NO_TIMEOUT, NULL), 0);
	for (unsigned int i = 0; i < 5; i++) {
		assert_int_equal(pmem_agent_submit(agent, fd, PMEM_AGENT_SCOPE_AUTO, PMEM_AGENT_NO_TIMEOUT, &id), 0);
		assert_int_equal(served_stop_agent(&served), 0);
		assert_int_equal(pmem_agent_wait(agent, id, PMEM_AGENT_NO_TIMEOUT, NULL), 0);
		assert_int_equal(pmem_agent_submit(agent, fd, PMEM_AGENT_SCOPE_AUTO, PMEM_AGENT_NO_TIMEOUT, &id), 0);
		assert_int_equal(pmem_agent_wait(agent, id, 0, NULL), -EAGAIN);
		assert_int_equal(served_start_agent(&served), 0);
		assert_int_equal(pmem_agent_wait(agent, id, PMEM_AGENT_NO_TIMEOUT, NULL), 0);
	}
	pmem_agent_close(agent);
}

static int flush(struct pmem_agent *agent, uint64_t timeout_usec, struct pmem_agent_result *result)
{
	_cleanup_close_ int fd = open_emulated();

	return pmem_agent_flush(agent, fd, PMEM_AGENT_SCOPE_AUTO, timeout_usec, result);
}

static uint64_t submit(struct pmem_agent *agent)
{
	_cleanup_close_ int fd = open_emulated();
	uint64_t id = 0;

	assert_int_equal(pmem_agent_submit(agent, fd, PMEM_AGENT_SCOPE_AUTO, PMEM_AGENT_NO_TIMEOUT, &id), 0);
	assert_true(id > 0);
	return id;
}

static void wait_for(struct pmem_agent *agent, uint64_t id, int r)
{
	assert_int_equal(pmem_agent_wait(agent, id, PMEM_AGENT_NO_TIMEOUT, NULL), r);
}

static pid_t stop_worker(struct pmem_agent *agent)
{
	pid_t pid;

	assert_int_equal(flush(agent, PMEM_AGENT_NO_TIMEOUT, NULL), 0);
	pid = session_worker(&served.session);
	stop_process(pid);
	return pid;
}

/* ---- */

static void test_submit_and_poll(void **state)
{
	struct pmem_agent *agent = connect_agent();
	struct pollfd p = { .fd = pmem_agent_get_fd(agent), .events = POLLIN };
	pid_t worker = stop_worker(agent);
	struct pmem_agent_result result;
	uint64_t first = submit(agent), second = submit(agent), third = submit(agent), sum = 0;

	assert_int_equal(pmem_agent_wait(agent, 0, 0, &result), -EAGAIN);
	assert_int_equal(pmem_agent_wait(agent, second, 1000, &result), -EAGAIN);
	assert_int_equal(pmem_agent_wait(agent, 4711, 0, &result), -ESRCH);
	assert_int_equal(poll(&p, 1, 0), 0);
	kill(worker, SIGCONT);
	assert_int_equal(poll(&p, 1, -1), 1);
	wait_for(agent, second, 0);
	assert_int_equal(pmem_agent_wait(agent, second, 0, &result), -ESRCH);
	for (unsigned int i = 0; i < 2; i++) {
		assert_int_equal(pmem_agent_wait(agent, 0, PMEM_AGENT_NO_TIMEOUT, &result), 0);
		assert_int_equal(result.answer, PMEM_AGENT_DURABLE);
		sum += result.id;
	}
	assert_int_equal(sum, first + third);
	assert_int_equal(pmem_agent_wait(agent, 0, PMEM_AGENT_NO_TIMEOUT, &result), -ESRCH);
	pmem_agent_close(agent);
}

static void test_bound(void **state)
{
	struct pmem_agent *agent = connect_agent();
	_cleanup_close_ int fd = open_emulated();
	uint64_t id;

	for (unsigned int i = 0; i < PMEM_AGENT_MAX_SUBMITTED; i++)
		submit(agent);
	assert_int_equal(pmem_agent_submit(agent, fd, PMEM_AGENT_SCOPE_AUTO, PMEM_AGENT_NO_TIMEOUT, &id), -EAGAIN);
	for (unsigned int i = 0; i < PMEM_AGENT_MAX_SUBMITTED; i++)
		wait_for(agent, 0, 0);
	wait_for(agent, submit(agent), 0);
	pmem_agent_close(agent);
}

static void test_wrong_arguments(void **state)
{
	struct pmem_agent *agent = connect_agent();
	_cleanup_close_ int fd = open_emulated(), path_fd = open(served.session.emulated, O_PATH | O_CLOEXEC);
	struct pmem_agent_result result = { .answer = PMEM_AGENT_DURABLE };

	assert_int_equal(flush(agent, 0, &result), -EINVAL);
	assert_int_equal(result.answer, PMEM_AGENT_UNKNOWN);
	assert_int_equal(pmem_agent_flush(agent, -1, PMEM_AGENT_SCOPE_AUTO, PMEM_AGENT_NO_TIMEOUT, NULL), -EBADF);
	assert_int_equal(pmem_agent_flush(agent, fd, (enum pmem_agent_scope)99, PMEM_AGENT_NO_TIMEOUT, NULL), -EINVAL);
	assert_int_equal(pmem_agent_flush(agent, fd, PMEM_AGENT_SCOPE_FILESYSTEM, PMEM_AGENT_NO_TIMEOUT, &result),
			 -ENOTBLK);
	assert_int_equal(result.answer, PMEM_AGENT_ORDINARY);
	assert_true(result.detail[0]);
	assert_int_equal(pmem_agent_flush(agent, path_fd, PMEM_AGENT_SCOPE_FILE, PMEM_AGENT_NO_TIMEOUT, &result),
			 -EINVAL);
	assert_int_equal(result.answer, PMEM_AGENT_REFUSED);
	assert_int_equal(flush(agent, PMEM_AGENT_NO_TIMEOUT, NULL), 0);
	assert_null(pmem_agent_close(agent));
	assert_null(pmem_agent_close(NULL));
	assert_int_equal(pmem_agent_connect("/nonexistent/socket", &agent), -ENOENT);
	assert_int_equal(pmem_agent_connect("", &agent), -ENOENT);
}

static void test_deadline(void **state)
{
	struct pmem_agent *agent = connect_agent();
	pid_t worker = stop_worker(agent);
	struct pmem_agent_result result;

	assert_int_equal(flush(agent, 20000, &result), -ETIMEDOUT);
	assert_int_equal(result.answer, PMEM_AGENT_TIMEOUT);
	kill(worker, SIGCONT);
	assert_int_equal(flush(agent, 60 * USEC_PER_SEC, &result), 0);
	/* There is a socket, and nobody behind it. */
	served_kill_agent(&served);
	assert_int_equal(flush(agent, 20000, &result), -ETIMEDOUT);
	assert_int_equal(result.answer, PMEM_AGENT_TIMEOUT);
	assert_int_equal(served_start_agent(&served), 0);
	assert_int_equal(flush(agent, PMEM_AGENT_NO_TIMEOUT, NULL), 0);
	pmem_agent_close(agent);
}

/* Sent and not answered: nobody knows, and it is not asked again behind the caller's back. */
static void test_kill(void **state)
{
	struct pmem_agent *agent = connect_agent();
	pid_t worker = stop_worker(agent);
	struct pmem_agent_result result;
	uint64_t id = submit(agent);

	served_kill_agent(&served);
	assert_int_equal(pmem_agent_wait(agent, id, PMEM_AGENT_NO_TIMEOUT, &result), -EIO);
	assert_int_equal(result.answer, PMEM_AGENT_UNKNOWN);
	assert_int_equal(result.id, id);
	/* SIGPIPE would end us: the next one goes to another connection. */
	id = submit(agent);
	assert_int_equal(pmem_agent_wait(agent, 0, 0, &result), -EAGAIN);
	kill(worker, SIGCONT);
	assert_int_equal(served_start_agent(&served), 0);
	wait_for(agent, id, 0);
	pmem_agent_close(agent);
}

/* The answers of the agent that stops come over the old connection, while the new one is in use already. */
static void test_answers_of_two_agents(void **state)
{
	struct pmem_agent *agent = connect_agent();
	struct pmem_agent *other = connect_agent();
	pid_t worker = stop_worker(agent);
	uint64_t old = submit(agent), new;

	/* It has the request when it is asked for the next: in order. */
	kill(served.session.agent, SIGTERM);
	/* Until it has shut its ears: then this one waits for the next agent. */
	do {
		new = submit(other);
	} while (pmem_agent_wait(other, new, 1000, NULL) != -EAGAIN);
	kill(worker, SIGCONT);
	assert_int_equal(served_wait_agent(&served), 0);
	new = submit(agent);
	wait_for(agent, old, 0);
	assert_int_equal(pmem_agent_wait(agent, new, 0, NULL), -EAGAIN);
	assert_int_equal(served_start_agent(&served), 0);
	wait_for(agent, new, 0);
	pmem_agent_close(agent);
	pmem_agent_close(other);
}

static void test_fork(void **state)
{
	struct pmem_agent *agent = connect_agent();
	pid_t worker = stop_worker(agent), child;
	uint64_t id = submit(agent);
	int fd = pmem_agent_get_fd(agent), status;

	child = fork();
	if (child == 0) {
		if (pmem_agent_wait(agent, id, 0, NULL) != -ESRCH || pmem_agent_get_fd(agent) != fd)
			_exit(1);
		kill(worker, SIGCONT);
		if (flush(agent, PMEM_AGENT_NO_TIMEOUT, NULL) != 0 || flush(agent, PMEM_AGENT_NO_TIMEOUT, NULL) != 0)
			_exit(2);
		pmem_agent_close(agent);
		_exit(0);
	}
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_int_equal(status, 0);
	/* Its answer is still the parent's. */
	wait_for(agent, id, 0);
	assert_int_equal(flush(agent, PMEM_AGENT_NO_TIMEOUT, NULL), 0);
	pmem_agent_close(agent);
}

/* A child that has closed all that it didn't know, and has a poll set of its own under the very numbers. */
static int use_own_polls(struct pmem_agent *agent)
{
	struct epoll_event event = { .events = EPOLLIN, .data.u32 = 77 };
	const int epoll = pmem_agent_get_fd(agent), count = epoll + 1;
	uint64_t one = 1, read_back = 0;

	closefrom(3);
	if (dup2(epoll_create1(EPOLL_CLOEXEC), epoll) != epoll ||
	    dup2(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), count) != count)
		return 1;
	if (epoll_ctl(epoll, EPOLL_CTL_ADD, count, &event) < 0 || flush(agent, PMEM_AGENT_NO_TIMEOUT, NULL) != 0)
		return 2;
	if (write(count, &one, sizeof(one)) != sizeof(one) || epoll_wait(epoll, &event, 1, 0) != 1 ||
	    event.data.u32 != 77 || read(count, &read_back, sizeof(read_back)) != sizeof(read_back) || read_back != 1)
		return 3;
	pmem_agent_close(agent);
	return fcntl(epoll, F_GETFD) < 0 || fcntl(count, F_GETFD) < 0 ? 4 : 0;
}

static void test_numbers_of_others(void **state)
{
	struct pmem_agent *agent = connect_agent();
	pid_t child = fork();
	int status;

	if (child == 0)
		_exit(use_own_polls(agent));
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_int_equal(status, 0);
	assert_int_equal(flush(agent, PMEM_AGENT_NO_TIMEOUT, NULL), 0);
	pmem_agent_close(agent);
}

/* It was removed while no agent ran, and the next one makes another. */
static void test_page_replaced(void **state)
{
	struct pmem_agent *agent = connect_agent();
	uint64_t until, number, epoch;
	struct pmem_agent_result result;
	char path[160];

	assert_int_equal(flush(agent, PMEM_AGENT_NO_TIMEOUT, &result), 0);
	number = result.regions[0].page;
	snprintf(path, sizeof(path), "%s/%016" PRIx64 ".page", served.session.directory, number);
	assert_int_equal(pmem_agent_epoch(agent, number, &epoch), 0);
	assert_true(epoch > 1);
	assert_int_equal(served_stop_agent(&served), 0);
	assert_int_equal(unlink(path), 0);
	assert_int_equal(served_start_agent(&served), 0);
	assert_int_equal(flush(agent, PMEM_AGENT_NO_TIMEOUT, &result), 0);
	assert_int_equal(result.regions[0].page, number);
	for (until = now_usec(CLOCK_MONOTONIC) + 10 * USEC_PER_SEC; now_usec(CLOCK_MONOTONIC) < until; sched_yield())
		if (pmem_agent_epoch(agent, number, &epoch) == 0 && epoch == result.regions[0].epoch)
			break;
	assert_int_equal(epoch, result.regions[0].epoch);
	assert_int_equal(pmem_agent_lost(agent, number), 0);
	pmem_agent_close(agent);
}

/* ---- a false agent ---- */

/* Answers one request with `size` bytes of `reply`, its id filled in, and ends. */
static pid_t start_false_agent(const char *path, struct pmem_agent_reply reply, size_t size)
{
	int listener = served_listen(path), connection;
	struct pmem_agent_request request;
	pid_t child;

	assert_true(listener >= 0);
	child = fork();
	if (child == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		connection = accept(listener, NULL, NULL);
		if (recv(connection, &request, sizeof(request), 0) != sizeof(request))
			_exit(1);
		reply.id = reply.id == 0 ? request.id : reply.id == 1 ? 0 : request.id + 1;
		_exit(size > 0 && send(connection, &reply, size, 0) != (ssize_t)size);
	}
	close(listener);
	return child;
}

static void test_false_agents(void **state)
{
#define SET(field, to)                                                                                                 \
	{                                                                                                              \
		offsetof(struct pmem_agent_reply, field), (uint32_t)(to)                                               \
	}
	static const struct pmem_agent_reply good = {
		.version = PMEM_AGENT_WIRE_VERSION,
		.type = PMEM_AGENT_PACKET_FLUSH,
		.scope = PMEM_AGENT_SCOPE_REGION,
		.basis = PMEM_AGENT_BASIS_OWN_FLUSH,
		.durable_usec = 1,
		.n_regions = 1,
	};
	static const struct {
		struct {
			size_t at;
			uint32_t value;
		} changes[4]; /* to the good one; id: 0 is that of the request, 1 is 0, 9 is another */
		size_t size;
		int r;
		enum pmem_agent_answer answer;
	} rows[] = {
		/* The control: nothing is wrong with this one. */
		{ { { 0 } }, 512, 0, PMEM_AGENT_DURABLE },
		{ { SET(version, 2) }, 512, -EPROTONOSUPPORT, PMEM_AGENT_REFUSED },
		{ { SET(version, 2) }, 100, -EPROTONOSUPPORT, PMEM_AGENT_REFUSED },
		{ { SET(version, 2), SET(id, 1) }, 16, -EPROTONOSUPPORT, PMEM_AGENT_REFUSED },
		{ { SET(version, 257) }, 512, -EPROTONOSUPPORT, PMEM_AGENT_REFUSED },
		{ { { 0 } }, 511, -EIO, PMEM_AGENT_UNKNOWN },
		{ { { 0 } }, 15, -EIO, PMEM_AGENT_UNKNOWN },
		{ { { 0 } }, 0, -EIO, PMEM_AGENT_UNKNOWN },
		{ { SET(id, 9) }, 512, -EIO, PMEM_AGENT_UNKNOWN },
		{ { SET(type, PMEM_AGENT_PACKET_ERROR) }, 512, -EIO, PMEM_AGENT_UNKNOWN },
		{ { SET(type, 77) }, 512, -EIO, PMEM_AGENT_UNKNOWN },
		{ { SET(error, EIO) }, 512, -EIO, PMEM_AGENT_UNKNOWN },
		{ { SET(n_regions, 0) }, 512, -EIO, PMEM_AGENT_UNKNOWN },
		{ { SET(n_regions, 17) }, 512, -EIO, PMEM_AGENT_UNKNOWN },
		{ { SET(basis, 0) }, 512, -EIO, PMEM_AGENT_UNKNOWN },
		{ { SET(basis, 99) }, 512, -EIO, PMEM_AGENT_UNKNOWN },
		{ { SET(scope, 99) }, 512, -EIO, PMEM_AGENT_UNKNOWN },
		{ { SET(answer, 99) }, 512, -EIO, PMEM_AGENT_UNKNOWN },
		{ { SET(answer, PMEM_AGENT_LOST), SET(error, EIO) }, 512, -EIO, PMEM_AGENT_LOST },
		{ { SET(answer, PMEM_AGENT_LOST), SET(error, 0) }, 512, -EIO, PMEM_AGENT_LOST },
		{ { SET(answer, PMEM_AGENT_LOST), SET(error, -5) }, 512, -EIO, PMEM_AGENT_LOST },
		{ { SET(answer, PMEM_AGENT_LOST), SET(error, EAGAIN) }, 512, -EIO, PMEM_AGENT_LOST },
		{ { SET(answer, PMEM_AGENT_FAILED), SET(error, EDQUOT) }, 512, -EDQUOT, PMEM_AGENT_FAILED },
		{ { SET(type, PMEM_AGENT_PACKET_ERROR), SET(answer, PMEM_AGENT_BUSY), SET(error, EBUSY), SET(id, 1) },
		  512,
		  -EBUSY,
		  PMEM_AGENT_BUSY },
		/* What is told to all can't be durable. */
		{ { SET(id, 1) }, 512, -EIO, PMEM_AGENT_UNKNOWN },
	};
	struct pmem_agent_result result;
	struct pmem_agent *agent;
	char path[96];
	int r, status;

	snprintf(path, sizeof(path), "%.64s/false", served.session.directory);
	for (unsigned int i = 0; i < ARRAY_SIZE(rows); i++) {
		struct pmem_agent_reply reply = good;
		pid_t child;

		for (unsigned int k = 0; k < ARRAY_SIZE(rows[i].changes); k++)
			if (rows[i].changes[k].at > 0 || rows[i].changes[k].value > 0)
				memcpy((char *)&reply + rows[i].changes[k].at, &rows[i].changes[k].value,
				       sizeof(uint32_t));
		child = start_false_agent(path, reply, rows[i].size);
		assert_int_equal(pmem_agent_connect(path, &agent), 0);
		r = flush(agent, PMEM_AGENT_NO_TIMEOUT, &result);
		if (r != rows[i].r || result.answer != rows[i].answer)
			print_error("row %u: %s, answer %u, %s\n", i, strerror(-r), result.answer, result.detail);
		assert_int_equal(r, rows[i].r);
		assert_int_equal(result.answer, rows[i].answer);
		assert_int_equal(waitpid(child, &status, 0), child);
		assert_int_equal(status, 0);
		unlink(path);
		pmem_agent_close(agent);
	}
}

/* ---- many ---- */

static pid_t start_stress(const char *option, const char *value)
{
	char program[PATH_MAX];
	pid_t child;

	served_find("stress-sock", program, sizeof(program));
	child = fork();
	if (child == 0) {
		dup2(STDERR_FILENO, STDOUT_FILENO);
		execl(program, "stress-sock", "--socket", served.socket, "--clients", "16", option, value, "--seconds",
		      "60", served.session.emulated, NULL);
		_exit(127);
	}
	return child;
}

static void test_stress(void **state)
{
	pid_t child = start_stress("--requests", "150");
	struct pmem_agent *agent;
	int status;

	assert_int_equal(waitpid(child, &status, 0), child);
	assert_int_equal(status, 0);
	agent = connect_agent();
	assert_int_equal(flush(agent, PMEM_AGENT_NO_TIMEOUT, NULL), 0);
	pmem_agent_close(agent);
}

/* None of 16 busy clients notices that the agent is stopped and started. */
static void test_restarts_under_load(void **state)
{
	pid_t child = start_stress("--steady", "--requests=200");
	unsigned int restarts = 0;
	int status = -1;

	while (waitpid(child, &status, WNOHANG) == 0) {
		assert_int_equal(served_stop_agent(&served), 0);
		assert_int_equal(served_start_agent(&served), 0);
		restarts++;
	}
	print_message("# %u restarts\n", restarts);
	assert_int_equal(status, 0);
	assert_true(restarts > 0);
}

#define N_WAITING 16

/* Asks, says so when the agent has it, and waits for the answer that it should be. The next agent serves it again. */
static _Noreturn void wait_for_answer(int ready, bool killed)
{
	struct pmem_agent *agent = connect_agent();
	struct pmem_agent_result result;
	struct pmem_agent_info info;
	_cleanup_close_ int fd = open_emulated();
	uint64_t id = submit(agent);
	int r;

	/* Packets of a connection are taken in their order. */
	if (pmem_agent_query(agent, fd, PMEM_AGENT_SCOPE_AUTO, PMEM_AGENT_NO_TIMEOUT, &info) != 0 ||
	    write(ready, "r", 1) != 1)
		_exit(1);
	r = pmem_agent_wait(agent, id, PMEM_AGENT_NO_TIMEOUT, &result);
	if (killed ? r != -EIO || result.answer != PMEM_AGENT_UNKNOWN : r != 0)
		_exit(2);
	_exit(pmem_agent_flush(agent, fd, PMEM_AGENT_SCOPE_AUTO, PMEM_AGENT_NO_TIMEOUT, NULL) == 0 ? 0 : 3);
}

/* The host does not answer while 16 processes wait; what each is told depends on whether the agent lives. */
static void assert_all_are_told(bool killed)
{
	struct pmem_agent *agent = connect_agent();
	pid_t worker = stop_worker(agent), children[N_WAITING];
	int ready[2], status;
	char c;

	assert_int_equal(pipe2(ready, O_CLOEXEC), 0);
	for (unsigned int i = 0; i < N_WAITING; i++) {
		children[i] = fork();
		if (children[i] == 0)
			wait_for_answer(ready[1], killed);
	}
	close(ready[1]);
	for (unsigned int i = 0; i < N_WAITING; i++)
		assert_int_equal(read(ready[0], &c, 1), 1);
	close(ready[0]);
	if (killed)
		served_kill_agent(&served);
	kill(worker, SIGCONT);
	if (killed)
		assert_int_equal(served_start_agent(&served), 0);
	for (unsigned int i = 0; i < N_WAITING; i++) {
		assert_int_equal(waitpid(children[i], &status, 0), children[i]);
		assert_int_equal(status, 0);
	}
	pmem_agent_close(agent);
}

/* None of them is told durable: what became of it nobody knows. */
static void test_kill_under_load(void **state)
{
	assert_all_are_told(true);
}

static void test_answer_under_load(void **state)
{
	assert_all_are_told(false);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_flush),
		cmocka_unit_test(test_submit_and_poll),
		cmocka_unit_test(test_bound),
		cmocka_unit_test(test_wrong_arguments),
		cmocka_unit_test(test_deadline),
		cmocka_unit_test(test_kill),
		cmocka_unit_test(test_restart),
		cmocka_unit_test(test_answers_of_two_agents),
		cmocka_unit_test(test_fork),
		cmocka_unit_test(test_numbers_of_others),
		cmocka_unit_test(test_page_replaced),
		cmocka_unit_test(test_false_agents),
		cmocka_unit_test(test_stress),
		cmocka_unit_test(test_restarts_under_load),
		cmocka_unit_test(test_kill_under_load),
		cmocka_unit_test(test_answer_under_load),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, set_up, tear_down);
}
