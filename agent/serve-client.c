/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * serve-client: other programs of the host, which speak the agent's protocol through us
 *
 * Their commands go to the agent under ids of ours. Events go to all of them; who does not read is told later how many
 * it missed, and who asks without reading the answers is dropped.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "serve.h"

static struct client *client_free(struct client *client)
{
	struct serve *s = client->serve;
	struct call *call, *next;

	/* A flush may be asked for again; to anything else nobody needs an answer. */
	for (call = TAILQ_FIRST(&s->calls); call; call = next) {
		next = TAILQ_NEXT(call, entry);
		if (call->client == client && call->kind == CALL_CLIENT)
			call->client = NULL;
		else if (call->client == client)
			serve_call_free(s, call);
	}
	serve_retry_leave(s, client);
	TAILQ_REMOVE(&s->clients, client, entry);
	s->n_clients--;
	peer_free(client->peer);
	free(client);
	return NULL;
}

/* ---- to a client ---- */

/* False: it has asked, does not read, and is gone now. */
static bool answer(struct client *client, const char *key, struct json_object *value, struct json_object *id)
{
	_cleanup_(json_unrefp) struct json_object *o = json_new_object();

	json_add(o, key, value);
	if (id)
		json_add(o, "id", json_object_get(id));
	if (peer_send(client->peer, o) == 0)
		return true;
	client_free(client);
	return false;
}

static bool answer_error(struct client *client, const char *class, const char *description, struct json_object *id)
{
	struct json_object *error = json_new_object();

	json_add_string(error, "class", class);
	json_add_string(error, "desc", description);
	return answer(client, "error", error, id);
}

/* What the agent says of itself, as it is for a client: what only one can do, we do. */
static struct json_object *describe(struct client *client, struct json_object *from)
{
	struct json_object *o = json_copy(from);
	uint64_t missed = json_get_u64(from, "missed", 0) + client->missed;

	json_add(o, "features", json_new_array());
	json_add_u64(o, "sequence", client->serve->sequence);
	json_add_u64(o, "missed", missed);
	return o;
}

static void greet(struct client *client, struct json_object *from)
{
	_cleanup_(json_unrefp) struct json_object *o = json_new_object();

	json_add(o, "pmem-agent", describe(client, from));
	client->greeted = peer_send(client->peer, o) == 0;
	if (client->greeted)
		client->missed = 0;
}

static void tell_missed(struct client *client, struct json_object *from)
{
	_cleanup_(json_unrefp) struct json_object *o = json_new_object();
	struct json_object *data = json_new_object(), *regions = json_get(from, "regions", json_type_array);

	json_add_u64(data, "count", client->missed);
	json_add(data, "regions", regions ? json_object_get(regions) : json_new_array());
	json_add_u64(data, "sequence", client->serve->sequence);
	json_add_string(o, "event", "MISSED");
	json_add(o, "data", data);
	json_add_timestamp(o);
	if (peer_send(client->peer, o) == 0)
		client->missed = 0;
}

/* For a greeting, or for what it missed: the agent's word on how things stand. */
static void ask_for(struct client *client)
{
	struct call *call;

	if (client->asking || client->serve->n_calls >= SERVE_MAX_CALLS)
		return;
	call = serve_call(client->serve, CALL_GREET, "query", NULL);
	if (!call)
		return;
	call->client = client;
	client->n_calls++;
	client->asking = true;
}

void serve_clients_event(struct serve *s, struct json_object *event)
{
	struct json_object *data = json_get(event, "data", json_type_object);
	struct client *client;

	s->sequence++;
	if (data)
		json_add_u64(data, "sequence", s->sequence);
	TAILQ_FOREACH (client, &s->clients, entry)
		if (client->greeted && (client->missed > 0 || peer_send(client->peer, event) < 0))
			client->missed++;
}

void serve_clients_answered(struct serve *s, struct call *call, struct json_object *o)
{
	struct json_object *value = json_get(o, "return", json_type_object), *id = json_object_get(call->id);
	bool error = !value;
	struct client *client = call->client;
	enum call_kind kind = call->kind;

	serve_call_free(s, call);
	if (error)
		value = json_get(o, "error", json_type_object);
	if (client && kind == CALL_GREET) {
		client->asking = false;
		if (!error && !client->greeted)
			greet(client, value);
		else if (!error && client->missed > 0)
			tell_missed(client, value);
	} else if (client && kind == CALL_QUERY && !error) {
		answer(client, "return", describe(client, value), id);
	} else if (client) {
		answer(client, error ? "error" : "return", json_object_get(value), id);
	}
	json_object_put(id);
}

static struct call *find_call_of_client(struct serve *s)
{
	struct call *call;

	TAILQ_FOREACH (call, &s->calls, entry)
		if (call->client)
			return call;
	return NULL;
}

void serve_clients_fail(struct serve *s)
{
	struct client *client;
	struct call *call;

	TAILQ_FOREACH (client, &s->clients, entry)
		client->greeted = client->asking = false;
	/* A client that can't be told takes its other calls along. */
	while ((call = find_call_of_client(s))) {
		bool asked = call->kind == CALL_QUERY || call->kind == CALL_CLIENT;
		struct json_object *id = json_object_get(call->id);

		client = call->client;
		serve_call_free(s, call);
		if (asked)
			answer_error(client, "Unknown", "the connection to the agent is gone", id);
		json_object_put(id);
	}
}

void serve_clients_ask(struct serve *s)
{
	struct client *client;

	TAILQ_FOREACH (client, &s->clients, entry)
		if (!client->greeted)
			ask_for(client);
}

void serve_clients_greet(struct serve *s)
{
	struct client *client;

	TAILQ_FOREACH (client, &s->clients, entry)
		greet(client, s->greeting);
}

/* ---- from a client ---- */

/* Only one program can be the host that serves, and that is this one. */
static bool is_ours(const char *command)
{
	return strcmp(command, "set-backing") == 0 || strcmp(command, "flushed") == 0;
}

static void negotiate(struct client *client, struct json_object *arguments, struct json_object *id)
{
	uint64_t protocol = json_get_u64(arguments, "protocol", 1);
	struct json_object *o = json_new_object();

	if (client->serve->protocol == 0 || protocol < client->serve->protocol)
		json_add_u64(o, "protocol", protocol < 1 ? 1 : protocol);
	else
		json_add_u64(o, "protocol", client->serve->protocol);
	json_add(o, "features", json_new_array());
	answer(client, "return", o, id);
}

static bool has_room(struct client *client, struct json_object *id)
{
	if (client->n_calls < SERVE_MAX_CLIENT_CALLS && client->serve->n_calls < SERVE_MAX_CALLS)
		return true;
	answer_error(client, "Busy", "too many commands wait for their answer", id);
	return false;
}

/* `call` NULL: it was not sent. */
static bool own(struct client *client, struct call *call, struct json_object *id)
{
	if (!call) {
		answer_error(client, "Busy", "the agent reads nothing", id);
		return false;
	}
	call->client = client;
	call->id = json_object_get(id);
	client->n_calls++;
	return true;
}

static void forward(struct client *client, const char *name, struct json_object *arguments, struct json_object *id)
{
	enum call_kind kind = strcmp(name, "query") == 0 ? CALL_QUERY : CALL_CLIENT;
	struct serve *s = client->serve;
	struct call *call;

	if (!has_room(client, id))
		return;
	call = serve_call(s, kind, name, json_object_get(arguments));
	if (own(client, call, id) && id && strcmp(name, "flush") == 0)
		serve_retry_remember(client, arguments, id, call->number);
}

/* One that has been given before, in flight or not, is not given as another. */
static void flush_again(struct client *client, struct json_object *arguments, struct json_object *id)
{
	struct serve *s = client->serve;
	struct call *call;
	uint64_t number;
	int r = serve_retry_find(client, arguments, id, &number);

	if (r == -EINVAL) {
		answer_error(client, "GenericError", "a command with other arguments had this id", id);
		return;
	}
	if (r < 0) {
		/* For the agent it is a new one, whatever had this number there before. */
		json_object_object_del(arguments, "retry");
		forward(client, "flush", arguments, id);
		return;
	}
	call = serve_call_find(s, number);
	if (call && call->client)
		return; /* one answer will do for both */
	if (call) {
		call->client = client;
		client->n_calls++;
	} else if (has_room(client, id)) {
		own(client, serve_call_again(s, CALL_CLIENT, "flush", json_object_get(arguments), number), id);
	}
}

static void command(struct client *client, const char *name, struct json_object *arguments, struct json_object *id)
{
	struct json_object *retry = json_get(arguments, "retry", json_type_boolean);

	if (!client->serve->greeting)
		answer_error(client, "Unknown", "no agent is connected", id);
	else if (strcmp(name, "flush") != 0 || !json_object_get_boolean(retry))
		forward(client, name, arguments, id);
	else if (!id)
		answer_error(client, "GenericError", "'retry' of 'flush' goes with an id", id);
	else
		flush_again(client, arguments, id);
}

static void on_object(struct peer *p, struct json_object *o, void *userdata)
{
	struct client *client = userdata;
	const char *name = json_get_string(o, "execute", NULL);
	struct json_object *id = NULL, *arguments = NULL;

	json_object_object_get_ex(o, "id", &id);
	if (strlen(json_text(id, 0)) > SERVE_MAX_ID) {
		answer_error(client, "GenericError", "the id is too long", NULL);
		return;
	}
	if (!name || (json_object_object_get_ex(o, "arguments", &arguments) &&
		      !json_object_is_type(arguments, json_type_object)))
		answer_error(client, "GenericError",
			     "a command is {\"execute\": NAME, \"arguments\": {…}, \"id\": ANYTHING}", id);
	else if (is_ours(name))
		answer_error(client, "AccessDenied", "pmemctl serve does that", id);
	else if (strcmp(name, "negotiate") == 0)
		negotiate(client, arguments, id);
	else
		command(client, name, arguments, id);
}

static void on_garbage(struct peer *p, const char *what, void *userdata)
{
	answer_error(userdata, "GenericError", what, NULL);
}

static void on_reset(struct peer *p, void *userdata)
{
	struct client *client = userdata;

	client->greeted = false;
	ask_for(client);
}

static void on_drained(struct peer *p, void *userdata)
{
	struct client *client = userdata;

	if (!client->greeted || client->missed > 0)
		ask_for(client);
}

static void on_closed(struct peer *p, int error, void *userdata)
{
	client_free(userdata);
}

static const struct peer_callbacks callbacks = {
	.closed = on_closed,
	.object = on_object,
	.garbage = on_garbage,
	.reset = on_reset,
	.drained = on_drained,
};

/* ---- the socket ---- */

static int on_connection(sd_event_source *source, int listener, uint32_t events, void *userdata)
{
	struct peer_limits limits = { .line = SERVE_CLIENT_LINE, .queue = SERVE_CLIENT_QUEUE };
	struct serve *s = userdata;
	_cleanup_close_ int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	struct client *client;

	if (fd < 0 || s->n_clients >= SERVE_MAX_CLIENTS)
		return 0;
	client = calloc(1, sizeof(*client));
	if (!client)
		return 0;
	client->serve = s;
	if (peer_adopt(s->event, fd, limits, &callbacks, client, &client->peer) < 0) {
		fd = -1;
		free(client);
		return 0;
	}
	fd = -1;
	TAILQ_INSERT_TAIL(&s->clients, client, entry);
	s->n_clients++;
	ask_for(client);
	return 0;
}

/* One that was left behind by a program that has ended goes; one that is listened to stays. */
static int remove_stale(const struct sockaddr_un *address)
{
	_cleanup_close_ int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (fd < 0)
		return -errno;
	if (connect(fd, (const struct sockaddr *)address, sizeof(*address)) == 0 || errno == EAGAIN)
		return -EADDRINUSE;
	if (errno == ECONNREFUSED && unlink(address->sun_path) < 0)
		return -errno;
	return 0;
}

int serve_listen(struct serve *s, const char *path)
{
	_cleanup_close_ int directory = -1, fd = -1;
	struct sockaddr_un address;
	mode_t mask;
	int r = peer_address(path, &address, &directory);

	if (r >= 0)
		r = remove_stale(&address);
	if (r < 0)
		return r;
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return -errno;
	/* Who may connect may flush, and acknowledge losses. */
	mask = umask(0117);
	r = bind(fd, (const struct sockaddr *)&address, sizeof(address)) < 0 ? -errno : 0;
	umask(mask);
	if (r >= 0 && listen(fd, SERVE_MAX_CLIENTS) < 0)
		r = -errno;
	if (r >= 0)
		r = sd_event_add_io(s->event, &s->listen_source, fd, EPOLLIN, on_connection, s);
	if (r < 0)
		return r;
	s->listener = fd;
	fd = -1;
	return 0;
}

void serve_clients_free(struct serve *s)
{
	struct client *client;

	while ((client = TAILQ_FIRST(&s->clients)))
		client_free(client);
	sd_event_source_disable_unref(s->listen_source);
	safe_close(s->listener);
}
