/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * ctl-host-watch: the verb watch from the host
 */
#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "ctl-host.h"

/* "REGION_ADDED" is "region added" to people. */
static void print_name(const char *event)
{
	for (; *event; event++)
		putchar(*event == '_' ? ' ' : tolower((unsigned char)*event));
}

static void print_line(uint64_t usec, const char *event, struct json_object *data)
{
	_cleanup_(ctl_region_clear) struct ctl_region region = { .asynchronous = 1 };
	_cleanup_free_ char *when = ctl_format_time(usec), *detail = NULL;

	ctl_host_read_region(data, &region);
	printf("%s  %s%s", when ?: "", region.name ?: "", region.name ? ": " : "");
	print_name(event);
	if (strcmp(event, "DURABLE") == 0)
		printf(": %s %s, epoch %" PRIu64 ", %s", json_get_string(data, "scope", "?"),
		       json_get_string(data, "target", "?"), region.epoch, json_get_string(data, "basis", "?"));
	else if (strcmp(event, "MISSED") == 0)
		printf(": %" PRIu64 " events", json_get_u64(data, "count", 0));
	else if (strcmp(event, "ACKNOWLEDGED") == 0)
		printf(": loss %" PRIu64, region.loss);
	else if (strcmp(event, "SHUTDOWN") == 0)
		printf(": %s", json_object_get_boolean(json_get(data, "clean", json_type_boolean))
				   ? "all was flushed"
				   : "not all could be flushed");
	else if (region.state || region.loss != 0 || region.flushing_since_usec != 0)
		detail = ctl_region_describe(&region);
	if (region.state)
		printf(": %s, epoch %" PRIu64, region.state, region.epoch);
	if (detail)
		printf("%s %s", region.state ? "," : ":", detail);
	putchar('\n');
}

static void print_greeting(struct json_object *greeting)
{
	struct json_object *regions = json_get(greeting, "regions", json_type_array);
	_cleanup_free_ char *when = ctl_format_time(now_usec(CLOCK_REALTIME));
	uint64_t missed = json_get_u64(greeting, "missed", 0);

	printf("%s  agent %s, instance %s", when ?: "", json_get_string(greeting, "version", "?"),
	       json_get_string(greeting, "instance", "?"));
	if (missed > 0)
		printf(", %" PRIu64 " events missed", missed);
	putchar('\n');
	for (size_t i = 0; regions && i < json_object_array_length(regions); i++)
		print_line(now_usec(CLOCK_REALTIME), "present", json_object_array_get_idx(regions, i));
}

static void print_text(struct json_object *o)
{
	struct json_object *greeting = json_get(o, "pmem-agent", json_type_object);
	struct json_object *data = json_get(o, "data", json_type_object);
	struct json_object *stamp = json_get(o, "timestamp", json_type_object);
	const char *event = json_get_string(o, "event", NULL);

	if (greeting)
		print_greeting(greeting);
	else if (event)
		print_line(json_get_u64(stamp, "seconds", 0) * USEC_PER_SEC + json_get_u64(stamp, "microseconds", 0),
			   event, data);
}

static bool is_told(struct json_object *o)
{
	return json_get(o, "pmem-agent", json_type_object) || json_get_string(o, "event", NULL);
}

static void print_message(const struct ctl *c, struct json_object *o)
{
	if (c->quiet || !is_told(o))
		return;
	if (c->json)
		puts(json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE));
	else
		print_text(o);
	fflush(stdout);
}

int ctl_host_watch(struct ctl *c, char **arguments, unsigned int n)
{
	char instance[64] = "";

	/* How things stand, so that what follows means something. */
	for (bool first = true;; first = false) {
		_cleanup_(json_unrefp) struct json_object *o = NULL;
		int r = 0;

		if (first) {
			o = json_new_object();
			json_add(o, "pmem-agent", json_object_get(ctl_host_get_greeting(c->link)));
		} else {
			r = ctl_host_next(c->link, UINT64_MAX, &o);
		}
		if (r == -ECONNRESET && (c->retry || ctl_host_get_greeting(c->link))) {
			if (!ctl_host_get_greeting(c->link))
				ctl_error(c->host, "the connection is gone; waiting for the next");
			continue;
		}
		if (r < 0) {
			ctl_error(c->host, "the connection to the agent is gone");
			return CTL_EXIT_FAILURE;
		}
		if (json_get(o, "pmem-agent", json_type_object)) {
			const char *now = json_get_string(json_get(o, "pmem-agent", json_type_object), "instance", "");

			if (strcmp(instance, now) == 0)
				continue;
			snprintf(instance, sizeof(instance), "%s", now);
		}
		print_message(c, o);
		if (ferror(stdout))
			return CTL_EXIT_FAILURE;
	}
}
