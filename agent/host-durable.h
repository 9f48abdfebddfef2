/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * host-durable: what has become durable, told to the host at once, but no more than so often
 *
 * A region that has been quiet is told of without delay. What is confirmed within HOST_DURABLE_USEC after that is told
 * at the end of that time: the newest filesystem, and the newest of anything else.
 */
#pragma once

#include "manager.h"

#define HOST_DURABLE_USEC (100 * USEC_PER_MSEC)

/* What a round made durable. */
struct host_durable {
	enum flush_scope scope;
	char target[256];
	uint64_t epoch, durable_usec;
};

struct host_durables;

/* `tell` sends one. 0 or a negative errno. */
int host_durables_new(sd_event *event,
		      void (*tell)(struct manager_region *mr, const struct host_durable *d, void *userdata),
		      void *userdata, struct host_durables **ret);
struct host_durables *host_durables_free(struct host_durables *all);
DEFINE_CLEANUP(struct host_durables *, host_durables_free)

/* A round of the region was confirmed. */
void host_durables_add(struct host_durables *all, struct manager_region *mr);

/* Whatever of the region has not been told is told now; NULL: of every region. */
void host_durables_tell(struct host_durables *all, const struct manager_region *mr);

/* What has not been told won't be. */
void host_durables_drop(struct host_durables *all);

/* The region goes. */
void host_durables_remove(struct host_durables *all, const struct manager_region *mr);
