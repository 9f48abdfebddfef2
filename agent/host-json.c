/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <errno.h>
#include <string.h>

#include "host-json.h"
#include "log.h"
#include "text.h"

/*
 * A message with something left out would tell the host something else, one that could not be read is no bad one, and
 * json-c aborts where it is given nothing. So without memory for it the agent ends; the next one tells the state.
 */
static _Noreturn void end_without_memory(void)
{
	log_end_without_memory("what the host is told, or tells");
}

struct json_object *json_new_object(void)
{
	struct json_object *o = json_object_new_object();

	return o ?: (end_without_memory(), NULL);
}

struct json_object *json_new_array(void)
{
	struct json_object *o = json_object_new_array();

	return o ?: (end_without_memory(), NULL);
}

void json_add(struct json_object *o, const char *key, struct json_object *value)
{
	if (!value || json_object_object_add(o, key, value) < 0)
		end_without_memory();
}

void json_append(struct json_object *o, struct json_object *value)
{
	if (!value || json_object_array_add(o, value) < 0)
		end_without_memory();
}

const char *json_text(struct json_object *o, int flags)
{
	const char *text;

	/* What it can't put into the text it leaves out, and says nothing. */
	errno = 0;
	text = json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN | flags);
	if (!text || errno == ENOMEM)
		end_without_memory();
	return text;
}

struct json_object *json_parse(struct json_tokener *tokener, const char *text, size_t size)
{
	struct json_object *o;

	json_tokener_reset(tokener);
	errno = 0;
	o = json_tokener_parse_ex(tokener, text, (int)size);
	if (errno == ENOMEM)
		end_without_memory();
	return o;
}

/* As others have named it, in UTF-8. NULL: no memory. */
static struct json_object *json_new_string(const char *text)
{
	_cleanup_free_ char *copy = strdup(text);

	return copy ? json_object_new_string(text_make_utf8(copy)) : NULL;
}

void json_add_string(struct json_object *o, const char *key, const char *value)
{
	json_add(o, key, json_new_string(value ? value : ""));
}

void json_add_u64(struct json_object *o, const char *key, uint64_t value)
{
	json_add(o, key, json_object_new_uint64(value));
}

struct json_object *json_name_region(const struct manager_region *mr)
{
	const struct region *region = manager_region_get(mr);
	struct json_object *o = json_new_object();

	json_add_string(o, "region", region->name);
	if (region->resource != REGION_UNKNOWN_RESOURCE)
		json_add_u64(o, "address", region->resource);
	return o;
}

void json_add_loss(struct json_object *o, const struct flush_loss *loss)
{
	json_add_u64(o, "loss", loss->number);
	if (loss->number == 0)
		return;
	json_add(o, "errno", json_object_new_int(loss->error));
	json_add_string(o, "error", strerrorname_np(loss->error));
	json_add_string(o, "origin", flush_origin_to_string(loss->origin));
	json_add_u64(o, "loss-usec", loss->usec);
	json_add_u64(o, "loss-epoch", loss->epoch);
	json_add_u64(o, "loss-round", loss->round);
	json_add(o, "loss-earlier-boot", json_object_new_boolean(loss->earlier_boot));
}

struct json_object *json_describe_region(const struct manager_region *mr)
{
	const struct region *region = manager_region_get(mr);
	struct json_object *o = json_name_region(mr), *evidence = json_new_array();
	struct flush_status status;

	manager_region_get_status(mr, &status);
	json_add_u64(o, "size", region->size);
	json_add_string(o, "kind", region_kind_to_string(region->kind));
	json_add(o, "asynchronous", json_object_new_boolean(region->asynchronous));
	json_add_string(o, "method", region_method_to_string(region->method));
	for (unsigned int i = 0; i < region->n_evidence; i++)
		json_append(evidence, json_new_string(region->evidence[i]));
	json_add(o, "evidence", evidence);
	json_add_string(o, "attestation", region_attestation_to_string(region->attestation));
	json_add(o, "served", json_object_new_boolean(manager_region_is_served(mr)));
	json_add(o, "confirm", json_object_new_boolean(manager_region_wants_confirm(mr)));
	json_add_string(o, "state", region_can_flush(region) ? flush_status_to_string(&status) : "none");
	json_add_u64(o, "epoch", status.epoch);
	json_add_u64(o, "durable-usec", status.epoch_usec);
	json_add_u64(o, "flushing-since-usec", status.in_flight_usec);
	json_add_u64(o, "acknowledged", status.acknowledged);
	json_add_loss(o, &status.loss);
	return o;
}

struct json_object *json_describe_regions(const struct manager *m)
{
	struct json_object *regions = json_new_array();

	for (struct manager_region *mr = NULL; (mr = manager_next_region(m, mr));)
		json_append(regions, json_describe_region(mr));
	return regions;
}
