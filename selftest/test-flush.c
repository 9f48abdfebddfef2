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
static const struct flush_target file = { .scope = FLUSH_FILE, .device = 7, .inode = 11, .descriptor = true };
static const struct flush_target data = { .scope = FLUSH_FILE_DATA, .device = 7, .inode = 11, .descriptor = true };
static const struct flush_target other = { .scope = FLUSH_FILE, .device = 7, .inode = 12, .descriptor = true };
static const struct flush_target filesystem = { .scope = FLUSH_FILESYSTEM, .device = 7, .descriptor = true };
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
	assert_ptr_equal(flush_get_plan(f)->members[0].owner, owner);
}

/* Call `i` of the round, and how many members are by it. */
static void assert_call(struct flush *f, unsigned int i, enum flush_scope scope, const void *leader, unsigned int n)
{
	const struct flush_plan *p = flush_get_plan(f);

	assert_true(i < p->n_calls);
	assert_int_equal(p->calls[i].scope, scope);
	assert_ptr_equal(p->members[p->calls[i].leader].owner, leader);
	for (unsigned int j = 0; j < p->n_members; j++)
		n -= p->members[j].call == i;
	assert_int_equal(n, 0);
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

static void done_at(struct flush *f, uint64_t now, uint64_t round, enum pmem_agent_answer answer, int error)
{
	struct flush_outcome outcome;

	flush_outcome_set(&outcome, answer, error);
	flush_done(f, round, &outcome, FLUSH_ORIGIN_ROUND, at(now));
}

static void done(struct flush *f, uint64_t round, enum pmem_agent_answer answer, int error)
{
	done_at(f, 50, round, answer, error);
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
	flush_forget(f, &a);
	arrive(f, &file, &d);
	flush_outcome_set(&outcome, PMEM_AGENT_DURABLE, 0);
	outcome.calls[1] = (struct flush_outcome_of){ PMEM_AGENT_UNFLUSHED, 0 };
	flush_done(f, 1, &outcome, FLUSH_ORIGIN_ROUND, at(50));
	assert_answer(f, &b, PMEM_AGENT_UNFLUSHED, 0, 0);
	assert_answer(f, &c, PMEM_AGENT_DURABLE, 0, 10);
	assert_start(f, 100, 2, &d);
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
	static const struct flush_caller one = { .uid = 1 }, two = { .uid = 2, .deadline_usec = 30 };
	_cleanup_(flush_freep) struct flush *f = flush_new(DEPTH, 2, 0, 0);

	assert_int_equal(flush_arrive(f, &file, &one, &a), 0);
	assert_int_equal(flush_arrive(f, &file, &one, &b), 0);
	assert_int_equal(flush_arrive(f, &file, &one, &c), PMEM_AGENT_BUSY);
	assert_int_equal(flush_arrive(f, &file, &two, &c), 0);
	assert_int_equal(flush_arrive(f, &file, &two, &d), 0);
	flush_forget(f, &b);
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
		test(test_requests_for_a_file_share_a_call),
		test(test_syncfs_from_four_files_on),
		test(test_filesystem_serves),
		test(test_calls_of_a_uid_are_bounded),
		test(test_descriptors_are_bounded),
		test(test_forgotten_in_mid_round),
		test(test_error_is_everyones),
		test(test_loss_in_mid_round),
		test(test_target_failure_is_no_loss),
		test(test_queue_is_bounded),
		test(test_forgotten_request_is_not_answered),
		test(test_stall),
		test(test_deadline),
		test(test_quota),
		test(test_gathering),
		test(test_what_gathers),
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
