/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * host-event: what the host is told, and what it is asked for
 */
#include <errno.h>

#include "host-private.h"

/* An event that finds no room is counted, and all after it, until the host can be told the state. */
int host_send_event(struct host *h, const char *name, struct json_object *data)
{
	_cleanup_(json_unrefp) struct json_object *o = json_new_object();
	int r = h->missed > 0 ? -ENOBUFS : 0;

	json_add_u64(data, "sequence", ++h->sequence);
	json_add_string(o, "event", name);
	json_add(o, "data", data);
	json_add_timestamp(o);
	if (r == 0)
		r = host_send(h, o);
	if (r < 0)
		h->missed++;
	return r;
}

void host_send_missed(struct host *h)
{
	uint64_t missed = h->missed;
	struct json_object *data;

	if (missed == 0 && h->answers_missed == 0)
		return;
	data = json_new_object();
	json_add_u64(data, "count", missed);
	json_add_u64(data, "answers", h->answers_missed);
	json_add(data, "regions", json_describe_regions(h->manager));
	h->missed = 0;
	if (host_send_event(h, "MISSED", data) == 0)
		h->answers_missed = 0;
	else
		h->missed += missed;
}

int host_ask(struct manager_region *mr, uint64_t number, bool confirm, void *userdata)
{
	struct json_object *data = json_name_region(mr);

	json_add_u64(data, "number", number);
	json_add_string(data, "purpose", confirm ? "confirm" : "flush");
	return host_send_event(userdata, "FLUSH_WANTED", data);
}

void host_tell_durable(struct manager_region *mr, const struct host_durable *d, void *userdata)
{
	struct json_object *data = json_name_region(mr);

	json_add_string(data, "scope", flush_scope_to_string(d->scope));
	json_add_string(data, "target", d->target);
	json_add_u64(data, "epoch", d->epoch);
	json_add_u64(data, "durable-usec", d->durable_usec);
	json_add_string(data, "basis", manager_region_get_basis(mr));
	host_send_event(userdata, "DURABLE", data);
}

static void tell_loss(struct host *h, struct manager_region *mr, const struct flush_status *status)
{
	struct json_object *data = json_name_region(mr);

	json_add_u64(data, "epoch", status->epoch);
	json_add_loss(data, &status->loss);
	host_send_event(h, "LOST", data);
}

static void tell_number(struct host *h, const char *event, struct manager_region *mr, const char *key, uint64_t number)
{
	struct json_object *data = json_name_region(mr);

	json_add_u64(data, key, number);
	host_send_event(h, event, data);
}

/* All before is void, and so is its count. What waits to be told was confirmed before. */
static void begin_instance(struct host *h)
{
	host_durables_drop(h->durables);
	h->sequence = 0;
}

void host_on_manager_event(enum manager_event event, struct manager_region *mr, void *userdata)
{
	struct host *h = userdata;
	struct flush_status status;

	if (event == MANAGER_INSTANCE) {
		begin_instance(h);
		return;
	}
	if (event == MANAGER_STATE || event == MANAGER_SCAN || event == MANAGER_ROUND)
		return;
	if (event == MANAGER_DURABLE) {
		/* The last round of a region that has been removed is nobody's business any more. */
		if (manager_find_region(h->manager, manager_region_get(mr)->name) == mr)
			host_durables_add(h->durables, mr);
		return;
	}
	/* In the order in which it was. */
	host_durables_tell(h->durables, mr);
	manager_region_get_status(mr, &status);
	switch (event) {
	case MANAGER_REGION_ADDED:
		host_send_event(h, "REGION_ADDED", json_describe_region(mr));
		break;
	case MANAGER_REGION_REMOVED:
		host_durables_remove(h->durables, mr);
		host_send_event(h, "REGION_REMOVED", json_name_region(mr));
		break;
	case MANAGER_REGION_CHANGED:
		host_send_event(h, "REGION_CHANGED", json_describe_region(mr));
		break;
	case MANAGER_LOST:
		tell_loss(h, mr, &status);
		break;
	case MANAGER_ACKNOWLEDGED:
		tell_number(h, "ACKNOWLEDGED", mr, "loss", status.acknowledged);
		break;
	case MANAGER_STALLED:
		tell_number(h, "STALLED", mr, "flushing-since-usec", status.in_flight_usec);
		break;
	case MANAGER_RECOVERED:
		host_send_event(h, "RECOVERED", json_describe_region(mr));
		break;
	case MANAGER_DURABLE:
	case MANAGER_ROUND:
	case MANAGER_STATE:
	case MANAGER_SCAN:
	case MANAGER_INSTANCE:
		break;
	}
}
