/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * regions: an agent that knows emu0 and the two regions of a recorded tree, which the test changes
 *
 * A FIFO in the place of an attribute hangs as the kernel does where a driver that is being unbound holds the lock of
 * its device: whoever opens it waits.
 */
#pragma once

#include "selftest/recorded.h"
#include "selftest/watched.h"

#define BUS0    "/sys/devices/pci0000:00/0000:00:03.0/virtio2/ndbus0"
#define BUS1    "/sys/devices/pci0000:00/0000:00:04.0/virtio3/ndbus1"
#define MODE0   BUS0 "/region0/namespace0.0/mode"
#define CLASS1  "/sys/class/nd/ndctl1"
#define REGION1 BUS1 "/region1"

/* ---- the tree ---- */

static inline const char *in_tree(const char *name)
{
	static char path[2][512];
	static unsigned int i;

	i = !i;
	snprintf(path[i], sizeof(path[i]), "%s%s", recorded_root, name);
	return path[i];
}

/* Out of the tree, and back again. */
static inline void hide(const char *name)
{
	assert_int_equal(rename(in_tree(name), in_tree("/hidden")), 0);
}

static inline void unhide(const char *name)
{
	assert_int_equal(rename(in_tree("/hidden"), in_tree(name)), 0);
}

static inline void make_hang(void)
{
	assert_int_equal(rename(in_tree(MODE0), in_tree("/mode")), 0);
	assert_int_equal(mkfifo(in_tree(MODE0), 0600), 0);
}

static inline void restore_mode(void)
{
	assert_int_equal(unlink(in_tree(MODE0)), 0);
	assert_int_equal(rename(in_tree("/mode"), in_tree(MODE0)), 0);
}

/* By whom whoever looks is let go on. */
static inline int wait_for_hang(void)
{
	int fd;

	while ((fd = open(in_tree(MODE0), O_WRONLY | O_NONBLOCK | O_CLOEXEC)) < 0) {
		assert_int_equal(errno, ENXIO);
		sched_yield();
	}
	return fd;
}

/* Whoever looks goes on, and whoever looks from here on finds it as it was. */
static inline void end_hang_of(int fd)
{
	restore_mode();
	assert_int_equal(write(fd, "memory\n", 7), 7);
	close(fd);
}

static inline void end_hang(void)
{
	end_hang_of(wait_for_hang());
}

/* ---- the agent ---- */

static inline const struct region *find(const char *name)
{
	const struct manager_region *mr = manager_find_region(manager, name);

	return mr ? manager_region_get(mr) : NULL;
}

static inline pid_t looking(void)
{
	return scan_get_pid(manager->look.scan);
}

static inline void wait_for_look(void)
{
	while (manager->look.scan)
		turn();
}

static inline void wait_for_problem(const char *text)
{
	while (!strstr(manager_get_scan_problem(manager), text))
		turn();
}

static inline void assert_serves(void)
{
	struct answer_of a;

	ask(&a);
	assert_answer(&a, PMEM_AGENT_DURABLE);
}

static inline int set_up_here(void **state)
{
	if (recorded_set_up(state) < 0 || set_up(state) < 0)
		return -1;
	recorded_restore("virtio-pmem-fsdax");
	recorded_show();
	return 0;
}

/* The regions of the tree have pages and records too. */
static inline int remove_traces(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	const char *suffix = strrchr(path, '.');
	bool foreign_page = suffix && strcmp(suffix, ".page") == 0 && strcmp(path, page_path) != 0;

	return foreign_page || (suffix && strcmp(suffix, ".loss") == 0) ? remove(path) : 0;
}

static inline int tear_down_here(void **state)
{
	end_agent();
	return nftw(directory, remove_traces, 4, FTW_PHYS) < 0 || tear_down(state) < 0 || recorded_tear_down(state) < 0
		   ? -1
		   : 0;
}

static inline void retry_now(void)
{
	assert_non_null(manager->look.retry);
	assert_int_equal(sd_event_source_set_time_accuracy(manager->look.retry, 1), 0);
	assert_int_equal(sd_event_source_set_time_relative(manager->look.retry, 0), 0);
	while (manager_get_scan_problem(manager)[0])
		turn();
	assert_null(manager->look.retry);
}
