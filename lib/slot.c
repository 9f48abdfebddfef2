/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * slot: what threads want, and who does what while they wait
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "client.h"

uint64_t client_now_usec(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000 + (uint64_t)ts.tv_nsec / 1000;
}

uint64_t client_deadline(uint64_t timeout_usec)
{
	uint64_t now;

	if (timeout_usec == PMEM_AGENT_NO_TIMEOUT)
		return UINT64_MAX;
	now = client_now_usec();
	return timeout_usec < UINT64_MAX - now ? now + timeout_usec : UINT64_MAX;
}

bool client_is_over(uint64_t deadline_usec)
{
	return deadline_usec != UINT64_MAX && client_now_usec() >= deadline_usec;
}

int client_until(uint64_t deadline_usec)
{
	uint64_t now, msec;

	if (deadline_usec == UINT64_MAX)
		return -1;
	now = client_now_usec();
	msec = deadline_usec > now ? (deadline_usec - now + 999) / 1000 : 0;
	return msec > 1000000 ? 1000000 : (int)msec;
}

void client_wait_until(struct pmem_agent *agent, pthread_cond_t *cond, uint64_t deadline_usec)
{
	struct timespec ts = { .tv_sec = (time_t)(deadline_usec / 1000000),
			       .tv_nsec = (long)(deadline_usec % 1000000) * 1000 };

	if (deadline_usec == UINT64_MAX)
		pthread_cond_wait(cond, &agent->lock);
	else
		pthread_cond_timedwait(cond, &agent->lock, &ts);
}

/* ---- slots ---- */

struct slot *slot_new(struct pmem_agent *agent, bool submitted, const struct slot_key *key, uint64_t deadline_usec)
{
	unsigned int n = 0, bound = submitted ? PMEM_AGENT_MAX_SUBMITTED : CLIENT_MAX_CALLS;
	struct slot *s = NULL;

	for (unsigned int i = 0; i < CLIENT_MAX_SLOTS; i++)
		if (agent->slots[i].state == SLOT_FREE)
			s = s ?: &agent->slots[i];
		else
			n += agent->slots[i].submitted == submitted;
	if (!s || n >= bound)
		return NULL;
	s->state = SLOT_GATHERING;
	s->submitted = submitted;
	s->pinned = s->done = s->called = false;
	s->members = 0;
	s->key = *key;
	s->deadline_usec = deadline_usec;
	s->expected = 0;
	s->hold_usec = 0;
	s->connection = NULL;
	s->method = PMEM_AGENT_METHOD_NONE;
	memset(&s->result, 0, sizeof(s->result));
	s->result.id = ++agent->last_id;
	return s;
}

/* Nobody wants it any more. */
void slot_free(struct pmem_agent *agent, struct slot *s)
{
	s->done = true;
	if (s->pinned)
		return;
	s->state = SLOT_FREE;
	pthread_cond_signal(&agent->room);
}

void slot_signal_answers(struct pmem_agent *agent)
{
	bool any = false;
	char byte = 0;

	for (unsigned int i = 0; i < CLIENT_MAX_SLOTS && !any; i++)
		any = agent->slots[i].submitted && agent->slots[i].state == SLOT_ANSWERED && !agent->slots[i].done;
	if (any == agent->signalled)
		return;
	agent->signalled = any;
	if ((any ? write(agent->event[1], &byte, 1) : read(agent->event[0], &byte, 1)) < 0)
		agent->signalled = !any;
}

static bool is_equal(const struct slot_key *a, const struct slot_key *b)
{
	return !a->alone && !b->alone && a->fd == b->fd && a->type == b->type && a->scope == b->scope &&
	       a->device == b->device && a->inode == b->inode;
}

/* Its members, and those of others that are answered at about the same time: by the same round, it seems. */
static void expect_back(struct pmem_agent *agent, const struct slot *s)
{
	uint64_t now = client_now_usec(), pause = (now - s->sent_usec) / CLIENT_GATHER_SHARE;

	/* What was sent after that answer is of somebody who is back already. */
	if (now >= agent->gather.until_usec || s->sent_usec >= agent->gather.since_usec ||
	    !is_equal(&s->key, &agent->gather.key)) {
		agent->gather.key = s->key;
		agent->gather.expected = 0;
		agent->gather.since_usec = now;
		agent->gather.until_usec = now + (pause < CLIENT_GATHER_MAX_USEC ? pause : CLIENT_GATHER_MAX_USEC);
	}
	agent->gather.expected += s->members;
}

void client_settle(struct pmem_agent *agent, struct slot *s, enum pmem_agent_answer answer, int error,
		   const char *detail)
{
	s->state = SLOT_ANSWERED;
	s->error = error;
	s->result.answer = answer;
	snprintf(s->result.detail, sizeof(s->result.detail), "%s", detail);
	pthread_cond_broadcast(s->submitted ? &agent->answered : &s->changed);
	if (answer == PMEM_AGENT_DURABLE && !s->key.alone)
		expect_back(agent, s);
	if (s->submitted) {
		pthread_cond_broadcast(&s->changed);
		if (agent->waiting == 0)
			slot_signal_answers(agent);
	}
}

/* ---- who does what ---- */

static bool is_held(const struct slot *s)
{
	return s->members < s->expected && client_now_usec() < s->hold_usec;
}

/* The oldest that is to be sent. */
static struct slot *find_unsent(struct pmem_agent *agent)
{
	struct slot *oldest = NULL;

	for (unsigned int i = 0; i < CLIENT_MAX_SLOTS; i++) {
		struct slot *s = &agent->slots[i];

		if (s->state == SLOT_GATHERING && (!oldest || s->result.id < oldest->result.id) && !is_held(s))
			oldest = s;
	}
	return oldest;
}

static void call(struct slot *s)
{
	s->called = true;
	pthread_cond_signal(&s->changed);
}

void slot_hand_over(struct pmem_agent *agent)
{
	struct slot *heirs[CLIENT_MAX_CONNECTIONS] = { NULL }, *unsent = agent->sending ? NULL : find_unsent(agent);

	if (unsent && !unsent->called)
		call(unsent);
	for (unsigned int i = 0; i < CLIENT_MAX_SLOTS; i++) {
		struct slot *s = &agent->slots[i], **heir;

		if (s->state != SLOT_SENT || s->members == 0 || s->connection->receiving)
			continue;
		heir = &heirs[s->connection - agent->connections];
		if (!*heir || s->called)
			*heir = s;
	}
	for (unsigned int i = 0; i < CLIENT_MAX_CONNECTIONS; i++)
		if (heirs[i] && !heirs[i]->called)
			call(heirs[i]);
	if (agent->waiting > 0)
		pthread_cond_broadcast(&agent->answered);
}

/* Sends `s`, for all its members. From here on nobody joins it. */
static void send_slot(struct pmem_agent *agent, struct slot *s, uint64_t deadline_usec)
{
	char detail[PMEM_AGENT_DETAIL_MAX];
	int r;

	agent->sending = s->pinned = true;
	s->state = SLOT_SENDING;
	s->sent_usec = client_now_usec();
	r = connection_deliver(agent, s, deadline_usec);
	agent->sending = s->pinned = false;
	if (s->done) {
		slot_free(agent, s);
		return;
	}
	if (r == -EALREADY) {
		s->state = SLOT_GATHERING;
	} else if (r < 0) {
		snprintf(detail, sizeof(detail), "the agent could not be asked: %s", strerrordesc_np(-r));
		s->connection = NULL;
		client_settle(agent, s, r == -ETIMEDOUT ? PMEM_AGENT_TIMEOUT : PMEM_AGENT_UNKNOWN, r, detail);
	} else if (s->state == SLOT_SENDING) {
		s->state = SLOT_SENT;
	}
	if (s->members > 0)
		call(s);
}

bool slot_await(struct pmem_agent *agent, struct slot *s, enum slot_state state, uint64_t deadline_usec)
{
	bool part = false;

	while (s->state < state) {
		struct slot *unsent = agent->sending ? NULL : find_unsent(agent);

		s->called = false;
		if (unsent) {
			part = true;
			send_slot(agent, unsent, deadline_usec);
		} else if (s->state == SLOT_SENT && !s->connection->receiving) {
			part = true;
			connection_receive(agent, &s->connection, 1, deadline_usec);
		} else {
			client_wait_until(agent, &s->changed,
					  is_held(s) && s->state == SLOT_GATHERING && s->hold_usec < deadline_usec
					      ? s->hold_usec
					      : deadline_usec);
		}
		part |= s->called;
		/* What has come already comes before any deadline. */
		if (s->state < state && client_is_over(deadline_usec)) {
			connection_drain(agent);
			break;
		}
	}
	s->called = false;
	if (part)
		slot_hand_over(agent);
	return s->state >= state;
}

void slot_part_with(struct pmem_agent *agent, struct slot *s)
{
	if (--s->members == 0)
		slot_free(agent, s);
}

struct slot *slot_join(struct pmem_agent *agent, const struct slot_key *key, uint64_t deadline_usec)
{
	struct slot *s;

	for (;;) {
		for (unsigned int i = 0; i < CLIENT_MAX_SLOTS; i++) {
			s = &agent->slots[i];
			if (s->state != SLOT_GATHERING || !is_equal(&s->key, key))
				continue;
			if (deadline_usec > s->deadline_usec)
				s->deadline_usec = deadline_usec;
			s->members++;
			return s;
		}
		s = slot_new(agent, false, key, deadline_usec);
		if (s) {
			s->members = 1;
			if (is_equal(key, &agent->gather.key)) {
				s->expected = agent->gather.expected;
				s->hold_usec = agent->gather.until_usec;
			}
			return s;
		}
		if (client_is_over(deadline_usec))
			return NULL;
		client_wait_until(agent, &agent->room, deadline_usec);
	}
}
