/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * worker: the child process of a region that makes the calls which can hang, and the region's page
 *
 * A worker makes one round at a time, its calls one after the other; after one that was lost it makes no more. It holds
 * no descriptor of anybody's between rounds, and ends when its agent does: at once if it is idle, else when its round
 * has ended, and not before it has written the outcome into the page.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <systemd/sd-id128.h>

#include "lib/wire.h"
#include "mount.h"
#include "util.h"

struct worker;

/* Of a page: a field has one writer, and others look at it at any time. */
#define page_store(field, value) __atomic_store_n(&(field), value, __ATOMIC_RELEASE)
#define page_load(field)         __atomic_load_n(&(field), __ATOMIC_ACQUIRE)

#define WORKER_MAX_CALLS       (FLUSH_ROUND_MAX_CALLS + 1)
#define WORKER_MAX_DESCRIPTORS FLUSH_ROUND_MAX_DESCRIPTORS

/* How the region itself is flushed. */
struct worker_node {
	bool attribute;  /* "1" is written to `path`; else it is a block device or a file, for fsync */
	char path[288];  /* opened for the round */
	uint64_t device; /* what `path` must be, unless an attribute: st_rdev of a device, st_dev of a file */
	uint64_t inode;  /* st_ino of a file; 0: not checked */
};

/* See flush.h; calls and descriptors have the same numbers here as there. */
struct worker_call {
	enum flush_scope scope;
	int descriptor;      /* -1: the region's node; for a filesystem, the mount point that its target names */
	int served_by;       /* -1: made in any case */
	bool then_region;    /* the region is flushed after it, as a syncfs may have sent no flush */
	unsigned int target; /* mount_check()ed before and after the calls */
};

struct worker_descriptor {
	unsigned int call;
	bool fetch;
};

struct worker_round {
	uint64_t round;
	struct worker_node region;
	unsigned int n_calls, n_descriptors, n_targets;
	struct worker_call calls[WORKER_MAX_CALLS];
	struct worker_descriptor descriptors[WORKER_MAX_DESCRIPTORS];
	struct target targets[WORKER_MAX_CALLS];
};

struct worker_result {
	uint64_t round;
	unsigned int n_calls, n_descriptors;
	struct flush_outcome outcome; /* PMEM_AGENT_DURABLE: the host confirmed, and nothing speaks against it here */
	char details[WORKER_MAX_CALLS][MOUNT_DETAIL_MAX]; /* why a call is not durable, "" if there is nothing to add */
};

/*
 * The page of the region that `identity` describes, mapped. One left by an agent before us in this boot is kept, any
 * other replaced. 0 or a negative errno.
 */
int worker_open_page(const char *runtime_dir, const char *identity, sd_id128_t boot_id, struct pmem_agent_page **ret);

/* Path of that page: runtime_dir/HASH.page. */
void worker_page_path(const char *runtime_dir, const char *identity, char *ret, size_t size);
struct pmem_agent_page *worker_close_page(struct pmem_agent_page *page);

/* Nobody can tell whether the regions of these pages, all of this boot but one, have lost stores: who adopts one,
 * knows. */
void worker_doubt_pages(const char *runtime_dir, const struct pmem_agent_page *but);
DEFINE_CLEANUP(struct pmem_agent_page *, worker_close_page)

/* A pidfd of the page's worker if that still lives: wait for it to become readable. -ESRCH if it doesn't. */
int worker_find(const struct pmem_agent_page *page);

/* Starts the child. 0 or a negative errno. */
int worker_start(struct pmem_agent_page *page, struct worker **ret);
struct worker *worker_free(struct worker *w);
DEFINE_CLEANUP(struct worker *, worker_free)

/* Readable when a result is there, or when the child has died. */
int worker_get_fd(const struct worker *w);
pid_t worker_get_pid(const struct worker *w);

/*
 * Begins a round, or one of the same number once more. `fds`, as many as the round has descriptors, are passed on, not
 * consumed: it is the caller to close its own, and to say so in the page (agent.handed), since the round does not end
 * before. 0 or a negative errno (nothing was begun).
 */
int worker_begin(struct worker *w, const struct worker_round *round, const int *fds);

/* 0 with a result; -EAGAIN: none yet; -EPIPE: the child has died, `ret` means nothing, the page tells how far it came.
 */
int worker_collect(struct worker *w, struct worker_result *ret);
