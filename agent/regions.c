/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * regions: which there are: a child looks, and what it has seen joins, changes or goes
 *
 * It is one look at a time, however long that hangs; meanwhile those stay that are known and can be seen to be there.
 */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>

#include "log.h"
#include "manager-private.h"
#include "sysfs.h"

#define RETRY_USEC (30 * USEC_PER_SEC)
#define SOON_USEC  USEC_PER_SEC
#define START_USEC (5 * USEC_PER_SEC) /* systemd waits for us meanwhile */

/* ---- what could not be seen, or served ---- */

static void set_problem(struct manager *m, const char *text)
{
	if (strcmp(m->look.problem, text) == 0)
		return;
	snprintf(m->look.problem, sizeof(m->look.problem), "%s", text);
	if (text[0])
		log_daemon(LOG_WARNING, LOG_EVENT_SCAN, "%s", text);
	else
		log_daemon(LOG_NOTICE, LOG_EVENT_SCAN, "the regions have been looked at again");
	manager_notify(m, MANAGER_SCAN, NULL);
}

static int on_retry(sd_event_source *source, uint64_t usec, void *userdata)
{
	regions_look(userdata);
	return 0;
}

/* Nothing may happen any more that would have them looked at again. */
static void retry_later(struct manager *m, uint64_t usec)
{
	m->look.retry = sd_event_source_disable_unref(m->look.retry);
	sd_event_add_time_relative(m->event, &m->look.retry, CLOCK_MONOTONIC, usec, USEC_PER_SEC, on_retry, m);
}

/* It is not known for as long as that is so, but it is there. -EBUSY: it is held up, see recall.c. */
static void set_unserved(struct manager *m, const char *name, int error)
{
	uint64_t usec = error == EBUSY ? SOON_USEC : RETRY_USEC;
	char text[sizeof(m->look.unserved)];

	snprintf(text, sizeof(text), "%s cannot be served: %s", name,
		 error == EBUSY ? "it is not known yet what it lost under its former identity"
				: strerrordesc_np(error));
	if (strcmp(m->look.problem, text) != 0)
		log_region(LOG_ERR, LOG_EVENT_NONE, name, 0, "%s; it is tried again every %u s", text,
			   (unsigned int)(usec / USEC_PER_SEC));
	if (!m->look.unserved[0])
		memcpy(m->look.unserved, text, sizeof(text));
	retry_later(m, usec);
}

/* ---- what was seen ---- */

static void remove_region(struct manager *m, struct manager_region *mr)
{
	log_region(LOG_INFO, LOG_EVENT_REGION_REMOVED, mr->region->name, 0, "%s has been removed", mr->region->name);
	TAILQ_REMOVE(&m->regions, mr, entry);
	manager_notify(m, MANAGER_REGION_REMOVED, mr);
	round_region_remove(mr);
}

static void add_region(struct manager *m, struct region **region)
{
	struct manager_region *mr = NULL, *before;
	bool held_up = region_can_flush(*region) && recall_is_held_up(m, *region);
	int r = held_up ? -EBUSY : attest_recall(m, *region);

	if (r == 0)
		r = round_region_new(m, *region, &mr);
	if (r < 0) {
		set_unserved(m, (*region)->name, -r);
		return;
	}
	*region = NULL;

	TAILQ_FOREACH (before, &m->regions, entry)
		if (strverscmp(before->region->name, mr->region->name) > 0)
			break;
	if (before)
		TAILQ_INSERT_BEFORE(before, mr, entry);
	else
		TAILQ_INSERT_TAIL(&m->regions, mr, entry);

	/* Its stores came too late for the last flush. */
	if (mr->flush)
		m->stop.clean = false;
	log_region(LOG_INFO, LOG_EVENT_REGION_ADDED, mr->region->name, 0, "%s: %s, %s, method %s", mr->region->name,
		   mr->region->provider, mr->region->asynchronous ? "asynchronous" : "synchronous",
		   region_method_to_string(mr->region->method));
	manager_notify(m, MANAGER_REGION_ADDED, mr);
}

/* Whether the rounds can go on as they are after a scan that saw something new. */
static bool same_way_to_flush(const struct region *a, const struct region *b)
{
	return strcmp(a->identity, b->identity) == 0 && a->method == b->method &&
	       (a->flush_namespace ? a->flush_namespace->devnum : 0) ==
		   (b->flush_namespace ? b->flush_namespace->devnum : 0);
}

static struct region **find_in(struct region_list *list, const char *name)
{
	for (unsigned int i = 0; i < list->n_regions; i++)
		if (list->regions[i] && strcmp(list->regions[i]->name, name) == 0)
			return &list->regions[i];
	return NULL;
}

static void update_region(struct manager *m, struct manager_region *mr, struct region **seen)
{
	struct region *old = mr->region;

	if (!seen || !same_way_to_flush(old, *seen)) {
		if (seen && strcmp(old->identity, (*seen)->identity) != 0)
			recall_bequeath(mr);
		remove_region(m, mr);
		return;
	}
	if (!region_equal(old, *seen)) {
		mr->region = *seen;
		*seen = old;
		manager_notify(m, MANAGER_REGION_CHANGED, mr);
	}
	*seen = region_free(*seen);
}

void manager_replace_region(struct manager *m, struct manager_region *mr, struct region **seen)
{
	update_region(m, mr, seen);
	if (*seen)
		add_region(m, seen);
	if (m->look.unserved[0])
		set_problem(m, m->look.unserved);
}

/* The host's word goes with what stays where it was. */
static int keep_backing(const struct region *old, struct region *seen)
{
	if (!seen || old->resource != seen->resource || old->size != seen->size)
		return 0;
	return region_set_backing(seen, &old->backing);
}

/* Those that are not known yet. */
static void add_emulated(struct manager *m)
{
	for (unsigned int i = 0; i < m->conf->n_regions; i++) {
		const struct conf_region *c = &m->conf->regions[i];
		_cleanup_(region_freep) struct region *region = NULL;
		int r;

		if (!c->emulate[0] || manager_find_region(m, c->name))
			continue;
		r = scan_emulated(c->name, c->emulate, &region);
		if (r < 0)
			log_region(LOG_ERR, LOG_EVENT_CONFIG, c->name, 0, "%s: Emulate=%s: %s", c->name, c->emulate,
				   strerrordesc_np(-r));
		else
			add_region(m, &region);
		m->look.emulated |= region != NULL;
	}
}

static void take_seen(struct manager *m, struct region_list *list)
{
	struct manager_region *mr, *next;

	for (mr = TAILQ_FIRST(&m->regions); mr; mr = next) {
		next = TAILQ_NEXT(mr, entry);
		struct region **seen = find_in(list, mr->region->name);

		if (mr->region->kind == REGION_KIND_EMULATED)
			continue;
		if (seen && keep_backing(mr->region, *seen) < 0) {
			set_unserved(m, mr->region->name, ENOMEM);
			*seen = region_free(*seen);
		}
		update_region(m, mr, seen && *seen ? seen : NULL);
	}
	m->look.seen = list;
	for (unsigned int i = 0; i < list->n_regions; i++)
		if (list->regions[i])
			add_region(m, &list->regions[i]);
	recall_forget_gone(m);
	m->look.seen = NULL;
	if (m->look.emulated) {
		m->look.emulated = false;
		add_emulated(m);
	}
}

/* ---- looking ---- */

static void set_failed(struct manager *m, int error)
{
	char text[sizeof(m->look.problem)];

	snprintf(text, sizeof(text), "the agent could not look for regions: %s; those known stay as they are",
		 strerrordesc_np(error));
	set_problem(m, text);
	retry_later(m, RETRY_USEC);
}

static int on_late(sd_event_source *source, uint64_t usec, void *userdata)
{
	struct manager *m = userdata;
	char text[sizeof(m->look.problem)];

	snprintf(text, sizeof(text),
		 "a look for regions has not ended for %.1f s, as when a driver that is to let one go waits for its "
		 "flush; those known stay as they are",
		 (double)m->conf->stall_usec / USEC_PER_SEC);
	set_problem(m, text);
	return 0;
}

static void end_look(struct manager *m)
{
	m->look.source = sd_event_source_disable_unref(m->look.source);
	m->look.timer = sd_event_source_disable_unref(m->look.timer);
	m->look.scan = scan_free(m->look.scan);
}

/* 0, -EAGAIN: it goes on; or how it failed. */
static int collect(struct manager *m)
{
	_cleanup_(region_list_clear) struct region_list list = { .n_regions = 0 };
	int r = scan_collect(m->look.scan, &list);

	if (r == -EAGAIN)
		return r;
	/* What the witness says of a region must not come after its removal. Until then others may be unseen. */
	if (r >= 0)
		watch_read(m, NULL);
	end_look(m);
	if (r < 0)
		return r;
	mount_cache_forget(m->mounts);
	m->look.unserved[0] = '\0';
	take_seen(m, &list);
	return 0;
}

static int on_seen(sd_event_source *source, int fd, uint32_t events, void *userdata)
{
	struct manager *m = userdata;
	int r = collect(m);

	if (r == -EAGAIN)
		return 0;
	if (r < 0)
		set_failed(m, -r);
	else
		set_problem(m, m->look.unserved);
	/* What was read of the witness just now may have begun another look. */
	watch_regions_seen(m, r >= 0 && !m->look.again && !m->look.scan && !m->look.unserved[0]);
	if (m->look.again)
		regions_look(m);
	return 0;
}

static int start_look(struct manager *m)
{
	int r = scan_start(&m->look.scan);

	if (r < 0)
		return r;
	r = sd_event_add_io(m->event, &m->look.source, scan_get_fd(m->look.scan), EPOLLIN, on_seen, m);
	if (r < 0)
		return r;
	return sd_event_add_time_relative(m->event, &m->look.timer, CLOCK_MONOTONIC, m->conf->stall_usec, 0, on_late,
					  m);
}

void regions_look(struct manager *m)
{
	int r;

	/* What is under way may have passed already what has changed now. */
	m->look.again = m->look.scan;
	if (m->look.again)
		return;
	m->look.retry = sd_event_source_disable_unref(m->look.retry);
	r = start_look(m);
	if (r < 0) {
		end_look(m);
		m->look.again = true;
		set_failed(m, -r);
	}
}

/* Whoever looks may hang, so this is not left to them. */
static void remove_vanished(struct manager *m)
{
	struct manager_region *mr, *next;

	for (mr = TAILQ_FIRST(&m->regions); mr; mr = next) {
		next = TAILQ_NEXT(mr, entry);
		if (mr->region->syspath[0] && !sysfs_exists("%s", mr->region->syspath))
			remove_region(m, mr);
	}
}

void manager_rescan(struct manager *m)
{
	watch_read(m, NULL);
	mount_cache_forget(m->mounts);
	remove_vanished(m);
	regions_look(m);
}

struct manager_region *regions_find_leaf(struct manager *m, const struct leaf *leaf)
{
	struct manager_region *mr;
	bool stale = false;

	TAILQ_FOREACH (mr, &m->regions, entry) {
		const struct namespace *ns = region_find_device(mr->region, leaf->devnum, leaf->character);

		if (ns && strcmp(ns->device, leaf->name) == 0)
			return mr;
		stale |= ns != NULL;
	}
	if (stale)
		regions_look(m);
	return NULL;
}

bool regions_is_unseen(const struct manager *m, const struct leaf *leaf)
{
	return (m->look.scan || m->look.problem[0]) && (leaf->character || strncmp(leaf->name, "pmem", 4) == 0);
}

const char *manager_get_scan_problem(const struct manager *m)
{
	return m->look.problem;
}

/* ---- the first of them ---- */

/*
 * Nobody is to be told that there is no persistent memory before anybody has looked; but that may hang already.
 */
int regions_start(struct manager *m)
{
	struct pollfd p = { .events = POLLIN };
	uint64_t patience = m->conf->stall_usec < START_USEC ? m->conf->stall_usec : START_USEC;
	uint64_t until = now_usec(CLOCK_MONOTONIC) + patience, now;
	int r;

	add_emulated(m);
	r = start_look(m);
	if (r < 0)
		return r;
	p.fd = scan_get_fd(m->look.scan);
	do {
		now = now_usec(CLOCK_MONOTONIC);
		if (now >= until)
			return 0;
		poll(&p, 1, (int)((until - now) / USEC_PER_MSEC) + 1);
		r = collect(m);
	} while (r == -EAGAIN);
	if (r >= 0)
		set_problem(m, m->look.unserved);
	return r;
}

void regions_stop(struct manager *m)
{
	end_look(m);
	m->look.retry = sd_event_source_disable_unref(m->look.retry);
}
