/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test-scan: scan, on sysfs as it was recorded in real guests (pmemctl doctor --record)
 *
 * libndctl's root is /sys and nothing else, so the test has a mount namespace of its own, and in it the recorded tree
 * instead of /sys. Where no namespace can be had, libumockdev-preload shows the tree in its place.
 */
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
#include <sys/sysmacros.h>
#include <unistd.h>
#include <cmocka.h>

#include "agent/scan.h"

#define PRELOAD "libumockdev-preload.so.0"

static char root[] = "/tmp/test-scan.XXXXXX";
static bool preloaded;

/* ---- the recorded tree ---- */

static void make_parents(char *path)
{
	for (char *slash = path + strlen(root) + 1; (slash = strchr(slash, '/')); slash++) {
		*slash = '\0';
		mkdir(path, 0755);
		*slash = '/';
	}
}

static void unescape(char *text)
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

static void restore_file(const char *path, const char *mode, char *text)
{
	FILE *f = fopen(path, "we");

	assert_non_null(f);
	unescape(text);
	assert_true(fprintf(f, "%s\n", text) > 0);
	assert_int_equal(fclose(f), 0);
	assert_int_equal(chmod(path, strtoul(mode, NULL, 8)), 0);
}

static void restore_line(char *line)
{
	char *type = strsep(&line, "\t"), *mode = type[0] == 'f' ? strsep(&line, "\t") : NULL;
	char *name = strsep(&line, "\t"), path[4096];

	assert_non_null(name);
	assert_int_equal(strncmp(name, "/sys/", 5), 0);
	snprintf(path, sizeof(path), "%s%s", root, name);
	make_parents(path);
	if (type[0] == 'd')
		mkdir(path, 0755);
	else if (type[0] == 'l')
		assert_int_equal(symlink(line, path), 0);
	else
		restore_file(path, mode, line);
}

static void restore(const char *recording)
{
	char path[256], *line = NULL;
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
			restore_line(line);
	}
	free(line);
	fclose(f);
}

/* Another text for an attribute, its mode kept; NULL takes it away. */
static void change(const char *name, const char *text)
{
	char path[4096];
	struct stat st;
	FILE *f;

	snprintf(path, sizeof(path), "%s%s", root, name);
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

static void write_file(const char *path, const char *text)
{
	_cleanup_close_ int fd = open(path, O_WRONLY | O_CLOEXEC);

	if (fd < 0 || write(fd, text, strlen(text)) < 0)
		fprintf(stderr, "# %s: %m\n", path);
}

/* A mount namespace of our own: as the user we are, or as root. */
static bool enter_namespace(void)
{
	char uid_map[64], gid_map[64];

	snprintf(uid_map, sizeof(uid_map), "0 %u 1\n", getuid());
	snprintf(gid_map, sizeof(gid_map), "0 %u 1\n", getgid());
	if (unshare(CLONE_NEWUSER | CLONE_NEWNS) == 0) {
		write_file("/proc/self/setgroups", "deny");
		write_file("/proc/self/uid_map", uid_map);
		write_file("/proc/self/gid_map", gid_map);
	} else if (unshare(CLONE_NEWNS) < 0) {
		return false;
	}
	return mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0;
}

static void show(void)
{
	char path[256], dev[256];

	snprintf(path, sizeof(path), "%s/sys", root);
	snprintf(dev, sizeof(dev), "%s/dev", root);
	mkdir(path, 0755);
	mkdir(dev, 0755);
	if (preloaded) {
		assert_int_equal(setenv("UMOCKDEV_DIR", root, 1), 0);
		return;
	}
	assert_int_equal(mount(path, "/sys", NULL, MS_BIND, NULL), 0);
	assert_int_equal(mount(dev, "/dev", NULL, MS_BIND, NULL), 0);
}

/* libdaxctl leaves out a device without a node. The node's own number is made up wrong: it must not be looked at. */
static void make_node(const char *name)
{
	char path[256];
	int fd;

	snprintf(path, sizeof(path), "%s/dev/%s", root, name);
	make_parents(path);
	fd = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0644);
	assert_true(fd >= 0);
	close(fd);
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	return remove(path);
}

static int set_up(void **state)
{
	strcpy(root + strlen(root) - 6, "XXXXXX");
	return mkdtemp(root) ? 0 : -1;
}

static int tear_down(void **state)
{
	if (preloaded) {
		unsetenv("UMOCKDEV_DIR");
	} else {
		umount2("/dev", MNT_DETACH);
		umount2("/sys", MNT_DETACH);
	}
	return nftw(root, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

/* ---- tests ---- */

static struct region *scan_one(void)
{
	struct region_list list;

	assert_int_equal(scan_regions(&list), 0);
	assert_int_equal(list.n_regions, 1);
	return list.regions[0];
}

static void test_nothing(void **state)
{
	struct region_list list = { .n_regions = 99 };

	show();
	assert_int_equal(scan_regions(&list), 0);
	assert_int_equal(list.n_regions, 0);
}

static void assert_region(const struct region *r, const char *bus, const char *provider, uint64_t resource)
{
	assert_string_equal(r->bus, bus);
	assert_string_equal(r->provider, provider);
	assert_int_equal(r->resource, resource);
	assert_int_equal(r->size, 128 << 20);
	assert_int_equal(r->n_namespaces, 1);
}

static void assert_namespace(const struct namespace *ns, const char *name, enum namespace_mode mode, const char *device,
			     dev_t devnum, const char *uuid)
{
	assert_string_equal(ns->name, name);
	assert_string_equal(namespace_mode_to_string(ns->mode), namespace_mode_to_string(mode));
	assert_string_equal(ns->device, device);
	assert_int_equal(ns->devnum, devnum);
	assert_string_equal(ns->uuid, uuid);
	assert_true(ns->size > 0);
}

/* Two buses of one provider, as libnvdimm 6.1 gives them; what ndctl list said of them is in the checks. */
static void test_fsdax(void **state)
{
	_cleanup_(region_list_clear) struct region_list list = { .n_regions = 0 };

	restore("virtio-pmem-fsdax");
	show();
	assert_int_equal(scan_regions(&list), 0);
	assert_int_equal(list.n_regions, 2);
	for (unsigned int i = 0; i < 2; i++) {
		const struct region *r = list.regions[i];
		bool first = strcmp(r->name, "region0") == 0;

		assert_string_equal(r->name, first ? "region0" : "region1");
		assert_region(r, first ? "ndbus0" : "ndbus1", "virtio-pmem", first ? 0x100000000 : 0x108000000);
		assert_string_equal(r->syspath, first ? "/sys/devices/pci0000:00/0000:00:03.0/virtio2/ndbus0/region0"
						      : "/sys/devices/pci0000:00/0000:00:04.0/virtio3/ndbus1/region1");
		assert_int_equal(r->mappings, 0);
		assert_int_equal(r->deep_flush, -1);
		assert_false(r->deep_flush_writable || r->flush_required || r->of_node || r->read_only || r->unarmed);
		assert_namespace(&r->namespaces[0], first ? "namespace0.0" : "namespace1.0", NAMESPACE_MODE_FSDAX,
				 first ? "pmem0" : "pmem1", makedev(259, first ? 0 : 1), "");
		assert_true(r->kind == REGION_KIND_VIRTIO_PMEM && r->method == REGION_METHOD_BLOCK && r->asynchronous);
	}
	assert_string_not_equal(list.regions[0]->name, list.regions[1]->name);
}

static void test_fsdax_info(void **state)
{
	_cleanup_(region_freep) struct region *r = NULL;

	restore("virtio-pmem-fsdax-info");
	show();
	r = scan_one();
	assert_region(r, "ndbus0", "virtio-pmem", 0x100000000);
	assert_namespace(&r->namespaces[0], "namespace0.0", NAMESPACE_MODE_FSDAX, "pmem0", makedev(259, 0),
			 "f092f24d-9be1-44e4-b11e-f3aa13cc8e04");
	assert_string_equal(r->identity, "uuid:f092f24d-9be1-44e4-b11e-f3aa13cc8e04");
	assert_int_equal(r->method, REGION_METHOD_BLOCK);
}

/* The same from Linux 7.2. */
static void test_linux_7(void **state)
{
	_cleanup_(region_list_clear) struct region_list list = { .n_regions = 0 };

	restore("virtio-pmem-linux-7.2");
	make_node("dax1.0");
	show();
	assert_int_equal(scan_regions(&list), 0);
	assert_int_equal(list.n_regions, 2);
	for (unsigned int i = 0; i < 2; i++) {
		const struct region *r = list.regions[i];
		bool first = strcmp(r->name, "region0") == 0;

		assert_string_equal(r->provider, "virtio-pmem");
		assert_int_equal(r->deep_flush, -1);
		assert_int_equal(r->n_namespaces, 1);
		if (first)
			assert_namespace(&r->namespaces[0], "namespace0.0", NAMESPACE_MODE_FSDAX, "pmem0",
					 makedev(259, 1), "");
		else
			assert_namespace(&r->namespaces[0], "namespace1.0", NAMESPACE_MODE_DEVDAX, "dax1.0",
					 makedev(253, 0), "d8066287-5d9a-47d2-95b8-d0bba91315f9");
		assert_int_equal(r->method, first ? REGION_METHOD_BLOCK : REGION_METHOD_HOST);
	}
	assert_string_not_equal(list.regions[0]->name, list.regions[1]->name);
}

#define PMEM0 "/sys/devices/pci0000:00/0000:00:03.0/virtio2/ndbus0/region0/pfn0.0/block/pmem0"

static void test_seed(void **state)
{
	_cleanup_(region_freep) struct region *r = NULL;

	restore("virtio-pmem-devdax");
	change("/sys/devices/pci0000:00/0000:00:03.0/virtio2/ndbus0/region0/namespace0.0/size", "0");
	show();
	r = scan_one();
	assert_int_equal(r->n_namespaces, 0);
	assert_int_equal(r->method, REGION_METHOD_IMPOSSIBLE);
}

static void test_devdax(void **state)
{
	_cleanup_(region_freep) struct region *r = NULL;

	restore("virtio-pmem-devdax");
	make_node("dax0.0");
	show();
	r = scan_one();
	assert_region(r, "ndbus0", "virtio-pmem", 0x100000000);
	assert_namespace(&r->namespaces[0], "namespace0.0", NAMESPACE_MODE_DEVDAX, "dax0.0", makedev(253, 0),
			 "2c1973f7-7658-4ece-bfd1-06cef60ba36c");
	assert_int_equal(r->method, REGION_METHOD_HOST);
	assert_true(region_has_device(r, makedev(253, 0), true));
	assert_false(region_has_device(r, makedev(253, 0), false));
}

static void test_sector(void **state)
{
	_cleanup_(region_freep) struct region *r = NULL;

	restore("virtio-pmem-sector");
	show();
	r = scan_one();
	assert_namespace(&r->namespaces[0], "namespace0.0", NAMESPACE_MODE_SECTOR, "pmem0s", makedev(259, 0),
			 "2a24439b-f0d3-4e47-a49b-d41d387bb577");
	assert_int_equal(r->method, REGION_METHOD_IMPOSSIBLE);
}

static void test_nvdimm(void **state)
{
	_cleanup_(region_freep) struct region *r = NULL;

	restore("nvdimm");
	show();
	r = scan_one();
	assert_region(r, "ndbus0", "ACPI.NFIT", 0x100000000);
	assert_int_equal(r->mappings, 1);
	assert_int_equal(r->deep_flush, 0);
	assert_false(r->deep_flush_writable || r->unarmed || r->read_only || r->asynchronous);
	assert_namespace(&r->namespaces[0], "namespace0.0", NAMESPACE_MODE_RAW, "pmem0", makedev(259, 0), "");
	assert_int_equal(r->method, REGION_METHOD_CPU_FLUSH);
}

static void test_unarmed(void **state)
{
	_cleanup_(region_freep) struct region *r = NULL;

	restore("nvdimm-unarmed");
	show();
	r = scan_one();
	assert_true(r->unarmed);
	assert_true(r->read_only);
	assert_int_equal(r->method, REGION_METHOD_IMPOSSIBLE);
}

#define NDBUS "/sys/devices/pci0000:00/0000:00:03.0/virtio2/ndbus0"

/* Two regions that want H_SCM_FLUSH, and one that doesn't. */
static void test_papr_recorded(void **state)
{
	static const struct {
		const char *name;
		enum namespace_mode mode;
		enum region_method method;
	} wanted[] = {
		{ "region0", NAMESPACE_MODE_FSDAX, REGION_METHOD_DEEP_FLUSH },
		{ "region1", NAMESPACE_MODE_DEVDAX, REGION_METHOD_DEEP_FLUSH },
		{ "region2", NAMESPACE_MODE_FSDAX, REGION_METHOD_CPU_FLUSH },
	};
	_cleanup_(region_list_clear) struct region_list list = { .n_regions = 0 };

	restore("papr-scm");
	make_node("dax1.0");
	show();
	assert_int_equal(scan_regions(&list), 0);
	assert_int_equal(list.n_regions, ARRAY_SIZE(wanted));
	for (unsigned int i = 0; i < list.n_regions; i++) {
		const struct region *r = list.regions[i];
		unsigned int j = 0;

		while (j < ARRAY_SIZE(wanted) && strcmp(wanted[j].name, r->name) != 0)
			j++;
		assert_true(j < ARRAY_SIZE(wanted));
		assert_int_equal(r->kind, REGION_KIND_PAPR_SCM);
		assert_int_equal(r->method, wanted[j].method);
		assert_int_equal(r->asynchronous, wanted[j].method == REGION_METHOD_DEEP_FLUSH);
		assert_int_equal(r->n_namespaces, 1);
		assert_int_equal(r->namespaces[0].mode, wanted[j].mode);
	}
}

/* What no recording has: an attribute that the agent may not write, and a node without the property. */
static void test_papr(void **state)
{
	_cleanup_(region_freep) struct region *required = NULL, *closed = NULL, *synchronous = NULL;
	char of_node[] = "f\t444\t" NDBUS "/region0/of_node/ibm,hcall-flush-required\t";
	char deep_flush[] = "f\t644\t" NDBUS "/region0/deep_flush\t1", path[256];

	restore("virtio-pmem-devdax");
	change(NDBUS "/provider", "ibm,persistent-memory:ibm,pmemory@44100000");
	restore_line(of_node);
	restore_line(deep_flush);
	show();
	required = scan_one();
	assert_true(required->of_node && required->flush_required && required->asynchronous);
	assert_int_equal(required->deep_flush, 1);
	assert_true(required->deep_flush_writable);
	assert_int_equal(required->method, REGION_METHOD_DEEP_FLUSH);

	/* Whoever runs this is its owner and root in here: what is writable to nobody is so for root too. */
	snprintf(path, sizeof(path), "%s" NDBUS "/region0/deep_flush", root);
	assert_int_equal(chmod(path, 0444), 0);
	closed = scan_one();
	assert_false(closed->deep_flush_writable);
	assert_int_equal(closed->method, REGION_METHOD_IMPOSSIBLE);

	change(NDBUS "/region0/of_node/ibm,hcall-flush-required", NULL);
	synchronous = scan_one();
	assert_true(synchronous->of_node);
	assert_false(synchronous->flush_required || synchronous->asynchronous);
	assert_int_equal(synchronous->method, REGION_METHOD_CPU_FLUSH);
}

/* Two scans of the same are the same, and one that differs isn't. */
static void test_again(void **state)
{
	_cleanup_(region_freep) struct region *a = NULL, *b = NULL, *c = NULL;

	restore("virtio-pmem-fsdax-info");
	show();
	a = scan_one();
	b = scan_one();
	assert_true(region_equal(a, b));
	change(PMEM0 "/dev", "259:7");
	c = scan_one();
	assert_int_equal(c->namespaces[0].devnum, makedev(259, 7));
	assert_false(region_equal(a, c));
}

static void test_emulated(void **state)
{
	_cleanup_(region_freep) struct region *r = NULL, *none = NULL;
	char path[256], missing[512];
	struct stat st;
	int fd;

	snprintf(path, sizeof(path), "%s/file", root);
	fd = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0644);
	assert_int_equal(ftruncate(fd, 4096), 0);
	assert_int_equal(fstat(fd, &st), 0);
	close(fd);
	assert_int_equal(scan_emulated("scratch", path, &r), 0);
	assert_string_equal(r->name, "scratch");
	assert_string_equal(r->emulate, path);
	assert_int_equal(r->emulate_device, st.st_dev);
	assert_int_equal(r->emulate_inode, st.st_ino);
	assert_int_equal(r->size, 4096);
	assert_int_equal(r->resource, REGION_UNKNOWN_RESOURCE);
	assert_int_equal(r->method, REGION_METHOD_FILE);
	assert_true(region_can_flush(r));

	snprintf(missing, sizeof(missing), "%s/missing", root);
	assert_int_equal(scan_emulated("scratch", missing, &none), -ENOENT);
	assert_int_equal(scan_emulated("scratch", root, &none), -EISDIR);
	assert_int_equal(scan_emulated("scratch", "/dev/null", &none), -EINVAL);
	memset(missing, '/', sizeof(missing) - 1);
	missing[sizeof(missing) - 1] = '\0';
	assert_int_equal(scan_emulated("scratch", missing, &none), -ENAMETOOLONG);
	assert_null(none);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)

int main(int argc, char **argv)
{
	static const struct CMUnitTest tests[] = {
		TEST(test_nothing),  TEST(test_fsdax), TEST(test_fsdax_info),    TEST(test_linux_7),
		TEST(test_devdax),   TEST(test_seed),  TEST(test_sector),        TEST(test_nvdimm),
		TEST(test_unarmed),  TEST(test_papr),  TEST(test_papr_recorded), TEST(test_again),
		TEST(test_emulated),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	preloaded = getenv("LD_PRELOAD") && strstr(getenv("LD_PRELOAD"), PRELOAD);
	if (!preloaded && (getenv("TEST_SCAN_NO_NAMESPACE") || !enter_namespace())) {
		void *library = dlopen(PRELOAD, RTLD_NOW);

		if (!library) {
			puts("1..0 # SKIP needs a mount namespace (unshare) or " PRELOAD);
			return 0;
		}
		setenv("LD_PRELOAD", PRELOAD, 1);
		execv("/proc/self/exe", argv);
	}
	return cmocka_run_group_tests(tests, NULL, NULL);
}
