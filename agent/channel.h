/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * channel: lines to and from the host over a virtio-serial port
 *
 * The port is watched edge-triggered: with no host on the other side it hangs up level-triggered for ever. Writing
 * never blocks: what the host does not take is queued up to a bound. Nothing that the host sends grows beyond a line.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <systemd/sd-event.h>

#include "util.h"

#define CHANNEL_LINE_MAX  (64 * 1024)  /* longest line taken from the host, bytes */
#define CHANNEL_QUEUE_MAX (256 * 1024) /* bytes queued for the host */

struct channel;

struct channel_callbacks {
	void (*connected)(struct channel *c, void *userdata);    /* the host has opened its side */
	void (*disconnected)(struct channel *c, void *userdata); /* the host has left, or the port is gone */
	void (*line)(struct channel *c, char *line, size_t size, void *userdata); /* without its newline, NUL added */
	void (*reset)(struct channel *c, void *userdata);    /* 0xFF came: what was half received is forgotten */
	void (*overlong)(struct channel *c, void *userdata); /* a line over the bound is being thrown away */
	void (*drained)(struct channel *c, void *userdata);  /* the queue has been full and is empty again */
};

/* `path`: the device node of the port, or a socket to connect to, and to come back to. 0; -ENOENT: no such port;
 * -EBUSY: another process has it; … */
int channel_open(sd_event *event, const char *path, const struct channel_callbacks *callbacks, void *userdata,
		 struct channel **ret);
struct channel *channel_free(struct channel *c);
DEFINE_CLEANUP(struct channel *, channel_free)

/* The port has been unplugged: the channel is of no more use. */
bool channel_is_gone(const struct channel *c);

/* Queues a line (no newline in it). 0; -ENOBUFS: no room until `drained`; -ENOTCONN. */
int channel_send(struct channel *c, const char *line);
