/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * ctl-host: pmemctl on the host, which talks to the agent in a guest through the socket of its port
 *
 * See pmem-agent-host(7). A new connection is a new instance of the agent, unless the socket is that of `serve`.
 */
#pragma once

#include "ctl.h"
#include "json-make.h"

#define CTL_HOST_PROTOCOL 2
#define CTL_HOST_LINE     (256 * 1024) /* longest line from the agent, and what may wait for it, bytes */

struct ctl_host;

/* Connects and is greeted. 0 or the exit status, having said why not. */
int ctl_host_open(struct ctl *c);
void ctl_host_close(struct ctl *c);

/* What the agent said last of itself and its regions. */
struct json_object *ctl_host_get_greeting(const struct ctl_host *h);

/* Sends a command; takes `arguments` over. 0 or a negative errno. */
int ctl_host_send(struct ctl_host *h, const char *name, struct json_object *arguments, const char *id);

/* An id that no other command ever had. */
char *ctl_host_new_id(struct ctl_host *h);

/*
 * The next message; its reference is the caller's. `until`: CLOCK_MONOTONIC, microseconds. -ETIMEDOUT; -ECONNRESET: the
 * connection, or the instance that commands were given to, is gone (with `--retry` a greeting follows); -errno.
 */
int ctl_host_next(struct ctl_host *h, uint64_t until, struct json_object **ret);

/* A command whose answer says no more than that it was done; its failure is that of a call on the bus. 0. */
int ctl_host_call(struct ctl *c, const char *name, struct json_object *arguments, sd_bus_error *error);

/* What an error on the channel would be on the bus. */
void ctl_host_set_error(sd_bus_error *error, struct json_object *answer);

/* "id" of an answer; NULL if it is none, or not ours. */
const char *ctl_host_get_id(struct json_object *answer);

/* 0 or the exit status, having said why. */
int ctl_host_get_regions(struct ctl *c, struct ctl_regions *ret);

/* What the channel says of a region, into one that is empty. */
int ctl_host_read_region(struct json_object *o, struct ctl_region *region);

int ctl_host_flush(struct ctl *c, char **arguments, unsigned int n);
int ctl_host_watch(struct ctl *c, char **arguments, unsigned int n);
int ctl_host_serve(struct ctl *c, char **arguments, unsigned int n);
