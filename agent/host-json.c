/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <string.h>

#include "host-json.h"

void json_add_string(struct json_object *o, const char *key, const char *value)
{
	json_object_object_add(o, key, json_object_new_string(value ? value : ""));
}

void json_add_u64(struct json_object *o, const char *key, uint64_t value)
{
	json_object_object_add(o, key, json_object_new_uint64(value));
}

struct json_object *json_name_region(const struct manager_region *mr)
{
	const struct region *region = manager_region_get(mr);
	struct json_object *o = json_object_new_object();

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
	json_object_object_add(o, "errno", json_object_new_int(loss->error));
	json_add_string(o, "error", strerrorname_np(loss->error));
	json_add_string(o, "origin", flush_origin_to_string(loss->origin));
	json_add_u64(o, "loss-usec", loss->usec);
	json_add_u64(o, "loss-epoch", loss->epoch);
	json_add_u64(o, "loss-round", loss->round);
	json_object_object_add(o, "loss-earlier-boot", json_object_new_boolean(loss->earlier_boot));
}

struct json_object *json_describe_region(const struct manager_region *mr)
{
	const struct region *region = manager_region_get(mr);
	struct json_object *o = json_name_region(mr), *evidence = json_object_new_array();
	struct flush_status status;

	manager_region_get_status(mr, &status);
	json_add_u64(o, "size", region->size);
	json_add_string(o, "kind", region_kind_to_string(region->kind));
	json_object_object_add(o, "asynchronous", json_object_new_boolean(region->asynchronous));
	json_add_string(o, "method", region_method_to_string(region->method));
	for (unsigned int i = 0; i < region->n_evidence; i++)
		json_object_array_add(evidence, json_object_new_string(region->evidence[i]));
	json_object_object_add(o, "evidence", evidence);
	json_add_string(o, "attestation", region_attestation_to_string(region->attestation));
	json_object_object_add(o, "served", json_object_new_boolean(manager_region_is_served(mr)));
	json_object_object_add(o, "confirm", json_object_new_boolean(manager_region_wants_confirm(mr)));
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
	struct json_object *regions = json_object_new_array();

	for (struct manager_region *mr = NULL; (mr = manager_next_region(m, mr));)
		json_object_array_add(regions, json_describe_region(mr));
	return regions;
}
