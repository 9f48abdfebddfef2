/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test-threads: one struct pmem_agent under many threads, against the real agent with an emulated region
 *
 * The judge of each answer is the page: the round that it names must have begun after the call did.
 */
#include <inttypes.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/mman.h>

#include <cmocka.h>

#include "lib/pmem-agent.h"
#include "selftest/process.h"
#include "selftest/served.h"

#define N_THREADS 64
#define N_CALLS   40

static struct served served;
static int target = -1;
static struct pmem_agent *agent;
static const struct pmem_agent_page *page; /* of emu0 */
static uint64_t page_number;

static int set_up_group(void **state)
{
	const char *missing;

	alarm(120);
	missing = served_start(&served, false);
	if (missing)
		print_error("test-threads needs %s\n", missing);
	else
		target = open(served.session.emulated, O_RDWR | O_CLOEXEC);
	return target < 0 ? -1 : 0;
}

static int tear_down_group(void **state)
{
	safe_close(target);
	served_stop(&served);
	return 0;
}

static int set_up(void **state)
{
	struct pmem_agent_info info;
	_cleanup_close_ int fd = -1;
	char path[160];
	void *p;

	if (pmem_agent_connect(served.socket, &agent) < 0 ||
	    pmem_agent_query(agent, target, PMEM_AGENT_SCOPE_AUTO, PMEM_AGENT_NO_TIMEOUT, &info) < 0)
		return -1;
	page_number = info.regions[0].page;
	snprintf(path, sizeof(path), "%s/%016" PRIx64 ".page", served.session.directory, page_number);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	p = mmap(NULL, PMEM_AGENT_PAGE_SIZE, PROT_READ, MAP_SHARED, fd, 0);
	page = p;
	return p == MAP_FAILED ? -1 : 0;
}

static int tear_down(void **state)
{
	agent = pmem_agent_close(agent);
	return munmap((void *)page, PMEM_AGENT_PAGE_SIZE);
}

/* ---- many at once ---- */

struct caller {
	pthread_t thread;
	unsigned int n, seed;
	unsigned int durable, timeout, unknown, other, early; /* answers; those by a round that began before the call */
	uint64_t last_id;
	unsigned int shared; /* answers whose request another caller had too, as far as is seen here */
};

static struct {
	bool timeouts, submits, killed;
	unsigned int n_calls;
	uint64_t ids[N_THREADS * N_CALLS * 4];
	unsigned int n_ids;
	unsigned int stop;
} load;

static uint64_t get_started(void)
{
	return __atomic_load_n(&page->worker.started, __ATOMIC_ACQUIRE);
}

static void judge(struct caller *c, int r, const struct pmem_agent_result *result, uint64_t started)
{
	if (r == 0 && result->answer == PMEM_AGENT_DURABLE) {
		unsigned int at = __atomic_fetch_add(&load.n_ids, 1, __ATOMIC_RELAXED);

		c->durable++;
		c->early += result->regions[0].epoch <= started;
		if (at < ARRAY_SIZE(load.ids))
			load.ids[at] = result->id;
	} else if (r == -ETIMEDOUT && result->answer == PMEM_AGENT_TIMEOUT) {
		c->timeout++;
	} else if (r == -EIO && result->answer == PMEM_AGENT_UNKNOWN) {
		c->unknown++;
		if (!load.killed)
			print_error("caller %u: %s\n", c->n, result->detail);
	} else {
		c->other++;
		print_error("caller %u: %s, %s\n", c->n, strerrorname_np(-r), result->detail);
	}
}

static void call_once(struct caller *c)
{
	static const enum pmem_agent_scope scopes[] = { PMEM_AGENT_SCOPE_AUTO, PMEM_AGENT_SCOPE_REGION };
	enum pmem_agent_scope scope = scopes[rand_r(&c->seed) % 2];
	uint64_t timeout =
	    load.timeouts && rand_r(&c->seed) % 4 == 0 ? 1 + (uint64_t)rand_r(&c->seed) % 3000 : PMEM_AGENT_NO_TIMEOUT;
	uint64_t started = get_started(), id;
	struct pmem_agent_result result = { .answer = PMEM_AGENT_UNKNOWN };
	int r;

	if (!load.submits || rand_r(&c->seed) % 4 > 0) {
		r = pmem_agent_flush(agent, target, scope, timeout, &result);
	} else {
		do
			r = pmem_agent_submit(agent, target, scope, timeout, &id);
		while (r == -EAGAIN);
		result.answer = r == -ETIMEDOUT ? PMEM_AGENT_TIMEOUT : PMEM_AGENT_UNKNOWN;
		if (r == 0)
			r = pmem_agent_wait(agent, id, PMEM_AGENT_NO_TIMEOUT, &result);
	}
	judge(c, r, &result, started);
}

static void *run(void *userdata)
{
	struct caller *c = userdata;

	for (unsigned int i = 0; i < load.n_calls && !__atomic_load_n(&load.stop, __ATOMIC_RELAXED); i++)
		call_once(c);
	return NULL;
}

static struct caller callers[N_THREADS];

static void start_load(unsigned int n_calls, bool timeouts, bool submits)
{
	load.timeouts = timeouts;
	load.submits = submits;
	load.n_calls = n_calls;
	load.n_ids = load.stop = 0;
	for (unsigned int i = 0; i < N_THREADS; i++) {
		callers[i] = (struct caller){ .n = i, .seed = i + 1 };
		assert_int_equal(pthread_create(&callers[i].thread, NULL, run, &callers[i]), 0);
	}
}

static struct caller end_load(void)
{
	struct caller sum = { .n = 0 };

	for (unsigned int i = 0; i < N_THREADS; i++) {
		pthread_join(callers[i].thread, NULL);
		sum.durable += callers[i].durable;
		sum.timeout += callers[i].timeout;
		sum.unknown += callers[i].unknown;
		sum.other += callers[i].other;
		sum.early += callers[i].early;
	}
	return sum;
}

static int compare_ids(const void *a, const void *b)
{
	const uint64_t *x = a, *y = b;

	return *x < *y ? -1 : *x > *y;
}

static unsigned int count_requests(void)
{
	unsigned int n = 0;

	qsort(load.ids, load.n_ids, sizeof(load.ids[0]), compare_ids);
	for (unsigned int i = 0; i < load.n_ids; i++)
		n += i == 0 || load.ids[i] != load.ids[i - 1];
	return n;
}

static void test_combined(void **state)
{
	struct caller sum;

	start_load(N_CALLS, false, false);
	sum = end_load();
	assert_int_equal(sum.durable, N_THREADS * N_CALLS);
	assert_int_equal(sum.early, 0);
	print_message("# %u calls, %u requests\n", load.n_ids, count_requests());
	assert_true(count_requests() < load.n_ids);
}

static void test_everything_at_once(void **state)
{
	struct caller sum;

	start_load(N_CALLS, true, true);
	sum = end_load();
	print_message("# durable %u, timeout %u\n", sum.durable, sum.timeout);
	assert_int_equal(sum.durable + sum.timeout, N_THREADS * N_CALLS);
	assert_int_equal(sum.early, 0);
	assert_true(sum.durable > 0 && sum.timeout > 0);
}

/* None of them notices. */
static void test_restarts(void **state)
{
	struct caller sum;

	start_load(N_CALLS, false, true);
	for (unsigned int i = 0; i < 10; i++) {
		assert_int_equal(served_stop_agent(&served), 0);
		assert_int_equal(served_start_agent(&served), 0);
	}
	sum = end_load();
	assert_int_equal(sum.durable, N_THREADS * N_CALLS);
	assert_int_equal(sum.early, 0);
}

/* Each that was waiting does, and nobody is left behind. */
static void test_kill(void **state)
{
	struct caller sum;
	pid_t worker;
	uint64_t id;

	start_load(1000000, true, true);
	while (__atomic_load_n(&load.n_ids, __ATOMIC_RELAXED) < N_THREADS)
		pmem_agent_flush(agent, target, PMEM_AGENT_SCOPE_AUTO, PMEM_AGENT_NO_TIMEOUT, NULL);
	__atomic_store_n(&load.killed, true, __ATOMIC_RELAXED);
	/* The round in flight does not end before the agent does. */
	worker = session_worker(&served.session);
	stop_process(worker);
	assert_int_equal(pmem_agent_submit(agent, target, PMEM_AGENT_SCOPE_AUTO, PMEM_AGENT_NO_TIMEOUT, &id), 0);
	while (pmem_agent_wait(agent, id, 1000, NULL) == 0)
		assert_int_equal(pmem_agent_submit(agent, target, PMEM_AGENT_SCOPE_AUTO, PMEM_AGENT_NO_TIMEOUT, &id),
				 0);
	served_kill_agent(&served);
	assert_int_equal(pmem_agent_wait(agent, id, PMEM_AGENT_NO_TIMEOUT, NULL), -EIO);
	kill(worker, SIGCONT);
	assert_int_equal(served_start_agent(&served), 0);
	__atomic_store_n(&load.stop, 1, __ATOMIC_RELAXED);
	sum = end_load();
	assert_int_equal(sum.other, 0);
	assert_int_equal(sum.early, 0);
}

/* ---- children ---- */

static pid_t start_child(unsigned int n_calls)
{
	pid_t child = fork();

	if (child == 0) {
		alarm(60);
		for (unsigned int i = 0; i < n_calls; i++) {
			struct pmem_agent_result result;
			int r = pmem_agent_flush(agent, target, PMEM_AGENT_SCOPE_AUTO, PMEM_AGENT_NO_TIMEOUT, &result);

			if (r == 0)
				continue;
			dprintf(STDERR_FILENO, "child: %s, %s\n", strerrorname_np(-r), result.detail);
			_exit(1);
		}
		pmem_agent_close(agent);
		_exit(0);
	}
	return child;
}

/* In whatever it is copied, the child goes on with its own, and takes nobody's answer. */
static void test_fork_under_load(void **state)
{
	struct caller sum;
	int status;

	start_load(1000000, false, true);
	for (unsigned int i = 0; i < 30; i++) {
		pid_t child = start_child(3);

		assert_int_equal(waitpid(child, &status, 0), child);
		assert_int_equal(status, 0);
	}
	__atomic_store_n(&load.stop, 1, __ATOMIC_RELAXED);
	sum = end_load();
	assert_int_equal(sum.unknown + sum.other + sum.early, 0);
}

/* 0 if every descriptor from 3 on is still the pipe that it was. */
static int count_missing(const struct stat *pipe)
{
	struct stat st;
	int n = 0;

	for (int fd = 3; fd < 64; fd++)
		n += fstat(fd, &st) < 0 || st.st_dev != pipe->st_dev || st.st_ino != pipe->st_ino;
	return n;
}

/* As daemons begin: all that they know nothing of is closed, and the numbers are for other things. */
static _Noreturn void be_another(bool flush)
{
	int pipes[2], fd;
	struct stat st;

	syscall(SYS_close_range, 3, ~0U, 0);
	if (pipe(pipes) < 0 || fstat(pipes[0], &st) < 0)
		_exit(1);
	for (fd = pipes[1]; fd < 63; fd++)
		if (dup(pipes[0]) < 0)
			_exit(1);
	fd = open(served.session.emulated, O_RDWR | O_CLOEXEC);
	if (flush && pmem_agent_flush(agent, fd, PMEM_AGENT_SCOPE_AUTO, PMEM_AGENT_NO_TIMEOUT, NULL) != 0)
		_exit(2);
	pmem_agent_close(agent);
	_exit(count_missing(&st) > 0 ? 3 : 0);
}

static void test_fork_and_close_all(void **state)
{
	for (unsigned int flush = 0; flush < 2; flush++) {
		pid_t child = fork();
		int status;

		if (child == 0)
			be_another(flush);
		assert_int_equal(waitpid(child, &status, 0), child);
		assert_int_equal(status, 0);
	}
	assert_int_equal(pmem_agent_flush(agent, target, PMEM_AGENT_SCOPE_AUTO, PMEM_AGENT_NO_TIMEOUT, NULL), 0);
}

static void *call_cancelled(void *userdata)
{
	unsigned int *ret = userdata;
	struct pmem_agent *other;
	uint64_t epoch;

	pthread_cancel(pthread_self());
	if (pmem_agent_connect(served.socket, &other) < 0)
		return NULL;
	*ret = 1;
	*ret += pmem_agent_flush(other, target, PMEM_AGENT_SCOPE_AUTO, PMEM_AGENT_NO_TIMEOUT, NULL) == 0;
	*ret += pmem_agent_epoch(other, page_number, &epoch) == 0;
	pmem_agent_close(other);
	++*ret;
	/* Not in here either: ASan takes what the unwinding leaves of this stack for an error. */
	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, NULL);
	return ret;
}

/* A thread that is to end ends in none of the calls, which would leave things behind. */
static void test_no_call_is_a_cancellation_point(void **state)
{
	unsigned int n = 0;
	pthread_t thread;
	void *end;

	assert_int_equal(pthread_create(&thread, NULL, call_cancelled, &n), 0);
	assert_int_equal(pthread_join(thread, &end), 0);
	assert_int_equal(n, 4);
	assert_ptr_equal(end, &n);
}

/* ---- the poll descriptor, the page ---- */

static void *flush_one(void *userdata)
{
	return pmem_agent_flush(agent, target, PMEM_AGENT_SCOPE_AUTO, PMEM_AGENT_NO_TIMEOUT, NULL) == 0 ? agent : NULL;
}

/* Another thread takes the answer in: who polls learns of it all the same. */
static void test_poll_beside_others(void **state)
{
	struct pollfd p = { .fd = pmem_agent_get_fd(agent), .events = POLLIN };
	pthread_t thread;
	void *good;
	uint64_t id;

	for (unsigned int i = 0; i < 100; i++) {
		assert_int_equal(pmem_agent_submit(agent, target, PMEM_AGENT_SCOPE_AUTO, PMEM_AGENT_NO_TIMEOUT, &id),
				 0);
		assert_int_equal(pthread_create(&thread, NULL, flush_one, NULL), 0);
		pthread_join(thread, &good);
		assert_non_null(good);
		assert_int_equal(poll(&p, 1, -1), 1);
		while (pmem_agent_wait(agent, 0, 0, NULL) == -EAGAIN)
			poll(&p, 1, -1);
		assert_int_equal(pmem_agent_wait(agent, 0, 0, NULL), -ESRCH);
		assert_int_equal(poll(&p, 1, 0), 0);
	}
}

/* Nor does it matter that somebody waits, for something else. */
static void *wait_in_vain(void *userdata)
{
	return pmem_agent_wait(agent, *(uint64_t *)userdata, PMEM_AGENT_NO_TIMEOUT, NULL) == 0 ? agent : NULL;
}

static void test_poll_beside_a_waiter(void **state)
{
	struct pollfd p = { .fd = pmem_agent_get_fd(agent), .events = POLLIN };
	uint64_t first, second;
	pthread_t thread;
	pid_t worker;
	void *good;

	assert_int_equal(pmem_agent_flush(agent, target, PMEM_AGENT_SCOPE_AUTO, PMEM_AGENT_NO_TIMEOUT, NULL), 0);
	worker = session_worker(&served.session);
	stop_process(worker);
	assert_int_equal(pmem_agent_submit(agent, target, PMEM_AGENT_SCOPE_AUTO, PMEM_AGENT_NO_TIMEOUT, &first), 0);
	assert_int_equal(pmem_agent_submit(agent, target, PMEM_AGENT_SCOPE_AUTO, 50000, &second), 0);
	assert_int_equal(pthread_create(&thread, NULL, wait_in_vain, &first), 0);
	while (pmem_agent_wait(agent, second, 0, NULL) == -EAGAIN)
		assert_int_equal(poll(&p, 1, -1), 1);
	kill(worker, SIGCONT);
	pthread_join(thread, &good);
	assert_non_null(good);
}

static void test_page(void **state)
{
	struct pmem_agent_page *writable;
	struct pmem_agent_result result;
	_cleanup_close_ int fd = -1;
	char path[160];
	uint64_t epoch;

	assert_int_equal(pmem_agent_flush(agent, target, PMEM_AGENT_SCOPE_AUTO, PMEM_AGENT_NO_TIMEOUT, &result), 0);
	assert_int_equal(result.regions[0].page, page_number);
	assert_int_equal(pmem_agent_epoch(agent, page_number, &epoch), 0);
	assert_true(epoch == result.regions[0].epoch);
	assert_int_equal(pmem_agent_lost(agent, page_number), 0);
	assert_int_equal(pmem_agent_lost(agent, 0), -ENOENT);
	assert_int_equal(pmem_agent_lost(agent, 4711), -ENOENT);
	/* There is one, which is another matter. */
	assert_int_equal(pmem_agent_lost(agent, page_number), 0);

	snprintf(path, sizeof(path), "%s/%016" PRIx64 ".page", served.session.directory, page_number);
	fd = open(path, O_RDWR | O_CLOEXEC);
	writable = mmap(NULL, PMEM_AGENT_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	assert_true(writable != MAP_FAILED);
	writable->agent.reading = 1;
	assert_int_equal(pmem_agent_lost(agent, page_number), PMEM_AGENT_UNKNOWN);
	writable->worker.failed++;
	assert_int_equal(pmem_agent_lost(agent, page_number), PMEM_AGENT_LOST);
	writable->worker.failed--;
	writable->agent.reading = 0;
	assert_int_equal(pmem_agent_lost(agent, page_number), 0);
	/* Retired: whoever maps it still learns nothing more. */
	writable->magic = 0;
	assert_int_equal(pmem_agent_lost(agent, page_number), PMEM_AGENT_UNKNOWN);
	assert_int_equal(pmem_agent_epoch(agent, page_number, &epoch), -ENOENT);
	writable->magic = PMEM_AGENT_PAGE_MAGIC;
	munmap(writable, PMEM_AGENT_PAGE_SIZE);
}

static void test_query(void **state)
{
	_cleanup_close_ int other = open("/proc/self/status", O_RDONLY | O_CLOEXEC);
	struct pmem_agent_info info;

	assert_int_equal(pmem_agent_query(agent, target, PMEM_AGENT_SCOPE_AUTO, 60 * USEC_PER_SEC, &info), 0);
	assert_int_equal(info.answer, 0);
	assert_int_equal(info.method, PMEM_AGENT_METHOD_FILE);
	assert_int_equal(info.scope, PMEM_AGENT_SCOPE_REGION);
	assert_int_equal(info.n_regions, 1);
	assert_non_null(strstr(info.detail, "emu0"));
	assert_int_equal(pmem_agent_query(agent, other, PMEM_AGENT_SCOPE_AUTO, PMEM_AGENT_NO_TIMEOUT, &info), -ENOTBLK);
	assert_int_equal(info.answer, PMEM_AGENT_ORDINARY);
	assert_int_equal(info.method, PMEM_AGENT_METHOD_NONE);
	assert_true(info.detail[0]);
	assert_int_equal(pmem_agent_query(agent, -1, PMEM_AGENT_SCOPE_AUTO, PMEM_AGENT_NO_TIMEOUT, &info), -EBADF);
	assert_int_equal(pmem_agent_query(agent, target, PMEM_AGENT_SCOPE_AUTO, 0, &info), -EINVAL);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_query),
		TEST(test_page),
		TEST(test_poll_beside_others),
		TEST(test_poll_beside_a_waiter),
		TEST(test_combined),
		TEST(test_everything_at_once),
		TEST(test_restarts),
		TEST(test_fork_under_load),
		TEST(test_fork_and_close_all),
		TEST(test_no_call_is_a_cancellation_point),
		TEST(test_kill),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests_name("threads", tests, set_up_group, tear_down_group);
}
