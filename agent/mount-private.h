/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * mount-private: what mount.c and mount-cache.c share
 */
#pragma once

#include <sys/stat.h>

#include "mount.h"

extern const char *mount_proc, *mount_sys; /* "/proc" and "/sys", but for tests */

/*
 * What is known of a descriptor without a look at what it is of. 0, PMEM_AGENT_REFUSED, or a negative errno: -ESTALE:
 * it is not `expected`; NULL: it may be anything.
 */
int mount_stat_fd(int fd, const struct mount_file *expected, struct statx *ret, char detail[static MOUNT_DETAIL_MAX]);

/* mount_resolve_fd() of what mount_stat_fd() gave. */
int mount_resolve_stat(const struct statx *st, enum mount_scope scope, struct target *ret,
		       char detail[static MOUNT_DETAIL_MAX]);

/* What a flush of the region would leave out of this target it is asked for in another scope. */
enum mount_scope mount_sound_scope(const struct statx *st, enum mount_scope scope);

/* Sets `flush` of a target, whose device and leaves are those of the descriptor already. */
void mount_set_flush(const struct statx *st, enum mount_scope scope, struct target *t);
