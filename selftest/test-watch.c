/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test-watch: what the witness says before an answer, with a FIFO for its trace_pipe
 */
#include "selftest/watched.h"

#define OVERRUN   "CPU:0 [LOST 3 EVENTS]\n"
#define UNRELATED " a-1 [000] 1.0: block_bio_complete: 1,0 W () 0 + 8 [-5]\n"

static unsigned int n_taken, n_unmarked;

int __real_witness_next(struct witness *w, struct witness_entry *ret);
int __wrap_witness_next(struct witness *w, struct witness_entry *ret);

/* The agent could be killed right after it: the page must say before that nobody can tell. */
int __wrap_witness_next(struct witness *w, struct witness_entry *ret)
{
	n_taken++;
	n_unmarked += pmem_agent_page_lost(page) == 0;
	return __real_witness_next(w, ret);
}

int __real_witness_open(const char *instance, struct witness **ret);
int __wrap_witness_open(const char *instance, struct witness **ret);

/* Not the one of this machine. */
int __wrap_witness_open(const char *instance, struct witness **ret)
{
	char path[128];

	snprintf(path, sizeof(path), "%s/instance", directory);
	return __real_witness_open(path, ret);
}

static void test_nothing(void **state)
{
	struct answer_of a;

	start_watched();
	ask(&a);
	assert_answer(&a, PMEM_AGENT_DURABLE);
	/* It watches the disks of regions, not the one that the file is on. */
	assert_string_equal(manager_get_basis(manager), "watched");
	assert_string_equal(a.result.basis, "own-flush");
}

/* However many other disks fail, nobody scans for regions because of it. */
static void test_unrelated(void **state)
{
	struct answer_of a;

	start_watched();
	n_taken = n_unmarked = 0;
	ask(&a);
	assert_answer(&a, PMEM_AGENT_DURABLE);
	assert_int_equal(n_taken, 0);
	for (unsigned int i = 0; i < 100; i++)
		say(UNRELATED);
	ask(&a);
	assert_answer(&a, PMEM_AGENT_DURABLE);
	assert_true(n_taken > 0);
	assert_int_equal(n_unmarked, 0);
	assert_int_equal(pmem_agent_page_lost(page), 0);
}

static void test_overrun_while_in_flight(void **state)
{
	struct answer_of a;
	pid_t pid;

	start_watched();
	pid = stop_worker();
	begin(&a);
	say(UNRELATED OVERRUN OVERRUN);
	kill(pid, SIGCONT);
	assert_answer(&a, PMEM_AGENT_LOST);
	assert_int_equal(page->agent.loss_origin, FLUSH_ORIGIN_OVERRUN);
	assert_true(page->agent.loss == 1);
}

/* The round in flight of a region that was removed is not confirmed either. */
static void test_overrun_after_removal(void **state)
{
	struct manager_region *mr;
	struct answer_of a;
	pid_t pid;

	start_watched();
	pid = stop_worker();
	begin(&a);
	mr = emu0();
	TAILQ_REMOVE(&manager->regions, mr, entry);
	round_region_remove(mr);
	say(OVERRUN);
	kill(pid, SIGCONT);
	assert_answer(&a, PMEM_AGENT_LOST);
}

/* An agent that comes to nothing as it starts takes nothing with it. */
static void test_left_to_who_serves(void **state)
{
	make_instance();
	say(OVERRUN);
	start_agent();
	settle();
	end_agent();
	assert_int_equal(pmem_agent_page_lost(page), 0);
	start_agent();
	assert_string_equal(manager_get_basis(manager), "own-flush");
	manager_watch(manager);
	assert_string_equal(manager_get_basis(manager), "watched");
	assert_int_equal(pmem_agent_page_lost(page), PMEM_AGENT_LOST);
	assert_int_equal(page->agent.loss_origin, FLUSH_ORIGIN_OVERRUN);
}

/* What was read is nowhere but in the agent that read it. */
static void test_died_reading(void **state)
{
	start_agent();
	settle();
	end_agent();
	assert_int_equal(pmem_agent_page_lost(page), 0);
	page->agent.reading = 1;
	assert_int_equal(pmem_agent_page_lost(page), PMEM_AGENT_UNKNOWN);
	start_watched();
	assert_int_equal(pmem_agent_page_lost(page), PMEM_AGENT_LOST);
	assert_refused(PMEM_AGENT_LOST);
	assert_true(page->agent.loss == 1 && page->agent.reading == 0);
	assert_int_equal(page->agent.loss_origin, FLUSH_ORIGIN_OVERRUN);
	end_agent();
	start_agent();
	assert_refused(PMEM_AGENT_LOST);
	assert_true(page->agent.loss == 1);
}

static int report(uid_t uid)
{
	const struct flush_caller caller = { .uid = uid };
	char detail[MOUNT_DETAIL_MAX];

	return manager_report_fd(manager, open(emulated, O_RDONLY | O_CLOEXEC), NULL, &caller, detail);
}

/* Where it watches the region, nobody but root can say that something was lost; where it doesn't, anyone. */
static void test_reports(void **state)
{
	char detail[MOUNT_DETAIL_MAX];
	struct answer_of a;

	start_watched();
	ask(&a);
	assert_answer(&a, PMEM_AGENT_DURABLE);
	emu0()->region->kind = REGION_KIND_VIRTIO_PMEM;
	assert_int_equal(report(1000), 0);
	assert_int_equal(pmem_agent_page_lost(page), 0);
	assert_int_equal(report(0), 0);
	assert_int_equal(pmem_agent_page_lost(page), PMEM_AGENT_LOST);
	assert_int_equal(page->agent.loss_origin, FLUSH_ORIGIN_CALLER);
	/* One is enough. */
	assert_int_equal(report(0), 0);
	assert_true(page->agent.loss == 1);
	assert_int_equal(manager_acknowledge(manager, emu0(), 1, detail), 0);
	emu0()->region->kind = REGION_KIND_EMULATED;
	assert_int_equal(report(1000), 0);
	assert_true(page->agent.loss == 2 && pmem_agent_page_lost(page) == PMEM_AGENT_LOST);
}

#define WATCHED(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down_watched)

int main(void)
{
	const struct CMUnitTest tests[] = {
		WATCHED(test_nothing),
		WATCHED(test_unrelated),
		WATCHED(test_overrun_while_in_flight),
		WATCHED(test_overrun_after_removal),
		WATCHED(test_left_to_who_serves),
		WATCHED(test_died_reading),
		WATCHED(test_reports),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests_name("watch", tests, set_up_group, tear_down_group);
}
