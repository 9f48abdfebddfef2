/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test-manager: requests, rounds and losses of one agent, from its start to its stop
 */
#include <poll.h>

#include "selftest/emulated.h"

/* ---- one agent ---- */

static void test_durable(void **state)
{
	uint64_t before = now_usec(CLOCK_REALTIME);
	struct answer_of a, b;

	start_agent();
	ask(&a);
	ask(&b);
	assert_answer(&a, PMEM_AGENT_DURABLE);
	assert_answer(&b, PMEM_AGENT_DURABLE);
	assert_int_equal(a.result.n_epochs, 1);
	assert_true(a.result.epochs[0].epoch == 1);
	assert_true(b.result.epochs[0].epoch == 1);
	assert_true(a.result.durable_usec >= before);
	assert_true(page->worker.durable == 1 && page->agent.epoch == 1 && page->agent.handed == 1);
	assert_false(pmem_agent_page_lost(page));
}

static void test_late_request_waits_for_the_next_round(void **state)
{
	struct answer_of a, b;
	pid_t pid;

	start_agent();
	pid = stop_worker();
	begin(&a);
	ask(&b);
	kill(pid, SIGCONT);
	assert_answer(&a, PMEM_AGENT_DURABLE);
	assert_answer(&b, PMEM_AGENT_DURABLE);
	assert_true(a.result.epochs[0].epoch == 2);
	assert_true(b.result.epochs[0].epoch == 3);
}

static int on_crowd(sd_event_source *source, void *userdata)
{
	unsigned int *n = userdata;

	(*n)++;
	return 0;
}

/* However many there are at the doors, the end of a round is seen before any more of them are. */
static void test_crowd_does_not_make_rounds_longer(void **state)
{
	sd_event_source *crowd[100];
	unsigned int n = 0, before;
	struct pollfd worker = { .events = POLLIN };
	struct answer_of a;
	pid_t pid;

	start_agent();
	pid = stop_worker();
	begin(&a);
	worker.fd = worker_get_fd(emu0()->worker);
	for (size_t i = 0; i < ARRAY_SIZE(crowd); i++) {
		assert_int_equal(sd_event_add_defer(event, &crowd[i], on_crowd, &n), 0);
		assert_int_equal(sd_event_source_set_enabled(crowd[i], SD_EVENT_ON), 0);
	}
	while (n < 2 * ARRAY_SIZE(crowd))
		turn();
	kill(pid, SIGCONT);
	assert_int_equal(poll(&worker, 1, -1), 1);
	before = n;
	while (status().state == FLUSH_IN_FLIGHT)
		turn();
	before = n - before;
	for (size_t i = 0; i < ARRAY_SIZE(crowd); i++)
		sd_event_source_disable_unref(crowd[i]);
	assert_true(before < 10);
	assert_answer(&a, PMEM_AGENT_DURABLE);
}

static void test_cancelled(void **state)
{
	struct answer_of a, b;
	struct request *joined, *queued;
	pid_t pid;

	start_agent();
	pid = stop_worker();
	joined = begin(&a);
	queued = ask(&b);
	request_cancel(joined);
	request_cancel(queued);
	assert_int_equal(status().waiting, 0);
	kill(pid, SIGCONT);
	while (status().state != FLUSH_IDLE)
		turn();
	assert_false(a.told || b.told);
	assert_true(status().epoch == 2);
}

static void test_worker_killed_in_flight(void **state)
{
	struct answer_of a, b;

	start_agent();
	stop_worker();
	begin(&a);
	ask(&b);
	kill((pid_t)page->worker.pid, SIGKILL);
	assert_answer(&a, PMEM_AGENT_LOST);
	assert_answer(&b, PMEM_AGENT_LOST);
	assert_true(pmem_agent_page_lost(page));
	assert_true(page->agent.loss == 1);
	assert_int_equal(status().loss.origin, FLUSH_ORIGIN_WORKER);
	assert_refused(PMEM_AGENT_LOST);
}

static void test_worker_killed_idle(void **state)
{
	struct answer_of a;
	pid_t pid;

	start_agent();
	pid = stop_worker();
	kill(pid, SIGKILL);
	while (emu0()->worker)
		turn();
	ask(&a);
	assert_answer(&a, PMEM_AGENT_DURABLE);
	assert_int_not_equal(page->worker.pid, pid);
}

static void test_replaced_file(void **state)
{
	char new[sizeof(emulated) + 4];
	struct answer_of a;

	start_agent();
	snprintf(new, sizeof(new), "%s.new", emulated);
	assert_int_equal(write_file(new, "y"), 0);
	assert_int_equal(rename(new, emulated), 0);
	ask(&a);
	assert_answer(&a, PMEM_AGENT_UNKNOWN);
	assert_false(pmem_agent_page_lost(page));
}

/* Who could open a thing may flush it; this is not what they did. */
static void test_path_descriptor(void **state)
{
	char detail[MOUNT_DETAIL_MAX];
	struct request *request;
	struct answer_of a = { .told = false };

	start_agent();
	assert_int_equal(manager_flush_fd(manager, open(emulated, O_PATH | O_CLOEXEC), NULL, MOUNT_SCOPE_AUTO, &me,
					  on_done, &a, &request, detail),
			 PMEM_AGENT_REFUSED);
	assert_int_equal(manager_flush_fd(manager, open(emulated, O_RDONLY | O_CLOEXEC), NULL, MOUNT_SCOPE_AUTO, &me,
					  on_done, &a, &request, detail),
			 0);
	assert_answer(&a, PMEM_AGENT_DURABLE);
}

/* ---- who asks ---- */

/* Answered at its deadline, while the round of its goes on, and nothing begins beside that. */
static void test_deadline(void **state)
{
	struct flush_caller hurried = { .uid = 1 };
	struct answer_of a, b = { .told = false };
	char detail[MOUNT_DETAIL_MAX];
	struct request *request;
	pid_t worker;

	start_agent();
	ask(&a);
	assert_answer(&a, PMEM_AGENT_DURABLE);
	worker = (pid_t)page->worker.pid;
	stop_process(worker);
	hurried.deadline_usec = now_usec(CLOCK_MONOTONIC) + 20 * USEC_PER_MSEC;
	ask(&a);
	assert_int_equal(manager_flush_region(manager, emu0(), &hurried, on_done, &b, &request, detail), 0);
	assert_answer(&b, PMEM_AGENT_TIMEOUT);
	assert_true(now_usec(CLOCK_MONOTONIC) >= hurried.deadline_usec);
	assert_int_equal(b.result.error, ETIMEDOUT);
	assert_false(a.told);
	assert_int_equal(status().state, FLUSH_IN_FLIGHT);
	assert_int_equal(status().started, 2);
	assert_int_equal(kill(worker, SIGCONT), 0);
	assert_answer(&a, PMEM_AGENT_DURABLE);
	assert_int_equal(status().epoch, 2);
}

/* One user fills a quarter of the queue, and no more; the others notice nothing. */
static void test_quota(void **state)
{
	static struct answer_of answers[257];
	static const struct flush_caller other = { .uid = 2 };
	struct answer_of a = { .told = false };
	char detail[MOUNT_DETAIL_MAX];
	struct request *request;

	start_agent();
	for (unsigned int i = 0; i < 256; i++)
		ask(&answers[i]);
	assert_refused(PMEM_AGENT_BUSY);
	assert_int_equal(manager_flush_region(manager, emu0(), &other, on_done, &a, &request, detail), 0);
	assert_answer(&a, PMEM_AGENT_DURABLE);
	for (unsigned int i = 0; i < 256; i++)
		assert_answer(&answers[i], PMEM_AGENT_DURABLE);
	assert_int_equal(status().epoch, 1);
	ask(&answers[256]);
	assert_answer(&answers[256], PMEM_AGENT_DURABLE);
}

/* Many users fill no more than seven eighths of it: there is room for root. */
static void test_room_for_root(void **state)
{
	static struct answer_of answers[1024];
	static const struct flush_caller root = { .uid = 0 };
	unsigned int n = 0, n_refused = 0;
	char detail[MOUNT_DETAIL_MAX];
	struct request *request;
	struct answer_of a = { .told = false };

	start_agent();
	for (unsigned int i = 0; i < 4 * 256; i++) {
		const struct flush_caller one = { .uid = 1000 + i % 4 };

		answers[n].told = false;
		if (manager_flush_region(manager, emu0(), &one, on_done, &answers[n], &request, detail) == 0)
			n++;
		else
			n_refused++;
	}
	assert_int_equal(manager_flush_region(manager, emu0(), &root, on_done, &a, &request, detail), 0);
	assert_int_equal(n, 896);
	assert_int_equal(n_refused, 128);
	assert_answer(&a, PMEM_AGENT_DURABLE);
	for (unsigned int i = 0; i < n; i++)
		assert_answer(&answers[i], PMEM_AGENT_DURABLE);
}

/* Who asks is told later: by then the region may be gone, or lost. */
static void test_admitted_later(void **state)
{
	char detail[MOUNT_DETAIL_MAX];
	struct answer_of a = { .told = false }, b = { .told = false };
	struct request *first, *second;

	start_agent();
	assert_int_equal(manager_flush_region(manager, emu0(), NULL, on_done, &a, &first, detail), 0);
	assert_int_equal(manager_flush_region(manager, emu0(), NULL, on_done, &b, &second, detail), 0);
	assert_int_equal(status().waiting, 0);
	assert_int_equal(request_admit(first, &me, detail), 0);
	assert_answer(&a, PMEM_AGENT_DURABLE);
	round_lose(emu0(), EIO, FLUSH_ORIGIN_WITNESS);
	assert_int_equal(request_admit(second, &me, detail), PMEM_AGENT_LOST);
	assert_false(b.told);
	assert_int_equal(manager_flush_region(manager, emu0(), NULL, on_done, &b, &second, detail), 0);
	request_cancel(second);
}

/* ---- several regions ---- */

static struct manager_region *emu1(void)
{
	return manager_find_region(manager, "emu1");
}

/* As of a filesystem over both. */
static void ask_both(struct answer_of *a)
{
	struct manager_region *regions[] = { emu0(), emu1() };
	struct request *r = calloc(1, sizeof(*r));
	char detail[MOUNT_DETAIL_MAX] = "";

	assert_non_null(r);
	*a = (struct answer_of){};
	r->manager = manager;
	r->fd = -1;
	r->target.flush.scope = FLUSH_REGION;
	r->done = on_done;
	r->userdata = a;
	r->n_parts = ARRAY_SIZE(regions);
	r->pinned = true;
	for (unsigned int i = 0; i < ARRAY_SIZE(regions); i++) {
		r->parts[i] = (struct part){ .request = r, .region = regions[i] };
		round_region_pin(regions[i]);
	}
	assert_int_equal(request_admit(r, &me, detail), 0);
}

static int set_up_both(void **state)
{
	char text[256];

	snprintf(text, sizeof(text), "[Agent]\n[Region emu0]\nEmulate=%s\n[Region emu1]\nEmulate=%s\n", emulated,
		 conf_path);
	return set_up(state) < 0 ? -1 : write_file(conf_path, text);
}

static int tear_down_both(void **state)
{
	int r = tear_down(state);

	remove_kept();
	return r < 0 ? -1 : write_conf();
}

/* Both have made a round; emu1 makes the next when its worker is let go on. */
static pid_t start_both(void)
{
	struct answer_of a;
	pid_t worker;

	start_agent();
	wait_for_state();
	ask_both(&a);
	assert_answer(&a, PMEM_AGENT_DURABLE);
	assert_int_equal(a.result.n_epochs, 2);
	worker = (pid_t)emu1()->page->worker.pid;
	stop_process(worker);
	return worker;
}

/* Lost, and acknowledged if `acknowledged`, after emu0 has confirmed and before emu1 has. */
static void lose_first_of_both(bool acknowledged, const char *words)
{
	pid_t worker = start_both();
	char detail[MOUNT_DETAIL_MAX];
	struct answer_of a;

	ask_both(&a);
	while (status().epoch < 2)
		turn();
	settle();
	assert_false(a.told);
	round_lose(emu0(), ENXIO, FLUSH_ORIGIN_WITNESS);
	if (acknowledged)
		assert_int_equal(manager_acknowledge(manager, emu0(), 1, detail), 0);
	assert_int_equal(kill(worker, SIGCONT), 0);
	assert_answer(&a, PMEM_AGENT_LOST);
	assert_int_equal(a.result.error, acknowledged ? EIO : ENXIO);
	assert_non_null(strstr(a.result.detail, words));
}

static void test_loss_of_one_while_the_other_is_awaited(void **state)
{
	lose_first_of_both(false, "emu0 has lost stores: loss 1");
}

/* Who acknowledged it can't have known of a caller that has not been answered. */
static void test_acknowledged_while_the_other_is_awaited(void **state)
{
	struct answer_of a;

	lose_first_of_both(true, "loss 1, acknowledged meanwhile");
	ask_both(&a);
	assert_answer(&a, PMEM_AGENT_DURABLE);
}

/* What the host says of emu0 after that has confirmed, and before emu1 has; and then, that all is well. */
static void test_refused_while_the_other_is_awaited(void **state)
{
	const struct region_backing memory = { .type = REGION_BACKING_RAM },
				    file = { .type = REGION_BACKING_FILE, .share = REGION_FACT_YES };
	pid_t worker = start_both();
	struct answer_of a;

	ask_both(&a);
	while (status().epoch < 2)
		turn();
	settle();
	assert_false(a.told);
	assert_non_null(manager_set_backing(manager, emu0(), &memory));
	assert_non_null(manager_set_backing(manager, emu0(), &file));
	assert_int_equal(kill(worker, SIGCONT), 0);
	assert_answer(&a, PMEM_AGENT_UNKNOWN);
	ask_both(&a);
	assert_answer(&a, PMEM_AGENT_DURABLE);
}

/* Of one call over both, whose agent has gone: the next one can't know of which region it was. */
static void test_adopted_failure_of_both(void **state)
{
	struct pmem_agent_page *other;
	struct flush_status lost;

	for (unsigned int peers = 0; peers < 2; peers++) {
		assert_int_equal(kill(start_both(), SIGCONT), 0);
		assert_int_equal(worker_open_page(manager->runtime_dir, manager_region_get(emu1())->identity,
						  manager->boot_id, &other),
				 0);
		end_agent();
		other->worker.error = EIO;
		other->worker.peers = peers;
		other->worker.failed = other->worker.started = other->worker.done = other->worker.done + 1;
		start_agent();
		manager_region_get_status(emu1(), &lost);
		assert_int_equal(lost.loss.number, 1 + peers);
		assert_int_equal(status().loss.number, peers);
		assert_int_equal(pmem_agent_page_lost(page), peers ? PMEM_AGENT_LOST : 0);
		if (!peers)
			assert_int_equal(manager_acknowledge(manager, emu1(), 1, (char[MOUNT_DETAIL_MAX]){ "" }), 0);
		other = worker_close_page(other);
		end_agent();
	}
	start_agent();
}

/* ---- the end ---- */

static void on_stopped(bool clean, void *userdata)
{
	*(int *)userdata = clean;
}

static int stop_agent(void)
{
	int clean = -1;

	manager_stop(manager, on_stopped, &clean);
	assert_int_equal(clean, -1);
	while (clean < 0)
		turn();
	return clean;
}

static void test_stop(void **state)
{
	start_agent();
	assert_int_equal(stop_agent(), true);
	assert_true(page->worker.durable == 1);
}

static void test_stop_while_the_host_hangs(void **state)
{
	pid_t pid;

	start_agent();
	pid = stop_worker();
	assert_int_equal(stop_agent(), false);
	kill(pid, SIGCONT);
}

static void test_stop_when_lost(void **state)
{
	start_agent();
	round_lose(emu0(), EIO, FLUSH_ORIGIN_WITNESS);
	assert_int_equal(stop_agent(), false);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_durable),
		TEST(test_late_request_waits_for_the_next_round),
		TEST(test_crowd_does_not_make_rounds_longer),
		TEST(test_cancelled),
		TEST(test_worker_killed_in_flight),
		TEST(test_worker_killed_idle),
		TEST(test_replaced_file),
		TEST(test_path_descriptor),
		TEST(test_deadline),
		TEST(test_quota),
		TEST(test_room_for_root),
		TEST(test_admitted_later),
		cmocka_unit_test_setup_teardown(test_loss_of_one_while_the_other_is_awaited, set_up_both,
						tear_down_both),
		cmocka_unit_test_setup_teardown(test_acknowledged_while_the_other_is_awaited, set_up_both,
						tear_down_both),
		cmocka_unit_test_setup_teardown(test_refused_while_the_other_is_awaited, set_up_both, tear_down_both),
		cmocka_unit_test_setup_teardown(test_adopted_failure_of_both, set_up_both, tear_down_both),
		TEST(test_stop),
		TEST(test_stop_while_the_host_hangs),
		TEST(test_stop_when_lost),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests_name("manager", tests, set_up_group, tear_down_group);
}
