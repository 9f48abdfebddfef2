/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * ctl-result: what became of a flush, as a line and as JSON
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "ctl.h"

enum column {
	COLUMN_TARGET,
	COLUMN_TICKET,
	COLUMN_ANSWER,
	COLUMN_EXIT_STATUS,
	COLUMN_SCOPE,
	COLUMN_BASIS,
	COLUMN_REGIONS,
	COLUMN_EPOCHS,
	COLUMN_DURABLE_USEC,
	COLUMN_MESSAGE,
	N_COLUMNS,
};

static const struct ctl_column columns[] = {
	[COLUMN_TARGET] = { "TARGET", CTL_STRING, 0 },
	[COLUMN_TICKET] = { "TICKET", CTL_STRING, 0 },
	[COLUMN_ANSWER] = { "ANSWER", CTL_STRING, 0 },
	[COLUMN_EXIT_STATUS] = { "EXIT_STATUS", CTL_NUMBER, 0 },
	[COLUMN_SCOPE] = { "SCOPE", CTL_STRING, 0 },
	[COLUMN_BASIS] = { "BASIS", CTL_STRING, 0 },
	[COLUMN_REGIONS] = { "REGIONS", CTL_STRINGS, 0 },
	[COLUMN_EPOCHS] = { "EPOCHS", CTL_NUMBERS, 0 },
	[COLUMN_DURABLE_USEC] = { "DURABLE_USEC", CTL_NUMBER, 0 },
	[COLUMN_MESSAGE] = { "MESSAGE", CTL_STRING, 0 },
};
_Static_assert(ARRAY_SIZE(columns) == N_COLUMNS, "a row for every column");

void ctl_result_set_answer(struct ctl_result *r, const char *answer, int exit_status)
{
	free(r->answer);
	r->answer = strdup(answer);
	r->exit_status = exit_status;
}

int ctl_result_add_epoch(struct ctl_result *r, const char *region, uint64_t epoch)
{
	char *regions = ctl_format("%s%s%s", r->regions ?: "", r->regions ? "\n" : "", region);
	char *epochs = ctl_format("%s%s%" PRIu64, r->epochs ?: "", r->epochs ? "\n" : "", epoch);

	free(r->regions);
	free(r->epochs);
	r->regions = regions;
	r->epochs = epochs;
	return regions && epochs ? 0 : -ENOMEM;
}

/* "/mnt: durable (filesystem, region0 epoch 17, watched)" */
void ctl_result_print_durable(const struct ctl_result *r)
{
	const char *region = r->regions, *epoch = r->epochs;

	printf("%s: durable (%s", r->name, r->scope);
	while (region && epoch && *region && *epoch) {
		size_t n = strcspn(region, "\n"), m = strcspn(epoch, "\n");

		printf(", %.*s epoch %.*s", (int)n, region, (int)m, epoch);
		region += n + (region[n] == '\n');
		epoch += m + (epoch[m] == '\n');
	}
	printf(", %s)\n", r->basis);
}

int ctl_print_results(const struct ctl_result *const *results, unsigned int n)
{
	char **cells = calloc((size_t)n * N_COLUMNS + 1, sizeof(*cells));

	if (!cells)
		return CTL_EXIT_FAILURE;
	for (unsigned int i = 0; i < n; i++) {
		const struct ctl_result *r = results[i];
		char **row = cells + i * N_COLUMNS;

		row[COLUMN_TARGET] = r->is_ticket ? NULL : (char *)r->name;
		row[COLUMN_TICKET] = r->is_ticket ? (char *)r->name : r->ticket;
		row[COLUMN_ANSWER] = r->answer;
		row[COLUMN_EXIT_STATUS] = ctl_format("%d", r->exit_status);
		row[COLUMN_SCOPE] = r->scope;
		row[COLUMN_BASIS] = r->basis;
		row[COLUMN_REGIONS] = r->regions;
		row[COLUMN_EPOCHS] = r->epochs;
		row[COLUMN_DURABLE_USEC] = r->durable_usec;
		row[COLUMN_MESSAGE] = r->message;
	}
	ctl_print_json("flushes", columns, N_COLUMNS, cells, n);
	for (unsigned int i = 0; i < n; i++)
		free(cells[i * N_COLUMNS + COLUMN_EXIT_STATUS]);
	free(cells);
	return 0;
}

void ctl_result_clear(struct ctl_result *r)
{
	char *texts[] = {
		r->ticket, r->answer, r->scope, r->basis, r->regions, r->epochs, r->durable_usec, r->message
	};

	for (unsigned int i = 0; i < ARRAY_SIZE(texts); i++)
		free(texts[i]);
	*r = (struct ctl_result){ .name = NULL };
}
