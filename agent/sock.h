/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * sock: the door for many small requests: packets of lib/wire.h on a socket, see pmem-agent-socket(7)
 */
#pragma once

#include "manager.h"

struct sock;

/*
 * Listens on the socket that systemd passed, else on one of its own in `runtime_dir`, which the caller has to itself.
 * 0 or a negative errno.
 */
int sock_new(struct manager *m, const char *runtime_dir, struct sock **ret);
struct sock *sock_free(struct sock *s);
DEFINE_CLEANUP(struct sock *, sock_free)

/*
 * Takes no more connections and no more packets, answers everything that has been sent until now, and calls `done`
 * from the loop, after the stop time at the latest: whoever has no answer by then is told that it is unknown.
 */
void sock_stop(struct sock *s, void (*done)(void *userdata), void *userdata);
