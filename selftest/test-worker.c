/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test-worker: the page of a region, real workers, and who they are taken for
 */
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
#include <sys/stat.h>

#include <cmocka.h>

#include "agent/worker.h"

#define IDENTITY "file:/test"

/* A write to it is a "flush" that fails with EIO: the worker has nothing mapped at address 0. */
#define FAILING "/proc/self/mem"

static char directory[] = "/tmp/test-worker-XXXXXX", page_path[64], target[64];
static struct stat target_stat;
static struct pmem_agent_page *page;
static struct worker *worker;

static int set_up_group(void **state)
{
	alarm(60);
	signal(SIGCHLD, SIG_IGN);
	if (!mkdtemp(directory))
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

static struct worker_result make_round(const struct worker_round *round, int fd)
{
	struct pollfd p = { .events = POLLIN };
	struct worker_result result;

	if (!worker)
		assert_int_equal(worker_start(page, &worker), 0);
	assert_int_equal(worker_begin(worker, round, fd), 0);
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

static void test_torn_page_is_replaced(void **state)
{
	page->agent.loss = 7;
	page = worker_close_page(page);
	assert_int_equal(truncate(page_path, 100), 0);
	open_again(SD_ID128_ALLF);
	assert_true(page->agent.loss == 0);
}

/* ---- rounds ---- */

static void test_confirmed(void **state)
{
	struct worker_round round = { .round = 3, .call = WORKER_NODE };
	struct worker_result result;

	strcpy(round.path, target);
	round.device = target_stat.st_dev;
	round.inode = target_stat.st_ino;
	result = make_round(&round, -1);
	assert_int_equal(result.answer, PMEM_AGENT_DURABLE);
	assert_true(page->worker.started == 3);
	assert_true(page->worker.durable == 3);
	assert_true(page->worker.failed == 0);
}

/* A file that has taken the place of the one that was meant: nothing is flushed, and nothing lost. */
static void test_replaced(void **state)
{
	struct worker_round round = { .round = 3, .call = WORKER_NODE };
	struct worker_result result;

	strcpy(round.path, target);
	round.device = target_stat.st_dev;
	round.inode = target_stat.st_ino + 1;
	result = make_round(&round, -1);
	assert_int_equal(result.error, ESTALE);
	assert_int_equal(result.answer, PMEM_AGENT_UNKNOWN);
	assert_true(page->worker.durable == 0);
	assert_true(page->worker.failed == 0);
}

static void test_descriptor(void **state)
{
	struct worker_round round = { .round = 1, .call = WORKER_FDATASYNC };
	_cleanup_close_ int fd = open(target, O_RDONLY | O_CLOEXEC);

	assert_int_equal(make_round(&round, fd).error, 0);
	assert_true(page->worker.durable == 1);
}

static void test_failed(void **state)
{
	struct worker_round round = { .round = 2, .call = WORKER_DEEP_FLUSH, .path = FAILING };
	struct worker_result result = make_round(&round, -1);

	assert_int_equal(result.error, EIO);
	assert_int_equal(result.answer, PMEM_AGENT_LOST);
	assert_true(page->worker.durable == 0);
	assert_true(page->worker.failed == 2);
	assert_int_equal(page->worker.error, EIO);
	assert_true(pmem_agent_page_lost(page));
}

/* What is the target's own failure is no loss of the region's. */
static void test_no_room(void **state)
{
	struct worker_round round = { .round = 2, .call = WORKER_DEEP_FLUSH, .path = "/dev/full" };
	struct worker_result result = make_round(&round, -1);

	assert_int_equal(result.error, ENOSPC);
	assert_int_equal(result.answer, PMEM_AGENT_FAILED);
	assert_true(page->worker.durable == 0);
	assert_true(page->worker.failed == 0);
}

/* A syncfs that may have sent no flush is not enough: what sends it comes after, whatever the method. */
static void test_syncfs_then_flush(void **state)
{
	struct worker_round round = { .round = 1, .call = WORKER_SYNCFS, .then = WORKER_DEEP_FLUSH };
	_cleanup_close_ int fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	_cleanup_close_ int attribute = open(target, O_RDONLY | O_CLOEXEC);
	char text[4] = "";

	strcpy(round.then_path, target);
	assert_int_equal(make_round(&round, fd).error, 0);
	assert_int_equal(read(attribute, text, sizeof(text)), 2);
	assert_string_equal(text, "1\n");

	round =
	    (struct worker_round){ .round = 2, .call = WORKER_SYNCFS, .then = WORKER_DEEP_FLUSH, .then_path = FAILING };
	assert_int_equal(make_round(&round, fd).error, EIO);
	assert_true(page->worker.durable == 1);
	assert_true(page->worker.failed == 2);
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
		cmocka_unit_test_setup_teardown(test_torn_page_is_replaced, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_confirmed, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_replaced, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_descriptor, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_failed, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_no_room, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_syncfs_then_flush, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_find, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_find_not_a_namesake, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_find_not_a_thread, set_up, tear_down),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests_name("worker", tests, set_up_group, tear_down_group);
}
