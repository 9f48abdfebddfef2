/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * host-json: regions and losses as the host reads of them, see pmem-agent-host(7)
 */
#pragma once

#include "json-get.h"
#include "manager.h"

/* As json-c's, and never without the memory for it. They take `value` over, which is not NULL. */
struct json_object *json_new_object(void);
struct json_object *json_new_array(void);
void json_add(struct json_object *o, const char *key, struct json_object *value);
void json_append(struct json_object *o, struct json_object *value);

struct json_object *json_parse(struct json_tokener *tokener, const char *text, size_t size);
const char *json_text(struct json_object *o, int flags);

void json_add_string(struct json_object *o, const char *key, const char *value);
void json_add_u64(struct json_object *o, const char *key, uint64_t value);

/* The members of a loss; just "loss": 0 if there is none. */
void json_add_loss(struct json_object *o, const struct flush_loss *loss);

/* Which region it is, in the guest's words and in the host's: every statement about one begins with this. */
struct json_object *json_name_region(const struct manager_region *mr);

/* All that is known of a region, or of every region. */
struct json_object *json_describe_region(const struct manager_region *mr);
struct json_object *json_describe_regions(const struct manager *m);
