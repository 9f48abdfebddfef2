/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * closer: closes descriptors that came from others, without waiting for what their close() waits for
 *
 * Closing can hang: FUSE and NFS flush on every close, a block device syncs at the last one, an unlinked file is
 * truncated in a journal that may be stalled. Whoever receives a descriptor closes it here.
 */
#pragma once

/* Closes `fd`, which the caller must not use any more. Where no child can be had it stays open for good. */
void closer_close(int fd);

/*
 * For a descriptor that somebody else is going to close, as sd-bus does with those of a message: afterwards the number
 * `fd` stands for something harmless. 0 or a negative errno: it is as it was, so keep the message for good.
 */
int closer_defuse(int fd);

/* The same without a child: for a file whose filesystem does nothing on close while another descriptor of it is open.
 */
int closer_defuse_copy(int fd);
