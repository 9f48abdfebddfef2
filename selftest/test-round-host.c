/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test-round-host: what of a round the host does, what it says of a region, and when what was confirmed is void
 */
#include "selftest/emulated.h"

/* The host, as its door would be. */
static struct {
	unsigned int n_asked;
	uint64_t number;
	bool confirm, full;
} host;

static int on_ask(struct manager_region *mr, uint64_t number, bool confirm, void *userdata)
{
	if (host.full)
		return -ENOBUFS;
	assert_true(number > host.number);
	host.n_asked++;
	host.number = number;
	host.confirm = confirm;
	return 0;
}

static void say(enum region_backing_type type, enum region_fact share, bool served)
{
	const struct region_backing backing = { .type = type, .share = share, .served = served };

	assert_non_null(manager_set_backing(manager, emu0(), &backing));
}

static void serve(void)
{
	manager_host_offers(manager, true, true);
	say(REGION_BACKING_FILE, REGION_FACT_YES, true);
}

static void start(void)
{
	start_agent();
	memset(&host, 0, sizeof(host));
	manager_set_host(manager, &(struct manager_host){ .ask = on_ask });
}

static void start_confirming(void)
{
	start();
	manager->conf->confirm = CONF_CONFIRM_HOST;
}

/* As if it were device-dax. */
static void start_by_host(void)
{
	start();
	emu0()->region->method = REGION_METHOD_HOST;
}

static void wait_for_ask(unsigned int n)
{
	while (host.n_asked < n)
		turn();
	assert_int_equal(host.n_asked, n);
}

/* A host serves, and has been asked for the first flush. */
static void serve_and_ask(struct answer_of *a)
{
	serve();
	ask(a);
	wait_for_ask(1);
}

/* ---- a confirmation ---- */

static void test_confirmed(void **state)
{
	struct answer_of a;

	start_confirming();
	serve_and_ask(&a);
	assert_true(host.confirm);
	settle();
	assert_false(a.told);
	assert_false(manager_host_flushed(emu0(), host.number + 1, 0, ""));
	assert_false(manager_host_flushed(emu0(), 0, 0, ""));
	settle();
	assert_false(a.told);
	assert_true(manager_host_flushed(emu0(), host.number, 0, ""));
	assert_answer(&a, PMEM_AGENT_DURABLE);
	assert_string_equal(a.result.basis, "host-confirmed");
	assert_int_equal(stats_count(&emu0()->stats.host_usec), 1);
}

static void test_nobody_confirms(void **state)
{
	struct answer_of a;

	start_confirming();
	ask(&a);
	assert_answer(&a, PMEM_AGENT_UNKNOWN);
	/* One that only offers, and one that serves and doesn't offer. */
	manager_host_offers(manager, true, true);
	ask(&a);
	assert_answer(&a, PMEM_AGENT_UNKNOWN);
	manager_host_offers(manager, true, false);
	say(REGION_BACKING_FILE, REGION_FACT_YES, true);
	ask(&a);
	assert_answer(&a, PMEM_AGENT_UNKNOWN);
	assert_int_equal(host.n_asked, 0);
	assert_int_equal(status().epoch, 0);
	assert_false(pmem_agent_page_lost(page));
}

static void test_no_answer(void **state)
{
	struct answer_of a;

	start_confirming();
	manager->conf->stall_usec = 100 * USEC_PER_MSEC;
	serve_and_ask(&a);
	assert_answer(&a, PMEM_AGENT_UNKNOWN);
	/* It comes too late. */
	assert_false(manager_host_flushed(emu0(), host.number, 0, ""));
	assert_int_equal(status().epoch, 0);
	assert_false(manager_host_flushed(emu0(), host.number, EIO, ""));
	assert_int_equal(status().loss.origin, FLUSH_ORIGIN_HOST);
	assert_refused(PMEM_AGENT_LOST);
}

static void test_error(void **state)
{
	struct answer_of a;

	start_confirming();
	serve_and_ask(&a);
	assert_true(manager_host_flushed(emu0(), host.number, EIO, "disk"));
	assert_answer(&a, PMEM_AGENT_LOST);
	assert_int_equal(status().loss.origin, FLUSH_ORIGIN_HOST);
	assert_int_equal(status().epoch, 0);
	assert_int_equal(pmem_agent_page_lost(page), PMEM_AGENT_LOST);
}

static void test_not_made(void **state)
{
	struct answer_of a;

	start_confirming();
	serve_and_ask(&a);
	assert_true(manager_host_flushed(emu0(), host.number, EOPNOTSUPP, ""));
	assert_answer(&a, PMEM_AGENT_UNKNOWN);
	assert_false(pmem_agent_page_lost(page));
}

/* The question finds no room, and is asked when there is. */
static void test_full(void **state)
{
	struct answer_of a;

	start_confirming();
	serve();
	host.full = true;
	ask(&a);
	while (!emu0()->host.waits)
		turn();
	settle();
	host.full = false;
	manager_host_ask(manager);
	assert_int_equal(host.n_asked, 1);
	assert_true(manager_host_flushed(emu0(), host.number, 0, ""));
	assert_answer(&a, PMEM_AGENT_DURABLE);
}

/* What the one before was asked for is flushed once more, and asked of the next. */
static void test_next_host(void **state)
{
	struct answer_of a;
	uint64_t first;

	start_confirming();
	serve_and_ask(&a);
	first = host.number;
	manager_forget_host(manager);
	assert_int_equal(manager_new_instance(manager), 0);
	settle();
	assert_false(a.told);
	serve();
	wait_for_ask(2);
	assert_false(manager_host_flushed(emu0(), first, 0, ""));
	settle();
	assert_false(a.told);
	assert_true(manager_host_flushed(emu0(), host.number, 0, ""));
	assert_answer(&a, PMEM_AGENT_DURABLE);
	assert_true(sd_id128_equal(a.result.instance, manager_get_instance(manager)));
}

/* The worker has no part in it any more: that it dies is no matter. */
static void test_worker_dies_meanwhile(void **state)
{
	struct answer_of a;

	start_confirming();
	serve_and_ask(&a);
	kill((pid_t)page->worker.pid, SIGKILL);
	while (emu0()->worker)
		turn();
	settle();
	assert_false(a.told);
	assert_true(manager_host_flushed(emu0(), host.number, 0, ""));
	assert_answer(&a, PMEM_AGENT_DURABLE);
}

/* ---- the host makes the flush ---- */

static void test_by_host(void **state)
{
	struct answer_of a;

	start_by_host();
	assert_refused(PMEM_AGENT_IMPOSSIBLE);
	serve_and_ask(&a);
	assert_false(host.confirm);
	assert_true(page->worker.started == 1 && page->worker.done == 0);
	assert_true(manager_host_flushed(emu0(), host.number, 0, ""));
	assert_answer(&a, PMEM_AGENT_DURABLE);
	assert_string_equal(a.result.basis, "host-confirmed");
	assert_true(page->worker.done == 1 && page->worker.durable == 1 && page->agent.epoch == 1);
	manager_forget_host(manager);
	assert_refused(PMEM_AGENT_IMPOSSIBLE);
}

static void test_by_host_error(void **state)
{
	struct answer_of a;

	start_by_host();
	serve_and_ask(&a);
	assert_true(manager_host_flushed(emu0(), host.number, EIO, ""));
	assert_answer(&a, PMEM_AGENT_LOST);
	assert_int_equal(pmem_agent_page_lost(page), PMEM_AGENT_LOST);
	assert_true(page->worker.done == 1 && page->worker.durable == 0);
}

/* It is stalled as long as the host is there, and unknown when it leaves after that. */
static void test_by_host_stalled(void **state)
{
	struct answer_of a;

	start_by_host();
	manager->conf->stall_usec = 100 * USEC_PER_MSEC;
	serve_and_ask(&a);
	while (status().state != FLUSH_STALLED)
		turn();
	settle();
	assert_false(a.told);
	manager_forget_host(manager);
	assert_answer(&a, PMEM_AGENT_UNKNOWN);
	assert_false(pmem_agent_page_lost(page));
	assert_true(page->worker.done == 1 && page->worker.durable == 0);
}

static void test_by_host_left(void **state)
{
	struct answer_of a;

	start_by_host();
	manager->conf->stall_usec = 100 * USEC_PER_MSEC;
	serve_and_ask(&a);
	manager_forget_host(manager);
	settle();
	assert_false(a.told);
	assert_answer(&a, PMEM_AGENT_UNKNOWN);
}

/* Nobody will ever know what came of it. */
static void test_agent_ends_meanwhile(void **state)
{
	struct request *request;
	struct answer_of a;

	start_by_host();
	serve();
	request = ask(&a);
	wait_for_ask(1);
	request_cancel(request);
	end_agent();
	start();
	assert_refused(PMEM_AGENT_LOST);
	assert_int_equal(status().loss.origin, FLUSH_ORIGIN_WORKER);
}

/* ---- instances ---- */

/* A round that the worker has ended well, of which the agent has not heard yet. */
static void flush_unheard(struct answer_of *a)
{
	pid_t pid = stop_worker();
	uint64_t before = page->worker.done;

	begin(a);
	kill(pid, SIGCONT);
	while (__atomic_load_n(&page->worker.done, __ATOMIC_ACQUIRE) == before)
		sched_yield();
}

static void replace_file(void)
{
	char new[sizeof(emulated) + 4];

	snprintf(new, sizeof(new), "%s.new", emulated);
	assert_int_equal(write_file(new, "y"), 0);
	assert_int_equal(rename(new, emulated), 0);
}

static void test_void(void **state)
{
	sd_id128_t before;
	struct answer_of a;

	start();
	ask(&a);
	assert_answer(&a, PMEM_AGENT_DURABLE);
	assert_true(status().epoch_usec > 0);
	say(REGION_BACKING_FILE, REGION_FACT_YES, true);
	assert_int_equal(manager_region_get(emu0())->attestation, REGION_ATTESTED);
	before = manager_get_instance(manager);
	assert_int_equal(manager_new_instance(manager), 0);
	assert_false(sd_id128_equal(before, manager_get_instance(manager)));
	assert_memory_equal(page->agent.instance, manager_get_instance(manager).bytes, 16);
	assert_true(status().epoch == 1 && status().epoch_usec == 0);
	assert_int_equal(manager_region_get(emu0())->attestation, REGION_UNATTESTED);
	ask(&a);
	assert_answer(&a, PMEM_AGENT_DURABLE);
	assert_true(status().epoch == 2 && status().epoch_usec > 0);
}

/* It is made once more: what it finds then is what counts. */
/* The host has confirmed, and begins a new instance before anyone is told. */
static void test_void_before_it_is_told(void **state)
{
	struct answer_of a;

	start_confirming();
	serve_and_ask(&a);
	assert_true(manager_host_flushed(emu0(), host.number, 0, ""));
	assert_false(a.told);
	assert_int_equal(manager_new_instance(manager), 0);
	assert_answer(&a, PMEM_AGENT_UNKNOWN);
	assert_true(a.result.detail[0]);
}

static void test_made_again(void **state)
{
	struct answer_of a;

	start();
	flush_unheard(&a);
	replace_file();
	assert_int_equal(manager_new_instance(manager), 0);
	assert_answer(&a, PMEM_AGENT_UNKNOWN);
	assert_int_equal(status().epoch, 1);
	assert_false(pmem_agent_page_lost(page));
	end_agent();

	start();
	flush_unheard(&a);
	assert_int_equal(manager_new_instance(manager), 0);
	assert_answer(&a, PMEM_AGENT_DURABLE);
	assert_true(sd_id128_equal(a.result.instance, manager_get_instance(manager)));
}

/* Without another instance nobody looks. */
static void test_not_made_again(void **state)
{
	struct answer_of a;

	start();
	flush_unheard(&a);
	replace_file();
	assert_answer(&a, PMEM_AGENT_DURABLE);
}

static void test_cannot_be_made_again(void **state)
{
	struct answer_of a;

	start();
	flush_unheard(&a);
	kill((pid_t)page->worker.pid, SIGKILL);
	while (worker_find(page) != -ESRCH)
		sched_yield();
	assert_int_equal(manager_new_instance(manager), 0);
	assert_answer(&a, PMEM_AGENT_UNKNOWN);
	assert_false(pmem_agent_page_lost(page));
}

/* What the page says is of the flush that was to be made again. */
static void test_worker_dies_making_it_again(void **state)
{
	struct answer_of a;
	pid_t pid;

	start();
	flush_unheard(&a);
	pid = (pid_t)page->worker.pid;
	stop_process(pid);
	assert_int_equal(manager_new_instance(manager), 0);
	while (!round_host_is_remaking(emu0()))
		turn();
	kill(pid, SIGKILL);
	assert_answer(&a, PMEM_AGENT_UNKNOWN);
}

/* ---- what the host says ---- */

/* Who comes after the agent that was told of it has not been told otherwise. */
static void test_a_refusal_outlives_the_agent(void **state)
{
	struct answer_of a;

	start();
	ask(&a);
	assert_answer(&a, PMEM_AGENT_DURABLE);
	say(REGION_BACKING_FILE, REGION_FACT_NO, true);
	assert_refused(PMEM_AGENT_IMPOSSIBLE);
	end_agent();

	start();
	assert_int_equal(manager_region_get(emu0())->attestation, REGION_REFUSED);
	assert_refused(PMEM_AGENT_IMPOSSIBLE);
	say(REGION_BACKING_FILE, REGION_FACT_YES, true);
	end_agent();

	start();
	ask(&a);
	assert_answer(&a, PMEM_AGENT_DURABLE);
}

/* An error is not taken from a host by who can't count it. */
static void test_a_loss_of_what_cannot_be_flushed(void **state)
{
	start();
	assert_false(manager_host_lost_nowhere(emu0(), EIO));
	say(REGION_BACKING_RAM, REGION_FACT_YES, true);
	assert_true(manager_host_lost_nowhere(emu0(), EIO));
	assert_false(manager_host_lost_nowhere(emu0(), EOPNOTSUPP));
	assert_false(manager_host_lost_nowhere(emu0(), 0));
	say(REGION_BACKING_FILE, REGION_FACT_YES, true);
}

static void test_refused_in_flight(void **state)
{
	struct answer_of a;
	pid_t pid;

	start();
	pid = stop_worker();
	begin(&a);
	say(REGION_BACKING_RAM, REGION_FACT_YES, true);
	assert_refused(PMEM_AGENT_IMPOSSIBLE);
	kill(pid, SIGCONT);
	assert_answer(&a, PMEM_AGENT_UNKNOWN);
	assert_int_equal(manager_new_instance(manager), 0);
	assert_refused(PMEM_AGENT_IMPOSSIBLE);
	say(REGION_BACKING_FILE, REGION_FACT_YES, false);
	ask(&a);
	assert_answer(&a, PMEM_AGENT_DURABLE);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		TEST(test_confirmed),
		TEST(test_nobody_confirms),
		TEST(test_no_answer),
		TEST(test_error),
		TEST(test_not_made),
		TEST(test_full),
		TEST(test_next_host),
		TEST(test_worker_dies_meanwhile),
		TEST(test_by_host),
		TEST(test_by_host_error),
		TEST(test_by_host_stalled),
		TEST(test_by_host_left),
		TEST(test_agent_ends_meanwhile),
		TEST(test_void),
		TEST(test_void_before_it_is_told),
		TEST(test_made_again),
		TEST(test_not_made_again),
		TEST(test_cannot_be_made_again),
		TEST(test_worker_dies_making_it_again),
		TEST(test_a_refusal_outlives_the_agent),
		TEST(test_a_loss_of_what_cannot_be_flushed),
		TEST(test_refused_in_flight),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, set_up_group, tear_down_group);
}
