/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * json-make: messages between guest and host, whole or not at all: as json-c's functions, and never without the memory
 */
#pragma once

#include <stdbool.h>

#include "json-get.h"

struct json_object *json_new_object(void);
struct json_object *json_new_array(void);
struct json_object *json_copy(struct json_object *o);

/* They take `value` over, which is not NULL. */
void json_add(struct json_object *o, const char *key, struct json_object *value);
void json_append(struct json_object *o, struct json_object *value);

/* As others have named it, in UTF-8; NULL is "". */
void json_add_string(struct json_object *o, const char *key, const char *value);
void json_append_string(struct json_object *o, const char *value);
void json_add_u64(struct json_object *o, const char *key, uint64_t value);
void json_add_bool(struct json_object *o, const char *key, bool value);

/* Of an event: now. */
void json_add_timestamp(struct json_object *o);

/* On one line. It belongs to `o`. */
const char *json_text(struct json_object *o, int flags);

/* NULL: it isn't JSON. */
struct json_object *json_parse(struct json_tokener *tokener, const char *text, size_t size);
