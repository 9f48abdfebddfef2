/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * serve: the program on the host that stays connected to the agent of a guest: what its files share
 *
 *   serve.c           the guest: greetings, instances, commands and their answers, events
 *   serve-backing.c   what is behind its regions: told to the agent, flushed for it
 *   serve-client.c    other programs of the host, which speak the same protocol through us
 *   serve-retry.c     which flush they mean when they ask again
 *
 * Nothing that the guest or a client sends grows beyond a bound, and none of them holds up another.
 */
#pragma once

#include <sys/queue.h>

#include "backing.h"
#include "json-make.h"
#include "peer.h"
#include "qmp.h"

#define SERVE_PROTOCOL         2
#define SERVE_LINE             (256 * 1024) /* longest line from the agent, bytes */
#define SERVE_CLIENT_LINE      (64 * 1024)
#define SERVE_CLIENT_QUEUE     (512 * 1024)
#define SERVE_MAX_CLIENTS      16
#define SERVE_MAX_CALLS        256 /* commands of all clients that wait for their answer */
#define SERVE_MAX_CLIENT_CALLS 64
#define SERVE_MAX_ID           256 /* bytes of an id as JSON */
#define SERVE_UNIQUE_ID        16  /* so many make one that no other program has */
#define SERVE_MAX_ASKED        64  /* flushes that may be asked for again: as many as the agent remembers */
#define SERVE_MAX_BACKINGS     QMP_MAX_DEVICES
#define SERVE_REDIAL_USEC      (500 * USEC_PER_MSEC)

struct serve;

/* ---- commands that the agent has not answered yet ---- */

enum call_kind {
	CALL_NEW_INSTANCE,
	CALL_NEGOTIATE,
	CALL_SET_BACKING,
	CALL_FLUSHED,
	CALL_GREET, /* for a client: a query, told as greeting or as the event MISSED */
	CALL_QUERY,
	CALL_CLIENT, /* whatever else a client asked */
};

struct call {
	uint64_t number; /* its id there */
	enum call_kind kind;
	struct client *client;  /* NULL: none, or it has left */
	struct json_object *id; /* the client's */
	struct serve_backing *backing;
	int error; /* of CALL_FLUSHED */
	TAILQ_ENTRY(call) entry;
};
TAILQ_HEAD(call_list, call);

/* ---- backings ---- */

#define SERVE_MAX_WANTED 16 /* flushes of one backing that the guest may have asked for */

struct serve_backing {
	struct serve *serve;
	struct backing *backing;
	bool telling, tell_again; /* set-backing is under way */
	bool quiet;               /* it was said before what is wrong with it */
	bool gone;                /* the host has it no more; only its error is still to be told */
	bool unkept;              /* it was said that flushes can't be recorded */
	uint64_t connection;      /* serve's when it was opened */
	int kept_errno;           /* an error that the agent has not answered yet */
	unsigned int n_errors;    /* of those that are under way */
	struct wanted {
		bool used;
		uint64_t connection, number;
	} wanted[SERVE_MAX_WANTED];
	TAILQ_ENTRY(serve_backing) entry;
};
TAILQ_HEAD(serve_backing_list, serve_backing);

/* ---- clients ---- */

struct client {
	struct serve *serve;
	struct peer *peer;
	bool greeted, asking; /* a query for it is under way */
	uint64_t missed;      /* events that found no room */
	unsigned int n_calls;
	TAILQ_ENTRY(client) entry;
};
TAILQ_HEAD(client_list, client);
TAILQ_HEAD(asked_list, asked);

/* ---- all of it ---- */

struct serve {
	sd_event *event;
	const char *path; /* of the guest's socket */
	int dial_error;   /* why it can't be connected to; 0: it was, or nothing was tried yet */
	struct peer *guest;
	struct json_object *greeting; /* NULL: not greeted */
	char instance[64];            /* of it, or of the last one; "": there was none yet */
	bool fresh;                   /* connected, and not greeted since */
	uint64_t connections;         /* to the guest's socket, so many */
	uint64_t instances;           /* so many, for what belongs to one of them */
	uint64_t protocol;            /* 0: not negotiated */
	uint64_t sequence;            /* of the last event that clients were told */
	unsigned int n_logs;          /* about what the guest does, since the timer */
	sd_event_source *timer;
	bool complained;
	bool instance_again; /* new-instance is to be said once more */
	int qmp_error;       /* as it was said last */

	uint64_t last_call;
	unsigned int n_calls;
	struct call_list calls;

	struct qmp *qmp;
	const char *state; /* where errors outlive us: the begin of a path; NULL: nowhere */
	struct serve_backing_list backings;

	int listener;
	sd_event_source *listen_source;
	unsigned int n_clients;
	struct client_list clients;

	unsigned int n_asked;
	struct asked_list asked; /* oldest first */
};

/* 0 or a negative errno. `guest`, `qmp` and `state` are paths, which must stay; the last two may be NULL. */
int serve_new(sd_event *event, const char *guest, const char *qmp, const char *state, struct serve **ret);
struct serve *serve_free(struct serve *s);
DEFINE_CLEANUP(struct serve *, serve_free)

/* Says in the journal what the guest does, but not more often than it should. */
void serve_log(struct serve *s, int priority, const char *format, ...) _printf_(3, 4);

/*
 * Sends a command to the agent, `arguments` (taken over) may be NULL. The call, or NULL: nobody is there, or nothing
 * more goes there now.
 */
struct call *serve_call(struct serve *s, enum call_kind kind, const char *name, struct json_object *arguments);
struct call *serve_call_free(struct serve *s, struct call *call);

/* Under the number of a call that has ended. */
struct call *serve_call_again(struct serve *s, enum call_kind kind, const char *name, struct json_object *arguments,
			      uint64_t number);
struct call *serve_call_find(struct serve *s, uint64_t number);

/* ---- serve-backing.c ---- */

/* Of somebody who knows: it is there from now on. 0 or a negative errno. */
int serve_backing_add(struct serve *s, const struct backing_info *info);
void serve_backing_free(struct serve *s, struct serve_backing *sb);

/* What QEMU has now. `userdata`: the struct serve. */
void serve_backings_found(const struct backing_info *infos, unsigned int n, void *userdata);

/* A new instance, or it may have missed something: tells the agent of all, and of errors that it has not answered. */
void serve_backings_tell(struct serve *s);
void serve_backings_tell_one(struct serve *s, uint64_t address);

/* The connection is gone, with what was under way in it. */
void serve_backings_forget(struct serve *s);

/* FLUSH_WANTED */
void serve_backings_wanted(struct serve *s, struct json_object *data);

/* The agent's answer to set-backing or flushed. */
void serve_backings_answered(struct serve *s, struct call *call, bool error);

/* Those that can't be flushed may be so now. */
void serve_backings_retry(struct serve *s);
void serve_backings_status(struct serve *s, char *text, size_t size);

/* ---- serve-client.c ---- */

/* Listens there. 0 or a negative errno. */
int serve_listen(struct serve *s, const char *path);
void serve_clients_free(struct serve *s);

/* The agent or its instance is gone: what clients have asked is answered Unknown. */
void serve_clients_fail(struct serve *s);

/* Who has not been greeted is, when the agent has said how things stand. */
void serve_clients_ask(struct serve *s);

/* There is a new one. */
void serve_clients_greet(struct serve *s);
void serve_clients_event(struct serve *s, struct json_object *event);
void serve_clients_answered(struct serve *s, struct call *call, struct json_object *answer);

/* ---- serve-retry.c ---- */

/*
 * The number under which this flush was given to the agent before, in this instance. 0 or a negative errno. -ENOENT: it
 * wasn't; -EINVAL: with other arguments.
 */
int serve_retry_find(struct client *client, struct json_object *arguments, struct json_object *id,
		     uint64_t *ret_number);

/* It has been given under this number. `arguments` may be NULL. */
void serve_retry_remember(struct client *client, struct json_object *arguments, struct json_object *id,
			  uint64_t number);
void serve_retry_leave(struct serve *s, const struct client *client);

/* An instance has ended: what was given in it the agent has forgotten too. */
void serve_retry_clear(struct serve *s);
