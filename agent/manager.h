/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * manager: owns the loop, the regions, their workers, and every request between its door and its answer
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <systemd/sd-event.h>
#include <systemd/sd-id128.h>

#include "conf.h"
#include "flush.h"
#include "mount.h"
#include "region.h"
#include "stats.h"
#include "util.h"

struct manager;
struct manager_region;
struct request;
struct request_result;

/* ---- the manager ---- */

/* Takes `conf` over. `runtime_dir`: where the pages are; `state_dir`: where losses are recorded. 0 or a negative errno.
 */
int manager_new(sd_event *event, struct conf *conf, const char *runtime_dir, const char *state_dir,
		struct manager **ret);
struct manager *manager_free(struct manager *m);
DEFINE_CLEANUP(struct manager *, manager_free)

/*
 * Opens the witness, reads what it has seen so far, and follows it; without one the basis is own-flush. Before the
 * first answer, and not while the agent may yet fail to start: what it takes from the witness no other agent will see.
 */
void manager_watch(struct manager *m);

/* Something has changed: regions that are gone are removed, and a look for others begins. */
void manager_rescan(struct manager *m);

/* Why regions may be there that are not known, or not as they are: a sentence; "" if all is well. */
const char *manager_get_scan_problem(const struct manager *m);

/* Flushes every region once more and calls `done` from the loop, after the stop time at the latest. */
void manager_stop(struct manager *m, void (*done)(bool clean, void *userdata), void *userdata);

sd_event *manager_get_event(const struct manager *m);
const struct conf *manager_get_conf(const struct manager *m);
sd_id128_t manager_get_boot_id(const struct manager *m);
sd_id128_t manager_get_instance(const struct manager *m);
const char *manager_get_basis(const struct manager *m); /* "watched", or "own-flush" without the witness */
const char *manager_region_get_basis(const struct manager_region *mr); /* nobody watches the disk of an emulated one */

/* The weaker of two; NULL is stronger than any. */
const char *manager_weaker_basis(const char *a, const char *b);

/* Why losses cannot be recorded, or what was recorded cannot be read: a sentence; "" if all is well. */
const char *manager_get_state_problem(const struct manager *m);

/* ---- regions ---- */

/* Iterates in the order of their names: NULL gives the first. */
struct manager_region *manager_next_region(const struct manager *m, const struct manager_region *after);
struct manager_region *manager_find_region(const struct manager *m, const char *name);

const struct region *manager_region_get(const struct manager_region *mr);
void manager_region_get_status(const struct manager_region *mr, struct flush_status *ret);

/* What has been counted since it joined. */
void manager_region_get_stats(const struct manager_region *mr, struct stats *ret);

/* Where its page is; "" for a region that the agent cannot flush. */
void manager_region_get_page_path(const struct manager_region *mr, char *ret, size_t size);

/*
 * Loss `number` has been made good. 0, or PMEM_AGENT_STALE_LOSS or PMEM_AGENT_UNKNOWN with `detail`; then nothing is
 * changed.
 */
int manager_acknowledge(struct manager *m, struct manager_region *mr, uint64_t number,
			char detail[static MOUNT_DETAIL_MAX]);

/* Free for doors: a slot for what a door keeps with a region (the D-Bus object). */
void manager_region_set_bus_slot(struct manager_region *mr, void *slot);
void *manager_region_get_bus_slot(const struct manager_region *mr);

/*
 * For an answer that was kept: notices what there is to notice by now. What that makes of the regions comes as events,
 * from within the call. False: one of these regions has failed in a way that is not counted yet.
 */
bool manager_look_again(struct manager *m, const struct request_result *result);

/* ---- events, told to every listener ---- */

enum manager_event {
	MANAGER_REGION_ADDED,
	MANAGER_REGION_REMOVED, /* the region is still valid during the call */
	MANAGER_REGION_CHANGED, /* what scan saw of it */
	MANAGER_ROUND,          /* a round began or ended without being confirmed: state, waiting */
	MANAGER_DURABLE,        /* a round was confirmed: the epoch */
	MANAGER_LOST,
	MANAGER_ACKNOWLEDGED,
	MANAGER_STALLED,
	MANAGER_RECOVERED,
	MANAGER_STATE,    /* manager_get_state_problem(); of no region */
	MANAGER_SCAN,     /* manager_get_scan_problem(); of no region */
	MANAGER_INSTANCE, /* manager_get_instance(): what was confirmed before is void; of no region */
};

struct manager_listener {
	void (*notify)(enum manager_event event, struct manager_region *mr, void *userdata);
	void *userdata;
	struct manager_listener *next; /* the manager's */
};

/* The listener must outlive the manager, or be removed. */
void manager_add_listener(struct manager *m, struct manager_listener *l);
void manager_remove_listener(struct manager *m, struct manager_listener *l);

/* The target of the round that was confirmed last: the scope of a MANAGER_DURABLE event. */
const struct target *manager_region_get_last_target(const struct manager_region *mr);

/* ---- the host, by the door that speaks with it ---- */

struct manager_host {
	/*
	 * The host is to flush what is behind the region, or (`confirm`) to confirm that it is flushed. The answer is
	 * for manager_host_flushed(). 0, or a negative errno: it can't be asked now; then manager_host_ask() when it
	 * can be.
	 */
	int (*ask)(struct manager_region *mr, uint64_t number, bool confirm, void *userdata);
	void *userdata;
};
void manager_set_host(struct manager *m, const struct manager_host *host);

/* What the host has agreed to do, of regions whose backing it serves. Needs manager_set_host(). */
void manager_host_offers(struct manager *m, bool flushes, bool confirms);
void manager_host_ask(struct manager *m);

/*
 * The host's answer; `error`: errno of its fsync, EOPNOTSUPP: it made none; `why` may be "". Whether it was waited for:
 * an error counts in any case.
 */
bool manager_host_flushed(struct manager_region *mr, uint64_t number, int error, const char *why);

/* Whether it is a loss that can't be counted: the region can't be flushed now. The host must keep it. */
bool manager_host_lost_nowhere(const struct manager_region *mr, int error);

/*
 * What the host says of the region. That may make it another, or have it removed and added: returns the one there is
 * now; NULL: none, for want of memory.
 */
struct manager_region *manager_set_backing(struct manager *m, struct manager_region *mr,
					   const struct region_backing *backing);

/* What it offered and said of backings is void. */
void manager_forget_host(struct manager *m);

/*
 * The guest may have been restored: epochs, offers and what the host said of backings are void, and rounds in flight
 * are made again. 0 or a negative errno.
 */
int manager_new_instance(struct manager *m);

/* Whether the host flushes it, or confirms its flushes, now; and whether it is to confirm them. */
bool manager_region_is_served(const struct manager_region *mr);
bool manager_region_wants_confirm(const struct manager_region *mr);

/* ---- requests ---- */

struct request_epoch {
	struct manager_region *region;
	uint64_t epoch; /* the round that answered */
};

struct request_result {
	enum pmem_agent_answer answer;
	int error;                     /* errno behind it, 0 if none */
	char detail[MOUNT_DETAIL_MAX]; /* names the culprit, "" if there is nothing to add */
	enum flush_scope scope;
	const char *basis;
	sd_id128_t instance;   /* in which it was confirmed */
	uint64_t durable_usec; /* stores made before this are durable, CLOCK_REALTIME; the earliest of its regions */
	struct request_epoch epochs[MOUNT_MAX_LEAVES];
	unsigned int n_epochs;
};

/* Called exactly once, from the loop, never from within manager_flush_*(); the request is freed afterwards. */
typedef void (*request_done_t)(const struct request_result *result, void *userdata);

/* What a request would come to, by what is known now. */
struct manager_query {
	enum pmem_agent_answer answer; /* 0: a flush would be made */
	enum flush_scope scope;
	struct manager_region *regions[MOUNT_MAX_LEAVES]; /* below the target, as far as they are known */
	unsigned int n_regions;
	const struct region *decides; /* the answer, by its method; NULL: there is none */
	char detail[MOUNT_DETAIL_MAX];
};

/* `fd` is consumed. Nothing is flushed and nobody counts it; `caller` is whose descriptor it is. 0 or a negative errno.
 */
int manager_query_fd(struct manager *m, int fd, enum mount_scope scope, const struct flush_caller *caller,
		     struct manager_query *ret);

/*
 * A flush of `fd`, which is consumed, has failed with EIO, says the caller, who made it while no agent could be asked.
 * It is a loss of the regions below, unless they have one already, or the witness is there to tell: then who is not
 * root is not believed, or any user could stop all others. 0, or an answer with `detail`: there is no such region; or a
 * negative errno, as manager_flush_fd() has it.
 */
int manager_report_fd(struct manager *m, int fd, const struct mount_file *expected, const struct flush_caller *caller,
		      char detail[static MOUNT_DETAIL_MAX]);

/*
 * Flush what the descriptor stands for (`fd` is consumed), what is mounted at `path`, or a region. 0: `done` will be
 * called. Positive: the answer is known already, with `detail`. Negative: an errno. `caller` NULL: who asks is not
 * known yet, and the request waits for request_admit(). -ESTALE: `fd` is not `expected`; NULL: it may be anything.
 */
int manager_flush_fd(struct manager *m, int fd, const struct mount_file *expected, enum mount_scope scope,
		     const struct flush_caller *caller, request_done_t done, void *userdata, struct request **ret,
		     char detail[static MOUNT_DETAIL_MAX]);
int manager_flush_path(struct manager *m, const char *path, const struct flush_caller *caller, request_done_t done,
		       void *userdata, struct request **ret, char detail[static MOUNT_DETAIL_MAX]);
int manager_flush_region(struct manager *m, struct manager_region *mr, const struct flush_caller *caller,
			 request_done_t done, void *userdata, struct request **ret,
			 char detail[static MOUNT_DETAIL_MAX]);

/* 0, or the answer, with `detail`: the request is gone then. */
int request_admit(struct request *r, const struct flush_caller *caller, char detail[static MOUNT_DETAIL_MAX]);

/* The client left: `done` will not be called. */
void request_cancel(struct request *r);

/* Begins and answers at once what the loop would in its next turn: for a door that has taken in all there was. */
void manager_run(struct manager *m);
