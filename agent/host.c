/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "answer.h"
#include "channel.h"
#include "host.h"
#include "host-durable.h"
#include "host-json.h"
#include "log.h"

#define HOST_MAX_FLUSHES 64  /* flush commands not answered yet */
#define HOST_MAX_DEPTH   16  /* of a command's JSON */
#define HOST_MAX_ID      256 /* bytes of a command's id as JSON, which is kept until its answer */
#define PROTOCOL_VERSION 1

struct host {
	struct manager *manager;
	struct manager_listener listener;
	struct channel *channel;
	struct json_tokener *tokener;
	struct host_durables *durables;
	uint64_t sequence; /* of the last event */
	uint64_t missed;   /* events not delivered since the host was last told the state */
	bool complained;   /* of what this host sends */
	struct host_flush *flushes;
	unsigned int n_flushes;
};

struct host_part {
	struct host_flush *flush;
	struct request *request; /* NULL: answered */
};

/* A flush command: a request for each of its targets; answered when all of them are, or one fails. */
struct host_flush {
	struct host *host;
	struct host_flush *next;
	struct json_object *id;
	struct json_object *regions; /* what has been confirmed so far */
	const char *scope, *basis;
	uint64_t durable_usec; /* the earliest */
	unsigned int n_parts, n_waiting;
	struct host_part parts[];
};

/* ---- what is sent ---- */

static struct json_object *describe_agent(const struct host *h)
{
	struct json_object *o = json_object_new_object();
	char id[SD_ID128_STRING_MAX];

	json_add_string(o, "version", PMEM_AGENT_VERSION);
	json_object_object_add(o, "protocol", json_object_new_int(PROTOCOL_VERSION));
	json_add_string(o, "boot-id", sd_id128_to_string(manager_get_boot_id(h->manager), id));
	json_add_string(o, "instance", sd_id128_to_string(manager_get_instance(h->manager), id));
	json_add_string(o, "basis", manager_get_basis(h->manager));
	json_add_u64(o, "sequence", h->sequence);
	json_add_u64(o, "missed", h->missed);
	json_object_object_add(o, "regions", json_describe_regions(h->manager));
	return o;
}

static int send_object(struct host *h, struct json_object *o)
{
	if (!h->channel)
		return -ENOTCONN;
	return channel_send(h->channel,
			    json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE));
}

/* ---- events ---- */

static void add_timestamp(struct json_object *o)
{
	struct json_object *stamp = json_object_new_object();
	uint64_t now = now_usec(CLOCK_REALTIME);

	json_add_u64(stamp, "seconds", now / USEC_PER_SEC);
	json_add_u64(stamp, "microseconds", now % USEC_PER_SEC);
	json_object_object_add(o, "timestamp", stamp);
}

/* Takes `data` over. An event that finds no room is counted, and all after it, until the host can be told the state. */
static void send_event(struct host *h, const char *name, struct json_object *data)
{
	_cleanup_(json_putp) struct json_object *o = json_object_new_object();

	json_add_u64(data, "sequence", ++h->sequence);
	json_add_string(o, "event", name);
	json_object_object_add(o, "data", data);
	add_timestamp(o);
	if (h->missed > 0 || send_object(h, o) < 0)
		h->missed++;
}

static void tell_durable(struct manager_region *mr, const struct host_durable *d, void *userdata)
{
	struct json_object *data = json_name_region(mr);

	json_add_string(data, "scope", flush_scope_to_string(d->scope));
	json_add_string(data, "target", d->target);
	json_add_u64(data, "epoch", d->epoch);
	json_add_u64(data, "durable-usec", d->durable_usec);
	json_add_string(data, "basis", manager_region_get_basis(mr));
	send_event(userdata, "DURABLE", data);
}

static void on_manager_event(enum manager_event event, struct manager_region *mr, void *userdata)
{
	struct host *h = userdata;
	struct flush_status status;
	struct json_object *data;

	if (event == MANAGER_STATE || event == MANAGER_ROUND)
		return;
	if (event == MANAGER_DURABLE) {
		host_durables_add(h->durables, mr);
		return;
	}
	/* In the order in which it was. */
	host_durables_tell(h->durables, mr);
	manager_region_get_status(mr, &status);
	switch (event) {
	case MANAGER_REGION_ADDED:
		send_event(h, "REGION_ADDED", json_describe_region(mr));
		break;
	case MANAGER_REGION_REMOVED:
		host_durables_remove(h->durables, mr);
		send_event(h, "REGION_REMOVED", json_name_region(mr));
		break;
	case MANAGER_REGION_CHANGED:
		send_event(h, "REGION_CHANGED", json_describe_region(mr));
		break;
	case MANAGER_LOST:
		data = json_name_region(mr);
		json_add_u64(data, "epoch", status.epoch);
		json_add_loss(data, &status.loss);
		send_event(h, "LOST", data);
		break;
	case MANAGER_ACKNOWLEDGED:
		data = json_name_region(mr);
		json_add_u64(data, "loss", status.acknowledged);
		send_event(h, "ACKNOWLEDGED", data);
		break;
	case MANAGER_STALLED:
		data = json_name_region(mr);
		json_add_u64(data, "flushing-since-usec", status.in_flight_usec);
		send_event(h, "STALLED", data);
		break;
	case MANAGER_RECOVERED:
		send_event(h, "RECOVERED", json_describe_region(mr));
		break;
	case MANAGER_DURABLE:
	case MANAGER_ROUND:
	case MANAGER_STATE:
		break;
	}
}

/* ---- answers to commands ---- */

static int send_answer(struct host *h, const char *key, struct json_object *value, struct json_object *id)
{
	_cleanup_(json_putp) struct json_object *o = json_object_new_object();

	json_object_object_add(o, key, value);
	if (id)
		json_object_object_add(o, "id", json_object_get(id));
	return send_object(h, o);
}

static void send_error(struct host *h, const char *class, const char *description, struct json_object *id)
{
	struct json_object *error = json_object_new_object();

	json_add_string(error, "class", class);
	json_add_string(error, "desc", description);
	send_answer(h, "error", error, id);
}

static void send_refusal(struct host *h, enum pmem_agent_answer answer, const char *detail, struct json_object *id)
{
	const struct answer *a = answer_get(answer);

	send_error(h, a->name, detail && detail[0] ? detail : a->meaning, id);
}

static int command_query(struct host *h, struct json_object *arguments, struct json_object *id)
{
	if (send_answer(h, "return", describe_agent(h), id) == 0)
		h->missed = 0;
	return 0;
}

/* ---- flush ---- */

static void host_flush_free(struct host_flush *f)
{
	struct host *h = f->host;

	for (struct host_flush **p = &h->flushes; *p; p = &(*p)->next)
		if (*p == f) {
			*p = f->next;
			h->n_flushes--;
			break;
		}
	for (unsigned int i = 0; i < f->n_parts; i++)
		request_cancel(f->parts[i].request);
	json_object_put(f->id);
	json_object_put(f->regions);
	free(f);
}

static void answer_durable(struct host_flush *f)
{
	struct json_object *o = json_object_new_object();

	json_object_object_add(o, "regions", json_object_get(f->regions));
	json_add_string(o, "scope", f->scope);
	json_add_string(o, "basis", f->basis);
	json_add_u64(o, "durable-usec", f->durable_usec);
	send_answer(f->host, "return", o, f->id);
}

static void on_flushed(const struct request_result *result, void *userdata)
{
	struct host_part *part = userdata;
	struct host_flush *f = part->flush;

	part->request = NULL;
	f->n_waiting--;
	if (result->answer != PMEM_AGENT_DURABLE) {
		send_refusal(f->host, result->answer, result->detail, f->id);
		host_flush_free(f);
		return;
	}

	for (unsigned int i = 0; i < result->n_epochs; i++) {
		struct json_object *o = json_name_region(result->epochs[i].region);

		json_add_u64(o, "epoch", result->epochs[i].epoch);
		json_object_array_add(f->regions, o);
	}
	f->scope = flush_scope_to_string(result->scope);
	/* The weakest of them all. */
	if (!f->basis || strcmp(result->basis, "watched") != 0)
		f->basis = result->basis;
	if (f->durable_usec == 0 || result->durable_usec < f->durable_usec)
		f->durable_usec = result->durable_usec;
	if (f->n_waiting == 0) {
		answer_durable(f);
		host_flush_free(f);
	}
}

static struct host_flush *host_flush_new(struct host *h, unsigned int n_parts, struct json_object *id)
{
	struct host_flush *f = calloc(1, sizeof(*f) + n_parts * sizeof(f->parts[0]));

	if (!f)
		return NULL;
	f->host = h;
	f->id = json_object_get(id);
	f->regions = json_object_new_array();
	f->next = h->flushes;
	h->flushes = f;
	h->n_flushes++;
	return f;
}

/* A target of the command, by one of the three; all NULL but `mr` for a region. */
static int add_part(struct host_flush *f, struct manager_region *mr, const char *path,
		    char detail[static MOUNT_DETAIL_MAX])
{
	static const struct flush_caller caller = { .uid = 0 };
	struct host_part *part = &f->parts[f->n_parts];
	struct manager *m = f->host->manager;
	int r;

	part->flush = f;
	r = path ? manager_flush_path(m, path, &caller, on_flushed, part, &part->request, detail)
		 : manager_flush_region(m, mr, &caller, on_flushed, part, &part->request, detail);
	if (r != 0)
		return r;
	f->n_parts++;
	f->n_waiting++;
	return 0;
}

static int add_all(struct host_flush *f, char detail[static MOUNT_DETAIL_MAX])
{
	for (struct manager_region *mr = NULL; (mr = manager_next_region(f->host->manager, mr));) {
		int r;

		if (!manager_region_get(mr)->asynchronous)
			continue;
		r = add_part(f, mr, NULL, detail);
		if (r != 0)
			return r;
	}
	return 0;
}

static unsigned int count_regions(const struct manager *m)
{
	unsigned int n = 0;

	for (struct manager_region *mr = NULL; (mr = manager_next_region(m, mr));)
		n++;
	return n;
}

/* {"region": NAME}, {"path": MOUNT POINT}, or neither for every asynchronous region. */
static int command_flush(struct host *h, struct json_object *arguments, struct json_object *id)
{
	struct json_object *region = NULL, *path = NULL;
	char detail[MOUNT_DETAIL_MAX] = "";
	struct manager_region *mr = NULL;
	struct host_flush *f;
	int r;

	json_object_object_get_ex(arguments, "region", &region);
	json_object_object_get_ex(arguments, "path", &path);
	if (json_object_object_length(arguments) != !!region + !!path || (region && path) ||
	    (region && !json_object_is_type(region, json_type_string)) ||
	    (path && !json_object_is_type(path, json_type_string)))
		return -EINVAL;
	if (region) {
		mr = manager_find_region(h->manager, json_object_get_string(region));
		if (!mr) {
			send_refusal(h, PMEM_AGENT_NOT_FOUND, "no such region", id);
			return 0;
		}
	}
	if (h->n_flushes >= HOST_MAX_FLUSHES) {
		send_refusal(h, PMEM_AGENT_BUSY, "too many flush commands wait for their answer", id);
		return 0;
	}

	f = host_flush_new(h, region || path ? 1 : count_regions(h->manager), id);
	if (!f)
		return -ENOMEM;
	r = region || path ? add_part(f, mr, path ? json_object_get_string(path) : NULL, detail) : add_all(f, detail);
	if (r == 0 && f->n_parts > 0)
		return 0;
	if (r > 0)
		send_refusal(h, (enum pmem_agent_answer)r, detail, id);
	else if (r == 0)
		send_refusal(h, PMEM_AGENT_NOT_FOUND, "there is no asynchronous region", id);
	host_flush_free(f);
	return r < 0 ? r : 0;
}

/* ---- commands ---- */

/* 0; -EINVAL: the arguments are not the command's; another errno. */
static const struct command {
	const char *name;
	int (*run)(struct host *h, struct json_object *arguments, struct json_object *id);
	const char *arguments;
} commands[] = {
	{ "query", command_query, "none" },
	{ "flush", command_flush, "'region' or 'path', a string, or none for every asynchronous region" },
};

static void run_command(struct host *h, struct json_object *o)
{
	_cleanup_(json_putp) struct json_object *none = json_object_new_object();
	struct json_object *name = NULL, *arguments = NULL, *id = NULL;
	char text[256];
	int r;

	json_object_object_get_ex(o, "execute", &name);
	json_object_object_get_ex(o, "id", &id);
	if (!json_object_object_get_ex(o, "arguments", &arguments))
		arguments = none;
	if (strlen(json_object_to_json_string_ext(id, JSON_C_TO_STRING_PLAIN)) > HOST_MAX_ID) {
		snprintf(text, sizeof(text), "the id is longer than %d bytes", HOST_MAX_ID);
		send_error(h, "GenericError", text, NULL);
		return;
	}
	if (!json_object_is_type(name, json_type_string) || !json_object_is_type(arguments, json_type_object)) {
		send_error(h, "GenericError", "a command is {\"execute\": NAME, \"arguments\": {…}, \"id\": ANYTHING}",
			   id);
		return;
	}

	for (size_t i = 0; i < ARRAY_SIZE(commands); i++) {
		if (strcmp(commands[i].name, json_object_get_string(name)) != 0)
			continue;
		r = commands[i].run(h, arguments, id);
		if (r == -EINVAL) {
			snprintf(text, sizeof(text), "arguments of '%s': %s", commands[i].name, commands[i].arguments);
			send_error(h, "GenericError", text, id);
		} else if (r < 0) {
			send_error(h, "GenericError", strerrordesc_np(-r), id);
		}
		return;
	}
	send_error(h, "CommandNotFound", "known commands: query, flush", id);
}

static void on_line(struct channel *c, char *line, size_t size, void *userdata)
{
	struct host *h = userdata;
	_cleanup_(json_putp) struct json_object *o = NULL;

	json_tokener_reset(h->tokener);
	o = json_tokener_parse_ex(h->tokener, line, (int)size + 1);
	if (!json_object_is_type(o, json_type_object)) {
		send_error(h, "GenericError", "not a JSON object on a line", NULL);
		return;
	}
	run_command(h, o);
}

/* ---- the connection ---- */

static void greet(struct channel *c, void *userdata)
{
	struct host *h = userdata;
	_cleanup_(json_putp) struct json_object *o = json_object_new_object();

	h->complained = false;
	json_object_object_add(o, "pmem-agent", describe_agent(h));
	if (send_object(h, o) == 0)
		h->missed = 0;
}

static void on_reset(struct channel *c, void *userdata)
{
	greet(c, userdata);
}

/* What it asked for nobody waits for any more; the rounds go on. */
static void on_disconnected(struct channel *c, void *userdata)
{
	struct host *h = userdata;

	while (h->flushes)
		host_flush_free(h->flushes);
}

static void on_overlong(struct channel *c, void *userdata)
{
	struct host *h = userdata;

	if (!h->complained)
		log_daemon(LOG_WARNING, LOG_EVENT_HOST, "the host sends a line of more than %d bytes: ignored",
			   CHANNEL_LINE_MAX);
	h->complained = true;
	send_error(h, "GenericError", "the line is too long", NULL);
}

/* Room again: the state stands for what was missed. */
static void on_drained(struct channel *c, void *userdata)
{
	struct host *h = userdata;
	uint64_t missed = h->missed;
	struct json_object *data;

	if (missed == 0)
		return;
	data = json_object_new_object();
	json_add_u64(data, "count", missed);
	json_object_object_add(data, "regions", json_describe_regions(h->manager));
	h->missed = 0;
	send_event(h, "MISSED", data);
	if (h->missed > 0)
		h->missed += missed;
}

static const struct channel_callbacks callbacks = {
	.connected = greet,
	.disconnected = on_disconnected,
	.line = on_line,
	.reset = on_reset,
	.overlong = on_overlong,
	.drained = on_drained,
};

void host_open(struct host *h)
{
	const char *path = manager_get_conf(h->manager)->host_port;
	int r;

	if (h->channel && !channel_is_gone(h->channel))
		return;
	h->channel = channel_free(h->channel);
	if (!path[0])
		return;
	r = channel_open(manager_get_event(h->manager), path, &callbacks, h, &h->channel);
	if (r < 0 && r != -ENOENT)
		log_daemon(LOG_WARNING, LOG_EVENT_HOST, "%s cannot be opened, so the host is not told: %s", path,
			   strerrordesc_np(-r));
}

void host_shutdown(struct host *h, bool clean)
{
	struct json_object *data = json_object_new_object();

	host_durables_tell(h->durables, NULL);
	json_object_object_add(data, "clean", json_object_new_boolean(clean));
	json_object_object_add(data, "regions", json_describe_regions(h->manager));
	send_event(h, "SHUTDOWN", data);
}

int host_new(struct manager *m, struct host **ret)
{
	_cleanup_(host_freep) struct host *h = calloc(1, sizeof(*h));
	int r;

	if (!h)
		return -ENOMEM;
	h->manager = m;
	r = host_durables_new(manager_get_event(m), tell_durable, h, &h->durables);
	if (r < 0)
		return r;
	h->tokener = json_tokener_new_ex(HOST_MAX_DEPTH);
	if (!h->tokener)
		return -ENOMEM;
	h->listener = (struct manager_listener){ .notify = on_manager_event, .userdata = h };
	manager_add_listener(m, &h->listener);
	host_open(h);
	*ret = h;
	h = NULL;
	return 0;
}

struct host *host_free(struct host *h)
{
	if (!h)
		return NULL;
	manager_remove_listener(h->manager, &h->listener);
	while (h->flushes)
		host_flush_free(h->flushes);
	host_durables_free(h->durables);
	channel_free(h->channel);
	if (h->tokener)
		json_tokener_free(h->tokener);
	free(h);
	return NULL;
}
