/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * share: what is left when others take all they can get
 *
 * Each user has a quarter, and there may be four of them: so an eighth is kept for root and the agent's own user, who
 * must be able to see what is going on and to end it.
 */
#pragma once

#include <stdbool.h>
#include <unistd.h>

static inline bool share_is_kept_for(uid_t uid)
{
	return uid == 0 || uid == geteuid();
}

/* Of `all` that there may be, what all others may have together. */
static inline unsigned int share_of_others(unsigned int all)
{
	return all - all / 8;
}

/* Whether there may be `n`, the newest of them of this user. */
static inline bool share_allows(unsigned int n, unsigned int all, uid_t uid)
{
	return n <= (share_is_kept_for(uid) ? all : share_of_others(all));
}
