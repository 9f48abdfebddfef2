/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * conf: pmem-agent.conf
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "region.h"
#include "util.h"

#ifndef PMEM_AGENT_CONF
#define PMEM_AGENT_CONF "/etc/pmem-agent.conf"
#endif

#define CONF_MAX_REGIONS  64
#define CONF_MAX_PROBLEMS 32

enum conf_confirm {
	CONF_CONFIRM_UNSET, /* of a region: as in [Agent] */
	CONF_CONFIRM_NO,
	CONF_CONFIRM_HOST,
};

/* Of the kernel's regions ("region0") there is one only if something is set for it. */
struct conf_region {
	char name[REGION_NAME_MAX];
	char emulate[256];         /* absolute path; "": one of the kernel's */
	enum conf_confirm confirm; /* Confirm= */
	unsigned int line;         /* of its section */
};

/* Something in the file that was not taken; the default stands in its place. */
struct conf_problem {
	unsigned int line; /* counts from 1; 0: the file as a whole */
	char *text;        /* "unknown key 'Foo' in [Agent]; known: …" */
};

struct conf {
	uint64_t stall_usec;       /* StallSec= */
	uint64_t stop_usec;        /* StopFlushSec=: how long the last flush may take when stopping */
	unsigned int queue_depth;  /* QueueDepth=: requests that may wait for one region */
	char host_port[256];       /* HostPort=: the device node of the host channel, or a socket to connect to */
	enum conf_confirm confirm; /* Confirm=: whether the host is to confirm flushes */
	struct conf_region regions[CONF_MAX_REGIONS];
	unsigned int n_regions;
	struct conf_problem problems[CONF_MAX_PROBLEMS];
	unsigned int n_problems;
	char path[256];
};

/* A row for each key; the test walks it against pmem-agent.conf and pmem-agent.conf(5). */
struct conf_key {
	const char *section; /* "Agent", or "Region" for [Region NAME] */
	const char *key;
	const char *default_text;
	const char *expects;                         /* what a value must be */
	bool (*set)(void *field, const char *value); /* false, and `field` untouched, if it isn't */
	size_t offset;                               /* of the field in struct conf or struct conf_region */
};
extern const struct conf_key conf_keys[];
extern const unsigned int conf_n_keys;

/*
 * Reads `path`; if PMEM_AGENT_CONF is missing, that is the defaults. What it says wrong is in `problems`. 0, -ENOMEM,
 * or what open or read gave.
 */
int conf_load(const char *path, struct conf **ret);
struct conf *conf_free(struct conf *c);

/* Whether the host is to confirm the flushes of this region. */
bool conf_wants_confirm(const struct conf *c, const char *region);
DEFINE_CLEANUP(struct conf *, conf_free)
