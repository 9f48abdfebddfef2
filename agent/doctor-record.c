/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * doctor-record: what scan reads of this machine's persistent memory, as text: see selftest/sysfs
 *
 * One entry a line, its parts set apart by tabs:
 *   d PATH              a directory
 *   f MODE PATH TEXT    an attribute; \n and \\ in its text are escaped, its last newline is left out
 *   l PATH TARGET       a symbolic link
 * Only the buses of libnvdimm are looked at, and of their disks only what tells how they are flushed. UUIDs, serial
 * numbers and cookies are replaced, the same by the same.
 */
#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "doctor.h"
#include "mount-private.h"
#include "sysfs.h"

#define MAX_DEPTH   16
#define MAX_SECRETS 256

struct recorder {
	FILE *to;
	char *secrets[MAX_SECRETS];
	unsigned int n_secrets;
};

static DIR *close_directory(DIR *d)
{
	closedir(d);
	return NULL;
}
DEFINE_CLEANUP(DIR *, close_directory)

static bool ends_with(const char *path, const char *end)
{
	size_t n = strlen(path), m = strlen(end);

	return n >= m && strcmp(path + n - m, end) == 0;
}

static bool is_secret(const char *path)
{
	static const char *const names[] = { "/uuid",           "/alt_name",   "/nfit/serial", "/nfit/id",
					     "/nfit/unique_id", "/set_cookie", "/security" };

	for (unsigned int i = 0; i < ARRAY_SIZE(names); i++)
		if (ends_with(path, names[i]))
			return true;
	return false;
}

/* A text of the same form with nothing of the old one in it. */
static void replace(struct recorder *r, const char *path, char *text, size_t size)
{
	unsigned int i = 0;

	if (!text[0])
		return;
	while (i < r->n_secrets && strcmp(r->secrets[i], text) != 0)
		i++;
	if (i == r->n_secrets && i < MAX_SECRETS && (r->secrets[i] = strdup(text)))
		r->n_secrets++;
	if (ends_with(path, "/uuid"))
		snprintf(text, size, "00000000-0000-4000-8000-%012x", i + 1);
	else if (ends_with(path, "/alt_name") || ends_with(path, "/security"))
		snprintf(text, size, "replaced");
	else
		snprintf(text, size, "0x%08x", i + 1);
}

static void print_escaped(FILE *to, const char *text)
{
	for (; *text; text++) {
		if (*text == '\n')
			fputs("\\n", to);
		else if (*text == '\\')
			fputs("\\\\", to);
		else
			fputc(*text, to);
	}
}

static void record_attribute(struct recorder *r, const char *path, const struct stat *st)
{
	char text[4097];
	ssize_t n;
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);

	if (fd < 0)
		return;
	n = read(fd, text, sizeof(text) - 1);
	close(fd);
	if (n < 0)
		return;
	text[n] = '\0';
	if (n > 0 && text[n - 1] == '\n')
		text[n - 1] = '\0';
	if (is_secret(path))
		replace(r, path, text, sizeof(text));
	fprintf(r->to, "f\t%o\t%s\t", st->st_mode & 07777, path);
	print_escaped(r->to, text);
	fputc('\n', r->to);
}

static void record_link(struct recorder *r, const char *path)
{
	char target[PATH_MAX];
	ssize_t n = readlink(path, target, sizeof(target) - 1);

	if (n > 0)
		fprintf(r->to, "l\t%s\t%.*s\n", path, (int)n, target);
}

/* Below a disk's directory only these matter. */
static bool is_wanted(const char *path)
{
	static const char *const names[] = { "/queue/write_cache", "/queue/dax", "/dev", "/partition", "/slaves" };
	const char *disk = strstr(path, "/block/");

	if (!disk || !strchr(disk + strlen("/block/"), '/'))
		return true;
	for (unsigned int i = 0; i < ARRAY_SIZE(names); i++)
		if (ends_with(path, names[i]))
			return true;
	return false;
}

static void record_tree(struct recorder *r, const char *path, unsigned int depth)
{
	struct dirent **entries;
	int n;

	if (depth > MAX_DEPTH)
		return;
	if (is_wanted(path))
		fprintf(r->to, "d\t%s\n", path);
	n = scandir(path, &entries, NULL, alphasort);
	for (int i = 0; i < n; i++) {
		const char *name = entries[i]->d_name;
		char below[PATH_MAX];
		struct stat st;

		if (name[0] != '.' && strcmp(name, "power") != 0 && strcmp(name, "of_node") != 0 &&
		    (size_t)snprintf(below, sizeof(below), "%s/%s", path, name) < sizeof(below) &&
		    lstat(below, &st) == 0) {
			if (S_ISDIR(st.st_mode))
				record_tree(r, below, depth + 1);
			else if (S_ISLNK(st.st_mode) && is_wanted(below))
				record_link(r, below);
			else if (S_ISREG(st.st_mode) && is_wanted(below) && (st.st_mode & 0444))
				record_attribute(r, below, &st);
		}
		free(entries[i]);
	}
	if (n >= 0)
		free(entries);
}

/* Of the node itself, whose place in the device tree is left out. */
static void record_of_node(struct recorder *r, const char *device)
{
	static const char *const names[] = { "compatible", "ibm,hcall-flush-required" };
	char path[PATH_MAX];
	struct stat st;

	for (unsigned int i = 0; i < ARRAY_SIZE(names); i++) {
		if ((size_t)snprintf(path, sizeof(path), "%s/of_node/%s", device, names[i]) < sizeof(path) &&
		    stat(path, &st) == 0)
			record_attribute(r, path, &st);
	}
}

/* Links there into the tree of a bus. */
static void record_links(struct recorder *r, const char *directory)
{
	char sys[PATH_MAX];
	struct dirent **entries;
	int n;

	if ((size_t)snprintf(sys, sizeof(sys), "%s/%s", mount_sys, directory) >= sizeof(sys))
		return;
	n = scandir(sys, &entries, NULL, alphasort);
	for (int i = 0; i < n; i++) {
		char path[PATH_MAX], target[PATH_MAX];
		ssize_t length;

		if ((size_t)snprintf(path, sizeof(path), "%s/%s", sys, entries[i]->d_name) < sizeof(path) &&
		    (length = readlink(path, target, sizeof(target) - 1)) > 0) {
			target[length] = '\0';
			if (strstr(target, "/ndbus"))
				record_link(r, path);
		}
		free(entries[i]);
	}
	if (n >= 0)
		free(entries);
}

static void record_bus(struct recorder *r, const char *bus)
{
	_cleanup_(close_directoryp) DIR *d = opendir(bus);
	struct dirent *entry;
	char path[PATH_MAX];

	record_tree(r, bus, 0);
	record_of_node(r, bus);
	while (d && (entry = readdir(d)))
		if (strncmp(entry->d_name, "region", strlen("region")) == 0 &&
		    (size_t)snprintf(path, sizeof(path), "%s/%s", bus, entry->d_name) < sizeof(path))
			record_of_node(r, path);
}

int doctor_record(FILE *to)
{
	static const char *const directories[] = { "class/nd",    "bus/nd/devices", "bus/dax/devices", "class/dax",
						   "class/block", "dev/block",      "dev/char" };
	_cleanup_(close_directoryp) DIR *d = NULL;
	struct recorder r = { .to = to };
	unsigned int n = 0;
	struct dirent *entry;
	char path[PATH_MAX];

	snprintf(path, sizeof(path), "%s/class/nd", mount_sys);
	d = opendir(path);
	while (d && (entry = readdir(d))) {
		_cleanup_free_ char *bus = NULL;

		if (strncmp(entry->d_name, "ndctl", strlen("ndctl")) != 0)
			continue;
		bus = sysfs_resolve("%s/class/nd/%s/device", mount_sys, entry->d_name);
		if (!bus)
			continue;
		record_bus(&r, bus);
		n++;
	}
	for (unsigned int i = 0; n > 0 && i < ARRAY_SIZE(directories); i++)
		record_links(&r, directories[i]);
	while (r.n_secrets > 0)
		free(r.secrets[--r.n_secrets]);
	return n > 0 ? 0 : -ENODEV;
}
