/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * host-json: regions and losses as the host reads of them, see pmem-agent-host(7)
 */
#pragma once

#include "json-make.h"
#include "manager.h"

/* The members of a loss; just "loss": 0 if there is none. */
void json_add_loss(struct json_object *o, const struct flush_loss *loss);

/* Which region it is, in the guest's words and in the host's: every statement about one begins with this. */
struct json_object *json_name_region(const struct manager_region *mr);

/* All that is known of a region, or of every region. */
struct json_object *json_describe_region(const struct manager_region *mr);
struct json_object *json_describe_regions(const struct manager *m);
