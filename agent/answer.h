/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * answer: one row for every answer: its name at each door, the exit status of pmemctl, what it means
 */
#pragma once

#include "lib/wire.h"

struct answer {
	const char *name;    /* last part of the D-Bus error name and the class on the host channel; "Durable" */
	int exit_status;     /* of pmemctl; a contract, see pmemctl(1) */
	int error;           /* the errno that stands for it at doors which know only errnos */
	const char *meaning; /* one sentence for people, without a full stop */
};

#define ANSWER_ERROR_PREFIX "io.pmem.Agent1.Error."

/* Never NULL: an answer out of range is described as PMEM_AGENT_UNKNOWN. */
const struct answer *answer_get(enum pmem_agent_answer answer);

/* Full D-Bus error name; a literal. */
const char *answer_dbus_error(enum pmem_agent_answer answer);

/* The answer that a D-Bus error name stands for; PMEM_AGENT_UNKNOWN for one that the agent never sends. */
enum pmem_agent_answer answer_from_dbus_error(const char *name);

/*
 * What an error of the flush itself means (a positive errno). EIO, and whatever we do not know, is a loss;
 * ENOSPC and EDQUOT are the target's failure; EBADF, EINVAL, ENOTSUP and EROFS refuse the target.
 */
enum pmem_agent_answer answer_from_flush_errno(int error);
