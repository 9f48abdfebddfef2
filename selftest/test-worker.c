/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test-worker: the page of a region, real workers, and who they are taken for
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include <cmocka.h>

#include "agent/worker.h"
#include "selftest/process.h"

#define IDENTITY "file:/test"

/* A write to it is a "flush" that fails with EIO: the worker has nothing mapped at address 0. */
#define FAILING "/proc/self/mem"

static char directory[] = "/tmp/test-worker-XXXXXX", page_path[64], target[64];
static struct stat target_stat;
static struct pmem_agent_page *page;
static struct worker *worker;

/* What the worker is to take for a block device, and what it had of it written back before any flush. */
static struct {
	ino_t inode; /* 0: nothing */
	int error;
	unsigned int n_before, n_late;
} * block;

int fstat(int fd, struct stat *st)
{
	int r = fstatat(fd, "", st, AT_EMPTY_PATH);

	if (r == 0 && block && block->inode != 0 && st->st_ino == block->inode)
		st->st_mode = S_IFBLK | 0600;
	return r;
}

int sync_file_range(int fd, off64_t from, off64_t size, unsigned int flags)
{
	struct stat st, flushed;

	if (block && flags & SYNC_FILE_RANGE_WRITE && fstat(fd, &st) == 0 && S_ISBLK(st.st_mode)) {
		assert_int_equal(flags, SYNC_FILE_RANGE_WRITE_AND_WAIT);
		*(stat(target, &flushed) == 0 && flushed.st_size == 0 ? &block->n_before : &block->n_late) += 1;
		errno = block->error;
		return block->error ? -1 : 0;
	}
	/* The system call has another order of arguments on ppc64, and another name. */
	return ((int (*)(int, off64_t, off64_t, unsigned int))dlsym(RTLD_NEXT, "sync_file_range"))(fd, from, size,
												   flags);
}

static int set_up_group(void **state)
{
	alarm(60);
	signal(SIGCHLD, SIG_IGN);
	if (!mkdtemp(directory))
		return -1;
	block = mmap(NULL, sizeof(*block), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (block == MAP_FAILED)
		return -1;
	snprintf(target, sizeof(target), "%s/target", directory);
	worker_page_path(directory, IDENTITY, page_path, sizeof(page_path));
	return 0;
}

static int tear_down_group(void **state)
{
	return rmdir(directory);
}

static int set_up(void **state)
{
	_cleanup_close_ int fd = open(target, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	if (fd < 0 || fstat(fd, &target_stat) < 0)
		return -1;
	return worker_open_page(directory, IDENTITY, SD_ID128_ALLF, &page);
}

static int tear_down(void **state)
{
	worker = worker_free(worker);
	page = worker_close_page(page);
	return unlink(page_path) < 0 || unlink(target) < 0 ? -1 : 0;
}

static void open_again(sd_id128_t boot_id)
{
	page = worker_close_page(page);
	assert_int_equal(worker_open_page(directory, IDENTITY, boot_id, &page), 0);
	assert_true(page->magic == PMEM_AGENT_PAGE_MAGIC);
	assert_string_equal(page->identity, IDENTITY);
}

static void hand_over(uint64_t round)
{
	__atomic_store_n(&page->agent.handed, round, __ATOMIC_RELEASE);
}

static struct worker_result make_round(const struct worker_round *round, const int *fds)
{
	struct pollfd p = { .events = POLLIN };
	struct worker_result result;

	if (!worker)
		assert_int_equal(worker_start(page, &worker), 0);
	assert_int_equal(worker_begin(worker, round, fds), 0);
	hand_over(round->round);
	p.fd = worker_get_fd(worker);
	assert_int_equal(poll(&p, 1, -1), 1);
	assert_int_equal(worker_collect(worker, &result), 0);
	assert_true(result.round == round->round);
	assert_true(page->worker.done == round->round);
	return result;
}

/* ---- the page ---- */

static void test_page_is_kept(void **state)
{
	page->agent.loss = 7;
	open_again(SD_ID128_ALLF);
	assert_true(page->agent.loss == 7);
	assert_true(pmem_agent_page_lost(page));
}

static void test_page_of_another_boot_is_replaced(void **state)
{
	page->agent.loss = 7;
	open_again(SD_ID128_NULL);
	assert_true(page->agent.loss == 0);
	/* Until it has been told what was lost before. */
	assert_true(pmem_agent_page_lost(page));
	page->agent.recalled = 1;
	assert_false(pmem_agent_page_lost(page));
}

static void test_page_of_another_region_is_replaced(void **state)
{
	page->agent.loss = 7;
	strcpy(page->identity, IDENTITY "2");
	open_again(SD_ID128_ALLF);
	assert_true(page->agent.loss == 0);
}

/* Whoever has the old one mapped sees that it tells nothing any more. */
static void test_replaced_page_is_retired(void **state)
{
	struct pmem_agent_page *old;

	assert_int_equal(worker_open_page(directory, IDENTITY, SD_ID128_ALLF, &old), 0);
	old->agent.recalled = 1;
	assert_int_equal(pmem_agent_page_lost(old), 0);
	old->version++;
	open_again(SD_ID128_ALLF);
	assert_int_equal(page->version, PMEM_AGENT_PAGE_VERSION);
	old->version--;
	assert_int_equal(pmem_agent_page_lost(old), PMEM_AGENT_UNKNOWN);
	worker_close_page(old);
}

static void test_torn_page_is_replaced(void **state)
{
	page->agent.loss = 7;
	page = worker_close_page(page);
	assert_int_equal(truncate(page_path, 100), 0);
	open_again(SD_ID128_ALLF);
	assert_true(page->agent.loss == 0);
}

/* ---- rounds ---- */

/* A target that nothing is known to lie below. */
static struct worker_round round_of(uint64_t number)
{
	return (struct worker_round){ .round = number, .n_targets = 1 };
}

static unsigned int add_call(struct worker_round *round, enum flush_scope scope, int descriptor)
{
	round->calls[round->n_calls] =
	    (struct worker_call){ .scope = scope, .descriptor = descriptor, .served_by = -1 };
	return round->n_calls++;
}

static void add_descriptor(struct worker_round *round, unsigned int call, bool fetch)
{
	round->descriptors[round->n_descriptors++] = (struct worker_descriptor){ .call = call, .fetch = fetch };
}

static struct worker_round round_on_node(uint64_t number)
{
	struct worker_round round = round_of(number);

	strcpy(round.region.path, target);
	round.region.device = target_stat.st_dev;
	round.region.inode = target_stat.st_ino;
	add_call(&round, FLUSH_REGION, -1);
	return round;
}

static struct worker_round round_on_attribute(uint64_t number, const char *path)
{
	struct worker_round round = round_of(number);

	strcpy(round.region.path, path);
	round.region.attribute = true;
	add_call(&round, FLUSH_REGION, -1);
	return round;
}

static void test_confirmed(void **state)
{
	struct worker_round round = round_on_node(3);
	struct worker_result result = make_round(&round, NULL);

	assert_int_equal(result.outcome.calls[0].answer, PMEM_AGENT_DURABLE);
	assert_true(page->worker.started == 3);
	assert_true(page->worker.durable == 3);
	assert_true(page->worker.failed == 0);
}

/* A file that has taken the place of the one that was meant: nothing is flushed, and nothing lost. */
static void test_replaced(void **state)
{
	struct worker_round round = round_on_node(3);
	struct worker_result result;

	round.region.inode++;
	result = make_round(&round, NULL);
	assert_int_equal(result.outcome.calls[0].error, ESTALE);
	assert_int_equal(result.outcome.calls[0].answer, PMEM_AGENT_UNKNOWN);
	assert_non_null(strstr(result.details[0], "could not be opened"));
	assert_true(page->worker.durable == 0);
	assert_true(page->worker.failed == 0);
}

static void test_descriptor(void **state)
{
	struct worker_round round = round_of(1);
	_cleanup_close_ int fd = open(target, O_RDONLY | O_CLOEXEC);

	add_descriptor(&round, add_call(&round, FLUSH_FILE_DATA, 0), false);
	assert_int_equal(make_round(&round, &fd).outcome.calls[0].error, 0);
	assert_true(page->worker.durable == 1);
}

/* Who asks by the region's own node lends it: nothing is opened then. Any other descriptor doesn't stand for it. */
static void test_descriptor_of_the_region(void **state)
{
	struct worker_round round = round_on_node(1);
	_cleanup_close_ int fd = open(target, O_RDONLY | O_CLOEXEC);
	_cleanup_close_ int other = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	struct worker_result result;

	strcpy(round.region.path, "/nonexistent");
	add_descriptor(&round, 0, true);
	assert_int_equal(make_round(&round, &fd).outcome.calls[0].answer, PMEM_AGENT_DURABLE);

	round.round = 2;
	result = make_round(&round, &other);
	assert_int_equal(result.outcome.calls[0].answer, PMEM_AGENT_UNKNOWN);
	assert_int_equal(result.outcome.calls[0].error, ENOENT);

	/* Not a file that merely lies on the device. */
	round.round = 3;
	round.region.inode = 0;
	assert_int_equal(make_round(&round, &fd).outcome.calls[0].error, ENOENT);
	assert_true(page->worker.durable == 1);
}

/* A write to the node lies in its page cache, which a deep flush knows nothing of. */
static void test_block_device_is_written_back(void **state)
{
	struct worker_round round = round_on_attribute(1, target);
	_cleanup_close_ int fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	struct worker_result result;
	struct stat st;

	assert_int_equal(fstat(fd, &st), 0);
	add_descriptor(&round, 0, true);
	assert_int_equal(make_round(&round, &fd).outcome.calls[0].answer, PMEM_AGENT_DURABLE);
	assert_int_equal(block->n_before + block->n_late, 0);

	block->inode = st.st_ino;
	assert_int_equal(truncate(target, 0), 0);
	round.round = 2;
	result = make_round(&round, &fd);
	assert_int_equal(result.outcome.calls[0].answer, PMEM_AGENT_DURABLE);
	assert_int_equal(result.outcome.descriptors[0].answer, PMEM_AGENT_DURABLE);
	assert_int_equal(block->n_before, 1);
	assert_int_equal(block->n_late, 0);

	block->error = EIO;
	round.round = 3;
	result = make_round(&round, &fd);
	block->inode = 0;
	assert_int_equal(result.outcome.descriptors[0].answer, PMEM_AGENT_LOST);
	assert_true(page->worker.durable == 2 && page->worker.failed == 3);
}

static void test_failed(void **state)
{
	struct worker_round round = round_on_attribute(2, FAILING);
	struct worker_result result = make_round(&round, NULL);

	assert_int_equal(result.outcome.calls[0].error, EIO);
	assert_int_equal(result.outcome.calls[0].answer, PMEM_AGENT_LOST);
	assert_true(page->worker.durable == 0);
	assert_true(page->worker.failed == 2);
	assert_int_equal(page->worker.error, EIO);
	assert_true(pmem_agent_page_lost(page));
}

/* What is the target's own failure is no loss of the region's. */
static void test_no_room(void **state)
{
	struct worker_round round = round_on_attribute(2, "/dev/full");
	struct worker_result result = make_round(&round, NULL);

	assert_int_equal(result.outcome.calls[0].error, ENOSPC);
	assert_int_equal(result.outcome.calls[0].answer, PMEM_AGENT_FAILED);
	assert_true(page->worker.durable == 0);
	assert_true(page->worker.failed == 0);
}

/* A syncfs that may have sent no flush is not enough: what sends it comes after, whatever the method. */
static void test_syncfs_then_flush(void **state)
{
	struct worker_round round = round_of(1);
	_cleanup_close_ int fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	_cleanup_close_ int attribute = open(target, O_RDONLY | O_CLOEXEC);
	char text[4] = "";

	add_descriptor(&round, add_call(&round, FLUSH_FILESYSTEM, 0), false);
	round.calls[0].then_region = round.region.attribute = true;
	strcpy(round.region.path, target);
	assert_int_equal(make_round(&round, &fd).outcome.calls[0].error, 0);
	assert_int_equal(read(attribute, text, sizeof(text)), 2);
	assert_string_equal(text, "1\n");

	round.round = 2;
	strcpy(round.region.path, FAILING);
	assert_int_equal(make_round(&round, &fd).outcome.calls[0].error, EIO);
	assert_true(page->worker.durable == 1);
	assert_true(page->worker.failed == 2);
}

/* Each call and each descriptor has its own answer; the page says durable of all or of none. */
static void test_each_its_own(void **state)
{
	struct worker_round round = round_on_attribute(1, "/dev/full");
	int fds[] = { open(target, O_RDONLY | O_CLOEXEC), open(target, O_PATH | O_CLOEXEC),
		      open(target, O_RDONLY | O_CLOEXEC) };
	unsigned int file = add_call(&round, FLUSH_FILE, 0);
	struct worker_result result;

	add_descriptor(&round, file, false);
	add_descriptor(&round, file, true);
	add_descriptor(&round, 0, true);
	result = make_round(&round, fds);
	assert_int_equal(result.outcome.calls[0].answer, PMEM_AGENT_FAILED);
	assert_int_equal(result.outcome.calls[1].answer, PMEM_AGENT_DURABLE);
	assert_int_equal(result.outcome.descriptors[0].answer, PMEM_AGENT_DURABLE);
	assert_int_equal(result.outcome.descriptors[1].error, EBADF);
	assert_int_equal(result.outcome.descriptors[1].answer, PMEM_AGENT_REFUSED);
	assert_int_equal(result.outcome.descriptors[2].answer, PMEM_AGENT_DURABLE);
	assert_true(page->worker.durable == 0 && page->worker.failed == 0 && page->worker.done == 1);
	for (unsigned int i = 0; i < ARRAY_SIZE(fds); i++)
		close(fds[i]);
}

/* After a loss nothing more is flushed, and nothing more is said. */
static void test_lost_is_the_last(void **state)
{
	struct worker_round round = round_on_attribute(1, FAILING);
	_cleanup_close_ int fd = open(target, O_RDONLY | O_CLOEXEC);
	struct worker_result result;

	add_descriptor(&round, add_call(&round, FLUSH_FILE, 0), false);
	result = make_round(&round, &fd);
	assert_int_equal(result.outcome.calls[0].answer, PMEM_AGENT_LOST);
	assert_int_equal(result.outcome.calls[1].answer, PMEM_AGENT_UNKNOWN);
	assert_int_equal(result.outcome.descriptors[0].answer, PMEM_AGENT_UNKNOWN);
	assert_true(page->worker.durable == 0 && page->worker.failed == 1);
}

/* What serves the region has failed by itself, so the region is flushed after all. */
static void test_served(void **state)
{
	struct worker_round round = round_of(1);
	_cleanup_close_ int good = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	_cleanup_close_ int bad = open(directory, O_PATH | O_CLOEXEC);
	struct worker_result result;

	add_descriptor(&round, add_call(&round, FLUSH_FILESYSTEM, 0), false);
	round.calls[add_call(&round, FLUSH_REGION, -1)].served_by = 0;
	round.region.attribute = true;
	strcpy(round.region.path, FAILING);
	result = make_round(&round, &good);
	assert_int_equal(result.outcome.calls[0].answer, PMEM_AGENT_DURABLE);
	assert_int_equal(result.outcome.calls[1].answer, PMEM_AGENT_DURABLE);

	round.round = 2;
	result = make_round(&round, &bad);
	assert_int_equal(result.outcome.calls[0].answer, PMEM_AGENT_REFUSED);
	assert_int_equal(result.outcome.calls[1].answer, PMEM_AGENT_LOST);
	assert_true(page->worker.durable == 1 && page->worker.failed == 2);
}

/* As much as one message takes, and nothing of it is kept. */
static void test_full_round(void **state)
{
	static struct worker_round round;
	int fds[WORKER_MAX_DESCRIPTORS];

	assert_int_equal(worker_start(page, &worker), 0);
	for (uint64_t number = 1; number <= 5; number++) {
		round = round_of(number);
		round.n_targets = WORKER_MAX_CALLS;
		for (unsigned int i = 0; i < WORKER_MAX_CALLS; i++)
			round.calls[add_call(&round, FLUSH_FILE_DATA, (int)i)].target = i;
		for (unsigned int i = 0; i < WORKER_MAX_DESCRIPTORS; i++) {
			fds[i] = open(target, O_RDONLY | O_CLOEXEC);
			assert_true(fds[i] >= 0);
			add_descriptor(&round, i % WORKER_MAX_CALLS, i >= WORKER_MAX_CALLS);
		}
		assert_int_equal(make_round(&round, fds).outcome.calls[WORKER_MAX_CALLS - 1].error, 0);
		assert_true(page->worker.durable == number);
		for (unsigned int i = 0; i < WORKER_MAX_DESCRIPTORS; i++)
			close(fds[i]);
	}
}

/* A pipe whose last writer is the worker: its end shows when that closes. */
static void begin_with_pipe(int *ret_read)
{
	struct worker_round round = round_on_node(1);
	int pipes[2];

	assert_int_equal(pipe2(pipes, O_CLOEXEC), 0);
	add_descriptor(&round, 0, true);
	assert_int_equal(worker_start(page, &worker), 0);
	assert_int_equal(worker_begin(worker, &round, &pipes[1]), 0);
	close(pipes[1]);
	while (__atomic_load_n(&page->worker.done, __ATOMIC_ACQUIRE) < 1)
		sched_yield();
	*ret_read = pipes[0];
}

/* However late the agent comes to close its own: the last close, which may hang, is the worker's. */
static void test_closes_last(void **state)
{
	_cleanup_close_ int fd = -1;
	struct worker_result result;
	struct pollfd p;

	if (!tells_system_calls()) {
		print_message("needs a kernel that tells in which system call a process is\n");
		skip();
	}
	begin_with_pipe(&fd);
	p = (struct pollfd){ .fd = fd };
	wait_until_in((pid_t)page->worker.pid, SYS_poll);
	assert_int_equal(poll(&p, 1, 0), 0);
	assert_int_equal(worker_collect(worker, &result), -EAGAIN);
	hand_over(1);
	assert_int_equal(poll(&p, 1, -1), 1);
	p = (struct pollfd){ .fd = worker_get_fd(worker), .events = POLLIN };
	assert_int_equal(poll(&p, 1, -1), 1);
	assert_int_equal(worker_collect(worker, &result), 0);
}

/* Nobody tells it where the agent has ended meanwhile. */
static void test_closes_without_an_agent(void **state)
{
	_cleanup_close_ int fd = -1;
	struct pollfd p;

	begin_with_pipe(&fd);
	worker = worker_free(worker);
	p = (struct pollfd){ .fd = fd };
	assert_int_equal(poll(&p, 1, -1), 1);
}

/* Fewer descriptors than it speaks of: it may not be what was asked for. */
static void test_descriptors_kept_back(void **state)
{
	struct worker_round round = round_on_node(1);
	struct rlimit few = { .rlim_cur = 20, .rlim_max = 20 };
	int fds[100];

	assert_int_equal(worker_start(page, &worker), 0);
	assert_int_equal(prlimit(worker_get_pid(worker), RLIMIT_NOFILE, &few, NULL), 0);
	for (unsigned int i = 0; i < ARRAY_SIZE(fds); i++) {
		fds[i] = open(target, O_RDONLY | O_CLOEXEC);
		add_descriptor(&round, 0, true);
	}
	assert_int_equal(make_round(&round, fds).outcome.calls[0].answer, PMEM_AGENT_UNKNOWN);
	assert_true(page->worker.durable == 0 && page->worker.failed == 0);
	for (unsigned int i = 0; i < ARRAY_SIZE(fds); i++)
		close(fds[i]);
}

/* ---- who it is ---- */

static void test_find(void **state)
{
	struct pollfd p = { .events = POLLIN };

	assert_int_equal(worker_find(page), -ESRCH);
	assert_int_equal(worker_start(page, &worker), 0);
	p.fd = worker_find(page);
	assert_true(p.fd >= 0);
	assert_int_equal(poll(&p, 1, 0), 0);

	/* It ends with its agent. */
	worker = worker_free(worker);
	assert_int_equal(poll(&p, 1, -1), 1);
	close(p.fd);
	assert_int_equal(worker_find(page), -ESRCH);
}

static void test_find_not_a_namesake(void **state)
{
	assert_int_equal(worker_start(page, &worker), 0);
	page->worker.start_time++;
	assert_int_equal(worker_find(page), -ESRCH);
}

struct other {
	pthread_mutex_t there;
	pthread_barrier_t started;
	pid_t tid;
};

static void *be_there(void *userdata)
{
	struct other *other = userdata;

	other->tid = gettid();
	pthread_barrier_wait(&other->started);
	pthread_mutex_lock(&other->there);
	return NULL;
}

/* A thread may have got the number since: that is no worker, and no pidfd can be had of it. */
static void test_find_not_a_thread(void **state)
{
	struct other other = { .there = PTHREAD_MUTEX_INITIALIZER };
	pthread_t thread;

	pthread_barrier_init(&other.started, NULL, 2);
	pthread_mutex_lock(&other.there);
	assert_int_equal(pthread_create(&thread, NULL, be_there, &other), 0);
	pthread_barrier_wait(&other.started);

	page->worker.pid = (uint32_t)other.tid;
	assert_int_equal(worker_find(page), -ESRCH);
	pthread_mutex_unlock(&other.there);
	pthread_join(thread, NULL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_page_is_kept, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_page_of_another_boot_is_replaced, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_page_of_another_region_is_replaced, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_replaced_page_is_retired, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_torn_page_is_replaced, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_confirmed, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_replaced, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_descriptor, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_descriptor_of_the_region, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_block_device_is_written_back, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_failed, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_no_room, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_syncfs_then_flush, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_each_its_own, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_lost_is_the_last, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_served, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_full_round, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_closes_last, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_closes_without_an_agent, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_descriptors_kept_back, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_find, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_find_not_a_namesake, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_find_not_a_thread, set_up, tear_down),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests_name("worker", tests, set_up_group, tear_down_group);
}
