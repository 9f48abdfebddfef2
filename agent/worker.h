/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * worker: the child process of a region that makes the calls which can hang, and the region's page
 *
 * A worker makes one round at a time, holds no descriptor of anybody's between rounds, and ends when its agent does:
 * at once if it is idle, else when its system call returns, and not before it has written the outcome into the page.
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

enum worker_call {
	WORKER_FSYNC,      /* of the descriptor */
	WORKER_FDATASYNC,  /* of the descriptor */
	WORKER_SYNCFS,     /* of the descriptor, else of `path` */
	WORKER_NODE,       /* fsync of `path`: a block device, or the file of an emulated region */
	WORKER_DEEP_FLUSH, /* "1" written to `path` */
	N_WORKER_CALLS,
};

struct worker_round {
	uint64_t round;
	enum worker_call call;
	char path[288];        /* opened for the round; "": the descriptor that came with it */
	uint64_t device;       /* what `path` must be: st_rdev of a device, st_dev of a file or directory */
	uint64_t inode;        /* st_ino of a file; 0: not checked */
	enum worker_call then; /* _NODE or _DEEP_FLUSH, after a syncfs that may have sent no flush */
	char then_path[288];   /* "" for none */
	uint64_t then_device;  /* as `device` */
	struct target target;  /* mount_check()ed before and after */
};

struct worker_result {
	uint64_t round;
	enum pmem_agent_answer answer; /* PMEM_AGENT_DURABLE: the host confirmed, and nothing speaks against it here */
	int error;                     /* errno behind it, 0 if none */
	char detail[MOUNT_DETAIL_MAX]; /* why it is not durable, "" if there is nothing to add */
};

/*
 * The page of the region that `identity` describes, mapped. One left by an agent before us in this boot is kept, any
 * other replaced. 0 or a negative errno.
 */
int worker_open_page(const char *runtime_dir, const char *identity, sd_id128_t boot_id, struct pmem_agent_page **ret);

/* Path of that page: runtime_dir/HASH.page. */
void worker_page_path(const char *runtime_dir, const char *identity, char *ret, size_t size);
struct pmem_agent_page *worker_close_page(struct pmem_agent_page *page);
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

/* Begins a round; `fd` is passed on, not consumed; -1 for none. 0 or a negative errno (nothing was begun). */
int worker_begin(struct worker *w, const struct worker_round *round, int fd);

/* 0 with a result; -EAGAIN: none yet; -EPIPE: the child has died, the page tells how far it came. */
int worker_collect(struct worker *w, struct worker_result *ret);
