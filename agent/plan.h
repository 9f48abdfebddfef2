/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * plan: the calls that make a round's requests durable, as few as are sound
 *
 * Requests are added oldest first, each by the cheapest way that those before it leave:
 *
 *  - the region: one flush of it for all; none at all beside a filesystem call, which flushes the region too;
 *  - a file: by the call of its filesystem if there is one, else by one call for all who ask for that file, fsync if
 *    one of them wants it, else fdatasync. The fourth file of a filesystem turns the three calls into one syncfs;
 *  - a filesystem by a descriptor of one's own: a call of its own, since only syncfs fetches the error that waits in
 *    that descriptor. Without a descriptor: one call for all.
 *
 * An error waits in each open file description that it concerns. The call fetches that of the leader's; those of the
 * other descriptors, and where a syncfs serves a file the leader's too, are fetched one by one after the call.
 */
#pragma once

#include "flush.h"

void plan_begin(struct flush_plan *p);

/* False: not in this round, it would take a call or a descriptor too many. Taken, it is the newest member. */
bool plan_add(struct flush_plan *p, const struct flush_target *target, uid_t uid, void *owner);

/* No more members; only now the plan is what flush.h says of it. */
void plan_finish(struct flush_plan *p);
