/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * watched: an agent with a witness, whose trace_pipe is a FIFO that the test writes
 */
#pragma once

#include <ftw.h>
#include <sys/stat.h>

#include "selftest/emulated.h"

static const char *const attributes[][2] = {
	{ "instance/tracing_on", "1\n" },
	{ "instance/events/block/block_bio_complete/enable", "1\n" },
	{ "instance/events/block/block_bio_complete/filter", WITNESS_FILTER "\n" },
};

static int trace = -1;

static inline void make_instance(void)
{
	static const char *const dirs[] = { "instance", "instance/events", "instance/events/block",
					    "instance/events/block/block_bio_complete" };
	char path[128];

	for (size_t i = 0; i < ARRAY_SIZE(dirs); i++) {
		snprintf(path, sizeof(path), "%s/%s", directory, dirs[i]);
		assert_int_equal(mkdir(path, 0700), 0);
	}
	for (size_t i = 0; i < ARRAY_SIZE(attributes); i++) {
		snprintf(path, sizeof(path), "%s/%s", directory, attributes[i][0]);
		assert_int_equal(write_file(path, attributes[i][1]), 0);
	}
	snprintf(path, sizeof(path), "%s/instance/trace_pipe", directory);
	assert_int_equal(mkfifo(path, 0600), 0);
	trace = open(path, O_RDWR | O_CLOEXEC);
	assert_true(trace >= 0);
}

/* An agent with a witness. */
static inline void start_watched(void)
{
	char path[128];

	make_instance();
	start_agent();
	snprintf(path, sizeof(path), "%s/instance", directory);
	assert_int_equal(witness_open(path, &manager->witness), 0);
}

static inline int watched_remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	return remove(path);
}

static inline int tear_down_watched(void **state)
{
	char path[128];

	trace = safe_close(trace);
	snprintf(path, sizeof(path), "%s/instance", directory);
	return nftw(path, watched_remove_one, 8, FTW_DEPTH | FTW_PHYS) < 0 ? -1 : tear_down(state);
}

static inline void say(const char *line)
{
	assert_int_equal(write(trace, line, strlen(line)), strlen(line));
}
