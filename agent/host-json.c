/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <string.h>

#include "host-json.h"

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
	json_add_bool(o, "loss-earlier-boot", loss->earlier_boot);
}

struct json_object *json_describe_region(const struct manager_region *mr)
{
	const struct region *region = manager_region_get(mr);
	struct json_object *o = json_name_region(mr), *evidence = json_new_array();
	struct flush_status status;

	manager_region_get_status(mr, &status);
	json_add_u64(o, "size", region->size);
	json_add_string(o, "kind", region_kind_to_string(region->kind));
	json_add_bool(o, "asynchronous", region->asynchronous);
	json_add_string(o, "method", region_method_to_string(region->method));
	for (unsigned int i = 0; i < region->n_evidence; i++)
		json_append_string(evidence, region->evidence[i]);
	json_add(o, "evidence", evidence);
	json_add_string(o, "attestation", region_attestation_to_string(region->attestation));
	json_add_bool(o, "served", manager_region_is_served(mr));
	json_add_bool(o, "confirm", manager_region_wants_confirm(mr));
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
