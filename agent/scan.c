/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * scan: the regions of this machine, through libndctl and libdaxctl
 */
#include <daxctl/libdaxctl.h>
#include <fcntl.h>
#include <ndctl/libndctl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <syslog.h>
#include <systemd/sd-id128.h>

#include "child.h"
#include "scan.h"
#include "sysfs.h"

static struct ndctl_ctx *ndctl_free(struct ndctl_ctx *ctx)
{
	ndctl_unref(ctx);
	return NULL;
}
DEFINE_CLEANUP(struct ndctl_ctx *, ndctl_free)

static void copy(char *to, size_t size, const char *from)
{
	snprintf(to, size, "%s", from ? from : "");
}

#define COPY(to, from) copy(to, sizeof(to), from)

static enum namespace_mode mode_of(struct ndctl_namespace *ndns)
{
	switch (ndctl_namespace_get_mode(ndns)) {
	case NDCTL_NS_MODE_RAW:
		return NAMESPACE_MODE_RAW;
	case NDCTL_NS_MODE_FSDAX:
		return NAMESPACE_MODE_FSDAX;
	case NDCTL_NS_MODE_DEVDAX:
		return NAMESPACE_MODE_DEVDAX;
	case NDCTL_NS_MODE_SECTOR:
		return NAMESPACE_MODE_SECTOR;
	case NDCTL_NS_MODE_UNKNOWN:
		break;
	}
	return NAMESPACE_MODE_UNKNOWN;
}

/* The seed of a devdax namespace's next device has no size. */
static const char *find_dax_device(struct ndctl_dax *dax)
{
	struct daxctl_region *region = ndctl_dax_get_daxctl_region(dax);
	struct daxctl_dev *dev;

	if (!region)
		return NULL;
	daxctl_dev_foreach(region, dev)
	{
		if (daxctl_dev_get_size(dev) > 0)
			return daxctl_dev_get_devname(dev);
	}
	return NULL;
}

/* The claimed personality of a namespace, if it has one, knows its device and UUID. */
static void scan_personality(struct ndctl_namespace *ndns, struct namespace *ns, sd_id128_t *uuid)
{
	struct ndctl_btt *btt = ndctl_namespace_get_btt(ndns);
	struct ndctl_pfn *pfn = ndctl_namespace_get_pfn(ndns);
	struct ndctl_dax *dax = ndctl_namespace_get_dax(ndns);

	if (btt) {
		COPY(ns->device, ndctl_btt_get_block_device(btt));
		ndctl_btt_get_uuid(btt, uuid->bytes);
	} else if (pfn) {
		COPY(ns->device, ndctl_pfn_get_block_device(pfn));
		ndctl_pfn_get_uuid(pfn, uuid->bytes);
	} else if (dax) {
		COPY(ns->device, find_dax_device(dax));
		ndctl_dax_get_uuid(dax, uuid->bytes);
	} else {
		COPY(ns->device, ndctl_namespace_get_block_device(ndns));
		ndctl_namespace_get_uuid(ndns, uuid->bytes);
	}
}

static void scan_namespace(struct ndctl_namespace *ndns, struct namespace *ns)
{
	sd_id128_t uuid = SD_ID128_NULL;

	COPY(ns->name, ndctl_namespace_get_devname(ndns));
	ns->mode = mode_of(ndns);
	ns->size = ndctl_namespace_get_size(ndns);
	scan_personality(ndns, ns, &uuid);
	if (!sd_id128_is_null(uuid))
		sd_id128_to_uuid_string(uuid, ns->uuid);
	if (!ns->device[0])
		return;
	if (ns->mode == NAMESPACE_MODE_DEVDAX) {
		sysfs_read_devnum(&ns->devnum, "/sys/bus/dax/devices/%s/dev", ns->device);
		return;
	}
	sysfs_read_devnum(&ns->devnum, "/sys/class/block/%s/dev", ns->device);
}

static void scan_deep_flush(struct region *r)
{
	char path[sizeof(r->syspath) + sizeof("/deep_flush")], text[16];
	struct stat st;

	if (sysfs_read(text, sizeof(text), "%s/deep_flush", r->syspath) < 0)
		return;
	r->deep_flush = strcmp(text, "1") == 0;
	snprintf(path, sizeof(path), "%s/deep_flush", r->syspath);
	/* Even root can't write an attribute that is writable to nobody, although access() says that it can. */
	r->deep_flush_writable = stat(path, &st) == 0 && (st.st_mode & 0222) && access(path, W_OK) == 0;
}

static void scan_sysfs(struct region *r)
{
	_cleanup_free_ char *syspath = sysfs_resolve("/sys/bus/nd/devices/%s", r->name);

	COPY(r->syspath, syspath);
	if (!r->syspath[0])
		return;
	r->of_node = sysfs_exists("%s/of_node", r->syspath) || sysfs_exists("%s/../of_node", r->syspath);
	r->flush_required = sysfs_exists("%s/of_node/ibm,hcall-flush-required", r->syspath) ||
			    sysfs_exists("%s/../of_node/ibm,hcall-flush-required", r->syspath);
	scan_deep_flush(r);
}

static bool is_unarmed(struct ndctl_region *ndr)
{
	struct ndctl_mapping *mapping;

	ndctl_mapping_foreach(ndr, mapping)
	{
		struct ndctl_dimm *dimm = ndctl_mapping_get_dimm(mapping);

		if (dimm && ndctl_dimm_failed_arm(dimm) > 0)
			return true;
	}
	return false;
}

static int scan_region(struct ndctl_bus *bus, struct ndctl_region *ndr, struct region **ret)
{
	_cleanup_(region_freep) struct region *r = region_new();
	struct ndctl_namespace *ndns;

	if (!r)
		return -ENOMEM;
	COPY(r->name, ndctl_region_get_devname(ndr));
	COPY(r->bus, ndctl_bus_get_devname(bus));
	COPY(r->provider, ndctl_bus_get_provider(bus));
	r->resource = ndctl_region_get_resource(ndr);
	r->size = ndctl_region_get_size(ndr);
	r->mappings = ndctl_region_get_mappings(ndr);
	r->read_only = ndctl_region_get_ro(ndr) > 0;
	r->unarmed = is_unarmed(ndr);
	r->nfit = ndctl_bus_has_nfit(bus) > 0;
	scan_sysfs(r);
	ndctl_namespace_foreach(ndr, ndns)
	{
		/* What has no size is the seed of the next namespace. */
		if (ndctl_namespace_get_size(ndns) > 0 && r->n_namespaces < REGION_MAX_NAMESPACES)
			scan_namespace(ndns, &r->namespaces[r->n_namespaces++]);
	}
	*ret = r;
	r = NULL;
	return 0;
}

static int scan_context(struct ndctl_ctx *ctx, struct region_list *list)
{
	struct ndctl_bus *bus;
	struct ndctl_region *ndr;
	int e;

	/* Every virtio-pmem device has a bus of its own, all of the same provider. */
	ndctl_bus_foreach(ctx, bus)
	{
		ndctl_region_foreach(bus, ndr)
		{
			if (list->n_regions == SCAN_MAX_REGIONS)
				return -E2BIG;
			e = scan_region(bus, ndr, &list->regions[list->n_regions]);
			if (e < 0)
				return e;
			list->n_regions++;
		}
	}
	return 0;
}

/* What there is, not classified yet. */
static int look(struct region_list *ret)
{
	_cleanup_(ndctl_freep) struct ndctl_ctx *ctx = NULL;
	int e;

	e = ndctl_new(&ctx);
	if (e < 0)
		return e == -ENOENT || e == -ENODEV ? 0 : e;
	/* Below every priority it uses; and it hands this on to libdaxctl. */
	ndctl_set_log_priority(ctx, LOG_EMERG);
	return scan_context(ctx, ret);
}

static int compare_names(const void *a, const void *b)
{
	return strverscmp((*(struct region *const *)a)->name, (*(struct region *const *)b)->name);
}

static int conclude(struct region_list *list)
{
	for (unsigned int i = 0; i < list->n_regions; i++) {
		int e = region_classify(list->regions[i]);

		if (e < 0)
			return e;
	}
	/* libndctl has them as sysfs lists them, which is in no order. */
	qsort(list->regions, list->n_regions, sizeof(*list->regions), compare_names);
	return region_refuse_copies(list->regions, list->n_regions);
}

int scan_regions(struct region_list *ret)
{
	_cleanup_(region_list_clear) struct region_list list = { .n_regions = 0 };
	int e = look(&list);

	if (e >= 0)
		e = conclude(&list);
	if (e < 0)
		return e;
	*ret = list;
	list.n_regions = 0;
	return 0;
}

/* ---- by a child ---- */

struct message {
	bool last;
	int error;            /* of the last: how it ended */
	struct region region; /* of any other; not classified */
};

struct scan {
	pid_t pid;
	int socket;
	struct message message; /* the newest */
	struct region_list list;
};

static void look_for_parent(int sock, void *userdata)
{
	_cleanup_(region_list_clear) struct region_list list = { .n_regions = 0 };
	struct message m = {};

	/* Nobody needs anything of it after that. */
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	m.error = look(&list);
	for (unsigned int i = 0; m.error >= 0 && i < list.n_regions; i++) {
		m.region = *list.regions[i];
		if (send(sock, &m, sizeof(m), MSG_NOSIGNAL) < 0)
			return;
	}
	m.last = true;
	send(sock, &m, sizeof(m), MSG_NOSIGNAL);
}

int scan_start(struct scan **ret)
{
	struct scan *s = calloc(1, sizeof(*s));
	int e;

	if (!s)
		return -ENOMEM;
	e = child_start("pmem-scan", look_for_parent, NULL, &s->pid, &s->socket);
	if (e < 0) {
		free(s);
		return e;
	}
	*ret = s;
	return 0;
}

struct scan *scan_free(struct scan *s)
{
	if (s) {
		region_list_clear(&s->list);
		safe_close(s->socket);
		free(s);
	}
	return NULL;
}

int scan_get_fd(const struct scan *s)
{
	return s->socket;
}

pid_t scan_get_pid(const struct scan *s)
{
	return s->pid;
}

/* 0: there may be more; 1: it was the last; or a negative errno. */
static int receive(struct scan *s)
{
	struct message *m = &s->message;
	ssize_t n = recv(s->socket, m, sizeof(*m), MSG_DONTWAIT);
	struct region *r;

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return -EAGAIN;
	if (n != sizeof(*m) || (!m->last && s->list.n_regions == SCAN_MAX_REGIONS))
		return -EPIPE;
	if (m->last)
		return m->error < 0 ? m->error : 1;
	r = region_new();
	if (!r)
		return -ENOMEM;
	*r = m->region;
	s->list.regions[s->list.n_regions++] = r;
	return 0;
}

int scan_collect(struct scan *s, struct region_list *ret)
{
	int e;

	do
		e = receive(s);
	while (e == 0);
	if (e >= 0)
		e = conclude(&s->list);
	if (e < 0)
		return e;
	*ret = s->list;
	s->list.n_regions = 0;
	return 0;
}

/* ---- emulated ---- */

int scan_emulated(const char *name, const char *path, struct region **ret)
{
	_cleanup_(region_freep) struct region *r = region_new();
	struct statx st;
	int e;

	if (!r)
		return -ENOMEM;
	if (strlen(path) >= sizeof(r->emulate) || strlen(name) >= sizeof(r->name))
		return -ENAMETOOLONG;
	if (statx(AT_FDCWD, path, AT_STATX_DONT_SYNC, STATX_TYPE | STATX_INO | STATX_SIZE, &st) < 0)
		return -errno;
	if (!S_ISREG(st.stx_mode))
		return S_ISDIR(st.stx_mode) ? -EISDIR : -EINVAL;
	COPY(r->name, name);
	COPY(r->provider, "emulated");
	COPY(r->emulate, path);
	r->emulate_device = makedev(st.stx_dev_major, st.stx_dev_minor);
	r->emulate_inode = st.stx_ino;
	r->size = st.stx_size;
	e = region_classify(r);
	if (e < 0)
		return e;
	*ret = r;
	r = NULL;
	return 0;
}

void region_list_clear(struct region_list *list)
{
	for (unsigned int i = 0; i < list->n_regions; i++)
		region_free(list->regions[i]);
	list->n_regions = 0;
}
