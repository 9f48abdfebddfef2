/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <errno.h>
#include <limits.h>
#include <string.h>

#include "log.h"
#include "manager-private.h"

/* ---- listeners ---- */

void manager_notify(struct manager *m, enum manager_event event, struct manager_region *mr)
{
	struct manager_listener *next;

	for (struct manager_listener *l = m->listeners; l; l = next) {
		next = l->next;
		l->notify(event, mr, l->userdata);
	}
}

void manager_add_listener(struct manager *m, struct manager_listener *l)
{
	l->next = m->listeners;
	m->listeners = l;
}

void manager_remove_listener(struct manager *m, struct manager_listener *l)
{
	for (struct manager_listener **p = &m->listeners; *p; p = &(*p)->next)
		if (*p == l) {
			*p = l->next;
			return;
		}
}

/* ---- looking things up ---- */

struct manager_region *manager_next_region(const struct manager *m, const struct manager_region *after)
{
	return after ? TAILQ_NEXT(after, entry) : TAILQ_FIRST(&m->regions);
}

struct manager_region *manager_find_region(const struct manager *m, const char *name)
{
	struct manager_region *mr;

	TAILQ_FOREACH (mr, &m->regions, entry)
		if (strcmp(mr->region->name, name) == 0)
			return mr;
	return NULL;
}

const struct region *manager_region_get(const struct manager_region *mr)
{
	return mr->region;
}

void manager_region_get_status(const struct manager_region *mr, struct flush_status *ret)
{
	if (mr->flush)
		flush_get_status(mr->flush, ret);
	else
		*ret = (struct flush_status){};
}

void manager_region_get_stats(const struct manager_region *mr, struct stats *ret)
{
	*ret = mr->stats;
}

const struct target *manager_region_get_last_target(const struct manager_region *mr)
{
	return &mr->last_target;
}

void manager_region_get_page_path(const struct manager_region *mr, char *ret, size_t size)
{
	ret[0] = '\0';
	if (mr->page)
		worker_page_path(mr->manager->runtime_dir, mr->region->identity, ret, size);
}

void manager_region_set_bus_slot(struct manager_region *mr, void *slot)
{
	mr->bus_slot = slot;
}

void *manager_region_get_bus_slot(const struct manager_region *mr)
{
	return mr->bus_slot;
}

sd_event *manager_get_event(const struct manager *m)
{
	return m->event;
}

const struct conf *manager_get_conf(const struct manager *m)
{
	return m->conf;
}

sd_id128_t manager_get_boot_id(const struct manager *m)
{
	return m->boot_id;
}

sd_id128_t manager_get_instance(const struct manager *m)
{
	return m->instance;
}

const char *manager_get_basis(const struct manager *m)
{
	return m->witness ? "watched" : "own-flush";
}

const char *manager_region_get_basis(const struct manager_region *mr)
{
	if (mr->region->method == REGION_METHOD_HOST || manager_region_wants_confirm(mr))
		return "host-confirmed";
	return mr->region->kind == REGION_KIND_EMULATED ? "own-flush" : manager_get_basis(mr->manager);
}

static unsigned int strength_of(const char *basis)
{
	static const char *const bases[] = { "own-flush", "watched", "host-confirmed" };
	unsigned int i = 0;

	while (basis && i < ARRAY_SIZE(bases) && strcmp(basis, bases[i]) != 0)
		i++;
	return basis ? i : UINT_MAX;
}

const char *manager_weaker_basis(const char *a, const char *b)
{
	return strength_of(a) < strength_of(b) ? a : b;
}

/* ---- the manager ---- */

int manager_new(sd_event *event, struct conf *conf, const char *runtime_dir, const char *state_dir,
		struct manager **ret)
{
	_cleanup_(manager_freep) struct manager *m = calloc(1, sizeof(*m));
	int r;

	if (!m) {
		conf_free(conf);
		return -ENOMEM;
	}
	TAILQ_INIT(&m->regions);
	TAILQ_INIT(&m->removed);
	TAILQ_INIT(&m->memory.records);
	m->event = sd_event_ref(event);
	m->conf = conf;
	m->runtime_dir = runtime_dir;
	m->memory.dir = state_dir;
	m->mounts = mount_cache_new();
	if (!m->mounts)
		return -ENOMEM;
	/* A late answer to the agent before us is none to us. */
	m->host.last_number = now_usec(CLOCK_REALTIME);
	r = sd_id128_get_boot(&m->boot_id);
	if (r < 0)
		return r;
	r = sd_id128_randomize(&m->instance);
	if (r < 0)
		return r;

	r = regions_start(m);
	if (r < 0)
		return r;
	r = loss_start(m);
	if (r < 0)
		return r;

	*ret = m;
	m = NULL;
	return 0;
}

static void free_list(struct manager_region_list *list)
{
	struct manager_region *mr;

	while ((mr = TAILQ_FIRST(list))) {
		TAILQ_REMOVE(list, mr, entry);
		request_cancel(mr->stop_request);
		round_region_free(mr);
	}
}

struct manager *manager_free(struct manager *m)
{
	if (!m)
		return NULL;
	free_list(&m->regions);
	free_list(&m->removed);
	sd_event_source_disable_unref(m->watch.source);
	sd_event_source_disable_unref(m->watch.settle);
	sd_event_source_disable_unref(m->stop.timer);
	regions_stop(m);
	mount_cache_free(m->mounts);
	witness_free(m->witness);
	loss_stop(m);
	conf_free(m->conf);
	sd_event_unref(m->event);
	free(m);
	return NULL;
}

/* ---- stopping ---- */

static void stopped(struct manager *m)
{
	void (*done)(bool clean, void *userdata) = m->stop.done;
	struct manager_region *mr;
	struct flush_status status;

	/* Those that were confirmed first may have lost something since. */
	TAILQ_FOREACH (mr, &m->regions, entry) {
		manager_region_get_status(mr, &status);
		if (status.loss.number > 0)
			m->stop.clean = false;
	}
	m->stop.timer = sd_event_source_disable_unref(m->stop.timer);
	m->stop.done = NULL;
	if (done)
		done(m->stop.clean, m->stop.userdata);
}

static void on_stop_flush(const struct request_result *result, void *userdata)
{
	struct manager_region *mr = userdata;
	struct manager *m = mr->manager;

	mr->stop_request = NULL;
	if (result->answer != PMEM_AGENT_DURABLE)
		m->stop.clean = false;
	if (--m->stop.waiting == 0)
		stopped(m);
}

/* Also where there was nothing to wait for: `done` is never called from within manager_stop(). */
static int on_stop_timer(sd_event_source *source, uint64_t usec, void *userdata)
{
	struct manager *m = userdata;

	if (m->stop.waiting > 0)
		m->stop.clean = false;
	stopped(m);
	return 0;
}

void manager_stop(struct manager *m, void (*done)(bool clean, void *userdata), void *userdata)
{
	const struct flush_caller caller = { .uid = getuid() };
	struct manager_region *mr;
	char detail[MOUNT_DETAIL_MAX];

	m->stop.done = done;
	m->stop.userdata = userdata;
	m->stop.clean = true;
	TAILQ_FOREACH (mr, &m->regions, entry) {
		/* Device-dax without a host that flushes it is none that the agent flushes. */
		if (!mr->flush || (mr->region->method == REGION_METHOD_HOST && !manager_region_is_served(mr)))
			continue;
		if (manager_flush_region(m, mr, &caller, on_stop_flush, mr, &mr->stop_request, detail) == 0)
			m->stop.waiting++;
		else
			m->stop.clean = false;
	}
	if (sd_event_add_time_relative(m->event, &m->stop.timer, CLOCK_MONOTONIC,
				       m->stop.waiting > 0 ? m->conf->stop_usec : 0, 1, on_stop_timer, m) < 0)
		stopped(m);
}
