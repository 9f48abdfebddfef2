/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * region: the record of a region: what was seen of it, and by which method it is flushed, and why
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "util.h"

#define REGION_NAME_MAX         64
#define REGION_MAX_NAMESPACES   16
#define REGION_MAX_EVIDENCE     16
#define REGION_IDENTITY_MAX     256
#define REGION_UNKNOWN_RESOURCE UINT64_MAX

enum region_kind {
	REGION_KIND_UNKNOWN,
	REGION_KIND_VIRTIO_PMEM,
	REGION_KIND_PAPR_SCM,
	REGION_KIND_NFIT,
	REGION_KIND_E820,
	REGION_KIND_EMULATED,
	N_REGION_KINDS,
};

/* How a region's memory is flushed; decided in region_classify() and nowhere else. */
enum region_method {
	REGION_METHOD_IMPOSSIBLE,
	REGION_METHOD_BLOCK,      /* fsync of its block device */
	REGION_METHOD_DEEP_FLUSH, /* "1" written to its deep_flush attribute */
	REGION_METHOD_HOST,       /* only the host can, when it is connected and asked */
	REGION_METHOD_CPU_FLUSH,  /* synchronous: the storing program's own CPU flush */
	REGION_METHOD_FILE,       /* fsync of the file that stands for the region */
	N_REGION_METHODS,
};

enum namespace_mode {
	NAMESPACE_MODE_UNKNOWN,
	NAMESPACE_MODE_RAW,
	NAMESPACE_MODE_FSDAX,
	NAMESPACE_MODE_DEVDAX,
	NAMESPACE_MODE_SECTOR,
	N_NAMESPACE_MODES,
};

/* What the host says of the memory behind a region. */
enum region_backing_type {
	REGION_BACKING_UNKNOWN, /* nothing */
	REGION_BACKING_FILE,
	REGION_BACKING_RAM,
	N_REGION_BACKING_TYPES,
};

enum region_fact {
	REGION_FACT_UNKNOWN,
	REGION_FACT_NO,
	REGION_FACT_YES,
};

struct region_backing {
	enum region_backing_type type;
	enum region_fact share; /* stores reach the file */
	enum region_fact pmem;  /* the file is on persistent memory, and mapped as such */
	enum region_fact read_only;
	bool served; /* the host flushes it when asked */
};

/* What follows from it. */
enum region_attestation {
	REGION_UNATTESTED,
	REGION_ATTESTED, /* it can be made durable */
	REGION_REFUSED,  /* it can't */
	N_REGION_ATTESTATIONS,
};

struct namespace
{
	char name[REGION_NAME_MAX]; /* "namespace0.0" */
	enum namespace_mode mode;
	char uuid[37];                /* "" where it has none */
	char device[REGION_NAME_MAX]; /* kernel name: "pmem0", "dax0.0"; "" while it has none */
	dev_t devnum;                 /* of that device, a character device if it is devdax; 0 while it has none */
	uint64_t size;                /* bytes */
};

struct region {
	/* seen; filled in by scan.c */
	char name[REGION_NAME_MAX]; /* libndctl's: "region0"; of an emulated one: from the configuration */
	char bus[REGION_NAME_MAX];  /* "ndbus0" */
	char provider[128];         /* "virtio-pmem", "ACPI.NFIT", "e820", … */
	char syspath[256];          /* of the region: "/sys/devices/…/region0" */
	uint64_t resource;          /* guest-physical address; REGION_UNKNOWN_RESOURCE */
	uint64_t size;              /* bytes */
	unsigned int mappings;
	int deep_flush; /* what the attribute reads; -1: absent */
	bool deep_flush_writable;
	bool flush_required; /* of_node has ibm,hcall-flush-required */
	bool of_node;
	bool nfit; /* its bus has attributes of an NFIT, whatever the provider's name */
	bool read_only;
	bool unarmed; /* a DIMM of it is "not armed" */
	struct namespace namespaces[REGION_MAX_NAMESPACES];
	unsigned int n_namespaces;
	char emulate[256];    /* the file of an emulated region, "" else */
	dev_t emulate_device; /* st_dev and st_ino of that file */
	ino_t emulate_inode;
	struct region_backing backing; /* said by the host, not seen; region_set_backing() */

	/* concluded, by region_classify() */
	enum region_kind kind;
	bool asynchronous;
	enum region_method method;
	const struct namespace *flush_namespace; /* the one whose block device is flushed; with METHOD_BLOCK */
	char identity[REGION_IDENTITY_MAX];
	char *evidence[REGION_MAX_EVIDENCE]; /* sentences, in the order in which they were weighed */
	unsigned int n_evidence;
	enum region_attestation attestation;
	struct {
		bool is_set; /* method and n_evidence as they were before the host said anything */
		enum region_method method;
		unsigned int n_evidence;
	} unattested;
};

struct region *region_new(void);
struct region *region_free(struct region *r);
DEFINE_CLEANUP(struct region *, region_free)

/* NULL: no memory. */
struct region *region_copy(const struct region *r);

/* Concludes kind, method, identity and evidence from what was seen. 0 or -ENOMEM (then the region is of no use). */
int region_classify(struct region *r);

/*
 * Of regions with the same UUIDs, as copies of one image are, only the first by name can be flushed: their pages, and
 * so their losses and rounds in flight, could not be told apart. Call it for all that were classified. 0 or -ENOMEM.
 */
int region_refuse_copies(struct region **regions, unsigned int n);

/*
 * Takes the host's word on what is behind it, in place of what it said before: attestation, and the method, which is
 * impossible where the host says that stores can't be kept, whatever the kernel here claims. Last of the conclusions. 0
 * or -ENOMEM.
 */
int region_set_backing(struct region *r, const struct region_backing *backing);

/*
 * The namespace that has the device; NULL: none of them. `character`: a device-dax. Numbers of block and character
 * devices are two sets that overlap: 252:0 may be both dax0.0 and an ordinary disk.
 */
const struct namespace *region_find_device(const struct region *r, dev_t devnum, bool character);

/* Whether the agent can flush it by itself (block, deep-flush, file), or have it flushed by the host. */
bool region_can_flush(const struct region *r);

/* Names the files about a region: identities are too long for that. */
uint64_t region_identity_hash(const char *identity);

/* Whether two scans saw the same thing, names and conclusions included. */
bool region_equal(const struct region *a, const struct region *b);

const char *region_kind_to_string(enum region_kind kind);
const char *region_method_to_string(enum region_method method);
const char *region_attestation_to_string(enum region_attestation attestation);
const char *namespace_mode_to_string(enum namespace_mode mode);
