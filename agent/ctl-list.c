/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * ctl-list: the verbs list and status
 */
#include <inttypes.h>
#include <string.h>

#include "answer.h"
#include "ctl.h"

enum view {
	VIEW_LIST = 1 << 0,
	VIEW_STATUS = 1 << 1,
};

enum column {
	COLUMN_REGION,
	COLUMN_KIND,
	COLUMN_ASYNCHRONOUS,
	COLUMN_METHOD,
	COLUMN_ATTESTATION,
	COLUMN_SIZE,
	COLUMN_RESOURCE,
	COLUMN_DEVICES,
	COLUMN_MODES,
	COLUMN_NAMESPACES,
	COLUMN_BUS,
	COLUMN_PROVIDER,
	COLUMN_IDENTITY,
	COLUMN_EVIDENCE,
	COLUMN_STATE,
	COLUMN_EPOCH,
	COLUMN_WAITING,
	COLUMN_DURABLE_USEC,
	COLUMN_FLUSHING_SINCE_USEC,
	COLUMN_LOSS,
	COLUMN_LOSS_ERRNO,
	COLUMN_LOSS_USEC,
	COLUMN_LOSS_ORIGIN,
	COLUMN_LOSS_ROUND,
	COLUMN_LOSS_EPOCH,
	COLUMN_LOSS_EARLIER_BOOT,
	COLUMN_ACKNOWLEDGED,
	COLUMN_DETAIL,
	N_COLUMNS,
};

static const struct ctl_column columns[] = {
	[COLUMN_REGION] = { "REGION", CTL_STRING, VIEW_LIST | VIEW_STATUS },
	[COLUMN_KIND] = { "KIND", CTL_STRING, VIEW_LIST },
	[COLUMN_ASYNCHRONOUS] = { "ASYNCHRONOUS", CTL_BOOLEAN, VIEW_LIST },
	[COLUMN_METHOD] = { "METHOD", CTL_STRING, VIEW_LIST },
	[COLUMN_ATTESTATION] = { "ATTESTATION", CTL_STRING, VIEW_LIST },
	[COLUMN_SIZE] = { "SIZE", CTL_NUMBER, VIEW_LIST },
	[COLUMN_RESOURCE] = { "RESOURCE", CTL_NUMBER, 0 },
	[COLUMN_DEVICES] = { "DEVICES", CTL_STRINGS, VIEW_LIST },
	[COLUMN_MODES] = { "MODES", CTL_STRINGS, VIEW_LIST },
	[COLUMN_NAMESPACES] = { "NAMESPACES", CTL_STRINGS, 0 },
	[COLUMN_BUS] = { "BUS", CTL_STRING, 0 },
	[COLUMN_PROVIDER] = { "PROVIDER", CTL_STRING, 0 },
	[COLUMN_IDENTITY] = { "IDENTITY", CTL_STRING, 0 },
	[COLUMN_EVIDENCE] = { "EVIDENCE", CTL_STRINGS, VIEW_LIST },
	[COLUMN_STATE] = { "STATE", CTL_STRING, VIEW_STATUS },
	[COLUMN_EPOCH] = { "EPOCH", CTL_NUMBER, VIEW_STATUS },
	[COLUMN_WAITING] = { "WAITING", CTL_NUMBER, VIEW_STATUS },
	[COLUMN_DURABLE_USEC] = { "DURABLE_USEC", CTL_NUMBER, 0 },
	[COLUMN_FLUSHING_SINCE_USEC] = { "FLUSHING_SINCE_USEC", CTL_NUMBER, 0 },
	[COLUMN_LOSS] = { "LOSS", CTL_NUMBER, 0 },
	[COLUMN_LOSS_ERRNO] = { "LOSS_ERRNO", CTL_NUMBER, 0 },
	[COLUMN_LOSS_USEC] = { "LOSS_USEC", CTL_NUMBER, 0 },
	[COLUMN_LOSS_ORIGIN] = { "LOSS_ORIGIN", CTL_STRING, 0 },
	[COLUMN_LOSS_ROUND] = { "LOSS_ROUND", CTL_NUMBER, 0 },
	[COLUMN_LOSS_EPOCH] = { "LOSS_EPOCH", CTL_NUMBER, 0 },
	[COLUMN_LOSS_EARLIER_BOOT] = { "LOSS_EARLIER_BOOT", CTL_BOOLEAN, 0 },
	[COLUMN_ACKNOWLEDGED] = { "ACKNOWLEDGED", CTL_NUMBER, 0 },
	[COLUMN_DETAIL] = { "DETAIL", CTL_STRING, VIEW_STATUS },
};
_Static_assert(ARRAY_SIZE(columns) == N_COLUMNS, "a row for every column");

static char *format_size(uint64_t size, bool json)
{
	static const char units[] = "BKMGTPE";
	unsigned int u = 0;

	if (json)
		return ctl_format("%" PRIu64, size);
	while (size >= 1024 && size % 1024 == 0 && units[u + 1]) {
		size /= 1024;
		u++;
	}
	return ctl_format("%" PRIu64 "%c", size, units[u]);
}

static char *format_number(uint64_t number)
{
	return ctl_format("%" PRIu64, number);
}

static char *copy(const char *text)
{
	return text && text[0] ? strdup(text) : NULL;
}

static void fill_cells(const struct ctl_region *r, bool json, char **cells)
{
	cells[COLUMN_REGION] = copy(r->name);
	cells[COLUMN_KIND] = copy(r->kind);
	cells[COLUMN_ASYNCHRONOUS] = copy(r->asynchronous ? "yes" : "no");
	cells[COLUMN_METHOD] = copy(r->method);
	cells[COLUMN_ATTESTATION] = copy(r->attestation);
	cells[COLUMN_SIZE] = format_size(r->size, json);
	cells[COLUMN_RESOURCE] = r->resource == UINT64_MAX ? NULL : format_number(r->resource);
	cells[COLUMN_DEVICES] = copy(r->devices);
	cells[COLUMN_MODES] = copy(r->modes);
	cells[COLUMN_NAMESPACES] = copy(r->namespaces);
	cells[COLUMN_BUS] = copy(r->bus);
	cells[COLUMN_PROVIDER] = copy(r->provider);
	cells[COLUMN_IDENTITY] = copy(r->identity);
	cells[COLUMN_EVIDENCE] = copy(r->evidence);
	cells[COLUMN_STATE] = copy(r->state);
	cells[COLUMN_EPOCH] = format_number(r->epoch);
	cells[COLUMN_WAITING] = format_number(r->waiting);
	cells[COLUMN_DURABLE_USEC] = format_number(r->durable_usec);
	cells[COLUMN_FLUSHING_SINCE_USEC] = format_number(r->flushing_since_usec);
	cells[COLUMN_LOSS] = format_number(r->loss);
	if (r->loss != 0) {
		cells[COLUMN_LOSS_ERRNO] = format_number((uint64_t)r->loss_errno);
		cells[COLUMN_LOSS_USEC] = format_number(r->loss_usec);
		cells[COLUMN_LOSS_ORIGIN] = copy(r->loss_origin);
		cells[COLUMN_LOSS_ROUND] = format_number(r->loss_round);
		cells[COLUMN_LOSS_EPOCH] = format_number(r->loss_epoch);
		cells[COLUMN_LOSS_EARLIER_BOOT] = copy(r->loss_earlier_boot ? "yes" : "no");
	}
	cells[COLUMN_ACKNOWLEDGED] = format_number(r->acknowledged);
	cells[COLUMN_DETAIL] = ctl_region_describe(r);
}

static int print_regions(const struct ctl *c, const struct ctl_region *const *regions, unsigned int n, enum view view)
{
	char **cells = calloc((size_t)n * N_COLUMNS + 1, sizeof(*cells));
	int r = -ENOMEM;

	if (cells) {
		for (unsigned int i = 0; i < n; i++)
			fill_cells(regions[i], c->json, cells + i * N_COLUMNS);
		if (c->json) {
			ctl_print_json("regions", columns, N_COLUMNS, cells, n);
			r = 0;
		} else {
			r = ctl_print_table(columns, N_COLUMNS, view, cells, n);
		}
		for (unsigned int i = 0; i < n * N_COLUMNS; i++)
			free(cells[i]);
		free(cells);
	}
	if (r == 0)
		return 0;
	ctl_error(NULL, "cannot print: %s", strerrordesc_np(r < 0 ? -r : r));
	return CTL_EXIT_FAILURE;
}

/* Whether there may be regions that the agent doesn't know. */
static bool tell_blindness(struct ctl *c)
{
	_cleanup_free_ char *problem = ctl_get_problem(c, "ScanProblem");

	if (problem)
		ctl_error(NULL, "%s", problem);
	return problem;
}

int ctl_list(struct ctl *c, char **arguments, unsigned int n)
{
	_cleanup_(ctl_regions_clear) struct ctl_regions list = { 0 };
	_cleanup_free_ const struct ctl_region **all = NULL;
	int r = ctl_get_regions(c, &list);
	bool blind;

	if (r != 0)
		return r;
	blind = tell_blindness(c);
	if (c->quiet)
		return 0;
	if (list.n_regions == 0 && !c->json && !blind) {
		printf("This machine has no persistent memory.\n");
		return 0;
	}
	all = calloc(list.n_regions + 1, sizeof(*all));
	for (unsigned int i = 0; all && i < list.n_regions; i++)
		all[i] = &list.regions[i];
	return all ? print_regions(c, all, list.n_regions, VIEW_LIST) : CTL_EXIT_FAILURE;
}

/* As bad as an answer of that kind would be. */
static int state_status(const struct ctl_region *region)
{
	if (region->loss != 0 || strcmp(region->state, "lost") == 0)
		return answer_get(PMEM_AGENT_LOST)->exit_status;
	if (strcmp(region->state, "stalled") == 0 || strcmp(region->state, "unknown") == 0)
		return answer_get(PMEM_AGENT_UNKNOWN)->exit_status;
	return 0;
}

int ctl_status(struct ctl *c, char **arguments, unsigned int n)
{
	_cleanup_(ctl_regions_clear) struct ctl_regions list = { 0 };
	_cleanup_free_ const struct ctl_region **chosen = NULL;
	_cleanup_free_ char *problem = NULL;
	unsigned int n_chosen = 0;
	int r = ctl_get_regions(c, &list), status = 0;
	bool blind;

	if (r != 0)
		return r;
	chosen = calloc((n > 0 ? n : list.n_regions) + 1, sizeof(*chosen));
	if (!chosen)
		return CTL_EXIT_FAILURE;
	for (unsigned int i = 0; n == 0 && i < list.n_regions; i++)
		chosen[n_chosen++] = &list.regions[i];
	for (unsigned int i = 0; i < n; i++) {
		chosen[n_chosen] = ctl_regions_find(&list, arguments[i]);
		if (chosen[n_chosen]) {
			n_chosen++;
			continue;
		}
		ctl_error(arguments[i], "there is no such region; \"pmemctl list\" shows those there are");
		status = ctl_worse(status, answer_get(PMEM_AGENT_NOT_FOUND)->exit_status);
	}
	for (unsigned int i = 0; i < n_chosen; i++)
		status = ctl_worse(status, state_status(chosen[i]));
	problem = ctl_get_problem(c, "StateProblem");
	if (problem)
		ctl_error(NULL, "%s; until then, what is lost may be forgotten at the next boot", problem);
	blind = tell_blindness(c);
	if (blind && n == 0)
		status = ctl_worse(status, answer_get(PMEM_AGENT_UNKNOWN)->exit_status);
	if (c->quiet)
		return status;
	if (list.n_regions == 0 && !c->json && !blind)
		printf("This machine has no persistent memory.\n");
	else if (n_chosen > 0 || c->json)
		status = ctl_worse(status, print_regions(c, chosen, n_chosen, VIEW_STATUS));
	return status;
}
