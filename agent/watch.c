/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * watch: the regions that the witness's entries hit
 */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/sysmacros.h>

#include "event.h"
#include "layers.h"
#include "log.h"
#include "manager-private.h"
#include "sysfs.h"

/* One failed request completes several times, as its parts do: what comes within this is one loss. */
#define WATCH_SETTLE_USEC (5 * USEC_PER_MSEC)

/* A child of an agent that has just been killed may have the trace instance for a moment. */
#define WATCH_PATIENCE_MSEC 1000

/* agent.reading in the page of a region that can't be flushed; in that of another it is 0 or not. */
#define READING     1U
#define NOT_COUNTED 2U

/* ---- one entry ---- */

/* The disk of a partition, or the disk itself. -ENOENT: the device is no more; -ENOTBLK: no disk of a region. */
static int get_disk(dev_t devnum, struct leaf *ret)
{
	_cleanup_free_ char *path = sysfs_resolve("/sys/dev/block/%u:%u", major(devnum), minor(devnum));

	if (!path)
		return -errno;
	if (!strstr(path, "/ndbus"))
		return -ENOTBLK;
	if (sysfs_exists("%s/partition", path))
		*strrchr(path, '/') = '\0';
	*ret = (struct leaf){ .character = false };
	snprintf(ret->name, sizeof(ret->name), "%s", strrchr(path, '/') + 1);
	return sysfs_read_devnum(&ret->devnum, "%s/dev", path);
}

/* By name too: its number may have been another's when the regions were looked at. */
static bool has_disk(const struct region *region, const struct leaf *disk)
{
	const struct namespace *ns = region_find_device(region, disk->devnum, false);

	return ns && strcmp(ns->device, disk->name) == 0;
}

static bool has_major(const struct region *region, const struct leaf *disk)
{
	for (unsigned int i = 0; i < region->n_namespaces; i++)
		if (region->namespaces[i].mode != NAMESPACE_MODE_DEVDAX && region->namespaces[i].devnum &&
		    major(region->namespaces[i].devnum) == major(disk->devnum))
			return true;
	return false;
}

/* Other devices can be made of it, or of parts of it. */
static bool has_any_disk(const struct region *region, const struct leaf *disk)
{
	for (unsigned int i = 0; i < region->n_namespaces; i++)
		if (region->namespaces[i].mode != NAMESPACE_MODE_DEVDAX && region->namespaces[i].devnum)
			return true;
	return false;
}

static bool is_any(const struct region *region, const struct leaf *disk)
{
	return true;
}

/* The CPU's own flush is all there ever is: nothing will be promised of it, and nobody could acknowledge a loss. */
static bool is_synchronous(const struct region *r)
{
	enum region_method method = r->unattested.is_set ? r->unattested.method : r->method;

	return method == REGION_METHOD_CPU_FLUSH && r->deep_flush == 0;
}

/* Of those of one identity, the copies of an image: nobody can tell their losses apart. The one that is flushed counts.
 */
static struct manager_region *find_counting(struct manager_region *mr)
{
	struct manager_region *other, *first = NULL;

	if (mr->flush)
		return mr;
	TAILQ_FOREACH (other, &mr->manager->regions, entry) {
		if (strcmp(other->region->identity, mr->region->identity) != 0)
			continue;
		if (other->flush)
			return other;
		first = first ?: other;
	}
	return first ?: mr;
}

/*
 * The region can't be flushed now, and counts no losses. But it may be again, after the host or udev has had its say,
 * by an agent after us even: its page tells that something was taken from the trace which nobody has counted.
 */
static void note_in_page(struct manager_region *mr, uint32_t (*change)(uint32_t reading))
{
	_cleanup_(worker_close_pagep) struct pmem_agent_page *page = NULL;
	struct manager *m = mr->manager;
	int r;

	if (is_synchronous(mr->region))
		return;
	r = worker_open_page(m->runtime_dir, mr->region->identity, m->boot_id, &page);
	if (r < 0)
		m->watch.forgotten = -r;
	else
		page_store(page->agent.reading, change(page->agent.reading));
}

/* What an agent before us has left so it can't have counted. */
static uint32_t begin_reading(uint32_t reading)
{
	return reading ? READING | NOT_COUNTED : READING;
}

static uint32_t end_reading(uint32_t reading)
{
	return reading & ~READING;
}

static uint32_t keep(uint32_t reading)
{
	return reading | NOT_COUNTED;
}

static void hit_one(struct manager_region *mr, int error, enum flush_origin origin)
{
	struct manager_region *counting = find_counting(mr);

	if (counting->hit)
		return;
	counting->hit = true;
	if (counting->flush) {
		round_lose(counting, error, origin);
		return;
	}
	log_region(LOG_WARNING, LOG_EVENT_NONE, counting->region->name, 0,
		   "%s may have lost stores while the agent cannot flush it (%s)", counting->region->name,
		   strerrordesc_np(error));
	note_in_page(counting, keep);
}

/*
 * Each region once a reading: nobody can have done anything about the first entry before the others came. Those that
 * were removed too, as their round in flight may still be confirmed.
 */
static bool hit(struct manager *m, bool (*concerns)(const struct region *region, const struct leaf *disk),
		const struct leaf *disk, int error, enum flush_origin origin)
{
	struct manager_region_list *const lists[] = { &m->regions, &m->removed };
	struct manager_region *mr;
	bool found = false;

	for (size_t i = 0; i < ARRAY_SIZE(lists); i++)
		TAILQ_FOREACH (mr, lists[i], entry) {
			if (!concerns(mr->region, disk))
				continue;
			found = true;
			hit_one(mr, error, origin);
		}
	return found;
}

/* Its region is yet to be seen. */
static void keep_stranger(struct manager *m, const struct leaf *disk, int error)
{
	if (m->watch.n_strangers < WATCH_MAX_STRANGERS)
		m->watch.strangers[m->watch.n_strangers] = (struct stranger){ .disk = *disk, .error = error };
	if (m->watch.n_strangers <= WATCH_MAX_STRANGERS)
		m->watch.n_strangers++;
}

/* Whether its driver makes disks of other disks. */
static bool is_mapping(dev_t devnum)
{
	static const char *const drivers[] = { "device-mapper", "md", "mdp", "bcache" };
	FILE *f = fopen("/proc/devices", "re");
	unsigned int number;
	char line[128], driver[64];
	bool block = false, found = false;

	while (f && !found && fgets(line, sizeof(line), f)) {
		block |= strcmp(line, "Block devices:\n") == 0;
		if (!block || sscanf(line, "%u %63s", &number, driver) != 2 || number != major(devnum))
			continue;
		for (size_t i = 0; i < ARRAY_SIZE(drivers); i++)
			found |= strcmp(driver, drivers[i]) == 0;
	}
	if (f)
		fclose(f);
	return found || !f;
}

/*
 * What has vanished by now can't be told from a partition of ours: doubt, wherever the major is the same. A mapping may
 * have been on any disk.
 */
static void hit_vanished(struct manager *m, dev_t devnum, int error)
{
	hit(m, is_mapping(devnum) ? has_any_disk : has_major, &(struct leaf){ .devnum = devnum }, error,
	    FLUSH_ORIGIN_WITNESS);
}

/* 0; 1: its region is not known; -ENOTBLK: it is no disk of a region. */
static int hit_disk(struct manager *m, dev_t devnum, int error)
{
	struct leaf disk;
	int r = get_disk(devnum, &disk);

	if (r == -ENOTBLK)
		return r;
	if (r < 0) {
		hit_vanished(m, devnum, error);
		return 0;
	}
	if (hit(m, has_disk, &disk, error, FLUSH_ORIGIN_WITNESS))
		return 0;
	keep_stranger(m, &disk, error);
	return 1;
}

/*
 * Whether it is of a disk whose region is not known. What a mapping fails by itself (it is full, or can't encrypt) the
 * disks below never get to see, and which of them it would have been is not told.
 */
static bool hit_error(struct manager *m, const struct witness_entry *e)
{
	struct layers below = { .n_leaves = 0 };
	char detail[MOUNT_DETAIL_MAX];
	bool strange = false;
	int r = hit_disk(m, e->devnum, e->error);

	if (r != -ENOTBLK)
		return r > 0;
	r = layers_add(&below, "/sys", e->devnum, detail);
	/* Nothing is ever promised of what rests on more devices than the agent follows. */
	if (r != 0 && r != PMEM_AGENT_REFUSED)
		hit_vanished(m, e->devnum, e->error);
	for (unsigned int i = 0; i < below.n_leaves; i++)
		strange |= hit_disk(m, below.leaves[i].devnum, e->error) > 0;
	return strange;
}

static void set_overrun(struct manager *m, bool overrun)
{
	struct manager_region *mr;

	TAILQ_FOREACH (mr, &m->regions, entry)
		mr->overrun = overrun;
}

static void hit_overrun(struct manager *m)
{
	hit(m, is_any, NULL, EIO, FLUSH_ORIGIN_OVERRUN);
	/* Those that are yet to be seen too. */
	if (m->look.scan || m->look.problem[0]) {
		m->watch.n_strangers = WATCH_MAX_STRANGERS + 1;
		set_overrun(m, true);
	}
}

/* Once each, however often they are looked for until all have been seen. */
static void hit_seen(struct manager *m)
{
	struct manager_region *mr;

	TAILQ_FOREACH (mr, &m->regions, entry)
		if (!mr->overrun)
			hit_one(mr, EIO, FLUSH_ORIGIN_OVERRUN);
	set_overrun(m, true);
}

static void forget_hits(struct manager *m, const struct manager_region *just_lost)
{
	struct manager_region *mr;

	TAILQ_FOREACH (mr, &m->regions, entry)
		mr->hit = mr == just_lost;
	TAILQ_FOREACH (mr, &m->removed, entry)
		mr->hit = mr == just_lost;
}

static void give_up(struct manager *m, int error)
{
	log_daemon(LOG_ERR, LOG_EVENT_WITNESS,
		   "the trace instance is not to be relied on any more (%s): errors that others take go unseen",
		   strerrordesc_np(error));
	m->watch.source = sd_event_source_disable_unref(m->watch.source);
	m->watch.settle = sd_event_source_disable_unref(m->watch.settle);
	m->witness = witness_free(m->witness);
}

/* What can't be kept would be forgotten, and an answer that says "watched" a lie. */
static void check_kept(struct manager *m)
{
	if (m->watch.forgotten && m->witness)
		give_up(m, m->watch.forgotten);
}

void watch_regions_seen(struct manager *m, bool all)
{
	unsigned int n = m->watch.n_strangers;

	forget_hits(m, NULL);
	if (n > WATCH_MAX_STRANGERS)
		hit_seen(m);
	/* Else those that have had no room are still to hit what is seen next. */
	if (n <= WATCH_MAX_STRANGERS || all) {
		m->watch.n_strangers = 0;
		set_overrun(m, false);
	}
	for (unsigned int i = 0; n <= WATCH_MAX_STRANGERS && i < n; i++) {
		struct stranger s = m->watch.strangers[i];

		if (!hit(m, has_disk, &s.disk, s.error, FLUSH_ORIGIN_WITNESS) && !all)
			m->watch.strangers[m->watch.n_strangers++] = s;
	}
	check_kept(m);
}

/* ---- all there are ---- */

/* What is taken from the trace is nowhere but here until it is counted. */
static void mark_reading(struct manager *m, bool reading)
{
	struct manager_region *mr;

	TAILQ_FOREACH (mr, &m->regions, entry) {
		if (mr->page)
			page_store(mr->page->agent.reading, reading);
		else if (find_counting(mr) == mr)
			note_in_page(mr, reading ? begin_reading : end_reading);
	}
}

void watch_read(struct manager *m, struct manager_region *just_lost)
{
	struct witness_entry entry;
	bool strange = false;
	int r = 0;

	if (!m->witness)
		return;
	forget_hits(m, just_lost);

	if (!witness_has_more(m->witness))
		return;
	mark_reading(m, true);
	while ((r = witness_next(m->witness, &entry)) > 0) {
		switch (entry.type) {
		case WITNESS_ENTRY_NONE:
			break;
		case WITNESS_ENTRY_ERROR:
			strange |= hit_error(m, &entry);
			break;
		case WITNESS_ENTRY_OVERRUN:
			hit_overrun(m);
			break;
		}
	}
	mark_reading(m, false);
	if (strange)
		regions_look(m);
	if (r < 0)
		give_up(m, -r);
	check_kept(m);
}

void watch_resume(struct manager *m)
{
	if (m->watch.source)
		event_enable(m->watch.source, SD_EVENT_ONESHOT);
}

static int on_settled(sd_event_source *source, uint64_t usec, void *userdata)
{
	struct manager *m = userdata;

	watch_read(m, NULL);
	watch_resume(m);
	return 0;
}

/*
 * While a round of ours is in flight its own error comes this way too: the end of the round, or its stall, goes on from
 * here, so that both count as one loss. No answer waits for any of this: each reads the witness first.
 */
static int on_entries(sd_event_source *source, int fd, uint32_t events, void *userdata)
{
	struct manager *m = userdata;
	struct manager_region *mr;
	struct flush_status status;
	int r;

	TAILQ_FOREACH (mr, &m->regions, entry) {
		manager_region_get_status(mr, &status);
		if (status.state == FLUSH_IN_FLIGHT)
			return 0;
	}
	r = sd_event_source_set_time_relative(m->watch.settle, WATCH_SETTLE_USEC);
	return r < 0 ? r : sd_event_source_set_enabled(m->watch.settle, SD_EVENT_ONESHOT);
}

static int attach(struct manager *m)
{
	int r =
	    sd_event_add_time(m->event, &m->watch.settle, CLOCK_MONOTONIC, UINT64_MAX, USEC_PER_MSEC, on_settled, m);

	if (r < 0)
		return r;
	r = sd_event_source_set_enabled(m->watch.settle, SD_EVENT_OFF);
	if (r < 0)
		return r;
	r = sd_event_add_io(m->event, &m->watch.source, witness_get_fd(m->witness), EPOLLIN, on_entries, m);
	if (r < 0)
		return r;
	return sd_event_source_set_enabled(m->watch.source, SD_EVENT_ONESHOT);
}

void manager_watch(struct manager *m)
{
	int r = witness_open(WITNESS_INSTANCE, &m->witness);

	for (unsigned int msec = 0; r == -EBUSY && msec < WATCH_PATIENCE_MSEC; msec++) {
		poll(NULL, 0, 1);
		r = witness_open(WITNESS_INSTANCE, &m->witness);
	}
	if (r < 0) {
		log_daemon(r == -EBUSY ? LOG_WARNING : LOG_NOTICE, LOG_EVENT_WITNESS,
			   "no trace instance (%s): an I/O error that another program takes goes unseen, answers rest "
			   "on own-flush only",
			   r == -EBUSY ? "another pmem-agent is reading it" : strerrordesc_np(-r));
		return;
	}
	watch_read(m, NULL);
	r = m->witness ? attach(m) : 0;
	if (r < 0)
		give_up(m, -r);
}
