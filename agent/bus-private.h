/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * bus-private: what the six files of the D-Bus door share
 *
 *   bus.c         the connection, descriptors in messages, what is told unasked
 *   bus-object.c  objects, properties, methods and signals
 *   bus-client.c  who has calls that wait
 *   bus-call.c    calls that wait for their answer
 *   bus-ticket.c  flushes that nobody waits for yet
 *   bus-stats.c   what was counted of a region
 */
#pragma once

#include <sys/queue.h>
#include <systemd/sd-bus.h>

#include "bus.h"
#include "polkit.h"
#include "share.h"
#include "ticket.h"

#define BUS_MAX_MESSAGE_FDS 32

/* Queued at the bus: what may be told later is, beyond this. */
#define BUS_MAX_QUEUED_WRITE 1024

struct bus_call;
struct bus_ticket;

TAILQ_HEAD(bus_call_list, bus_call);

/* Someone on the bus with calls that wait, or who had some: whoever asks once will ask again. */
struct bus_client {
	struct bus *bus;
	char *sender;
	sd_bus_slot *match; /* tells when they leave; NULL: the bus has no room for it */
	sd_bus_slot *query; /* for their uid */
	bool known;         /* it is here: */
	uid_t uid;
	unsigned int n_calls;
	struct bus_call_list calls;
	TAILQ_ENTRY(bus_client) entry;
};

/* A call that waits for its answer. */
struct bus_call {
	struct bus_client *client;
	sd_bus_message *message;
	struct request *request; /* NULL while polkit is asked, and for a ticket */
	bool identifying;        /* the bus is asked who asks; the rest waits for that */
	const char *action;      /* that polkit is asked for then; NULL: none */
	struct polkit *polkit;
	uint64_t deadline_usec;
	char *path, *region; /* what polkit is asked for: one of them */
	bool acknowledge;    /* `loss` of `region`, instead of a flush */
	uint64_t loss;
	struct bus_ticket *ticket; /* to be given out, when the flush has found room */
	uint64_t awaited_number;   /* of a ticket, 0: none */
	struct bus_ticket *awaited;
	sd_event_source *timer; /* of how long it waits for that */
	TAILQ_ENTRY(bus_call) entry, awaited_entry;
};

/* A flush that was submitted. It is on the book as soon as it is known who asks. */
struct bus_ticket {
	struct ticket ticket; /* first, see bus-ticket.c */
	struct bus *bus;
	struct request *request;      /* NULL when it has been answered */
	struct request_result result; /* then; its regions are there while it is durable */
	struct bus_call_list calls;   /* who wait for it */
};

/* Of the flush methods. */
struct bus_options {
	bool submit; /* the answer is for a ticket */
	enum mount_scope scope;
	uint64_t deadline_usec; /* CLOCK_MONOTONIC; 0: none */
};

/* The slot that a manager_region keeps for us. */
struct bus_region {
	struct bus *bus;
	struct manager_region *mr;
	sd_bus_slot *slot;
	char *path;
	bool dirty; /* the next telling includes it */
	TAILQ_ENTRY(bus_region) entry;
};

struct bus {
	struct manager *manager;
	struct manager_listener listener;
	sd_bus *bus;
	sd_event_source *io_source, *timeout_source;

	/* descriptors that came with the message in hand, see bus_process() */
	struct {
		bool dispatched;
		int before[BUS_MAX_MESSAGE_FDS]; /* the slots that were free before */
		int strays[BUS_MAX_MESSAGE_FDS]; /* of a message that is not complete yet */
		unsigned int n_strays;
		int fds[BUS_MAX_MESSAGE_FDS];
		unsigned int n_fds;
		sd_bus_message *message;
	} guard;

	TAILQ_HEAD(, bus_region) regions;
	sd_event_source *tell_source;
	uint64_t told_usec; /* CLOCK_MONOTONIC */

	TAILQ_HEAD(, bus_client) clients;
	unsigned int n_calls, max_calls;
	struct ticket_book tickets;
};

/* ---- bus.c ---- */

/* The agent ends: it can't answer any more, and the bus tells all who wait. */
int bus_lost(struct bus *b, int error);

/* A callback of ours runs from here on: descriptors opened now are our own. */
void bus_dispatched(struct bus *b);

/* `fd` of the message in hand was duplicated, and the duplicate is open, on a filesystem that does nothing on close. */
void bus_keep_copy(struct bus *b, int fd);

/* ---- bus-object.c ---- */

int bus_add_manager(struct bus *b);
void bus_manager_tell(struct bus *b, const char *property);
int bus_add_region(struct bus *b, struct manager_region *mr);
struct bus_region *bus_region_free(struct bus_region *br);
void bus_region_tell_scan(struct bus_region *br);
void bus_region_tell_status(struct bus_region *br);
void bus_region_signal(struct bus_region *br, enum manager_event event);

/* Path of a region's object, whether it is there or not; free it. */
char *bus_region_path(const char *name);

/* ---- bus-call.c ---- */

/* What a call asks for; each returns as a method handler does, having taken the call or set `error`. */
int bus_call_flush_fd(struct bus *b, sd_bus_message *m, int fd, const struct bus_options *options, sd_bus_error *error);
int bus_call_flush_path(struct bus *b, sd_bus_message *m, const char *path, const struct bus_options *options,
			sd_bus_error *error);
int bus_call_flush_region(struct bus *b, sd_bus_message *m, const char *region, const struct bus_options *options,
			  sd_bus_error *error);
int bus_call_acknowledge(struct bus *b, sd_bus_message *m, const char *region, uint64_t loss, sd_bus_error *error);

int bus_call_wait(struct bus *b, sd_bus_message *m, const char *ticket, const struct bus_options *options,
		  sd_bus_error *error);

/* Replies, and the call is no more. Each takes its answer for what it is: nothing is looked up again. */
void bus_call_answer(struct bus_call *call, const struct request_result *result);
void bus_call_refuse(struct bus_call *call, enum pmem_agent_answer answer, const char *detail);

struct bus_call *bus_call_free(struct bus_call *call);

/* ---- bus-client.c ---- */

struct bus_client *bus_client_find(struct bus *b, const char *sender);
int bus_client_new(struct bus *b, const char *sender, struct bus_client **ret);
struct bus_client *bus_client_free(struct bus_client *c);
void bus_client_rest(struct bus_client *c);

/* What one user may have of all. */
unsigned int bus_share(unsigned int all);

/* That are known to be theirs. */
unsigned int bus_count_calls(const struct bus *b, uid_t uid);

/* All that are known to be of users for whom nothing is kept. */
unsigned int bus_count_calls_of_others(const struct bus *b);

/* Calls for which polkit is being asked. */
void bus_count_checks(const struct bus *b, uid_t uid, unsigned int *ret_all, unsigned int *ret_of_uid);

/* ---- bus-ticket.c ---- */

struct bus_ticket *bus_ticket_new(struct bus *b);
struct bus_ticket *bus_ticket_free(struct bus_ticket *t);

/* Puts it on the book. 0, or PMEM_AGENT_BUSY with `detail`. */
int bus_ticket_issue(struct bus_ticket *t, uid_t uid, char detail[static MOUNT_DETAIL_MAX]);

/* Its request has been answered: a request_done_t. */
void bus_ticket_done(const struct request_result *result, void *userdata);

/* It is known who made the call: it is answered, or waits for the ticket. */
void bus_ticket_await(struct bus_call *call);
void bus_ticket_leave(struct bus_call *call);

/* A durable answer that was kept may not be one any more. */
void bus_tickets_notice(struct bus *b, enum manager_event event, const struct manager_region *mr);
void bus_tickets_clear(struct bus *b);

/* ---- bus-stats.c ---- */

int bus_append_statistics(sd_bus_message *reply, const struct manager_region *mr);
