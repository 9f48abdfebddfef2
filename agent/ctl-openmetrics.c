/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * ctl-openmetrics: what was counted, for Prometheus and its like
 *
 * Numbers are put together from integers: a locale has its own idea of a decimal point.
 */
#include <inttypes.h>

#include "ctl-stats.h"

static void print_seconds(FILE *f, uint64_t usec)
{
	fprintf(f, "%" PRIu64 ".%06" PRIu64, usec / USEC_PER_SEC, usec % USEC_PER_SEC);
}

static void print_label(FILE *f, const char *name, const char *value)
{
	fprintf(f, "%s=\"", name);
	for (; *value; value++) {
		if (*value == '\\' || *value == '"')
			fputc('\\', f);
		if (*value == '\n')
			fputs("\\n", f);
		else
			fputc(*value, f);
	}
	fputc('"', f);
}

static void print_histogram(FILE *f, const struct ctl_metric_row *row, const struct ctl_stats *s,
			    enum ctl_metric metric)
{
	unsigned int n = s->of[metric].n_points;
	uint64_t total = 0;

	for (unsigned int i = 0; i < n; i++) {
		total += s->of[metric].points[i].value;
		fprintf(f, "pmem_agent_%s_bucket{", row->name);
		print_label(f, "region", s->region->name);
		fputs(",le=\"", f);
		if (i + 1 < n)
			print_seconds(f, UINT64_C(1) << i);
		else
			fputs("+Inf", f);
		fprintf(f, "\"} %" PRIu64 "\n", total);
	}
	fprintf(f, "pmem_agent_%s_sum{", row->name);
	print_label(f, "region", s->region->name);
	fputs("} ", f);
	print_seconds(f, s->of[metric].sum_usec);
	fprintf(f, "\npmem_agent_%s_count{", row->name);
	print_label(f, "region", s->region->name);
	fprintf(f, "} %" PRIu64 "\n", total);
}

static void print_points(FILE *f, const struct ctl_metric_row *row, const struct ctl_stats *s, enum ctl_metric metric)
{
	for (unsigned int i = 0; i < s->of[metric].n_points; i++) {
		const struct ctl_point *p = &s->of[metric].points[i];

		fprintf(f, "pmem_agent_%s%s{", row->name, row->type == CTL_COUNTER ? "_total" : "");
		print_label(f, "region", s->region->name);
		if (row->label) {
			fputc(',', f);
			print_label(f, row->label, p->label);
		}
		fputs("} ", f);
		if (row->seconds)
			print_seconds(f, p->value);
		else
			fprintf(f, "%" PRIu64, p->value);
		fputc('\n', f);
	}
}

void ctl_print_openmetrics(FILE *f, const struct ctl_stats *stats, unsigned int n)
{
	static const char *const types[] = {
		[CTL_COUNTER] = "counter",
		[CTL_GAUGE] = "gauge",
		[CTL_HISTOGRAM] = "histogram",
	};

	for (enum ctl_metric metric = 0; metric < CTL_N_METRICS; metric++) {
		const struct ctl_metric_row *row = &ctl_metrics[metric];

		fprintf(f, "# TYPE pmem_agent_%s %s\n", row->name, types[row->type]);
		if (row->seconds)
			fprintf(f, "# UNIT pmem_agent_%s seconds\n", row->name);
		fprintf(f, "# HELP pmem_agent_%s %s\n", row->name, row->help);
		for (unsigned int i = 0; i < n; i++) {
			if (row->type == CTL_HISTOGRAM)
				print_histogram(f, row, &stats[i], metric);
			else
				print_points(f, row, &stats[i], metric);
		}
	}
	fputs("# EOF\n", f);
}
