/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test-adopt: what outlives an agent, or a region: workers, rounds in flight, losses
 */
#include <poll.h>

#include "agent/scan.h"
#include "selftest/emulated.h"

/* A write to it is a "flush" that fails with EIO: the worker has nothing mapped at address 0. */
#define FAILING "/proc/self/mem"

/* ---- what an agent before left: the test is that agent ---- */

static void kill_and_wait(pid_t pid)
{
	struct pollfd p = { .fd = worker_find(page), .events = POLLIN };

	assert_int_equal(page->worker.pid, pid);
	assert_true(p.fd >= 0);
	kill(pid, SIGKILL);
	assert_int_equal(poll(&p, 1, -1), 1);
	close(p.fd);
}

/* A worker that is stopped before it fails a round, its agent gone. */
static pid_t leave_failing_worker(void)
{
	struct worker_round round = round_on(FAILING);
	struct worker *w;
	pid_t pid;

	assert_int_equal(worker_start(page, &w), 0);
	pid = worker_get_pid(w);
	stop_process(pid);
	assert_int_equal(worker_begin(w, &round, NULL), 0);
	worker_free(w);
	return pid;
}

/* ---- the next agent ---- */

static void test_epoch_and_rounds_go_on(void **state)
{
	struct answer_of a;

	start_agent();
	ask(&a);
	assert_answer(&a, PMEM_AGENT_DURABLE);
	end_agent();
	start_agent();
	assert_true(status().epoch == 1 && status().epoch_usec == 0);
	ask(&a);
	assert_answer(&a, PMEM_AGENT_DURABLE);
	assert_true(a.result.epochs[0].epoch == 2);
}

static void test_dead_in_flight(void **state)
{
	kill_and_wait(leave_hanging_worker());
	assert_true(page->agent.loss == 0);

	start_agent();
	assert_refused(PMEM_AGENT_LOST);
	assert_true(pmem_agent_page_lost(page));
	assert_true(page->agent.loss == 1);
	assert_int_equal(page->agent.loss_origin, FLUSH_ORIGIN_WORKER);

	/* The same loss for every agent that comes after. */
	end_agent();
	start_agent();
	assert_refused(PMEM_AGENT_LOST);
	assert_true(page->agent.loss == 1);
}

static void test_alive_in_flight(void **state)
{
	pid_t pid = leave_hanging_worker();
	struct answer_of a;

	start_agent();
	assert_int_equal(status().state, FLUSH_STALLED);
	ask(&a);
	settle();
	assert_false(a.told);
	assert_true(page->worker.started == 1);
	assert_int_equal(page->worker.pid, pid);

	kill(pid, SIGKILL);
	assert_answer(&a, PMEM_AGENT_LOST);
	assert_true(page->agent.loss == 1);
	end_agent();
	start_agent();
	assert_refused(PMEM_AGENT_LOST);
	assert_true(page->agent.loss == 1);
}

/* The failure is told although the worker hangs in what came after. */
static void test_alive_after_failure(void **state)
{
	pid_t pid = leave_hanging_worker();

	page->worker.error = EIO;
	page->worker.failed = page->worker.done = 1;
	start_agent();
	assert_refused(PMEM_AGENT_LOST);
	kill_and_wait(pid);
	settle();
	assert_true(page->agent.loss == 1);
}

static void test_alive_then_confirmed(void **state)
{
	struct answer_of a, b;
	struct request *request;
	pid_t pid;

	start_agent();
	pid = stop_worker();
	request = begin(&a);
	request_cancel(request);
	end_agent();

	start_agent();
	ask(&b);
	settle();
	assert_int_equal(status().state, FLUSH_STALLED);
	assert_true(page->worker.started == 1);
	kill(pid, SIGCONT);
	assert_answer(&b, PMEM_AGENT_DURABLE);
	assert_true(b.result.epochs[0].epoch == 3); /* the second was the old worker's, and told to nobody */
	assert_int_not_equal(page->worker.pid, pid);
}

static void test_late_failure(void **state)
{
	pid_t pid = leave_failing_worker();
	struct answer_of a;

	start_agent();
	ask(&a);
	settle();
	assert_false(a.told);
	assert_true(page->worker.started == 0);
	kill(pid, SIGCONT);
	assert_answer(&a, PMEM_AGENT_LOST);
	assert_int_equal(a.result.error, EIO);
	assert_true(page->worker.failed == 1 && page->agent.failed_seen == 1);
	assert_true(page->agent.loss == 1);
	end_agent();
	start_agent();
	assert_refused(PMEM_AGENT_LOST);
	assert_true(page->agent.loss == 1);
}

/* The worker has written of the failure, the agent died before it could. */
static void test_failure_nobody_was_told(void **state)
{
	pid_t pid = leave_failing_worker();
	struct pollfd p = { .fd = worker_find(page), .events = POLLIN };

	kill(pid, SIGCONT);
	assert_int_equal(poll(&p, 1, -1), 1);
	close(p.fd);
	assert_true(pmem_agent_page_lost(page));
	start_agent();
	assert_refused(PMEM_AGENT_LOST);
	assert_true(page->agent.loss == 1);
	assert_true(pmem_agent_page_lost(page));
}

/* It ended without being durable, which may have been a failure that the kernel tells once. */
static void test_outcome_nobody_was_told(void **state)
{
	struct pollfd p = { .events = POLLIN };
	struct answer_of a;

	page->worker.started = page->worker.done = page->agent.handed = 3;
	page->worker.durable = page->agent.epoch = 2;
	page->agent.answered = 3;
	start_agent();
	ask(&a);
	assert_answer(&a, PMEM_AGENT_DURABLE);
	end_agent();
	assert_true(page->worker.done == 4 && page->agent.answered == 4);

	p.fd = worker_find(page);
	assert_true(p.fd < 0 || poll(&p, 1, -1) == 1);
	safe_close(p.fd);
	page->worker.durable = page->agent.answered = 3;
	start_agent();
	assert_refused(PMEM_AGENT_LOST);
	end_agent();
	start_agent();
	assert_refused(PMEM_AGENT_LOST);
	assert_true(page->agent.loss == 1);
}

/* ---- a region that goes and comes ---- */

/* Another region of the same identity in its place, as a scan finds one after unbind and bind. */
static struct manager_region *replace(void)
{
	struct manager_region *old = emu0(), *new;
	struct region *region;

	TAILQ_REMOVE(&manager->regions, old, entry);
	round_region_remove(old);
	assert_int_equal(scan_emulated("emu0", emulated, &region), 0);
	assert_int_equal(round_region_new(manager, region, &new), 0);
	TAILQ_INSERT_TAIL(&manager->regions, new, entry);
	return old;
}

static void test_removed(void **state)
{
	struct answer_of a, b, c;
	pid_t pid;

	start_agent();
	pid = stop_worker();
	begin(&a);
	ask(&b);
	replace();
	assert_answer(&b, PMEM_AGENT_GONE);
	assert_int_equal(b.result.error, ENODEV);

	/* No second flush beside the one in flight, which keeps its own result. */
	ask(&c);
	settle();
	assert_false(a.told || c.told);
	assert_int_equal(status().state, FLUSH_STALLED);
	kill(pid, SIGCONT);
	assert_answer(&a, PMEM_AGENT_DURABLE);
	assert_answer(&c, PMEM_AGENT_DURABLE);
	assert_true(a.result.epochs[0].epoch == 2);
	assert_true(c.result.epochs[0].epoch == 3);
	settle();
	assert_true(TAILQ_EMPTY(&manager->removed));
}

/* The worker waits until it alone has the descriptor, which the agent had told it before. */
static void test_removed_with_a_descriptor(void **state)
{
	char detail[MOUNT_DETAIL_MAX];
	struct answer_of a = {}, b;
	struct request *r;
	pid_t pid;

	start_agent();
	pid = stop_worker();
	assert_int_equal(manager_flush_fd(manager, open(emulated, O_RDWR | O_CLOEXEC), NULL, MOUNT_SCOPE_AUTO, &me,
					  on_done, &a, &r, detail),
			 0);
	while (status().state != FLUSH_IN_FLIGHT)
		turn();
	replace();
	ask(&b);
	kill(pid, SIGCONT);
	assert_answer(&a, PMEM_AGENT_DURABLE);
	assert_answer(&b, PMEM_AGENT_DURABLE);
	assert_true(b.result.epochs[0].epoch > a.result.epochs[0].epoch);
}

static void test_removed_then_lost(void **state)
{
	struct answer_of a, b;
	pid_t pid;

	start_agent();
	pid = stop_worker();
	begin(&a);
	page->worker.started = 2; /* as if it had come so far */
	replace();
	ask(&b);
	kill(pid, SIGKILL);
	assert_answer(&a, PMEM_AGENT_LOST);
	assert_answer(&b, PMEM_AGENT_LOST);
	assert_true(page->agent.loss == 1);
}

/* A request that waits for another region keeps the old one, but not its worker. */
static void test_removed_idle_but_pinned(void **state)
{
	struct manager_region *old;
	struct answer_of a;

	start_agent();
	ask(&a);
	assert_answer(&a, PMEM_AGENT_DURABLE);
	round_region_pin(emu0());
	old = replace();
	ask(&a);
	assert_answer(&a, PMEM_AGENT_DURABLE);
	assert_false(TAILQ_EMPTY(&manager->removed));
	round_region_unpin(old);
	settle();
	assert_true(TAILQ_EMPTY(&manager->removed));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_epoch_and_rounds_go_on),
		TEST(test_dead_in_flight),
		TEST(test_alive_in_flight),
		TEST(test_alive_after_failure),
		TEST(test_alive_then_confirmed),
		TEST(test_late_failure),
		TEST(test_failure_nobody_was_told),
		TEST(test_outcome_nobody_was_told),
		TEST(test_removed),
		TEST(test_removed_with_a_descriptor),
		TEST(test_removed_then_lost),
		TEST(test_removed_idle_but_pinned),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests_name("adopt", tests, set_up_group, tear_down_group);
}
