/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "agent/flush.h"

#define DEPTH 4

static const struct flush_target region = { .scope = FLUSH_REGION };
static const struct flush_target file = { .scope = FLUSH_FILE, .device = 7, .inode = 11 };
static int a, b, c, d, e;

static int setup(void **state)
{
	*state = flush_new(DEPTH, 0, 0);
	return *state ? 0 : -1;
}

static int teardown(void **state)
{
	flush_free(*state);
	return 0;
}

static void assert_start(struct flush *f, uint64_t now, uint64_t round, const void *owner)
{
	struct flush_action action;

	assert_true(flush_next(f, now, &action));
	assert_int_equal(action.type, FLUSH_ACT_START);
	assert_int_equal(action.round, round);
	assert_ptr_equal(action.owner, owner);
}

static void assert_answer(struct flush *f, const void *owner, enum pmem_agent_answer answer, int error,
			  uint64_t durable_usec)
{
	struct flush_action action;

	assert_true(flush_next(f, 999, &action));
	assert_int_equal(action.type, FLUSH_ACT_ANSWER);
	assert_ptr_equal(action.owner, owner);
	assert_int_equal(action.answer, answer);
	assert_int_equal(action.error, error);
	assert_int_equal(action.durable_usec, durable_usec);
}

static void assert_nothing(struct flush *f)
{
	struct flush_action action;

	assert_false(flush_next(f, 999, &action));
}

static void done(struct flush *f, uint64_t round, enum pmem_agent_answer answer, int error)
{
	flush_done(f, round, answer, error, FLUSH_ORIGIN_ROUND, 50);
}

static void test_one_request(void **state)
{
	struct flush *f = *state;
	struct flush_status status;

	assert_nothing(f);
	assert_int_equal(flush_arrive(f, &region, &a), 0);
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

	flush_arrive(f, &region, &a);
	assert_start(f, 10, 1, &a);
	flush_arrive(f, &region, &b);
	assert_nothing(f);
	done(f, 1, PMEM_AGENT_DURABLE, 0);
	assert_answer(f, &a, PMEM_AGENT_DURABLE, 0, 10);
	assert_start(f, 20, 2, &b);
	done(f, 2, PMEM_AGENT_DURABLE, 0);
	assert_answer(f, &b, PMEM_AGENT_DURABLE, 0, 20);
}

static void test_region_requests_share_a_round(void **state)
{
	struct flush *f = *state;

	flush_arrive(f, &region, &a);
	flush_arrive(f, &region, &b);
	assert_start(f, 10, 1, &a);
	done(f, 1, PMEM_AGENT_DURABLE, 0);
	assert_answer(f, &a, PMEM_AGENT_DURABLE, 0, 10);
	assert_answer(f, &b, PMEM_AGENT_DURABLE, 0, 10);
	assert_nothing(f);
}

/* The error of a file waits in its open file description: another request's call can't fetch it. */
static void test_file_requests_do_not(void **state)
{
	struct flush *f = *state;

	flush_arrive(f, &file, &a);
	flush_arrive(f, &region, &b);
	flush_arrive(f, &file, &c);
	assert_start(f, 10, 1, &a);
	done(f, 1, PMEM_AGENT_DURABLE, 0);
	assert_answer(f, &a, PMEM_AGENT_DURABLE, 0, 10);
	assert_start(f, 20, 2, &b);
	done(f, 2, PMEM_AGENT_DURABLE, 0);
	assert_answer(f, &b, PMEM_AGENT_DURABLE, 0, 20);
	assert_start(f, 30, 3, &c);
}

static void test_error_is_everyones(void **state)
{
	struct flush *f = *state;
	struct flush_status status;

	flush_arrive(f, &region, &a);
	assert_start(f, 10, 1, &a);
	flush_arrive(f, &region, &b);
	done(f, 1, PMEM_AGENT_LOST, EIO);
	assert_answer(f, &a, PMEM_AGENT_LOST, EIO, 0);
	assert_answer(f, &b, PMEM_AGENT_LOST, EIO, 0);
	assert_nothing(f);

	assert_int_equal(flush_arrive(f, &region, &c), PMEM_AGENT_LOST);
	flush_get_status(f, &status);
	assert_int_equal(status.epoch, 0);
	assert_int_equal(status.loss.number, 1);
	assert_int_equal(status.loss.error, EIO);
	assert_int_equal(status.loss.round, 1);
	assert_int_equal(status.loss.usec, 50);
	assert_string_equal(flush_status_to_string(&status), "lost");
}

/* A witness's hit while the round is in flight: its success proves nothing any more. */
static void test_loss_in_mid_round(void **state)
{
	struct flush *f = *state;
	struct flush_status status;

	flush_arrive(f, &region, &a);
	assert_start(f, 10, 1, &a);
	flush_lose(f, EIO, FLUSH_ORIGIN_WITNESS, 15);
	assert_answer(f, &a, PMEM_AGENT_LOST, EIO, 0);
	done(f, 1, PMEM_AGENT_DURABLE, 0);
	assert_nothing(f);
	flush_get_status(f, &status);
	assert_int_equal(status.epoch, 0);
	assert_int_equal(status.state, FLUSH_IDLE);

	/* The next loss is another one, even before the first is acknowledged. */
	flush_lose(f, EIO, FLUSH_ORIGIN_WITNESS, 16);
	flush_get_status(f, &status);
	assert_int_equal(status.loss.number, 2);
}

static void test_target_failure_is_no_loss(void **state)
{
	struct flush *f = *state;
	struct flush_status status;

	flush_arrive(f, &file, &a);
	flush_arrive(f, &file, &b);
	assert_start(f, 10, 1, &a);
	done(f, 1, PMEM_AGENT_FAILED, ENOSPC);
	assert_answer(f, &a, PMEM_AGENT_FAILED, ENOSPC, 0);
	flush_get_status(f, &status);
	assert_int_equal(status.loss.number, 0);
	assert_int_equal(status.epoch, 0);
	assert_start(f, 20, 2, &b);
}

static void test_queue_is_bounded(void **state)
{
	struct flush *f = *state;

	assert_int_equal(flush_arrive(f, &region, &a), 0);
	assert_int_equal(flush_arrive(f, &region, &b), 0);
	assert_int_equal(flush_arrive(f, &region, &c), 0);
	assert_int_equal(flush_arrive(f, &region, &d), 0);
	assert_int_equal(flush_arrive(f, &region, &e), PMEM_AGENT_BUSY);
	flush_forget(f, &c);
	assert_int_equal(flush_arrive(f, &region, &e), 0);
}

static void test_forgotten_request_is_not_answered(void **state)
{
	struct flush *f = *state;
	struct flush_status status;

	flush_arrive(f, &region, &a);
	assert_start(f, 10, 1, &a);
	flush_forget(f, &a);
	flush_arrive(f, &region, &b);
	done(f, 1, PMEM_AGENT_DURABLE, 0);
	assert_start(f, 20, 2, &b);
	done(f, 2, PMEM_AGENT_DURABLE, 0);
	flush_forget(f, &b);
	assert_nothing(f);
	flush_get_status(f, &status);
	assert_int_equal(status.waiting, 0);
}

static void test_stall(void **state)
{
	struct flush *f = *state;
	struct flush_status status;

	assert_false(flush_stall(f));
	flush_arrive(f, &region, &a);
	assert_start(f, 10, 1, &a);
	assert_true(flush_stall(f));
	assert_false(flush_stall(f));
	flush_arrive(f, &region, &b);
	assert_nothing(f); /* no second one beside it */
	flush_get_status(f, &status);
	assert_string_equal(flush_status_to_string(&status), "stalled");
	assert_int_equal(status.in_flight_usec, 10);
	done(f, 1, PMEM_AGENT_DURABLE, 0);
	assert_answer(f, &a, PMEM_AGENT_DURABLE, 0, 10);
	assert_start(f, 20, 2, &b);
}

static void test_gone(void **state)
{
	struct flush *f = *state;

	flush_arrive(f, &region, &a);
	assert_start(f, 10, 1, &a);
	flush_arrive(f, &region, &b);
	flush_gone(f);
	assert_answer(f, &b, PMEM_AGENT_GONE, ENODEV, 0);
	assert_int_equal(flush_arrive(f, &region, &c), PMEM_AGENT_GONE);
	done(f, 1, PMEM_AGENT_DURABLE, 0);
	assert_answer(f, &a, PMEM_AGENT_DURABLE, 0, 10);
	assert_nothing(f);
}

/* Nothing of ours starts beside the round of an agent before us, and what it returns answers nobody here. */
static void test_adopted(void **state)
{
	struct flush *f = *state;
	struct flush_status status;

	flush_adopt(f, 5);
	flush_get_status(f, &status);
	assert_string_equal(flush_status_to_string(&status), "stalled");
	assert_int_equal(status.in_flight_usec, 5);
	flush_arrive(f, &region, &a);
	assert_nothing(f);
	done(f, 0, PMEM_AGENT_DURABLE, 0);
	assert_nothing(f);

	flush_adopted(f, 7);
	assert_start(f, 20, 8, &a);
}

static void test_adopted_and_lost(void **state)
{
	struct flush *f = *state;

	flush_adopt(f, 5);
	flush_arrive(f, &region, &a);
	flush_lose(f, EIO, FLUSH_ORIGIN_ROUND, 6);
	flush_adopted(f, 7);
	assert_answer(f, &a, PMEM_AGENT_LOST, EIO, 0);
	assert_nothing(f);
	assert_int_equal(flush_arrive(f, &region, &b), PMEM_AGENT_LOST);
}

static void test_restored_loss(void **state)
{
	static const struct flush_loss loss = { .number = 3, .error = EIO };
	struct flush *f = *state;
	struct flush_status status;

	flush_restore_loss(f, &loss);
	assert_int_equal(flush_arrive(f, &region, &a), PMEM_AGENT_LOST);
	flush_lose(f, EIO, FLUSH_ORIGIN_WITNESS, 6);
	flush_get_status(f, &status);
	assert_int_equal(status.loss.number, 4);
}

static void test_stray_result_is_ignored(void **state)
{
	struct flush *f = *state;

	flush_arrive(f, &region, &a);
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

#define test(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	static const struct CMUnitTest tests[] = {
		test(test_one_request),
		test(test_late_request_waits),
		test(test_region_requests_share_a_round),
		test(test_file_requests_do_not),
		test(test_error_is_everyones),
		test(test_loss_in_mid_round),
		test(test_target_failure_is_no_loss),
		test(test_queue_is_bounded),
		test(test_forgotten_request_is_not_answered),
		test(test_stall),
		test(test_gone),
		test(test_adopted),
		test(test_adopted_and_lost),
		test(test_restored_loss),
		test(test_stray_result_is_ignored),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests_name("flush", tests, NULL, NULL);
}
