/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * mount-cache: what mount.c has found out, for as long as nothing has changed that it looked at
 *
 * Finding out what lies below a file, or looking at it again, costs more than a flush. The agent looks up a target
 * once; its worker keeps open what would show a change (the table of mounts, the options of the filesystem, the queue
 * of the disk) and reads that before and after each round.
 */
#pragma once

#include <stdint.h>

#include "mount.h"

struct mount_cache;

struct mount_cache *mount_cache_new(void);
struct mount_cache *mount_cache_free(struct mount_cache *c);
DEFINE_CLEANUP(struct mount_cache *, mount_cache_free)

/*
 * As mount_resolve_fd(), from memory where no mount has changed since and nobody called mount_cache_forget(). That is
 * good enough to tell whose worker is to be asked, which checks it again, and for nothing else. -ESTALE: it is not
 * `expected`; NULL: it may be anything.
 */
int mount_cache_resolve_fd(struct mount_cache *c, int fd, const struct mount_file *expected, enum mount_scope scope,
			   struct target *ret, char detail[static MOUNT_DETAIL_MAX]);

/* As mount_resolve_path(), likewise. */
int mount_cache_resolve_path(struct mount_cache *c, const char *path, struct target *ret,
			     char detail[static MOUNT_DETAIL_MAX]);

/* Block devices may have changed, or an answer did not fit what was remembered. */
void mount_cache_forget(struct mount_cache *c);

/* As mount_check(), and as good. `c` NULL: nothing is remembered. */
int mount_cache_check(struct mount_cache *c, const struct target *target, char detail[static MOUNT_DETAIL_MAX]);

/*
 * What mount_check() can't tell is that something has been changed and changed back. Of ext4 the kernel counts the
 * messages, and each remount is one: this number is another then. Take it before the first check and after the last. 0:
 * there is none.
 */
uint64_t mount_cache_count(const struct mount_cache *c, const struct target *target);
