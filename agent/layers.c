/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * layers: the block devices below a block device, through sysfs alone: partitions, device-mapper, RAID
 */
#include <dirent.h>
#include <stdio.h>
#include <string.h>
#include <sys/sysmacros.h>

#include "layers.h"
#include "sysfs.h"

static DIR *close_directory(DIR *d)
{
	closedir(d);
	return NULL;
}
DEFINE_CLEANUP(DIR *, close_directory)

static const char *name_of(const char *path)
{
	const char *slash = strrchr(path, '/');

	return slash ? slash + 1 : path;
}

static int too_much(const char *path, char *detail)
{
	snprintf(detail, MOUNT_DETAIL_MAX, "%s has too many devices below it; the agent follows %d", name_of(path),
		 MOUNT_MAX_LEAVES);
	return PMEM_AGENT_REFUSED;
}

static int add_leaf(struct layers *l, const char *path, char *detail)
{
	struct leaf leaf = { .character = false };
	int e;

	e = sysfs_read_devnum(&leaf.devnum, "%s/dev", path);
	if (e < 0)
		return e;
	for (unsigned int i = 0; i < l->n_leaves; i++) {
		if (l->leaves[i].devnum == leaf.devnum)
			return 0;
	}
	if (l->n_leaves == MOUNT_MAX_LEAVES)
		return too_much(path, detail);
	snprintf(leaf.name, sizeof(leaf.name), "%s", name_of(path));
	l->leaves[l->n_leaves++] = leaf;
	return 0;
}

/* A layer that says anything but "write back" swallows flushes, even if the disks below it don't. */
static void look_at_queue(struct layers *l, const char *path)
{
	char text[32];

	if (l->look_at_queues && !l->write_through[0] &&
	    (sysfs_read(text, sizeof(text), "%s/queue/write_cache", path) < 0 || strcmp(text, "write back") != 0))
		snprintf(l->write_through, sizeof(l->write_through), "%s", name_of(path));
}

static int add_path(struct layers *l, char *path, unsigned int depth, char *detail);

static int add_slaves(struct layers *l, const char *path, unsigned int depth, unsigned int *ret_n, char *detail)
{
	_cleanup_(close_directoryp) DIR *d = NULL;
	_cleanup_free_ char *slaves = sysfs_resolve("%s/slaves", path);
	struct dirent *entry;
	unsigned int n = 0;
	int r;

	d = slaves ? opendir(slaves) : NULL;
	if (!d && errno != ENOENT)
		return -errno;
	while (d && (errno = 0, entry = readdir(d))) {
		_cleanup_free_ char *slave = NULL;

		if (entry->d_name[0] == '.')
			continue;
		slave = sysfs_resolve("%s/%s", slaves, entry->d_name);
		r = slave ? add_path(l, slave, depth + 1, detail) : -errno;
		if (r != 0)
			return r;
		n++;
	}
	if (d && errno != 0)
		return -errno;
	*ret_n = n;
	return 0;
}

/* Cuts a partition's path down to its disk's. */
static int add_path(struct layers *l, char *path, unsigned int depth, char *detail)
{
	unsigned int n_slaves = 0;
	int r;

	if (depth > LAYERS_MAX_DEPTH || l->n_visits++ >= LAYERS_MAX_VISITS)
		return too_much(path, detail);
	if (sysfs_exists("%s/partition", path)) {
		if (l->visit)
			l->visit(l->userdata, path, 2 * depth);
		*strrchr(path, '/') = '\0';
	}
	if (l->visit)
		l->visit(l->userdata, path, 2 * depth + 1);
	look_at_queue(l, path);
	r = add_slaves(l, path, depth, &n_slaves, detail);
	if (r != 0)
		return r;
	return n_slaves == 0 ? add_leaf(l, path, detail) : 0;
}

static char *resolve_device(const char *sys, dev_t devnum)
{
	return sysfs_resolve("%s/dev/block/%u:%u", sys, major(devnum), minor(devnum));
}

int layers_add(struct layers *l, const char *sys, dev_t devnum, char detail[static MOUNT_DETAIL_MAX])
{
	_cleanup_free_ char *path = resolve_device(sys, devnum);
	int r;

	r = path ? add_path(l, path, 0, detail) : -errno;
	if (r != -ENOENT && r != -ENODEV)
		return r;
	snprintf(detail, MOUNT_DETAIL_MAX, "block device %u:%u, or one below it, is not there any more", major(devnum),
		 minor(devnum));
	return PMEM_AGENT_GONE;
}

int layers_get_name(const char *sys, dev_t devnum, char *ret, size_t size)
{
	_cleanup_free_ char *path = resolve_device(sys, devnum);

	if (!path)
		return -errno;
	if (strlen(name_of(path)) >= size)
		return -ENAMETOOLONG;
	strcpy(ret, name_of(path));
	return 0;
}

static int find_mapping(const char *sys, const char *name, dev_t *ret)
{
	_cleanup_(close_directoryp) DIR *d = NULL;
	_cleanup_free_ char *class = sysfs_resolve("%s/class/block", sys);
	struct dirent *entry;
	char text[128];

	d = class ? opendir(class) : NULL;
	while (d && (entry = readdir(d))) {
		if (strncmp(entry->d_name, "dm-", 3) == 0 &&
		    sysfs_read(text, sizeof(text), "%s/%s/dm/name", class, entry->d_name) == 0 &&
		    strcmp(text, name) == 0)
			return sysfs_read_devnum(ret, "%s/%s/dev", class, entry->d_name) < 0 ? -ENODEV : 0;
	}
	return -ENODEV;
}

int layers_find_device(const char *sys, const char *node, dev_t *ret)
{
	char name[64];

	if (strncmp(node, "/dev/mapper/", strlen("/dev/mapper/")) == 0)
		return find_mapping(sys, node + strlen("/dev/mapper/"), ret);
	if (strncmp(node, "/dev/", strlen("/dev/")) != 0 || strlen(node) >= sizeof(name))
		return -ENODEV;
	strcpy(name, node + strlen("/dev/"));
	for (char *slash = name; (slash = strchr(slash, '/'));)
		*slash = '!';
	return sysfs_read_devnum(ret, "%s/class/block/%s/dev", sys, name) < 0 ? -ENODEV : 0;
}

static bool contains(const struct leaf *leaves, unsigned int n, const struct leaf *leaf)
{
	for (unsigned int i = 0; i < n; i++) {
		if (leaves[i].devnum == leaf->devnum && leaves[i].character == leaf->character)
			return true;
	}
	return false;
}

bool layers_equal(const struct leaf *a, unsigned int n_a, const struct leaf *b, unsigned int n_b)
{
	if (n_a != n_b)
		return false;
	for (unsigned int i = 0; i < n_a; i++) {
		if (!contains(b, n_b, &a[i]))
			return false;
	}
	return true;
}
