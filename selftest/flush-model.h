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

#define MAX_TICKETS 120

struct ticket {
	bool open; /* neither answered nor forgotten */
	bool due;  /* `answer` is decided, and is to be told */
	enum pmem_agent_answer answer;
	int error;
	unsigned int uid;
	struct flush_target target;
	uint64_t deadline;
	uint64_t round; /* that it takes part in; 0: none yet */
	unsigned int call;
	int descriptor; /* in that round */
};

/* What a round does, as its plan was when it began. */
struct job {
	unsigned int n_calls, n_descriptors;
	int served_by[FLUSH_ROUND_MAX_CALLS + 1];
	const struct ticket *leaders[FLUSH_ROUND_MAX_CALLS + 1], *owners[FLUSH_ROUND_MAX_DESCRIPTORS];
	bool fetch[FLUSH_ROUND_MAX_DESCRIPTORS];
};

struct sim {
	uint64_t seed, random;
	bool tell;
	jmp_buf failed;
	const char *violation;
	uint64_t n_events;

	struct flush *f;
	unsigned int depth, quota, n_uids, n_devices, burst;
	uint64_t monotonic, offset;

	/* the clients */
	struct ticket tickets[MAX_TICKETS];
	unsigned int n_tickets;

	/* what outlives the agent: the region, its worker, its page */
	struct {
		bool alive, busy;
		uint64_t round, began_monotonic, began_realtime;
		struct job job;
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
	uint64_t n_requests, n_rounds, n_calls;
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

static bool is_file(enum flush_scope scope)
{
	return scope == FLUSH_FILE || scope == FLUSH_FILE_DATA;
}

static bool is_joinable(const struct ticket *t)
{
	return t->target.scope != FLUSH_FILESYSTEM;
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

static void owe_deadlines(struct sim *s)
{
	for (unsigned int i = 0; i < s->n_tickets; i++) {
		struct ticket *t = &s->tickets[i];

		if (t->open && !t->due && t->deadline && t->deadline <= s->monotonic)
			owe(t, PMEM_AGENT_TIMEOUT, ETIMEDOUT);
	}
}

static bool takes_part(const struct sim *s, const struct ticket *t)
{
	return t->open && !t->due && t->round == s->round;
}

/* The errno of a target that failed for whom nobody can tell any more. */
static int find_unheard(const struct sim *s, const struct flush_outcome *o)
{
	const struct job *job = &s->worker.job;

	for (unsigned int i = 0; i < job->n_calls; i++)
		if (o->calls[i].answer == PMEM_AGENT_FAILED && !takes_part(s, job->leaders[i]))
			return o->calls[i].error;
	for (unsigned int i = 0; i < job->n_descriptors; i++)
		if (o->descriptors[i].answer == PMEM_AGENT_FAILED && !takes_part(s, job->owners[i]))
			return o->descriptors[i].error;
	return 0;
}

/* A round has ended: each of its requests gets what its own call and its own descriptor got. */
static void owe_outcome(struct sim *s, const struct flush_outcome *o)
{
	uint64_t took = s->monotonic - s->worker.began_monotonic, pause;
	const struct ticket *next = oldest_waiting(s);
	bool confirmed = false;
	unsigned int n = 0;

	for (unsigned int i = 0; i < s->worker.job.n_calls; i++)
		confirmed |= o->calls[i].answer == PMEM_AGENT_DURABLE;
	if (confirmed) {
		s->epoch = s->page.epoch = s->round;
		s->epoch_usec = s->worker.began_realtime;
	}
	for (struct ticket *t = s->tickets; t < s->tickets + s->n_tickets; t++) {
		if (!takes_part(s, t))
			continue;
		if (o->calls[t->call].answer != PMEM_AGENT_DURABLE &&
		    !(t->target.descriptor && o->descriptors[t->descriptor].answer == PMEM_AGENT_FAILED))
			owe(t, o->calls[t->call].answer, o->calls[t->call].error);
		else if (t->target.descriptor)
			owe(t, o->descriptors[t->descriptor].answer, o->descriptors[t->descriptor].error);
		else
			owe(t, PMEM_AGENT_DURABLE, 0);
		n += t->answer == PMEM_AGENT_DURABLE && is_joinable(t);
	}
	if (n == 0)
		return;

	/* They may be waited for if others are there too. */
	s->gather.usual = s->gather.usual ? (7 * s->gather.usual + took) / 8 : took;
	pause = s->gather.usual / 4;
	if (n + (next && is_joinable(next)) > 1) {
		s->gather.missing = n;
		s->gather.until = s->monotonic + (pause > 1000 ? 1000 : pause);
	}
}

/* ---- what is told ---- */

static bool gathering(struct sim *s)
{
	const struct ticket *next = oldest_waiting(s);

	return next && is_joinable(next) && !s->worker.busy && !s->adopted && s->gather.missing > 0 &&
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

/* ---- the plan of a round ---- */

static const struct ticket *ticket_of(const struct flush_plan *p, unsigned int member)
{
	return p->members[member].owner;
}

static const struct ticket *leader_of(const struct flush_plan *p, const struct flush_call *c)
{
	return ticket_of(p, c->leader);
}

/* Whether the call makes the target of `t` durable, its own descriptor aside. */
static bool serves(const struct flush_call *c, const struct ticket *t)
{
	switch (t->target.scope) {
	case FLUSH_REGION:
		return c->scope == FLUSH_REGION;
	case FLUSH_FILESYSTEM:
		return c->scope == FLUSH_FILESYSTEM && c->device == t->target.device;
	case FLUSH_FILE:
	case FLUSH_FILE_DATA:
		if (c->scope == FLUSH_FILESYSTEM)
			return c->device == t->target.device && t->target.inode != 0;
		return is_file(c->scope) && (c->scope == FLUSH_FILE || t->target.scope == FLUSH_FILE_DATA) &&
		       c->device == t->target.device && c->inode == t->target.inode;
	case N_FLUSH_SCOPES:
		break;
	}
	return false;
}

static void check_member(struct sim *s, const struct flush_plan *p, unsigned int i)
{
	const struct flush_member *m = &p->members[i];
	struct ticket *t = m->owner;
	const struct flush_call *c = &p->calls[m->call];
	bool leads;

	require(s, is_waiting(t), "a request that takes part twice, or that does not wait");
	require(s, i == 0 || t > ticket_of(p, i - 1), "requests out of their order");
	require(s, m->call < p->n_calls && m->scope == t->target.scope, "a request of no call");
	require(s, serves(c, t), "a request by a call that does not serve it");
	leads = c->leader == i;
	require(s, leads || t->target.scope != FLUSH_FILESYSTEM || !t->target.descriptor,
		"a filesystem's error that is left in its descriptor");
	require(s, (m->descriptor >= 0) == t->target.descriptor, "a descriptor too many, or too few");
	if (t->target.descriptor) {
		require(s, (unsigned int)m->descriptor < p->n_descriptors && p->descriptors[m->descriptor] == i,
			"another's descriptor");
		leads &= c->scope != FLUSH_REGION && is_file(c->scope) == is_file(t->target.scope);
	}
	require(s, m->fetch == (t->target.descriptor && !leads), "an error that is fetched by none, or twice");
	t->call = m->call;
	t->descriptor = m->descriptor;
}

/* What the call is, by its members: who asked for it, and how many files it serves. */
static void check_call(struct sim *s, const struct flush_plan *p, unsigned int i)
{
	const struct flush_call *c = &p->calls[i];
	const struct ticket *leader = leader_of(p, c);
	uint64_t files[4];
	unsigned int n_files = 0;
	bool asked = false;

	require(s, c->leader < p->n_members && p->members[c->leader].call == i, "a call that another's request leads");
	require(s, c->device == leader->target.device && c->uid == leader->uid, "a call that is not its leader's");
	for (unsigned int j = 0; j < p->n_members; j++) {
		const struct ticket *t = ticket_of(p, j);
		unsigned int k = 0;

		if (p->members[j].call != i)
			continue;
		asked |= t->target.scope == c->scope;
		require(s,
			j >= c->leader || (c->scope == FLUSH_FILESYSTEM && is_file(t->target.scope) &&
					   !is_file(leader->target.scope)),
			"a call that is not led by the oldest");
		while (k < n_files && files[k] != t->target.inode)
			k++;
		if (is_file(t->target.scope) && k == n_files && n_files < 4)
			files[n_files++] = t->target.inode;
	}
	if (is_file(c->scope))
		require(s, is_file(leader->target.scope) && leader->target.inode == c->inode,
			"a file's call that is not its leader's");
	require(s, asked || (c->scope == FLUSH_FILESYSTEM && n_files == 4), "a call for more than anyone asked for");
	require(s, !asked || c->scope != FLUSH_FILESYSTEM || !is_file(leader->target.scope),
		"a filesystem's call that a file leads");
	if (c->served_by >= 0)
		require(s,
			c->scope == FLUSH_REGION && (unsigned int)c->served_by < i &&
			    p->calls[c->served_by].scope == FLUSH_FILESYSTEM,
			"a call that nothing serves");
}

static bool same_work(const struct flush_plan *p, const struct flush_call *a, const struct flush_call *b)
{
	const struct ticket *la = leader_of(p, a), *lb = leader_of(p, b);

	if (a->scope == FLUSH_REGION)
		return b->scope == FLUSH_REGION || (b->scope == FLUSH_FILESYSTEM && a->served_by < 0);
	if (a->device != b->device)
		return false;
	if (a->scope == FLUSH_FILESYSTEM && b->scope == FLUSH_FILESYSTEM)
		return is_file(la->target.scope) || (!la->target.descriptor && !lb->target.descriptor);
	if (is_file(a->scope))
		return (is_file(b->scope) && a->inode == b->inode) || (b->scope == FLUSH_FILESYSTEM && a->inode != 0);
	return false;
}

/* No sound plan does with fewer calls, and none of its bounds is passed. */
static void check_calls(struct sim *s, const struct flush_plan *p)
{
	unsigned int n = 0;

	for (unsigned int i = 0; i < p->n_calls; i++) {
		const struct flush_call *c = &p->calls[i];
		unsigned int of_uid = 0, files = 0;

		check_call(s, p, i);
		for (unsigned int j = 0; j < p->n_calls; j++) {
			const struct flush_call *other = &p->calls[j];

			require(s, i == j || !same_work(p, c, other), "two calls where one would do");
			of_uid += other->served_by < 0 && leader_of(p, other)->uid == leader_of(p, c)->uid;
			files += is_file(c->scope) && is_file(other->scope) && other->device == c->device &&
				 other->inode != 0;
		}
		require(s, of_uid <= 4, "more calls of a uid than it may lead");
		require(s, files < 4, "four files without a syncfs");
		n += c->served_by < 0;
	}
	require(s, n <= 16, "more calls than a round may have");
	s->n_calls += n;
	require(s, s->n_calls <= s->n_requests, "more calls than requests");
}

/* Whether the two would share a call at any rate. */
static bool same_need(const struct ticket *a, const struct ticket *b)
{
	const struct flush_target *x = &a->target, *y = &b->target;

	if (is_file(x->scope) && is_file(y->scope))
		return x->device == y->device && x->inode == y->inode;
	return x->scope == y->scope && x->device == y->device &&
	       (x->scope == FLUSH_REGION || (!x->descriptor && !y->descriptor));
}

/* Of those who wait before `t`, of one uid or of all: how many calls they may need. */
static unsigned int count_needs(struct sim *s, const struct ticket *t, const unsigned int *uid)
{
	unsigned int n = 0;

	for (const struct ticket *a = s->tickets; a < t; a++) {
		const struct ticket *b = s->tickets;

		if (!is_waiting(a) || (uid && a->uid != *uid))
			continue;
		while (b < a && !(is_waiting(b) && (!uid || b->uid == *uid) && same_need(a, b)))
			b++;
		n += a == b;
	}
	return n;
}

/* Whether those who wait before `t` make this call a filesystem's. */
static bool is_filesystem_for(const struct flush_plan *p, unsigned int call, const struct ticket *t)
{
	uint64_t files = 0;

	if (p->calls[call].scope != FLUSH_FILESYSTEM)
		return false;
	for (unsigned int i = 0; i < p->n_members && ticket_of(p, i) < t; i++) {
		if (p->members[i].call != call)
			continue;
		if (ticket_of(p, i)->target.scope == FLUSH_FILESYSTEM)
			return true;
		files |= UINT64_C(1) << ticket_of(p, i)->target.inode;
	}
	return __builtin_popcountll(files) >= 4;
}

/* It waits for another round: only if those before it have filled this one, and no call of theirs serves it. */
static void check_left(struct sim *s, const struct flush_plan *p, const struct ticket *t)
{
	unsigned int files = 0;

	require(s, count_needs(s, t, NULL) >= 16 || count_needs(s, t, &t->uid) >= 4,
		"a request within the bounds that waits for more than two rounds");
	for (unsigned int i = 0; i < p->n_members && ticket_of(p, i) < t; i++)
		require(s, !same_need(ticket_of(p, i), t), "a request left behind that a call serves");
	for (unsigned int i = 0; i < p->n_calls; i++) {
		const struct flush_call *c = &p->calls[i];

		if (t->target.scope != FLUSH_FILESYSTEM && is_filesystem_for(p, i, t))
			require(s, !serves(c, t) && t->target.scope != FLUSH_REGION,
				"a request left behind that a filesystem's call serves");
		files += is_file(c->scope) && leader_of(p, c) < t && is_file(t->target.scope) &&
			 c->device == t->target.device && c->inode && t->target.inode;
	}
	require(s, files < 3, "a request left behind that would make three calls one");
}

static void take_plan(struct sim *s, const struct flush_plan *p)
{
	struct job *job = &s->worker.job;
	unsigned int next = 0;

	require(s, p->n_calls > 0 && p->n_calls <= FLUSH_ROUND_MAX_CALLS + 1, "the wrong number of calls");
	require(s, p->n_members <= s->depth && p->n_descriptors <= p->n_members, "the wrong number of members");
	for (unsigned int i = 0; i < p->n_members; i++)
		check_member(s, p, i);
	check_calls(s, p);
	for (const struct ticket *t = s->tickets; t < s->tickets + s->n_tickets; t++) {
		if (!is_waiting(t))
			continue;
		if (next < p->n_members && t == ticket_of(p, next))
			next++;
		else
			check_left(s, p, t);
	}
	require(s, next == p->n_members, "members that do not wait");

	job->n_calls = p->n_calls;
	job->n_descriptors = p->n_descriptors;
	for (unsigned int i = 0; i < p->n_calls; i++) {
		job->served_by[i] = p->calls[i].served_by;
		job->leaders[i] = leader_of(p, &p->calls[i]);
	}
	for (unsigned int i = 0; i < p->n_members; i++) {
		((struct ticket *)p->members[i].owner)->round = s->round;
		if (p->members[i].descriptor < 0)
			continue;
		job->fetch[p->members[i].descriptor] = p->members[i].fetch;
		job->owners[p->members[i].descriptor] = ticket_of(p, i);
	}
}

static void tell_plan(const struct sim *s, const struct flush_plan *p)
{
	for (unsigned int i = 0; i < p->n_calls; i++) {
		say(s, "    %s %" PRIu64 " %" PRIu64 ", served by %d, led by request %u, for",
		    flush_scope_to_string(p->calls[i].scope), p->calls[i].device, p->calls[i].inode,
		    p->calls[i].served_by, (unsigned int)(leader_of(p, &p->calls[i]) - s->tickets));
		for (unsigned int j = 0; s->tell && j < p->n_members; j++)
			if (p->members[j].call == i)
				printf(" %u", (unsigned int)(ticket_of(p, j) - s->tickets));
		if (s->tell)
			printf("\n");
	}
}

static void check_start(struct sim *s, const struct flush_action *action)
{
	const struct flush_plan *p = flush_get_plan(s->f);
	struct flush_outcome outcome;

	say(s, "  round %" PRIu64 " begins\n", action->round);
	tell_plan(s, p);
	require(s, !s->worker.busy && !s->adopted, "a second round beside the one in flight");
	require(s, !s->latched && !s->gone, "a round for a region that is lost or gone");
	require(s, !s->withheld, "a round before it is known what earlier boots lost");
	require(s, !gathering(s), "a round while others are waited for");
	require(s, action->round == s->round + 1, "round numbers that do not count up by one");
	s->round++;
	require(s, ++s->n_rounds <= s->n_requests, "more rounds than requests");
	take_plan(s, p);
	s->gather.missing = 0;

	if (below(s, 32) == 0) {
		say(s, "  it cannot be begun\n");
		owe_round(s, s->round, PMEM_AGENT_UNKNOWN, EAGAIN);
		flush_outcome_set(&outcome, PMEM_AGENT_UNKNOWN, EAGAIN);
		flush_done(s->f, s->round, &outcome, FLUSH_ORIGIN_NONE, now(s));
		return;
	}
	s->worker.alive = s->worker.busy = true;
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
