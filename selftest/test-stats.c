/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test-stats: what is counted of a region, and each form of telling it, OpenMetrics by a parser that forgives nothing
 */
#include <math.h>

#include "agent/ctl-stats.h"
#include "agent/stats.h"
#include "selftest/patience.h"
#include "selftest/pmemctl.h"
#include "selftest/process.h"

#define SECOND 1000000

static int set_up(void **state)
{
	char settings[32];
	const char *missing;

	alarm(120);
	snprintf(settings, sizeof(settings), "StallSec=%ums\n", patient(100));
	missing = session_start_with(&session, settings);
	if (missing)
		print_error("test-stats needs %s\n", missing);
	return missing ? -1 : 0;
}

static int tear_down(void **state)
{
	session_stop(&session);
	return 0;
}

/* ---- the numbers themselves ---- */

static unsigned int bucket_of(uint64_t usec)
{
	struct stats_histogram h = { 0 };
	unsigned int i = 0;

	stats_add(&h, usec);
	assert_int_equal(stats_count(&h), 1);
	assert_int_equal(h.sum_usec, usec);
	while (h.buckets[i] == 0)
		i++;
	return i;
}

static void test_buckets(void **state)
{
	assert_int_equal(bucket_of(0), 0);
	assert_int_equal(bucket_of(1), 0);
	assert_int_equal(bucket_of(2), 1);
	assert_int_equal(bucket_of(3), 2);
	for (unsigned int i = 2; i < STATS_BUCKETS - 1; i++) {
		assert_int_equal(bucket_of(UINT64_C(1) << i), i);
		assert_int_equal(bucket_of((UINT64_C(1) << i) + 1), i + 1);
	}
	assert_int_equal(bucket_of(UINT64_MAX), STATS_BUCKETS - 1);
}

static void test_rounds_and_stalls(void **state)
{
	struct stats s = { 0 };

	stats_round_began(&s, 10 * SECOND);
	stats_stalled(&s, 15 * SECOND);
	stats_stalled(&s, 16 * SECOND);
	assert_int_equal(s.stalls, 1);
	assert_int_equal(stats_stalled_usec(&s, 18 * SECOND), 3 * SECOND);
	stats_round_ended(&s, true, 20 * SECOND);
	assert_int_equal(stats_stalled_usec(&s, 30 * SECOND), 5 * SECOND);
	assert_int_equal(s.round_usec.sum_usec, 10 * SECOND);
	stats_round_began(&s, 30 * SECOND);
	stats_round_ended(&s, false, 31 * SECOND);
	/* It has ended already. */
	stats_round_ended(&s, true, 32 * SECOND);
	assert_int_equal(s.rounds_begun, 2);
	assert_int_equal(s.rounds_confirmed, 1);
	assert_int_equal(s.rounds_failed, 1);
	assert_int_equal(stats_count(&s.round_usec), 2);
}

static void test_requests(void **state)
{
	struct stats s = { 0 };

	stats_arrived(&s, FLUSH_FILE_DATA);
	stats_answered(&s, PMEM_AGENT_DURABLE, 5, 105);
	stats_refused(&s, FLUSH_REGION, PMEM_AGENT_BUSY);
	assert_int_equal(s.requests[FLUSH_FILE_DATA], 1);
	assert_int_equal(s.requests[FLUSH_REGION], 1);
	assert_int_equal(s.answers[PMEM_AGENT_DURABLE], 1);
	assert_int_equal(s.answers[PMEM_AGENT_BUSY], 1);
	/* Who was refused has not waited. */
	assert_int_equal(stats_count(&s.request_usec), 1);
	assert_int_equal(s.request_usec.sum_usec, 100);
}

/* ---- OpenMetrics, strictly ---- */

struct family {
	char name[96];
	char type[16];
	bool has_help, has_samples;
};

struct series {
	char labels[160]; /* without le */
	double limit, value, infinite;
	bool has_infinite, has_sum, has_count;
};

struct parser {
	struct family families[64], *family;
	unsigned int n_families;
	struct series series; /* of a histogram */
	char seen[1024][200];
	unsigned int n_seen;
	bool ended;
	char problem[256];
};

static bool wrong_line(struct parser *p, const char *what, const char *line)
{
	snprintf(p->problem, sizeof(p->problem), "%.64s: %.160s", what, line);
	return false;
}

static bool is_name(const char *text, size_t n)
{
	return n > 0 && strspn(text, "abcdefghijklmnopqrstuvwxyz_0123456789") >= n && (text[0] < '0' || text[0] > '9');
}

static bool ends_with(const char *text, const char *end)
{
	size_t n = strlen(text), m = strlen(end);

	return n >= m && strcmp(text + n - m, end) == 0;
}

/* "# TYPE name type", "# UNIT name unit", "# HELP name text": in this order, before any sample of the family. */
static bool parse_comment(struct parser *p, const char *line)
{
	char keyword[8], name[96], rest[200];

	if (strcmp(line, "# EOF") == 0)
		return p->ended = true;
	if (sscanf(line, "# %7s %95s %199[^\n]", keyword, name, rest) != 3 || !is_name(name, strlen(name)))
		return wrong_line(p, "no comment that is known", line);
	if (strcmp(keyword, "TYPE") == 0) {
		for (unsigned int i = 0; i < p->n_families; i++)
			if (strcmp(p->families[i].name, name) == 0)
				return wrong_line(p, "a family in two places", line);
		if (strcmp(rest, "counter") != 0 && strcmp(rest, "gauge") != 0 && strcmp(rest, "histogram") != 0)
			return wrong_line(p, "a type that node exporters do not know", line);
		if (strcmp(rest, "counter") == 0 && ends_with(name, "_total"))
			return wrong_line(p, "the name of a counter's family ends in _total", line);
		p->family = &p->families[p->n_families++];
		snprintf(p->family->name, sizeof(p->family->name), "%s", name);
		snprintf(p->family->type, sizeof(p->family->type), "%.15s", rest);
		return true;
	}
	if (!p->family || strcmp(p->family->name, name) != 0 || p->family->has_samples)
		return wrong_line(p, "metadata at the wrong place", line);
	if (strcmp(keyword, "UNIT") == 0)
		return strcmp(rest, "seconds") == 0 && ends_with(name, "_seconds") && !p->family->has_help
			   ? true
			   : wrong_line(p, "a unit that the name does not end in", line);
	if (strcmp(keyword, "HELP") != 0 || p->family->has_help)
		return wrong_line(p, "no metadata that is known", line);
	return p->family->has_help = true;
}

/* Before the labels of another series, and at the end of the family. */
static bool end_series(struct parser *p, const char *line)
{
	struct series *s = &p->series;

	if (s->labels[0] && (!s->has_infinite || !s->has_sum || !s->has_count))
		return wrong_line(p, "a histogram without +Inf, _sum or _count", line);
	*s = (struct series){ .limit = -1 };
	return true;
}

static bool parse_histogram(struct parser *p, const char *suffix, const char *labels, const char *le, double value,
			    const char *line)
{
	struct series *s = &p->series;
	double limit;
	char *end;

	if (strcmp(s->labels, labels) != 0) {
		if (!end_series(p, line))
			return false;
		snprintf(s->labels, sizeof(s->labels), "%s", labels);
	}
	if (strcmp(suffix, "_sum") == 0 && s->has_infinite && !s->has_sum && !le)
		return s->has_sum = true;
	if (strcmp(suffix, "_count") == 0 && s->has_infinite && !s->has_count && !le)
		return value == s->infinite ? (s->has_count = true) : wrong_line(p, "_count is not that of +Inf", line);
	if (strcmp(suffix, "_bucket") != 0 || !le || s->has_infinite)
		return wrong_line(p, "no sample of a histogram", line);
	limit = strcmp(le, "+Inf") == 0 ? INFINITY : strtod(le, &end);
	if (!isinf(limit) && (*end || strspn(le, "0123456789.") != strlen(le)))
		return wrong_line(p, "a limit that is no number", line);
	if (limit <= s->limit)
		return wrong_line(p, "limits that do not grow", line);
	if (value < s->value || value != (double)(uint64_t)value)
		return wrong_line(p, "buckets that do not grow", line);
	s->limit = limit;
	s->value = s->infinite = value;
	s->has_infinite = isinf(limit);
	return true;
}

/* {name="value",...}: what follows it, or NULL; le apart from the others. */
static const char *parse_labels(const char *text, char *ret_labels, size_t size, char *ret_le, size_t le_size)
{
	const char *p = text + 1;

	ret_labels[0] = ret_le[0] = '\0';
	while (*p != '}') {
		size_t n = strcspn(p, "="), used = strlen(ret_labels);
		const char *value = p + n + 2, *end = value;

		if (!is_name(p, n) || p[n] != '=' || p[n + 1] != '"')
			return NULL;
		while (*end && *end != '"')
			end += *end == '\\' && strchr("\\\"n", end[1]) ? 2 : 1;
		if (*end != '"' || (end[1] != ',' && end[1] != '}'))
			return NULL;
		if (n == 2 && strncmp(p, "le", 2) == 0)
			snprintf(ret_le, le_size, "%.*s", (int)(end - value), value);
		else
			snprintf(ret_labels + used, size - used, "%.*s;", (int)(end + 1 - p), p);
		p = end + 1;
		if (*p == ',' && *++p == '}')
			return NULL;
	}
	return p + 1;
}

static bool parse_sample(struct parser *p, const char *line)
{
	char labels[160], le[32], *end, whole[200];
	size_t n = strcspn(line, "{ ");
	const char *suffix, *rest = line + n;
	double value;

	if (!p->family || !p->family->has_help || strncmp(line, p->family->name, strlen(p->family->name)) != 0 ||
	    !is_name(line, n))
		return wrong_line(p, "a sample outside of its family", line);
	if (*rest != '{' || !(rest = parse_labels(rest, labels, sizeof(labels), le, sizeof(le))) || *rest != ' ')
		return wrong_line(p, "labels", line);
	value = strtod(rest + 1, &end);
	if (*end || rest[1] < '0' || rest[1] > '9' || strspn(rest + 1, "0123456789.") != strlen(rest + 1))
		return wrong_line(p, "a value that is no number", line);
	snprintf(whole, sizeof(whole), "%.*s", (int)(rest - line), line);
	for (unsigned int i = 0; i < p->n_seen; i++)
		if (strcmp(p->seen[i], whole) == 0)
			return wrong_line(p, "a sample twice", line);
	assert_true(p->n_seen < ARRAY_SIZE(p->seen));
	snprintf(p->seen[p->n_seen++], sizeof(p->seen[0]), "%s", whole);

	p->family->has_samples = true;
	snprintf(whole, sizeof(whole), "%.*s", (int)n, line);
	suffix = whole + strlen(p->family->name);
	if (strcmp(p->family->type, "histogram") == 0)
		return parse_histogram(p, suffix, labels, le[0] ? le : NULL, value, line);
	return strcmp(suffix, strcmp(p->family->type, "counter") == 0 ? "_total" : "") == 0
		   ? true
		   : wrong_line(p, "a suffix that is not of the type", line);
}

/* Each line of it; "" or what is wrong. */
static const char *parse_openmetrics(const char *text)
{
	static struct parser p;
	_cleanup_free_ char *copy = strdup(text);
	char *rest = copy, *line;

	memset(&p, 0, sizeof(p));
	end_series(&p, "");
	if (strlen(text) == 0 || text[strlen(text) - 1] != '\n')
		return "the last line has no end";
	copy[strlen(copy) - 1] = '\0';
	while ((line = strsep(&rest, "\n"))) {
		if (p.ended)
			return "lines after # EOF";
		if (line[0] == '#' ? (!end_series(&p, line) || !parse_comment(&p, line)) : !parse_sample(&p, line))
			return p.problem;
	}
	return p.ended ? "" : "no # EOF";
}

static void test_the_parser_forgives_nothing(void **state)
{
	static const char *const wrong[] = {
		"",
		"# TYPE a counter\n# HELP a A.\na_total{r=\"x\"} 1\n",
		"# TYPE a counter\n# HELP a A.\na_total{r=\"x\"} 1\n# EOF",
		"# TYPE a counter\n# HELP a A.\na_total{r=\"x\"} 1\n# EOF\n\n",
		"# TYPE a counter\n# HELP a A.\na{r=\"x\"} 1\n# EOF\n",
		"# TYPE a counter\na_total{r=\"x\"} 1\n# EOF\n",
		"# TYPE a counter\n# HELP a A.\na_total{r=\"x} 1\n# EOF\n",
		"# TYPE a counter\n# HELP a A.\na_total{r=\"x\"} 1,5\n# EOF\n",
		"# TYPE a counter\n# HELP a A.\na_total{r=\"x\"} 1\na_total{r=\"x\"} 1\n# EOF\n",
		"# TYPE a stateset\n# HELP a A.\n# EOF\n",
		"# TYPE a counter\n# UNIT a seconds\n# HELP a A.\n# EOF\n",
		"# TYPE a counter\n# HELP a A.\nb_total{r=\"x\"} 1\n# EOF\n",
		"# TYPE h histogram\n# HELP h H.\nh_bucket{r=\"x\",le=\"1.0\"} 2\nh_bucket{r=\"x\",le=\"+Inf\"} 1\n"
		"h_sum{r=\"x\"} 1\nh_count{r=\"x\"} 1\n# EOF\n",
		"# TYPE h histogram\n# HELP h H.\nh_bucket{r=\"x\",le=\"2.0\"} 1\nh_bucket{r=\"x\",le=\"1.0\"} 1\n"
		"h_bucket{r=\"x\",le=\"+Inf\"} 1\nh_sum{r=\"x\"} 1\nh_count{r=\"x\"} 1\n# EOF\n",
		"# TYPE h histogram\n# HELP h H.\nh_bucket{r=\"x\",le=\"+Inf\"} 1\nh_sum{r=\"x\"} 1\n"
		"h_count{r=\"x\"} 2\n# EOF\n",
		"# TYPE h histogram\n# HELP h H.\nh_bucket{r=\"x\",le=\"1.0\"} 1\nh_sum{r=\"x\"} 1\n"
		"h_count{r=\"x\"} 1\n# EOF\n",
	};

	assert_string_equal(parse_openmetrics("# TYPE h histogram\n# HELP h H.\nh_bucket{r=\"x\",le=\"1.0\"} 1\n"
					      "h_bucket{r=\"x\",le=\"+Inf\"} 2\nh_sum{r=\"x\"} 1\nh_count{r=\"x\"} 2\n"
					      "# TYPE a counter\n# HELP a A.\na_total{r=\"x\\\"\"} 1\n# EOF\n"),
			    "");
	for (unsigned int i = 0; i < ARRAY_SIZE(wrong); i++)
		if (parse_openmetrics(wrong[i])[0] == '\0')
			fail_msg("the parser takes %s", wrong[i]);
}

static void assert_openmetrics(const char *text)
{
	const char *problem = parse_openmetrics(text);

	if (problem[0])
		fail_msg("%s", problem);
}

/* Any number, any name: labels are quoted, a bucket of each size adds up. */
static void test_openmetrics_of_anything(void **state)
{
	struct ctl_region region = { .name = (char *)"a \"b\" \\ c\nd" };
	struct ctl_stats *stats = calloc(1, sizeof(*stats));
	char *text = NULL;
	size_t size;
	FILE *f = open_memstream(&text, &size);

	stats->region = &region;
	for (enum ctl_metric m = 0; m < CTL_N_METRICS; m++) {
		stats->of[m].n_points = ctl_metrics[m].type == CTL_HISTOGRAM ? STATS_BUCKETS
					: ctl_metrics[m].label               ? 2
									     : 1;
		for (unsigned int i = 0; i < stats->of[m].n_points; i++) {
			snprintf(stats->of[m].points[i].label, sizeof(stats->of[m].points[i].label), "label%u", i);
			stats->of[m].points[i].value = UINT32_MAX + (uint64_t)i;
		}
	}
	ctl_print_openmetrics(f, stats, 1);
	fclose(f);
	assert_openmetrics(text);
	assert_says(text, "{region=\"a \\\"b\\\" \\\\ c\\nd\",le=\"1073.741824\"}");
	assert_says(text, "pmem_agent_stalled_seconds_total{region=\"a \\\"b\\\" \\\\ c\\nd\"} 4294.967295\n");
	free(text);
	free(stats);
}

/* ---- of an agent ---- */

static void assert_sample(const char *name, const char *labels, const char *value)
{
	char line[256];

	snprintf(line, sizeof(line), "\npmem_agent_%s{region=\"emu0\"%s} %s\n", name, labels, value);
	assert_says(out, line);
}

static void test_counts(void **state)
{
	struct json_object *json, *region, *answers, *n;

	for (unsigned int i = 0; i < 3; i++)
		assert_int_equal(run("flush", "emu0"), 0);
	assert_int_equal(run("stats", "--openmetrics"), 0);
	assert_openmetrics(out);
	assert_sample("requests_total", ",scope=\"region\"", "3");
	assert_sample("requests_total", ",scope=\"file-data\"", "0");
	assert_sample("answers_total", ",answer=\"Durable\"", "3");
	assert_sample("calls_total", ",call=\"region\"", "3");
	assert_sample("rounds_confirmed_total", "", "3");
	assert_sample("request_duration_seconds_count", "", "3");
	assert_sample("round_duration_seconds_bucket", ",le=\"+Inf\"", "3");
	assert_sample("region_lost", "", "0");

	assert_int_equal(run("stats"), 0);
	assert_says(out, "emu0");
	assert_says(out, "CALLS/REQUEST");
	assert_says(out, "1.000");
	assert_says(out, "#");
	assert_int_equal(run("stats", "--json", "emu0", "emu0"), 0);
	json = parse("regions", 1);
	region = json_object_array_get_idx(json_object_object_get(json, "regions"), 0);
	assert_true(json_object_object_get_ex(region, "answers", &answers));
	assert_true(json_object_object_get_ex(answers, "Durable", &n));
	assert_int_equal(json_object_get_int(n), 3);
	assert_string_equal(get(json, "regions", 0, "calls_per_request"), "1.000");
	assert_string_equal(get(json, "regions", 0, "lost"), "false");
	assert_int_equal(json_object_array_length(json_object_object_get(region, "request_usec")), STATS_BUCKETS);
	json_object_put(json);
}

static void test_busy_stall_timeout_and_loss(void **state)
{
	FILE *to = tmpfile(), *errors = tmpfile();
	pid_t worker, flush;
	int status;

	assert_int_equal(run("flush", "emu0"), 0);
	worker = session_worker(&session);
	stop_process(worker);
	assert_int_equal(run("flush", "--timeout=0.05", "emu0"), 18);
	flush = start(to, errors, (const char *const[]){ "flush", "emu0", NULL });
	wait_until_state("\"stalled\"");
	do
		assert_int_equal(run("stats", "--openmetrics"), 0);
	while (!strstr(out, "pmem_agent_requests_waiting{region=\"emu0\"} 1\n"));
	assert_openmetrics(out);
	assert_sample("region_stalled", "", "1");
	assert_sample("stalls_total", "", "1");
	assert_null(strstr(out, "stalled_seconds_total{region=\"emu0\"} 0.000000"));
	assert_sample("answers_total", ",answer=\"TimedOut\"", "1");
	assert_int_equal(kill(worker, SIGKILL), 0);
	waitpid(flush, &status, 0);
	assert_int_equal(WEXITSTATUS(status), 3);
	fclose(to);
	fclose(errors);
	assert_int_equal(run("flush", "emu0"), 3);

	assert_int_equal(run("stats", "--openmetrics"), 0);
	assert_openmetrics(out);
	assert_sample("region_lost", "", "1");
	assert_sample("losses_total", "", "1");
	assert_sample("rounds_failed_total", "", "1");
	/* Two: who waited, and who was refused; only the first has waited for it. */
	assert_sample("answers_total", ",answer=\"Lost\"", "2");
	assert_sample("requests_total", ",scope=\"region\"", "7");
	assert_sample("request_duration_seconds_count", "", "6");
	assert_int_equal(run("acknowledge", "emu0", "--loss=1"), 0);
}

/* ---- to a file ---- */

static void test_output(void **state)
{
	char path[128], option[160], nowhere[160];
	struct stat st;
	int before, after;
	glob_t left;
	FILE *f;

	snprintf(path, sizeof(path), "%s/pmem.prom", session.directory);
	snprintf(option, sizeof(option), "--output=%s", path);
	assert_int_equal(run("stats", "--openmetrics", option), 0);
	assert_string_equal(out, "");
	f = fopen(path, "re");
	assert_non_null(f);
	assert_int_equal(fstat(fileno(f), &st), 0);
	assert_int_equal(st.st_mode & 0777, 0644);
	/* It is replaced as a whole: who has it open reads the one of before to its end. */
	before = fgetc(f);
	assert_int_equal(run("flush", "emu0"), 0);
	assert_int_equal(run("stats", "--openmetrics", option), 0);
	after = stat(path, &st) == 0 ? (int)st.st_nlink : 0;
	assert_int_equal(after, 1);
	assert_int_equal(ungetc(before, f), before);
	assert_int_equal(fstat(fileno(f), &st), 0);
	assert_int_equal(st.st_nlink, 0);
	read_back(f, out, sizeof(out));
	assert_openmetrics(out);

	/* Nothing is written where something is missing, and nothing is left behind. */
	assert_int_equal(stat(path, &st), 0);
	before = (int)st.st_ino;
	assert_int_equal(run("stats", "--openmetrics", option, "nothing"), 15);
	assert_int_equal(stat(path, &st), 0);
	assert_int_equal((int)st.st_ino, before);
	snprintf(nowhere, sizeof(nowhere), "--output=%s/no/file", session.directory);
	assert_int_equal(run("stats", "--openmetrics", nowhere), 1);
	assert_says(err, "no/file: cannot be written: No such file");
	snprintf(nowhere, sizeof(nowhere), "%s.*", path);
	assert_int_equal(glob(nowhere, 0, NULL, &left), GLOB_NOMATCH);
	assert_int_equal(unlink(path), 0);

	assert_int_equal(run("stats", "nothing"), 15);
	assert_int_equal(run("stats", option), CTL_EXIT_USAGE);
	assert_int_equal(run("stats", "--json", "--openmetrics"), CTL_EXIT_USAGE);
	assert_int_equal(run("list", "--openmetrics"), CTL_EXIT_USAGE);
}

static void test_metrics_are_written_down(void **state)
{
	char name[96];
	FILE *f = fopen("agent/pmemctl.1.scd", "re");
	static char manual[65536];

	assert_non_null(f);
	read_back(f, manual, sizeof(manual));
	for (enum ctl_metric m = 0; m < CTL_N_METRICS; m++) {
		snprintf(name, sizeof(name), "*pmem_agent_%s%s*", ctl_metrics[m].name,
			 ctl_metrics[m].type == CTL_COUNTER ? "_total" : "");
		assert_says(manual, name);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_buckets),
		cmocka_unit_test(test_rounds_and_stalls),
		cmocka_unit_test(test_requests),
		cmocka_unit_test(test_the_parser_forgives_nothing),
		cmocka_unit_test(test_openmetrics_of_anything),
		cmocka_unit_test(test_counts),
		cmocka_unit_test(test_busy_stall_timeout_and_loss),
		cmocka_unit_test(test_output),
		cmocka_unit_test(test_metrics_are_written_down),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, set_up, tear_down);
}
