/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * layers: the block devices below a block device, through sysfs alone: partitions, device-mapper, RAID
 */
#pragma once

#include "mount.h"

#define LAYERS_MAX_VISITS 256 /* devices looked at for one target */
#define LAYERS_MAX_DEPTH  16

struct layers {
	struct leaf leaves[MOUNT_MAX_LEAVES];
	unsigned int n_leaves;
	unsigned int n_visits;
	bool look_at_queues;    /* to be set before; not by the daemon itself, see mount_check() */
	char write_through[64]; /* the first disk that does not pass flushes on; "" for none */
	/* If set: told of each device on the way down, before those it rests on, which have a higher level. */
	void (*visit)(void *userdata, const char *path, unsigned int level);
	void *userdata;
};

/*
 * Adds what is below `devnum`; may be called again with another device of the same target. 0, a negative errno,
 * PMEM_AGENT_GONE: there is no such block device (any more), or PMEM_AGENT_REFUSED: too many or too deep; with
 * `detail`.
 */
int layers_add(struct layers *l, const char *sys, dev_t devnum, char detail[static MOUNT_DETAIL_MAX]);

/* Kernel name of a block device: "pmem0p1". 0 or a negative errno. */
int layers_get_name(const char *sys, dev_t devnum, char *ret, size_t size);

/* The device that "/dev/sda", "/dev/dm-0" or "/dev/mapper/NAME" is, without looking into /dev. 0 or -ENODEV. */
int layers_find_device(const char *sys, const char *node, dev_t *ret);

/* Whether both have the same leaves. */
bool layers_equal(const struct leaf *a, unsigned int n_a, const struct leaf *b, unsigned int n_b);
