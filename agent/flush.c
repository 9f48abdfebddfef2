/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <errno.h>
#include <stdlib.h>
#include <sys/queue.h>

#include "flush.h"

struct waiter {
	void *owner;
	struct flush_target target;
	enum pmem_agent_answer answer;
	int error;
	uint64_t round, durable_usec;
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

	enum flush_state state;
	bool adopted; /* what is in flight is not ours */
	bool gone;
	bool latched;
	uint64_t started, epoch, epoch_usec;
	uint64_t in_flight_usec;
	struct flush_loss loss;

	struct waiter waiters[];
};

struct flush *flush_new(unsigned int depth, uint64_t started, uint64_t epoch)
{
	struct flush *f = calloc(1, sizeof(*f) + depth * sizeof(f->waiters[0]));

	if (!f)
		return NULL;

	TAILQ_INIT(&f->unused);
	TAILQ_INIT(&f->waiting);
	TAILQ_INIT(&f->joined);
	TAILQ_INIT(&f->answered);
	for (unsigned int i = 0; i < depth; i++)
		TAILQ_INSERT_TAIL(&f->unused, &f->waiters[i], entry);
	f->started = started;
	f->epoch = epoch;
	return f;
}

struct flush *flush_free(struct flush *f)
{
	free(f);
	return NULL;
}

static void answer_waiter(struct flush *f, struct waiter_list *list, struct waiter *w, enum pmem_agent_answer answer,
			  int error)
{
	TAILQ_REMOVE(list, w, entry);
	f->n_waiting--;
	w->answer = answer;
	w->error = error;
	w->round = f->started;
	w->durable_usec = f->in_flight_usec;
	TAILQ_INSERT_TAIL(&f->answered, w, entry);
}

static void answer_list(struct flush *f, struct waiter_list *list, enum pmem_agent_answer answer, int error)
{
	struct waiter *w;

	while ((w = TAILQ_FIRST(list)))
		answer_waiter(f, list, w, answer, error);
}

int flush_arrive(struct flush *f, const struct flush_target *target, void *owner)
{
	struct waiter *w;

	if (f->latched)
		return PMEM_AGENT_LOST;
	if (f->gone)
		return PMEM_AGENT_GONE;
	w = TAILQ_FIRST(&f->unused);
	if (!w)
		return PMEM_AGENT_BUSY;

	TAILQ_REMOVE(&f->unused, w, entry);
	*w = (struct waiter){ .owner = owner, .target = *target };
	TAILQ_INSERT_TAIL(&f->waiting, w, entry);
	f->n_waiting++;
	return 0;
}

static bool forget_in(struct flush *f, struct waiter_list *list, void *owner)
{
	struct waiter *w;

	TAILQ_FOREACH (w, list, entry) {
		if (w->owner != owner)
			continue;
		TAILQ_REMOVE(list, w, entry);
		TAILQ_INSERT_TAIL(&f->unused, w, entry);
		return true;
	}
	return false;
}

void flush_forget(struct flush *f, void *owner)
{
	if (forget_in(f, &f->waiting, owner) || forget_in(f, &f->joined, owner))
		f->n_waiting--;
	else
		forget_in(f, &f->answered, owner);
}

/*
 * Whether a round for `of` makes `wanted` durable too. The error state of a file or filesystem belongs to the open
 * file description that came with the request: a call on another description cannot report it. So only requests for
 * the region itself share a round.
 */
static bool serves(const struct flush_target *of, const struct flush_target *wanted)
{
	return of->scope == FLUSH_REGION && wanted->scope == FLUSH_REGION;
}

static void start(struct flush *f, uint64_t now, struct flush_action *ret)
{
	struct waiter *first = TAILQ_FIRST(&f->waiting), *w, *next;

	*ret = (struct flush_action){
		.type = FLUSH_ACT_START,
		.owner = first->owner,
		.round = ++f->started,
		.target = first->target,
	};
	f->state = FLUSH_IN_FLIGHT;
	f->in_flight_usec = now;

	for (w = first; w; w = next) {
		next = TAILQ_NEXT(w, entry);
		if (w != first && !serves(&first->target, &w->target))
			continue;
		TAILQ_REMOVE(&f->waiting, w, entry);
		TAILQ_INSERT_TAIL(&f->joined, w, entry);
	}
}

bool flush_next(struct flush *f, uint64_t now, struct flush_action *ret)
{
	struct waiter *w = TAILQ_FIRST(&f->answered);

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
	if (f->state != FLUSH_IDLE || TAILQ_EMPTY(&f->waiting))
		return false;
	start(f, now, ret);
	return true;
}

static void land(struct flush *f)
{
	f->state = FLUSH_IDLE;
	f->adopted = false;
	f->in_flight_usec = 0;
}

void flush_done(struct flush *f, uint64_t round, enum pmem_agent_answer answer, int error, enum flush_origin origin,
		uint64_t now)
{
	if (f->state == FLUSH_IDLE || f->adopted || round != f->started)
		return;

	/*
	 * A region that was latched while the round was in flight has answered its waiters; whatever the round
	 * returned after that proves nothing, so the epoch stays.
	 */
	if (answer == PMEM_AGENT_LOST) {
		flush_lose(f, error, origin, now);
	} else if (!f->latched) {
		if (answer == PMEM_AGENT_DURABLE) {
			f->epoch = f->started;
			f->epoch_usec = f->in_flight_usec;
		}
		answer_list(f, &f->joined, answer, error);
	}
	land(f);
}

void flush_adopt(struct flush *f, uint64_t started_usec)
{
	f->state = FLUSH_STALLED;
	f->adopted = true;
	f->in_flight_usec = started_usec;
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
	/*
	 * Every loss gets a number of its own, also while the region is latched: who acknowledges the one before it
	 * may have rewritten the data just before this one took it away again.
	 */
	f->latched = true;
	f->loss = (struct flush_loss){
		.number = f->loss.number + 1,
		.error = error,
		.origin = origin,
		.round = f->started,
		.usec = now,
	};
	answer_list(f, &f->joined, PMEM_AGENT_LOST, error);
	answer_list(f, &f->waiting, PMEM_AGENT_LOST, error);
}

void flush_restore_loss(struct flush *f, const struct flush_loss *loss)
{
	f->loss = *loss;
	f->latched = true;
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
		.state = f->state,
		.gone = f->gone,
		.started = f->started,
		.epoch = f->epoch,
		.epoch_usec = f->epoch_usec,
		.in_flight_usec = f->in_flight_usec,
		.waiting = f->n_waiting,
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
	};

	return (unsigned int)origin < N_FLUSH_ORIGINS ? names[origin] : "unknown";
}

const char *flush_status_to_string(const struct flush_status *status)
{
	static const char *const names[N_FLUSH_STATES] = {
		[FLUSH_IDLE] = "idle",
		[FLUSH_IN_FLIGHT] = "in-flight",
		[FLUSH_STALLED] = "stalled",
	};

	return status->loss.number ? "lost" : names[status->state];
}
