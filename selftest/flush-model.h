/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * flush-model: what flush.c must do, worked out a second time
 *
 * Every event tells the model; it notes what is owed to whom, and calls every other answer, round or state a violation.
 * It knows flush.c by its header only.
 */
#pragma once

#include <errno.h>
#include <inttypes.h>
#include <setjmp.h>
#include <stdio.h>
#include <string.h>

#include "agent/flush.h"

#define MAX_TICKETS 60

struct ticket {
	bool open; /* neither answered nor forgotten */
	bool due;  /* `answer` is decided, and is to be told */
	enum pmem_agent_answer answer;
	int error;
	unsigned int uid;
	struct flush_target target;
	uint64_t deadline;
	uint64_t round; /* that it takes part in; 0: none yet */
	uint64_t limit; /* this many rounds at most have begun when its own has */
};

struct sim {
	uint64_t seed, random;
	bool tell;
	jmp_buf failed;
	const char *violation;
	uint64_t n_events;

	struct flush *f;
	unsigned int depth, quota, n_uids;
	uint64_t monotonic, offset;

	/* the clients */
	struct ticket tickets[MAX_TICKETS];
	unsigned int n_tickets;

	/* what outlives the agent: the region, its worker, its page */
	struct {
		bool alive, busy;
		uint64_t round, began_monotonic, began_realtime;
		bool region; /* the target of the round */
	} worker;
	struct {
		uint64_t started, done, failed, started_usec;
		int error;
		uint64_t failed_seen, epoch, acknowledged;
		struct flush_loss loss;
	} page, earlier; /* of this boot; what is on record of those before it */

	/* the agent */
	bool adopted, gone, latched, stalled;
	bool overtaken;         /* a loss was noticed while the round was in flight */
	bool withheld, doubted; /* what earlier boots lost is not known yet */
	uint64_t round, epoch, epoch_usec;
	uint64_t n_requests, n_rounds;
	struct {
		unsigned int missing;
		uint64_t until, usual;
	} gather;
};

#define say(s, ...) ((s)->tell ? (void)printf("# " __VA_ARGS__) : (void)0)

static _Noreturn void violated(struct sim *s, const char *invariant)
{
	s->violation = invariant;
	longjmp(s->failed, 1);
}

static void require(struct sim *s, bool holds, const char *invariant)
{
	if (!holds)
		violated(s, invariant);
}

/* splitmix64 */
static uint64_t next_random(struct sim *s)
{
	uint64_t z = s->random += 0x9e3779b97f4a7c15;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
	z = (z ^ z >> 27) * 0x94d049bb133111eb;
	return z ^ z >> 31;
}

static unsigned int below(struct sim *s, unsigned int n)
{
	return (next_random(s) >> 32) * n >> 32;
}

static struct flush_time now(const struct sim *s)
{
	return (struct flush_time){ .realtime = s->monotonic + s->offset, .monotonic = s->monotonic };
}

static bool is_region(const struct ticket *t)
{
	return t->target.scope == FLUSH_REGION;
}

static bool is_waiting(const struct ticket *t)
{
	return t->open && !t->due && t->round == 0;
}

static struct ticket *oldest_waiting(struct sim *s)
{
	for (unsigned int i = 0; i < s->n_tickets; i++)
		if (is_waiting(&s->tickets[i]))
			return &s->tickets[i];
	return NULL;
}

/* ---- what is owed ---- */

static void owe(struct ticket *t, enum pmem_agent_answer answer, int error)
{
	t->due = true;
	t->answer = answer;
	t->error = error;
}

/* To those who take part in `round`, 0: to those who wait for one. Returns how many. */
static unsigned int owe_round(struct sim *s, uint64_t round, enum pmem_agent_answer answer, int error)
{
	unsigned int n = 0;

	for (unsigned int i = 0; i < s->n_tickets; i++) {
		struct ticket *t = &s->tickets[i];

		if (!t->open || t->due || t->round != round)
			continue;
		owe(t, answer, error);
		n++;
	}
	return n;
}

/* A loss is everyone's, theirs too who were to be told durable. */
static void owe_loss(struct sim *s, int error, enum flush_origin origin)
{
	for (unsigned int i = 0; i < s->n_tickets; i++) {
		struct ticket *t = &s->tickets[i];

		if (t->open && (!t->due || t->answer == PMEM_AGENT_DURABLE))
			owe(t, PMEM_AGENT_LOST, error);
	}
	s->latched = true;
	s->overtaken = s->worker.busy;
	s->page.loss = (struct flush_loss){
		.number = s->page.loss.number + 1,
		.error = error,
		.origin = origin,
		.round = s->round,
		.epoch = s->epoch,
		.usec = now(s).realtime,
	};
	s->page.failed_seen = s->page.failed;
}

/* Rounds that may begin until the one of `t` has: those ahead of it in the queue, and its own. */
static unsigned int rounds_until(const struct sim *s, const struct ticket *t)
{
	bool shared = false;
	unsigned int n = 1;

	for (const struct ticket *ahead = s->tickets; ahead < t; ahead++) {
		if (!is_waiting(ahead))
			continue;
		if (is_region(ahead) && is_region(t))
			return n;
		n += !is_region(ahead) || !shared;
		shared |= is_region(ahead);
	}
	return n;
}

/* Who leaves the queue may have been the one whose round others were to join. */
static void leave_queue(struct sim *s, const struct ticket *gone)
{
	if (gone->round != 0 || !is_region(gone))
		return;
	for (unsigned int i = 0; i < s->n_tickets; i++)
		if (is_waiting(&s->tickets[i]) && is_region(&s->tickets[i]))
			s->tickets[i].limit = s->n_rounds + rounds_until(s, &s->tickets[i]);
}

static void owe_deadlines(struct sim *s)
{
	for (unsigned int i = 0; i < s->n_tickets; i++) {
		struct ticket *t = &s->tickets[i];

		if (t->open && !t->due && t->deadline && t->deadline <= s->monotonic) {
			owe(t, PMEM_AGENT_TIMEOUT, ETIMEDOUT);
			leave_queue(s, t);
		}
	}
}

/* A round was confirmed: its requests are durable, and may be waited for if others are there too. */
static void owe_durable(struct sim *s)
{
	uint64_t took = s->monotonic - s->worker.began_monotonic, pause;
	unsigned int n = owe_round(s, s->round, PMEM_AGENT_DURABLE, 0);
	const struct ticket *next = oldest_waiting(s);

	s->epoch = s->page.epoch = s->round;
	s->epoch_usec = s->worker.began_realtime;
	if (!s->worker.region || n == 0)
		return;
	s->gather.usual = s->gather.usual ? (7 * s->gather.usual + took) / 8 : took;
	pause = s->gather.usual / 4;
	if (n + (next && is_region(next)) > 1) {
		s->gather.missing = n;
		s->gather.until = s->monotonic + (pause > 1000 ? 1000 : pause);
	}
}

/* ---- what is told ---- */

static bool gathering(struct sim *s)
{
	const struct ticket *next = oldest_waiting(s);

	return next && is_region(next) && !s->worker.busy && !s->adopted && s->gather.missing > 0 &&
	       s->monotonic < s->gather.until;
}

static void check_answer(struct sim *s, const struct flush_action *action)
{
	struct ticket *t = action->owner;

	say(s, "  request %u is answered %d (%s), round %" PRIu64 "\n", (unsigned int)(t - s->tickets),
	    (int)action->answer, action->error ? strerrorname_np(action->error) : "-", action->round);
	require(s, t->open, "an answer to someone who was answered or is forgotten");
	if (action->answer == PMEM_AGENT_DURABLE) {
		require(s, !s->latched, "durable after a loss that nobody acknowledged");
		require(s, t->due && t->answer == PMEM_AGENT_DURABLE,
			"durable without a confirmed round that began after the request, for its target");
		require(s, action->round == t->round && action->durable_usec == s->epoch_usec,
			"durable by another round, or since another time");
	} else {
		require(s, action->durable_usec == 0, "a durable point without being durable");
	}
	require(s, t->due, "an answer before there is one");
	require(s, t->answer == action->answer && t->error == action->error, "the wrong answer");
	t->open = false;
}

static void check_start(struct sim *s, const struct flush_action *action)
{
	struct ticket *first = oldest_waiting(s);

	say(s, "  round %" PRIu64 " begins, for request %u\n", action->round,
	    (unsigned int)((struct ticket *)action->owner - s->tickets));
	require(s, !s->worker.busy && !s->adopted, "a second round beside the one in flight");
	require(s, !s->latched && !s->gone, "a round for a region that is lost or gone");
	require(s, !s->withheld, "a round before it is known what earlier boots lost");
	require(s, first && action->owner == first, "a round for someone else than who has waited longest");
	require(s, memcmp(&action->target, &first->target, sizeof(first->target)) == 0, "a round for another target");
	require(s, !gathering(s), "a round while others are waited for");
	require(s, action->round == s->round + 1, "round numbers that do not count up by one");
	s->round++;
	require(s, ++s->n_rounds <= s->n_requests, "more rounds than requests");

	for (struct ticket *t = first; t < s->tickets + s->n_tickets; t++) {
		if (!is_waiting(t) || (t != first && !(is_region(first) && is_region(t))))
			continue;
		t->round = s->round;
		require(s, s->n_rounds <= t->limit, "a request that waits for more rounds than those ahead of it");
	}
	s->gather.missing = 0;

	if (below(s, 32) == 0) {
		say(s, "  it cannot be begun\n");
		owe_round(s, s->round, PMEM_AGENT_UNKNOWN, EAGAIN);
		flush_done(s->f, s->round, PMEM_AGENT_UNKNOWN, EAGAIN, FLUSH_ORIGIN_NONE, now(s));
		return;
	}
	s->worker.alive = s->worker.busy = true;
	s->worker.region = is_region(first);
	s->worker.round = s->page.started = s->round;
	s->worker.began_monotonic = s->monotonic;
	s->worker.began_realtime = s->page.started_usec = now(s).realtime;
	s->stalled = false;
}

static enum flush_state expected_state(struct sim *s)
{
	if (s->adopted || (s->worker.busy && s->stalled))
		return FLUSH_STALLED;
	if (s->worker.busy)
		return FLUSH_IN_FLIGHT;
	return gathering(s) ? FLUSH_GATHERING : FLUSH_IDLE;
}

static bool same_loss(const struct flush_loss *a, const struct flush_loss *b)
{
	return a->number == b->number && a->error == b->error && a->origin == b->origin && a->round == b->round &&
	       a->epoch == b->epoch && a->usec == b->usec && a->earlier_boot == b->earlier_boot;
}

static void check_status(struct sim *s)
{
	uint64_t wakeup = flush_get_wakeup(s->f), deadline = UINT64_MAX;
	struct flush_status status;
	unsigned int n = 0;

	flush_get_status(s->f, &status);
	for (unsigned int i = 0; i < s->n_tickets; i++) {
		const struct ticket *t = &s->tickets[i];

		if (!t->open)
			continue;
		require(s, !t->due, "an answer that is not told");
		n++;
		if (t->deadline && t->deadline < deadline)
			deadline = t->deadline;
	}
	require(s, status.epoch == s->epoch && status.epoch_usec == s->epoch_usec, "the wrong epoch");
	require(s, status.started == s->round, "the wrong count of rounds");
	require(s, status.waiting == n, "the wrong count of requests that wait");
	require(s, status.state == expected_state(s), "the wrong state");
	require(s, status.gone == s->gone, "gone, or not");
	require(s, status.loss.number == (s->latched ? s->page.loss.number : 0), "the wrong number of a loss");
	require(s, status.acknowledged == s->page.acknowledged, "the wrong number of an acknowledged loss");
	require(s, status.withheld == s->withheld, "withheld, or not");
	require(s, !s->latched || same_loss(&status.loss, &s->page.loss), "the wrong loss");

	if (gathering(s) && s->gather.until < deadline)
		deadline = s->gather.until;
	require(s, wakeup <= deadline, "a wake-up that comes too late");
	require(s, wakeup > s->monotonic && (n > 0 || wakeup == UINT64_MAX), "a wake-up for nothing");
}

static void drain(struct sim *s)
{
	struct flush_action action;
	unsigned int n = 0;

	owe_deadlines(s);
	while (flush_next(s->f, now(s), &action)) {
		require(s, ++n < 4 * MAX_TICKETS, "no end of actions");
		if (action.type == FLUSH_ACT_ANSWER)
			check_answer(s, &action);
		else
			check_start(s, &action);
	}
	require(s, !oldest_waiting(s) || s->worker.busy || s->adopted || s->withheld || gathering(s),
		"a round that does not begin");
	check_status(s);
}
