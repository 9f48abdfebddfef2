/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * peer: JSON objects, one a line, to and from whoever is on the other side of a Unix socket
 *
 * The other side is not trusted with our memory or our time: lines, what is nested and counted in them, and what waits
 * to be sent are bounded, and each turn of the loop reads a little. Nothing blocks.
 */
#pragma once

#include <json-c/json.h>
#include <stdbool.h>
#include <stddef.h>
#include <systemd/sd-event.h>

#include "util.h"

#define PEER_MAX_DEPTH 16    /* of JSON */
#define PEER_MAX_PARTS 16384 /* of a line: members and elements, roughly */

struct peer;

/* Each may free the peer. `object` keeps nothing of `o`, unless it takes a reference. */
struct peer_callbacks {
	void (*connected)(struct peer *p, void *userdata);
	void (*closed)(struct peer *p, int error, void *userdata); /* a positive errno; 0: the other side has left */
	void (*object)(struct peer *p, struct json_object *o, void *userdata);
	void (*garbage)(struct peer *p, const char *what,
			void *userdata);                 /* a line that is none of ours; may be NULL */
	void (*reset)(struct peer *p, void *userdata);   /* a resync came; may be NULL */
	void (*drained)(struct peer *p, void *userdata); /* a line had found no room, and all has gone; may be NULL */
};

struct peer_limits {
	size_t line, queue; /* bytes */
};

/*
 * Connects to the socket at `path` from the loop, and again whenever that fails or ends, after `redial_usec` (0: it
 * ends there). `path` must stay. 0 or a negative errno.
 */
int peer_dial(sd_event *event, const char *path, uint64_t redial_usec, struct peer_limits limits,
	      const struct peer_callbacks *callbacks, void *userdata, struct peer **ret);

/* For a socket that was accepted; it is the peer's from now on, also if this fails. 0 or a negative errno. */
int peer_adopt(sd_event *event, int fd, struct peer_limits limits, const struct peer_callbacks *callbacks,
	       void *userdata, struct peer **ret);
struct peer *peer_free(struct peer *p);
DEFINE_CLEANUP(struct peer *, peer_free)

/* The process that listened when we dialled, or 0. */
pid_t peer_get_pid(const struct peer *p);

/* 0; -ENOBUFS: no room; -ENOTCONN. `o` stays the caller's. */
int peer_send(struct peer *p, struct json_object *o);

/* Ends the connection, from the loop: then `closed` is called, and it is dialled anew. */
void peer_hang_up(struct peer *p);

/* Has the other side forget what it has of a line. As peer_send(). */
int peer_send_resync(struct peer *p);

/* An address of a socket for bind() or connect(), of a path of any length. 0 or a negative errno. */
struct sockaddr_un;
int peer_address(const char *path, struct sockaddr_un *ret, int *ret_directory);
