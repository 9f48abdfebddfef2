/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * doctor-record: what scan reads of this machine's persistent memory, as text: see selftest/sysfs
 *
 * One entry a line, its parts set apart by tabs:
 *   d PATH              a directory
 *   f MODE PATH TEXT    an attribute; \n and \\ in its text are escaped, its last newline is left out
 *   l PATH TARGET       a symbolic link
 * Of the buses of libnvdimm what scan and its libraries read, of their disks what tells how they are flushed, of the
 * machine what tells of a hypervisor; nothing else, whatever a later kernel may show. UUIDs, names, serial numbers and
 * cookies are replaced, the same by the same.
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

static bool ends_with(const char *path, const char *end)
{
	size_t n = strlen(path), m = strlen(end);

	while (n > 0 && path[n - 1] >= '0' && path[n - 1] <= '9')
		n--;
	return n >= m && strncmp(path + n - m, end, m) == 0;
}

/* How an attribute is recorded; what is not in here isn't. */
enum { AS_IT_IS = 1, AS_UUID, AS_NUMBER, AS_NAME };

static const struct {
	const char *name; /* the end of its path, without a number behind it */
	int how;
} attributes[] = {
	/* buses and DIMMs */
	{ "/provider", AS_IT_IS },
	{ "/commands", AS_IT_IS },
	{ "/wait_probe", AS_IT_IS },
	{ "/dev", AS_IT_IS },
	{ "/devtype", AS_IT_IS },
	{ "/modalias", AS_IT_IS },
	{ "/state", AS_IT_IS },
	{ "/flags", AS_IT_IS },
	{ "/security", AS_NAME },
	{ "/available_slots", AS_IT_IS },
	{ "/dirty_shutdown", AS_IT_IS },
	{ "/nfit/revision", AS_IT_IS },
	{ "/nfit/dsm_mask", AS_IT_IS },
	{ "/nfit/family", AS_IT_IS },
	{ "/nfit/formats", AS_IT_IS },
	{ "/nfit/format", AS_IT_IS },
	{ "/nfit/handle", AS_IT_IS },
	{ "/nfit/phys_id", AS_IT_IS },
	{ "/nfit/vendor", AS_IT_IS },
	{ "/nfit/device", AS_IT_IS },
	{ "/nfit/rev_id", AS_IT_IS },
	{ "/nfit/subsystem_vendor", AS_IT_IS },
	{ "/nfit/subsystem_device", AS_IT_IS },
	{ "/nfit/subsystem_rev_id", AS_IT_IS },
	{ "/nfit/range_index", AS_IT_IS },
	{ "/nfit/id", AS_NUMBER },
	{ "/nfit/unique_id", AS_NUMBER },
	{ "/nfit/serial", AS_NUMBER },
	/* regions */
	{ "/size", AS_IT_IS },
	{ "/resource", AS_IT_IS },
	{ "/align", AS_IT_IS },
	{ "/mappings", AS_IT_IS },
	{ "/mapping", AS_IT_IS },
	{ "/nstype", AS_IT_IS },
	{ "/read_only", AS_IT_IS },
	{ "/deep_flush", AS_IT_IS },
	{ "/persistence_domain", AS_IT_IS },
	{ "/available_size", AS_IT_IS },
	{ "/max_available_extent", AS_IT_IS },
	{ "/numa_node", AS_IT_IS },
	{ "/target_node", AS_IT_IS },
	{ "/namespace_seed", AS_IT_IS },
	{ "/btt_seed", AS_IT_IS },
	{ "/pfn_seed", AS_IT_IS },
	{ "/dax_seed", AS_IT_IS },
	{ "/init_namespaces", AS_IT_IS },
	{ "/badblocks", AS_IT_IS },
	{ "/set_cookie", AS_NUMBER },
	/* namespaces and what claims them */
	{ "/mode", AS_IT_IS },
	{ "/holder", AS_IT_IS },
	{ "/holder_class", AS_IT_IS },
	{ "/force_raw", AS_IT_IS },
	{ "/sector_size", AS_IT_IS },
	{ "/namespace", AS_IT_IS },
	{ "/supported_alignments", AS_IT_IS },
	{ "/log_zero_flags", AS_IT_IS },
	{ "/dpa_extents", AS_IT_IS },
	{ "/uuid", AS_UUID },
	{ "/alt_name", AS_NAME },
	/* device-dax */
	{ "/dax_region/id", AS_IT_IS },
	{ "/start", AS_IT_IS },
	{ "/end", AS_IT_IS },
	{ "/page_offset", AS_IT_IS },
	/* disks and partitions */
	{ "/queue/write_cache", AS_IT_IS },
	{ "/queue/dax", AS_IT_IS },
	{ "/partition", AS_IT_IS },
	/* the machine, and the device tree's nodes */
	{ "/hypervisor/type", AS_IT_IS },
	{ "/of_node/compatible", AS_IT_IS },
	{ "/of_node/ibm,hcall-flush-required", AS_IT_IS },
};

static int find_way(const char *path)
{
	for (unsigned int i = 0; i < ARRAY_SIZE(attributes); i++)
		if (ends_with(path, attributes[i].name))
			return attributes[i].how;
	return 0;
}

/* A text of the same form with nothing of the old one in it. */
static void replace(struct recorder *r, int how, char *text, size_t size)
{
	unsigned int i = 0;

	/* Nothing was set. */
	if (!text[strspn(text, "0x-")])
		return;
	while (i < r->n_secrets && strcmp(r->secrets[i], text) != 0)
		i++;
	if (i == r->n_secrets && i < MAX_SECRETS && (r->secrets[i] = strdup(text)))
		r->n_secrets++;
	if (how == AS_UUID)
		snprintf(text, size, "00000000-0000-4000-8000-%012x", i + 1);
	else if (how == AS_NAME)
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
	int how = find_way(path), fd = how ? open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK) : -1;
	ssize_t n;

	if (fd < 0)
		return;
	n = read(fd, text, sizeof(text) - 1);
	close(fd);
	if (n < 0)
		return;
	text[n] = '\0';
	if (n > 0 && text[n - 1] == '\n')
		text[n - 1] = '\0';
	if (how != AS_IT_IS)
		replace(r, how, text, sizeof(text));
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

static int is_region(const struct dirent *entry)
{
	return strncmp(entry->d_name, "region", strlen("region")) == 0;
}

static void record_bus(struct recorder *r, const char *bus)
{
	struct dirent **entries;
	char path[PATH_MAX];
	int n;

	record_tree(r, bus, 0);
	record_of_node(r, bus);
	n = scandir(bus, &entries, is_region, versionsort);
	for (int i = 0; i < n; i++) {
		if ((size_t)snprintf(path, sizeof(path), "%s/%s", bus, entries[i]->d_name) < sizeof(path))
			record_of_node(r, path);
		free(entries[i]);
	}
	if (n >= 0)
		free(entries);
}

/* Of a bus: there is one for each. */
static int is_control(const struct dirent *entry)
{
	return strncmp(entry->d_name, "ndctl", strlen("ndctl")) == 0;
}

/* What doctor_collect_machine() looks at. */
static void record_machine(struct recorder *r)
{
	const char *word = doctor_find_hypervisor_word();
	char path[PATH_MAX];
	struct stat st;

	snprintf(path, sizeof(path), "%s/hypervisor/type", mount_sys);
	if (stat(path, &st) == 0)
		record_attribute(r, path, &st);
	if (word)
		fprintf(r->to, "f\t444\t/proc/cpuinfo\t:%s\n", word);
}

int doctor_record(FILE *to)
{
	static const char *const directories[] = { "class/nd",    "bus/nd/devices", "bus/dax/devices", "class/dax",
						   "class/block", "dev/block",      "dev/char" };
	struct recorder r = { .to = to };
	struct dirent **entries;
	char path[PATH_MAX];
	unsigned int n_buses = 0;
	int n;

	snprintf(path, sizeof(path), "%s/class/nd", mount_sys);
	n = scandir(path, &entries, is_control, versionsort);
	for (int i = 0; i < n; i++) {
		_cleanup_free_ char *bus = sysfs_resolve("%s/class/nd/%s/device", mount_sys, entries[i]->d_name);

		free(entries[i]);
		if (!bus)
			continue;
		record_bus(&r, bus);
		n_buses++;
	}
	if (n >= 0)
		free(entries);
	for (unsigned int i = 0; n_buses > 0 && i < ARRAY_SIZE(directories); i++)
		record_links(&r, directories[i]);
	if (n_buses > 0)
		record_machine(&r);
	while (r.n_secrets > 0)
		free(r.secrets[--r.n_secrets]);
	return n_buses > 0 ? 0 : -ENODEV;
}
