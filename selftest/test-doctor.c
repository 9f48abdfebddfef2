/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test-doctor: each finding appears where there is cause for it, and nowhere else
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/sysmacros.h>
#include <cmocka.h>

#include "agent/doctor.h"

/* ---- facts: a file of an ext4 on virtio-pmem with which all is well ---- */

enum { FILE_LAYER, FILESYSTEM_LAYER, DEVICE_LAYER, NAMESPACE_LAYER, REGION_LAYER, HOST_LAYER, N_LAYERS };

static struct region *new_region(const char *provider, enum namespace_mode mode, const char *device)
{
	struct region *r = region_new();

	assert_non_null(r);
	strcpy(r->name, "region0");
	strcpy(r->provider, provider);
	strcpy(r->syspath, "/sys/devices/ndbus0/region0");
	r->namespaces[0] = (struct namespace){ .name = "namespace0.0", .mode = mode, .devnum = makedev(259, 0) };
	strcpy(r->namespaces[0].device, device);
	r->n_namespaces = 1;
	assert_int_equal(region_classify(r), 0);
	return r;
}

static void point_at(struct doctor_facts *f, struct region *r)
{
	f->regions.regions[0] = r;
	f->regions.n_regions = 1;
	for (unsigned int i = 0; i < f->n_layers; i++)
		f->layers[i].region = i >= NAMESPACE_LAYER ? r : NULL;
	f->layers[NAMESPACE_LAYER].ns = &r->namespaces[0];
}

static struct doctor_facts *healthy(void)
{
	static const char *const names[] = { "/mnt/file", "/mnt", "pmem0", "namespace0.0", "region0", "hypervisor" };
	struct doctor_facts *f = doctor_facts_new();

	assert_non_null(f);
	f->page_size = 4096;
	f->agent = f->port = true;
	f->witness = 1;
	strcpy(f->hypervisor, "hypervisor");
	for (unsigned int i = 0; i < N_LAYERS; i++) {
		f->layers[i] = (struct doctor_layer){ .type = (enum doctor_layer_type)i, .parent = (int)i - 1 };
		strcpy(f->layers[i].name, names[i]);
		f->layers[i].dax = f->layers[i].map_sync = -1;
	}
	f->n_layers = N_LAYERS;
	f->layers[FILE_LAYER].regular = true;
	f->layers[FILE_LAYER].dax = f->layers[DEVICE_LAYER].dax = 1;
	f->layers[FILE_LAYER].map_sync = 0;
	strcpy(f->layers[FILESYSTEM_LAYER].fstype, "ext4");
	strcpy(f->layers[FILESYSTEM_LAYER].options, "rw,dax=always");
	f->layers[FILESYSTEM_LAYER].block_size = 4096;
	strcpy(f->layers[DEVICE_LAYER].write_cache, "write back");
	point_at(f, new_region("virtio-pmem", NAMESPACE_MODE_FSDAX, "pmem0"));
	f->opinions[0] = (struct doctor_opinion){ .name = "region0", .state = "idle", .attestation = "attested" };
	f->n_opinions = 1;
	return f;
}

static void replace_region(struct doctor_facts *f, struct region *r)
{
	region_free(f->regions.regions[0]);
	point_at(f, r);
}

static struct region *region_of(struct doctor_facts *f)
{
	return f->regions.regions[0];
}

static void options(struct doctor_facts *f, const char *text)
{
	strcpy(f->layers[FILESYSTEM_LAYER].options, text);
}

static void reclassify(struct doctor_facts *f)
{
	assert_int_equal(region_classify(region_of(f)), 0);
}

/* ---- what may be wrong, one at a time ---- */

static void no_agent(struct doctor_facts *f)
{
	f->agent = false;
}

static void no_witness(struct doctor_facts *f)
{
	f->witness = 0;
}

static void state_problem(struct doctor_facts *f)
{
	strcpy(f->state_problem, "losses can't be recorded");
}

static void no_port(struct doctor_facts *f)
{
	f->port = false;
}

static void unseen(struct doctor_facts *f)
{
	f->n_unseen = 3;
}

static void no_region(struct doctor_facts *f)
{
	region_list_clear(&f->regions);
	f->n_layers = 0;
}

static void too_much(struct doctor_facts *f)
{
	f->truncated = true;
}

static void mapper(struct doctor_facts *f, bool library, bool forced)
{
	f->mappers[f->n_mappers++] = (struct doctor_mapper){
		.layer = FILE_LAYER, .pid = 42, .command = "database", .library = library, .forced = forced
	};
}

static void mapped(struct doctor_facts *f)
{
	mapper(f, true, false);
	mapper(f, false, false);
}

static void forced(struct doctor_facts *f)
{
	mapper(f, true, true);
}

static void nfit(struct doctor_facts *f)
{
	replace_region(f, new_region("ACPI.NFIT", NAMESPACE_MODE_FSDAX, "pmem0"));
	f->layers[FILE_LAYER].map_sync = 1;
}

static void nfit_refused(struct doctor_facts *f)
{
	nfit(f);
	f->layers[FILE_LAYER].map_sync = 0;
}

static void nfit_unattested(struct doctor_facts *f)
{
	nfit(f);
	f->opinions[0].attestation = NULL;
}

static void xen(struct doctor_facts *f)
{
	nfit_unattested(f);
	strcpy(f->layers[HOST_LAYER].name, "xen");
}

static void ordinary(struct doctor_facts *f)
{
	f->n_layers = NAMESPACE_LAYER;
}

static void mixed(struct doctor_facts *f)
{
	struct doctor_layer *l = &f->layers[f->n_layers++];

	*l = (struct doctor_layer){ .type = DOCTOR_LAYER_DEVICE, .parent = FILESYSTEM_LAYER, .name = "sda", .dax = -1 };
}

static void unknown_filesystem(struct doctor_facts *f)
{
	f->layers[FILESYSTEM_LAYER].refusal = PMEM_AGENT_FILESYSTEM;
}

static void nobarrier(struct doctor_facts *f)
{
	options(f, "rw,nobarrier,dax=always");
}

static void barrier_0(struct doctor_facts *f)
{
	options(f, "rw,dax=always,barrier=0");
}

static void read_only(struct doctor_facts *f)
{
	options(f, "ro,dax=always");
}

static void shut_down(struct doctor_facts *f)
{
	options(f, "rw,emergency_ro,dax=always");
}

static void block_size(struct doctor_facts *f)
{
	f->layers[FILESYSTEM_LAYER].block_size = 1024;
}

static void dax_never(struct doctor_facts *f)
{
	options(f, "rw,dax=never");
}

static void dax_inode(struct doctor_facts *f)
{
	options(f, "rw,dax=inode");
	f->layers[FILE_LAYER].dax = 0;
}

static void no_dax(struct doctor_facts *f)
{
	f->layers[DEVICE_LAYER].dax = 0;
}

static void write_through(struct doctor_facts *f)
{
	strcpy(f->layers[DEVICE_LAYER].write_cache, "write through");
}

static void sector(struct doctor_facts *f)
{
	replace_region(f, new_region("virtio-pmem", NAMESPACE_MODE_SECTOR, "pmem0s"));
}

static void sector_nfit(struct doctor_facts *f)
{
	replace_region(f, new_region("ACPI.NFIT", NAMESPACE_MODE_SECTOR, "pmem0s"));
	f->layers[FILE_LAYER].dax = f->layers[DEVICE_LAYER].dax = -1;
}

static void disabled(struct doctor_facts *f)
{
	region_of(f)->namespaces[0].devnum = 0;
}

static void devdax(struct doctor_facts *f)
{
	replace_region(f, new_region("virtio-pmem", NAMESPACE_MODE_DEVDAX, "dax0.0"));
	f->opinions[0].attestation = NULL;
}

static void devdax_papr(struct doctor_facts *f)
{
	replace_region(f, new_region("ibm,persistent-memory:ibm,pmemory@0", NAMESPACE_MODE_DEVDAX, "dax0.0"));
	region_of(f)->flush_required = region_of(f)->deep_flush_writable = true;
	region_of(f)->deep_flush = 1;
	reclassify(f);
}

static void no_namespace(struct doctor_facts *f)
{
	region_of(f)->n_namespaces = 0;
	reclassify(f);
}

static void unarmed(struct doctor_facts *f)
{
	nfit(f);
	region_of(f)->unarmed = region_of(f)->read_only = true;
	reclassify(f);
}

static void region_read_only(struct doctor_facts *f)
{
	region_of(f)->read_only = true;
	reclassify(f);
}

static void e820(struct doctor_facts *f)
{
	replace_region(f, new_region("e820", NAMESPACE_MODE_FSDAX, "pmem0"));
}

static void unknown(struct doctor_facts *f)
{
	replace_region(f, new_region("something", NAMESPACE_MODE_FSDAX, "pmem0"));
}

static void papr_absent(struct doctor_facts *f)
{
	devdax_papr(f);
	region_of(f)->deep_flush = -1;
	reclassify(f);
}

static void papr_closed(struct doctor_facts *f)
{
	devdax_papr(f);
	region_of(f)->deep_flush_writable = false;
	reclassify(f);
}

static void hints_closed(struct doctor_facts *f)
{
	nfit(f);
	region_of(f)->deep_flush = 1;
	region_of(f)->deep_flush_writable = false;
	reclassify(f);
}

static void copy(struct doctor_facts *f)
{
	struct region *other = new_region("virtio-pmem", NAMESPACE_MODE_FSDAX, "pmem1"), *r = region_of(f);

	strcpy(r->namespaces[0].uuid, "f092f24d-9be1-44e4-b11e-f3aa13cc8e04");
	strcpy(other->namespaces[0].uuid, r->namespaces[0].uuid);
	strcpy(r->name, "region1");
	f->opinions[0].name = "region1";
	reclassify(f);
	assert_int_equal(region_classify(other), 0);
	f->regions.regions[f->regions.n_regions++] = other;
	assert_int_equal(region_refuse_copies(f->regions.regions, 2), 0);
}

static void lost(struct doctor_facts *f)
{
	f->opinions[0].state = "lost";
	f->opinions[0].loss = 7;
}

static void stalled(struct doctor_facts *f)
{
	f->opinions[0].state = "stalled";
}

static void refused(struct doctor_facts *f)
{
	f->opinions[0].attestation = "refused";
}

static void unattested(struct doctor_facts *f)
{
	f->opinions[0].attestation = "unattested";
}

static const struct {
	enum doctor_id id;
	void (*cause)(struct doctor_facts *f);
	const char *mend; /* the command says so; NULL: there is none */
} causes[] = {
	{ DOCTOR_AGENT_ABSENT, no_agent, "systemctl enable --now pmem-agent" },
	{ DOCTOR_WITNESS_ABSENT, no_witness, "systemctl restart pmem-agent" },
	{ DOCTOR_LOSSES_UNRECORDED, state_problem, NULL },
	{ DOCTOR_PORT_ABSENT, no_port, "name=io.pmem.agent.0" },
	{ DOCTOR_PROCESSES_UNSEEN, unseen, "sudo pmemctl doctor" },
	{ DOCTOR_NO_REGION, no_region, NULL },
	{ DOCTOR_TOO_MUCH, too_much, NULL },
	{ DOCTOR_MAPPED_WITHOUT_LIBRARY, mapped, "pmemctl run -- database" },
	{ DOCTOR_GRANULARITY_FORCED, forced, "start database without these variables" },
	{ DOCTOR_MAP_SYNC_REFUSED, nfit_refused, NULL },
	{ DOCTOR_ORDINARY_STORAGE, ordinary, "pmemctl flush --fallback /mnt" },
	{ DOCTOR_MIXED_STORAGE, mixed, NULL },
	{ DOCTOR_FILESYSTEM_UNKNOWN, unknown_filesystem, NULL },
	{ DOCTOR_NOBARRIER, nobarrier, "mount -o remount,barrier /mnt" },
	{ DOCTOR_NOBARRIER, barrier_0, "mount -o remount,barrier /mnt" },
	{ DOCTOR_READ_ONLY, read_only, "mount -o remount,rw /mnt" },
	{ DOCTOR_SHUT_DOWN, shut_down, "fsck" },
	{ DOCTOR_BLOCK_SIZE, block_size, "mkfs.ext4 -b 4096 /dev/pmem0" },
	{ DOCTOR_DAX_NEVER, dax_never, "mount -o dax=always /dev/pmem0 /mnt" },
	{ DOCTOR_DAX_INODE, dax_inode, "mount -o dax=always /dev/pmem0 /mnt" },
	{ DOCTOR_NO_DAX, no_dax, NULL },
	{ DOCTOR_WRITE_THROUGH, write_through, "echo \"write back\" > /sys/block/pmem0/queue/write_cache" },
	{ DOCTOR_SECTOR_MODE_BROKEN, sector, "ndctl create-namespace -f -e namespace0.0 -m fsdax" },
	{ DOCTOR_SECTOR_MODE, sector_nfit, "ndctl create-namespace -f -e namespace0.0 -m fsdax" },
	{ DOCTOR_NAMESPACE_DISABLED, disabled, "ndctl enable-namespace namespace0.0" },
	{ DOCTOR_DEVDAX_UNFLUSHED, devdax, "ndctl create-namespace -f -e namespace0.0 -m fsdax" },
	{ DOCTOR_LIBPMEM2_GRANULARITY, devdax, "libpmem-agent-pmem2" },
	{ DOCTOR_LIBPMEM2_GRANULARITY, devdax_papr, "libpmem-agent-pmem2" },
	{ DOCTOR_NO_NAMESPACE, no_namespace, "ndctl create-namespace -r region0 -m fsdax" },
	{ DOCTOR_UNARMED, unarmed, "without unarmed=on" },
	{ DOCTOR_REGION_READ_ONLY, region_read_only, "/sys/devices/ndbus0/region0/read_only" },
	{ DOCTOR_PLAIN_RAM, e820, "virtio-pmem" },
	{ DOCTOR_KIND_UNKNOWN, unknown, NULL },
	{ DOCTOR_DEEP_FLUSH_ABSENT, papr_absent, NULL },
	{ DOCTOR_DEEP_FLUSH_CLOSED, papr_closed, "udevadm trigger" },
	{ DOCTOR_HINTS_CLOSED, hints_closed, "udevadm trigger" },
	{ DOCTOR_COPY, copy, NULL },
	{ DOCTOR_LOST, lost, "pmemctl acknowledge region0 --loss=7" },
	{ DOCTOR_STALLED, stalled, NULL },
	{ DOCTOR_REFUSED, refused, NULL },
	{ DOCTOR_UNATTESTED, unattested, NULL },
	{ DOCTOR_UNATTESTED_CPU_FLUSH, nfit_unattested, NULL },
	{ DOCTOR_XEN, xen, NULL },
};

/* ---- tests ---- */

static unsigned int count(const struct doctor_report *r, enum doctor_id id, const struct doctor_finding **ret)
{
	unsigned int n = 0;

	for (unsigned int i = 0; i < r->n_findings; i++) {
		if (r->findings[i].id != id)
			continue;
		*ret = &r->findings[i];
		n++;
	}
	return n;
}

static void test_healthy(void **state)
{
	_cleanup_(doctor_facts_freep) struct doctor_facts *f = healthy();
	_cleanup_free_ struct doctor_report *r = malloc(sizeof(*r));

	doctor_examine(f, r);
	assert_int_equal(r->n_findings, 0);
	assert_int_equal(r->worst, DOCTOR_OK);
}

static void test_each_cause(void **state)
{
	for (unsigned int i = 0; i < ARRAY_SIZE(causes); i++) {
		_cleanup_(doctor_facts_freep) struct doctor_facts *f = healthy();
		_cleanup_free_ struct doctor_report *r = malloc(sizeof(*r));
		const struct doctor_finding *n = NULL;

		causes[i].cause(f);
		doctor_examine(f, r);
		if (count(r, causes[i].id, &n) != 1)
			fail_msg("%s is not found once", doctor_id_to_string(causes[i].id));
		assert_true(r->worst >= doctor_id_severity(causes[i].id));
		assert_true(n->text[0]);
		if (causes[i].mend && !strstr(n->mend, causes[i].mend))
			fail_msg("%s: \"%s\" has no \"%s\"", doctor_id_to_string(n->id), n->mend, causes[i].mend);
		if (!causes[i].mend)
			assert_string_equal(n->mend, "");
	}
}

/* What is found for another cause is found for a reason: nothing but these. */
static void test_nothing_else(void **state)
{
	static const struct {
		enum doctor_id id, too;
	} together[] = {
		{ DOCTOR_DEVDAX_UNFLUSHED, DOCTOR_LIBPMEM2_GRANULARITY }, /* one cause has both */
		{ DOCTOR_LIBPMEM2_GRANULARITY, DOCTOR_DEVDAX_UNFLUSHED },
		{ DOCTOR_DEVDAX_UNFLUSHED, DOCTOR_UNATTESTED },
		{ DOCTOR_LIBPMEM2_GRANULARITY, DOCTOR_UNATTESTED },
		{ DOCTOR_DEEP_FLUSH_ABSENT, DOCTOR_DEVDAX_UNFLUSHED },
		{ DOCTOR_DEEP_FLUSH_ABSENT, DOCTOR_LIBPMEM2_GRANULARITY },
		{ DOCTOR_DEEP_FLUSH_CLOSED, DOCTOR_DEVDAX_UNFLUSHED },
		{ DOCTOR_DEEP_FLUSH_CLOSED, DOCTOR_LIBPMEM2_GRANULARITY },
	};

	for (unsigned int i = 0; i < ARRAY_SIZE(causes); i++) {
		_cleanup_(doctor_facts_freep) struct doctor_facts *f = healthy();
		_cleanup_free_ struct doctor_report *r = malloc(sizeof(*r));

		causes[i].cause(f);
		doctor_examine(f, r);
		for (unsigned int j = 0; j < r->n_findings; j++) {
			bool known = r->findings[j].id == causes[i].id;

			for (unsigned int k = 0; k < ARRAY_SIZE(together); k++)
				known |= together[k].id == causes[i].id && together[k].too == r->findings[j].id;
			if (!known)
				fail_msg("%s also gives %s: %s", doctor_id_to_string(causes[i].id),
					 doctor_id_to_string(r->findings[j].id), r->findings[j].text);
		}
	}
}

static char *load(const char *path)
{
	static char text[65536];
	FILE *f = fopen(path, "re");

	assert_non_null(f);
	text[fread(text, 1, sizeof(text) - 1, f)] = '\0';
	fclose(f);
	return text;
}

/* Every one has a cause here, a name of its own, and a line in the manual page with its severity. */
static void test_every_finding(void **state)
{
	for (unsigned int i = 0; i < DOCTOR_N_IDS; i++) {
		const char *name = doctor_id_to_string(i), *severity = doctor_severity_to_string(doctor_id_severity(i));
		unsigned int n = 0;
		char line[128];

		for (unsigned int j = 0; j < ARRAY_SIZE(causes); j++)
			n += causes[j].id == i;
		for (unsigned int j = 0; j < i; j++)
			assert_string_not_equal(name, doctor_id_to_string(j));
		snprintf(line, sizeof(line), "\n*%s* (%s)\n", name, severity);
		if (n == 0 || !strstr(load("agent/pmemctl-doctor.1.scd"), line))
			fail_msg("%s has no cause here, or is not in the manual page as%s", name, line);
	}
}

/* And nothing else is in the manual page. */
static void test_manual_has_no_others(void **state)
{
	unsigned int n = 0;

	for (const char *p = strstr(load("agent/pmemctl-doctor.1.scd"), "# FINDINGS"); (p = strchr(p, '\n')); p++) {
		const char *end = strchr(p + 1, '\n');

		if (p[1] == '#' && p[2] == ' ')
			break;
		n += p[1] == '*' && end && end[-1] == ')';
	}
	assert_int_equal(n, DOCTOR_N_IDS);
}

/* A region below two layers is complained of once, and programs each by themselves. */
static void test_once(void **state)
{
	_cleanup_(doctor_facts_freep) struct doctor_facts *f = healthy();
	_cleanup_free_ struct doctor_report *r = malloc(sizeof(*r));
	const struct doctor_finding *n;

	unattested(f);
	f->layers[f->n_layers++] = f->layers[HOST_LAYER];
	mapper(f, false, false);
	mapper(f, false, false);
	doctor_examine(f, r);
	assert_int_equal(count(r, DOCTOR_UNATTESTED, &n), 1);
	assert_int_equal(count(r, DOCTOR_MAPPED_WITHOUT_LIBRARY, &n), 2);
}

/* Any program can call itself what it likes; no command of ours is to run that. */
static void test_quoted(void **state)
{
	_cleanup_(doctor_facts_freep) struct doctor_facts *f = healthy();
	_cleanup_free_ struct doctor_report *r = malloc(sizeof(*r));
	const struct doctor_finding *n = NULL;

	mapper(f, false, false);
	strcpy(f->mappers[0].command, "a$(b)'c");
	strcpy(f->layers[FILESYSTEM_LAYER].name, "/my data");
	read_only(f);
	doctor_examine(f, r);
	assert_int_equal(count(r, DOCTOR_MAPPED_WITHOUT_LIBRARY, &n), 1);
	assert_string_equal(n->mend, "pmemctl run -- 'a$(b)'\\''c'");
	assert_int_equal(count(r, DOCTOR_READ_ONLY, &n), 1);
	assert_string_equal(n->mend, "mount -o remount,rw '/my data'");

	/* The longest there can be is whole, or there is none. */
	memset(f->layers[FILESYSTEM_LAYER].name, '\'', sizeof(f->layers[0].name) - 1);
	doctor_examine(f, r);
	assert_int_equal(count(r, DOCTOR_READ_ONLY, &n), 1);
	assert_true(!n->mend[0] || n->mend[strlen(n->mend) - 1] == '\'');
}

/* On a bare machine nobody else's word is needed for a CPU flush. */
static void test_bare_machine(void **state)
{
	_cleanup_(doctor_facts_freep) struct doctor_facts *f = healthy();
	_cleanup_free_ struct doctor_report *r = malloc(sizeof(*r));

	nfit_unattested(f);
	f->layers[HOST_LAYER].name[0] = '\0';
	f->agent = f->port = false;
	f->witness = 0;
	mapper(f, false, true);
	doctor_examine(f, r);
	assert_int_equal(r->n_findings, 0);
}

/* More than there is room for is not forgotten in the verdict. */
static void test_bounded(void **state)
{
	_cleanup_(doctor_facts_freep) struct doctor_facts *f = healthy();
	_cleanup_free_ struct doctor_report *r = malloc(sizeof(*r));

	for (unsigned int i = f->n_layers; i < DOCTOR_MAX_LAYERS; i++) {
		f->layers[i] = f->layers[DEVICE_LAYER];
		f->layers[i].parent = FILESYSTEM_LAYER;
		snprintf(f->layers[i].name, sizeof(f->layers[i].name), "sd%u", i);
	}
	f->n_layers = DOCTOR_MAX_LAYERS;
	for (unsigned int i = 0; i < DOCTOR_MAX_MAPPERS; i++)
		mapper(f, false, false);
	write_through(f);
	refused(f);
	doctor_examine(f, r);
	assert_true(r->n_findings <= DOCTOR_MAX_FINDINGS);
	assert_int_equal(r->worst, DOCTOR_ERROR);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_healthy),
		cmocka_unit_test(test_each_cause),
		cmocka_unit_test(test_nothing_else),
		cmocka_unit_test(test_every_finding),
		cmocka_unit_test(test_manual_has_no_others),
		cmocka_unit_test(test_once),
		cmocka_unit_test(test_quoted),
		cmocka_unit_test(test_bare_machine),
		cmocka_unit_test(test_bounded),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
