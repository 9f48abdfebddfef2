/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test-conf: pmem-agent.conf, and that its example and its manual page name every key
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "agent/conf.h"

static char path[] = "/tmp/test-conf.XXXXXX";

static struct conf *load_bytes(const char *text, size_t size)
{
	struct conf *c = NULL;
	FILE *f = fopen(path, "we");

	assert_non_null(f);
	assert_int_equal(fwrite(text, 1, size, f), size);
	assert_int_equal(fclose(f), 0);
	assert_int_equal(conf_load(path, &c), 0);
	return c;
}

static struct conf *load(const char *text)
{
	return load_bytes(text, strlen(text));
}

static void assert_defaults(const struct conf *c)
{
	assert_int_equal(c->stall_usec, 5 * USEC_PER_SEC);
	assert_int_equal(c->stop_usec, 10 * USEC_PER_SEC);
	assert_int_equal(c->queue_depth, 1024);
	assert_string_equal(c->host_port, "/dev/virtio-ports/io.pmem.agent.0");
	assert_int_equal(c->n_regions, 0);
}

/* `text` gives exactly one problem, at `line`, that has `part` in it. */
static struct conf *load_problem(const char *text, unsigned int line, const char *part)
{
	struct conf *c = load(text);

	assert_int_equal(c->n_problems, 1);
	assert_int_equal(c->problems[0].line, line);
	if (!strstr(c->problems[0].text, part))
		fail_msg("'%s' is not in '%s'", part, c->problems[0].text);
	return c;
}

/* Whoever names a file means it; the usual one need not be there. */
static void test_missing(void **state)
{
	_cleanup_(conf_freep) struct conf *c = NULL;

	assert_int_equal(conf_load("/nonexistent/pmem-agent.conf", &c), -ENOENT);
	assert_null(c);
	if (access(PMEM_AGENT_CONF, F_OK) == 0)
		skip();
	assert_int_equal(conf_load(PMEM_AGENT_CONF, &c), 0);
	assert_defaults(c);
	assert_int_equal(c->n_problems, 0);
	assert_string_equal(c->path, PMEM_AGENT_CONF);
}

static void test_unreadable(void **state)
{
	struct conf *c = NULL;

	assert_int_equal(conf_load("/tmp", &c), -EISDIR);
	assert_null(c);
}

static void test_all_keys(void **state)
{
	_cleanup_(conf_freep) struct conf *c = load("# comment\n"
						    "; comment\n"
						    "[Agent]\n"
						    "StallSec=500ms\n"
						    "  StopFlushSec = 2s \r\n"
						    "QueueDepth=7\n"
						    "HostPort=/dev/vport1p1\n"
						    "[Region a.b-c_D]\n"
						    "Emulate=/srv/a b ;=c\n"
						    "[Region second]\n"
						    "Emulate=/srv/second");

	for (unsigned int i = 0; i < c->n_problems; i++)
		fail_msg("%u: %s", c->problems[i].line, c->problems[i].text);
	assert_int_equal(c->stall_usec, 500 * USEC_PER_MSEC);
	assert_int_equal(c->stop_usec, 2 * USEC_PER_SEC);
	assert_int_equal(c->queue_depth, 7);
	assert_string_equal(c->host_port, "/dev/vport1p1");
	assert_int_equal(c->n_regions, 2);
	assert_string_equal(c->regions[0].name, "a.b-c_D");
	assert_string_equal(c->regions[0].emulate, "/srv/a b ;=c");
	assert_string_equal(c->regions[1].name, "second");
	assert_string_equal(c->regions[1].emulate, "/srv/second");
}

static void test_times(void **state)
{
	static const struct {
		const char *text;
		uint64_t usec; /* 0: bad */
	} times[] = {
		{ "3", 3000000 },     { "100ms", 100000 },
		{ "3s", 3000000 },    { "3 s", 3000000 },
		{ "3sec", 3000000 },  { "1min", 60000000 },
		{ "1h", 3600000000 }, { "3600", 3600000000 },
		{ "0", 0 },           { "99ms", 0 },
		{ "3601", 0 },        { "2h", 0 },
		{ "-1", 0 },          { "", 0 },
		{ "1.5s", 0 },        { "5x", 0 },
		{ "s", 0 },           { "infinity", 0 },
		{ "99999999999", 0 }, { "18446744073709551617", 0 },
		{ "5s5", 0 },
	};

	for (size_t i = 0; i < ARRAY_SIZE(times); i++) {
		_cleanup_(conf_freep) struct conf *c = NULL;
		char text[128];

		snprintf(text, sizeof(text), "[Agent]\nStallSec=%s\n", times[i].text);
		c = load(text);
		if (c->n_problems != (times[i].usec ? 0 : 1))
			fail_msg("StallSec=%s: %u problems", times[i].text, c->n_problems);
		assert_int_equal(c->stall_usec, times[i].usec ? times[i].usec : 5 * USEC_PER_SEC);
	}
}

static void test_bad_values(void **state)
{
	static const char *const values[] = {
		"QueueDepth=0", "QueueDepth=16385", "QueueDepth=10k", "QueueDepth=-1",
		"QueueDepth=",  "HostPort=port",    "HostPort=",      "StopFlushSec=soon"
	};

	for (size_t i = 0; i < ARRAY_SIZE(values); i++) {
		_cleanup_(conf_freep) struct conf *c = NULL;
		char text[128];

		snprintf(text, sizeof(text), "[Agent]\n\n%s\n", values[i]);
		c = load_problem(text, 3, values[i]);
		assert_non_null(strstr(c->problems[0].text, "the default stands"));
		assert_defaults(c);
	}
}

static void test_unknown(void **state)
{
	_cleanup_(conf_freep) struct conf *key = load_problem("[Agent]\nFoo=1\n", 2, "unknown key 'Foo' in [Agent]");
	_cleanup_(conf_freep) struct conf *other = load_problem("[Agent]\nEmulate=/a\n", 2, "'Emulate' in [Agent]");
	_cleanup_(conf_freep) struct conf *section = load_problem("\n[Foo]\nBar=1\n", 2, "unknown section [Foo]");
	_cleanup_(conf_freep) struct conf *early = load_problem("QueueDepth=1\n[Agent]\n", 1, "before any section");
	_cleanup_(conf_freep) struct conf *junk = load_problem("[Agent]\njunk\n", 2, "neither");
	_cleanup_(conf_freep) struct conf *nokey = load_problem("[Agent]\n=5\n", 2, "neither");
	_cleanup_(conf_freep) struct conf *open = load_problem("[Agent\nQueueDepth=1\n", 1, "no closing");
	struct conf *all[] = { key, other, section, early, junk, nokey, open };

	for (size_t i = 0; i < ARRAY_SIZE(all); i++)
		assert_defaults(all[i]);
	for (unsigned int i = 0; i < conf_n_keys; i++) {
		if (strcmp(conf_keys[i].section, "Agent") == 0)
			assert_non_null(strstr(key->problems[0].text, conf_keys[i].key));
	}
}

/* An indented line is a line of its own, not more of the value before it, as inih would have it. */
static void test_indented(void **state)
{
	_cleanup_(conf_freep) struct conf *c = load_problem("[Agent]\nQueueDepth=7\n  StallSec 9\n", 3, "neither");

	assert_int_equal(c->queue_depth, 7);
}

static void test_duplicates(void **state)
{
	_cleanup_(conf_freep) struct conf *key =
	    load_problem("[Agent]\nQueueDepth=7\n[Agent]\nQueueDepth=8\n", 4, "twice; the one of line 2 stands");
	_cleanup_(conf_freep) struct conf *section =
	    load_problem("[Region a]\nEmulate=/a\n[Region a]\nEmulate=/b\n", 3, "twice; the one of line 1 stands");
	_cleanup_(conf_freep) struct conf *file = load("[Region a]\nEmulate=/a\n[Region b]\nEmulate=/a\n");

	assert_int_equal(key->queue_depth, 7);
	assert_int_equal(section->n_regions, 1);
	assert_string_equal(section->regions[0].emulate, "/a");
	assert_int_equal(file->n_regions, 1);
	assert_int_equal(file->n_problems, 2);
	assert_int_equal(file->problems[0].line, 4);
	assert_string_equal(file->problems[0].text, "/a is [Region a] already");
}

/* Of the kernel's regions there are sections too, and they emulate nothing. */
static void test_confirm(void **state)
{
	_cleanup_(conf_freep) struct conf *c = NULL, *bad = NULL, *emulate = NULL;

	c = load("[Agent]\nConfirm=host\n[Region region0]\nConfirm=no\n[Region a]\nEmulate=/a\n");
	assert_int_equal(c->n_problems, 0);
	assert_false(conf_wants_confirm(c, "region0"));
	assert_true(conf_wants_confirm(c, "region1") && conf_wants_confirm(c, "a"));
	bad = load_problem("[Region region0]\nConfirm=yes\n", 2, "is not no or host");
	assert_false(conf_wants_confirm(bad, "region0"));
	emulate = load_problem("[Region region12]\nConfirm=host\nEmulate=/a\n", 3, "can't be the name of");
	assert_true(conf_wants_confirm(emulate, "region12"));
	assert_string_equal(emulate->regions[0].emulate, "");
}

static void test_regions(void **state)
{
	static const char *const bad_names[] = {
		"", "a b", "a/b", "\xc3\xa4", "a\tb", "0123456789012345678901234567890123456789012345678901234567890123"
	};
	static const char *const good_names[] = { "region", "region0a", "regional", "a",
						  "012345678901234567890123456789012345678901234567890123456789012" };
	_cleanup_(conf_freep) struct conf *relative = load("[Region a]\nEmulate=srv/a\n");
	_cleanup_(conf_freep) struct conf *empty = load_problem("[Agent]\n[Region a]\n", 2, "no valid Emulate=");

	for (size_t i = 0; i < ARRAY_SIZE(bad_names); i++) {
		_cleanup_(conf_freep) struct conf *c = NULL;
		char text[256];

		snprintf(text, sizeof(text), "[Region %s]\nEmulate=/a\n", bad_names[i]);
		c = load_problem(text, 1, "can't be the name of");
		assert_defaults(c);
	}
	for (size_t i = 0; i < ARRAY_SIZE(good_names); i++) {
		_cleanup_(conf_freep) struct conf *c = NULL;
		char text[256];

		snprintf(text, sizeof(text), "[Region %s]\nEmulate=/a\n", good_names[i]);
		c = load(text);
		assert_int_equal(c->n_problems, 0);
		assert_string_equal(c->regions[0].name, good_names[i]);
	}
	assert_int_equal(relative->n_regions, 0);
	assert_int_equal(relative->n_problems, 2);
	assert_int_equal(relative->problems[0].line, 2);
	assert_string_equal(relative->problems[0].text, "Emulate=srv/a is not an absolute path");
	assert_int_equal(empty->n_regions, 0);
}

static void test_long_lines(void **state)
{
	char text[4096] = "[Agent]\nHostPort=/";
	size_t begin = strlen("[Agent]\n"), n = strlen(text);
	_cleanup_(conf_freep) struct conf *c = NULL, *longest = NULL;

	/* 199 bytes are taken, and taken whole. */
	memset(text + n, 'x', 199 - (n - begin));
	strcpy(text + begin + 199, "\nQueueDepth=7\n");
	longest = load(text);
	assert_int_equal(longest->n_problems, 0);
	assert_int_equal(strlen(longest->host_port), 199 - strlen("HostPort="));

	memset(text + n, 'x', 3000);
	strcpy(text + n + 3000, "\nQueueDepth=7\njunk\n");
	c = load(text);
	assert_int_equal(c->n_problems, 2);
	assert_int_equal(c->problems[0].line, 2);
	assert_string_equal(c->problems[0].text, "the line is longer than 199 bytes");
	assert_string_equal(c->host_port, "/dev/virtio-ports/io.pmem.agent.0");
	assert_int_equal(c->queue_depth, 7);
	assert_int_equal(c->problems[1].line, 4);
}

static void test_nul(void **state)
{
	static const char text[] = "[Agent]\nQueueDepth=8\0\nQueueDepth=7\n";
	_cleanup_(conf_freep) struct conf *c = load_bytes(text, sizeof(text) - 1);

	assert_int_equal(c->n_problems, 1);
	assert_int_equal(c->problems[0].line, 2);
	assert_int_equal(c->queue_depth, 7);
}

static void test_bounds(void **state)
{
	_cleanup_free_ char *text = malloc(100000);
	_cleanup_(conf_freep) struct conf *c = NULL, *regions = NULL;
	size_t n = 0;

	for (int i = 0; i < 1000; i++)
		n += sprintf(text + n, "junk\n");
	c = load(text);
	assert_int_equal(c->n_problems, CONF_MAX_PROBLEMS);
	assert_non_null(strstr(c->problems[CONF_MAX_PROBLEMS - 1].text, "too many"));

	n = 0;
	for (int i = 0; i < CONF_MAX_REGIONS + 1; i++)
		n += sprintf(text + n, "[Region r%d]\nEmulate=/r%d\n", i, i);
	regions = load(text);
	assert_int_equal(regions->n_regions, CONF_MAX_REGIONS);
	assert_int_equal(regions->n_problems, 1);
	assert_int_equal(regions->problems[0].line, 2 * CONF_MAX_REGIONS + 1);
}

static char *read_file(const char *name)
{
	FILE *f = fopen(name, "re");
	char *text = calloc(1, 65536);

	if (!f)
		fail_msg("%s: run this from the top of the source tree", name);
	assert_true(fread(text, 1, 65535, f) > 0);
	fclose(f);
	return text;
}

/* Every key is in the example, commented and with its default, and in the manual page with the same default. */
static void test_documented(void **state)
{
	_cleanup_free_ char *example = read_file("pmem-agent.conf"), *page = read_file("agent/pmem-agent.conf.5.scd");
	_cleanup_(conf_freep) struct conf *c = load(example);

	assert_int_equal(c->n_problems, 0);
	assert_defaults(c);
	for (unsigned int i = 0; i < conf_n_keys; i++) {
		const struct conf_key *k = &conf_keys[i];
		char line[256], *entry, *value, *next;

		snprintf(line, sizeof(line), "\n#%s=%s\n", k->key, k->default_text);
		if (!strstr(example, line))
			fail_msg("pmem-agent.conf has no line%s", line);
		snprintf(line, sizeof(line), "\n*%s=*\n", k->key);
		entry = strstr(page, line);
		if (!entry)
			fail_msg("pmem-agent.conf(5) has no entry%s", line);
		if (!k->default_text[0])
			continue;
		snprintf(line, sizeof(line), "Default: *%s*", k->default_text);
		value = strstr(entry, line);
		next = strstr(entry, "=*\n\t") ? strstr(strstr(entry, "=*\n\t") + 1, "=*\n\t") : NULL;
		if (!value || (next && value > next))
			fail_msg("pmem-agent.conf(5) doesn't give %s its %s", k->key, line);
	}
}

/* The other way round: the example, with its comments taken off, is all known keys. */
static void test_example_is_valid(void **state)
{
	_cleanup_free_ char *example = read_file("pmem-agent.conf"), *text = calloc(1, 65536);
	_cleanup_(conf_freep) struct conf *c = NULL;

	for (char *line = strtok(example, "\n"); line; line = strtok(NULL, "\n")) {
		bool key = line[0] == '#' && line[1] != ' ';

		strcat(text, line + (key ? 1 : 0));
		strcat(text, strcmp(line, "#Emulate=") == 0 ? "/srv/scratch\n" : "\n");
	}
	c = load(text);
	for (unsigned int i = 0; i < c->n_problems; i++)
		fail_msg("%u: %s", c->problems[i].line, c->problems[i].text);
	assert_int_equal(c->n_regions, 1);
}

static int set_up(void **state)
{
	int fd = mkstemp(path);

	return fd < 0 ? -1 : close(fd);
}

static int tear_down(void **state)
{
	return unlink(path);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_confirm),
		cmocka_unit_test(test_missing),
		cmocka_unit_test(test_unreadable),
		cmocka_unit_test(test_all_keys),
		cmocka_unit_test(test_times),
		cmocka_unit_test(test_bad_values),
		cmocka_unit_test(test_unknown),
		cmocka_unit_test(test_indented),
		cmocka_unit_test(test_duplicates),
		cmocka_unit_test(test_regions),
		cmocka_unit_test(test_long_lines),
		cmocka_unit_test(test_nul),
		cmocka_unit_test(test_bounds),
		cmocka_unit_test(test_documented),
		cmocka_unit_test(test_example_is_valid),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, set_up, tear_down);
}
