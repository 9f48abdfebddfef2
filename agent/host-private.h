/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * host-private: what the files of the host's door share
 *
 *   host.c          the connection, and the greeting
 *   host-event.c    what is told, and what the host is asked for
 *   host-command.c  what the host commands
 *   host-flush.c    one of the commands, which takes its time
 *   host-durable.c  how often the host is told what has become durable
 *   host-json.c     regions and losses in JSON
 */
#pragma once

#include <sys/queue.h>

#include "answer.h"
#include "channel.h"
#include "host.h"
#include "host-durable.h"
#include "host-json.h"

#define HOST_MAX_FLUSHES    64          /* flush commands not answered yet */
#define HOST_MAX_REMEMBERED 64          /* flush commands that were */
#define HOST_MAX_ANSWER     (16 * 1024) /* bytes of an answer that is remembered */
#define HOST_MAX_DEPTH      16          /* of a command's JSON */
#define HOST_MAX_ID         256         /* bytes of a command's id as JSON, which is kept until its answer */
#define HOST_MAX_UUID       36
#define HOST_MAX_DESC       128
#define HOST_MAX_FEATURES   16 /* that a host may name */
#define HOST_PROTOCOL       2

/* From one new-instance to the next: what is in flight is made again for each, and has to come to an end. */
#define HOST_INSTANCE_USEC USEC_PER_SEC

TAILQ_HEAD(host_flush_list, host_flush);

struct host {
	struct manager *manager;
	struct manager_listener listener;
	struct channel *channel;
	struct json_tokener *tokener;
	struct host_durables *durables;
	uint64_t sequence;                          /* of the last event */
	uint64_t missed;                            /* events not delivered since the host was last told the state */
	uint64_t answers_missed;                    /* likewise */
	bool greeting_due;                          /* it found no room */
	bool complained;                            /* of what this host sends */
	uint64_t instance_usec;                     /* of the last new-instance, CLOCK_MONOTONIC */
	struct host_flush_list flushes, remembered; /* oldest first */
	unsigned int n_flushes, n_remembered;
};

/* ---- host.c ---- */

/* A line to the host. 0, or a negative errno: it is not sent. */
int host_send(struct host *h, struct json_object *o);

/* What the greeting has. */
struct json_object *host_describe(const struct host *h);

/* ---- host-event.c ---- */

/* Takes `data` over. 0, or a negative errno: it is counted as missed. */
int host_send_event(struct host *h, const char *name, struct json_object *data);
void host_on_manager_event(enum manager_event event, struct manager_region *mr, void *userdata);
void host_tell_durable(struct manager_region *mr, const struct host_durable *d, void *userdata);

/* There is room again: the state stands for the events that were missed, and the host asks again for answers. */
void host_send_missed(struct host *h);

/* manager_host's */
int host_ask(struct manager_region *mr, uint64_t number, bool confirm, void *userdata);

/* ---- host-command.c ---- */

void host_run_command(struct host *h, struct json_object *o);
void host_send_answer(struct host *h, const char *key, struct json_object *value, struct json_object *id);
void host_send_error(struct host *h, const char *class, const char *description, struct json_object *id);
void host_send_refusal(struct host *h, enum pmem_agent_answer answer, const char *detail, struct json_object *id);

/*
 * The region that `arguments` name by "region" or "address": NULL and 0 if they name none, -EINVAL if in a wrong way,
 * -ENOENT if there is none.
 */
int host_find_region(struct host *h, struct json_object *arguments, struct manager_region **ret);

/* A number as the protocol has it: an integer without a sign. */
bool host_read_u64(struct json_object *o, uint64_t *ret);

/* ---- host-flush.c ---- */

int host_command_flush(struct host *h, struct json_object *arguments, struct json_object *id);

/* What was asked for is given up, and what was remembered; `detail`: the host is told why. NULL: it isn't there. */
void host_forget_flushes(struct host *h, const char *detail);
