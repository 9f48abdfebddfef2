/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * json-get: members of an object that came from somebody else, if they are what they should be
 */
#pragma once

#include <json-c/json.h>
#include <stdint.h>

#include "util.h"

/* For lines of a host or a guest: strict JSON in UTF-8, one value a line. NULL: no memory. */
struct json_tokener *json_line_tokener(int depth);

/* NULL where there is no object, no such member, or one of another type; `otherwise` likewise. */
struct json_object *json_get(struct json_object *o, const char *key, enum json_type type);
const char *json_get_string(struct json_object *o, const char *key, const char *otherwise);
uint64_t json_get_u64(struct json_object *o, const char *key, uint64_t otherwise); /* those below 0 too */

static inline struct json_object *json_unref(struct json_object *o)
{
	json_object_put(o);
	return NULL;
}
DEFINE_CLEANUP(struct json_object *, json_unref)
