/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * mount: from a descriptor or a mount point to a target and the leaf devices below it
 *
 * Nothing here touches a filesystem: it reads /proc/self/mountinfo (libmount), sysfs, and statx with
 * AT_STATX_DONT_SYNC on descriptors only.
 */
#pragma once

#include <stdbool.h>
#include <sys/types.h>

#include "flush.h"
#include "util.h"

#define MOUNT_MAX_LEAVES 16
#define MOUNT_DETAIL_MAX 256

struct leaf {
	dev_t devnum;   /* of the whole disk, never of a partition */
	bool character; /* a device-dax: its number is that of a character device */
	char name[64];  /* kernel name: "pmem0", "sda", "dax0.0" */
};

struct target {
	struct flush_target flush;
	dev_t device;          /* st_dev of the file or filesystem, or the device itself */
	char source[256];      /* what it is for people: mount point (a longer one is cut) or kernel name */
	char fstype[32];       /* "" for a device */
	bool syncfs_is_enough; /* syncfs of this filesystem always sends a flush */
	unsigned int n_leaves;
	struct leaf leaves[MOUNT_MAX_LEAVES];
};

/* What the caller asked for. MOUNT_SCOPE_AUTO: a directory is its filesystem, a file is itself, a device is its region.
 */
enum mount_scope {
	MOUNT_SCOPE_AUTO,
	MOUNT_SCOPE_FILE,
	MOUNT_SCOPE_FILE_DATA,
	MOUNT_SCOPE_FILESYSTEM,
	MOUNT_SCOPE_REGION,
};

/* What fstat() says of a descriptor, whatever it is of: st_dev and st_ino. */
struct mount_file {
	uint64_t device, inode;
};

/*
 * The target that `fd` stands for. 0; negative: errno; positive: an answer, with the reason in `detail`: a phrase that
 * names the culprit and what mends it.
 *
 * PMEM_AGENT_FILESYSTEM (not one that we know to flush), _UNFLUSHED and _ORDINARY (no block device at all) fill in
 * `ret` too, with the leaves as far as they are known: an ext2 on sda is ordinary storage first of all, so a target
 * none of whose leaves is persistent memory is better answered so. With no leaf the answer stands as it is.
 * PMEM_AGENT_REFUSED, _NOT_FOUND and _GONE (the block device has been removed) leave `ret` alone.
 *
 * A block device that is one of the leaves is its region; a partition or a mapped device has a page cache of its own,
 * so with MOUNT_SCOPE_AUTO it is flushed as a file, by its descriptor: FLUSH_FILE with `inode` 0.
 */
int mount_resolve_fd(int fd, enum mount_scope scope, struct target *ret, char detail[static MOUNT_DETAIL_MAX]);

/* The filesystem mounted at exactly `path` in this mount namespace; PMEM_AGENT_NOT_FOUND if none is. Else as above. */
int mount_resolve_path(const char *path, struct target *ret, char detail[static MOUNT_DETAIL_MAX]);

/*
 * Where the filesystem with this UUID is mounted in this mount namespace, so that the path leads to it. 0;
 * PMEM_AGENT_NOT_FOUND, _REFUSED (no UUID) with `detail`; or a negative errno.
 */
int mount_find_uuid(const char *uuid, char *ret, size_t size, char detail[static MOUNT_DETAIL_MAX]);

/*
 * Whether flushes of the target reach its leaves: mounted read-write with barriers, `write back` on every layer.
 * For a worker, before and after each round: on Linux 7.2 reading queue/write_cache waits for the flush in flight if
 * somebody is writing it. 0; PMEM_AGENT_UNFLUSHED, _FILESYSTEM (can't be seen any more), _GONE or _UNKNOWN
 * (it is on other devices now) with `detail`; or a negative errno.
 */
int mount_check(const struct target *target, char detail[static MOUNT_DETAIL_MAX]);

/*
 * The options of the filesystem itself, as mountinfo has them, for a resolved target. 0; -ENOENT:
 * it is not mounted any more; or another negative errno.
 */
int mount_get_options(const struct target *target, char *ret, size_t size);

/* The mount point of the `i`th filesystem that is on a block device. 0, -ENOENT after the last, or another one. */
int mount_get_point(unsigned int i, char *ret, size_t size);

/* For tests: other roots than "/proc" and "/sys". The strings must stay valid. */
void mount_set_roots(const char *proc, const char *sys);
