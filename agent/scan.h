/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * scan: the regions of this machine, through libndctl and libdaxctl
 */
#pragma once

#include "region.h"

#define SCAN_MAX_REGIONS 256

struct region_list {
	struct region *regions[SCAN_MAX_REGIONS];
	unsigned int n_regions;
};

/*
 * Every region of every bus, classified, by name. A snapshot: call again after a uevent. 0 or a negative errno; a
 * machine without libnvdimm has no regions and is no error. It can hang: some attributes wait for a driver that is
 * being unbound, which waits for its flush.
 */
int scan_regions(struct region_list *ret);

/* The same by a child, for who must not hang. It ends when it has told, at the latest when we end. */
struct scan;

int scan_start(struct scan **ret);
struct scan *scan_free(struct scan *s);
DEFINE_CLEANUP(struct scan *, scan_free)

/* Readable when there is something to collect. */
int scan_get_fd(const struct scan *s);
pid_t scan_get_pid(const struct scan *s);

/* 0, or a negative errno: -EAGAIN: not all has come yet; -EPIPE: the child has died. Once it has ended, free it. */
int scan_collect(struct scan *s, struct region_list *ret);

/* An emulated region, classified: the file must exist. 0 or a negative errno. */
int scan_emulated(const char *name, const char *path, struct region **ret);

/* Frees what is still in the list; a caller takes a region by setting its entry to NULL. */
void region_list_clear(struct region_list *list);
