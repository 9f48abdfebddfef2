/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test-scan: scan, on sysfs as it was recorded in real guests
 */
#include <sys/sysmacros.h>

#include "agent/scan.h"
#include "selftest/recorded.h"

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

	recorded_show();
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

	recorded_restore("virtio-pmem-fsdax");
	recorded_show();
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

	recorded_restore("virtio-pmem-fsdax-info");
	recorded_show();
	r = scan_one();
	assert_region(r, "ndbus0", "virtio-pmem", 0x100000000);
	assert_namespace(&r->namespaces[0], "namespace0.0", NAMESPACE_MODE_FSDAX, "pmem0", makedev(259, 0),
			 "00000000-0000-4000-8000-000000000001");
	assert_string_equal(r->identity, "uuid:00000000-0000-4000-8000-000000000001");
	assert_int_equal(r->method, REGION_METHOD_BLOCK);
}

/* The same from Linux 7.2. */
static void test_linux_7(void **state)
{
	_cleanup_(region_list_clear) struct region_list list = { .n_regions = 0 };

	recorded_restore("virtio-pmem-linux-7.2");
	recorded_show();
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
					 makedev(253, 0), "00000000-0000-4000-8000-000000000001");
		assert_int_equal(r->method, first ? REGION_METHOD_BLOCK : REGION_METHOD_HOST);
	}
	assert_string_not_equal(list.regions[0]->name, list.regions[1]->name);
}

#define PMEM0 "/sys/devices/pci0000:00/0000:00:03.0/virtio2/ndbus0/region0/pfn0.0/block/pmem0"

static void test_seed(void **state)
{
	_cleanup_(region_freep) struct region *r = NULL;

	recorded_restore("virtio-pmem-devdax");
	recorded_change("/sys/devices/pci0000:00/0000:00:03.0/virtio2/ndbus0/region0/namespace0.0/size", "0");
	recorded_show();
	r = scan_one();
	assert_int_equal(r->n_namespaces, 0);
	assert_int_equal(r->method, REGION_METHOD_IMPOSSIBLE);
}

static void test_devdax(void **state)
{
	_cleanup_(region_freep) struct region *r = NULL;

	recorded_restore("virtio-pmem-devdax");
	recorded_show();
	r = scan_one();
	assert_region(r, "ndbus0", "virtio-pmem", 0x100000000);
	assert_namespace(&r->namespaces[0], "namespace0.0", NAMESPACE_MODE_DEVDAX, "dax0.0", makedev(253, 0),
			 "00000000-0000-4000-8000-000000000001");
	assert_int_equal(r->method, REGION_METHOD_HOST);
	assert_non_null(region_find_device(r, makedev(253, 0), true));
	assert_null(region_find_device(r, makedev(253, 0), false));
}

static void test_sector(void **state)
{
	_cleanup_(region_freep) struct region *r = NULL;

	recorded_restore("virtio-pmem-sector");
	recorded_show();
	r = scan_one();
	assert_namespace(&r->namespaces[0], "namespace0.0", NAMESPACE_MODE_SECTOR, "pmem0s", makedev(259, 0),
			 "00000000-0000-4000-8000-000000000001");
	assert_int_equal(r->method, REGION_METHOD_IMPOSSIBLE);
}

static void test_nvdimm(void **state)
{
	_cleanup_(region_freep) struct region *r = NULL;

	recorded_restore("nvdimm");
	recorded_show();
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

	recorded_restore("nvdimm-unarmed");
	recorded_show();
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

	recorded_restore("papr-scm");
	recorded_show();
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

	recorded_restore("virtio-pmem-devdax");
	recorded_change(NDBUS "/provider", "ibm,persistent-memory:ibm,pmemory@44100000");
	recorded_line(of_node);
	recorded_line(deep_flush);
	recorded_show();
	required = scan_one();
	assert_true(required->of_node && required->flush_required && required->asynchronous);
	assert_int_equal(required->deep_flush, 1);
	assert_true(required->deep_flush_writable);
	assert_int_equal(required->method, REGION_METHOD_DEEP_FLUSH);

	/* Whoever runs this is its owner and root in here: what is writable to nobody is so for root too. */
	snprintf(path, sizeof(path), "%s" NDBUS "/region0/deep_flush", recorded_root);
	assert_int_equal(chmod(path, 0444), 0);
	closed = scan_one();
	assert_false(closed->deep_flush_writable);
	assert_int_equal(closed->method, REGION_METHOD_IMPOSSIBLE);

	recorded_change(NDBUS "/region0/of_node/ibm,hcall-flush-required", NULL);
	synchronous = scan_one();
	assert_true(synchronous->of_node);
	assert_false(synchronous->flush_required || synchronous->asynchronous);
	assert_int_equal(synchronous->method, REGION_METHOD_CPU_FLUSH);
}

/* Two scans of the same are the same, and one that differs isn't. */
static void test_again(void **state)
{
	_cleanup_(region_freep) struct region *a = NULL, *b = NULL, *c = NULL;

	recorded_restore("virtio-pmem-fsdax-info");
	recorded_show();
	a = scan_one();
	b = scan_one();
	assert_true(region_equal(a, b));
	recorded_change(PMEM0 "/dev", "259:7");
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

	snprintf(path, sizeof(path), "%s/file", recorded_root);
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

	snprintf(missing, sizeof(missing), "%s/missing", recorded_root);
	assert_int_equal(scan_emulated("scratch", missing, &none), -ENOENT);
	assert_int_equal(scan_emulated("scratch", recorded_root, &none), -EISDIR);
	assert_int_equal(scan_emulated("scratch", "/dev/null", &none), -EINVAL);
	memset(missing, '/', sizeof(missing) - 1);
	missing[sizeof(missing) - 1] = '\0';
	assert_int_equal(scan_emulated("scratch", missing, &none), -ENAMETOOLONG);
	assert_null(none);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, recorded_set_up, recorded_tear_down)

int main(int argc, char **argv)
{
	static const struct CMUnitTest tests[] = {
		TEST(test_nothing),  TEST(test_fsdax), TEST(test_fsdax_info),    TEST(test_linux_7),
		TEST(test_devdax),   TEST(test_seed),  TEST(test_sector),        TEST(test_nvdimm),
		TEST(test_unarmed),  TEST(test_papr),  TEST(test_papr_recorded), TEST(test_again),
		TEST(test_emulated),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	if (!recorded_enter(argv))
		return 0;
	return cmocka_run_group_tests(tests, NULL, NULL);
}
