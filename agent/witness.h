/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * witness: failed block I/O that somebody else took the error of, from a private trace instance
 *
 * The instance (event block_bio_complete, filter WITNESS_FILTER) is set up by root before the service starts, see
 * units/pmem-agent-witness, and outlives it: what failed while no agent ran is read by the next one.
 */
#pragma once

#include <stdbool.h>
#include <sys/types.h>

#include "util.h"

#define WITNESS_INSTANCE "/sys/kernel/tracing/instances/pmem-agent"

/*
 * As units/pmem-agent-witness has it. I/O that is not to wait (-EAGAIN), or is to be polled where that can't be
 * (-EOPNOTSUPP), fails as often as any user likes who can read a file. No write-back and no flush is of these kinds.
 */
#define WITNESS_FILTER "error != 0 && error != -11 && error != -95"

struct witness;

enum witness_entry_type {
	WITNESS_ENTRY_NONE, /* a line of no interest */
	WITNESS_ENTRY_ERROR,
	WITNESS_ENTRY_OVERRUN, /* entries were lost: anything may have failed */
};

struct witness_entry {
	enum witness_entry_type type;
	dev_t devnum; /* of the disk or partition whose I/O failed */
	int error;    /* errno, positive */
};

/* 0; -ENOENT: no instance was set up; -EBUSY: another process has it open; or another negative errno. */
int witness_open(const char *instance, struct witness **ret);
struct witness *witness_free(struct witness *w);
DEFINE_CLEANUP(struct witness *, witness_free)

/* Readable when there are entries. */
int witness_get_fd(const struct witness *w);

/* Whether there may be entries. What witness_next() has begun it must have read until there was none. */
bool witness_has_more(const struct witness *w);

/* 1 with the next entry, 0 if there is none at present, or a negative errno: the witness can't be relied on any more.
 */
int witness_next(struct witness *w, struct witness_entry *ret);

/* One line of trace_pipe. */
void witness_parse(const char *line, struct witness_entry *ret);
