/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * ctl-stats: what was counted of regions, as pmemctl has got it, and every form of telling it
 */
#pragma once

#include "ctl.h"

#define CTL_MAX_POINTS 64

enum ctl_metric {
	CTL_REQUESTS,
	CTL_ANSWERS,
	CTL_REQUESTS_LEFT,
	CTL_ROUNDS_BEGUN,
	CTL_ROUNDS_CONFIRMED,
	CTL_ROUNDS_FAILED,
	CTL_CALLS,
	CTL_LOSSES,
	CTL_STALLS,
	CTL_STALLED,
	CTL_REQUEST_TIME,
	CTL_ROUND_TIME,
	CTL_HOST_TIME,
	CTL_WAITING,
	CTL_IS_LOST,
	CTL_IS_STALLED,
	CTL_N_METRICS,
};

enum ctl_metric_type {
	CTL_COUNTER,
	CTL_GAUGE,
	CTL_HISTOGRAM, /* in seconds; point i has what took at most 2^i microseconds, the last one all that is longer */
};

/* The names are a contract, see pmemctl(1). */
struct ctl_metric_row {
	const char *key;  /* of GetStatistics(); NULL: it is the region's state */
	const char *name; /* in OpenMetrics, after "pmem_agent_" and before "_total" */
	enum ctl_metric_type type;
	const char *label; /* what tells its points apart; NULL: there is one */
	bool seconds;      /* the points are microseconds */
	const char *help;
};
extern const struct ctl_metric_row ctl_metrics[CTL_N_METRICS];

struct ctl_point {
	char label[32];
	uint64_t value;
};

struct ctl_stats {
	const struct ctl_region *region;
	struct {
		struct ctl_point points[CTL_MAX_POINTS];
		unsigned int n_points;
		uint64_t sum_usec; /* of a histogram */
	} of[CTL_N_METRICS];
};

/* The sum of its points. */
uint64_t ctl_stats_total(const struct ctl_stats *s, enum ctl_metric metric);

/* OpenMetrics' text, to its "# EOF". */
void ctl_print_openmetrics(FILE *f, const struct ctl_stats *stats, unsigned int n);
