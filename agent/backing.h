/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * backing: what the host has behind a region of its guest, and a child that flushes it
 *
 * The child opens the file when the backing becomes known and holds this one descriptor until the end: errors that are
 * reported to other descriptors are reported to this one as well. Open, look and flush are the child's calls; the
 * host's disk may hang each of them.
 */
#pragma once

#include <limits.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <systemd/sd-event.h>

#include "util.h"

#define BACKING_MAX_WAITING 16

enum backing_answer { BACKING_UNSAID, BACKING_YES, BACKING_NO };

/* As the host says that it is. */
struct backing_info {
	uint64_t address, size; /* guest-physical; bytes */
	char name[64];          /* of the host's device; "" where nobody told */
	char path[PATH_MAX];    /* "": there is none, it is anonymous memory */
	enum backing_answer share, pmem, readonly;
	char state[PATH_MAX]; /* a file that an error which nobody was told of outlives us in; "": none */
	pid_t pid;            /* which has the file open: the virtual machine; 0: nobody told */
};

enum backing_state {
	BACKING_OPENING,
	BACKING_READY,   /* a file that keeps what is flushed */
	BACKING_UNKEPT,  /* memory, or mapped private: no flush keeps anything */
	BACKING_REFUSED, /* cannot be opened, or is not what the virtual machine has; see backing_get_problem() */
};

struct backing;

struct backing_callbacks {
	/* Once, when opening has ended, and when the child is gone or the file another. */
	void (*state)(struct backing *b, void *userdata);
	/* `error`: a positive errno, EOPNOTSUPP: it was not flushed; 0: what was stored before backing_flush() has been
	 * made durable. */
	void (*flushed)(struct backing *b, uint64_t number, int error, uint64_t usec, void *userdata);
};

/* 0 or a negative errno. */
int backing_new(sd_event *event, const struct backing_info *info, const struct backing_callbacks *callbacks,
		void *userdata, struct backing **ret);
struct backing *backing_free(struct backing *b);
DEFINE_CLEANUP(struct backing *, backing_free)

const struct backing_info *backing_get_info(const struct backing *b);
enum backing_state backing_get_state(const struct backing *b);

/* Why it can't be flushed, for people; "" if it can. */
const char *backing_get_problem(const struct backing *b);

/* It is memory of the host, whatever path it has. */
bool backing_is_memory(const struct backing *b);

/* Whether the virtual machine was seen to have this very file open. */
bool backing_is_verified(const struct backing *b);

/* It was found that another file has its name now, and that is all that is wrong. */
bool backing_is_replaced(const struct backing *b);

/* The last flush could not be recorded: if this process is killed in the next, its error is known to nobody. */
bool backing_is_unkept(const struct backing *b);

/* So many were made, and all of them took so long. */
uint64_t backing_get_flushes(const struct backing *b, uint64_t *ret_usec);

/* An error of a process before us that nobody was told of; 0: none. It is remembered until backing_forget(). */
int backing_get_kept(const struct backing *b);
void backing_forget(struct backing *b);

/*
 * Flushes it; `number` comes back with the answer. Those that wait while one is being made share the next one. 0;
 * -EBUSY: so many wait already; -EOPNOTSUPP: no flush would keep anything; -EIO: it is refused.
 */
int backing_flush(struct backing *b, uint64_t number);
