/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "agent/flush.h"

#define DEPTH 4
#define UID   7

static const struct flush_target region = { .scope = FLUSH_REGION };
static const struct flush_target file = { .scope = FLUSH_FILE, .device = 7, .inode = 11 };
static int a, b, c, d, e;

static int setup(void **state)
{
	*state = flush_new(DEPTH, DEPTH, 0, 0);
	return *state ? 0 : -1;
}

static int teardown(void **state)
{
	flush_free(*state);
	return 0;
}

/* CLOCK_MONOTONIC is behind by 1 here, so that no test can take one clock for the other. */
static struct flush_time at(uint64_t usec)
{
	return (struct flush_time){ .realtime = usec, .monotonic = usec - 1 };
}

static int arrive(struct flush *f, const struct flush_target *target, void *owner)
{
	static const struct flush_caller caller = { .uid = UID };

	return flush_arrive(f, target, &caller, owner);
}

static void assert_start(struct flush *f, uint64_t now, uint64_t round, const void *owner)
{
	struct flush_action action;

	assert_true(flush_next(f, at(now), &action));
	assert_int_equal(action.type, FLUSH_ACT_START);
	assert_int_equal(action.round, round);
	assert_ptr_equal(action.owner, owner);
}

static void assert_answer_at(struct flush *f, uint64_t now, const void *owner, enum pmem_agent_answer answer, int error,
			     uint64_t durable_usec)
{
	struct flush_action action;

	assert_true(flush_next(f, at(now), &action));
	assert_int_equal(action.type, FLUSH_ACT_ANSWER);
	assert_ptr_equal(action.owner, owner);
	assert_int_equal(action.answer, answer);
	assert_int_equal(action.error, error);
	assert_int_equal(action.durable_usec, durable_usec);
}

static void assert_answer(struct flush *f, const void *owner, enum pmem_agent_answer answer, int error,
			  uint64_t durable_usec)
{
	assert_answer_at(f, 999, owner, answer, error, durable_usec);
}

static void assert_nothing_at(struct flush *f, uint64_t now)
{
	struct flush_action action;

	assert_false(flush_next(f, at(now), &action));
}

static void assert_nothing(struct flush *f)
{
	assert_nothing_at(f, 999);
}

static void done(struct flush *f, uint64_t round, enum pmem_agent_answer answer, int error)
{
	flush_done(f, round, answer, error, FLUSH_ORIGIN_ROUND, at(50));
}

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

/* The error of a file waits in its open file description: another request's call can't fetch it. */
static void test_file_requests_do_not(void **state)
{
	struct flush *f = *state;

	arrive(f, &file, &a);
	arrive(f, &region, &b);
	arrive(f, &file, &c);
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
	arrive(f, &file, &b);
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

	assert_int_equal(arrive(f, &region, &a), 0);
	assert_int_equal(arrive(f, &region, &b), 0);
	assert_int_equal(arrive(f, &region, &c), 0);
	assert_int_equal(arrive(f, &region, &d), 0);
	assert_int_equal(arrive(f, &region, &e), PMEM_AGENT_BUSY);
	flush_forget(f, &c);
	assert_int_equal(arrive(f, &region, &e), 0);
}

static void test_forgotten_request_is_not_answered(void **state)
{
	struct flush *f = *state;
	struct flush_status status;

	arrive(f, &region, &a);
	assert_start(f, 10, 1, &a);
	flush_forget(f, &a);
	arrive(f, &region, &b);
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
	static const struct flush_caller one = { .uid = 1 }, other = { .uid = 2, .deadline_usec = 30 };
	_cleanup_(flush_freep) struct flush *f = flush_new(DEPTH, 2, 0, 0);

	assert_int_equal(flush_arrive(f, &file, &one, &a), 0);
	assert_int_equal(flush_arrive(f, &file, &one, &b), 0);
	assert_int_equal(flush_arrive(f, &file, &one, &c), PMEM_AGENT_BUSY);
	assert_int_equal(flush_arrive(f, &file, &other, &c), 0);
	assert_int_equal(flush_arrive(f, &file, &other, &d), 0);
	flush_forget(f, &b);
	assert_int_equal(flush_arrive(f, &file, &other, &b), PMEM_AGENT_BUSY);
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

	flush_done(f, 2, PMEM_AGENT_DURABLE, 0, FLUSH_ORIGIN_ROUND, at(92));
	assert_answer(f, &a, PMEM_AGENT_DURABLE, 0, 52);
	assert_answer(f, &b, PMEM_AGENT_DURABLE, 0, 52);
	arrive(f, &region, &a);
	assert_nothing_at(f, 101);
	assert_start(f, 102, 3, &a); /* b does not come */

	flush_done(f, 3, PMEM_AGENT_DURABLE, 0, FLUSH_ORIGIN_ROUND, at(142));
	assert_answer(f, &a, PMEM_AGENT_DURABLE, 0, 102);
	arrive(f, &region, &a);
	assert_start(f, 143, 4, &a); /* alone now */
}

/* Nobody could join the round of a file, so it waits for nobody. */
static void test_files_do_not_gather(void **state)
{
	struct flush *f = *state;

	arrive(f, &region, &a);
	arrive(f, &region, &b);
	assert_start(f, 10, 1, &a);
	arrive(f, &file, &c);
	done(f, 1, PMEM_AGENT_DURABLE, 0);
	assert_answer(f, &a, PMEM_AGENT_DURABLE, 0, 10);
	assert_answer(f, &b, PMEM_AGENT_DURABLE, 0, 10);
	assert_start(f, 51, 2, &c);
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

static uint64_t lose(struct flush *f)
{
	struct flush_status status;

	flush_lose(f, EIO, FLUSH_ORIGIN_WITNESS, 15);
	flush_get_status(f, &status);
	return status.loss.number;
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

/* What was in flight when the loss was noticed proves nothing, acknowledged or not; the next round does. */
static void test_acknowledged_in_mid_round(void **state)
{
	struct flush *f = *state;
	struct flush_status status;

	arrive(f, &region, &a);
	assert_start(f, 10, 1, &a);
	assert_int_equal(lose(f), 1);
	assert_answer(f, &a, PMEM_AGENT_LOST, EIO, 0);
	assert_int_equal(flush_acknowledge(f, 1), 0);
	arrive(f, &region, &b);
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

	arrive(f, &region, &a);
	assert_start(f, 10, 1, &a);
	assert_int_equal(lose(f), 1);
	assert_answer(f, &a, PMEM_AGENT_LOST, EIO, 0);
	assert_int_equal(flush_acknowledge(f, 1), 0);
	arrive(f, &region, &b);
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
		test(test_deadline),
		test(test_quota),
		test(test_gathering),
		test(test_files_do_not_gather),
		test(test_loss_before_the_answer),
		test(test_gone),
		test(test_adopted),
		test(test_adopted_and_lost),
		test(test_restored_loss),
		test(test_acknowledge),
		test(test_acknowledged_in_mid_round),
		test(test_late_error_after_acknowledge),
		test(test_numbers_go_on),
		test(test_withheld),
		test(test_withheld_and_lost),
		test(test_stray_result_is_ignored),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests_name("flush", tests, NULL, NULL);
}
