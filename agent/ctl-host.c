/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * ctl-host: pmemctl on the host: the connection, and what the agent says there
 */
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <string.h>

#include "answer.h"
#include "ctl-host.h"
#include "peer.h"

#define GREETING_USEC (10 * USEC_PER_SEC)
#define REDIAL_USEC   (500 * USEC_PER_MSEC)

struct ctl_host {
	const char *path;
	sd_event *event;
	struct peer *peer;
	struct json_object *greeting, *inbox; /* NULL before it came; an array */
	bool closed, retry;
	int error; /* why it was closed */
	unsigned int n_ids;
};

/* ---- the connection ---- */

static bool is_same_instance(struct json_object *a, struct json_object *b)
{
	return a && strcmp(json_get_string(a, "instance", ""), json_get_string(b, "instance", "")) == 0;
}

/* One that says what we know already is the answer to our resync. */
static void take_greeting(struct ctl_host *h, struct json_object *greeting)
{
	if (is_same_instance(h->greeting, greeting))
		return;
	if (h->greeting)
		h->closed = true; /* for the commands that were given */
	json_object_put(h->greeting);
	h->greeting = json_object_get(greeting);
}

static void on_object(struct peer *p, struct json_object *o, void *userdata)
{
	struct ctl_host *h = userdata;
	struct json_object *greeting = json_get(o, "pmem-agent", json_type_object);

	if (greeting)
		take_greeting(h, greeting);
	json_append(h->inbox, json_object_get(o));
}

static void on_connected(struct peer *p, void *userdata)
{
	peer_send_resync(p);
}

static void on_closed(struct peer *p, int error, void *userdata)
{
	struct ctl_host *h = userdata;

	h->closed = true;
	h->error = error;
	json_object_put(h->greeting);
	h->greeting = NULL;
}

static const struct peer_callbacks callbacks = {
	.connected = on_connected,
	.closed = on_closed,
	.object = on_object,
};

struct json_object *ctl_host_get_greeting(const struct ctl_host *h)
{
	return h->greeting;
}

int ctl_host_next(struct ctl_host *h, uint64_t until, struct json_object **ret)
{
	for (;;) {
		uint64_t now = now_usec(CLOCK_MONOTONIC);
		int r;

		/* What came before the end is answered before it. */
		if (json_object_array_length(h->inbox) > 0) {
			*ret = json_object_get(json_object_array_get_idx(h->inbox, 0));
			json_object_array_del_idx(h->inbox, 0, 1);
			return 0;
		}
		if (h->closed) {
			h->closed = false;
			return -ECONNRESET;
		}
		if (now >= until)
			return -ETIMEDOUT;
		r = sd_event_run(h->event, until == UINT64_MAX ? UINT64_MAX : until - now);
		if (r < 0)
			return r;
	}
}

/* Only for what to say: QEMU leaves a second one who connects waiting for as long as the first stays. */
static bool waits_to_be_accepted(const char *path)
{
	const char *name = strrchr(path, '/') ? strrchr(path, '/') + 1 : path;
	FILE *f = fopen("/proc/net/unix", "re");
	bool waits = false;
	char line[512];

	while (f && !waits && fgets(line, sizeof(line), f)) {
		char state[8] = "", bound[256] = "";
		const char *last;

		if (sscanf(line, "%*s %*s %*s %*s %*s %7s %*s %255s", state, bound) != 2)
			continue;
		last = strrchr(bound, '/');
		waits = strcmp(state, "02") == 0 && strcmp(last ? last + 1 : bound, name) == 0;
	}
	if (f)
		fclose(f);
	return waits;
}

static int not_connected(const struct ctl_host *h)
{
	switch (h->error) {
	case ENOENT:
		ctl_error(h->path, "there is no such socket; is the virtual machine running?");
		break;
	case ECONNREFUSED:
		ctl_error(h->path, "nobody listens there any more; is the virtual machine running?");
		break;
	case EBUSY:
		ctl_error(h->path, "busy: others wait to be connected too; see \"pmemctl serve\" for several at once");
		break;
	case 0:
		ctl_error(h->path, "it was closed before the agent greeted; is it the socket of io.pmem.agent.0?");
		break;
	default:
		ctl_error(h->path, "%s", strerrordesc_np(h->error));
	}
	return CTL_EXIT_FAILURE;
}

static int not_greeted(const struct ctl_host *h, bool garbage)
{
	if (garbage)
		ctl_error(h->path, "what answers there is no pmem-agent");
	else if (waits_to_be_accepted(h->path))
		ctl_error(h->path, "busy: another program is connected, and QEMU takes one; see \"pmemctl serve\"");
	else
		ctl_error(h->path,
			  "no agent answers in the guest: see \"systemctl status pmem-agent\" there, and if this is "
			  "the socket of \"pmemctl serve\" what that says");
	return CTL_EXIT_FAILURE;
}

static int check_protocol(const struct ctl_host *h)
{
	uint64_t protocol = json_get_u64(h->greeting, "protocol", 0);

	if (protocol > 0)
		return 0;
	ctl_error(h->path, "the agent does not say which protocol it speaks: this pmemctl can't talk to it");
	return CTL_EXIT_FAILURE;
}

static int wait_for_greeting(struct ctl *c, struct ctl_host *h)
{
	uint64_t until = now_usec(CLOCK_MONOTONIC) + (c->timeout_usec ?: GREETING_USEC);
	bool garbage = false;

	if (c->retry && !c->timeout_usec)
		until = UINT64_MAX;
	for (;;) {
		_cleanup_(json_unrefp) struct json_object *o = NULL;
		int r = ctl_host_next(h, until, &o);

		if (r == -ECONNRESET && !h->retry)
			return not_connected(h);
		if (r == -ETIMEDOUT)
			return h->error && h->retry ? not_connected(h) : not_greeted(h, garbage);
		if (r < 0 && r != -ECONNRESET)
			return CTL_EXIT_FAILURE;
		if (h->greeting)
			return check_protocol(h);
		/* Events of before, or something else altogether. */
		garbage |= o && !json_get_string(o, "event", NULL) && !json_get(o, "return", json_type_object) &&
			   !json_get(o, "error", json_type_object);
	}
}

int ctl_host_open(struct ctl *c)
{
	struct ctl_host *h = calloc(1, sizeof(*h));
	int r;

	if (!h)
		return CTL_EXIT_FAILURE;
	c->link = h;
	h->path = c->host;
	h->retry = c->retry;
	h->inbox = json_new_array();
	signal(SIGPIPE, SIG_IGN);
	r = sd_event_new(&h->event);
	if (r >= 0)
		r = peer_dial(h->event, h->path, h->retry ? REDIAL_USEC : 0,
			      (struct peer_limits){ .line = CTL_HOST_LINE, .queue = CTL_HOST_LINE }, &callbacks, h,
			      &h->peer);
	if (r < 0) {
		ctl_error(h->path, "%s", strerrordesc_np(-r));
		return CTL_EXIT_FAILURE;
	}
	return wait_for_greeting(c, h);
}

void ctl_host_close(struct ctl *c)
{
	struct ctl_host *h = c->link;

	if (!h)
		return;
	peer_free(h->peer);
	sd_event_unref(h->event);
	json_object_put(h->greeting);
	json_object_put(h->inbox);
	free(h);
	c->link = NULL;
}

/* ---- commands ---- */

char *ctl_host_new_id(struct ctl_host *h)
{
	return ctl_format("pmemctl-%d-%" PRIu64 "-%u", getpid(), now_usec(CLOCK_REALTIME), h->n_ids++);
}

int ctl_host_send(struct ctl_host *h, const char *name, struct json_object *arguments, const char *id)
{
	_cleanup_(json_unrefp) struct json_object *o = json_new_object();

	json_add(o, "execute", json_object_new_string(name));
	json_add(o, "arguments", arguments);
	json_add(o, "id", json_object_new_string(id));
	return peer_send(h->peer, o);
}

const char *ctl_host_get_id(struct json_object *answer)
{
	if (!json_get(answer, "return", json_type_object) && !json_get(answer, "error", json_type_object))
		return NULL;
	return json_get_string(answer, "id", NULL);
}

void ctl_host_set_error(sd_bus_error *error, struct json_object *answer)
{
	struct json_object *e = json_get(answer, "error", json_type_object);
	_cleanup_free_ char *name = ctl_format(ANSWER_ERROR_PREFIX "%s", json_get_string(e, "class", "Unknown"));
	const char *description = json_get_string(e, "desc", "");

	if (strcmp(json_get_string(e, "class", ""), "CommandNotFound") == 0)
		sd_bus_error_set(error, SD_BUS_ERROR_UNKNOWN_METHOD, "the agent in the guest is too old for this");
	else
		sd_bus_error_set(error, name ?: ANSWER_ERROR_PREFIX "Unknown", description);
}

int ctl_host_call(struct ctl *c, const char *name, struct json_object *arguments, sd_bus_error *error)
{
	uint64_t until = now_usec(CLOCK_MONOTONIC) + (c->timeout_usec ?: GREETING_USEC);
	_cleanup_free_ char *id = ctl_host_new_id(c->link);
	int r = id ? ctl_host_send(c->link, name, arguments, id) : -ENOMEM;

	while (r >= 0) {
		_cleanup_(json_unrefp) struct json_object *o = NULL;
		const char *answered;

		r = ctl_host_next(c->link, until, &o);
		answered = r < 0 ? NULL : ctl_host_get_id(o);
		if (!answered || strcmp(answered, id) != 0)
			continue;
		if (json_get(o, "error", json_type_object))
			ctl_host_set_error(error, o);
		return 0;
	}
	sd_bus_error_set(error, ANSWER_ERROR_PREFIX "Unknown",
			 r == -ETIMEDOUT ? "the agent has not answered in time"
					 : "the connection to the agent is gone");
	return 0;
}

/* ---- regions ---- */

static const struct {
	const char *key;
	enum { TEXT, U64, I32, FLAG } type;
	size_t offset;
} members[] = {
	{ "region", TEXT, offsetof(struct ctl_region, name) },
	{ "kind", TEXT, offsetof(struct ctl_region, kind) },
	{ "method", TEXT, offsetof(struct ctl_region, method) },
	{ "attestation", TEXT, offsetof(struct ctl_region, attestation) },
	{ "state", TEXT, offsetof(struct ctl_region, state) },
	{ "origin", TEXT, offsetof(struct ctl_region, loss_origin) },
	{ "address", U64, offsetof(struct ctl_region, resource) },
	{ "size", U64, offsetof(struct ctl_region, size) },
	{ "epoch", U64, offsetof(struct ctl_region, epoch) },
	{ "durable-usec", U64, offsetof(struct ctl_region, durable_usec) },
	{ "flushing-since-usec", U64, offsetof(struct ctl_region, flushing_since_usec) },
	{ "acknowledged", U64, offsetof(struct ctl_region, acknowledged) },
	{ "loss", U64, offsetof(struct ctl_region, loss) },
	{ "loss-usec", U64, offsetof(struct ctl_region, loss_usec) },
	{ "loss-epoch", U64, offsetof(struct ctl_region, loss_epoch) },
	{ "loss-round", U64, offsetof(struct ctl_region, loss_round) },
	{ "errno", I32, offsetof(struct ctl_region, loss_errno) },
	{ "asynchronous", FLAG, offsetof(struct ctl_region, asynchronous) },
	{ "loss-earlier-boot", FLAG, offsetof(struct ctl_region, loss_earlier_boot) },
};

static void read_member(struct json_object *value, unsigned int i, struct ctl_region *region)
{
	void *field = (char *)region + members[i].offset;

	if (members[i].type == TEXT && json_object_is_type(value, json_type_string))
		*(char **)field = strdup(json_object_get_string(value));
	else if (members[i].type == U64 && json_object_is_type(value, json_type_int))
		*(uint64_t *)field = json_object_get_uint64(value);
	else if (members[i].type == I32 && json_object_is_type(value, json_type_int))
		*(int32_t *)field = json_object_get_int(value);
	else if (members[i].type == FLAG && json_object_is_type(value, json_type_boolean))
		*(int *)field = json_object_get_boolean(value);
}

static char *join(struct json_object *array)
{
	char *text = NULL;

	for (size_t i = 0; array && i < json_object_array_length(array); i++) {
		const char *line = json_object_get_string(json_object_array_get_idx(array, i));
		char *more = ctl_format("%s%s%s", text ?: "", text ? "\n" : "", line ?: "");

		free(text);
		text = more;
	}
	return text;
}

int ctl_host_read_region(struct json_object *o, struct ctl_region *region)
{
	region->resource = UINT64_MAX;
	for (unsigned int i = 0; i < ARRAY_SIZE(members); i++) {
		struct json_object *value;

		if (json_object_object_get_ex(o, members[i].key, &value))
			read_member(value, i, region);
	}
	region->evidence = join(json_get(o, "evidence", json_type_array));
	return region->name ? 0 : -EBADMSG;
}

int ctl_host_get_regions(struct ctl *c, struct ctl_regions *ret)
{
	struct json_object *array = json_get(c->link->greeting, "regions", json_type_array);
	_cleanup_(ctl_regions_clear) struct ctl_regions list = { 0 };
	size_t n = array ? json_object_array_length(array) : 0;

	list.regions = calloc(n + 1, sizeof(*list.regions));
	if (!list.regions)
		return CTL_EXIT_FAILURE;
	for (size_t i = 0; i < n; i++) {
		struct ctl_region *region = &list.regions[list.n_regions++];

		if (ctl_host_read_region(json_object_array_get_idx(array, i), region) < 0 || !region->state ||
		    !region->method) {
			ctl_error(c->host, "cannot read what the agent says; is it of another version?");
			return CTL_EXIT_FAILURE;
		}
	}
	*ret = list;
	list = (struct ctl_regions){ 0 };
	return 0;
}
