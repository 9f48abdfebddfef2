/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * sim-flush: flush.c against its model, in random schedules of everything that can happen
 *
 * A schedule is a short history: requests come and go, rounds end in every way, errors come from elsewhere, clocks
 * move, losses are acknowledged, the agent dies and adopts what it left in the page, and the machine starts again.
 *
 * The seed of a schedule is its number: on a violation it is run again, telling its history.
 */
#include <getopt.h>
#include <stdlib.h>
#include <time.h>

#include "selftest/flush-model.h"

#define MIN_EVENTS 20
#define MAX_EVENTS 60
#define MAX_DEPTH  8
#define N_UIDS     3
#define N_FILES    3

/* In some schedules there is more of everything, so that the bounds of a round are met. */
#define CROWD_DEPTH   48
#define CROWD_UIDS    8
#define CROWD_DEVICES 24
#define CROWD_FILES   6
#define CROWD_BURST   6

enum event {
	ARRIVE,
	ADVANCE,
	END_DURABLE, /* how a round ends */
	END_LOST,
	END_MIXED,
	END_DIED,
	LOSE,
	FORGET,
	STALL,
	STRAY,
	STEP,
	RESTART,
	GONE,
	ACKNOWLEDGE,
	REBOOT,
	DOUBT,
	RECALL,
	N_EVENTS,
};

static const unsigned char weights[N_EVENTS] = {
	[ARRIVE] = 60, [ADVANCE] = 16,     [END_DURABLE] = 40, [END_LOST] = 2, [END_MIXED] = 8, [END_DIED] = 1,
	[LOSE] = 1,    [FORGET] = 8,       [STALL] = 6,        [STRAY] = 3,    [STEP] = 2,      [RESTART] = 3,
	[GONE] = 1,    [ACKNOWLEDGE] = 12, [REBOOT] = 2,       [DOUBT] = 2,    [RECALL] = 10,
};

/* ---- events ---- */

static int expected_refusal(const struct sim *s, unsigned int uid)
{
	unsigned int n = 0, of_uid = 0;

	for (unsigned int i = 0; i < s->n_tickets; i++) {
		n += s->tickets[i].open;
		of_uid += s->tickets[i].open && !s->tickets[i].due && s->tickets[i].uid == uid;
	}
	if (s->latched)
		return PMEM_AGENT_LOST;
	if (s->gone)
		return PMEM_AGENT_GONE;
	if (s->doubted)
		return PMEM_AGENT_UNKNOWN;
	return n >= s->depth || of_uid >= s->quota ? PMEM_AGENT_BUSY : 0;
}

static struct flush_target random_target(struct sim *s)
{
	static const enum flush_scope scopes[] = { FLUSH_FILESYSTEM, FLUSH_FILE, FLUSH_FILE_DATA };
	struct flush_target t = { .scope = FLUSH_REGION };

	if (below(s, s->burst > 1 ? 8 : 2) != 0) {
		t.scope = scopes[below(s, 3)];
		t.device = 1 + below(s, s->n_devices);
		if (t.scope != FLUSH_FILESYSTEM)
			t.inode = below(s, s->burst > 1 ? CROWD_FILES : N_FILES);
	}
	t.descriptor = is_file(t.scope) || below(s, 2);
	return t;
}

static void arrive(struct sim *s)
{
	unsigned int uid = below(s, s->n_uids);
	struct ticket *t = &s->tickets[s->n_tickets];
	int refusal = expected_refusal(s, uid), r;

	if (s->n_tickets == MAX_TICKETS)
		return;
	*t = (struct ticket){ .uid = uid, .target = random_target(s) };
	if (below(s, 4) == 0)
		t->deadline = s->monotonic + 1 + below(s, 2000);

	r = flush_arrive(s->f, &t->target, &(struct flush_caller){ .uid = uid, .deadline_usec = t->deadline }, t);
	say(s, "request %u of uid %u for %s %" PRIu64 " %" PRIu64 "%s, deadline %" PRIu64 ": %d\n", s->n_tickets, uid,
	    flush_scope_to_string(t->target.scope), t->target.device, t->target.inode,
	    t->target.descriptor ? "" : " without a descriptor", t->deadline, r);
	require(s, r != 0 || refusal != PMEM_AGENT_BUSY, "a request beyond the quota or the depth of the queue");
	require(s, r == refusal, "a request that is wrongly refused or taken");
	if (r != 0)
		return;
	t->open = true;
	s->n_tickets++;
	s->n_requests++;
	if (is_joinable(t) && s->gather.missing > 0)
		s->gather.missing--;
}

static void forget(struct sim *s)
{
	struct ticket *t;

	if (s->n_tickets == 0)
		return;
	t = &s->tickets[below(s, s->n_tickets)];
	say(s, "request %u is forgotten%s\n", (unsigned int)(t - s->tickets), t->open ? "" : ", which it was already");
	flush_forget(s->f, t, now(s).realtime);
	if (t->open && t->due && t->answer == PMEM_AGENT_FAILED) {
		t->open = false;
		owe_loss(s, t->error, FLUSH_ORIGIN_ROUND);
	}
	t->open = false;
}

static void advance(struct sim *s)
{
	uint64_t wakeup = flush_get_wakeup(s->f);

	switch (below(s, 4)) {
	case 0:
		s->monotonic += below(s, 100000);
		break;
	case 1:
		if (wakeup != UINT64_MAX && wakeup > s->monotonic) {
			s->monotonic = wakeup - below(s, 2);
			break;
		}
		/* fall through */
	default:
		s->monotonic += below(s, 400);
		break;
	}
	say(s, "it is %" PRIu64 "\n", s->monotonic);
}

/* What the worker writes into the page, and whether it survives. */
static void end_call(struct sim *s, enum event how)
{
	static const char *const names[N_EVENTS] = {
		[END_DURABLE] = "durable",
		[END_LOST] = "EIO",
		[END_MIXED] = "to each its own",
		[END_DIED] = "the worker's death",
	};

	say(s, "round %" PRIu64 " ends: %s\n", s->worker.round, names[how]);
	s->worker.busy = false;
	if (how == END_DIED) {
		s->worker.alive = false;
		return;
	}
	if (how == END_LOST) {
		s->page.failed = s->worker.round;
		s->page.error = EIO;
	}
	s->page.done = s->worker.round;
}

/* Once the worker of an agent before this one is gone: what round.c does with the page. */
static void settle(struct sim *s)
{
	int error = s->page.failed > s->page.failed_seen ? s->page.error : s->page.started > s->page.done ? EIO : 0;

	if (error == 0)
		return;
	say(s, "the page tells of a loss\n");
	owe_loss(s, error, FLUSH_ORIGIN_WORKER);
	flush_lose(s->f, error, FLUSH_ORIGIN_WORKER, now(s).realtime);
	s->page.done = s->page.started; /* one loss is told once */
}

static void end_adopted(struct sim *s, enum event how)
{
	if (s->worker.busy)
		end_call(s, how);
	say(s, "the worker of the agent before is gone\n");
	s->worker.alive = false;
	settle(s);
	flush_adopted(s->f, s->page.started);
	s->round = s->page.started;
	s->adopted = s->overtaken = false;
}

static struct flush_outcome_of random_outcome(struct sim *s, unsigned int bad_of)
{
	static const struct flush_outcome_of bad[] = {
		{ PMEM_AGENT_FAILED, ENOSPC },
		{ PMEM_AGENT_FAILED, EDQUOT },
		{ PMEM_AGENT_UNFLUSHED, 0 },
		{ PMEM_AGENT_UNKNOWN, 0 },
	};

	return bad_of > 0 && below(s, bad_of) == 0 ? bad[below(s, 4)]
						   : (struct flush_outcome_of){ PMEM_AGENT_DURABLE, 0 };
}

/* What the worker makes of the round: a call that is served by another is made if that failed. */
static void make_calls(struct sim *s, enum event how, struct flush_outcome *ret)
{
	const struct job *job = &s->worker.job;
	unsigned int lost = below(s, job->n_calls + job->n_descriptors);

	/* Beyond the numbers of the plan anything may stand. */
	flush_outcome_set(ret, how == END_LOST ? PMEM_AGENT_DURABLE : PMEM_AGENT_LOST, 0);
	for (unsigned int i = 0; i < job->n_calls; i++) {
		ret->calls[i] = random_outcome(s, how == END_MIXED ? 3 : 0);
		if (job->served_by[i] >= 0 && ret->calls[job->served_by[i]].answer == PMEM_AGENT_DURABLE)
			ret->calls[i] = ret->calls[job->served_by[i]];
	}
	for (unsigned int i = 0; i < job->n_descriptors; i++)
		ret->descriptors[i] = random_outcome(s, how == END_MIXED && job->fetch[i] ? 3 : 0);
	if (how == END_DIED)
		flush_outcome_set(ret, PMEM_AGENT_LOST, EIO);
	else if (how == END_LOST && lost < job->n_calls)
		ret->calls[lost] = (struct flush_outcome_of){ PMEM_AGENT_LOST, EIO };
	else if (how == END_LOST)
		ret->descriptors[lost - job->n_calls] = (struct flush_outcome_of){ PMEM_AGENT_LOST, EIO };
	for (unsigned int i = 0; s->tell && i < job->n_calls; i++)
		say(s, "  call %u: %d\n", i, ret->calls[i].answer);
	for (unsigned int i = 0; s->tell && i < job->n_descriptors; i++)
		say(s, "  descriptor %u: %d\n", i, ret->descriptors[i].answer);
}

static void end(struct sim *s, enum event how)
{
	enum flush_origin origin = how == END_DIED ? FLUSH_ORIGIN_WORKER : FLUSH_ORIGIN_ROUND;
	struct flush_outcome outcome;
	int unheard;

	if (s->adopted) {
		end_adopted(s, how);
		return;
	}
	if (!s->worker.busy)
		return;
	end_call(s, how);
	make_calls(s, how, &outcome);
	if (how == END_DIED)
		s->page.done = s->page.started;
	unheard = find_unheard(s, &outcome);
	if (how == END_DIED || how == END_LOST)
		owe_loss(s, EIO, origin);
	else if (unheard != 0)
		owe_loss(s, unheard, origin);
	else if (!s->overtaken)
		owe_outcome(s, &outcome);
	s->overtaken = false;
	flush_done(s->f, s->round, &outcome, origin, now(s));
}

static void lose(struct sim *s)
{
	say(s, "the witness saw a loss\n");
	owe_loss(s, EIO, FLUSH_ORIGIN_WITNESS);
	flush_lose(s->f, EIO, FLUSH_ORIGIN_WITNESS, now(s).realtime);
}

/* By the number of the newest loss, the one before it, or the one after. */
static void acknowledge(struct sim *s)
{
	uint64_t number = s->page.loss.number + below(s, 3) - 1;
	bool right = s->latched && number == s->page.loss.number;

	say(s, "loss %" PRIu64 " is acknowledged\n", number);
	require(s,
		flush_acknowledge(s->f, number) == (s->withheld ? PMEM_AGENT_UNKNOWN
						    : right     ? 0
								: PMEM_AGENT_STALE_LOSS),
		"an acknowledgement of another loss, or not of this one");
	if (s->withheld || !right)
		return;
	s->page.acknowledged = number;
	s->latched = false;
}

static void stall(struct sim *s)
{
	bool news = s->worker.busy && !s->adopted && !s->stalled;

	say(s, "the round in flight stalls\n");
	require(s, flush_stall(s->f) == news, "a stall that is none, or known");
	s->stalled |= news;
}

/* Of a round that is not in flight: it must change nothing. */
static void stray(struct sim *s)
{
	uint64_t round = s->round + 1 - below(s, 3);
	struct flush_outcome outcome;

	if (s->worker.busy && !s->adopted && round == s->round)
		round--;
	say(s, "a stray result of round %" PRIu64 "\n", round);
	flush_outcome_set(&outcome, below(s, 2) ? PMEM_AGENT_DURABLE : PMEM_AGENT_LOST, 0);
	flush_done(s->f, round, &outcome, FLUSH_ORIGIN_ROUND, now(s));
}

static void remove_region(struct sim *s)
{
	say(s, "the region is removed\n");
	owe_round(s, 0, PMEM_AGENT_GONE, ENODEV);
	flush_gone(s->f);
	s->gone = true;
}

static enum event random_end(struct sim *s)
{
	static const enum event hows[] = { END_DURABLE, END_DURABLE, END_DURABLE, END_LOST, END_MIXED, END_DIED };

	return hows[below(s, 6)];
}

static bool start_agent(struct sim *s)
{
	flush_free(s->f);
	s->f = flush_new(s->depth, s->quota, s->page.started, s->page.epoch);
	s->round = s->page.started;
	s->epoch = s->page.epoch;
	s->epoch_usec = s->n_rounds = s->n_requests = s->n_calls = 0;
	s->gone = s->latched = s->overtaken = s->adopted = s->stalled = s->withheld = s->doubted = false;
	memset(&s->gather, 0, sizeof(s->gather));
	return s->f != NULL;
}

static void forget_all(struct sim *s)
{
	for (unsigned int i = 0; i < s->n_tickets; i++)
		s->tickets[i].open = false;
}

/* The clients lose their agent; its worker ends the call it is in, sooner or later, and then itself. */
static void restart(struct sim *s)
{
	say(s, "the agent dies\n");
	forget_all(s);
	if (s->worker.busy && below(s, 2) == 0)
		end_call(s, random_end(s));
	else if (s->worker.busy && below(s, 2) == 0)
		s->page.started--; /* it has not read of its round yet */
	if (!s->worker.busy && below(s, 4) != 0)
		s->worker.alive = false;

	say(s, "the next agent starts\n");
	if (!start_agent(s))
		abort();
	flush_restore_loss(s->f, &s->page.loss, s->page.acknowledged);
	s->latched = s->page.loss.number > s->page.acknowledged;
	if (s->earlier.loss.number > 0) {
		say(s, "which does not know yet what earlier boots lost\n");
		flush_withhold(s->f);
		s->withheld = true;
	}
	if (!s->worker.alive) {
		settle(s);
		return;
	}
	say(s, "and adopts a worker%s\n", s->worker.busy ? " with a round in flight" : "");
	flush_adopt(s->f, s->worker.busy ? s->page.started_usec : now(s).realtime);
	s->adopted = true;
	if (s->worker.busy)
		s->page.started = s->worker.round;
}

/* Of the page nothing is left, of losses what is on record: it has yet to be read. */
static void reboot(struct sim *s)
{
	say(s, "the machine starts again\n");
	forget_all(s);
	/* What had not been read before is still there, and what was noticed meanwhile comes after it. */
	if (!s->withheld)
		s->earlier = s->page;
	else if (s->latched)
		s->earlier.loss.number += s->page.loss.number;
	s->earlier.loss.earlier_boot = true;
	memset(&s->page, 0, sizeof(s->page));
	memset(&s->worker, 0, sizeof(s->worker));
	if (!start_agent(s))
		abort();
	flush_withhold(s->f);
	s->withheld = true;
}

static void doubt(struct sim *s)
{
	say(s, "the record cannot be read for now\n");
	flush_doubt(s->f);
	if (!s->withheld)
		return;
	owe_round(s, 0, PMEM_AGENT_UNKNOWN, 0);
	s->doubted = true;
}

static void recall(struct sim *s)
{
	if (!s->withheld)
		return;
	say(s, "the record is read: loss %" PRIu64 ", acknowledged %" PRIu64 "\n", s->earlier.loss.number,
	    s->earlier.acknowledged);
	flush_restore_loss(s->f, &s->earlier.loss, s->earlier.acknowledged);
	flush_recalled(s->f);
	if (s->page.loss.number > 0)
		s->page.loss.number += s->earlier.loss.number;
	else
		s->page.loss = s->earlier.loss;
	s->page.acknowledged = s->earlier.acknowledged;
	s->latched = s->page.loss.number > s->page.acknowledged;
	if (s->latched)
		owe_round(s, 0, PMEM_AGENT_LOST, s->page.loss.error);
	s->withheld = s->doubted = false;
	memset(&s->earlier, 0, sizeof(s->earlier));
}

static void happen(struct sim *s, enum event event)
{
	switch (event) {
	case ARRIVE:
		for (unsigned int n = 1 + below(s, s->burst); n > 0; n--)
			arrive(s);
		break;
	case ADVANCE:
		advance(s);
		break;
	case END_DURABLE:
	case END_LOST:
	case END_MIXED:
	case END_DIED:
		end(s, event);
		break;
	case LOSE:
		lose(s);
		break;
	case FORGET:
		forget(s);
		break;
	case STALL:
		stall(s);
		break;
	case STRAY:
		stray(s);
		break;
	case STEP:
		s->offset = 1000000 + below(s, 1000000);
		say(s, "CLOCK_REALTIME is set\n");
		break;
	case RESTART:
		restart(s);
		break;
	case GONE:
		remove_region(s);
		break;
	case ACKNOWLEDGE:
		acknowledge(s);
		break;
	case REBOOT:
		reboot(s);
		break;
	case DOUBT:
		doubt(s);
		break;
	case RECALL:
		recall(s);
		break;
	case N_EVENTS:
		break;
	}
}

/* ---- schedules ---- */

static enum event choose(struct sim *s, const bool allowed[static N_EVENTS], unsigned int total)
{
	unsigned int left = below(s, total);

	for (enum event e = 0; e < N_EVENTS; e++) {
		if (!allowed[e])
			continue;
		if (left < weights[e])
			return e;
		left -= weights[e];
	}
	return ARRIVE;
}

/* Nobody may be left waiting once every round ends. */
static void finish(struct sim *s)
{
	say(s, "from here on every round ends well\n");
	recall(s);
	for (unsigned int i = 0; i < 2 * MAX_TICKETS; i++) {
		drain(s);
		if (s->worker.busy || s->adopted)
			end(s, END_DURABLE);
		else if (gathering(s))
			s->monotonic = flush_get_wakeup(s->f);
		else
			return;
		s->n_events++;
	}
	violated(s, "a request that is never answered");
}

static void play(struct sim *s)
{
	bool allowed[N_EVENTS], crowd = below(s, 8) == 0;
	unsigned int n, total = 0;

	s->depth = crowd ? CROWD_DEPTH : 1 + below(s, MAX_DEPTH);
	s->quota = crowd ? 4 + below(s, 5) : 1 + below(s, s->depth);
	s->n_uids = crowd ? CROWD_UIDS : 1 + below(s, N_UIDS);
	s->n_devices = 1 + below(s, crowd ? 1 + below(s, CROWD_DEVICES) : 2);
	s->burst = crowd ? CROWD_BURST : 1;
	s->offset = 1000000;
	s->page.started = s->page.done = s->page.epoch = below(s, 4);
	if (!start_agent(s))
		abort();
	say(s, "depth %u, quota %u\n", s->depth, s->quota);

	/* Each schedule does without some events, so that what others would cut short is seen at length. */
	for (enum event e = 0; e < N_EVENTS; e++) {
		allowed[e] = e <= END_DURABLE || below(s, 2);
		total += allowed[e] ? weights[e] : 0;
	}
	n = MIN_EVENTS + below(s, MAX_EVENTS - MIN_EVENTS + 1);
	s->n_events += n;
	while (n-- > 0) {
		s->monotonic += below(s, 50);
		happen(s, choose(s, allowed, total));
		if (below(s, 4) != 0)
			drain(s);
	}
	finish(s);
}

/* NULL, or what was violated. */
static const char *run_schedule(struct sim *s, uint64_t seed, bool tell)
{
	uint64_t n_events = s->n_events;

	*s = (struct sim){ .seed = seed, .random = seed, .tell = tell, .monotonic = 1000, .n_events = n_events };
	if (setjmp(s->failed) == 0)
		play(s);
	flush_free(s->f);
	return s->violation;
}

static double seconds(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static int usage(void)
{
	fprintf(stderr, "usage: sim-flush [--schedules N] [--events N] [--first SEED | --tell SEED]\n");
	return 2;
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "schedules", required_argument, NULL, 's' },
		{ "events", required_argument, NULL, 'e' },
		{ "first", required_argument, NULL, 'f' },
		{ "tell", required_argument, NULL, 't' },
		{},
	};
	uint64_t n_schedules = 50000, n_events = 0, first = 0, seed;
	static struct sim s;
	double began = seconds(), took;
	bool tell = false;
	int c;

	while ((c = getopt_long(argc, argv, "", options, NULL)) >= 0) {
		uint64_t value = optarg ? strtoull(optarg, NULL, 0) : 0;

		if (c == 's')
			n_schedules = value;
		else if (c == 'e')
			n_events = value;
		else if (c == 'f' || c == 't')
			first = value;
		else
			return usage();
		tell |= c == 't';
	}
	if (optind < argc)
		return usage();
	if (tell)
		n_schedules = 1;

	printf("1..1\n# from seed %" PRIu64 "\n", first);
	for (seed = first; n_events ? s.n_events < n_events : seed - first < n_schedules; seed++) {
		const char *violation = run_schedule(&s, seed, tell);

		if (!violation)
			continue;
		printf("not ok 1 - flush.c keeps to the model\n");
		run_schedule(&s, seed, true);
		printf("# schedule %" PRIu64 " violates: %s\n", seed, violation);
		return 1;
	}
	took = seconds() - began;
	printf("ok 1 - flush.c keeps to the model: %" PRIu64 " schedules, %" PRIu64
	       " events in %.1f s, %.1f million a second\n",
	       seed - first, s.n_events, took, (double)s.n_events / took / 1e6);
	return 0;
}
