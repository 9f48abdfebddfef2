/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * preload-group: threads that want the same share one request
 *
 * The first of them opens a group, waits until the request of the one before has its answer, and for a moment longer
 * for those whom that answer sets free: they tend to ask again. Then it closes the group, and sends: what is flushed
 * was stored before by all who have joined. They wait for what the group is told. A thread that is alone waits for
 * nobody.
 *
 * Nobody waits for ever, since whoever is waited for may be what a signal handler has interrupted, or never come back
 * from one. Who has waited in vain asks by itself. All waits end at a time, whatever wakes them before.
 */
#include <errno.h>
#include <string.h>

#include "preload.h"

#define N_PLACES        16
#define N_RESULTS       4 /* of the groups before, for those who are slow to read them */
#define BEING_TOLD      UINT32_MAX
#define PATIENCE_NSEC   (5 * PRELOAD_NSEC_PER_SEC) /* with a group that is under way; a member's group comes after it */
#define MAX_AGE         (1U << 30)                 /* of results: what is older is none, when the numbers begin anew */
#define GATHER_MAX_NSEC 1000000ULL
#define GATHER_SHARE    4 /* of the time that the answer took: as the agent gathers requests */

enum gate { GATE_CLOSED, GATE_BEING_OPENED, GATE_OPEN };

#define GATE_MASK    3ULL
#define MEMBER       4ULL /* what one more adds to the word */
#define NUMBER_SHIFT 32

struct result {
	struct preload_reply reply;
	enum preload_outcome outcome;
	uint32_t padding;
};

/* Where groups with the same question follow each other; for another question only when none is open or under way. */
struct preload_place {
	uint64_t newest;                  /* its number, how many are in it, and whether it can be joined */
	struct preload_question question; /* of the newest group, and of the one under way */
	const void *leader;               /* of the newest group: a thread */
	uint32_t under_way;               /* number of the group that is being asked for; 0: none */
	uint32_t n_waiting;               /* leaders, for that to end */
	uint32_t complete;                /* number of a group that all have joined who were expected */
	const void *asker;                /* who asks for the group under way */
	uint64_t until_nsec;
	uint32_t expected; /* so many are likely to join the next group, until then */
	uint32_t result_number[N_RESULTS];
	struct result results[N_RESULTS]; /* by number */
};

static struct preload_place places[N_PLACES];

/* What its leader knows of it. */
struct group {
	struct preload_place *place;
	uint32_t number, members;
	uint64_t closed_nsec;
};

_Static_assert(sizeof(struct result) % 8 == 0 && sizeof(struct preload_question) % 8 == 0, "copied in words");

/* What others may write meanwhile: who has read anything of that sees by the number, afterwards, that they do. */
static void copy(void *to, const void *from, size_t size)
{
	typedef uint64_t __attribute__((may_alias)) word;

	for (size_t i = 0; i < size / sizeof(word); i++)
		__atomic_store_n((word *)to + i, __atomic_load_n((const word *)from + i, __ATOMIC_ACQUIRE),
				 __ATOMIC_RELEASE);
}

static struct preload_place *place_of(const struct preload_question *q)
{
	uint64_t h = (q->device ^ q->inode ^ q->kept) * 31 + (uint32_t)q->fd * 7 + q->scope;

	return &places[(h ^ h >> 8) % N_PLACES];
}

/* A thread by an address of its own; a signal handler is its thread. */
static const void *myself(void)
{
	return &errno;
}

static uint32_t number_of(uint64_t word)
{
	return (uint32_t)(word >> NUMBER_SHIFT);
}

static uint32_t members_of(uint64_t word)
{
	return (uint32_t)word / MEMBER;
}

static enum gate gate_of(uint64_t word)
{
	return (enum gate)(word & GATE_MASK);
}

static uint64_t get_newest(const struct preload_place *p)
{
	return __atomic_load_n(&p->newest, __ATOMIC_SEQ_CST);
}

/* `before` is what it is now, if it was another. */
static bool change(struct preload_place *p, uint64_t *before, uint64_t after)
{
	return __atomic_compare_exchange_n(&p->newest, before, after, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}

/* Its members; 0: somebody who had waited for too long has closed it before. */
static uint32_t close_gate(struct preload_place *p, uint32_t number)
{
	uint64_t word = get_newest(p);

	while (number_of(word) == number && gate_of(word) == GATE_OPEN)
		if (change(p, &word, word & ~GATE_MASK))
			return members_of(word);
	return 0;
}

static bool end_under_way(struct preload_place *p, uint32_t number)
{
	return __atomic_compare_exchange_n(&p->under_way, &number, 0, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
}

static bool is_own_under_way(struct preload_place *p)
{
	return __atomic_load_n(&p->under_way, __ATOMIC_SEQ_CST) != 0 &&
	       __atomic_load_n(&p->asker, __ATOMIC_ACQUIRE) == myself();
}

static bool is_question(struct preload_place *p, const struct preload_question *q)
{
	struct preload_question asked;

	copy(&asked, &p->question, sizeof(asked));
	return memcmp(&asked, q, sizeof(asked)) == 0;
}

void preload_group_inherit(void)
{
	memset(places, 0, sizeof(places));
}

/* ---- who leads ---- */

/* Nothing is under way, but what this thread itself waits for. */
static void wait_for_turn(struct preload_place *p)
{
	uint64_t until = preload_now() + PATIENCE_NSEC;
	uint32_t seen;

	__atomic_fetch_add(&p->n_waiting, 1, __ATOMIC_SEQ_CST);
	while ((seen = __atomic_load_n(&p->under_way, __ATOMIC_SEQ_CST)) != 0 && !is_own_under_way(p))
		if (!preload_wait(&p->under_way, seen, until))
			end_under_way(p, seen);
	__atomic_fetch_sub(&p->n_waiting, 1, __ATOMIC_SEQ_CST);
}

/* The members of the groups before are back, or so many as come soon. */
static void gather(struct preload_place *p)
{
	uint64_t until = PRELOAD_PEEK(p->until_nsec);
	uint32_t seen;

	do
		seen = __atomic_load_n(&p->complete, __ATOMIC_SEQ_CST);
	while (members_of(get_newest(p)) < PRELOAD_PEEK(p->expected) && preload_now() < until &&
	       preload_wait(&p->complete, seen, until));
}

/* The next one: not one of whose result somebody has begun to tell and never ended. 0: there is none. */
static uint32_t next_number(const struct preload_place *p, uint32_t number)
{
	for (unsigned int i = 0; i < N_RESULTS; i++) {
		number = number + 1 < BEING_TOLD ? number + 1 : 1;
		if (__atomic_load_n(&p->result_number[number % N_RESULTS], __ATOMIC_SEQ_CST) != BEING_TOLD)
			return number;
	}
	return 0;
}

/*
 * What has been told of groups when the numbers were here before is nothing that has been told of this one. It can't be
 * joined yet: nobody is to find out by an old number that theirs is the next.
 */
static void forget_long_ago(struct preload_place *p, uint32_t number)
{
	uint32_t *told = &p->result_number[number % N_RESULTS], before = __atomic_load_n(told, __ATOMIC_SEQ_CST);

	if (before != BEING_TOLD && number - before - 1 >= MAX_AGE)
		__atomic_compare_exchange_n(told, &before, 0, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
}

/*
 * Returns when its request is to be sent: after a group of the same question that is under way, and a moment for those
 * who are likely to join. It has to be closed before it is sent, and to be told afterwards. False: it has to be sent
 * without a group.
 */
static bool open_group(const struct preload_question *q, struct group *ret)
{
	struct preload_place *p = place_of(q);
	uint64_t word = get_newest(p), next;
	uint32_t number;

	/* What is under way was so before its gate was closed: it has this question, if no other is opened meanwhile.
	 */
	if (gate_of(word) != GATE_CLOSED ||
	    (__atomic_load_n(&p->under_way, __ATOMIC_SEQ_CST) != 0 && !is_question(p, q)))
		return false;
	number = next_number(p, number_of(word));
	if (number == 0)
		return false;
	next = (uint64_t)number << NUMBER_SHIFT | MEMBER | GATE_BEING_OPENED;
	if (!change(p, &word, next))
		return false;
	forget_long_ago(p, number);
	copy(&p->question, q, sizeof(*q));
	PRELOAD_POKE(p->leader, myself());
	*ret = (struct group){ .place = p, .number = number };
	change(p, &next, (next & ~GATE_MASK) | GATE_OPEN);
	if (__atomic_load_n(&p->under_way, __ATOMIC_SEQ_CST) != 0)
		wait_for_turn(p);
	gather(p);
	return true;
}

static void close_group(struct group *g)
{
	g->closed_nsec = preload_now();
	__atomic_store_n(&g->place->asker, myself(), __ATOMIC_RELEASE);
	/* Before another can be opened, which waits for this one. */
	__atomic_store_n(&g->place->under_way, g->number, __ATOMIC_SEQ_CST);
	g->members = close_gate(g->place, g->number);
}

/* Its members, and those who wait for their turn already, are likely to be in the next one. */
static void expect_back(const struct group *g)
{
	struct preload_place *p = g->place;
	uint64_t now = preload_now(), pause = (now - g->closed_nsec) / GATHER_SHARE, word = get_newest(p);

	PRELOAD_POKE(p->expected, g->members + (gate_of(word) == GATE_CLOSED ? 0 : members_of(word)));
	PRELOAD_POKE(p->until_nsec, now + (pause < GATHER_MAX_NSEC ? pause : GATHER_MAX_NSEC));
}

static void tell_members(struct preload_place *p, uint32_t number, enum preload_outcome outcome,
			 const struct preload_reply *reply)
{
	const struct result result = { .reply = *reply, .outcome = outcome };
	uint32_t *told = &p->result_number[number % N_RESULTS], before = __atomic_load_n(told, __ATOMIC_SEQ_CST);

	/* One at a time, and never one after a newer one: its members have given up. */
	if (before == BEING_TOLD || (before != 0 && (int32_t)(before - number) > 0) ||
	    !__atomic_compare_exchange_n(told, &before, BEING_TOLD, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED))
		return;
	copy(&p->results[number % N_RESULTS], &result, sizeof(result));
	__atomic_store_n(told, number, __ATOMIC_SEQ_CST);
	preload_wake(told, INT32_MAX);
}

static void tell_group(const struct group *g, enum preload_outcome outcome, const struct preload_reply *reply)
{
	struct preload_place *p = g->place;

	expect_back(g);
	/* Before any of the next groups can be told, which come after this one. */
	if (g->members != 1)
		tell_members(p, g->number, outcome, reply);
	end_under_way(p, g->number);
	/* Who begins to wait from now on sees that nothing is under way. */
	if (__atomic_load_n(&p->n_waiting, __ATOMIC_SEQ_CST))
		preload_wake(&p->under_way, INT32_MAX);
}

/* ---- who joins ---- */

/* False: nobody has told it in time; or who has is not to be read any more. */
static bool wait_for_result(struct preload_place *p, uint32_t number)
{
	const uint32_t *told = &p->result_number[number % N_RESULTS];
	uint64_t until = preload_now() + 2 * PATIENCE_NSEC;
	uint32_t seen;

	do {
		seen = __atomic_load_n(told, __ATOMIC_SEQ_CST);
		if (seen != 0 && seen != BEING_TOLD && (int32_t)(seen - number) >= 0)
			return seen == number;
	} while (preload_wait(told, seen, until));
	return false;
}

/* What this thread has stored comes before the group's flush. `ret_word`: with it in the group. */
static bool become_member(struct preload_place *p, const struct preload_question *q, uint64_t *ret_word)
{
	uint64_t word = get_newest(p);
	uint32_t number = number_of(word);

	/* A signal handler would wait for what it has interrupted: its own group, or the one which that waits for. */
	if (gate_of(word) != GATE_OPEN || !is_question(p, q) || PRELOAD_PEEK(p->leader) == myself() ||
	    is_own_under_way(p))
		return false;
	/* It is open still: so that was its question. */
	while (number_of(word) == number && gate_of(word) == GATE_OPEN) {
		*ret_word = word + MEMBER;
		if (change(p, &word, *ret_word))
			return true;
	}
	return false;
}

enum joined { NOT_JOINED, JOINED, IN_VAIN };

/* NOT_JOINED: there is none with this question that can be. JOINED: `ret` is what it was told. */
static enum joined join_group(const struct preload_question *q, enum preload_outcome *ret_outcome,
			      struct preload_reply *ret)
{
	struct preload_place *p = place_of(q);
	struct result result;
	uint32_t number;
	uint64_t word;

	if (!become_member(p, q, &word))
		return NOT_JOINED;
	number = number_of(word);
	if (members_of(word) == PRELOAD_PEEK(p->expected)) {
		__atomic_store_n(&p->complete, number, __ATOMIC_SEQ_CST);
		preload_wake(&p->complete, INT32_MAX);
	}
	if (!wait_for_result(p, number)) {
		/* Nobody may be there to do it. */
		close_gate(p, number);
		return IN_VAIN;
	}
	copy(&result, &p->results[number % N_RESULTS], sizeof(result));
	if (__atomic_load_n(&p->result_number[number % N_RESULTS], __ATOMIC_SEQ_CST) != number)
		return IN_VAIN;
	*ret_outcome = result.outcome;
	*ret = result.reply;
	return JOINED;
}

/* ---- either ---- */

enum preload_outcome preload_group_ask(const struct preload_question *q, struct preload_ask *ask,
				       struct preload_reply *ret)
{
	enum preload_outcome outcome;
	struct group group;
	enum joined joined = join_group(q, &outcome, ret);
	bool leads = joined == NOT_JOINED && open_group(q, &group);

	/* Again, since another may have opened one meanwhile. */
	if (joined == NOT_JOINED && !leads)
		joined = join_group(q, &outcome, ret);
	if (joined == JOINED)
		return outcome;
	ask->prepare(ask);
	if (leads)
		close_group(&group);
	outcome = ask->send(ask, ret);
	if (leads)
		tell_group(&group, outcome, ret);
	return outcome;
}
