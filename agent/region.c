/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * region: the record of a region: what was seen of it, and by which method it is flushed, and why
 */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "region.h"

#define PAPR_PROVIDER "ibm,persistent-memory"

static const char *const kind_names[N_REGION_KINDS] = {
	[REGION_KIND_UNKNOWN] = "unknown",   [REGION_KIND_VIRTIO_PMEM] = "virtio-pmem",
	[REGION_KIND_PAPR_SCM] = "papr_scm", [REGION_KIND_NFIT] = "nfit",
	[REGION_KIND_E820] = "e820",         [REGION_KIND_EMULATED] = "emulated",
};

static const char *const method_names[N_REGION_METHODS] = {
	[REGION_METHOD_IMPOSSIBLE] = "impossible", [REGION_METHOD_BLOCK] = "block",
	[REGION_METHOD_DEEP_FLUSH] = "deep-flush", [REGION_METHOD_HOST] = "host",
	[REGION_METHOD_CPU_FLUSH] = "cpu-flush",   [REGION_METHOD_FILE] = "file",
};

static const char *const mode_names[N_NAMESPACE_MODES] = {
	[NAMESPACE_MODE_UNKNOWN] = "unknown", [NAMESPACE_MODE_RAW] = "raw",       [NAMESPACE_MODE_FSDAX] = "fsdax",
	[NAMESPACE_MODE_DEVDAX] = "devdax",   [NAMESPACE_MODE_SECTOR] = "sector",
};

const char *region_kind_to_string(enum region_kind kind)
{
	return (unsigned int)kind < N_REGION_KINDS ? kind_names[kind] : kind_names[REGION_KIND_UNKNOWN];
}

const char *region_method_to_string(enum region_method method)
{
	return (unsigned int)method < N_REGION_METHODS ? method_names[method] : method_names[REGION_METHOD_IMPOSSIBLE];
}

const char *region_attestation_to_string(enum region_attestation attestation)
{
	static const char *const names[N_REGION_ATTESTATIONS] = {
		[REGION_UNATTESTED] = "unattested",
		[REGION_ATTESTED] = "attested",
		[REGION_REFUSED] = "refused",
	};

	return (unsigned int)attestation < N_REGION_ATTESTATIONS ? names[attestation] : names[REGION_UNATTESTED];
}

const char *namespace_mode_to_string(enum namespace_mode mode)
{
	return (unsigned int)mode < N_NAMESPACE_MODES ? mode_names[mode] : mode_names[NAMESPACE_MODE_UNKNOWN];
}

struct region *region_new(void)
{
	struct region *r = calloc(1, sizeof(*r));

	if (r) {
		r->resource = REGION_UNKNOWN_RESOURCE;
		r->deep_flush = -1;
	}
	return r;
}

/* But the first `n`. */
static void forget_evidence(struct region *r, unsigned int n)
{
	while (r->n_evidence > n)
		free(r->evidence[--r->n_evidence]);
}

struct region *region_free(struct region *r)
{
	if (r)
		forget_evidence(r, 0);
	free(r);
	return NULL;
}

struct region *region_copy(const struct region *r)
{
	_cleanup_(region_freep) struct region *copy = malloc(sizeof(*copy));
	struct region *ret;

	if (!copy)
		return NULL;
	*copy = *r;
	copy->n_evidence = 0;
	if (r->flush_namespace)
		copy->flush_namespace = &copy->namespaces[r->flush_namespace - r->namespaces];
	while (copy->n_evidence < r->n_evidence) {
		char *sentence = strdup(r->evidence[copy->n_evidence]);

		if (!sentence)
			return NULL;
		copy->evidence[copy->n_evidence++] = sentence;
	}
	ret = copy;
	copy = NULL;
	return ret;
}

/* Adds a sentence; those beyond the bound are left out, the ones that decide come first. */
static int _printf_(2, 3) evidence(struct region *r, const char *format, ...)
{
	va_list args;
	int n;

	if (r->n_evidence == REGION_MAX_EVIDENCE)
		return 0;
	va_start(args, format);
	n = vasprintf(&r->evidence[r->n_evidence], format, args);
	va_end(args);
	if (n < 0)
		return -ENOMEM;
	r->n_evidence++;
	return 0;
}

static enum region_kind kind_of(const struct region *r)
{
	if (r->emulate[0])
		return REGION_KIND_EMULATED;
	if (strcmp(r->provider, "virtio-pmem") == 0)
		return REGION_KIND_VIRTIO_PMEM;
	if (strncmp(r->provider, PAPR_PROVIDER, strlen(PAPR_PROVIDER)) == 0 || r->flush_required)
		return REGION_KIND_PAPR_SCM;
	if (r->nfit || strcmp(r->provider, "ACPI.NFIT") == 0)
		return REGION_KIND_NFIT;
	if (strcmp(r->provider, "e820") == 0)
		return REGION_KIND_E820;
	return REGION_KIND_UNKNOWN;
}

/* The first namespace that can be flushed through its block device. */
static const struct namespace *find_block_namespace(const struct region *r)
{
	for (unsigned int i = 0; i < r->n_namespaces; i++) {
		const struct namespace *ns = &r->namespaces[i];

		if ((ns->mode == NAMESPACE_MODE_RAW || ns->mode == NAMESPACE_MODE_FSDAX) && ns->devnum)
			return ns;
	}
	return NULL;
}

/* Why a namespace of virtio-pmem can't be flushed through a block device; sets the method if the host still can. */
static int weigh_other_namespace(struct region *r, const struct namespace *ns)
{
	if (ns->mode == NAMESPACE_MODE_SECTOR)
		return evidence(r,
				"%s is in sector mode, which the kernel can't write on virtio-pmem (it stops with "
				"\"scheduling while atomic\"): use ndctl create-namespace -f -e %s -m fsdax",
				ns->name, ns->name);
	if (!ns->devnum)
		return evidence(r, "%s has no device: enable it with ndctl enable-namespace %s", ns->name, ns->name);
	if (ns->mode == NAMESPACE_MODE_DEVDAX) {
		r->method = REGION_METHOD_HOST;
		return evidence(r,
				"%s is in devdax mode on /dev/%s: this guest has no way to flush it, only the host can",
				ns->name, ns->device);
	}
	return evidence(r, "%s is in a mode that the agent doesn't know", ns->name);
}

static int classify_virtio_pmem(struct region *r)
{
	int e;

	r->asynchronous = true;
	e = evidence(r, "provider is virtio-pmem: the host's page cache holds the stores until a flush reaches it");
	if (e < 0)
		return e;

	/* A flush through any namespace is one of the whole region: the host syncs the file behind it. */
	r->flush_namespace = find_block_namespace(r);
	if (r->flush_namespace) {
		r->method = REGION_METHOD_BLOCK;
		return evidence(r, "%s is in %s mode on /dev/%s: fsync of it sends the flush", r->flush_namespace->name,
				namespace_mode_to_string(r->flush_namespace->mode), r->flush_namespace->device);
	}
	if (r->n_namespaces == 0)
		return evidence(r,
				"%s has no namespace, so no device to flush: create one with "
				"ndctl create-namespace -r %s -m fsdax",
				r->name, r->name);
	for (unsigned int i = 0; i < r->n_namespaces; i++) {
		e = weigh_other_namespace(r, &r->namespaces[i]);
		if (e < 0)
			return e;
	}
	return 0;
}

static int classify_papr(struct region *r)
{
	int e;

	r->asynchronous = r->flush_required;
	if (r->unarmed)
		return evidence(r, "a DIMM of %s is not armed: its stores do not survive a loss of power", r->name);
	if (!r->flush_required) {
		r->method = REGION_METHOD_CPU_FLUSH;
		return evidence(r, "of_node has no ibm,hcall-flush-required: the region is synchronous, as far as the "
				   "host says the truth; this is unattested");
	}
	e = evidence(r, "of_node has ibm,hcall-flush-required: the host holds the stores until a flush reaches it");
	if (e < 0)
		return e;
	if (r->deep_flush != 1)
		return evidence(r, "deep_flush of %s %s, so writing to it would send no flush", r->name,
				r->deep_flush < 0 ? "is absent" : "doesn't read 1");
	if (!r->deep_flush_writable)
		return evidence(r,
				"deep_flush of %s is not writable for the agent: check that its udev rules are "
				"installed, then run udevadm trigger %s",
				r->name, r->syspath);
	r->method = REGION_METHOD_DEEP_FLUSH;
	return evidence(r, "deep_flush of %s reads 1: writing 1 to it sends the flush, whatever the namespace's mode",
			r->name);
}

static int classify_nfit(struct region *r)
{
	if (r->unarmed)
		return evidence(r, "a DIMM of %s is not armed: its stores do not survive a loss of power", r->name);
	if (r->read_only)
		return evidence(r, "%s is read-only, as an unarmed one is: nothing stored there is kept", r->name);
	if (r->deep_flush == 1 && r->deep_flush_writable) {
		r->method = REGION_METHOD_DEEP_FLUSH;
		return evidence(r,
				"provider is %s and deep_flush of %s reads 1: it has flush hints, writing 1 flushes "
				"past the memory controller",
				r->provider, r->name);
	}
	r->method = REGION_METHOD_CPU_FLUSH;
	return evidence(r,
			"provider is %s, %s: the CPU flush of the storing program decides, as far as the host says "
			"the truth; this is unattested",
			r->provider,
			r->deep_flush == 1 ? "with flush hints that the agent may not write" : "without flush hints");
}

static int classify_kind(struct region *r)
{
	switch (r->kind) {
	case REGION_KIND_VIRTIO_PMEM:
		return classify_virtio_pmem(r);
	case REGION_KIND_PAPR_SCM:
		return classify_papr(r);
	case REGION_KIND_NFIT:
		return classify_nfit(r);
	case REGION_KIND_E820:
		return evidence(r, "provider is e820: plain RAM that a memmap= option of the kernel named persistent; "
				   "nothing makes it durable");
	case REGION_KIND_EMULATED:
		r->asynchronous = true;
		r->method = REGION_METHOD_FILE;
		return evidence(r, "emulated by %s: fsync of that file is the flush", r->emulate);
	case REGION_KIND_UNKNOWN:
	case N_REGION_KINDS:
		break;
	}
	return evidence(r, "provider is %s: the agent doesn't know how its stores become durable",
			r->provider[0] ? r->provider : "not named");
}

/* Length of the path without what is numbered anew at every boot: "/sys/devices/pci0000:00/0000:00:05.0". */
static int steady_path_length(const char *syspath)
{
	const char *end = strstr(syspath, "/ndbus");
	const char *parent;

	if (!end)
		return strlen(syspath);
	parent = memrchr(syspath, '/', end - syspath);
	if (parent && strncmp(parent, "/virtio", strlen("/virtio")) == 0)
		end = parent;
	return end - syspath;
}

static int compare_texts(const void *a, const void *b)
{
	return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* By UUIDs, in an order of their own: the kernel lists the namespaces in any. False: there is none. */
static bool identify_by_uuids(struct region *r)
{
	const char *uuids[REGION_MAX_NAMESPACES];
	unsigned int n = 0;
	size_t used = 0;

	for (unsigned int i = 0; i < r->n_namespaces; i++)
		if (r->namespaces[i].uuid[0])
			uuids[n++] = r->namespaces[i].uuid;
	qsort(uuids, n, sizeof(uuids[0]), compare_texts);
	for (unsigned int i = 0; i < n; i++) {
		if (used + strlen("uuid:") + strlen(uuids[i]) >= sizeof(r->identity))
			continue;
		used +=
		    snprintf(r->identity + used, sizeof(r->identity) - used, "%s%s", used ? "," : "uuid:", uuids[i]);
	}
	return used > 0;
}

static void identify(struct region *r)
{
	if (r->emulate[0]) {
		snprintf(r->identity, sizeof(r->identity), "file:%.*s", (int)sizeof(r->identity) - 6, r->emulate);
		return;
	}
	r->identity[0] = '\0';
	if (identify_by_uuids(r))
		return;
	/* The path last: it is what may be cut off. */
	snprintf(r->identity, sizeof(r->identity), "at:%" PRIx64 "+%" PRIx64 ":%.*s", r->resource, r->size,
		 steady_path_length(r->syspath), r->syspath);
}

int region_classify(struct region *r)
{
	int e;

	forget_evidence(r, 0);
	r->kind = kind_of(r);
	r->asynchronous = false;
	r->method = REGION_METHOD_IMPOSSIBLE;
	r->flush_namespace = NULL;
	r->attestation = REGION_UNATTESTED;
	r->unattested.is_set = false;
	identify(r);
	e = classify_kind(r);
	if (e < 0)
		return e;
	if (r->read_only && r->kind == REGION_KIND_VIRTIO_PMEM)
		return evidence(r, "%s is read-only", r->name);
	return 0;
}

/* The first by name of those that could be taken for it: itself, if there is no other. */
static struct region *find_original(struct region **regions, unsigned int n, struct region *r)
{
	struct region *first = r;

	for (unsigned int i = 0; i < n; i++)
		if (region_can_flush(regions[i]) && strcmp(regions[i]->identity, r->identity) == 0 &&
		    strverscmp(regions[i]->name, first->name) < 0)
			first = regions[i];
	return first;
}

int region_refuse_copies(struct region **regions, unsigned int n)
{
	for (unsigned int i = 0; i < n; i++) {
		struct region *r = regions[i], *original = find_original(regions, n, r);
		int e;

		if (!region_can_flush(r) || original == r)
			continue;
		r->method = REGION_METHOD_IMPOSSIBLE;
		r->flush_namespace = NULL;
		e = evidence(r,
			     "%s has the same UUID as %s, as copies of one image do: the agent can't tell their losses "
			     "apart, so it flushes %s only; take one of them away",
			     r->name, original->name, original->name);
		if (e < 0)
			return e;
	}
	return 0;
}

/* Stores are durable, or seem so, once they have left the CPU: there is no flush that could reach a file. */
static bool is_taken_for_synchronous(const struct region *r)
{
	return !r->asynchronous &&
	       (r->unattested.method == REGION_METHOD_CPU_FLUSH || r->unattested.method == REGION_METHOD_DEEP_FLUSH);
}

/* Why stores to it can't be kept; NULL: they can, as far as the host has said. */
static const char *find_objection(const struct region *r)
{
	const struct region_backing *b = &r->backing;

	if (b->type == REGION_BACKING_RAM)
		return "is memory of the host, which no flush makes durable";
	if (b->share == REGION_FACT_NO)
		return "is a file mapped private (share=off): no store ever reaches it";
	if (b->read_only == REGION_FACT_YES)
		return "is a file that is read-only: no store ever reaches it";
	if (is_taken_for_synchronous(r) && b->type == REGION_BACKING_FILE && b->pmem == REGION_FACT_NO)
		return "is an ordinary file, which a flush of the CPU's caches doesn't reach: give it to the guest as "
		       "virtio-pmem";
	return NULL;
}

int region_set_backing(struct region *r, const struct region_backing *backing)
{
	const char *objection;

	if (!r->unattested.is_set) {
		r->unattested.is_set = true;
		r->unattested.method = r->method;
		r->unattested.n_evidence = r->n_evidence;
	}
	forget_evidence(r, r->unattested.n_evidence);
	r->method = r->unattested.method;
	r->attestation = REGION_UNATTESTED;
	r->backing = *backing;

	objection = find_objection(r);
	if (objection) {
		r->attestation = REGION_REFUSED;
		r->method = REGION_METHOD_IMPOSSIBLE;
		return evidence(r, "the host says that what is behind %s %s", r->name, objection);
	}
	if (backing->type != REGION_BACKING_FILE || backing->share != REGION_FACT_YES ||
	    (is_taken_for_synchronous(r) && backing->pmem != REGION_FACT_YES))
		return 0;
	r->attestation = REGION_ATTESTED;
	if (!is_taken_for_synchronous(r))
		return 0; /* the last sentence is to be the one that says how it is flushed */
	return evidence(r, "the host says that behind %s is a file on persistent memory, mapped shared", r->name);
}

uint64_t region_identity_hash(const char *identity)
{
	uint64_t hash = UINT64_C(0xcbf29ce484222325); /* FNV-1a */

	for (const char *p = identity; *p; p++)
		hash = (hash ^ (uint8_t)*p) * UINT64_C(0x100000001b3);
	return hash;
}

const struct namespace *region_find_device(const struct region *r, dev_t devnum, bool character)
{
	for (unsigned int i = 0; devnum && i < r->n_namespaces; i++) {
		const struct namespace *ns = &r->namespaces[i];

		if (ns->devnum == devnum && (ns->mode == NAMESPACE_MODE_DEVDAX) == character)
			return ns;
	}
	return NULL;
}

bool region_can_flush(const struct region *r)
{
	return r->method == REGION_METHOD_BLOCK || r->method == REGION_METHOD_DEEP_FLUSH ||
	       r->method == REGION_METHOD_FILE || r->method == REGION_METHOD_HOST;
}

static bool namespace_equal(const struct namespace *a, const struct namespace *b)
{
	return strcmp(a->name, b->name) == 0 && a->mode == b->mode && strcmp(a->uuid, b->uuid) == 0 &&
	       strcmp(a->device, b->device) == 0 && a->devnum == b->devnum && a->size == b->size;
}

static bool seen_equal(const struct region *a, const struct region *b)
{
	return strcmp(a->name, b->name) == 0 && strcmp(a->bus, b->bus) == 0 && strcmp(a->provider, b->provider) == 0 &&
	       strcmp(a->syspath, b->syspath) == 0 && a->resource == b->resource && a->size == b->size &&
	       a->mappings == b->mappings && a->deep_flush == b->deep_flush &&
	       a->deep_flush_writable == b->deep_flush_writable && a->flush_required == b->flush_required &&
	       a->of_node == b->of_node && a->nfit == b->nfit && a->read_only == b->read_only &&
	       a->unarmed == b->unarmed && strcmp(a->emulate, b->emulate) == 0 &&
	       a->emulate_device == b->emulate_device && a->emulate_inode == b->emulate_inode &&
	       a->n_namespaces == b->n_namespaces;
}

static bool backing_equal(const struct region_backing *a, const struct region_backing *b)
{
	return a->type == b->type && a->share == b->share && a->pmem == b->pmem && a->read_only == b->read_only &&
	       a->served == b->served;
}

bool region_equal(const struct region *a, const struct region *b)
{
	if (!seen_equal(a, b) || !backing_equal(&a->backing, &b->backing) || a->attestation != b->attestation ||
	    a->kind != b->kind || a->asynchronous != b->asynchronous || a->method != b->method ||
	    strcmp(a->identity, b->identity) != 0 || a->n_evidence != b->n_evidence ||
	    !a->flush_namespace != !b->flush_namespace)
		return false;
	for (unsigned int i = 0; i < a->n_namespaces; i++) {
		if (!namespace_equal(&a->namespaces[i], &b->namespaces[i]))
			return false;
	}
	for (unsigned int i = 0; i < a->n_evidence; i++) {
		if (strcmp(a->evidence[i], b->evidence[i]) != 0)
			return false;
	}
	return !a->flush_namespace || a->flush_namespace - a->namespaces == b->flush_namespace - b->namespaces;
}
