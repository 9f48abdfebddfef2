/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * engine: a flush engine alone, what goes in and what comes out
 */
#pragma once

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

static inline int setup(void **state)
{
	*state = flush_new(DEPTH, DEPTH, 0, 0);
	return *state ? 0 : -1;
}

static inline int teardown(void **state)
{
	flush_free(*state);
	return 0;
}

/* CLOCK_MONOTONIC is behind by 1 here, so that no test can take one clock for the other. */
static inline struct flush_time at(uint64_t usec)
{
	return (struct flush_time){ .realtime = usec, .monotonic = usec - 1 };
}

static inline int arrive(struct flush *f, const struct flush_target *target, void *owner)
{
	static const struct flush_caller caller = { .uid = UID };

	return flush_arrive(f, target, &caller, owner);
}

static inline void assert_start(struct flush *f, uint64_t now, uint64_t round, const void *owner)
{
	struct flush_action action;

	assert_true(flush_next(f, at(now), &action));
	assert_int_equal(action.type, FLUSH_ACT_START);
	assert_int_equal(action.round, round);
	assert_ptr_equal(flush_get_plan(f)->members[0].owner, owner);
}

/* Call `i` of the round, and how many members are by it. */
static inline void assert_call(struct flush *f, unsigned int i, enum flush_scope scope, const void *leader,
			       unsigned int n)
{
	const struct flush_plan *p = flush_get_plan(f);

	assert_true(i < p->n_calls);
	assert_int_equal(p->calls[i].scope, scope);
	assert_ptr_equal(p->members[p->calls[i].leader].owner, leader);
	for (unsigned int j = 0; j < p->n_members; j++)
		n -= p->members[j].call == i;
	assert_int_equal(n, 0);
}

static inline void assert_answer_at(struct flush *f, uint64_t now, const void *owner, enum pmem_agent_answer answer,
				    int error, uint64_t durable_usec)
{
	struct flush_action action;

	assert_true(flush_next(f, at(now), &action));
	assert_int_equal(action.type, FLUSH_ACT_ANSWER);
	assert_ptr_equal(action.owner, owner);
	assert_int_equal(action.answer, answer);
	assert_int_equal(action.error, error);
	assert_int_equal(action.durable_usec, durable_usec);
}

static inline void assert_answer(struct flush *f, const void *owner, enum pmem_agent_answer answer, int error,
				 uint64_t durable_usec)
{
	assert_answer_at(f, 999, owner, answer, error, durable_usec);
}

static inline void assert_nothing_at(struct flush *f, uint64_t now)
{
	struct flush_action action;

	assert_false(flush_next(f, at(now), &action));
}

static inline void assert_nothing(struct flush *f)
{
	assert_nothing_at(f, 999);
}

static inline void done_at(struct flush *f, uint64_t now, uint64_t round, enum pmem_agent_answer answer, int error)
{
	struct flush_outcome outcome;

	flush_outcome_set(&outcome, answer, error);
	flush_done(f, round, &outcome, FLUSH_ORIGIN_ROUND, at(now));
}

static inline void done(struct flush *f, uint64_t round, enum pmem_agent_answer answer, int error)
{
	done_at(f, 50, round, answer, error);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
