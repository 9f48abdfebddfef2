/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * host-command: what the host commands, and how it is answered
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "host-private.h"
#include "log.h"

#define MAX_ERRNO 4095

/* ---- answers ---- */

/* Takes `value` over. One that finds no room is counted: the host has to ask again. */
void host_send_answer(struct host *h, const char *key, struct json_object *value, struct json_object *id)
{
	_cleanup_(json_unrefp) struct json_object *o = json_new_object();

	json_add(o, key, value);
	if (id)
		json_add(o, "id", json_object_get(id));
	if (host_send(h, o) == -ENOBUFS)
		h->answers_missed++;
}

void host_send_error(struct host *h, const char *class, const char *description, struct json_object *id)
{
	struct json_object *error = json_new_object();

	json_add_string(error, "class", class);
	json_add_string(error, "desc", description);
	host_send_answer(h, "error", error, id);
}

void host_send_refusal(struct host *h, enum pmem_agent_answer answer, const char *detail, struct json_object *id)
{
	const struct answer *a = answer_get(answer);

	host_send_error(h, a->name, detail && detail[0] ? detail : a->meaning, id);
}

/* ---- arguments ---- */

bool host_read_u64(struct json_object *o, uint64_t *ret)
{
	if (!json_object_is_type(o, json_type_int) || json_object_get_int64(o) < 0)
		return false;
	*ret = json_object_get_uint64(o);
	return true;
}

static struct manager_region *find_address(const struct manager *m, uint64_t address)
{
	struct manager_region *mr = NULL;

	while (address != REGION_UNKNOWN_RESOURCE && (mr = manager_next_region(m, mr)))
		if (manager_region_get(mr)->resource == address)
			return mr;
	return NULL;
}

int host_find_region(struct host *h, struct json_object *arguments, struct manager_region **ret)
{
	struct json_object *name = NULL, *address = NULL;
	uint64_t number;

	json_object_object_get_ex(arguments, "region", &name);
	json_object_object_get_ex(arguments, "address", &address);
	*ret = NULL;
	if (!json_object_object_get_ex(arguments, "region", NULL) &&
	    !json_object_object_get_ex(arguments, "address", NULL))
		return 0;
	if ((name && address) || (name && !json_object_is_type(name, json_type_string)) ||
	    (!name && !host_read_u64(address, &number)))
		return -EINVAL;
	*ret = name ? manager_find_region(h->manager, json_object_get_string(name)) : find_address(h->manager, number);
	return *ret ? 0 : -ENOENT;
}

/* As host_find_region(), and there must be one, and none of the members but these. */
static int read_region(struct host *h, struct json_object *arguments, const char *const *known, size_t n_known,
		       struct manager_region **ret)
{
	int n = json_object_object_length(arguments), r;

	for (size_t i = 0; i < n_known; i++)
		n -= json_object_object_get_ex(arguments, known[i], NULL);
	r = host_find_region(h, arguments, ret);
	/* A region that isn't there is one that was named. */
	return n != 1 || (r == 0 && !*ret) ? -EINVAL : r;
}

static int read_fact(struct json_object *arguments, const char *name, enum region_fact *ret)
{
	struct json_object *value;

	*ret = REGION_FACT_UNKNOWN;
	if (!json_object_object_get_ex(arguments, name, &value))
		return 0;
	if (!json_object_is_type(value, json_type_boolean))
		return -EINVAL;
	*ret = json_object_get_boolean(value) ? REGION_FACT_YES : REGION_FACT_NO;
	return 0;
}

/* ---- commands ---- */

static int command_query(struct host *h, struct json_object *arguments, struct json_object *id)
{
	if (json_object_object_length(arguments) > 0)
		return -EINVAL;
	host_send_answer(h, "return", host_describe(h), id);
	return 0;
}

static int read_features(struct json_object *features, bool *ret_flush, bool *ret_confirm, struct json_object *accepted)
{
	size_t n = json_object_is_type(features, json_type_array) ? json_object_array_length(features) : SIZE_MAX;

	if (n > HOST_MAX_FEATURES)
		return -EINVAL;
	for (size_t i = 0; i < n; i++) {
		struct json_object *name = json_object_array_get_idx(features, i);
		bool *known = NULL;

		if (!json_object_is_type(name, json_type_string))
			return -EINVAL;
		if (strcmp(json_object_get_string(name), "serve-flush") == 0)
			known = ret_flush;
		else if (strcmp(json_object_get_string(name), "serve-confirm") == 0)
			known = ret_confirm;
		if (known && !*known)
			json_append(accepted, json_object_get(name));
		if (known)
			*known = true;
	}
	return 0;
}

static int command_negotiate(struct host *h, struct json_object *arguments, struct json_object *id)
{
	_cleanup_(json_unrefp) struct json_object *accepted = json_new_array();
	struct json_object *protocol = NULL, *features = NULL, *o;
	bool flush = false, confirm = false;
	uint64_t version = 1;

	json_object_object_get_ex(arguments, "protocol", &protocol);
	json_object_object_get_ex(arguments, "features", &features);
	if (json_object_object_length(arguments) != !!protocol + !!features ||
	    (protocol && (!host_read_u64(protocol, &version) || version == 0)) ||
	    (features && read_features(features, &flush, &confirm, accepted) < 0))
		return -EINVAL;
	o = json_new_object();
	json_add_u64(o, "protocol", version < HOST_PROTOCOL ? version : HOST_PROTOCOL);
	json_add(o, "features", json_object_get(accepted));
	host_send_answer(h, "return", o, id);
	manager_host_offers(h->manager, flush, confirm);
	return 0;
}

static int command_acknowledge(struct host *h, struct json_object *arguments, struct json_object *id)
{
	static const char *const known[] = { "loss" };
	char detail[MOUNT_DETAIL_MAX] = "";
	struct json_object *loss = NULL, *o;
	struct flush_status status;
	struct manager_region *mr;
	uint64_t number;
	int r = read_region(h, arguments, known, ARRAY_SIZE(known), &mr);

	if (r < 0)
		return r;
	json_object_object_get_ex(arguments, "loss", &loss);
	if (!host_read_u64(loss, &number))
		return -EINVAL;
	manager_region_get_status(mr, &status);
	/* The host says it again, since it has no answer. */
	r = number > 0 && status.acknowledged == number && status.loss.number == 0
		? 0
		: manager_acknowledge(h->manager, mr, number, detail);
	if (r > 0) {
		host_send_refusal(h, (enum pmem_agent_answer)r, detail, id);
		return 0;
	}
	if (r < 0)
		return r;
	o = json_new_object();
	json_add_u64(o, "acknowledged", number);
	host_send_answer(h, "return", o, id);
	return 0;
}

static int read_type(struct json_object *arguments, enum region_backing_type *ret)
{
	struct json_object *type = NULL;

	json_object_object_get_ex(arguments, "type", &type);
	if (!json_object_is_type(type, json_type_string))
		return -EINVAL;
	if (strcmp(json_object_get_string(type), "file") == 0)
		*ret = REGION_BACKING_FILE;
	else if (strcmp(json_object_get_string(type), "ram") == 0)
		*ret = REGION_BACKING_RAM;
	else
		return -EINVAL;
	return 0;
}

static int command_set_backing(struct host *h, struct json_object *arguments, struct json_object *id)
{
	static const char *const known[] = { "type", "share", "pmem", "read-only", "served" };
	struct region_backing backing = {};
	struct manager_region *mr;
	enum region_fact served;
	int r = read_region(h, arguments, known, ARRAY_SIZE(known), &mr);

	if (r < 0)
		return r;
	if (read_type(arguments, &backing.type) < 0 || read_fact(arguments, "share", &backing.share) < 0 ||
	    read_fact(arguments, "pmem", &backing.pmem) < 0 ||
	    read_fact(arguments, "read-only", &backing.read_only) < 0 || read_fact(arguments, "served", &served) < 0)
		return -EINVAL;
	backing.served = served == REGION_FACT_YES;
	mr = manager_set_backing(h->manager, mr, &backing);
	if (!mr)
		return -ENOMEM;
	host_send_answer(h, "return", json_describe_region(mr), id);
	return 0;
}

static int command_flushed(struct host *h, struct json_object *arguments, struct json_object *id)
{
	static const char *const known[] = { "number", "errno", "desc" };
	struct json_object *number_of = NULL, *error_of = NULL, *desc = NULL, *o;
	struct manager_region *mr;
	uint64_t number, error;
	int r = read_region(h, arguments, known, ARRAY_SIZE(known), &mr);

	if (r < 0)
		return r;
	json_object_object_get_ex(arguments, "number", &number_of);
	json_object_object_get_ex(arguments, "errno", &error_of);
	if (!host_read_u64(number_of, &number) || !host_read_u64(error_of, &error) || error > MAX_ERRNO)
		return -EINVAL;
	if (json_object_object_get_ex(arguments, "desc", &desc) &&
	    (!json_object_is_type(desc, json_type_string) || json_object_get_string_len(desc) > HOST_MAX_DESC))
		return -EINVAL;
	/* Nowhere to be counted now, and the host must not think that it is known. */
	if (manager_host_lost_nowhere(mr, (int)error))
		return -ENOENT;
	o = json_new_object();
	json_add(o, "current",
		 json_object_new_boolean(
		     manager_host_flushed(mr, number, (int)error, desc ? json_object_get_string(desc) : "")));
	host_send_answer(h, "return", o, id);
	return 0;
}

static int command_new_instance(struct host *h, struct json_object *arguments, struct json_object *id)
{
	char text[SD_ID128_STRING_MAX];
	uint64_t now = now_usec(CLOCK_MONOTONIC);
	struct json_object *o, *data;
	int r;

	if (json_object_object_length(arguments) > 0)
		return -EINVAL;
	if (h->instance_usec && now - h->instance_usec < HOST_INSTANCE_USEC) {
		host_send_refusal(h, PMEM_AGENT_BUSY, "an instance has just begun; say it again in a second", id);
		return 0;
	}
	r = manager_new_instance(h->manager);
	if (r < 0)
		return r;
	h->instance_usec = now;
	host_forget_flushes(h, "a new instance has begun, so nobody can tell");
	log_daemon(LOG_NOTICE, LOG_EVENT_HOST, "the host says that this is a new instance: epochs so far are void");
	sd_id128_to_string(manager_get_instance(h->manager), text);
	data = json_new_object();
	json_add_string(data, "instance", text);
	host_send_event(h, "NEW_INSTANCE", data);
	o = json_new_object();
	json_add_string(o, "instance", text);
	host_send_answer(h, "return", o, id);
	return 0;
}

/* 0; -EINVAL: the arguments are not the command's; -ENOENT: no such region; another errno. */
static const struct command {
	const char *name;
	int (*run)(struct host *h, struct json_object *arguments, struct json_object *id);
	const char *arguments;
} commands[] = {
	{ "query", command_query, "none" },
	{ "negotiate", command_negotiate, "'protocol', a number, and 'features', an array of at most 16 strings" },
	{ "flush", host_command_flush,
	  "one of 'region', 'address', 'path' and 'uuid', or none for every asynchronous region; 'timeout-usec' up to "
	  "a "
	  "day; 'retry' with an id" },
	{ "acknowledge", command_acknowledge, "'region' or 'address', and 'loss', its number" },
	{ "set-backing", command_set_backing,
	  "'region' or 'address'; 'type', \"file\" or \"ram\"; the booleans 'share', 'pmem', 'read-only' and "
	  "'served'" },
	{ "flushed", command_flushed,
	  "'region' or 'address'; 'number'; 'errno', up to 4095; 'desc', a text of up to 128 bytes" },
	{ "new-instance", command_new_instance, "none" },
};

static void run(struct host *h, const struct command *c, struct json_object *arguments, struct json_object *id)
{
	int r = c->run(h, arguments, id);
	char text[256];

	if (r == -EINVAL) {
		snprintf(text, sizeof(text), "arguments of '%s': %s", c->name, c->arguments);
		host_send_error(h, "GenericError", text, id);
	} else if (r == -ENOENT) {
		host_send_refusal(h, PMEM_AGENT_NOT_FOUND, "no such region", id);
	} else if (r < 0) {
		host_send_error(h, "GenericError", strerrordesc_np(-r), id);
	}
}

void host_run_command(struct host *h, struct json_object *o)
{
	_cleanup_(json_unrefp) struct json_object *none = json_new_object();
	struct json_object *name = NULL, *arguments = NULL, *id = NULL;
	char text[256] = "known commands:";

	json_object_object_get_ex(o, "execute", &name);
	json_object_object_get_ex(o, "id", &id);
	if (!json_object_object_get_ex(o, "arguments", &arguments))
		arguments = none;
	if (strlen(json_text(id, 0)) > HOST_MAX_ID) {
		snprintf(text, sizeof(text), "the id is longer than %d bytes", HOST_MAX_ID);
		host_send_error(h, "GenericError", text, NULL);
		return;
	}
	if (!json_object_is_type(name, json_type_string) || !json_object_is_type(arguments, json_type_object)) {
		host_send_error(h, "GenericError",
				"a command is {\"execute\": NAME, \"arguments\": {…}, \"id\": ANYTHING}", id);
		return;
	}
	for (size_t i = 0; i < ARRAY_SIZE(commands); i++) {
		if (strcmp(commands[i].name, json_object_get_string(name)) == 0) {
			run(h, &commands[i], arguments, id);
			return;
		}
		strcat(strcat(text, i > 0 ? ", " : " "), commands[i].name);
	}
	host_send_error(h, "CommandNotFound", text, id);
}
