/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * json-get: members of an object that came from somebody else, if they are what they should be
 */
#include "json-get.h"

struct json_tokener *json_line_tokener(int depth)
{
	struct json_tokener *t = json_tokener_new_ex(depth);

	if (t)
		json_tokener_set_flags(t, JSON_TOKENER_STRICT | JSON_TOKENER_VALIDATE_UTF8);
	return t;
}

struct json_object *json_get(struct json_object *o, const char *key, enum json_type type)
{
	struct json_object *value;

	return json_object_object_get_ex(o, key, &value) && json_object_is_type(value, type) ? value : NULL;
}

const char *json_get_string(struct json_object *o, const char *key, const char *otherwise)
{
	struct json_object *value = json_get(o, key, json_type_string);

	return value ? json_object_get_string(value) : otherwise;
}

uint64_t json_get_u64(struct json_object *o, const char *key, uint64_t otherwise)
{
	struct json_object *value = json_get(o, key, json_type_int);

	/* Negative ones become 0 there. */
	if (!value || (json_object_get_int64(value) < 0 && json_object_get_uint64(value) == 0))
		return otherwise;
	return json_object_get_uint64(value);
}
