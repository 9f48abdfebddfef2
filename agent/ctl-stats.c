/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * ctl-stats: the verb stats
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>

#include "answer.h"
#include "bus.h"
#include "ctl-stats.h"

#define STATS_TIMEOUT_USEC (10 * USEC_PER_SEC)
#define BAR_WIDTH          40

const struct ctl_metric_row ctl_metrics[CTL_N_METRICS] = {
	[CTL_REQUESTS] = { "Requests", "requests", CTL_COUNTER, "scope", false, "Requests for a flush." },
	[CTL_ANSWERS] = { "Answers", "answers", CTL_COUNTER, "answer", false, "Requests by their answer." },
	[CTL_REQUESTS_LEFT] = { "RequestsLeft", "requests_left", CTL_COUNTER, NULL, false,
				"Requests whose caller left before the answer." },
	[CTL_ROUNDS_BEGUN] = { "RoundsBegun", "rounds_begun", CTL_COUNTER, NULL, false, "Rounds that have begun." },
	[CTL_ROUNDS_CONFIRMED] = { "RoundsConfirmed", "rounds_confirmed", CTL_COUNTER, NULL, false,
				   "Rounds that the host confirmed." },
	[CTL_ROUNDS_FAILED] = { "RoundsFailed", "rounds_failed", CTL_COUNTER, NULL, false,
				"Rounds that have ended without being confirmed." },
	[CTL_CALLS] = { "Calls", "calls", CTL_COUNTER, "call", false, "System calls made in rounds." },
	[CTL_LOSSES] = { "Losses", "losses", CTL_COUNTER, NULL, false, "Losses noticed." },
	[CTL_STALLS] = { "Stalls", "stalls", CTL_COUNTER, NULL, false, "Flushes that took longer than StallSec." },
	[CTL_STALLED] = { "StalledUSec", "stalled_seconds", CTL_COUNTER, NULL, true, "Time spent stalled." },
	[CTL_REQUEST_TIME] = { "RequestUSec", "request_duration_seconds", CTL_HISTOGRAM, NULL, true,
			       "From the arrival of a request to its answer." },
	[CTL_ROUND_TIME] = { "RoundUSec", "round_duration_seconds", CTL_HISTOGRAM, NULL, true,
			     "From the begin of a round to its end." },
	[CTL_HOST_TIME] = { "HostUSec", "host_duration_seconds", CTL_HISTOGRAM, NULL, true,
			    "From asking the host to flush or confirm to its answer, within a round." },
	[CTL_WAITING] = { NULL, "requests_waiting", CTL_GAUGE, NULL, false, "Requests that wait for their answer." },
	[CTL_IS_LOST] = { NULL, "region_lost", CTL_GAUGE, NULL, false, "1 while a loss is not acknowledged." },
	[CTL_IS_STALLED] = { NULL, "region_stalled", CTL_GAUGE, NULL, false, "1 while the host does not answer." },
};

uint64_t ctl_stats_total(const struct ctl_stats *s, enum ctl_metric metric)
{
	uint64_t total = 0;

	for (unsigned int i = 0; i < s->of[metric].n_points; i++)
		total += s->of[metric].points[i].value;
	return total;
}

static uint64_t point(const struct ctl_stats *s, enum ctl_metric metric, const char *label)
{
	for (unsigned int i = 0; i < s->of[metric].n_points; i++)
		if (strcmp(s->of[metric].points[i].label, label) == 0)
			return s->of[metric].points[i].value;
	return 0;
}

/* ---- from the agent ---- */

static void add_point(struct ctl_stats *s, enum ctl_metric metric, const char *label, uint64_t value)
{
	unsigned int n = s->of[metric].n_points;

	if (n == CTL_MAX_POINTS)
		return;
	snprintf(s->of[metric].points[n].label, sizeof(s->of[metric].points[n].label), "%s", label);
	s->of[metric].points[n].value = value;
	s->of[metric].n_points++;
}

/* A number, numbers by their names, or a histogram: whichever the metric has. */
static int read_points(sd_bus_message *m, struct ctl_stats *s, enum ctl_metric metric)
{
	const char *label;
	uint64_t value;
	int r;

	if (ctl_metrics[metric].type == CTL_HISTOGRAM) {
		r = sd_bus_message_enter_container(m, 'r', "att");
		if (r >= 0)
			r = sd_bus_message_enter_container(m, 'a', "t");
		while (r >= 0 && (r = sd_bus_message_read(m, "t", &value)) > 0)
			add_point(s, metric, "", value);
		if (r >= 0)
			r = sd_bus_message_exit_container(m);
		if (r >= 0)
			r = sd_bus_message_read(m, "t", &s->of[metric].sum_usec);
		return r < 0 ? r : sd_bus_message_exit_container(m);
	}
	if (!ctl_metrics[metric].label) {
		r = sd_bus_message_read(m, "t", &value);
		if (r >= 0)
			add_point(s, metric, "", value);
		return r;
	}
	r = sd_bus_message_enter_container(m, 'a', "{st}");
	while (r >= 0 && (r = sd_bus_message_read(m, "{st}", &label, &value)) > 0)
		add_point(s, metric, label, value);
	return r < 0 ? r : sd_bus_message_exit_container(m);
}

static int read_entry(sd_bus_message *m, struct ctl_stats *s)
{
	const char *key, *type;
	int r = sd_bus_message_read(m, "s", &key);

	if (r >= 0)
		r = sd_bus_message_peek_type(m, NULL, &type);
	for (enum ctl_metric i = 0; r >= 0 && i < CTL_N_METRICS; i++) {
		const struct ctl_metric_row *row = &ctl_metrics[i];

		if (!row->key || strcmp(row->key, key) != 0 ||
		    strcmp(type, row->type == CTL_HISTOGRAM ? "(att)"
				 : row->label               ? "a{st}"
							    : "t") != 0)
			continue;
		r = sd_bus_message_enter_container(m, 'v', type);
		if (r >= 0)
			r = read_points(m, s, i);
		return r < 0 ? r : sd_bus_message_exit_container(m);
	}
	return r < 0 ? r : sd_bus_message_skip(m, "v");
}

static int read_statistics(sd_bus_message *m, struct ctl_stats *s)
{
	int r = sd_bus_message_enter_container(m, 'a', "{sv}");

	while (r >= 0 && (r = sd_bus_message_enter_container(m, 'e', "sv")) > 0) {
		r = read_entry(m, s);
		if (r >= 0)
			r = sd_bus_message_exit_container(m);
	}
	return r < 0 ? r : sd_bus_message_exit_container(m);
}

/* 0 or the exit status, having said why. */
static int get_stats(struct ctl *c, const struct ctl_region *region, struct ctl_stats *ret)
{
	_cleanup_(sd_bus_message_unrefp) sd_bus_message *call = NULL, *reply = NULL;
	_cleanup_(sd_bus_error_free) sd_bus_error error = SD_BUS_ERROR_NULL;
	int r;

	*ret = (struct ctl_stats){ .region = region };
	r = sd_bus_message_new_method_call(c->bus, &call, BUS_NAME, region->path, BUS_INTERFACE_REGION,
					   "GetStatistics");
	if (r >= 0)
		r = sd_bus_call(c->bus, call, STATS_TIMEOUT_USEC, &error, &reply);
	if (sd_bus_error_is_set(&error))
		return ctl_call_failed(region->name, &error);
	if (r >= 0)
		r = read_statistics(reply, ret);
	if (r < 0) {
		ctl_error(region->name, "cannot read the agent's reply: %s; is it of another version?",
			  strerrordesc_np(-r));
		return CTL_EXIT_FAILURE;
	}
	add_point(ret, CTL_WAITING, "", region->waiting);
	add_point(ret, CTL_IS_LOST, "", strcmp(region->state, "lost") == 0);
	add_point(ret, CTL_IS_STALLED, "", strcmp(region->state, "stalled") == 0);
	return 0;
}

/* ---- as text ---- */

/* For each request that waited, how many system calls; NULL: there was none. */
static char *format_share(const struct ctl_stats *s)
{
	uint64_t calls = ctl_stats_total(s, CTL_CALLS), requests = ctl_stats_total(s, CTL_REQUEST_TIME), share;

	if (requests == 0)
		return NULL;
	share = (calls * 1000 + requests / 2) / requests;
	return ctl_format("%" PRIu64 ".%03" PRIu64, share / 1000, share % 1000);
}

static char *format_number(uint64_t number)
{
	return ctl_format("%" PRIu64, number);
}

static char *format_seconds(uint64_t usec)
{
	return ctl_format("%" PRIu64 ".%03" PRIu64, usec / USEC_PER_SEC, usec % USEC_PER_SEC / USEC_PER_MSEC);
}

static const char *const headings[] = { "REGION", "REQUESTS", "DURABLE",       "BUSY",   "TIMED-OUT",  "ROUNDS",
					"FAILED", "LOSSES",   "CALLS/REQUEST", "STALLS", "STALLED-SEC" };
#define N_HEADINGS ARRAY_SIZE(headings)

static void fill_row(const struct ctl_stats *s, char **cells)
{
	char *row[N_HEADINGS] = {
		strdup(s->region->name),
		format_number(ctl_stats_total(s, CTL_REQUESTS)),
		format_number(point(s, CTL_ANSWERS, answer_get(PMEM_AGENT_DURABLE)->name)),
		format_number(point(s, CTL_ANSWERS, answer_get(PMEM_AGENT_BUSY)->name)),
		format_number(point(s, CTL_ANSWERS, answer_get(PMEM_AGENT_TIMEOUT)->name)),
		format_number(ctl_stats_total(s, CTL_ROUNDS_BEGUN)),
		format_number(ctl_stats_total(s, CTL_ROUNDS_FAILED)),
		format_number(ctl_stats_total(s, CTL_LOSSES)),
		format_share(s),
		format_number(ctl_stats_total(s, CTL_STALLS)),
		format_seconds(ctl_stats_total(s, CTL_STALLED)),
	};

	memcpy(cells, row, sizeof(row));
}

static int print_table(char *const *cells, unsigned int n)
{
	struct ctl_column columns[N_HEADINGS];

	for (unsigned int i = 0; i < N_HEADINGS; i++)
		columns[i] = (struct ctl_column){ headings[i], i == 0 ? CTL_STRING : CTL_NUMBER, 1 };
	return ctl_print_table(columns, N_HEADINGS, 1, cells, n);
}

static char *format_limit(unsigned int bucket, unsigned int n)
{
	uint64_t usec = UINT64_C(1) << (bucket + 1 < n ? bucket : bucket - 1);
	const char *word = bucket + 1 < n ? "to" : "over";

	if (usec < USEC_PER_MSEC)
		return ctl_format("%s %" PRIu64 " us", word, usec);
	if (usec < USEC_PER_SEC)
		return ctl_format("%s %.3g ms", word, (double)usec / USEC_PER_MSEC);
	return ctl_format("%s %.3g s", word, (double)usec / USEC_PER_SEC);
}

/* A line a bucket, from the first to the last in which there is anything. */
static void print_picture(const struct ctl_stats *s, enum ctl_metric metric)
{
	static const char bar[BAR_WIDTH + 1] = "########################################";
	unsigned int first = 0, n = s->of[metric].n_points, end = n;
	const struct ctl_point *p = s->of[metric].points;
	uint64_t most = 0;

	for (unsigned int i = 0; i < n; i++)
		most = p[i].value > most ? p[i].value : most;
	if (most == 0)
		return;
	while (p[first].value == 0)
		first++;
	while (p[end - 1].value == 0)
		end--;
	printf("\n%s: %s\n", s->region->name, ctl_metrics[metric].help);
	for (unsigned int i = first; i < end; i++) {
		_cleanup_free_ char *limit = format_limit(i, n);
		int width = (int)((double)p[i].value * BAR_WIDTH / (double)most);

		/* What is there is to be seen. */
		printf("%12s %10" PRIu64 " %.*s\n", limit ?: "", p[i].value, p[i].value > 0 && width == 0 ? 1 : width,
		       bar);
	}
}

/* ---- as JSON ---- */

static void append_line(char **text, const char *line)
{
	char *more = *text ? ctl_format("%s\n%s", *text, line ?: "") : strdup(line ?: "");

	free(*text);
	*text = more;
}

static char *format_points(const struct ctl_stats *s, enum ctl_metric metric)
{
	char *text = NULL;

	for (unsigned int i = 0; i < s->of[metric].n_points; i++) {
		const struct ctl_point *p = &s->of[metric].points[i];
		_cleanup_free_ char *line = ctl_format("%s%s%" PRIu64, p->label, p->label[0] ? " " : "", p->value);

		append_line(&text, line);
	}
	return text;
}

/* The keys are those of D-Bus, written as pmemctl writes keys; a histogram has its sum beside it. */
enum json_column {
	JSON_REGION,
	JSON_METRICS,
	JSON_REQUEST_USEC_SUM = JSON_METRICS + CTL_N_METRICS,
	JSON_ROUND_USEC_SUM,
	JSON_HOST_USEC_SUM,
	JSON_CALLS_PER_REQUEST,
	N_JSON_COLUMNS,
};

#define METRIC(metric, name, type) [JSON_METRICS + metric] = { name, type, 0 }

static const struct ctl_column json_columns[] = {
	[JSON_REGION] = { "REGION", CTL_STRING, 0 },
	METRIC(CTL_REQUESTS, "REQUESTS", CTL_COUNTS),
	METRIC(CTL_ANSWERS, "ANSWERS", CTL_COUNTS),
	METRIC(CTL_REQUESTS_LEFT, "REQUESTS_LEFT", CTL_NUMBER),
	METRIC(CTL_ROUNDS_BEGUN, "ROUNDS_BEGUN", CTL_NUMBER),
	METRIC(CTL_ROUNDS_CONFIRMED, "ROUNDS_CONFIRMED", CTL_NUMBER),
	METRIC(CTL_ROUNDS_FAILED, "ROUNDS_FAILED", CTL_NUMBER),
	METRIC(CTL_CALLS, "CALLS", CTL_COUNTS),
	METRIC(CTL_LOSSES, "LOSSES", CTL_NUMBER),
	METRIC(CTL_STALLS, "STALLS", CTL_NUMBER),
	METRIC(CTL_STALLED, "STALLED_USEC", CTL_NUMBER),
	METRIC(CTL_REQUEST_TIME, "REQUEST_USEC", CTL_NUMBERS),
	METRIC(CTL_ROUND_TIME, "ROUND_USEC", CTL_NUMBERS),
	METRIC(CTL_HOST_TIME, "HOST_USEC", CTL_NUMBERS),
	METRIC(CTL_WAITING, "WAITING", CTL_NUMBER),
	METRIC(CTL_IS_LOST, "LOST", CTL_BOOLEAN),
	METRIC(CTL_IS_STALLED, "STALLED", CTL_BOOLEAN),
	[JSON_REQUEST_USEC_SUM] = { "REQUEST_USEC_SUM", CTL_NUMBER, 0 },
	[JSON_ROUND_USEC_SUM] = { "ROUND_USEC_SUM", CTL_NUMBER, 0 },
	[JSON_HOST_USEC_SUM] = { "HOST_USEC_SUM", CTL_NUMBER, 0 },
	[JSON_CALLS_PER_REQUEST] = { "CALLS_PER_REQUEST", CTL_DECIMAL, 0 },
};
_Static_assert(ARRAY_SIZE(json_columns) == N_JSON_COLUMNS, "a row for every column");

static void fill_json(const struct ctl_stats *s, char **row)
{
	row[JSON_REGION] = strdup(s->region->name);
	for (enum ctl_metric m = 0; m < CTL_N_METRICS; m++)
		row[JSON_METRICS + m] = json_columns[JSON_METRICS + m].type == CTL_BOOLEAN
					    ? strdup(ctl_stats_total(s, m) ? "yes" : "no")
					    : format_points(s, m);
	row[JSON_REQUEST_USEC_SUM] = format_number(s->of[CTL_REQUEST_TIME].sum_usec);
	row[JSON_ROUND_USEC_SUM] = format_number(s->of[CTL_ROUND_TIME].sum_usec);
	row[JSON_HOST_USEC_SUM] = format_number(s->of[CTL_HOST_TIME].sum_usec);
	row[JSON_CALLS_PER_REQUEST] = format_share(s);
}

/* Rows of cells, filled one by one, printed, and freed. */
static int print_rows(const struct ctl_stats *stats, unsigned int n, unsigned int n_columns,
		      void (*fill)(const struct ctl_stats *s, char **row),
		      int (*print)(char *const *cells, unsigned int n))
{
	char **cells = calloc((size_t)n * n_columns + 1, sizeof(*cells));
	int r;

	if (!cells)
		return -ENOMEM;
	for (unsigned int i = 0; i < n; i++)
		fill(&stats[i], cells + (size_t)i * n_columns);
	r = print(cells, n);
	for (size_t i = 0; i < (size_t)n * n_columns; i++)
		free(cells[i]);
	free(cells);
	return r;
}

static int print_json(char *const *cells, unsigned int n)
{
	ctl_print_json("regions", json_columns, N_JSON_COLUMNS, cells, n);
	return 0;
}

/* ---- to a file ---- */

/* A reader sees what was there before, or all of this. The new file's name has another ending until then. */
static int write_file(const char *path, const struct ctl_stats *stats, unsigned int n)
{
	_cleanup_free_ char *temporary = ctl_format("%s.XXXXXX", path);
	FILE *f;
	int fd, r;

	fd = temporary ? mkostemp(temporary, O_CLOEXEC) : -1;
	if (fd < 0)
		return temporary ? -errno : -ENOMEM;
	f = fdopen(fd, "w");
	if (!f) {
		r = -errno;
		safe_close(fd);
	} else {
		ctl_print_openmetrics(f, stats, n);
		/* For whoever collects it. */
		r = fflush(f) != 0 || fchmod(fd, 0644) < 0 ? -errno : ferror(f) ? -EIO : 0;
		if (fclose(f) != 0 && r == 0)
			r = -errno;
	}
	if (r == 0 && rename(temporary, path) < 0)
		r = -errno;
	if (r < 0)
		unlink(temporary);
	return r;
}

/* ---- the verb ---- */

static int print_stats(const struct ctl *c, const struct ctl_stats *stats, unsigned int n)
{
	int r = 0;

	if (c->output) {
		r = write_file(c->output, stats, n);
		if (r < 0)
			ctl_error(c->output, "cannot be written: %s", strerrordesc_np(-r));
		return r < 0 ? CTL_EXIT_FAILURE : 0;
	}
	if (c->openmetrics)
		ctl_print_openmetrics(stdout, stats, n);
	else if (c->json)
		r = print_rows(stats, n, N_JSON_COLUMNS, fill_json, print_json);
	else if (!c->quiet)
		r = print_rows(stats, n, N_HEADINGS, fill_row, print_table);
	for (unsigned int i = 0; r == 0 && !c->openmetrics && !c->json && !c->quiet && i < n; i++) {
		print_picture(&stats[i], CTL_REQUEST_TIME);
		print_picture(&stats[i], CTL_ROUND_TIME);
	}
	return r < 0 ? CTL_EXIT_FAILURE : 0;
}

/* Named twice, it would be counted twice. */
static bool has_region(const struct ctl_stats *stats, unsigned int n, const struct ctl_region *region)
{
	for (unsigned int i = 0; i < n; i++)
		if (stats[i].region == region)
			return true;
	return false;
}

int ctl_stats(struct ctl *c, char **arguments, unsigned int n)
{
	_cleanup_(ctl_regions_clear) struct ctl_regions list = { 0 };
	_cleanup_free_ struct ctl_stats *stats = NULL;
	unsigned int n_stats = 0;
	int status = 0, r = ctl_get_regions(c, &list);

	if (r != 0)
		return r;
	stats = calloc((n > 0 ? n : list.n_regions) + 1, sizeof(*stats));
	if (!stats)
		return CTL_EXIT_FAILURE;
	for (unsigned int i = 0; i < (n > 0 ? n : list.n_regions); i++) {
		const struct ctl_region *region = n > 0 ? ctl_regions_find(&list, arguments[i]) : &list.regions[i];

		if (!region) {
			ctl_error(arguments[i], "there is no such region; \"pmemctl list\" shows those there are");
			r = answer_get(PMEM_AGENT_NOT_FOUND)->exit_status;
		} else if (!has_region(stats, n_stats, region)) {
			r = get_stats(c, region, &stats[n_stats]);
			n_stats += r == 0;
		}
		status = ctl_worse(status, r);
		r = 0;
	}
	/* Half of it would look like all there is. */
	if (status != 0 && c->output)
		return status;
	return ctl_worse(status, print_stats(c, stats, n_stats));
}
