/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * answer: one row for every answer: its name at each door, the exit status of pmemctl, what it means
 */
#include <errno.h>
#include <string.h>

#include "answer.h"
#include "util.h"

struct row {
	struct answer answer;
	const char *dbus_error;
};

#define ROW(name_, exit_status_, error_, meaning_)                                                                     \
	{                                                                                                              \
		.answer = { .name = name_, .exit_status = exit_status_, .error = error_, .meaning = meaning_ },        \
		.dbus_error = ANSWER_ERROR_PREFIX name_                                                                \
	}

/* Exit statuses 1 and 2 are pmemctl's own: any other failure, and wrong usage. */
static const struct row rows[] = {
	[PMEM_AGENT_DURABLE] = ROW("Durable", 0, 0, "everything stored before the flush began is durable"),
	[PMEM_AGENT_LOST] = ROW("Lost", 3, EIO, "stores to the region have been lost, and nobody has acknowledged it"),
	[PMEM_AGENT_UNKNOWN] = ROW("Unknown", 4, ETIMEDOUT, "nobody can tell whether the stores are durable"),
	[PMEM_AGENT_BUSY] = ROW("Busy", 5, EBUSY, "too many requests wait for the region; try again later"),
	[PMEM_AGENT_GONE] = ROW("Gone", 6, ENODEV, "the region was removed before the flush began"),
	[PMEM_AGENT_ORDINARY] = ROW("OrdinaryStorage", 7, ENOTBLK, "the target is not on persistent memory"),
	[PMEM_AGENT_MIXED] =
	    ROW("MixedStorage", 8, EXDEV, "the target is partly on persistent memory and partly on other storage"),
	[PMEM_AGENT_SYNCHRONOUS] = ROW("SynchronousRegion", 9, EOPNOTSUPP,
				       "the region is synchronous: a program that stores flushes its own CPU caches, "
				       "and files need fsync"),
	[PMEM_AGENT_FILESYSTEM] =
	    ROW("UnknownFilesystem", 10, EOPNOTSUPP, "the agent does not know how to make this filesystem durable"),
	[PMEM_AGENT_UNFLUSHED] =
	    ROW("NotFlushed", 11, EOPNOTSUPP, "flushes of the target do not reach the host as it is set up now"),
	[PMEM_AGENT_IMPOSSIBLE] =
	    ROW("Impossible", 12, EOPNOTSUPP, "nothing in this machine can make the region durable"),
	[PMEM_AGENT_FAILED] =
	    ROW("TargetFailed", 13, ENOSPC, "the target has no room for its data; the region has lost nothing"),
	[PMEM_AGENT_REFUSED] = ROW("InvalidTarget", 14, EINVAL, "the target is nothing that can be flushed"),
	[PMEM_AGENT_NOT_FOUND] = ROW("NotFound", 15, ENOENT, "there is no such path, mount point or region"),
	[PMEM_AGENT_DENIED] = ROW("AccessDenied", 16, EACCES, "you may not ask for this"),
	[PMEM_AGENT_STALE_LOSS] = ROW("StaleLoss", 17, ESTALE, "this is not the newest loss of the region"),
	[PMEM_AGENT_TIMEOUT] =
	    ROW("TimedOut", 18, ETIMEDOUT, "the flush was not confirmed by your deadline; nobody can tell yet"),
};

_Static_assert(ARRAY_SIZE(rows) == PMEM_AGENT_N_ANSWERS, "a row for every answer");

static const struct row *row_get(enum pmem_agent_answer answer)
{
	return (unsigned int)answer < PMEM_AGENT_N_ANSWERS ? &rows[answer] : &rows[PMEM_AGENT_UNKNOWN];
}

const struct answer *answer_get(enum pmem_agent_answer answer)
{
	return &row_get(answer)->answer;
}

const char *answer_dbus_error(enum pmem_agent_answer answer)
{
	return row_get(answer)->dbus_error;
}

enum pmem_agent_answer answer_from_dbus_error(const char *name)
{
	/* "Durable" is never an error, so whoever sends it as one promises nothing. */
	for (unsigned int i = PMEM_AGENT_DURABLE + 1; name && i < ARRAY_SIZE(rows); i++) {
		if (strcmp(rows[i].dbus_error, name) == 0)
			return i;
	}
	return PMEM_AGENT_UNKNOWN;
}

enum pmem_agent_answer answer_from_flush_errno(int error)
{
	switch (error) {
	case ENOSPC:
	case EDQUOT:
		return PMEM_AGENT_FAILED;
	case EBADF:
	case EINVAL:
	case EOPNOTSUPP:
	case EROFS:
		return PMEM_AGENT_REFUSED;
	default:
		return PMEM_AGENT_LOST;
	}
}
