/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * ctl-watch: the verb watch
 */
#include <inttypes.h>
#include <string.h>

#include "bus.h"
#include "ctl.h"

enum column {
	COLUMN_TIME_USEC,
	COLUMN_EVENT,
	COLUMN_REGION,
	COLUMN_STATE,
	COLUMN_EPOCH,
	COLUMN_WAITING,
	COLUMN_LOSS,
	COLUMN_DETAIL,
	N_COLUMNS,
};

static const struct ctl_column columns[] = {
	[COLUMN_TIME_USEC] = { "TIME_USEC", CTL_NUMBER, 0 }, [COLUMN_EVENT] = { "EVENT", CTL_STRING, 0 },
	[COLUMN_REGION] = { "REGION", CTL_STRING, 0 },       [COLUMN_STATE] = { "STATE", CTL_STRING, 0 },
	[COLUMN_EPOCH] = { "EPOCH", CTL_NUMBER, 0 },         [COLUMN_WAITING] = { "WAITING", CTL_NUMBER, 0 },
	[COLUMN_LOSS] = { "LOSS", CTL_NUMBER, 0 },           [COLUMN_DETAIL] = { "DETAIL", CTL_STRING, 0 },
};
_Static_assert(ARRAY_SIZE(columns) == N_COLUMNS, "a row for every column");

/* `region` may be NULL, its state too where the event doesn't tell it. */
static void print_event(const struct ctl *c, const char *event, const char *name, const struct ctl_region *region)
{
	uint64_t now = now_usec(CLOCK_REALTIME);
	char *cells[N_COLUMNS] = { NULL };

	cells[COLUMN_TIME_USEC] = c->json ? ctl_format("%" PRIu64, now) : ctl_format_time(now);
	cells[COLUMN_EVENT] = strdup(event);
	cells[COLUMN_REGION] = name ? strdup(name) : NULL;
	if (region && region->state) {
		cells[COLUMN_STATE] = strdup(region->state);
		cells[COLUMN_EPOCH] = ctl_format("%" PRIu64, region->epoch);
		cells[COLUMN_WAITING] = ctl_format("%" PRIu32, region->waiting);
		cells[COLUMN_LOSS] = ctl_format("%" PRIu64, region->loss);
		cells[COLUMN_DETAIL] = ctl_region_describe(region);
	}
	if (c->json) {
		ctl_print_json_line(columns, N_COLUMNS, cells);
	} else {
		printf("%s  %s%s%s", cells[COLUMN_TIME_USEC] ?: "", name ?: "", name ? ": " : "", event);
		if (cells[COLUMN_STATE])
			printf(": %s, epoch %s, %s", cells[COLUMN_STATE], cells[COLUMN_EPOCH] ?: "?",
			       cells[COLUMN_DETAIL] ?: "");
		putchar('\n');
	}
	fflush(stdout);
	for (unsigned int i = 0; i < N_COLUMNS; i++)
		free(cells[i]);
}

static char *region_name(const char *path)
{
	char *name = NULL;

	return sd_bus_path_decode(path, BUS_PATH "/region", &name) > 0 ? name : NULL;
}

static int on_changed(sd_bus_message *m, void *userdata, sd_bus_error *error)
{
	_cleanup_(ctl_region_clear) struct ctl_region region = { .asynchronous = 1 };
	_cleanup_free_ char *name = region_name(sd_bus_message_get_path(m));
	const char *interface;

	if (name && sd_bus_message_read(m, "s", &interface) >= 0 && strcmp(interface, BUS_INTERFACE_REGION) == 0 &&
	    ctl_region_read(&region, m) >= 0)
		print_event(userdata, "changed", name, &region);
	return 0;
}

static int on_added(sd_bus_message *m, void *userdata, sd_bus_error *error)
{
	_cleanup_free_ char *name = NULL;
	const char *path, *interface;
	int r = sd_bus_message_read(m, "o", &path);

	if (r >= 0)
		r = sd_bus_message_enter_container(m, 'a', "{sa{sv}}");
	name = r >= 0 ? region_name(path) : NULL;
	while (name && (r = sd_bus_message_enter_container(m, 'e', "sa{sv}")) > 0) {
		_cleanup_(ctl_region_clear) struct ctl_region region = { 0 };

		r = sd_bus_message_read(m, "s", &interface);
		if (r < 0)
			return 0;
		if (strcmp(interface, BUS_INTERFACE_REGION) == 0) {
			if (ctl_region_read(&region, m) >= 0)
				print_event(userdata, "added", name, &region);
			return 0;
		}
		if (sd_bus_message_skip(m, "a{sv}") < 0 || sd_bus_message_exit_container(m) < 0)
			return 0;
	}
	return 0;
}

static int on_removed(sd_bus_message *m, void *userdata, sd_bus_error *error)
{
	_cleanup_free_ char *name = NULL;
	const char *path;

	name = sd_bus_message_read(m, "o", &path) >= 0 ? region_name(path) : NULL;
	if (name)
		print_event(userdata, "removed", name, NULL);
	return 0;
}

static int on_owner(sd_bus_message *m, void *userdata, sd_bus_error *error)
{
	const char *name, *before, *after;

	if (sd_bus_message_read(m, "sss", &name, &before, &after) >= 0)
		print_event(userdata, after[0] ? "agent started" : "agent ended", NULL, NULL);
	return 0;
}

#define FROM_AGENT "type='signal',sender='" BUS_NAME "',"

static const struct {
	const char *match;
	sd_bus_message_handler_t handler;
} signals[] = {
	{ FROM_AGENT "path_namespace='" BUS_PATH "',interface='org.freedesktop.DBus.Properties',"
		     "member='PropertiesChanged'",
	  on_changed },
	{ FROM_AGENT "path='" BUS_PATH "',interface='org.freedesktop.DBus.ObjectManager',member='InterfacesAdded'",
	  on_added },
	{ FROM_AGENT "path='" BUS_PATH "',interface='org.freedesktop.DBus.ObjectManager',member='InterfacesRemoved'",
	  on_removed },
	{ "type='signal',sender='org.freedesktop.DBus',interface='org.freedesktop.DBus',member='NameOwnerChanged',"
	  "arg0='" BUS_NAME "'",
	  on_owner },
};

int ctl_watch(struct ctl *c, char **arguments, unsigned int n)
{
	_cleanup_(ctl_regions_clear) struct ctl_regions list = { 0 };
	int r = ctl_connect(c);

	if (r != 0)
		return r;
	for (unsigned int i = 0; i < ARRAY_SIZE(signals); i++) {
		r = sd_bus_add_match(c->bus, NULL, signals[i].match, signals[i].handler, c);
		if (r < 0)
			goto fail;
	}
	/* How things stand, so that what follows means something. It also starts an agent that may be started. */
	r = ctl_get_regions(c, &list);
	if (r != 0)
		return r;
	for (unsigned int i = 0; i < list.n_regions; i++)
		print_event(c, "present", list.regions[i].name, &list.regions[i]);
	ctl_regions_clear(&list);

	for (;;) {
		r = sd_bus_process(c->bus, NULL);
		if (r == 0)
			r = sd_bus_wait(c->bus, UINT64_MAX);
		if (r < 0)
			goto fail;
		if (ferror(stdout))
			return CTL_EXIT_FAILURE;
	}
fail:
	ctl_error(NULL, "the connection to D-Bus is gone: %s", strerrordesc_np(-r));
	return CTL_EXIT_FAILURE;
}
