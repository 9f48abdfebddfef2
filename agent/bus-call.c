/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * bus-call: calls that wait for their answer, who made them, and whether they may
 */
#include <fcntl.h>
#include <string.h>

#include "answer.h"
#include "bus-private.h"
#include "closer.h"
#include "polkit.h"

/* Fewer than dbus-daemon lets one client wait for (128), so that it can still ask something else. */
#define BUS_MAX_CALLS_PER_CLIENT 96
#define BUS_MAX_RESTING_CLIENTS  64
#define BUS_ACTION_FLUSH         "io.pmem.agent.flush"
#define BUS_ACTION_ACKNOWLEDGE   "io.pmem.agent.acknowledge"

struct bus_call {
	struct bus_client *client;
	sd_bus_message *message;
	struct request *request; /* NULL while polkit is asked */
	bool admitted;           /* it is known who asks */
	struct polkit *polkit;
	uint64_t deadline_usec;
	char *path, *region; /* what polkit is asked for: one of them */
	bool acknowledge;    /* `loss` of `region`, instead of a flush */
	uint64_t loss;
	TAILQ_ENTRY(bus_call) entry;
};

static int set_answer(sd_bus_error *error, enum pmem_agent_answer answer, const char *detail)
{
	return sd_bus_error_set(error, answer_dbus_error(answer), detail[0] ? detail : answer_get(answer)->meaning);
}

/* ---- clients ---- */

static struct bus_call *bus_call_free(struct bus_call *call)
{
	struct bus_client *c = call->client;

	request_cancel(call->request);
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
DEFINE_CLEANUP(struct bus_call *, bus_call_free)

struct bus_client *bus_client_free(struct bus_client *c)
{
	struct bus_call *call;

	while ((call = TAILQ_FIRST(&c->calls)))
		bus_call_free(call);
	TAILQ_REMOVE(&c->bus->clients, c, entry);
	sd_bus_slot_unref(c->match);
	sd_bus_slot_unref(c->query);
	free(c->sender);
	free(c);
	return NULL;
}

static int on_name_owner_changed(sd_bus_message *m, void *userdata, sd_bus_error *error)
{
	bus_client_free(userdata);
	return 0;
}

static struct bus_client *client_find(struct bus *b, const char *sender)
{
	struct bus_client *c;

	TAILQ_FOREACH (c, &b->clients, entry)
		if (strcmp(c->sender, sender) == 0)
			return c;
	return NULL;
}

/* Who left before the bus knows that we want to know is not noticed: those calls run to their end, and answer nobody.
 */
static int client_new(struct bus *b, const char *sender, struct bus_client **ret)
{
	char match[256];
	struct bus_client *c = calloc(1, sizeof(*c));
	int r;

	if (!c)
		return -ENOMEM;
	c->bus = b;
	TAILQ_INIT(&c->calls);
	TAILQ_INSERT_TAIL(&b->clients, c, entry);
	c->sender = strdup(sender);
	snprintf(match, sizeof(match),
		 "type='signal',sender='org.freedesktop.DBus',path='/org/freedesktop/DBus',"
		 "interface='org.freedesktop.DBus',member='NameOwnerChanged',arg0='%.64s'",
		 sender);
	r = c->sender ? sd_bus_add_match_async(b->bus, &c->match, match, on_name_owner_changed, NULL, c) : -ENOMEM;
	if (r < 0) {
		bus_client_free(c);
		return r;
	}
	*ret = c;
	return 0;
}

static int call_new(struct bus *b, sd_bus_message *m, struct bus_call **ret, sd_bus_error *error)
{
	const char *sender = sd_bus_message_get_sender(m);
	struct bus_client *c = client_find(b, sender);
	struct bus_call *call;
	int r;

	if (b->n_calls >= b->max_calls || (c && c->n_calls >= BUS_MAX_CALLS_PER_CLIENT))
		return sd_bus_error_setf(error, SD_BUS_ERROR_LIMITS_EXCEEDED,
					 "%u calls wait already; repeat it when one of them has been answered",
					 c && c->n_calls >= BUS_MAX_CALLS_PER_CLIENT ? c->n_calls : b->n_calls);
	if (!c) {
		r = client_new(b, sender, &c);
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

/* `c` has no calls any more. Of such clients those are kept who had calls last, so that their uid is known next time.
 */
static void client_rest(struct bus_client *c)
{
	struct bus *b = c->bus;
	struct bus_client *oldest = NULL, *other;
	unsigned int n = 0;

	if (!c->known) {
		bus_client_free(c);
		return;
	}
	TAILQ_REMOVE(&b->clients, c, entry);
	TAILQ_INSERT_TAIL(&b->clients, c, entry);
	TAILQ_FOREACH (other, &b->clients, entry) {
		if (other->n_calls > 0)
			continue;
		n++;
		oldest = oldest ?: other;
	}
	if (n > BUS_MAX_RESTING_CLIENTS)
		bus_client_free(oldest);
}

static void call_end(struct bus_call *call)
{
	struct bus_client *c = call->client;

	bus_call_free(call);
	if (c->n_calls == 0)
		client_rest(c);
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

static void reply_answer(sd_bus_message *m, enum pmem_agent_answer answer, const char *detail)
{
	_cleanup_(sd_bus_error_free) sd_bus_error error = SD_BUS_ERROR_NULL;

	set_answer(&error, answer, detail);
	sd_bus_reply_method_error(m, &error);
}

static void on_request_done(const struct request_result *result, void *userdata)
{
	struct bus_call *call = userdata;

	call->request = NULL;
	/* A reply that can't be made leaves the caller with what it would have had without one: an error. */
	if (result->answer != PMEM_AGENT_DURABLE)
		reply_answer(call->message, result->answer, result->detail);
	else if (reply_durable(call->message, result) < 0)
		reply_answer(call->message, PMEM_AGENT_UNKNOWN, "the agent could not put its reply together");
	call_end(call);
}

/* ---- requests ---- */

/* The call has come to an end without a request. */
static void call_refused(struct bus_call *call, int r, const char *detail)
{
	if (r > 0)
		reply_answer(call->message, (enum pmem_agent_answer)r, detail);
	else
		sd_bus_reply_method_errno(call->message, r, NULL);
	call_end(call);
}

static struct flush_caller caller_of(const struct bus_call *call)
{
	return (struct flush_caller){ .uid = call->client->uid, .deadline_usec = call->deadline_usec };
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
	for (call = TAILQ_FIRST(&c->calls); call; call = next) {
		struct flush_caller caller = caller_of(call);
		char detail[MOUNT_DETAIL_MAX] = "";
		int r;

		next = TAILQ_NEXT(call, entry);
		if (!call->request || call->admitted)
			continue;
		if (!c->known) {
			call_refused(call, PMEM_AGENT_DENIED, "the bus does not know who asks");
			continue;
		}
		r = request_admit(call->request, &caller, detail);
		call->admitted = r == 0;
		if (r != 0) {
			call->request = NULL;
			call_refused(call, r, detail);
		}
	}
	return 1;
}

/*
 * Whose quota a call takes from, NULL: the bus is asked, and the request waits for on_user(). Asking it by
 * sd_bus_query_sender_creds() would wait for the reply, and take in other messages meanwhile.
 */
static int call_identify(struct bus_call *call, struct flush_caller *caller, const struct flush_caller **ret)
{
	struct bus_client *c = call->client;
	int r = 0;

	*caller = caller_of(call);
	*ret = c->known ? caller : NULL;
	call->admitted = c->known;
	if (!c->known && !c->query)
		r = sd_bus_call_method_async(c->bus->bus, &c->query, "org.freedesktop.DBus", "/org/freedesktop/DBus",
					     "org.freedesktop.DBus", "GetConnectionUnixUser", on_user, c, "s",
					     c->sender);
	return r < 0 ? r : 0;
}

/* `r` is what a manager_flush_*() returned for the call. */
static int call_begun(struct bus_call *call, int r, const char *detail, sd_bus_error *error)
{
	if (r == 0)
		return 1;
	call_end(call);
	return r < 0 ? r : set_answer(error, (enum pmem_agent_answer)r, detail);
}

int bus_call_flush_fd(struct bus *b, sd_bus_message *m, int fd, const struct bus_options *options, sd_bus_error *error)
{
	char detail[MOUNT_DETAIL_MAX] = "";
	const struct flush_caller *caller;
	struct flush_caller own;
	struct bus_call *call;
	int copy, r;

	r = call_new(b, m, &call, error);
	if (r < 0)
		return r;
	call->deadline_usec = options->deadline_usec;
	r = call_identify(call, &own, &caller);
	if (r < 0)
		return call_begun(call, r, detail, error);
	copy = fcntl(fd, F_DUPFD_CLOEXEC, 3);
	if (copy < 0)
		return call_begun(call, -errno, detail, error);
	r = manager_flush_fd(b->manager, copy, options->scope, caller, on_request_done, call, &call->request, detail);
	if (r == 0)
		bus_keep_copy(b, fd);
	return call_begun(call, r, detail, error);
}

static int call_flush(struct bus_call *call, char detail[static MOUNT_DETAIL_MAX])
{
	struct manager *m = call->client->bus->manager;
	const struct flush_caller *caller;
	struct manager_region *mr;
	struct flush_caller own;
	int r = call_identify(call, &own, &caller);

	if (r < 0)
		return r;
	if (call->path)
		return manager_flush_path(m, call->path, caller, on_request_done, call, &call->request, detail);
	mr = manager_find_region(m, call->region);
	return mr ? manager_flush_region(m, mr, caller, on_request_done, call, &call->request, detail)
		  : PMEM_AGENT_GONE;
}

/* 0 is not an answer here, but that the call has been answered. */
static int call_acknowledge(struct bus_call *call, char detail[static MOUNT_DETAIL_MAX])
{
	struct manager *m = call->client->bus->manager;
	struct manager_region *mr = manager_find_region(m, call->region);
	int r = mr ? manager_acknowledge(m, mr, call->loss, detail) : PMEM_AGENT_GONE;

	if (r != 0)
		return r;
	sd_bus_reply_method_return(call->message, NULL);
	call_end(call);
	return 0;
}

static void on_authorized(enum pmem_agent_answer answer, const char *reason, void *userdata)
{
	struct bus_call *call = userdata;
	char detail[MOUNT_DETAIL_MAX] = "";
	int r = (int)answer;

	bus_dispatched(call->client->bus);
	call->polkit = polkit_free(call->polkit);
	snprintf(detail, sizeof(detail), "%s", reason);
	if (r == PMEM_AGENT_DURABLE)
		r = call->acknowledge ? call_acknowledge(call, detail) : call_flush(call, detail);
	if (r != 0)
		call_refused(call, r, detail);
}

/* What is asked for is in `call` already. */
static int call_authorize(struct bus_call *call, const char *action, sd_bus_error *error)
{
	int r = call->path || call->region ? polkit_check(call->message, action, on_authorized, call, &call->polkit)
					   : -ENOMEM;

	return call_begun(call, r, "", error);
}

/* By name: of a mount point or of a region, the other is NULL. */
static int call_flush_name(struct bus *b, sd_bus_message *m, const char *path, const char *region,
			   const struct bus_options *options, sd_bus_error *error)
{
	struct bus_call *call;
	int r = call_new(b, m, &call, error);

	if (r < 0)
		return r;
	call->deadline_usec = options->deadline_usec;
	call->path = path ? strdup(path) : NULL;
	call->region = region ? strdup(region) : NULL;
	return call_authorize(call, BUS_ACTION_FLUSH, error);
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
	return call_authorize(call, BUS_ACTION_ACKNOWLEDGE, error);
}
