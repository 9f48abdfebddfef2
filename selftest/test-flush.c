/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test-flush: the flush engine: who shares a round, who waits, and for how long
 */
#include "selftest/engine.h"

static int a, b, c, d, e;

static void test_one_request(void **state)
{
	struct flush *f = *state;
	struct flush_status status;

	assert_nothing(f);
	assert_int_equal(arrive(f, &region, &a), 0);
	assert_start(f, 10, 1, &a);
	assert_nothing(f);
	done(f, 1, PMEM_AGENT_DURABLE, 0);
	assert_answer(f, &a, PMEM_AGENT_DURABLE, 0, 10);
	assert_nothing(f);

	flush_get_status(f, &status);
	assert_int_equal(status.epoch, 1);
	assert_int_equal(status.epoch_usec, 10);
	assert_int_equal(status.waiting, 0);
	assert_string_equal(flush_status_to_string(&status), "idle");
}

/* The rule: who comes after the start waits for the next round. */
static void test_late_request_waits(void **state)
{
	struct flush *f = *state;

	arrive(f, &region, &a);
	assert_start(f, 10, 1, &a);
	arrive(f, &region, &b);
	assert_nothing(f);
	done(f, 1, PMEM_AGENT_DURABLE, 0);
	assert_answer(f, &a, PMEM_AGENT_DURABLE, 0, 10);
	assert_start(f, 100, 2, &b);
	done(f, 2, PMEM_AGENT_DURABLE, 0);
	assert_answer(f, &b, PMEM_AGENT_DURABLE, 0, 100);
}

static void test_region_requests_share_a_round(void **state)
{
	struct flush *f = *state;

	arrive(f, &region, &a);
	arrive(f, &region, &b);
	assert_start(f, 10, 1, &a);
	done(f, 1, PMEM_AGENT_DURABLE, 0);
	assert_answer(f, &a, PMEM_AGENT_DURABLE, 0, 10);
	assert_answer(f, &b, PMEM_AGENT_DURABLE, 0, 10);
	assert_nothing(f);
}

/* One call for the file, and for each other descriptor its own error. */
static void test_requests_for_a_file_share_a_call(void **state)
{
	struct flush *f = *state;
	struct flush_outcome outcome;

	arrive(f, &data, &a);
	arrive(f, &region, &b);
	arrive(f, &file, &c);
	assert_start(f, 10, 1, &a);
	assert_int_equal(flush_get_plan(f)->n_calls, 2);
	assert_call(f, 0, FLUSH_FILE, &a, 2);
	assert_call(f, 1, FLUSH_REGION, &b, 1);
	assert_false(flush_get_plan(f)->members[0].fetch);
	assert_true(flush_get_plan(f)->members[2].fetch);

	flush_outcome_set(&outcome, PMEM_AGENT_DURABLE, 0);
	outcome.descriptors[1] = (struct flush_outcome_of){ PMEM_AGENT_FAILED, ENOSPC };
	flush_done(f, 1, &outcome, FLUSH_ORIGIN_ROUND, at(50));
	assert_answer(f, &a, PMEM_AGENT_DURABLE, 0, 10);
	assert_answer(f, &b, PMEM_AGENT_DURABLE, 0, 10);
	assert_answer(f, &c, PMEM_AGENT_FAILED, ENOSPC, 0);
	assert_nothing(f);
}

static void test_syncfs_from_four_files_on(void **state)
{
	static const struct flush_target files[] = {
		{ FLUSH_FILE, 7, 11, true },
		{ FLUSH_FILE_DATA, 7, 12, true },
		{ FLUSH_FILE_DATA, 7, 13, true },
		{ FLUSH_FILE, 7, 14, true },
	};
	struct flush *f = *state;

	arrive(f, &files[0], &a);
	arrive(f, &files[1], &b);
	arrive(f, &files[2], &c);
	assert_start(f, 10, 1, &a);
	assert_int_equal(flush_get_plan(f)->n_calls, 3);
	done(f, 1, PMEM_AGENT_UNKNOWN, 0);
	for (unsigned int i = 0; i < 3; i++)
		assert_true(flush_next(f, at(60), &(struct flush_action){}));

	arrive(f, &files[0], &a);
	arrive(f, &files[1], &b);
	arrive(f, &files[2], &c);
	arrive(f, &files[3], &d);
	assert_start(f, 70, 2, &a);
	assert_int_equal(flush_get_plan(f)->n_calls, 1);
	assert_call(f, 0, FLUSH_FILESYSTEM, &a, 4);
	for (unsigned int i = 0; i < 4; i++)
		assert_true(flush_get_plan(f)->members[i].fetch); /* a syncfs reports no file's error */
}

/* It serves the region and the files; another's descriptor has an error of its own, which only syncfs fetches. */
static void test_filesystem_serves(void **state)
{
	struct flush *f = *state;

	arrive(f, &file, &a);
	arrive(f, &region, &b);
	arrive(f, &filesystem, &c);
	arrive(f, &filesystem, &d);
	assert_start(f, 10, 1, &a);
	assert_int_equal(flush_get_plan(f)->n_calls, 3);
	assert_call(f, 0, FLUSH_FILESYSTEM, &d, 1);
	assert_call(f, 1, FLUSH_FILESYSTEM, &c, 2);
	assert_call(f, 2, FLUSH_REGION, &b, 1);
	assert_int_equal(flush_get_plan(f)->calls[2].served_by, 0);
}

/* Whoever floods the region leaves room for others. */
static void test_calls_of_a_uid_are_bounded(void **state)
{
	static const struct flush_caller you = { .uid = UID + 1 };
	_cleanup_(flush_freep) struct flush *f = flush_new(8, 8, 0, 0);
	int owners[6];

	for (unsigned int i = 0; i < 6; i++)
		assert_int_equal(arrive(f, &filesystem, &owners[i]), 0);
	assert_int_equal(flush_arrive(f, &filesystem, &you, &a), 0);
	assert_int_equal(arrive(f, &region, &b), 0); /* needs no call of its own */
	assert_start(f, 10, 1, &owners[0]);
	assert_int_equal(flush_get_plan(f)->n_members, 6);
	assert_ptr_equal(flush_get_plan(f)->members[4].owner, &a);
	assert_ptr_equal(flush_get_plan(f)->members[5].owner, &b);
	done(f, 1, PMEM_AGENT_UNKNOWN, 0);
	for (unsigned int i = 0; i < 6; i++)
		assert_true(flush_next(f, at(60), &(struct flush_action){}));
	assert_start(f, 70, 2, &owners[4]);
}

static void test_descriptors_are_bounded(void **state)
{
	_cleanup_(flush_freep) struct flush *f = flush_new(300, 300, 0, 0);
	static int owners[FLUSH_ROUND_MAX_DESCRIPTORS + 1];

	for (unsigned int i = 0; i < ARRAY_SIZE(owners); i++)
		assert_int_equal(arrive(f, &file, &owners[i]), 0);
	assert_int_equal(arrive(f, &region, &a), 0);
	assert_start(f, 10, 1, &owners[0]);
	assert_int_equal(flush_get_plan(f)->n_descriptors, FLUSH_ROUND_MAX_DESCRIPTORS);
	assert_int_equal(flush_get_plan(f)->n_members, FLUSH_ROUND_MAX_DESCRIPTORS + 1);
	assert_int_equal(flush_get_plan(f)->n_calls, 2);
}

/* Its place in the round goes to nobody else. */
static void test_forgotten_in_mid_round(void **state)
{
	struct flush *f = *state;
	struct flush_outcome outcome;

	arrive(f, &file, &a);
	arrive(f, &other, &b);
	arrive(f, &file, &c);
	assert_start(f, 10, 1, &a);
	flush_forget(f, &a, 0);
	arrive(f, &file, &d);
	flush_outcome_set(&outcome, PMEM_AGENT_DURABLE, 0);
	outcome.calls[1] = (struct flush_outcome_of){ PMEM_AGENT_UNFLUSHED, 0 };
	flush_done(f, 1, &outcome, FLUSH_ORIGIN_ROUND, at(50));
	assert_answer(f, &b, PMEM_AGENT_UNFLUSHED, 0, 0);
	assert_answer(f, &c, PMEM_AGENT_DURABLE, 0, 10);
	assert_start(f, 100, 2, &d);
}

static void test_queue_is_bounded(void **state)
{
	struct flush *f = *state;

	assert_int_equal(arrive(f, &region, &a), 0);
	assert_int_equal(arrive(f, &region, &b), 0);
	assert_int_equal(arrive(f, &region, &c), 0);
	assert_int_equal(arrive(f, &region, &d), 0);
	assert_int_equal(arrive(f, &region, &e), PMEM_AGENT_BUSY);
	flush_forget(f, &c, 0);
	assert_int_equal(arrive(f, &region, &e), 0);
}

static void test_forgotten_request_is_not_answered(void **state)
{
	struct flush *f = *state;
	struct flush_status status;

	arrive(f, &region, &a);
	assert_start(f, 10, 1, &a);
	flush_forget(f, &a, 0);
	arrive(f, &region, &b);
	done(f, 1, PMEM_AGENT_DURABLE, 0);
	assert_start(f, 20, 2, &b);
	done(f, 2, PMEM_AGENT_DURABLE, 0);
	flush_forget(f, &b, 0);
	assert_nothing(f);
	flush_get_status(f, &status);
	assert_int_equal(status.waiting, 0);
}

static void test_stall(void **state)
{
	struct flush *f = *state;
	struct flush_status status;

	assert_false(flush_stall(f));
	arrive(f, &region, &a);
	assert_start(f, 10, 1, &a);
	assert_true(flush_stall(f));
	assert_false(flush_stall(f));
	arrive(f, &region, &b);
	assert_nothing(f); /* no second one beside it */
	flush_get_status(f, &status);
	assert_string_equal(flush_status_to_string(&status), "stalled");
	assert_int_equal(status.in_flight_usec, 10);
	done(f, 1, PMEM_AGENT_DURABLE, 0);
	assert_answer(f, &a, PMEM_AGENT_DURABLE, 0, 10);
	assert_start(f, 100, 2, &b);
}

/* The caller is told that nobody knows yet; the round goes on, and nothing starts beside it. */
static void test_deadline(void **state)
{
	static const struct flush_caller early = { .uid = UID, .deadline_usec = 30 },
					 late = { .uid = UID, .deadline_usec = 40 };
	struct flush *f = *state;

	assert_true(flush_get_wakeup(f) == UINT64_MAX);
	assert_int_equal(flush_arrive(f, &region, &early, &a), 0);
	assert_start(f, 10, 1, &a);
	assert_int_equal(flush_arrive(f, &region, &late, &b), 0);
	assert_int_equal(arrive(f, &region, &c), 0);
	assert_int_equal(flush_get_wakeup(f), 30);
	assert_nothing_at(f, 30);
	assert_answer_at(f, 31, &a, PMEM_AGENT_TIMEOUT, ETIMEDOUT, 0);
	assert_nothing_at(f, 31);
	assert_int_equal(flush_get_wakeup(f), 40);
	assert_answer_at(f, 41, &b, PMEM_AGENT_TIMEOUT, ETIMEDOUT, 0);
	assert_nothing_at(f, 41);
	assert_true(flush_get_wakeup(f) == UINT64_MAX);
	done(f, 1, PMEM_AGENT_DURABLE, 0);
	assert_start(f, 60, 2, &c);
}

static void test_quota(void **state)
{
	static const struct flush_caller one = { .uid = 1 }, two = { .uid = 2, .deadline_usec = 30 };
	_cleanup_(flush_freep) struct flush *f = flush_new(DEPTH, 2, 0, 0);

	assert_int_equal(flush_arrive(f, &file, &one, &a), 0);
	assert_int_equal(flush_arrive(f, &file, &one, &b), 0);
	assert_int_equal(flush_arrive(f, &file, &one, &c), PMEM_AGENT_BUSY);
	assert_int_equal(flush_arrive(f, &file, &two, &c), 0);
	assert_int_equal(flush_arrive(f, &file, &two, &d), 0);
	flush_forget(f, &b, 0);
	assert_int_equal(flush_arrive(f, &file, &two, &b), PMEM_AGENT_BUSY);
	assert_int_equal(flush_arrive(f, &file, &one, &b), 0);
	assert_answer_at(f, 40, &c, PMEM_AGENT_TIMEOUT, ETIMEDOUT, 0);
	assert_answer_at(f, 40, &d, PMEM_AGENT_TIMEOUT, ETIMEDOUT, 0);
	assert_start(f, 41, 1, &a);
	assert_int_equal(flush_arrive(f, &file, &one, &c), PMEM_AGENT_BUSY);
	done(f, 1, PMEM_AGENT_DURABLE, 0);
	assert_int_equal(flush_arrive(f, &file, &one, &c), 0);
}

/* Two were answered: the first back waits for the other, but for no longer than a quarter of a round. */
static void test_gathering(void **state)
{
	struct flush *f = *state;
	struct flush_status status;

	arrive(f, &region, &a);
	arrive(f, &region, &b);
	assert_start(f, 10, 1, &a);
	done(f, 1, PMEM_AGENT_DURABLE, 0);
	assert_answer(f, &a, PMEM_AGENT_DURABLE, 0, 10);
	assert_answer(f, &b, PMEM_AGENT_DURABLE, 0, 10);
	arrive(f, &region, &a);
	assert_nothing_at(f, 51);
	flush_get_status(f, &status);
	assert_string_equal(flush_status_to_string(&status), "gathering");
	assert_int_equal(flush_get_wakeup(f), 59);
	arrive(f, &region, &b);
	assert_start(f, 52, 2, &a); /* all are back */

	done_at(f, 92, 2, PMEM_AGENT_DURABLE, 0);
	assert_answer(f, &a, PMEM_AGENT_DURABLE, 0, 52);
	assert_answer(f, &b, PMEM_AGENT_DURABLE, 0, 52);
	arrive(f, &region, &a);
	assert_nothing_at(f, 101);
	assert_start(f, 102, 3, &a); /* b does not come */

	done_at(f, 142, 3, PMEM_AGENT_DURABLE, 0);
	assert_answer(f, &a, PMEM_AGENT_DURABLE, 0, 102);
	arrive(f, &region, &a);
	assert_start(f, 143, 4, &a); /* alone now */
}

/* Files share calls as the region does; a filesystem waits for nobody. */
static void test_what_gathers(void **state)
{
	struct flush *f = *state;

	arrive(f, &file, &a);
	arrive(f, &file, &b);
	assert_start(f, 10, 1, &a);
	done(f, 1, PMEM_AGENT_DURABLE, 0);
	assert_answer(f, &a, PMEM_AGENT_DURABLE, 0, 10);
	assert_answer(f, &b, PMEM_AGENT_DURABLE, 0, 10);
	arrive(f, &file, &a);
	assert_nothing_at(f, 51);
	arrive(f, &region, &b);
	assert_start(f, 52, 2, &a);
	done(f, 2, PMEM_AGENT_DURABLE, 0);
	assert_answer(f, &a, PMEM_AGENT_DURABLE, 0, 52);
	assert_answer(f, &b, PMEM_AGENT_DURABLE, 0, 52);
	arrive(f, &filesystem, &c);
	assert_start(f, 53, 3, &c);
}

static void test_stray_result_is_ignored(void **state)
{
	struct flush *f = *state;

	arrive(f, &region, &a);
	done(f, 0, PMEM_AGENT_DURABLE, 0);
	done(f, 1, PMEM_AGENT_DURABLE, 0);
	assert_start(f, 10, 1, &a);
	done(f, 2, PMEM_AGENT_DURABLE, 0);
	assert_nothing(f);
	done(f, 1, PMEM_AGENT_DURABLE, 0);
	done(f, 1, PMEM_AGENT_DURABLE, 0);
	assert_answer(f, &a, PMEM_AGENT_DURABLE, 0, 10);
	assert_nothing(f);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		TEST(test_one_request),
		TEST(test_late_request_waits),
		TEST(test_region_requests_share_a_round),
		TEST(test_requests_for_a_file_share_a_call),
		TEST(test_syncfs_from_four_files_on),
		TEST(test_filesystem_serves),
		TEST(test_calls_of_a_uid_are_bounded),
		TEST(test_descriptors_are_bounded),
		TEST(test_forgotten_in_mid_round),
		TEST(test_queue_is_bounded),
		TEST(test_forgotten_request_is_not_answered),
		TEST(test_stall),
		TEST(test_deadline),
		TEST(test_quota),
		TEST(test_gathering),
		TEST(test_what_gathers),
		TEST(test_stray_result_is_ignored),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests_name("flush", tests, NULL, NULL);
}
