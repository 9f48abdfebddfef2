/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * bus-call: calls that wait for their answer, and whether who made them may
 */
#include <fcntl.h>
#include <string.h>

#include "answer.h"
#include "bus-private.h"
#include "text.h"

/* Fewer than dbus-daemon lets one client wait for (128), so that it can still ask something else. */
#define BUS_MAX_CALLS_PER_CLIENT 96
#define BUS_MAX_CHECKS           96 /* by polkit; the same goes for us */
#define BUS_ACTION_FLUSH         "io.pmem.agent.flush"
#define BUS_ACTION_ACKNOWLEDGE   "io.pmem.agent.acknowledge"

/* It may have a name that somebody has made up, or a part of one. */
static int set_error(sd_bus_error *error, const char *name, const char *detail)
{
	char text[MOUNT_DETAIL_MAX];

	snprintf(text, sizeof(text), "%s", detail);
	return sd_bus_error_set(error, name, text_make_utf8(text));
}

static int set_answer(sd_bus_error *error, enum pmem_agent_answer answer, const char *detail)
{
	return set_error(error, answer_dbus_error(answer), detail[0] ? detail : answer_get(answer)->meaning);
}

/* ---- calls ---- */

struct bus_call *bus_call_free(struct bus_call *call)
{
	struct bus_client *c = call->client;

	request_cancel(call->request);
	bus_ticket_free(call->ticket);
	bus_ticket_leave(call);
	polkit_free(call->polkit);
	sd_bus_message_unref(call->message);
	free(call->path);
	free(call->region);
	TAILQ_REMOVE(&c->calls, call, entry);
	c->n_calls--;
	c->bus->n_calls--;
	free(call);
	return NULL;
}

static void call_end(struct bus_call *call)
{
	struct bus_client *c = call->client;

	bus_call_free(call);
	if (c->n_calls == 0)
		bus_client_rest(c);
}

static int set_too_many(sd_bus_error *error, unsigned int n, const char *whose)
{
	return sd_bus_error_setf(error, SD_BUS_ERROR_LIMITS_EXCEEDED,
				 "%u calls %swait already; repeat it when one of them has been answered", n, whose);
}

static void call_end_too_many(struct bus_call *call, unsigned int n, const char *whose)
{
	_cleanup_(sd_bus_error_free) sd_bus_error error = SD_BUS_ERROR_NULL;

	set_too_many(&error, n, whose);
	sd_bus_reply_method_error(call->message, &error);
	call_end(call);
}

/*
 * Whose calls they are is not known at once, so that one user may have more than their share for a moment, up to all.
 * Then those with the most make room for those with fewer, and for those who are known to be within their share.
 */
static bool make_room(struct bus *b, const struct bus_client *for_whom)
{
	struct bus_client *c, *most = NULL;

	TAILQ_FOREACH (c, &b->clients, entry)
		if (!c->known && (!most || c->n_calls > most->n_calls))
			most = c;
	if (!most)
		return false;
	if (!(for_whom && for_whom->known) && most->n_calls <= (for_whom ? for_whom->n_calls : 0) + 1)
		return false;
	call_end_too_many(TAILQ_LAST(&most->calls, bus_call_list), b->n_calls, "");
	return true;
}

static int call_new(struct bus *b, sd_bus_message *m, struct bus_call **ret, sd_bus_error *error)
{
	const char *sender = sd_bus_message_get_sender(m);
	struct bus_client *c = bus_client_find(b, sender);
	struct bus_call *call;
	int r;

	if (c && c->n_calls >= BUS_MAX_CALLS_PER_CLIENT)
		return set_too_many(error, c->n_calls, "of yours ");
	if (c && c->known && bus_count_calls(b, c->uid) >= bus_share(b->max_calls))
		return set_too_many(error, bus_share(b->max_calls), "of your user ");
	if (c && c->known && !share_is_kept_for(c->uid) &&
	    bus_count_calls_of_others(b) >= share_of_others(b->max_calls))
		return set_too_many(error, share_of_others(b->max_calls), "");
	if (b->n_calls >= b->max_calls && !make_room(b, c))
		return set_too_many(error, b->n_calls, "");
	if (!c) {
		r = bus_client_new(b, sender, &c);
		if (r < 0)
			return r;
	}
	call = calloc(1, sizeof(*call));
	if (!call) {
		if (c->n_calls == 0)
			bus_client_free(c);
		return -ENOMEM;
	}
	call->client = c;
	call->message = sd_bus_message_ref(m);
	TAILQ_INSERT_TAIL(&c->calls, call, entry);
	c->n_calls++;
	b->n_calls++;
	*ret = call;
	return 0;
}

/* ---- answers ---- */

static int append_epochs(sd_bus_message *reply, const struct request_result *result)
{
	int r = sd_bus_message_open_container(reply, 'a', "(ot)");

	for (unsigned int i = 0; r >= 0 && i < result->n_epochs; i++) {
		const struct request_epoch *e = &result->epochs[i];
		_cleanup_free_ char *path = bus_region_path(manager_region_get(e->region)->name);

		r = path ? sd_bus_message_append(reply, "(ot)", path, e->epoch) : -ENOMEM;
	}
	return r < 0 ? r : sd_bus_message_close_container(reply);
}

static int reply_durable(sd_bus_message *m, const struct request_result *result)
{
	_cleanup_(sd_bus_message_unrefp) sd_bus_message *reply = NULL;
	int r = sd_bus_message_new_method_return(m, &reply);

	if (r >= 0)
		r = append_epochs(reply, result);
	if (r >= 0)
		r = sd_bus_message_append(reply, "sst", flush_scope_to_string(result->scope), result->basis,
					  result->durable_usec);
	return r < 0 ? r : sd_bus_send(NULL, reply, NULL);
}

/* `r` is what came of a reply. Who gets none would wait for ever; when the agent ends the bus gives them an error. */
static void call_replied(struct bus_call *call, int r)
{
	if (r < 0)
		bus_lost(call->client->bus, r);
	call_end(call);
}

static int reply_answer(sd_bus_message *m, enum pmem_agent_answer answer, const char *detail)
{
	_cleanup_(sd_bus_error_free) sd_bus_error error = SD_BUS_ERROR_NULL;

	set_answer(&error, answer, detail);
	return sd_bus_reply_method_error(m, &error);
}

void bus_call_answer(struct bus_call *call, const struct request_result *result)
{
	int r = result->answer == PMEM_AGENT_DURABLE ? reply_durable(call->message, result)
						     : reply_answer(call->message, result->answer, result->detail);

	if (r < 0 && result->answer == PMEM_AGENT_DURABLE)
		r = reply_answer(call->message, PMEM_AGENT_UNKNOWN, "the agent could not put its reply together");
	call_replied(call, r);
}

void bus_call_refuse(struct bus_call *call, enum pmem_agent_answer answer, const char *detail)
{
	call_replied(call, reply_answer(call->message, answer, detail));
}

static void on_request_done(const struct request_result *result, void *userdata)
{
	struct bus_call *call = userdata;

	call->request = NULL;
	bus_call_answer(call, result);
}

/* ---- requests ---- */

static struct flush_caller caller_of(const struct bus_call *call)
{
	return (struct flush_caller){ .uid = call->client->uid, .deadline_usec = call->deadline_usec };
}

/* Where its request is, once there is one. */
static struct request **request_of(struct bus_call *call)
{
	return call->ticket ? &call->ticket->request : &call->request;
}

/* The call has come to an end without a request. */
static void call_refused(struct bus_call *call, int r, const char *detail)
{
	if (r > 0) {
		bus_call_refuse(call, (enum pmem_agent_answer)r, detail);
		return;
	}
	call_replied(call, sd_bus_reply_method_errno(call->message, r, NULL));
}

/* The flush has found room, and the ticket stands for it from now on, whoever leaves. */
static void call_submitted(struct bus_call *call)
{
	char text[TICKET_TEXT_MAX];
	int r;

	ticket_format(&call->client->bus->tickets, &call->ticket->ticket, text);
	r = sd_bus_reply_method_return(call->message, "s", text);
	if (r >= 0)
		call->ticket = NULL;
	call_replied(call, r);
}

static void call_authorize(struct bus_call *call);

/* It is known who asks: for what polkit is to be asked, for a ticket, or to be admitted. */
static void call_identified(struct bus_call *call)
{
	struct flush_caller caller = caller_of(call);
	char detail[MOUNT_DETAIL_MAX] = "";
	struct request **request = request_of(call);
	int r;

	call->identifying = false;
	if (!call->client->known) {
		bus_call_refuse(call, PMEM_AGENT_DENIED, "the bus does not know who asks");
		return;
	}
	if (call->action) {
		call_authorize(call);
		return;
	}
	if (call->awaited_number) {
		bus_ticket_await(call);
		return;
	}
	r = request_admit(*request, &caller, detail);
	if (r != 0)
		*request = NULL;
	else if (call->ticket)
		r = bus_ticket_issue(call->ticket, caller.uid, detail);
	if (r != 0)
		call_refused(call, r, detail);
	else if (call->ticket)
		call_submitted(call);
}

/* Now that it is known whose its calls are: the newest go, those that are too many. Whether any is left. */
static bool keep_to_share(struct bus_client *c)
{
	struct bus *b = c->bus;
	unsigned int n = bus_count_calls(b, c->uid), share = bus_share(b->max_calls),
		     too_many = n > share ? n - share : 0;
	unsigned int of_others = bus_count_calls_of_others(b), room = share_of_others(b->max_calls);
	const char *whose = "of your user ";
	bool left;

	if (!share_is_kept_for(c->uid) && of_others > room && of_others - room > too_many) {
		too_many = of_others - room;
		share = room;
		whose = "";
	}
	left = too_many < c->n_calls;
	for (unsigned int i = left ? too_many : c->n_calls; i > 0; i--)
		call_end_too_many(TAILQ_LAST(&c->calls, bus_call_list), share, whose);
	return left;
}

static int on_user(sd_bus_message *reply, void *userdata, sd_bus_error *error)
{
	struct bus_client *c = userdata;
	struct bus_call *call, *next;
	uint32_t uid = 0;

	bus_dispatched(c->bus);
	c->query = sd_bus_slot_unref(c->query);
	c->known = !sd_bus_message_is_method_error(reply, NULL) && sd_bus_message_read(reply, "u", &uid) >= 0;
	c->uid = uid;
	if (c->known && !keep_to_share(c))
		return 1;
	for (call = TAILQ_FIRST(&c->calls); call; call = next) {
		next = TAILQ_NEXT(call, entry);
		/* The last one may take the client with it. */
		if (call->identifying)
			call_identified(call);
	}
	return 1;
}

/*
 * Whether it is known whose call it is; else the bus is asked, and the call waits for on_user(). Asking it by
 * sd_bus_query_sender_creds() would wait for the reply, and take in other messages meanwhile.
 */
static int call_identify(struct bus_call *call)
{
	struct bus_client *c = call->client;
	int r = 0;

	call->identifying = !c->known;
	if (!c->known && !c->query)
		r = sd_bus_call_method_async(c->bus->bus, &c->query, "org.freedesktop.DBus", "/org/freedesktop/DBus",
					     "org.freedesktop.DBus", "GetConnectionUnixUser", on_user, c, "s",
					     c->sender);
	return r < 0 ? r : c->known;
}

/* `r` is what a manager_flush_*() returned for the call. */
static int call_begun(struct bus_call *call, int r, const char *detail, sd_bus_error *error)
{
	if (r == 0)
		return 1;
	call_end(call);
	return r < 0 ? r : set_answer(error, (enum pmem_agent_answer)r, detail);
}

/* Of `fd` (-1: of what polkit was asked for); its answer goes to the call, or to the ticket that the call is for. */
static int call_flush(struct bus_call *call, int fd, enum mount_scope scope, char detail[static MOUNT_DETAIL_MAX])
{
	struct manager *m = call->client->bus->manager;
	request_done_t done = call->ticket ? bus_ticket_done : on_request_done;
	void *owner = call->ticket ? (void *)call->ticket : call;
	struct request **request = request_of(call);
	struct manager_region *mr = call->region ? manager_find_region(m, call->region) : NULL;
	struct flush_caller own = caller_of(call);
	const struct flush_caller *caller;
	int copy, r;

	r = call_identify(call);
	if (r < 0)
		return r;
	caller = r > 0 ? &own : NULL;
	if (fd >= 0) {
		copy = fcntl(fd, F_DUPFD_CLOEXEC, 3);
		r = copy < 0 ? -errno : manager_flush_fd(m, copy, NULL, scope, caller, done, owner, request, detail);
	} else if (call->path) {
		r = manager_flush_path(m, call->path, caller, done, owner, request, detail);
	} else {
		r = mr ? manager_flush_region(m, mr, caller, done, owner, request, detail) : PMEM_AGENT_GONE;
	}
	if (r != 0 || !call->ticket || !caller)
		return r;
	/* Last: it may cost another ticket its place. */
	r = bus_ticket_issue(call->ticket, caller->uid, detail);
	if (r == 0)
		call_submitted(call);
	return r;
}

/* 0, the call being as the options say. */
static int flush_call_new(struct bus *b, sd_bus_message *m, const struct bus_options *options, struct bus_call **ret,
			  sd_bus_error *error)
{
	struct bus_call *call;
	int r = call_new(b, m, &call, error);

	if (r < 0)
		return r;
	call->deadline_usec = options->deadline_usec;
	call->ticket = options->submit ? bus_ticket_new(b) : NULL;
	if (options->submit && !call->ticket) {
		call_end(call);
		return -ENOMEM;
	}
	*ret = call;
	return 0;
}

int bus_call_flush_fd(struct bus *b, sd_bus_message *m, int fd, const struct bus_options *options, sd_bus_error *error)
{
	char detail[MOUNT_DETAIL_MAX] = "";
	struct bus_call *call;
	int r = flush_call_new(b, m, options, &call, error);

	if (r < 0)
		return r;
	r = call_flush(call, fd, options->scope, detail);
	if (r == 0)
		bus_keep_copy(b, fd);
	return call_begun(call, r, detail, error);
}

/* 0 is not an answer here, but that the call has been answered. */
static int call_acknowledge(struct bus_call *call, char detail[static MOUNT_DETAIL_MAX])
{
	struct manager *m = call->client->bus->manager;
	struct manager_region *mr = manager_find_region(m, call->region);
	int r = mr ? manager_acknowledge(m, mr, call->loss, detail) : PMEM_AGENT_GONE;

	if (r != 0)
		return r;
	call_replied(call, sd_bus_reply_method_return(call->message, NULL));
	return 0;
}

static void call_authorized(struct bus_call *call)
{
	char detail[MOUNT_DETAIL_MAX] = "";
	int r = call->acknowledge ? call_acknowledge(call, detail) : call_flush(call, -1, MOUNT_SCOPE_AUTO, detail);

	if (r != 0)
		call_refused(call, r, detail);
}

static void on_authorized(enum pmem_agent_answer answer, const char *reason, void *userdata)
{
	struct bus_call *call = userdata;

	bus_dispatched(call->client->bus);
	call->polkit = polkit_free(call->polkit);
	if (answer == PMEM_AGENT_DURABLE)
		call_authorized(call);
	else
		bus_call_refuse(call, answer, reason);
}

static void call_authorize(struct bus_call *call)
{
	struct bus_client *c = call->client;
	unsigned int all, of_user;

	if (polkit_trusts(c->uid)) {
		call_authorized(call);
		return;
	}
	bus_count_checks(c->bus, c->uid, &all, &of_user);
	if (of_user >= bus_share(BUS_MAX_CHECKS))
		call_end_too_many(call, of_user, "of your user for polkit ");
	else if (all >= BUS_MAX_CHECKS)
		call_end_too_many(call, all, "for polkit ");
	else if (polkit_check(call->message, call->action, on_authorized, call, &call->polkit) < 0)
		bus_call_refuse(call, PMEM_AGENT_DENIED, "polkit could not be asked; only root may do this now");
}

/* What is asked for is in `call` already; its client is identified first. */
static int call_begin_authorized(struct bus_call *call, const char *action, sd_bus_error *error)
{
	int r = call->path || call->region ? call_identify(call) : -ENOMEM;

	if (r < 0)
		return call_begun(call, r, "", error);
	call->action = action;
	if (r > 0)
		call_authorize(call);
	return 1;
}

/* By name: of a mount point or of a region, the other is NULL. */
static int call_flush_name(struct bus *b, sd_bus_message *m, const char *path, const char *region,
			   const struct bus_options *options, sd_bus_error *error)
{
	struct bus_call *call;
	int r = flush_call_new(b, m, options, &call, error);

	if (r < 0)
		return r;
	call->path = path ? strdup(path) : NULL;
	call->region = region ? strdup(region) : NULL;
	return call_begin_authorized(call, BUS_ACTION_FLUSH, error);
}

int bus_call_flush_path(struct bus *b, sd_bus_message *m, const char *path, const struct bus_options *options,
			sd_bus_error *error)
{
	return call_flush_name(b, m, path, NULL, options, error);
}

int bus_call_flush_region(struct bus *b, sd_bus_message *m, const char *region, const struct bus_options *options,
			  sd_bus_error *error)
{
	return call_flush_name(b, m, NULL, region, options, error);
}

int bus_call_acknowledge(struct bus *b, sd_bus_message *m, const char *region, uint64_t loss, sd_bus_error *error)
{
	struct bus_call *call;
	int r = call_new(b, m, &call, error);

	if (r < 0)
		return r;
	call->region = strdup(region);
	call->acknowledge = true;
	call->loss = loss;
	return call_begin_authorized(call, BUS_ACTION_ACKNOWLEDGE, error);
}

int bus_call_wait(struct bus *b, sd_bus_message *m, const char *ticket, const struct bus_options *options,
		  sd_bus_error *error)
{
	struct bus_call *call;
	uint64_t number;
	char why[96];
	int r = ticket_parse(&b->tickets, ticket, &number);

	if (r == -ESTALE)
		return set_answer(error, PMEM_AGENT_UNKNOWN,
				  "the ticket is of an agent before this one, and nobody knows what became of it");
	if (r < 0) {
		snprintf(why, sizeof(why), "\"%.64s\" is no ticket", ticket);
		return set_error(error, SD_BUS_ERROR_INVALID_ARGS, why);
	}
	r = call_new(b, m, &call, error);
	if (r < 0)
		return r;
	call->deadline_usec = options->deadline_usec;
	call->awaited_number = number;
	r = call_identify(call);
	if (r < 0)
		return call_begun(call, r, "", error);
	if (r > 0)
		bus_ticket_await(call);
	return 1;
}
