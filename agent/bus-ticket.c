/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * bus-ticket: flushes that were submitted, and who waits for them later
 *
 * An answer that is kept must be as true when it is told as when it came. So what happens to its regions meanwhile
 * changes it: a durable one is lost with the next loss, and stays so when that is acknowledged, since who made it good
 * need not know of these stores. Once a region has been removed nobody notices its losses any more: then it is unknown.
 */
#include <inttypes.h>
#include <string.h>

#include "bus-private.h"

/* The book knows only what is first in each of ours. */
static struct bus_ticket *ticket_of(struct ticket *t)
{
	_Static_assert(offsetof(struct bus_ticket, ticket) == 0, "the ticket comes first");
	return (struct bus_ticket *)t;
}

struct bus_ticket *bus_ticket_new(struct bus *b)
{
	struct bus_ticket *t = calloc(1, sizeof(*t));

	if (!t)
		return NULL;
	t->bus = b;
	TAILQ_INIT(&t->calls);
	return t;
}

/* Nobody waits for it. */
struct bus_ticket *bus_ticket_free(struct bus_ticket *t)
{
	if (!t)
		return NULL;
	request_cancel(t->request);
	ticket_remove(&t->bus->tickets, &t->ticket);
	free(t);
	return NULL;
}

void bus_tickets_clear(struct bus *b)
{
	struct ticket *t;

	while ((t = TAILQ_FIRST(&b->tickets.tickets)))
		bus_ticket_free(ticket_of(t));
}

int bus_ticket_issue(struct bus_ticket *t, uid_t uid, char detail[static MOUNT_DETAIL_MAX])
{
	struct ticket *gone;

	if (ticket_issue(&t->bus->tickets, &t->ticket, uid, &gone) < 0) {
		snprintf(detail, MOUNT_DETAIL_MAX, "too many flushes have been submitted and not been answered");
		return PMEM_AGENT_BUSY;
	}
	if (gone)
		bus_ticket_free(ticket_of(gone));
	return 0;
}

/* ---- the answer, and what happens to it while it is kept ---- */

static bool has_region(const struct request_result *result, const struct manager_region *mr)
{
	for (unsigned int i = 0; i < result->n_epochs; i++)
		if (result->epochs[i].region == mr)
			return true;
	return false;
}

static void set_removed(struct request_result *result, const struct manager_region *mr)
{
	result->answer = PMEM_AGENT_UNKNOWN;
	snprintf(result->detail, sizeof(result->detail), "%s has been removed since it confirmed the flush",
		 manager_region_get(mr)->name);
}

static void set_lost(struct request_result *result, const struct manager_region *mr)
{
	struct flush_status status;

	manager_region_get_status(mr, &status);
	result->answer = PMEM_AGENT_LOST;
	result->error = status.loss.error;
	snprintf(result->detail, sizeof(result->detail),
		 "%s has lost stores since it confirmed the flush: loss %" PRIu64 ", %s", manager_region_get(mr)->name,
		 status.loss.number, strerrordesc_np(status.loss.error));
}

void bus_tickets_notice(struct bus *b, enum manager_event event, const struct manager_region *mr)
{
	struct ticket *t;

	if (event != MANAGER_LOST && event != MANAGER_REGION_REMOVED)
		return;
	TAILQ_FOREACH (t, &b->tickets.tickets, entry) {
		struct request_result *result = &ticket_of(t)->result;

		if (!t->finished || result->answer != PMEM_AGENT_DURABLE || !has_region(result, mr))
			continue;
		if (event == MANAGER_LOST)
			set_lost(result, mr);
		else
			set_removed(result, mr);
	}
}

/* A region that was removed while its last round was in flight is told of no more. */
static void check_regions(struct bus_ticket *t)
{
	for (unsigned int i = 0; i < t->result.n_epochs && t->result.answer == PMEM_AGENT_DURABLE; i++) {
		struct manager_region *mr = t->result.epochs[i].region;

		if (manager_find_region(t->bus->manager, manager_region_get(mr)->name) != mr)
			set_removed(&t->result, mr);
	}
}

void bus_ticket_done(const struct request_result *result, void *userdata)
{
	struct bus_ticket *t = userdata;
	struct bus_call *call;

	t->request = NULL;
	t->ticket.finished = true;
	t->result = *result;
	if (TAILQ_EMPTY(&t->calls)) {
		check_regions(t);
		return;
	}
	while ((call = TAILQ_FIRST(&t->calls)))
		bus_call_answer(call, &t->result);
	bus_ticket_free(t);
}

/* ---- who waits ---- */

void bus_ticket_leave(struct bus_call *call)
{
	if (call->awaited)
		TAILQ_REMOVE(&call->awaited->calls, call, awaited_entry);
	call->awaited = NULL;
	call->timer = sd_event_source_disable_unref(call->timer);
}

static int on_timer(sd_event_source *source, uint64_t usec, void *userdata)
{
	bus_call_refuse(userdata, PMEM_AGENT_TIMEOUT,
			"the host has not confirmed the flush by your deadline; wait for the ticket again");
	return 0;
}

static void await(struct bus_call *call, struct bus_ticket *t)
{
	if (call->deadline_usec && sd_event_add_time(manager_get_event(t->bus->manager), &call->timer, CLOCK_MONOTONIC,
						     call->deadline_usec, 1, on_timer, call) < 0) {
		on_timer(NULL, 0, call);
		return;
	}
	call->awaited = t;
	TAILQ_INSERT_TAIL(&t->calls, call, awaited_entry);
}

static void answer_kept(struct bus_call *call, struct bus_ticket *t)
{
	struct request_result *result = &t->result;

	if (result->answer == PMEM_AGENT_DURABLE && !manager_look_again(t->bus->manager, result)) {
		result->answer = PMEM_AGENT_LOST;
		result->error = EIO;
		snprintf(result->detail, sizeof(result->detail),
			 "a flush of the same region has just failed, and is not counted yet");
	}
	if (result->answer == PMEM_AGENT_DURABLE &&
	    !sd_id128_equal(result->instance, manager_get_instance(t->bus->manager))) {
		result->answer = PMEM_AGENT_UNKNOWN;
		snprintf(result->detail, sizeof(result->detail),
			 "the connection to the host has been made anew since the flush was confirmed");
	}
	/* Who watched then may have given up since. */
	if (result->answer == PMEM_AGENT_DURABLE && strcmp(result->basis, "watched") == 0)
		result->basis = manager_get_basis(t->bus->manager);
	bus_call_answer(call, result);
	bus_ticket_free(t);
}

void bus_ticket_await(struct bus_call *call)
{
	struct bus *b = call->client->bus;
	uid_t uid = call->client->uid;
	struct ticket *t = ticket_find(&b->tickets, call->awaited_number);

	if (!t)
		bus_call_refuse(call, PMEM_AGENT_UNKNOWN,
				"the ticket is not there: it has been waited for, or has made room for others");
	else if (uid != t->uid && uid != 0)
		bus_call_refuse(call, PMEM_AGENT_DENIED, "the ticket is another user's");
	else if (t->finished)
		answer_kept(call, ticket_of(t));
	else
		await(call, ticket_of(t));
}
