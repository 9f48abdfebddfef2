/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test-flush-loss: the flush engine: what is lost, and what becomes of it
 */
#include "selftest/engine.h"

static int a, b, c;

static uint64_t lose(struct flush *f)
{
	struct flush_status status;

	flush_lose(f, EIO, FLUSH_ORIGIN_WITNESS, 15);
	flush_get_status(f, &status);
	return status.loss.number;
}

static void test_error_is_everyones(void **state)
{
	struct flush *f = *state;
	struct flush_status status;

	arrive(f, &region, &a);
	assert_start(f, 10, 1, &a);
	arrive(f, &region, &b);
	done(f, 1, PMEM_AGENT_LOST, EIO);
	assert_answer(f, &a, PMEM_AGENT_LOST, EIO, 0);
	assert_answer(f, &b, PMEM_AGENT_LOST, EIO, 0);
	assert_nothing(f);

	assert_int_equal(arrive(f, &region, &c), PMEM_AGENT_LOST);
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

	arrive(f, &region, &a);
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

	arrive(f, &file, &a);
	assert_start(f, 10, 1, &a);
	arrive(f, &file, &b);
	done(f, 1, PMEM_AGENT_FAILED, ENOSPC);
	assert_answer(f, &a, PMEM_AGENT_FAILED, ENOSPC, 0);
	flush_get_status(f, &status);
	assert_int_equal(status.loss.number, 0);
	assert_int_equal(status.epoch, 0);
	assert_start(f, 20, 2, &b);
}

static uint64_t get_loss(struct flush *f)
{
	struct flush_status status;

	flush_get_status(f, &status);
	return status.loss.number;
}

/* The kernel tells it once: who asks again by that descriptor would be told durable. */
static void test_target_failure_that_nobody_waits_for(void **state)
{
	static const struct flush_caller hasty = { .uid = UID, .deadline_usec = 20 };
	struct flush *f = *state;
	struct flush_action action;

	assert_int_equal(flush_arrive(f, &file, &hasty, &a), 0);
	assert_start(f, 10, 1, &a);
	arrive(f, &file, &b);
	assert_true(flush_next(f, at(30), &action));
	assert_ptr_equal(action.owner, &a);
	assert_int_equal(action.answer, PMEM_AGENT_TIMEOUT);
	done(f, 1, PMEM_AGENT_FAILED, ENOSPC);
	assert_int_equal(get_loss(f), 1);
	assert_answer(f, &b, PMEM_AGENT_LOST, ENOSPC, 0);
}

/* Another member of the call waits: the error was in the leader's descriptor. */
static void test_target_failure_of_who_has_left(void **state)
{
	struct flush *f = *state;

	arrive(f, &file, &a);
	arrive(f, &file, &b);
	assert_start(f, 10, 1, &a);
	flush_forget(f, &a, 11);
	done(f, 1, PMEM_AGENT_FAILED, ENOSPC);
	assert_int_equal(get_loss(f), 1);
	assert_answer(f, &b, PMEM_AGENT_LOST, ENOSPC, 0);
}

static void test_target_failure_that_is_not_told(void **state)
{
	struct flush *f = *state;

	arrive(f, &file, &a);
	assert_start(f, 10, 1, &a);
	done(f, 1, PMEM_AGENT_FAILED, ENOSPC);
	assert_int_equal(get_loss(f), 0);
	flush_forget(f, &a, 51);
	assert_int_equal(get_loss(f), 1);
	assert_nothing(f);
}

/* Its call says nothing, but what waited in its own descriptor has been fetched. */
static void test_target_failure_beside_doubt(void **state)
{
	struct flush *f = *state;
	struct flush_outcome outcome;

	arrive(f, &file, &a);
	arrive(f, &file, &b);
	assert_start(f, 10, 1, &a);
	flush_outcome_set(&outcome, PMEM_AGENT_DURABLE, 0);
	outcome.calls[0] = (struct flush_outcome_of){ PMEM_AGENT_UNKNOWN, 0 };
	outcome.descriptors[1] = (struct flush_outcome_of){ PMEM_AGENT_FAILED, ENOSPC };
	flush_done(f, 1, &outcome, FLUSH_ORIGIN_ROUND, at(50));
	assert_answer(f, &a, PMEM_AGENT_UNKNOWN, 0, 0);
	assert_answer(f, &b, PMEM_AGENT_FAILED, ENOSPC, 0);
	assert_int_equal(get_loss(f), 0);
}

/* Confirmed, and void before anyone was told. */
static void test_void_before_the_answer(void **state)
{
	struct flush *f = *state;

	arrive(f, &region, &a);
	assert_start(f, 10, 1, &a);
	done(f, 1, PMEM_AGENT_DURABLE, 0);
	flush_void(f);
	assert_answer(f, &a, PMEM_AGENT_UNKNOWN, 0, 0);
	assert_nothing(f);
}

/* Durable, but lost again before anyone was told. */
static void test_loss_before_the_answer(void **state)
{
	struct flush *f = *state;

	arrive(f, &region, &a);
	assert_start(f, 10, 1, &a);
	done(f, 1, PMEM_AGENT_DURABLE, 0);
	flush_lose(f, EIO, FLUSH_ORIGIN_WITNESS, 51);
	assert_answer(f, &a, PMEM_AGENT_LOST, EIO, 0);
	assert_nothing(f);
}

static void test_gone(void **state)
{
	struct flush *f = *state;

	arrive(f, &region, &a);
	assert_start(f, 10, 1, &a);
	arrive(f, &region, &b);
	flush_gone(f);
	assert_answer(f, &b, PMEM_AGENT_GONE, ENODEV, 0);
	assert_int_equal(arrive(f, &region, &c), PMEM_AGENT_GONE);
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
	arrive(f, &region, &a);
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
	arrive(f, &region, &a);
	flush_lose(f, EIO, FLUSH_ORIGIN_ROUND, 6);
	flush_adopted(f, 7);
	assert_answer(f, &a, PMEM_AGENT_LOST, EIO, 0);
	assert_nothing(f);
	assert_int_equal(arrive(f, &region, &b), PMEM_AGENT_LOST);
}

static void test_restored_loss(void **state)
{
	static const struct flush_loss loss = { .number = 3, .error = EIO };
	struct flush *f = *state;
	struct flush_status status;

	flush_restore_loss(f, &loss, 2);
	assert_int_equal(arrive(f, &region, &a), PMEM_AGENT_LOST);
	flush_lose(f, EIO, FLUSH_ORIGIN_WITNESS, 6);
	flush_get_status(f, &status);
	assert_int_equal(status.loss.number, 4);
}

static void test_acknowledge(void **state)
{
	struct flush *f = *state;
	struct flush_status status;

	assert_int_equal(flush_acknowledge(f, 0), PMEM_AGENT_STALE_LOSS);
	assert_int_equal(flush_acknowledge(f, 1), PMEM_AGENT_STALE_LOSS);
	assert_int_equal(lose(f), 1);
	assert_int_equal(lose(f), 2);
	assert_int_equal(flush_acknowledge(f, 0), PMEM_AGENT_STALE_LOSS);
	assert_int_equal(flush_acknowledge(f, 1), PMEM_AGENT_STALE_LOSS);
	assert_int_equal(flush_acknowledge(f, 3), PMEM_AGENT_STALE_LOSS);
	assert_int_equal(arrive(f, &region, &a), PMEM_AGENT_LOST);

	assert_int_equal(flush_acknowledge(f, 2), 0);
	assert_int_equal(flush_acknowledge(f, 2), PMEM_AGENT_STALE_LOSS);
	flush_get_status(f, &status);
	assert_int_equal(status.loss.number, 0);
	assert_int_equal(status.acknowledged, 2);
	assert_int_equal(arrive(f, &region, &a), 0);
	assert_start(f, 20, 1, &a);
	done(f, 1, PMEM_AGENT_DURABLE, 0);
	assert_answer(f, &a, PMEM_AGENT_DURABLE, 0, 20);
	assert_int_equal(lose(f), 3);
	flush_get_status(f, &status);
	assert_int_equal(status.loss.epoch, 1);
	assert_int_equal(status.loss.round, 1);
}

/* A round is in flight, its request has been answered, and `b` waits for the next. */
static void acknowledge_in_mid_round(struct flush *f)
{
	arrive(f, &region, &a);
	assert_start(f, 10, 1, &a);
	assert_int_equal(lose(f), 1);
	assert_answer(f, &a, PMEM_AGENT_LOST, EIO, 0);
	assert_int_equal(flush_acknowledge(f, 1), 0);
	arrive(f, &region, &b);
}

/* What was in flight when the loss was noticed proves nothing, acknowledged or not; the next round does. */
static void test_acknowledged_in_mid_round(void **state)
{
	struct flush *f = *state;
	struct flush_status status;

	acknowledge_in_mid_round(f);
	assert_nothing(f);
	done(f, 1, PMEM_AGENT_DURABLE, 0);
	flush_get_status(f, &status);
	assert_int_equal(status.epoch, 0);
	assert_start(f, 20, 2, &b);
	done(f, 2, PMEM_AGENT_DURABLE, 0);
	assert_answer(f, &b, PMEM_AGENT_DURABLE, 0, 20);
	flush_get_status(f, &status);
	assert_int_equal(status.epoch, 2);
}

static void test_late_error_after_acknowledge(void **state)
{
	struct flush *f = *state;
	struct flush_status status;

	acknowledge_in_mid_round(f);
	done(f, 1, PMEM_AGENT_LOST, EIO);
	assert_answer(f, &b, PMEM_AGENT_LOST, EIO, 0);
	flush_get_status(f, &status);
	assert_int_equal(status.loss.number, 2);
}

static void test_numbers_go_on(void **state)
{
	static const struct flush_loss loss = { .number = 3, .error = EIO };
	struct flush *f = *state;
	struct flush_status status;

	flush_restore_loss(f, &loss, 3);
	flush_get_status(f, &status);
	assert_int_equal(status.loss.number, 0);
	assert_int_equal(status.acknowledged, 3);
	assert_int_equal(arrive(f, &region, &a), 0);
	assert_int_equal(flush_acknowledge(f, 3), PMEM_AGENT_STALE_LOSS);
	assert_int_equal(lose(f), 4);
}

/* Nothing is promised, and nothing acknowledged, before it is known what earlier boots lost. */
static void test_withheld(void **state)
{
	static const struct flush_loss loss = { .number = 3, .error = ENXIO };
	struct flush *f = *state;
	struct flush_status status;

	flush_withhold(f);
	flush_get_status(f, &status);
	assert_string_equal(flush_status_to_string(&status), "unknown");
	assert_int_equal(arrive(f, &region, &a), 0);
	assert_nothing(f);
	assert_int_equal(flush_acknowledge(f, 3), PMEM_AGENT_UNKNOWN);

	flush_doubt(f);
	assert_answer(f, &a, PMEM_AGENT_UNKNOWN, 0, 0);
	assert_int_equal(arrive(f, &region, &a), PMEM_AGENT_UNKNOWN);

	flush_restore_loss(f, &loss, 2);
	flush_recalled(f);
	assert_int_equal(arrive(f, &region, &a), PMEM_AGENT_LOST);
	assert_int_equal(flush_acknowledge(f, 3), 0);
	assert_int_equal(arrive(f, &region, &a), 0);
	assert_start(f, 10, 1, &a);
}

static void test_withheld_and_lost(void **state)
{
	static const struct flush_loss loss = { .number = 3, .error = ENXIO };
	struct flush *f = *state;
	struct flush_status status;

	flush_withhold(f);
	arrive(f, &region, &a);
	flush_restore_loss(f, &loss, 0);
	flush_recalled(f);
	assert_answer(f, &a, PMEM_AGENT_LOST, ENXIO, 0);
	assert_nothing(f);

	flush_free(f);
	*state = f = flush_new(DEPTH, DEPTH, 0, 0);
	flush_withhold(f);
	assert_int_equal(lose(f), 1);
	flush_restore_loss(f, &loss, 3);
	flush_recalled(f);
	flush_get_status(f, &status);
	assert_int_equal(status.loss.number, 4);
	assert_int_equal(flush_acknowledge(f, 1), PMEM_AGENT_STALE_LOSS);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		TEST(test_error_is_everyones),
		TEST(test_loss_in_mid_round),
		TEST(test_target_failure_is_no_loss),
		TEST(test_target_failure_that_nobody_waits_for),
		TEST(test_target_failure_of_who_has_left),
		TEST(test_target_failure_that_is_not_told),
		TEST(test_target_failure_beside_doubt),
		TEST(test_void_before_the_answer),
		TEST(test_loss_before_the_answer),
		TEST(test_gone),
		TEST(test_adopted),
		TEST(test_adopted_and_lost),
		TEST(test_restored_loss),
		TEST(test_acknowledge),
		TEST(test_acknowledged_in_mid_round),
		TEST(test_late_error_after_acknowledge),
		TEST(test_numbers_go_on),
		TEST(test_withheld),
		TEST(test_withheld_and_lost),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests_name("flush-loss", tests, NULL, NULL);
}
