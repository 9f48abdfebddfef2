/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <errno.h>
#include <string.h>

#include "json-make.h"
#include "log.h"
#include "text.h"

/*
 * A message with something left out would say something else, one that could not be read is no bad one, and json-c
 * aborts where it is given nothing. So without memory for it the program ends; the next one tells the state.
 */
static _Noreturn void end_without_memory(void)
{
	log_end_without_memory("messages between guest and host");
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

struct json_object *json_copy(struct json_object *o)
{
	struct json_object *copy = NULL;

	if (json_object_deep_copy(o, &copy, NULL) < 0)
		end_without_memory();
	return copy;
}

/* NULL: no memory. */
static struct json_object *new_string(const char *text)
{
	_cleanup_free_ char *copy = strdup(text);

	return copy ? json_object_new_string(text_make_utf8(copy)) : NULL;
}

void json_add_string(struct json_object *o, const char *key, const char *value)
{
	json_add(o, key, new_string(value ? value : ""));
}

void json_add_u64(struct json_object *o, const char *key, uint64_t value)
{
	json_add(o, key, json_object_new_uint64(value));
}

void json_add_bool(struct json_object *o, const char *key, bool value)
{
	json_add(o, key, json_object_new_boolean(value));
}

void json_append_string(struct json_object *o, const char *value)
{
	json_append(o, new_string(value));
}

void json_add_timestamp(struct json_object *o)
{
	struct json_object *stamp = json_new_object();
	uint64_t now = now_usec(CLOCK_REALTIME);

	json_add_u64(stamp, "seconds", now / USEC_PER_SEC);
	json_add_u64(stamp, "microseconds", now % USEC_PER_SEC);
	json_add(o, "timestamp", stamp);
}
