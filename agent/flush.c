/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <errno.h>
#include <stdlib.h>
#include <sys/queue.h>

#include "flush.h"
#include "plan.h"

/* A uid with requests that wait. */
struct client {
	uid_t uid;
	unsigned int n_waiting;
	LIST_ENTRY(client) entry;
};

LIST_HEAD(client_list, client);

struct waiter {
	void *owner;
	struct flush_target target;
	struct client *client;  /* until it is answered */
	uint64_t deadline_usec; /* UINT64_MAX: none */
	enum pmem_agent_answer answer;
	int error;
	uint64_t round, durable_usec;
	unsigned int member; /* in the plan of the round that it takes part in */
	TAILQ_ENTRY(waiter) entry;
};

TAILQ_HEAD(waiter_list, waiter);

/* A waiter is on exactly one of the lists. */
struct flush {
	struct waiter_list unused;
	struct waiter_list waiting; /* for a round that has not started, oldest first */
	struct waiter_list joined;  /* the round in flight */
	struct waiter_list answered;
	unsigned int n_waiting; /* on `waiting` and `joined` */
	uint64_t deadline_usec; /* none of theirs is earlier */

	unsigned int quota;
	struct client_list clients, unused_clients;

	/* Callers that a round answered together tend to come back together, just after the next one has begun. */
	struct {
		bool on;
		unsigned int missing; /* of those just answered */
		uint64_t until_usec;  /* CLOCK_MONOTONIC */
		uint64_t usual_usec;  /* running mean of the rounds that others could join */
	} gather;

	enum flush_state state; /* never FLUSH_GATHERING */
	bool adopted;           /* what is in flight is not ours */
	bool gone;
	bool latched;   /* loss.number > acknowledged */
	bool overtaken; /* a loss was noticed while the round was in flight */
	bool withheld, doubted;
	uint64_t started, epoch, epoch_usec;
	struct flush_plan plan;      /* of the newest round */
	struct flush_time in_flight; /* when it began */
	struct flush_loss loss;      /* the newest, latched or not */
	uint64_t acknowledged;

	struct {
		struct waiter waiter;
		struct client client;
	} slots[];
};

struct flush *flush_new(unsigned int depth, unsigned int quota, uint64_t started, uint64_t epoch)
{
	struct flush *f = calloc(1, sizeof(*f) + depth * sizeof(f->slots[0]));

	if (!f)
		return NULL;
	f->plan.members = calloc(depth, sizeof(*f->plan.members));
	if (!f->plan.members)
		return flush_free(f);

	TAILQ_INIT(&f->unused);
	TAILQ_INIT(&f->waiting);
	TAILQ_INIT(&f->joined);
	TAILQ_INIT(&f->answered);
	LIST_INIT(&f->clients);
	LIST_INIT(&f->unused_clients);
	for (unsigned int i = 0; i < depth; i++) {
		TAILQ_INSERT_TAIL(&f->unused, &f->slots[i].waiter, entry);
		LIST_INSERT_HEAD(&f->unused_clients, &f->slots[i].client, entry);
	}
	f->quota = quota;
	f->deadline_usec = UINT64_MAX;
	f->started = started;
	f->epoch = epoch;
	return f;
}

struct flush *flush_free(struct flush *f)
{
	if (f)
		free(f->plan.members);
	free(f);
	return NULL;
}

static void leave(struct flush *f, struct waiter_list *list, struct waiter *w)
{
	TAILQ_REMOVE(list, w, entry);
	if (--f->n_waiting == 0)
		f->deadline_usec = UINT64_MAX;
	if (--w->client->n_waiting == 0) {
		LIST_REMOVE(w->client, entry);
		LIST_INSERT_HEAD(&f->unused_clients, w->client, entry);
	}
}

static void answer_waiter(struct flush *f, struct waiter_list *list, struct waiter *w, enum pmem_agent_answer answer,
			  int error)
{
	leave(f, list, w);
	w->answer = answer;
	w->error = error;
	w->round = f->started;
	w->durable_usec = f->in_flight.realtime;
	TAILQ_INSERT_TAIL(&f->answered, w, entry);
}

static unsigned int answer_list(struct flush *f, struct waiter_list *list, enum pmem_agent_answer answer, int error)
{
	struct waiter *w;
	unsigned int n = 0;

	for (; (w = TAILQ_FIRST(list)); n++)
		answer_waiter(f, list, w, answer, error);
	return n;
}

static struct client *find_client(struct flush *f, uid_t uid)
{
	struct client *c;

	LIST_FOREACH(c, &f->clients, entry)
	if (c->uid == uid)
		return c;
	return NULL;
}

/* There is one as long as there is an unused waiter: no more uids wait than requests. */
static struct client *new_client(struct flush *f, uid_t uid)
{
	struct client *c = LIST_FIRST(&f->unused_clients);

	LIST_REMOVE(c, entry);
	*c = (struct client){ .uid = uid };
	LIST_INSERT_HEAD(&f->clients, c, entry);
	return c;
}

/* Requests that come back together share a call, or a round at the cost of their calls. */
static bool joinable(const struct waiter *w)
{
	return w->target.scope != FLUSH_FILESYSTEM;
}

int flush_arrive(struct flush *f, const struct flush_target *target, const struct flush_caller *caller, void *owner)
{
	struct waiter *w = TAILQ_FIRST(&f->unused);
	struct client *c = find_client(f, caller->uid);

	if (f->latched)
		return PMEM_AGENT_LOST;
	if (f->gone)
		return PMEM_AGENT_GONE;
	if (f->doubted)
		return PMEM_AGENT_UNKNOWN;
	if (!w || (c && c->n_waiting >= f->quota))
		return PMEM_AGENT_BUSY;

	TAILQ_REMOVE(&f->unused, w, entry);
	*w = (struct waiter){
		.owner = owner,
		.target = *target,
		.client = c ?: new_client(f, caller->uid),
		.deadline_usec = caller->deadline_usec ?: UINT64_MAX,
	};
	TAILQ_INSERT_TAIL(&f->waiting, w, entry);
	w->client->n_waiting++;
	f->n_waiting++;
	if (w->deadline_usec < f->deadline_usec)
		f->deadline_usec = w->deadline_usec;
	if (joinable(w) && f->gather.missing > 0)
		f->gather.missing--;
	return 0;
}

static struct waiter *find_waiter(struct waiter_list *list, const void *owner)
{
	struct waiter *w;

	TAILQ_FOREACH (w, list, entry)
		if (w->owner == owner)
			return w;
	return NULL;
}

void flush_forget(struct flush *f, void *owner, uint64_t now)
{
	struct waiter *w;

	if ((w = find_waiter(&f->waiting, owner)))
		leave(f, &f->waiting, w);
	else if ((w = find_waiter(&f->joined, owner)))
		leave(f, &f->joined, w);
	else if ((w = find_waiter(&f->answered, owner)))
		TAILQ_REMOVE(&f->answered, w, entry);
	else
		return;
	TAILQ_INSERT_TAIL(&f->unused, w, entry);
	if (w->answer == PMEM_AGENT_FAILED)
		flush_lose(f, w->error, FLUSH_ORIGIN_ROUND, now);
}

static void expire_in(struct flush *f, struct waiter_list *list, uint64_t now)
{
	struct waiter *w, *next;

	for (w = TAILQ_FIRST(list); w; w = next) {
		next = TAILQ_NEXT(w, entry);
		if (w->deadline_usec <= now)
			answer_waiter(f, list, w, PMEM_AGENT_TIMEOUT, ETIMEDOUT);
		else if (w->deadline_usec < f->deadline_usec)
			f->deadline_usec = w->deadline_usec;
	}
}

static void expire(struct flush *f, uint64_t now)
{
	if (now < f->deadline_usec)
		return;
	f->deadline_usec = UINT64_MAX;
	expire_in(f, &f->joined, now);
	expire_in(f, &f->waiting, now);
}

static void start(struct flush *f, struct flush_time now, struct flush_action *ret)
{
	struct flush_plan *p = &f->plan;
	struct waiter *w, *next;

	*ret = (struct flush_action){ .type = FLUSH_ACT_START, .round = ++f->started };
	f->state = FLUSH_IN_FLIGHT;
	f->in_flight = now;
	f->gather.on = false;
	f->gather.missing = 0;

	plan_begin(p);
	for (w = TAILQ_FIRST(&f->waiting); w; w = next) {
		next = TAILQ_NEXT(w, entry);
		if (!plan_add(p, &w->target, w->client->uid, w->owner))
			continue;
		w->member = p->n_members - 1;
		TAILQ_REMOVE(&f->waiting, w, entry);
		TAILQ_INSERT_TAIL(&f->joined, w, entry);
	}
	plan_finish(p);
}

/* `n` have been answered by a round that others could join. */
static void gather(struct flush *f, unsigned int n, uint64_t now)
{
	uint64_t took = now - f->in_flight.monotonic, usual = f->gather.usual_usec;
	const struct waiter *next = TAILQ_FIRST(&f->waiting);

	usual = usual ? (7 * usual + took) / 8 : took;
	f->gather.usual_usec = usual;
	if (n > 1 || (next && joinable(next))) {
		f->gather.missing = n;
		usual /= FLUSH_GATHER_SHARE;
		f->gather.until_usec = now + (usual < FLUSH_GATHER_MAX_USEC ? usual : FLUSH_GATHER_MAX_USEC);
	}
}

bool flush_next(struct flush *f, struct flush_time now, struct flush_action *ret)
{
	struct waiter *w;

	expire(f, now.monotonic);
	w = TAILQ_FIRST(&f->answered);
	if (w) {
		*ret = (struct flush_action){
			.type = FLUSH_ACT_ANSWER,
			.owner = w->owner,
			.round = w->round,
			.answer = w->answer,
			.error = w->error,
			.durable_usec = w->answer == PMEM_AGENT_DURABLE ? w->durable_usec : 0,
		};
		TAILQ_REMOVE(&f->answered, w, entry);
		TAILQ_INSERT_TAIL(&f->unused, w, entry);
		return true;
	}

	/* A latched or removed region has answered all that waited. */
	w = TAILQ_FIRST(&f->waiting);
	if (f->state != FLUSH_IDLE || f->withheld || !w)
		return false;
	f->gather.on = joinable(w) && f->gather.missing > 0 && now.monotonic < f->gather.until_usec;
	if (f->gather.on)
		return false;
	start(f, now, ret);
	return true;
}

const struct flush_plan *flush_get_plan(const struct flush *f)
{
	return &f->plan;
}

static bool is_gathering(const struct flush *f)
{
	return f->state == FLUSH_IDLE && f->gather.on && !TAILQ_EMPTY(&f->waiting);
}

uint64_t flush_get_wakeup(const struct flush *f)
{
	return is_gathering(f) && f->gather.until_usec < f->deadline_usec ? f->gather.until_usec : f->deadline_usec;
}

static void land(struct flush *f)
{
	f->state = FLUSH_IDLE;
	f->adopted = f->overtaken = false;
	f->in_flight = (struct flush_time){};
}

void flush_outcome_set(struct flush_outcome *outcome, enum pmem_agent_answer answer, int error)
{
	const struct flush_outcome_of each = { .answer = answer, .error = error };

	for (unsigned int i = 0; i < ARRAY_SIZE(outcome->calls); i++)
		outcome->calls[i] = each;
	for (unsigned int i = 0; i < ARRAY_SIZE(outcome->descriptors); i++)
		outcome->descriptors[i] = each;
}

static const struct flush_outcome_of *find_outcome(const struct flush_outcome_of *of, unsigned int n,
						   enum pmem_agent_answer answer)
{
	for (unsigned int i = 0; i < n; i++)
		if (of[i].answer == answer)
			return &of[i];
	return NULL;
}

static bool is_joined(const struct flush *f, unsigned int member)
{
	const struct waiter *w;

	TAILQ_FOREACH (w, &f->joined, entry)
		if (w->member == member)
			return true;
	return false;
}

/*
 * The kernel tells the failure of a target once, to the descriptor by which it was asked. If nobody waits for that
 * answer any more, whoever asks again would be told durable. The errno; 0: there is none.
 */
static int find_unheard(const struct flush *f, const struct flush_outcome *outcome)
{
	const struct flush_plan *p = &f->plan;

	for (unsigned int i = 0; i < p->n_calls; i++)
		if (outcome->calls[i].answer == PMEM_AGENT_FAILED && !is_joined(f, p->calls[i].leader))
			return outcome->calls[i].error;
	for (unsigned int i = 0; i < p->n_descriptors; i++)
		if (outcome->descriptors[i].answer == PMEM_AGENT_FAILED && !is_joined(f, p->descriptors[i]))
			return outcome->descriptors[i].error;
	return 0;
}

/* What the call came to; but what waited in the member's own descriptor is told now or never. */
static const struct flush_outcome_of *outcome_of(const struct flush_outcome *outcome, const struct flush_member *m)
{
	const struct flush_outcome_of *call = &outcome->calls[m->call];
	const struct flush_outcome_of *own = m->descriptor >= 0 ? &outcome->descriptors[m->descriptor] : NULL;

	return own && (call->answer == PMEM_AGENT_DURABLE || own->answer == PMEM_AGENT_FAILED) ? own : call;
}

/* The requests of the round in flight are told, each of its own. */
static void tell(struct flush *f, const struct flush_outcome *outcome, uint64_t now)
{
	unsigned int n = 0;
	struct waiter *w;

	if (find_outcome(outcome->calls, f->plan.n_calls, PMEM_AGENT_DURABLE)) {
		f->epoch = f->started;
		f->epoch_usec = f->in_flight.realtime;
	}
	while ((w = TAILQ_FIRST(&f->joined))) {
		const struct flush_outcome_of *of = outcome_of(outcome, &f->plan.members[w->member]);

		n += of->answer == PMEM_AGENT_DURABLE && joinable(w);
		answer_waiter(f, &f->joined, w, of->answer, of->error);
	}
	if (n > 0)
		gather(f, n, now);
}

void flush_done(struct flush *f, uint64_t round, const struct flush_outcome *outcome, enum flush_origin origin,
		struct flush_time now)
{
	const struct flush_outcome_of *lost;
	int unheard;

	if (f->state == FLUSH_IDLE || f->adopted || round != f->started)
		return;

	/*
	 * A region that was latched while the round was in flight has answered its waiters; whatever the round
	 * returned after that proves nothing, so the epoch stays, acknowledged or not.
	 */
	lost = find_outcome(outcome->calls, f->plan.n_calls, PMEM_AGENT_LOST)
		   ?: find_outcome(outcome->descriptors, f->plan.n_descriptors, PMEM_AGENT_LOST);
	unheard = lost ? 0 : find_unheard(f, outcome);
	if (lost || unheard != 0)
		flush_lose(f, lost ? lost->error : unheard, origin, now.realtime);
	else if (!f->overtaken)
		tell(f, outcome, now.monotonic);
	land(f);
}

void flush_adopt(struct flush *f, uint64_t started_usec)
{
	f->state = FLUSH_STALLED;
	f->adopted = true;
	f->in_flight.realtime = started_usec;
}

void flush_adopted(struct flush *f, uint64_t started)
{
	if (!f->adopted)
		return;
	if (started > f->started)
		f->started = started;
	land(f);
}

void flush_lose(struct flush *f, int error, enum flush_origin origin, uint64_t now)
{
	struct waiter *w;

	/*
	 * Every loss gets a number of its own, also while the region is latched: who acknowledges the one before it
	 * may have rewritten the data just before this one took it away again.
	 */
	f->latched = true;
	f->overtaken = f->state != FLUSH_IDLE;
	f->loss = (struct flush_loss){
		.number = f->loss.number + 1,
		.error = error,
		.origin = origin,
		.round = f->started,
		.epoch = f->epoch,
		.usec = now,
	};
	TAILQ_FOREACH (w, &f->answered, entry) {
		if (w->answer == PMEM_AGENT_DURABLE) {
			w->answer = PMEM_AGENT_LOST;
			w->error = error;
		}
	}
	answer_list(f, &f->joined, PMEM_AGENT_LOST, error);
	answer_list(f, &f->waiting, PMEM_AGENT_LOST, error);
}

int flush_acknowledge(struct flush *f, uint64_t number)
{
	if (f->withheld)
		return PMEM_AGENT_UNKNOWN;
	if (!f->latched || number != f->loss.number)
		return PMEM_AGENT_STALE_LOSS;
	f->acknowledged = number;
	f->latched = false;
	return 0;
}

void flush_restore_loss(struct flush *f, const struct flush_loss *loss, uint64_t acknowledged)
{
	if (f->latched)
		f->loss.number += loss->number;
	else if (loss->number > f->loss.number)
		f->loss = *loss;
	if (acknowledged > f->acknowledged)
		f->acknowledged = acknowledged;
	f->latched = f->loss.number > f->acknowledged;
	if (f->latched)
		answer_list(f, &f->waiting, PMEM_AGENT_LOST, f->loss.error);
}

void flush_withhold(struct flush *f)
{
	f->withheld = true;
}

void flush_doubt(struct flush *f)
{
	if (!f->withheld)
		return;
	f->doubted = true;
	answer_list(f, &f->waiting, PMEM_AGENT_UNKNOWN, 0);
}

void flush_recalled(struct flush *f)
{
	f->withheld = f->doubted = false;
}

void flush_void(struct flush *f)
{
	struct waiter *w;

	f->epoch_usec = 0;
	TAILQ_FOREACH (w, &f->answered, entry)
		if (w->answer == PMEM_AGENT_DURABLE)
			w->answer = PMEM_AGENT_UNKNOWN;
}

bool flush_stall(struct flush *f)
{
	if (f->state != FLUSH_IN_FLIGHT)
		return false;
	f->state = FLUSH_STALLED;
	return true;
}

void flush_gone(struct flush *f)
{
	f->gone = true;
	answer_list(f, &f->waiting, PMEM_AGENT_GONE, ENODEV);
}

void flush_get_status(const struct flush *f, struct flush_status *ret)
{
	*ret = (struct flush_status){
		.state = is_gathering(f) ? FLUSH_GATHERING : f->state,
		.gone = f->gone,
		.started = f->started,
		.epoch = f->epoch,
		.epoch_usec = f->epoch_usec,
		.in_flight_usec = f->in_flight.realtime,
		.waiting = f->n_waiting,
		.acknowledged = f->acknowledged,
		.withheld = f->withheld,
	};
	if (f->latched)
		ret->loss = f->loss;
}

const char *flush_scope_to_string(enum flush_scope scope)
{
	static const char *const names[N_FLUSH_SCOPES] = {
		[FLUSH_REGION] = "region",
		[FLUSH_FILESYSTEM] = "filesystem",
		[FLUSH_FILE] = "file",
		[FLUSH_FILE_DATA] = "file-data",
	};

	return (unsigned int)scope < N_FLUSH_SCOPES ? names[scope] : "unknown";
}

const char *flush_origin_to_string(enum flush_origin origin)
{
	static const char *const names[N_FLUSH_ORIGINS] = {
		[FLUSH_ORIGIN_NONE] = "none",       [FLUSH_ORIGIN_ROUND] = "round",
		[FLUSH_ORIGIN_WITNESS] = "witness", [FLUSH_ORIGIN_OVERRUN] = "overrun",
		[FLUSH_ORIGIN_WORKER] = "worker",   [FLUSH_ORIGIN_PEER] = "peer",
		[FLUSH_ORIGIN_RECORD] = "record",   [FLUSH_ORIGIN_HOST] = "host",
		[FLUSH_ORIGIN_CALLER] = "caller",
	};

	return (unsigned int)origin < N_FLUSH_ORIGINS ? names[origin] : "unknown";
}

const char *flush_status_to_string(const struct flush_status *status)
{
	static const char *const names[N_FLUSH_STATES] = {
		[FLUSH_IDLE] = "idle",
		[FLUSH_GATHERING] = "gathering",
		[FLUSH_IN_FLIGHT] = "in-flight",
		[FLUSH_STALLED] = "stalled",
	};

	if (status->loss.number)
		return "lost";
	return status->withheld ? "unknown" : names[status->state];
}
