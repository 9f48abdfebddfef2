/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * recorded: sysfs as it was recorded in a real guest (pmemctl doctor --record), in place of this machine's
 *
 * libndctl's root is /sys and nothing else, so the test has a mount namespace of its own, and in it the recorded tree
 * instead of /sys. Where no namespace can be had, libumockdev-preload shows the tree in its place.
 */
#pragma once

#include <dlfcn.h>
#include <fcntl.h>
#include <ftw.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

#include "agent/util.h"

#define RECORDED_PRELOAD "libumockdev-preload.so.0"

static char recorded_root[] = "/tmp/test-recorded.XXXXXX";
static bool recorded_preloaded;

/* ---- the recorded tree ---- */

static inline void recorded_make_parents(char *path)
{
	for (char *slash = path + strlen(recorded_root) + 1; (slash = strchr(slash, '/')); slash++) {
		*slash = '\0';
		mkdir(path, 0755);
		*slash = '/';
	}
}

static inline void recorded_unescape(char *text)
{
	char *to = text;

	for (; *text; text++) {
		if (*text == '\\')
			*to++ = *++text == 'n' ? '\n' : *text;
		else
			*to++ = *text;
	}
	*to = '\0';
}

/* libdaxctl leaves out a device without a node. The node's own number is made up wrong: it must not be looked at. */
static inline void recorded_make_node(const char *name)
{
	char path[256];
	int fd;

	snprintf(path, sizeof(path), "%s/dev/%s", recorded_root, name);
	recorded_make_parents(path);
	fd = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0644);
	assert_true(fd >= 0);
	close(fd);
}

static inline void recorded_file(const char *path, const char *mode, char *text)
{
	FILE *f = fopen(path, "we");

	assert_non_null(f);
	recorded_unescape(text);
	assert_true(fprintf(f, "%s\n", text) > 0);
	assert_int_equal(fclose(f), 0);
	assert_int_equal(chmod(path, strtoul(mode, NULL, 8)), 0);
}

static inline void recorded_line(char *line)
{
	char *type = strsep(&line, "\t"), *mode = type[0] == 'f' ? strsep(&line, "\t") : NULL;
	char *name = strsep(&line, "\t"), path[4096];

	assert_non_null(name);
	assert_true(strncmp(name, "/sys/", 5) == 0 || strncmp(name, "/proc/", 6) == 0);
	snprintf(path, sizeof(path), "%s%s", recorded_root, name);
	recorded_make_parents(path);
	if (type[0] == 'd')
		mkdir(path, 0755);
	else if (type[0] == 'l')
		assert_int_equal(symlink(line, path), 0);
	else
		recorded_file(path, mode, line);
	if (strncmp(name, "/sys/bus/dax/devices/", strlen("/sys/bus/dax/devices/")) == 0)
		recorded_make_node(strrchr(name, '/') + 1);
}

static inline void recorded_restore(const char *recording)
{
	char path[512], *line = NULL;
	size_t size = 0;
	ssize_t n;
	FILE *f;

	snprintf(path, sizeof(path), "selftest/sysfs/%s.sysfs", recording);
	f = fopen(path, "re");
	if (!f)
		fail_msg("%s: run this from the top of the source tree", path);
	while ((n = getline(&line, &size, f)) > 0) {
		line[n - 1] = '\0';
		if (line[0] != '#')
			recorded_line(line);
	}
	free(line);
	fclose(f);
}

/* Another text for an attribute, its mode kept; NULL takes it away. */
static inline void recorded_change(const char *name, const char *text)
{
	char path[4096];
	struct stat st;
	FILE *f;

	snprintf(path, sizeof(path), "%s%s", recorded_root, name);
	assert_int_equal(stat(path, &st), 0);
	assert_int_equal(unlink(path), 0);
	if (!text)
		return;
	f = fopen(path, "we");
	assert_non_null(f);
	assert_true(fprintf(f, "%s\n", text) > 0);
	assert_int_equal(fclose(f), 0);
	assert_int_equal(chmod(path, st.st_mode & 0777), 0);
}

/* ---- instead of /sys ---- */

static inline void recorded_write_map(const char *path, const char *text)
{
	_cleanup_close_ int fd = open(path, O_WRONLY | O_CLOEXEC);

	if (fd < 0 || write(fd, text, strlen(text)) < 0)
		fprintf(stderr, "# %s: %m\n", path);
}

/* A mount namespace of our own: as the user we are, or as root. */
static bool recorded_enter_namespace(void)
{
	char uid_map[64], gid_map[64];

	snprintf(uid_map, sizeof(uid_map), "0 %u 1\n", getuid());
	snprintf(gid_map, sizeof(gid_map), "0 %u 1\n", getgid());
	if (unshare(CLONE_NEWUSER | CLONE_NEWNS) == 0) {
		recorded_write_map("/proc/self/setgroups", "deny");
		recorded_write_map("/proc/self/uid_map", uid_map);
		recorded_write_map("/proc/self/gid_map", gid_map);
	} else if (unshare(CLONE_NEWNS) < 0) {
		return false;
	}
	return mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0;
}

static inline void recorded_show(void)
{
	char path[256], dev[256];

	snprintf(path, sizeof(path), "%s/sys", recorded_root);
	snprintf(dev, sizeof(dev), "%s/dev", recorded_root);
	mkdir(path, 0755);
	mkdir(dev, 0755);
	if (recorded_preloaded) {
		assert_int_equal(setenv("UMOCKDEV_DIR", recorded_root, 1), 0);
		return;
	}
	assert_int_equal(mount(path, "/sys", NULL, MS_BIND, NULL), 0);
	assert_int_equal(mount(dev, "/dev", NULL, MS_BIND, NULL), 0);
}

static inline int recorded_remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	return remove(path);
}

static inline int recorded_set_up(void **state)
{
	strcpy(recorded_root + strlen(recorded_root) - 6, "XXXXXX");
	return mkdtemp(recorded_root) ? 0 : -1;
}

static inline int recorded_tear_down(void **state)
{
	if (recorded_preloaded) {
		unsetenv("UMOCKDEV_DIR");
	} else {
		umount2("/dev", MNT_DETACH);
		umount2("/sys", MNT_DETACH);
	}
	return nftw(recorded_root, recorded_remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

/* First of all: whether there is a way to show a recorded tree; else it has been said what is missing. */
static inline bool recorded_enter(char **argv)
{
	recorded_preloaded = getenv("LD_PRELOAD") && strstr(getenv("LD_PRELOAD"), RECORDED_PRELOAD);
	if (!recorded_preloaded && (getenv("TEST_SCAN_NO_NAMESPACE") || !recorded_enter_namespace())) {
		void *library = dlopen(RECORDED_PRELOAD, RTLD_NOW);

		if (!library) {
			puts("1..0 # SKIP needs a mount namespace (unshare) or " RECORDED_PRELOAD);
			return false;
		}
		setenv("LD_PRELOAD", RECORDED_PRELOAD, 1);
		execv("/proc/self/exe", argv);
	}
	return true;
}
