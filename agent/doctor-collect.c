/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * doctor-collect: the layers below a path, from statx, mountinfo, sysfs and /proc/PID/maps
 */
#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/sysmacros.h>

#include "doctor.h"
#include "layers.h"
#include "lib/wire.h"
#include "mount-private.h"
#include "sysfs.h"
#include "witness.h"

#ifndef STATX_ATTR_DAX
#define STATX_ATTR_DAX 0x00200000
#endif

#define MAX_PROCESSES 65536

struct doctor_facts *doctor_facts_new(void)
{
	struct doctor_facts *f = calloc(1, sizeof(*f));

	if (f)
		f->page_size = (unsigned long)sysconf(_SC_PAGESIZE);
	return f;
}

struct doctor_facts *doctor_facts_free(struct doctor_facts *f)
{
	if (f)
		region_list_clear(&f->regions);
	free(f);
	return NULL;
}

/* The place of the new layer, the last one again if there is no room. */
static int add_layer(struct doctor_facts *f, enum doctor_layer_type type, int parent, const char *name)
{
	struct doctor_layer *l;

	if (f->n_layers == DOCTOR_MAX_LAYERS) {
		f->truncated = true;
		return DOCTOR_MAX_LAYERS - 1;
	}
	l = &f->layers[f->n_layers];
	*l = (struct doctor_layer){ .type = type, .parent = parent, .dax = -1, .map_sync = -1 };
	memcpy(l->name, name, strnlen(name, sizeof(l->name) - 1));
	return (int)f->n_layers++;
}

/* ---- regions ---- */

static void _printf_(2, 3) describe(struct doctor_layer *l, const char *format, ...)
{
	char text[sizeof(l->detail)];
	va_list args;

	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	strcpy(l->detail, text);
}

static void add_region(struct doctor_facts *f, const struct region *r, int parent)
{
	int i = add_layer(f, DOCTOR_LAYER_REGION, parent, r->name);
	struct doctor_layer *l = &f->layers[i];

	l->region = r;
	describe(l, "%s, %s, %s", region_kind_to_string(r->kind), r->asynchronous ? "asynchronous" : "synchronous",
		 doctor_method(f, r));
	i = add_layer(f, DOCTOR_LAYER_HOST, i, f->hypervisor);
	l = &f->layers[i];
	l->region = r;
}

static void add_namespace(struct doctor_facts *f, const struct region *r, const struct namespace *ns, int parent)
{
	int i = add_layer(f, DOCTOR_LAYER_NAMESPACE, parent, ns->name);
	struct doctor_layer *l = &f->layers[i];

	l->region = r;
	l->ns = ns;
	describe(l, "%s%s%s", namespace_mode_to_string(ns->mode), ns->device[0] ? " /dev/" : "", ns->device);
	add_region(f, r, i);
}

/* False: the device is no namespace's. */
static bool add_namespace_of(struct doctor_facts *f, dev_t devnum, bool character, int parent)
{
	for (unsigned int i = 0; i < f->regions.n_regions; i++) {
		const struct region *r = f->regions.regions[i];
		const struct namespace *ns = region_find_device(r, devnum, character);

		if (ns) {
			add_namespace(f, r, ns, parent);
			return true;
		}
	}
	return false;
}

/* ---- devices ---- */

struct walk {
	struct doctor_facts *facts;
	int parents[2 * LAYERS_MAX_DEPTH + 3]; /* by level: the newest layer there */
	int top;
};

static void describe_device(struct doctor_layer *l, const char *path)
{
	char uuid[64] = "", name[64] = "", text[16];

	if (sysfs_read_devnum(&l->device, "%s/dev", path) < 0)
		l->device = 0;
	if (sysfs_exists("%s/partition", path)) {
		strcpy(l->detail, "partition");
		return;
	}
	if (sysfs_read(l->write_cache, sizeof(l->write_cache), "%s/queue/write_cache", path) < 0)
		l->write_cache[0] = '\0';
	if (sysfs_read(text, sizeof(text), "%s/queue/dax", path) == 0)
		l->dax = strcmp(text, "1") == 0;
	if (sysfs_read(name, sizeof(name), "%s/dm/name", path) == 0 &&
	    sysfs_read(uuid, sizeof(uuid), "%s/dm/uuid", path) < 0)
		uuid[0] = '\0';
	uuid[strcspn(uuid, "-")] = '\0';
	describe(l, "%s%s%s%s%s%s%s", name[0] ? "device-mapper " : "disk", name, uuid[0] ? ", " : "", uuid,
		 l->write_cache[0] ? ", " : "", l->write_cache,
		 l->dax == 1   ? ", DAX"
		 : l->dax == 0 ? ", no DAX"
			       : "");
}

static void visit_device(void *userdata, const char *path, unsigned int level)
{
	struct walk *w = userdata;
	int parent = w->top, i;

	for (unsigned int above = level; above > 0 && parent == w->top; above--)
		parent = w->parents[above - 1] > 0 ? w->parents[above - 1] - 1 : w->top;
	i = add_layer(w->facts, DOCTOR_LAYER_DEVICE, parent, strrchr(path, '/') + 1);
	w->parents[level] = i + 1;
	for (unsigned int below = level + 1; below < ARRAY_SIZE(w->parents); below++)
		w->parents[below] = 0;
	describe_device(&w->facts->layers[i], path);
	if (strcmp(w->facts->layers[i].detail, "partition") != 0)
		add_namespace_of(w->facts, w->facts->layers[i].device, false, i);
}

static int add_device(struct doctor_facts *f, dev_t devnum, int parent, char *detail)
{
	struct walk w = { .facts = f, .top = parent };
	struct layers l = { .visit = visit_device, .userdata = &w };

	return layers_add(&l, mount_sys, devnum, detail);
}

/* ---- files and filesystems ---- */

static bool has_device(const struct doctor_facts *f, unsigned int from, dev_t devnum)
{
	for (unsigned int i = from; i < f->n_layers; i++) {
		if (f->layers[i].type == DOCTOR_LAYER_DEVICE && f->layers[i].device == devnum)
			return true;
	}
	return false;
}

static int add_filesystem(struct doctor_facts *f, const struct target *t, int parent, int refusal, char *detail)
{
	int i = add_layer(f, DOCTOR_LAYER_FILESYSTEM, parent, t->source), r = 0;
	struct doctor_layer *l = &f->layers[i];
	unsigned int from = f->n_layers;
	struct statfs st;

	l->device = t->device;
	l->refusal = refusal;
	if (refusal)
		snprintf(l->refusal_detail, sizeof(l->refusal_detail), "%s", detail);
	snprintf(l->fstype, sizeof(l->fstype), "%s", t->fstype);
	if (mount_get_options(t, l->options, sizeof(l->options)) < 0)
		l->options[0] = '\0';
	describe(l, "%s, %.150s", l->fstype, l->options);
	if (major(t->device) != 0)
		r = add_device(f, t->device, i, detail);
	/* Those of its journal, and of a filesystem without a number of its own. */
	for (unsigned int j = 0; r == 0 && j < t->n_leaves; j++) {
		if (!has_device(f, from, t->leaves[j].devnum))
			r = add_device(f, t->leaves[j].devnum, i, detail);
	}
	/* Only of what is on a block device: others may hang. */
	if (r == 0 && t->n_leaves > 0 && statfs(t->source, &st) == 0)
		l->block_size = (unsigned long)st.f_bsize;
	return r;
}

/* Reading alone, and one page of it: the kernel decides before anything is touched. */
static int try_map_sync(const char *path, size_t page_size)
{
	_cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	void *p;

	if (fd < 0)
		return -1;
	p = mmap(NULL, page_size, PROT_READ, MAP_SHARED_VALIDATE | MAP_SYNC, fd, 0);
	if (p == MAP_FAILED)
		return errno == EOPNOTSUPP ? 0 : -1;
	munmap(p, page_size);
	return 1;
}

static int add_file(struct doctor_facts *f, const char *path, const struct statx *st)
{
	int i = add_layer(f, DOCTOR_LAYER_FILE, -1, path);
	struct doctor_layer *l = &f->layers[i];

	l->regular = S_ISREG(st->stx_mode);
	l->inode = st->stx_ino;
	l->device = makedev(st->stx_dev_major, st->stx_dev_minor);
	if (st->stx_attributes_mask & STATX_ATTR_DAX)
		l->dax = !!(st->stx_attributes & STATX_ATTR_DAX);
	if (l->dax == 1)
		l->map_sync = try_map_sync(path, f->page_size);
	describe(l, "%s%s",
		 l->dax == 1   ? "DAX"
		 : l->dax == 0 ? "page cache"
			       : "",
		 l->map_sync == 1   ? ", MAP_SYNC is granted"
		 : l->map_sync == 0 ? ", MAP_SYNC is refused"
				    : "");
	return i;
}

static bool is_resolved(int r)
{
	return r == 0 || r == PMEM_AGENT_FILESYSTEM || r == PMEM_AGENT_UNFLUSHED || r == PMEM_AGENT_ORDINARY;
}

/* The region that this file stands for. */
static const struct region *find_emulated(const struct doctor_facts *f, const struct statx *st)
{
	for (unsigned int i = 0; i < f->regions.n_regions; i++) {
		const struct region *r = f->regions.regions[i];

		if (r->kind == REGION_KIND_EMULATED && r->emulate_inode == st->stx_ino &&
		    r->emulate_device == makedev(st->stx_dev_major, st->stx_dev_minor))
			return r;
	}
	return NULL;
}

static int collect_path(struct doctor_facts *f, const char *path, char *detail)
{
	const struct region *emulated;
	struct target t;
	struct statx st;
	int r, i = -1;

	if (statx(AT_FDCWD, path, AT_STATX_DONT_SYNC, STATX_TYPE | STATX_INO | STATX_MNT_ID, &st) < 0)
		return -errno;
	if (S_ISBLK(st.stx_mode))
		return add_device(f, makedev(st.stx_rdev_major, st.stx_rdev_minor), -1, detail);
	r = mount_resolve_stat(&st, MOUNT_SCOPE_AUTO, &t, detail);
	if (!is_resolved(r))
		return r;
	if (S_ISCHR(st.stx_mode)) {
		if (!add_namespace_of(f, t.device, true, -1)) {
			snprintf(detail, MOUNT_DETAIL_MAX, "it is no device of a region");
			return PMEM_AGENT_REFUSED;
		}
		return 0;
	}
	if (S_ISREG(st.stx_mode))
		i = add_file(f, path, &st);
	emulated = S_ISREG(st.stx_mode) ? find_emulated(f, &st) : NULL;
	if (emulated) {
		add_region(f, emulated, i);
		return 0;
	}
	return add_filesystem(f, &t, i, r, detail);
}

static void collect_region(struct doctor_facts *f, const struct region *r, bool all)
{
	unsigned int n = 0;
	char detail[MOUNT_DETAIL_MAX];

	for (unsigned int i = 0; i < r->n_namespaces; i++) {
		const struct namespace *ns = &r->namespaces[i];
		bool block = ns->devnum && ns->mode != NAMESPACE_MODE_DEVDAX;

		n++;
		if (!all && block && has_device(f, 0, ns->devnum))
			continue;
		if (!block || add_device(f, ns->devnum, -1, detail) != 0)
			add_namespace(f, r, ns, -1);
	}
	if (n == 0)
		add_region(f, r, -1);
}

/* Filesystems on a region. One that can't be followed is left out: its region has a tree of its own then. */
static void collect_mounts(struct doctor_facts *f)
{
	char point[256], detail[MOUNT_DETAIL_MAX];
	struct target t;
	int e, r;

	for (unsigned int i = 0; (e = mount_get_point(i, point, sizeof(point))) != -ENOENT; i++) {
		unsigned int before = f->n_layers;
		bool pmem = false;

		if (e == -ENAMETOOLONG)
			continue;
		if (e < 0)
			return;
		r = mount_resolve_path(point, &t, detail);
		if (!is_resolved(r) || has_device(f, 0, t.device))
			continue;
		for (unsigned int j = 0; j < t.n_leaves; j++)
			for (unsigned int k = 0; k < f->regions.n_regions; k++)
				pmem |= region_find_device(f->regions.regions[k], t.leaves[j].devnum, false) != NULL;
		if (pmem && add_filesystem(f, &t, -1, r, detail) != 0)
			f->n_layers = before;
	}
}

int doctor_collect(struct doctor_facts *f, const char *path, char detail[static MOUNT_DETAIL_MAX])
{
	for (unsigned int i = 0; path && i < f->regions.n_regions; i++) {
		if (strcmp(f->regions.regions[i]->name, path) != 0)
			continue;
		collect_region(f, f->regions.regions[i], true);
		return 0;
	}
	if (path)
		return collect_path(f, path, detail);
	collect_mounts(f);
	for (unsigned int i = 0; i < f->regions.n_regions; i++)
		collect_region(f, f->regions.regions[i], false);
	return 0;
}

/* ---- the machine ---- */

static bool is_said_in(const char *path, const char *word)
{
	FILE *f = fopen(path, "re");
	char *line = NULL;
	size_t size = 0;
	bool found = false;

	while (f && !found && getline(&line, &size, f) > 0)
		found = strstr(line, word);
	free(line);
	if (f)
		fclose(f);
	return found;
}

static const struct {
	const char *word, *name;
} hypervisors[] = {
	{ " hypervisor", "hypervisor" }, /* among the flags of x86 */
	{ " pSeries", "PowerVM or KVM" },
};

const char *doctor_find_hypervisor_word(void)
{
	char path[PATH_MAX];

	snprintf(path, sizeof(path), "%s/cpuinfo", mount_proc);
	for (unsigned int i = 0; i < ARRAY_SIZE(hypervisors); i++)
		if (is_said_in(path, hypervisors[i].word))
			return hypervisors[i].word;
	return NULL;
}

void doctor_collect_machine(struct doctor_facts *f, const char *port)
{
	const char *word = doctor_find_hypervisor_word();

	if (sysfs_read(f->hypervisor, sizeof(f->hypervisor), "%s/hypervisor/type", mount_sys) < 0)
		f->hypervisor[0] = '\0';
	for (unsigned int i = 0; !f->hypervisor[0] && i < ARRAY_SIZE(hypervisors); i++)
		if (word == hypervisors[i].word)
			strcpy(f->hypervisor, hypervisors[i].name);
	f->port = access(port, F_OK) == 0;
	/* Without the agent's word for it. Only root can see that it is not there. */
	if (access(WITNESS_INSTANCE, F_OK) == 0)
		f->witness = 1;
	else
		f->witness = geteuid() == 0 ? 0 : -1;
}

/* ---- programs that map them ---- */

/* The layer that a line of maps is of; -1: none, or not shared and writable. */
static int find_mapped(const struct doctor_facts *f, const char *line)
{
	unsigned int major_, minor_;
	unsigned long long inode;
	char permissions[8];
	const char *path = strchr(line, '/');

	if (sscanf(line, "%*s %7s %*s %x:%x %llu", permissions, &major_, &minor_, &inode) != 4 || inode == 0 ||
	    permissions[1] != 'w' || permissions[3] != 's')
		return -1;
	for (unsigned int i = 0; i < f->n_layers; i++) {
		const struct doctor_layer *l = &f->layers[i];

		if (l->type == DOCTOR_LAYER_FILE && l->device == makedev(major_, minor_) && l->inode == inode)
			return (int)i;
		if (l->type == DOCTOR_LAYER_FILESYSTEM && l->device == makedev(major_, minor_) &&
		    (l->parent < 0 || f->layers[l->parent].type != DOCTOR_LAYER_FILE))
			return (int)i;
		if (l->type == DOCTOR_LAYER_NAMESPACE && l->ns->device[0] && path &&
		    strncmp(path, "/dev/", strlen("/dev/")) == 0 && strcmp(path + strlen("/dev/"), l->ns->device) == 0)
			return (int)i;
	}
	return -1;
}

static FILE *open_process(int pid, const char *name)
{
	char path[PATH_MAX];

	snprintf(path, sizeof(path), "%s/%d/%s", mount_proc, pid, name);
	return fopen(path, "re");
}

static bool is_forced(int pid)
{
	static const char *const names[] = { "PMEM2_FORCE_GRANULARITY=", "PMEM_IS_PMEM_FORCE=1" };
	FILE *f = open_process(pid, "environ");
	char *variable = NULL;
	size_t size = 0;
	bool found = false;

	while (f && !found && getdelim(&variable, &size, '\0', f) > 0)
		for (unsigned int i = 0; i < ARRAY_SIZE(names); i++)
			found |= strncmp(variable, names[i], strlen(names[i])) == 0 &&
				 strcasecmp(variable, "PMEM2_FORCE_GRANULARITY=PAGE") != 0;
	free(variable);
	if (f)
		fclose(f);
	return found;
}

static bool add_mapper(struct doctor_facts *f, int pid, int layer)
{
	struct doctor_mapper *m = &f->mappers[f->n_mappers];
	FILE *comm;

	for (unsigned int i = f->n_mappers; i-- > 0 && f->mappers[i].pid == pid;)
		if (f->mappers[i].layer == layer)
			return true;
	if (f->n_mappers == DOCTOR_MAX_MAPPERS) {
		f->truncated = true;
		return false;
	}
	*m = (struct doctor_mapper){ .layer = layer, .pid = pid, .forced = is_forced(pid) };
	comm = open_process(pid, "comm");
	if (!comm || !fgets(m->command, sizeof(m->command), comm))
		strcpy(m->command, "?");
	m->command[strcspn(m->command, "\n")] = '\0';
	if (comm)
		fclose(comm);
	f->n_mappers++;
	return true;
}

static void look_at_process(struct doctor_facts *f, int pid)
{
	FILE *maps = open_process(pid, "maps");
	unsigned int first = f->n_mappers;
	bool library = false;
	char *line = NULL;
	size_t size = 0;
	ssize_t n;

	errno = maps ? 0 : errno;
	while (maps && (n = getline(&line, &size, maps)) > 0) {
		int layer;

		line[strcspn(line, "\n")] = '\0';
		library |= strstr(line, "/libpmem-agent") || strstr(line, PMEM_AGENT_RUNTIME_DIR "/");
		layer = find_mapped(f, line);
		if (layer >= 0 && !add_mapper(f, pid, layer))
			break;
		errno = 0;
	}
	/* It may have ended meanwhile, which is no matter. */
	f->n_unseen += errno == EACCES || errno == EPERM;
	for (unsigned int i = first; i < f->n_mappers; i++)
		f->mappers[i].library = library;
	free(line);
	if (maps)
		fclose(maps);
}

void doctor_collect_mappers(struct doctor_facts *f)
{
	DIR *d = opendir(mount_proc);
	struct dirent *entry;

	for (unsigned int n = 0; d && (entry = readdir(d)) && n < MAX_PROCESSES; n++) {
		char *end;
		long pid = strtol(entry->d_name, &end, 10);

		if (pid > 0 && !*end)
			look_at_process(f, (int)pid);
	}
	if (d)
		closedir(d);
}
