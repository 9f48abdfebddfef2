/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test-region: kind, method, evidence and identity, row by row
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/sysmacros.h>
#include <cmocka.h>

#include "agent/region.h"

#define UUID "7f3a9b1e-0f6e-4d5c-9b1e-6a2f0c4d8e11"

static struct region *region_of(const char *provider)
{
	struct region *r = region_new();

	assert_non_null(r);
	strcpy(r->name, "region0");
	strcpy(r->bus, "ndbus0");
	strcpy(r->provider, provider);
	strcpy(r->syspath, "/sys/devices/pci0000:00/0000:00:05.0/virtio3/ndbus0/region0");
	r->resource = 0x140000000;
	r->size = 0x8000000;
	return r;
}

static struct namespace *add_namespace(struct region *r, enum namespace_mode mode, const char *device)
{
	struct namespace *ns = &r->namespaces[r->n_namespaces];

	snprintf(ns->name, sizeof(ns->name), "namespace0.%u", r->n_namespaces);
	strcpy(ns->device, device);
	ns->mode = mode;
	ns->devnum = device[0] ? makedev(259, r->n_namespaces) : 0;
	ns->size = 0x7e00000;
	r->n_namespaces++;
	return ns;
}

static void assert_evidence(const struct region *r, const char *part)
{
	for (unsigned int i = 0; i < r->n_evidence; i++) {
		if (strstr(r->evidence[i], part))
			return;
	}
	fail_msg("no evidence '%s', the last is '%s'", part, r->n_evidence ? r->evidence[r->n_evidence - 1] : "");
}

static void assert_method(struct region *r, enum region_kind kind, bool asynchronous, enum region_method method,
			  const char *part)
{
	assert_int_equal(region_classify(r), 0);
	assert_string_equal(region_kind_to_string(r->kind), region_kind_to_string(kind));
	assert_int_equal(r->asynchronous, asynchronous);
	assert_string_equal(region_method_to_string(r->method), region_method_to_string(method));
	assert_int_equal(r->flush_namespace != NULL, method == REGION_METHOD_BLOCK);
	assert_int_equal(region_can_flush(r), method == REGION_METHOD_BLOCK || method == REGION_METHOD_DEEP_FLUSH ||
						  method == REGION_METHOD_FILE || method == REGION_METHOD_HOST);
	assert_evidence(r, part);
}

static void set_backing(struct region *r, enum region_backing_type type, enum region_fact share, enum region_fact pmem,
			enum region_fact read_only)
{
	const struct region_backing backing = { .type = type, .share = share, .pmem = pmem, .read_only = read_only };

	assert_int_equal(region_set_backing(r, &backing), 0);
}

/* What the host says goes before what the kernel shows, and can be taken back. */
static void test_backing(void **state)
{
	const enum region_fact NO = REGION_FACT_NO, YES = REGION_FACT_YES, OPEN = REGION_FACT_UNKNOWN;
	const struct {
		enum region_backing_type type;
		enum region_fact share, pmem, read_only;
		enum region_attestation asynchronous, synchronous;
	} rows[] = {
		{ REGION_BACKING_UNKNOWN, OPEN, OPEN, OPEN, REGION_UNATTESTED, REGION_UNATTESTED },
		{ REGION_BACKING_RAM, YES, YES, NO, REGION_REFUSED, REGION_REFUSED },
		{ REGION_BACKING_FILE, NO, OPEN, OPEN, REGION_REFUSED, REGION_REFUSED },
		{ REGION_BACKING_FILE, YES, YES, YES, REGION_REFUSED, REGION_REFUSED },
		{ REGION_BACKING_FILE, OPEN, OPEN, OPEN, REGION_UNATTESTED, REGION_UNATTESTED },
		{ REGION_BACKING_FILE, YES, OPEN, OPEN, REGION_ATTESTED, REGION_UNATTESTED },
		{ REGION_BACKING_FILE, YES, NO, NO, REGION_ATTESTED, REGION_REFUSED },
		{ REGION_BACKING_FILE, YES, YES, NO, REGION_ATTESTED, REGION_ATTESTED },
	};

	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		for (unsigned int synchronous = 0; synchronous < 2; synchronous++) {
			_cleanup_(region_freep) struct region *r = region_of(synchronous ? "ACPI.NFIT" : "virtio-pmem");
			_cleanup_(region_freep) struct region *copy = NULL;
			enum region_attestation wanted = synchronous ? rows[i].synchronous : rows[i].asynchronous;
			enum region_method method;
			unsigned int n;

			add_namespace(r, NAMESPACE_MODE_FSDAX, "pmem0");
			assert_int_equal(region_classify(r), 0);
			method = r->method;
			n = r->n_evidence;
			set_backing(r, rows[i].type, rows[i].share, rows[i].pmem, rows[i].read_only);
			assert_int_equal(r->attestation, wanted);
			assert_int_equal(r->method, wanted == REGION_REFUSED ? REGION_METHOD_IMPOSSIBLE : method);
			copy = region_copy(r);
			assert_non_null(copy);
			assert_true(region_equal(r, copy));
			if (wanted == REGION_REFUSED)
				assert_evidence(copy, "the host says that what is behind region0");
			set_backing(copy, REGION_BACKING_UNKNOWN, OPEN, OPEN, OPEN);
			assert_int_equal(copy->method, method);
			assert_int_equal(copy->n_evidence, n);
			assert_int_equal(region_equal(r, copy), rows[i].type == REGION_BACKING_UNKNOWN);
		}
	}
}

static void test_virtio_pmem(void **state)
{
	static const struct {
		enum namespace_mode mode;
		const char *device;
		enum region_method method;
		const char *evidence;
	} rows[] = {
		{ NAMESPACE_MODE_FSDAX, "pmem0", REGION_METHOD_BLOCK,
		  "namespace0.0 is in fsdax mode on /dev/pmem0: fsync of it sends the flush" },
		{ NAMESPACE_MODE_RAW, "pmem0", REGION_METHOD_BLOCK, "in raw mode on /dev/pmem0" },
		{ NAMESPACE_MODE_SECTOR, "pmem0s", REGION_METHOD_IMPOSSIBLE, "sector mode" },
		{ NAMESPACE_MODE_DEVDAX, "dax0.0", REGION_METHOD_HOST, "only the host can" },
		{ NAMESPACE_MODE_DEVDAX, "", REGION_METHOD_IMPOSSIBLE, "has no device" },
		{ NAMESPACE_MODE_FSDAX, "", REGION_METHOD_IMPOSSIBLE, "has no device" },
		{ NAMESPACE_MODE_UNKNOWN, "pmem0", REGION_METHOD_IMPOSSIBLE, "doesn't know" },
	};

	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		_cleanup_(region_freep) struct region *r = region_of("virtio-pmem");

		add_namespace(r, rows[i].mode, rows[i].device);
		assert_method(r, REGION_KIND_VIRTIO_PMEM, true, rows[i].method, rows[i].evidence);
		assert_evidence(r, "provider is virtio-pmem: the host's page cache holds the stores");
	}
}

static void test_virtio_pmem_without_namespace(void **state)
{
	_cleanup_(region_freep) struct region *r = region_of("virtio-pmem");

	assert_method(r, REGION_KIND_VIRTIO_PMEM, true, REGION_METHOD_IMPOSSIBLE, "has no namespace");
}

/* The first that works is taken, wherever it stands. */
static void test_several_namespaces(void **state)
{
	_cleanup_(region_freep) struct region *r = region_of("virtio-pmem"), *full = region_of("virtio-pmem");

	add_namespace(r, NAMESPACE_MODE_DEVDAX, "dax0.0");
	add_namespace(r, NAMESPACE_MODE_FSDAX, "pmem0");
	assert_method(r, REGION_KIND_VIRTIO_PMEM, true, REGION_METHOD_BLOCK, "pmem0");
	assert_ptr_equal(r->flush_namespace, &r->namespaces[1]);

	/* More reasons than there is room for. */
	for (int i = 0; i < REGION_MAX_NAMESPACES; i++)
		strcpy(add_namespace(full, NAMESPACE_MODE_SECTOR, "pmem0s")->uuid, UUID);
	assert_method(full, REGION_KIND_VIRTIO_PMEM, true, REGION_METHOD_IMPOSSIBLE, "sector mode");
	assert_int_equal(full->n_evidence, REGION_MAX_EVIDENCE);
	assert_true(strlen(full->identity) > strlen(UUID) && strlen(full->identity) < REGION_IDENTITY_MAX);
}

static void test_papr(void **state)
{
	static const struct {
		bool required;
		int deep_flush;
		bool writable, unarmed;
		enum region_method method;
		const char *evidence;
	} rows[] = {
		{ true, 1, true, false, REGION_METHOD_DEEP_FLUSH, "writing 1 to it sends the flush" },
		{ true, 1, false, false, REGION_METHOD_IMPOSSIBLE, "not writable for the agent" },
		{ true, 0, true, false, REGION_METHOD_IMPOSSIBLE, "doesn't read 1" },
		{ true, -1, false, false, REGION_METHOD_IMPOSSIBLE, "is absent" },
		{ true, 1, true, true, REGION_METHOD_IMPOSSIBLE, "not armed" },
		{ false, 0, false, false, REGION_METHOD_CPU_FLUSH, "no ibm,hcall-flush-required" },
		{ false, 0, false, true, REGION_METHOD_IMPOSSIBLE, "not armed" },
	};

	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		_cleanup_(region_freep) struct region *r = region_of("ibm,persistent-memory:ibm,pmemory@44100000");

		r->of_node = true;
		r->flush_required = rows[i].required;
		r->deep_flush = rows[i].deep_flush;
		r->deep_flush_writable = rows[i].writable;
		r->unarmed = rows[i].unarmed;
		add_namespace(r, NAMESPACE_MODE_DEVDAX, "dax0.0");
		assert_method(r, REGION_KIND_PAPR_SCM, rows[i].required, rows[i].method, rows[i].evidence);
	}
}

static void test_nfit(void **state)
{
	static const struct {
		int deep_flush;
		bool writable, unarmed, read_only;
		enum region_method method;
		const char *evidence;
	} rows[] = {
		{ 0, false, false, false, REGION_METHOD_CPU_FLUSH, "unattested" },
		{ 1, true, false, false, REGION_METHOD_DEEP_FLUSH, "flush hints" },
		{ 1, false, false, false, REGION_METHOD_CPU_FLUSH, "may not write" },
		{ -1, false, false, false, REGION_METHOD_CPU_FLUSH, "without flush hints" },
		{ 1, true, true, false, REGION_METHOD_IMPOSSIBLE, "not armed" },
		{ 1, true, false, true, REGION_METHOD_IMPOSSIBLE, "read-only" },
	};

	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		_cleanup_(region_freep) struct region *r = region_of("ACPI.NFIT");

		r->deep_flush = rows[i].deep_flush;
		r->deep_flush_writable = rows[i].writable;
		r->unarmed = rows[i].unarmed;
		r->read_only = rows[i].read_only;
		r->mappings = 1;
		add_namespace(r, NAMESPACE_MODE_RAW, "pmem0");
		assert_method(r, REGION_KIND_NFIT, false, rows[i].method, rows[i].evidence);

		/* Whatever it calls itself. */
		strcpy(r->provider, "nfit_test.0");
		r->nfit = true;
		assert_method(r, REGION_KIND_NFIT, false, rows[i].method, rows[i].evidence);
	}
}

static void test_others(void **state)
{
	_cleanup_(region_freep) struct region *e820 = region_of("e820"), *cxl = region_of("CXL"), *none = region_of(""),
					      *almost = region_of("virtio-pmem2");
	struct region *unknown[] = { cxl, none, almost };

	add_namespace(e820, NAMESPACE_MODE_FSDAX, "pmem0");
	assert_method(e820, REGION_KIND_E820, false, REGION_METHOD_IMPOSSIBLE, "plain RAM");
	for (size_t i = 0; i < ARRAY_SIZE(unknown); i++) {
		add_namespace(unknown[i], NAMESPACE_MODE_FSDAX, "pmem0");
		assert_method(unknown[i], REGION_KIND_UNKNOWN, false, REGION_METHOD_IMPOSSIBLE, "doesn't know how");
	}
	assert_evidence(cxl, "provider is CXL");
}

static void test_emulated(void **state)
{
	_cleanup_(region_freep) struct region *r = region_of("emulated");

	memset(r->emulate, 'x', sizeof(r->emulate) - 1);
	r->emulate[0] = '/';
	assert_method(r, REGION_KIND_EMULATED, true, REGION_METHOD_FILE, "fsync of that file");
	assert_int_equal(strlen(r->identity), REGION_IDENTITY_MAX - 1);
	strcpy(r->emulate, "/srv/scratch");
	assert_int_equal(region_classify(r), 0);
	assert_string_equal(r->identity, "file:/srv/scratch");
}

static void test_identity(void **state)
{
	_cleanup_(region_freep) struct region *r = region_of("virtio-pmem"), *nfit = region_of("ACPI.NFIT");
	struct namespace *ns = add_namespace(r, NAMESPACE_MODE_FSDAX, "pmem0");

	/* No UUID: the place, without the numbers of virtio, bus and region that differ from boot to boot. */
	assert_int_equal(region_classify(r), 0);
	assert_string_equal(r->identity, "at:140000000+8000000:/sys/devices/pci0000:00/0000:00:05.0");
	strcpy(r->syspath, "/sys/devices/pci0000:00/0000:00:05.0/virtio7/ndbus4/region12");
	assert_int_equal(region_classify(r), 0);
	assert_string_equal(r->identity, "at:140000000+8000000:/sys/devices/pci0000:00/0000:00:05.0");
	memset(r->syspath, 'x', sizeof(r->syspath) - 1);
	assert_int_equal(region_classify(r), 0);
	assert_int_equal(strlen(r->identity), REGION_IDENTITY_MAX - 1);

	strcpy(nfit->syspath, "/sys/devices/LNXSYSTM:00/LNXSYBUS:00/ACPI0012:00/ndbus0/region0");
	assert_int_equal(region_classify(nfit), 0);
	assert_string_equal(nfit->identity, "at:140000000+8000000:/sys/devices/LNXSYSTM:00/LNXSYBUS:00/ACPI0012:00");

	/* With one: the UUID alone, wherever the region is. */
	strcpy(ns->uuid, UUID);
	assert_int_equal(region_classify(r), 0);
	assert_string_equal(r->identity, "uuid:" UUID);
	strcpy(add_namespace(r, NAMESPACE_MODE_FSDAX, "pmem1")->uuid, UUID);
	assert_int_equal(region_classify(r), 0);
	assert_string_equal(r->identity, "uuid:" UUID "," UUID);

	/* In whatever order they are listed. */
	strcpy(r->namespaces[0].uuid, "b");
	strcpy(r->namespaces[1].uuid, "a");
	assert_int_equal(region_classify(r), 0);
	assert_string_equal(r->identity, "uuid:a,b");
	strcpy(r->namespaces[0].uuid, "a");
	strcpy(r->namespaces[1].uuid, "b");
	assert_int_equal(region_classify(r), 0);
	assert_string_equal(r->identity, "uuid:a,b");
}

static void test_copies(void **state)
{
	_cleanup_(region_freep) struct region *a = region_of("virtio-pmem"), *b = region_of("virtio-pmem"),
					      *c = region_of("virtio-pmem"), *other = region_of("virtio-pmem");
	struct region *all[] = { c, other, b, a };

	for (unsigned int i = 0; i < ARRAY_SIZE(all); i++) {
		strcpy(add_namespace(all[i], NAMESPACE_MODE_FSDAX, "pmem0")->uuid,
		       all[i] == other ? "5f0ff3e6-2a30-4ee4-b8ea-5a1a0ccae8b5"
				       : "6a1ff3e6-2a30-4ee4-b8ea-5a1a0ccae8b5");
		assert_int_equal(region_classify(all[i]), 0);
	}
	strcpy(a->name, "region2");
	strcpy(b->name, "region10");
	strcpy(c->name, "region11");
	strcpy(other->name, "region1");

	assert_int_equal(region_refuse_copies(all, ARRAY_SIZE(all)), 0);
	assert_true(region_can_flush(a) && region_can_flush(other));
	assert_int_equal(b->method, REGION_METHOD_IMPOSSIBLE);
	assert_int_equal(c->method, REGION_METHOD_IMPOSSIBLE);
	assert_null(b->flush_namespace);
	assert_evidence(b, "same UUID as region2");
	assert_evidence(c, "same UUID as region2");
}

static void test_has_device(void **state)
{
	_cleanup_(region_freep) struct region *r = region_of("virtio-pmem");

	add_namespace(r, NAMESPACE_MODE_FSDAX, "pmem0")->devnum = makedev(259, 0);
	add_namespace(r, NAMESPACE_MODE_DEVDAX, "dax0.0")->devnum = makedev(252, 0);
	add_namespace(r, NAMESPACE_MODE_FSDAX, "");
	assert_non_null(region_find_device(r, makedev(259, 0), false));
	assert_non_null(region_find_device(r, makedev(252, 0), true));
	assert_null(region_find_device(r, makedev(259, 1), false));
	assert_null(region_find_device(r, 0, false));

	/* The same numbers in the other set are other devices. */
	assert_null(region_find_device(r, makedev(259, 0), true));
	assert_null(region_find_device(r, makedev(252, 0), false));
}

static struct region *sample(void)
{
	struct region *r = region_of("virtio-pmem");

	strcpy(add_namespace(r, NAMESPACE_MODE_FSDAX, "pmem0")->uuid, UUID);
	add_namespace(r, NAMESPACE_MODE_RAW, "pmem1");
	assert_int_equal(region_classify(r), 0);
	return r;
}

/* Every field counts: change one, and the two are not equal any more. */
static void test_equal(void **state)
{
	_cleanup_(region_freep) struct region *a = sample(), *b = sample();

#define DIFFERS(field, other)                                                                                          \
	do {                                                                                                           \
		_Static_assert(sizeof(b->field) <= 512, "");                                                           \
		char saved[sizeof(b->field)];                                                                          \
		memcpy(saved, (void *)&b->field, sizeof(saved));                                                       \
		assert_true(region_equal(a, b));                                                                       \
		other;                                                                                                 \
		if (region_equal(a, b))                                                                                \
			fail_msg("%s is not compared", #field);                                                        \
		memcpy((void *)&b->field, saved, sizeof(saved));                                                       \
	} while (0)
#define TEXT_DIFFERS(field)   DIFFERS(field, b->field[0] ^= 1)
#define NUMBER_DIFFERS(field) DIFFERS(field, b->field = !b->field)

	TEXT_DIFFERS(name);
	TEXT_DIFFERS(bus);
	TEXT_DIFFERS(provider);
	TEXT_DIFFERS(syspath);
	TEXT_DIFFERS(emulate);
	TEXT_DIFFERS(identity);
	NUMBER_DIFFERS(resource);
	NUMBER_DIFFERS(size);
	NUMBER_DIFFERS(mappings);
	NUMBER_DIFFERS(deep_flush);
	NUMBER_DIFFERS(deep_flush_writable);
	NUMBER_DIFFERS(flush_required);
	NUMBER_DIFFERS(of_node);
	NUMBER_DIFFERS(read_only);
	NUMBER_DIFFERS(unarmed);
	NUMBER_DIFFERS(n_namespaces);
	NUMBER_DIFFERS(emulate_device);
	NUMBER_DIFFERS(emulate_inode);
	NUMBER_DIFFERS(kind);
	NUMBER_DIFFERS(asynchronous);
	NUMBER_DIFFERS(method);
	NUMBER_DIFFERS(n_evidence);
	DIFFERS(flush_namespace, b->flush_namespace = NULL);
	DIFFERS(flush_namespace, b->flush_namespace = &b->namespaces[1]);
	TEXT_DIFFERS(namespaces[1].name);
	TEXT_DIFFERS(namespaces[1].uuid);
	TEXT_DIFFERS(namespaces[1].device);
	NUMBER_DIFFERS(namespaces[1].mode);
	NUMBER_DIFFERS(namespaces[1].devnum);
	NUMBER_DIFFERS(namespaces[1].size);
	b->evidence[0][0] ^= 1;
	assert_false(region_equal(a, b));
	b->evidence[0][0] ^= 1;
	assert_true(region_equal(a, b));
}

/* Classifying again forgets what was concluded before. */
static void test_classify_again(void **state)
{
	_cleanup_(region_freep) struct region *r = sample();

	strcpy(r->provider, "e820");
	assert_method(r, REGION_KIND_E820, false, REGION_METHOD_IMPOSSIBLE, "plain RAM");
	assert_int_equal(r->n_evidence, 1);
}

static void test_names(void **state)
{
	for (int i = 0; i < N_REGION_KINDS; i++)
		assert_non_null(region_kind_to_string(i));
	for (int i = 0; i < N_REGION_METHODS; i++)
		assert_non_null(region_method_to_string(i));
	for (int i = 0; i < N_NAMESPACE_MODES; i++)
		assert_non_null(namespace_mode_to_string(i));
	assert_string_equal(region_kind_to_string(N_REGION_KINDS), "unknown");
	assert_string_equal(region_method_to_string(N_REGION_METHODS), "impossible");
	assert_string_equal(namespace_mode_to_string(-1), "unknown");
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_backing),
		cmocka_unit_test(test_virtio_pmem),
		cmocka_unit_test(test_virtio_pmem_without_namespace),
		cmocka_unit_test(test_several_namespaces),
		cmocka_unit_test(test_papr),
		cmocka_unit_test(test_nfit),
		cmocka_unit_test(test_others),
		cmocka_unit_test(test_emulated),
		cmocka_unit_test(test_identity),
		cmocka_unit_test(test_copies),
		cmocka_unit_test(test_has_device),
		cmocka_unit_test(test_equal),
		cmocka_unit_test(test_classify_again),
		cmocka_unit_test(test_names),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
