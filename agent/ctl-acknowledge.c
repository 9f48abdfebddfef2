/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * ctl-acknowledge: the verb acknowledge
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "answer.h"
#include "bus.h"
#include "ctl-host.h"

enum column {
	COLUMN_REGION,
	COLUMN_LOSS,
	COLUMN_ANSWER,
	COLUMN_EXIT_STATUS,
	N_COLUMNS,
};

static const struct ctl_column columns[] = {
	[COLUMN_REGION] = { "REGION", CTL_STRING, 0 },
	[COLUMN_LOSS] = { "LOSS", CTL_NUMBER, 0 },
	[COLUMN_ANSWER] = { "ANSWER", CTL_STRING, 0 },
	[COLUMN_EXIT_STATUS] = { "EXIT_STATUS", CTL_NUMBER, 0 },
};
_Static_assert(ARRAY_SIZE(columns) == N_COLUMNS, "a row for every column");

/* A number and nothing else: what is acknowledged must be what was read. */
static bool parse_loss(const char *text, uint64_t *ret)
{
	char *end;

	errno = 0;
	*ret = strtoull(text, &end, 10);
	return text[0] >= '1' && text[0] <= '9' && *end == '\0' && errno == 0;
}

static int call_acknowledge(struct ctl *c, const struct ctl_region *region, uint64_t loss, sd_bus_error *error)
{
	_cleanup_(sd_bus_message_unrefp) sd_bus_message *m = NULL;
	int r =
	    sd_bus_message_new_method_call(c->bus, &m, BUS_NAME, region->path, BUS_INTERFACE_REGION, "AcknowledgeLoss");

	if (r >= 0)
		r = sd_bus_message_append(m, "t", loss);
	if (r >= 0)
		r = sd_bus_message_set_allow_interactive_authorization(m, isatty(STDIN_FILENO));
	/* People take their time over a password. */
	return r < 0 ? r : sd_bus_call(c->bus, m, UINT64_MAX, error, NULL);
}

static int call_guest(struct ctl *c, const struct ctl_region *region, uint64_t loss, sd_bus_error *error)
{
	struct json_object *arguments = json_new_object();

	json_add(arguments, "region", json_object_new_string(region->name));
	json_add_u64(arguments, "loss", loss);
	return ctl_host_call(c, "acknowledge", arguments, error);
}

static void print_json(const char *name, uint64_t loss, int exit_status, const sd_bus_error *error)
{
	char *cells[N_COLUMNS] = {
		[COLUMN_REGION] = strdup(name),
		[COLUMN_LOSS] = ctl_format("%" PRIu64, loss),
		[COLUMN_ANSWER] =
		    strdup(exit_status == 0             ? "Acknowledged"
			   : sd_bus_error_is_set(error) ? answer_get(answer_from_dbus_error(error->name))->name
							: "Failure"),
		[COLUMN_EXIT_STATUS] = ctl_format("%d", exit_status),
	};

	ctl_print_json_line(columns, N_COLUMNS, cells);
	for (unsigned int i = 0; i < N_COLUMNS; i++)
		free(cells[i]);
}

int ctl_acknowledge(struct ctl *c, char **arguments, unsigned int n)
{
	_cleanup_(ctl_regions_clear) struct ctl_regions list = { 0 };
	_cleanup_(sd_bus_error_free) sd_bus_error error = SD_BUS_ERROR_NULL;
	const struct ctl_region *region;
	uint64_t loss;
	int r;

	if (n != 1 || !c->loss) {
		ctl_error(NULL, "acknowledge takes a region and --loss=N, the number that \"pmemctl status\" shows");
		return CTL_EXIT_USAGE;
	}
	if (!parse_loss(c->loss, &loss)) {
		ctl_error(NULL, "--loss is the number of a loss, not %s; \"pmemctl status\" shows it", c->loss);
		return CTL_EXIT_USAGE;
	}
	r = ctl_get_regions(c, &list);
	if (r != 0)
		return r;
	region = ctl_regions_find(&list, arguments[0]);
	if (!region) {
		ctl_error(arguments[0], "there is no such region; \"pmemctl list\" shows those there are");
		return answer_get(PMEM_AGENT_NOT_FOUND)->exit_status;
	}

	r = c->link ? call_guest(c, region, loss, &error) : call_acknowledge(c, region, loss, &error);
	if (sd_bus_error_is_set(&error)) {
		r = ctl_call_failed(region->name, &error);
	} else if (r < 0) {
		ctl_error(region->name, "cannot ask the agent: %s", strerrordesc_np(-r));
		r = CTL_EXIT_FAILURE;
	} else {
		r = 0;
		if (!c->quiet && !c->json)
			printf("%s: loss %" PRIu64 " is acknowledged; the region can be flushed again\n", region->name,
			       loss);
	}
	if (c->json)
		print_json(region->name, loss, r, &error);
	return r;
}
