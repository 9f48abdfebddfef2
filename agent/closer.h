/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * closer: closes descriptors that came from others, without waiting for what their close() waits for
 *
 * Closing can hang: FUSE and NFS flush on every close, a block device syncs at the last one, an unlinked file is
 * truncated in a journal that may be stalled, a socket lingers or holds other descriptors, and whatever can be polled
 * waits for an epoll of its owner. So none is closed here, whatever it is of: a child does it, many at a time.
 *
 * Who gives descriptors that do hang gets a share of the children; beyond it theirs wait, open, until one of those
 * children has ended. Nothing is given up: when the filesystem answers or dies, the rest is closed too.
 */
#pragma once

#include <stdbool.h>
#include <sys/types.h>
#include <systemd/sd-event.h>

#define CLOSER_MAX_HANGING 64
#define CLOSER_UID_HANGING 16
#define CLOSER_UID_WAITING 256

/* For who is not known (yet). */
#define CLOSER_NOBODY ((uid_t)-1)

/* Before any descriptor comes, and when their limit is what it will be. 0 or a negative errno. */
int closer_start(sd_event *event);

/*
 * Last of all: closes what doesn't hang. The rest is left behind, with all that has been opened since closer_start(),
 * so that it doesn't hold up the end of this process.
 */
void closer_stop(void);

/*
 * In a process that was forked: its descriptors from `first` on are gone, those that may hang to a child of its own.
 * 0 or a negative errno.
 */
int closer_close_from(unsigned int first);

/* Closes `fd`, which `uid` gave, and which the caller must not use any more; at the end of the loop's turn. */
void closer_close(int fd, uid_t uid);

/*
 * For descriptors that somebody else is going to close, as sd-bus does with those of a message: `done` is called from
 * the loop when the numbers stand for something harmless, and must not be closed before.
 */
void closer_defuse(const int *fds, unsigned int n, uid_t uid, void (*done)(void *userdata), void *userdata);

/*
 * The same at once, without a child: for a file whose filesystem does nothing on close while another descriptor of it
 * is open. 0 or a negative errno.
 */
int closer_defuse_copy(int fd);

/* The share of `uid` is hanging: from them no more descriptors that may hang. */
bool closer_is_busy(uid_t uid);

/* So many of `uid` wait that nothing is to be received that may bring more. */
bool closer_is_full(uid_t uid);
