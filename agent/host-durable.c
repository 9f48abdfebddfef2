/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <stdio.h>
#include <sys/queue.h>

#include "host-durable.h"
#include "event.h"

enum { FILESYSTEM, OTHER, N_KINDS };

struct entry {
	struct manager_region *region;
	struct host_durable waiting[N_KINDS]; /* epoch 0: none */
	uint64_t quiet_usec;                  /* nothing is told before, CLOCK_MONOTONIC */
	TAILQ_ENTRY(entry) entry;
};

TAILQ_HEAD(entry_list, entry);

struct host_durables {
	void (*tell)(struct manager_region *mr, const struct host_durable *d, void *userdata);
	void *userdata;
	sd_event_source *timer;
	struct entry_list entries;
};

static struct entry *find(struct host_durables *all, const struct manager_region *mr)
{
	struct entry *e;

	TAILQ_FOREACH (e, &all->entries, entry)
		if (e->region == mr)
			return e;
	return NULL;
}

static bool is_waiting(const struct entry *e)
{
	return e->waiting[FILESYSTEM].epoch > 0 || e->waiting[OTHER].epoch > 0;
}

/* In the order of their rounds. */
static void tell(struct host_durables *all, struct entry *e)
{
	unsigned int first = e->waiting[FILESYSTEM].epoch > e->waiting[OTHER].epoch ? OTHER : FILESYSTEM;

	for (unsigned int i = 0; i < N_KINDS; i++) {
		struct host_durable *d = &e->waiting[(first + i) % N_KINDS];

		if (d->epoch > 0)
			all->tell(e->region, d, all->userdata);
		d->epoch = 0;
	}
	e->quiet_usec = now_usec(CLOCK_MONOTONIC) + HOST_DURABLE_USEC;
}

static void set_timer(struct host_durables *all)
{
	uint64_t earliest = UINT64_MAX;
	struct entry *e;

	TAILQ_FOREACH (e, &all->entries, entry)
		if (is_waiting(e) && e->quiet_usec < earliest)
			earliest = e->quiet_usec;
	if (earliest != UINT64_MAX)
		sd_event_source_set_time(all->timer, earliest);
	event_enable(all->timer, earliest != UINT64_MAX ? SD_EVENT_ONESHOT : SD_EVENT_OFF);
}

static int on_timer(sd_event_source *source, uint64_t usec, void *userdata)
{
	struct host_durables *all = userdata;
	uint64_t now = now_usec(CLOCK_MONOTONIC);
	struct entry *e;

	TAILQ_FOREACH (e, &all->entries, entry)
		if (is_waiting(e) && e->quiet_usec <= now)
			tell(all, e);
	set_timer(all);
	return 0;
}

int host_durables_new(sd_event *event,
		      void (*tell_one)(struct manager_region *mr, const struct host_durable *d, void *userdata),
		      void *userdata, struct host_durables **ret)
{
	_cleanup_(host_durables_freep) struct host_durables *all = calloc(1, sizeof(*all));
	int r;

	if (!all)
		return -ENOMEM;
	TAILQ_INIT(&all->entries);
	all->tell = tell_one;
	all->userdata = userdata;
	r = sd_event_add_time(event, &all->timer, CLOCK_MONOTONIC, UINT64_MAX, USEC_PER_MSEC, on_timer, all);
	if (r < 0)
		return r;
	r = sd_event_source_set_enabled(all->timer, SD_EVENT_OFF);
	if (r < 0)
		return r;
	*ret = all;
	all = NULL;
	return 0;
}

struct host_durables *host_durables_free(struct host_durables *all)
{
	struct entry *e;

	if (!all)
		return NULL;
	while ((e = TAILQ_FIRST(&all->entries))) {
		TAILQ_REMOVE(&all->entries, e, entry);
		free(e);
	}
	sd_event_source_disable_unref(all->timer);
	free(all);
	return NULL;
}

void host_durables_add(struct host_durables *all, struct manager_region *mr)
{
	const struct target *target = manager_region_get_last_target(mr);
	struct entry *e = find(all, mr);
	struct flush_status status;
	struct host_durable *d;

	if (!e) {
		e = calloc(1, sizeof(*e));
		if (!e)
			return; /* the next one tells more */
		e->region = mr;
		TAILQ_INSERT_TAIL(&all->entries, e, entry);
	}
	manager_region_get_status(mr, &status);
	d = &e->waiting[target->flush.scope == FLUSH_FILESYSTEM ? FILESYSTEM : OTHER];
	d->scope = target->flush.scope;
	snprintf(d->target, sizeof(d->target), "%s", target->source);
	d->epoch = status.epoch;
	d->durable_usec = status.epoch_usec;
	if (now_usec(CLOCK_MONOTONIC) >= e->quiet_usec)
		tell(all, e);
	else
		set_timer(all);
}

void host_durables_tell(struct host_durables *all, const struct manager_region *mr)
{
	struct entry *e;

	TAILQ_FOREACH (e, &all->entries, entry)
		if ((!mr || e->region == mr) && is_waiting(e))
			tell(all, e);
	set_timer(all);
}

void host_durables_drop(struct host_durables *all)
{
	struct entry *e;

	TAILQ_FOREACH (e, &all->entries, entry)
		for (unsigned int i = 0; i < N_KINDS; i++)
			e->waiting[i].epoch = 0;
	set_timer(all);
}

void host_durables_remove(struct host_durables *all, const struct manager_region *mr)
{
	struct entry *e = find(all, mr);

	if (!e)
		return;
	TAILQ_REMOVE(&all->entries, e, entry);
	free(e);
	set_timer(all);
}
