/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <errno.h>
#include <string.h>

#include "host-private.h"
#include "log.h"

struct json_object *host_describe(const struct host *h)
{
	struct json_object *o = json_new_object(), *features = json_new_array();
	char id[SD_ID128_STRING_MAX];

	json_add_string(o, "version", PMEM_AGENT_VERSION);
	json_add(o, "protocol", json_object_new_int(HOST_PROTOCOL));
	json_append_string(features, "serve-flush");
	json_append_string(features, "serve-confirm");
	json_add(o, "features", features);
	json_add_string(o, "boot-id", sd_id128_to_string(manager_get_boot_id(h->manager), id));
	json_add_string(o, "instance", sd_id128_to_string(manager_get_instance(h->manager), id));
	json_add_string(o, "basis", manager_get_basis(h->manager));
	json_add_u64(o, "sequence", h->sequence);
	json_add_u64(o, "missed", h->missed);
	json_add(o, "regions", json_describe_regions(h->manager));
	return o;
}

int host_send(struct host *h, struct json_object *o)
{
	if (!h->channel)
		return -ENOTCONN;
	return channel_send(h->channel, json_text(o, JSON_C_TO_STRING_NOSLASHESCAPE));
}

static void greet(struct host *h)
{
	_cleanup_(json_unrefp) struct json_object *o = json_new_object();

	h->complained = false;
	json_add(o, "pmem-agent", host_describe(h));
	h->greeting_due = host_send(h, o) < 0;
	if (h->greeting_due)
		return;
	h->missed = 0;
	h->answers_missed = 0;
}

/* Whatever happened to the guest while nobody was connected, to be restored from a snapshot looks the same. */
static void on_connected(struct channel *c, void *userdata)
{
	struct host *h = userdata;
	int r = manager_new_instance(h->manager);

	if (r < 0)
		log_daemon(LOG_WARNING, LOG_EVENT_HOST, "no new instance can be begun: %s", strerrordesc_np(-r));
	greet(h);
}

/* It may be another program, that was too quick to be seen coming: what the one before it said is not its word. */
static void on_reset(struct channel *c, void *userdata)
{
	struct host *h = userdata;

	host_forget_flushes(h, NULL);
	manager_forget_host(h->manager);
	greet(h);
}

/* What it asked for nobody waits for any more; the rounds go on. */
static void on_disconnected(struct channel *c, void *userdata)
{
	struct host *h = userdata;

	host_forget_flushes(h, NULL);
	manager_forget_host(h->manager);
}

static void on_line(struct channel *c, char *line, size_t size, void *userdata)
{
	struct host *h = userdata;
	_cleanup_(json_unrefp) struct json_object *o = NULL;

	o = json_parse(h->tokener, line, size + 1);
	if (json_object_is_type(o, json_type_object))
		host_run_command(h, o);
	else
		host_send_error(h, "GenericError", "not a JSON object on a line", NULL);
}

static void on_overlong(struct channel *c, void *userdata)
{
	struct host *h = userdata;

	if (!h->complained)
		log_daemon(LOG_WARNING, LOG_EVENT_HOST, "the host sends a line of more than %d bytes: ignored",
			   CHANNEL_LINE_MAX);
	h->complained = true;
	host_send_error(h, "GenericError", "the line is too long", NULL);
}

static void on_drained(struct channel *c, void *userdata)
{
	struct host *h = userdata;

	if (h->greeting_due)
		greet(h);
	else
		host_send_missed(h);
	manager_host_ask(h->manager);
}

static const struct channel_callbacks callbacks = {
	.connected = on_connected,
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
	struct json_object *data = json_new_object();

	host_durables_tell(h->durables, NULL);
	json_add_bool(data, "clean", clean);
	json_add(data, "regions", json_describe_regions(h->manager));
	host_send_event(h, "SHUTDOWN", data);
}

int host_new(struct manager *m, struct host **ret)
{
	_cleanup_(host_freep) struct host *h = calloc(1, sizeof(*h));
	int r;

	if (!h)
		return -ENOMEM;
	h->manager = m;
	TAILQ_INIT(&h->flushes);
	TAILQ_INIT(&h->remembered);
	r = host_durables_new(manager_get_event(m), host_tell_durable, h, &h->durables);
	if (r < 0)
		return r;
	h->tokener = json_line_tokener(HOST_MAX_DEPTH);
	if (!h->tokener)
		return -ENOMEM;
	h->listener = (struct manager_listener){ .notify = host_on_manager_event, .userdata = h };
	manager_add_listener(m, &h->listener);
	manager_set_host(m, &(struct manager_host){ .ask = host_ask, .userdata = h });
	host_open(h);
	*ret = h;
	h = NULL;
	return 0;
}

struct host *host_free(struct host *h)
{
	if (!h)
		return NULL;
	manager_forget_host(h->manager);
	manager_remove_listener(h->manager, &h->listener);
	host_forget_flushes(h, NULL);
	host_durables_free(h->durables);
	channel_free(h->channel);
	if (h->tokener)
		json_tokener_free(h->tokener);
	free(h);
	return NULL;
}
