/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * serve: the guest: greetings, instances, commands and their answers, events
 */
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <systemd/sd-daemon.h>

#include "log.h"
#include "serve.h"

#define LOGS_PER_TURN 20
#define TURN_USEC     (10 * USEC_PER_SEC)
#define BUSY_USEC     (1100 * USEC_PER_MSEC) /* the agent begins an instance once a second, if it is told to */

/* ---- what is said of it ---- */

void serve_log(struct serve *s, int priority, const char *format, ...)
{
	char text[512];
	va_list arguments;

	if (s->n_logs >= LOGS_PER_TURN)
		return;
	s->n_logs++;
	va_start(arguments, format);
	vsnprintf(text, sizeof(text), format, arguments);
	va_end(arguments);
	log_daemon(priority, LOG_EVENT_HOST, "%s%s", text,
		   s->n_logs == LOGS_PER_TURN ? " (there may be more, which is not told)" : "");
}

static void tell_status(struct serve *s)
{
	char text[256];

	serve_backings_status(s, text, sizeof(text));
	if (s->qmp_error)
		snprintf(text, sizeof(text), "QEMU's monitor can't be asked: %s", strerrordesc_np(s->qmp_error));
	if (s->dial_error)
		sd_notifyf(false, "STATUS=no connection to %s: %s; %s", s->path, strerrordesc_np(s->dial_error), text);
	else
		sd_notifyf(false, "STATUS=%s; %s", s->greeting ? "connected to the agent" : "no agent in the guest",
			   text);
}

/* What is behind the regions is not known until QEMU says it. */
static void look_at_qmp(struct serve *s)
{
	int error = s->qmp ? qmp_get_error(s->qmp) : 0;

	if (error != 0 && error != s->qmp_error)
		serve_log(s, LOG_WARNING, "QEMU's monitor can't be asked what is behind the regions: %s",
			  strerrordesc_np(error));
	s->qmp_error = error;
}

static int on_timer(sd_event_source *source, uint64_t usec, void *userdata)
{
	struct serve *s = userdata;

	if (s->instance_again) {
		s->instance_again = false;
		serve_call(s, CALL_NEW_INSTANCE, "new-instance", NULL);
	}
	s->n_logs = 0;
	look_at_qmp(s);
	serve_backings_retry(s);
	serve_clients_ask(s);
	tell_status(s);
	sd_event_source_set_time_relative(source, TURN_USEC);
	return sd_event_source_set_enabled(source, SD_EVENT_ONESHOT);
}

/* ---- commands ---- */

struct call *serve_call_find(struct serve *s, uint64_t number)
{
	struct call *call;

	TAILQ_FOREACH (call, &s->calls, entry)
		if (call->number == number)
			return call;
	return NULL;
}

struct call *serve_call_free(struct serve *s, struct call *call)
{
	TAILQ_REMOVE(&s->calls, call, entry);
	s->n_calls--;
	if (call->client)
		call->client->n_calls--;
	json_object_put(call->id);
	free(call);
	return NULL;
}

struct call *serve_call_again(struct serve *s, enum call_kind kind, const char *name, struct json_object *arguments,
			      uint64_t number)
{
	_cleanup_(json_unrefp) struct json_object *o = json_new_object();
	struct call *call = calloc(1, sizeof(*call));
	int r;

	json_add_string(o, "execute", name);
	if (arguments)
		json_add(o, "arguments", arguments);
	json_add_u64(o, "id", number);
	r = call && s->greeting ? peer_send(s->guest, o) : -ENOTCONN;
	/* What it wants of us must have an answer: it asks again whoever connects anew. */
	if (s->greeting && (kind == CALL_FLUSHED ? r < 0 : s->n_calls >= 2 * SERVE_MAX_CALLS))
		peer_hang_up(s->guest);
	if (r < 0) {
		free(call);
		return NULL;
	}
	call->kind = kind;
	call->number = number;
	TAILQ_INSERT_TAIL(&s->calls, call, entry);
	s->n_calls++;
	return call;
}

struct call *serve_call(struct serve *s, enum call_kind kind, const char *name, struct json_object *arguments)
{
	return serve_call_again(s, kind, name, arguments, ++s->last_call);
}

/* What was under way goes with the connection, and what was is no answer to anything in the next instance. */
static void forget_calls(struct serve *s)
{
	struct call *call;

	serve_backings_forget(s);
	serve_retry_clear(s);
	while ((call = TAILQ_FIRST(&s->calls)))
		serve_call_free(s, call);
}

/* ---- instances ---- */

static bool has_feature(struct json_object *o, const char *name)
{
	struct json_object *array = json_get(o, "features", json_type_array);

	for (size_t i = 0; array && i < json_object_array_length(array); i++) {
		const char *feature = json_object_get_string(json_object_array_get_idx(array, i));

		if (feature && strcmp(feature, name) == 0)
			return true;
	}
	return false;
}

/* The answer to an earlier one is that of this one. */
static void forget_negotiations(struct serve *s)
{
	struct call *call, *next;

	for (call = TAILQ_FIRST(&s->calls); call; call = next) {
		next = TAILQ_NEXT(call, entry);
		if (call->kind == CALL_NEGOTIATE)
			serve_call_free(s, call);
	}
}

static void negotiate(struct serve *s)
{
	struct json_object *arguments = json_new_object(), *features = json_new_array();

	forget_negotiations(s);
	json_append_string(features, "serve-flush");
	json_append_string(features, "serve-confirm");
	json_add(arguments, "protocol", json_object_new_int(SERVE_PROTOCOL));
	json_add(arguments, "features", features);
	serve_call(s, CALL_NEGOTIATE, "negotiate", arguments);
}

static void on_negotiated(struct serve *s, struct json_object *answer)
{
	struct json_object *o = json_get(answer, "return", json_type_object);

	s->protocol = json_get_u64(o, "protocol", 1);
	if (!has_feature(o, "serve-flush"))
		serve_log(s, LOG_WARNING,
			  "the agent takes no flush from us: regions of device-dax stay impossible to flush");
	serve_backings_tell(s);
}

/*
 * A guest that has been restored, with a host connected before and after, need not notice that there was no connection
 * in between. So an instance that is not known to be new is ended before anybody hears of its epochs.
 */
static void take_greeting(struct serve *s, struct json_object *greeting)
{
	const char *instance = json_get_string(greeting, "instance", "");
	bool unnoticed;

	/* The answer to our resync. */
	if (s->greeting && strcmp(s->instance, instance) == 0)
		return;
	serve_clients_fail(s);
	forget_calls(s);
	s->instance_again = false;
	unnoticed = s->fresh && (!s->instance[0] || strcmp(s->instance, instance) == 0);
	s->fresh = false;
	json_object_put(s->greeting);
	s->greeting = json_object_get(greeting);
	s->instances++;
	s->protocol = 0;
	s->sequence = json_get_u64(greeting, "sequence", 0);
	snprintf(s->instance, sizeof(s->instance), "%s", instance);
	serve_log(s, LOG_INFO, "the agent %.32s of the guest greets, instance %.40s",
		  json_get_string(greeting, "version", "?"), instance);
	if (s->qmp)
		qmp_refresh(s->qmp);
	if (json_get_u64(greeting, "protocol", 0) >= SERVE_PROTOCOL && unnoticed &&
	    serve_call(s, CALL_NEW_INSTANCE, "new-instance", NULL))
		return;
	if (json_get_u64(greeting, "protocol", 0) >= SERVE_PROTOCOL)
		negotiate(s);
	else
		serve_log(s, LOG_WARNING, "the agent is too old to be served: it has no protocol %d", SERVE_PROTOCOL);
	serve_clients_greet(s);
	tell_status(s);
}

/* ---- events ---- */

static void take_event(struct serve *s, const char *name, struct json_object *o)
{
	struct json_object *data = json_get(o, "data", json_type_object);

	if (!s->greeting)
		return;
	if (strcmp(name, "FLUSH_WANTED") == 0) {
		serve_backings_wanted(s, data);
		return;
	}
	/* Commands given before are answered, those of clients among them. */
	if (strcmp(name, "NEW_INSTANCE") == 0) {
		s->sequence = 0;
		s->instances++;
		serve_retry_clear(s);
		snprintf(s->instance, sizeof(s->instance), "%s", json_get_string(data, "instance", ""));
		negotiate(s);
	}
	serve_clients_event(s, o);
	if (strcmp(name, "REGION_ADDED") == 0) {
		serve_backings_tell_one(s, json_get_u64(data, "address", UINT64_MAX));
		if (s->qmp)
			qmp_refresh(s->qmp);
	} else if (strcmp(name, "MISSED") == 0 && json_get_u64(data, "answers", 0) > 0) {
		/* Nobody knows whose they were. Who connects anew is told how everything stands. */
		peer_hang_up(s->guest);
	} else if (strcmp(name, "MISSED") == 0) {
		serve_backings_tell(s);
	}
}

static bool is_busy(struct json_object *answer)
{
	return strcmp(json_get_string(json_get(answer, "error", json_type_object), "class", ""), "Busy") == 0;
}

static void take_answer(struct serve *s, struct json_object *o)
{
	struct call *call = serve_call_find(s, json_get_u64(o, "id", 0));
	bool error = !json_get(o, "return", json_type_object);

	if (!call)
		return;
	switch (call->kind) {
	case CALL_NEGOTIATE:
		if (error)
			serve_log(s, LOG_WARNING, "the agent does not negotiate: nothing is flushed for it");
		else
			on_negotiated(s, o);
		break;
	case CALL_NEW_INSTANCE:
		if (error && is_busy(o)) {
			s->instance_again = true;
			sd_event_source_set_time_relative(s->timer, BUSY_USEC);
			break;
		}
		/* The event of it has come before. */
		if (error)
			negotiate(s);
		serve_clients_ask(s);
		tell_status(s);
		break;
	case CALL_SET_BACKING:
	case CALL_FLUSHED:
		serve_backings_answered(s, call, error);
		break;
	case CALL_GREET:
	case CALL_QUERY:
	case CALL_CLIENT:
		serve_clients_answered(s, call, o);
		return;
	}
	serve_call_free(s, call);
}

/* ---- the connection ---- */

static void on_garbage(struct peer *p, const char *what, void *userdata)
{
	struct serve *s = userdata;

	if (!s->complained)
		serve_log(s, LOG_WARNING, "the guest sends what is none of the protocol: %s", what);
	s->complained = true;
}

static void on_object(struct peer *p, struct json_object *o, void *userdata)
{
	struct serve *s = userdata;
	struct json_object *greeting = json_get(o, "pmem-agent", json_type_object);
	const char *event = json_get_string(o, "event", NULL);

	if (greeting)
		take_greeting(s, greeting);
	else if (event)
		take_event(s, event, o);
	else if (json_get(o, "return", json_type_object) || json_get(o, "error", json_type_object))
		take_answer(s, o);
	else
		on_garbage(p, "an object of no known kind", s);
}

static void on_connected(struct peer *p, void *userdata)
{
	struct serve *s = userdata;

	s->complained = false;
	s->dial_error = 0;
	s->fresh = true;
	if (s->connections++ > 0)
		serve_backings_retry(s); /* another machine has another file, perhaps */
	peer_send_resync(p);
}

static void on_closed(struct peer *p, int error, void *userdata)
{
	struct serve *s = userdata;

	if (!s->greeting && error && error != s->dial_error) {
		serve_log(s, LOG_WARNING, "no connection to %s: %s; tried again and again", s->path,
			  strerrordesc_np(error));
		s->dial_error = error;
		tell_status(s);
	}
	if (!s->greeting)
		return;
	serve_log(s, LOG_INFO, "the connection to the guest is gone%s%s", error ? ": " : "",
		  error ? strerrordesc_np(error) : "");
	json_object_put(s->greeting);
	s->greeting = NULL;
	s->protocol = 0;
	serve_clients_fail(s);
	forget_calls(s);
	tell_status(s);
}

/* What found no room is said again. */
static void on_drained(struct peer *p, void *userdata)
{
	struct serve *s = userdata;

	if (!s->greeting)
		return;
	if (s->protocol == 0)
		negotiate(s);
	else
		serve_backings_tell(s);
}

static const struct peer_callbacks callbacks = {
	.connected = on_connected,
	.closed = on_closed,
	.object = on_object,
	.garbage = on_garbage,
	.drained = on_drained,
};

int serve_new(sd_event *event, const char *guest, const char *qmp, const char *state, struct serve **ret)
{
	_cleanup_(serve_freep) struct serve *s = calloc(1, sizeof(*s));
	int r;

	if (!s)
		return -ENOMEM;
	s->event = event;
	s->path = guest;
	s->state = state;
	/* What answers a process before us is no answer to us. */
	s->last_call = now_usec(CLOCK_REALTIME);
	s->listener = -1;
	TAILQ_INIT(&s->calls);
	TAILQ_INIT(&s->backings);
	TAILQ_INIT(&s->clients);
	TAILQ_INIT(&s->asked);
	r = sd_event_add_time_relative(event, &s->timer, CLOCK_MONOTONIC, TURN_USEC, USEC_PER_SEC, on_timer, s);
	if (r >= 0)
		r = peer_dial(event, guest, SERVE_REDIAL_USEC,
			      (struct peer_limits){ .line = SERVE_LINE, .queue = SERVE_LINE }, &callbacks, s,
			      &s->guest);
	if (r >= 0 && qmp)
		r = qmp_new(event, qmp, serve_backings_found, s, &s->qmp);
	if (r < 0)
		return r;
	*ret = s;
	s = NULL;
	return 0;
}

struct serve *serve_free(struct serve *s)
{
	struct serve_backing *sb;

	if (!s)
		return NULL;
	serve_clients_free(s);
	forget_calls(s);
	while ((sb = TAILQ_FIRST(&s->backings)))
		serve_backing_free(s, sb);
	qmp_free(s->qmp);
	peer_free(s->guest);
	sd_event_source_disable_unref(s->timer);
	json_object_put(s->greeting);
	free(s);
	return NULL;
}
