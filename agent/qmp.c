/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qmp: what QEMU has behind the memory devices of its guest
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "json-make.h"
#include "peer.h"
#include "qmp.h"

#define QMP_LINE    (256 * 1024)
#define REDIAL_USEC USEC_PER_SEC
#define EVERY_USEC  USEC_PER_SEC

/* What is asked of each backend. A property that this QEMU does not have answers with an error. */
enum property { PATH, SHARE, PMEM, READONLY, N_PROPERTIES };
static const char *const properties[N_PROPERTIES] = { "mem-path", "share", "pmem", "readonly" };

struct qmp {
	sd_event_source *timer;
	struct peer *peer;
	void (*found)(const struct backing_info *infos, unsigned int n, void *userdata);
	void *userdata;
	int error;
	bool ready; /* it has taken qmp_capabilities */
	bool again; /* asked for while being under way */
	uint64_t turn;
	unsigned int n_devices, n_open; /* answers that are still to come */
	struct backing_info *devices;   /* QMP_MAX_DEVICES */
};

static void ask(struct qmp *q, const char *command, const char *path, const char *property, uint64_t id)
{
	struct json_object *o = json_new_object(), *arguments;

	json_add_string(o, "execute", command);
	if (path) {
		arguments = json_new_object();
		json_add_string(arguments, "path", path);
		json_add_string(arguments, "property", property);
		json_add(o, "arguments", arguments);
	}
	json_add_u64(o, "id", id);
	if (peer_send(q->peer, o) == 0)
		q->n_open++;
	json_object_put(o);
}

/* Ids: the turn, the device, the property; 0 of the last two is the list of devices. */
static uint64_t make_id(const struct qmp *q, unsigned int device, unsigned int property)
{
	return q->turn << 16 | (uint64_t)device << 8 | property;
}

static void begin(struct qmp *q)
{
	if (!q->ready)
		return;
	if (q->n_open > 0) {
		q->again = true;
		return;
	}
	q->again = false;
	q->turn++;
	q->n_devices = 0;
	ask(q, "query-memory-devices", NULL, NULL, make_id(q, 0, 0));
}

static void take_device(struct qmp *q, struct json_object *device)
{
	struct json_object *data = json_get(device, "data", json_type_object);
	const char *type = json_get_string(device, "type", ""), *backend = json_get_string(data, "memdev", NULL);
	struct backing_info *info = &q->devices[q->n_devices];
	bool virtio = strcmp(type, "virtio-pmem") == 0;

	if (!backend || (!virtio && strcmp(type, "nvdimm") != 0) || q->n_devices == QMP_MAX_DEVICES)
		return;
	*info = (struct backing_info){
		.address = json_get_u64(data, virtio ? "memaddr" : "addr", 0),
		.size = json_get_u64(data, "size", 0),
		.pid = peer_get_pid(q->peer),
	};
	snprintf(info->name, sizeof(info->name), "%s", json_get_string(data, "id", ""));
	q->n_devices++;
	for (unsigned int i = 0; i < N_PROPERTIES; i++)
		ask(q, "qom-get", backend, properties[i], make_id(q, q->n_devices, i));
}

static void take_devices(struct qmp *q, struct json_object *answer)
{
	struct json_object *array = json_get(answer, "return", json_type_array);

	for (size_t i = 0; array && i < json_object_array_length(array); i++)
		take_device(q, json_object_array_get_idx(array, i));
}

static void take_property(struct backing_info *info, enum property property, struct json_object *answer)
{
	struct json_object *value = json_get(answer, "return", json_type_boolean);
	enum backing_answer said = !value ? BACKING_UNSAID : json_object_get_boolean(value) ? BACKING_YES : BACKING_NO;

	switch (property) {
	case PATH:
		snprintf(info->path, sizeof(info->path), "%s", json_get_string(answer, "return", ""));
		break;
	case SHARE:
		info->share = said;
		break;
	case PMEM:
		info->pmem = said;
		break;
	case READONLY:
		info->readonly = said;
		break;
	case N_PROPERTIES:
		break;
	}
}

static void take_answer(struct qmp *q, struct json_object *o)
{
	uint64_t id = json_get_u64(o, "id", 0);
	unsigned int device = id >> 8 & 0xFF, property = id & 0xFF;

	if (!q->ready) {
		q->ready = true;
		begin(q);
		return;
	}
	if (id >> 16 != q->turn || q->n_open == 0)
		return;
	q->n_open--;
	if (device == 0)
		take_devices(q, o);
	else if (device <= q->n_devices && property < N_PROPERTIES)
		take_property(&q->devices[device - 1], property, o);
	if (q->n_open > 0)
		return;
	if (q->again)
		qmp_refresh(q);
	q->found(q->devices, q->n_devices, q->userdata);
}

static void on_object(struct peer *p, struct json_object *o, void *userdata)
{
	struct qmp *q = userdata;
	struct json_object *unused;

	if (json_get(o, "QMP", json_type_object)) {
		ask(q, "qmp_capabilities", NULL, NULL, 0);
		q->n_open = 0;
	} else if (json_object_object_get_ex(o, "return", &unused) || json_object_object_get_ex(o, "error", &unused)) {
		take_answer(q, o);
	}
}

static void on_connected(struct peer *p, void *userdata)
{
	struct qmp *q = userdata;

	q->error = 0;
}

static void on_closed(struct peer *p, int error, void *userdata)
{
	struct qmp *q = userdata;

	q->error = error ?: ECONNRESET;
	q->ready = q->again = false;
	q->n_open = 0;
	sd_event_source_set_enabled(q->timer, SD_EVENT_OFF);
}

static const struct peer_callbacks callbacks = {
	.connected = on_connected,
	.closed = on_closed,
	.object = on_object,
};

static int on_timer(sd_event_source *source, uint64_t usec, void *userdata)
{
	begin(userdata);
	return 0;
}

void qmp_refresh(struct qmp *q)
{
	int enabled = SD_EVENT_OFF;

	sd_event_source_get_enabled(q->timer, &enabled);
	if (enabled != SD_EVENT_OFF)
		return;
	sd_event_source_set_time_relative(q->timer, EVERY_USEC);
	sd_event_source_set_enabled(q->timer, SD_EVENT_ONESHOT);
}

int qmp_get_error(const struct qmp *q)
{
	return q->error;
}

int qmp_new(sd_event *event, const char *path,
	    void (*found)(const struct backing_info *infos, unsigned int n, void *userdata), void *userdata,
	    struct qmp **ret)
{
	_cleanup_(qmp_freep) struct qmp *q = calloc(1, sizeof(*q));
	int r;

	if (!q)
		return -ENOMEM;
	q->found = found;
	q->userdata = userdata;
	q->error = ENOTCONN;
	q->devices = calloc(QMP_MAX_DEVICES, sizeof(*q->devices));
	if (!q->devices)
		return -ENOMEM;
	r = sd_event_add_time(event, &q->timer, CLOCK_MONOTONIC, UINT64_MAX, 1, on_timer, q);
	if (r >= 0)
		r = sd_event_source_set_enabled(q->timer, SD_EVENT_OFF);
	if (r >= 0)
		r = peer_dial(event, path, REDIAL_USEC, (struct peer_limits){ .line = QMP_LINE, .queue = QMP_LINE },
			      &callbacks, q, &q->peer);
	if (r < 0)
		return r;
	*ret = q;
	q = NULL;
	return 0;
}

struct qmp *qmp_free(struct qmp *q)
{
	if (!q)
		return NULL;
	peer_free(q->peer);
	sd_event_source_disable_unref(q->timer);
	free(q->devices);
	free(q);
	return NULL;
}
