/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * doctor: what the data on a path rests on, layer by layer, and what is wrong with it
 *
 * doctor-collect.c looks, doctor.c judges: the judgement makes no system call.
 */
#pragma once

#include <stdio.h>

#include "mount.h"
#include "scan.h"

#define DOCTOR_MAX_LAYERS   256
#define DOCTOR_MAX_MAPPERS  64
#define DOCTOR_MAX_FINDINGS 256

enum doctor_severity {
	DOCTOR_OK,
	DOCTOR_NOTE,    /* to know; nothing is at risk by it */
	DOCTOR_WARNING, /* may be at risk, or is not as it was probably meant */
	DOCTOR_ERROR,   /* what is stored there is not made durable, or nobody can tell that it is */
};

/* What can be found; a row each in doctor-finding.c. Their names are a contract, see pmemctl-doctor(1). */
enum doctor_id {
	DOCTOR_AGENT_ABSENT,
	DOCTOR_WITNESS_ABSENT,
	DOCTOR_LOSSES_UNRECORDED,
	DOCTOR_PORT_ABSENT,
	DOCTOR_PROCESSES_UNSEEN,
	DOCTOR_NO_REGION,
	DOCTOR_TOO_MUCH,
	DOCTOR_MAPPED_WITHOUT_LIBRARY,
	DOCTOR_GRANULARITY_FORCED,
	DOCTOR_MAP_SYNC_REFUSED,
	DOCTOR_ORDINARY_STORAGE,
	DOCTOR_MIXED_STORAGE,
	DOCTOR_FILESYSTEM_UNKNOWN,
	DOCTOR_NOBARRIER,
	DOCTOR_READ_ONLY,
	DOCTOR_SHUT_DOWN,
	DOCTOR_BLOCK_SIZE,
	DOCTOR_DAX_NEVER,
	DOCTOR_DAX_INODE,
	DOCTOR_NO_DAX,
	DOCTOR_WRITE_THROUGH,
	DOCTOR_SECTOR_MODE_BROKEN,
	DOCTOR_SECTOR_MODE,
	DOCTOR_NAMESPACE_DISABLED,
	DOCTOR_DEVDAX_UNFLUSHED,
	DOCTOR_LIBPMEM2_GRANULARITY,
	DOCTOR_NO_NAMESPACE,
	DOCTOR_UNARMED,
	DOCTOR_REGION_READ_ONLY,
	DOCTOR_PLAIN_RAM,
	DOCTOR_KIND_UNKNOWN,
	DOCTOR_DEEP_FLUSH_ABSENT,
	DOCTOR_DEEP_FLUSH_CLOSED,
	DOCTOR_HINTS_CLOSED,
	DOCTOR_COPY,
	DOCTOR_LOST,
	DOCTOR_STALLED,
	DOCTOR_REFUSED,
	DOCTOR_UNATTESTED,
	DOCTOR_UNATTESTED_CPU_FLUSH,
	DOCTOR_XEN,
	DOCTOR_N_IDS,
};

enum doctor_layer_type {
	DOCTOR_LAYER_FILE,
	DOCTOR_LAYER_FILESYSTEM,
	DOCTOR_LAYER_DEVICE, /* partition, mapped device or disk */
	DOCTOR_LAYER_NAMESPACE,
	DOCTOR_LAYER_REGION,
	DOCTOR_LAYER_HOST,
	DOCTOR_N_LAYER_TYPES,
};

struct doctor_layer {
	enum doctor_layer_type type;
	int parent;       /* the layer above it, -1: none */
	char name[256];   /* path, mount point, kernel name; of a host: the hypervisor, "" where none is seen */
	char detail[192]; /* for people */

	/* file */
	bool regular;
	ino_t inode;
	int dax;      /* of a file: statx says so; of a device: queue/dax; -1: not known */
	int map_sync; /* the kernel grants MAP_SYNC; -1: not tried */
	/* file, filesystem, device */
	dev_t device;
	/* filesystem */
	char fstype[32], options[512];
	unsigned long block_size; /* 0: not known */
	int refusal;              /* what the agent would refuse it with: enum pmem_agent_answer, 0: nothing */
	char refusal_detail[MOUNT_DETAIL_MAX];
	/* device */
	char write_cache[32]; /* "" of one that has no queue */
	/* namespace, region, host */
	const struct region *region;
	const struct namespace *ns;
};

/* What the agent says of a region. */
struct doctor_opinion {
	const char *name, *method, *state;
	const char *attestation; /* what came of the host's word on what backs it; NULL: it has given none */
	uint64_t loss;           /* 0: none that is not acknowledged */
};

/* A program that has mapped a layer shared and writable. */
struct doctor_mapper {
	int layer;
	int pid;
	char command[32];
	bool library; /* it has libpmem-agent, or a region page, mapped too */
	bool forced;  /* its environment makes libpmem take a CPU flush for enough */
};

struct doctor_facts {
	unsigned long page_size;
	char hypervisor[64];
	bool agent;  /* it answers */
	int witness; /* there is a trace instance, -1: can't be seen */
	bool port;
	char state_problem[256];
	unsigned int n_unseen; /* processes that could not be looked at */
	struct region_list regions;
	struct doctor_opinion opinions[SCAN_MAX_REGIONS];
	unsigned int n_opinions;
	struct doctor_layer layers[DOCTOR_MAX_LAYERS];
	unsigned int n_layers;
	struct doctor_mapper mappers[DOCTOR_MAX_MAPPERS];
	unsigned int n_mappers;
	bool truncated; /* there was more than fits */
};

struct doctor_finding {
	enum doctor_id id;
	int layer;       /* -1: the machine */
	char text[512];  /* a sentence, without a full stop */
	char mend[1024]; /* the command; "": there is none */
};

struct doctor_report {
	struct doctor_finding findings[DOCTOR_MAX_FINDINGS];
	unsigned int n_findings;
	enum doctor_severity worst;
};

/* ---- judging ---- */

void doctor_examine(const struct doctor_facts *f, struct doctor_report *ret);
const char *doctor_id_to_string(enum doctor_id id);
enum doctor_severity doctor_id_severity(enum doctor_id id);
const char *doctor_severity_to_string(enum doctor_severity severity);
const char *doctor_layer_type_to_string(enum doctor_layer_type type);
/* How the region is flushed: the agent's word for it, else what was seen here. */
const char *doctor_method(const struct doctor_facts *f, const struct region *r);

/* ---- looking ---- */

struct doctor_facts *doctor_facts_new(void);
struct doctor_facts *doctor_facts_free(struct doctor_facts *f);
DEFINE_CLEANUP(struct doctor_facts *, doctor_facts_free)

/*
 * Adds what `path` rests on: a file, directory, block device, device-dax or the name of a region. NULL: every
 * filesystem on a region, and every region. The regions and opinions must be there. 0, a negative errno, or an answer
 * with `detail`.
 */
int doctor_collect(struct doctor_facts *f, const char *path, char detail[static MOUNT_DETAIL_MAX]);

/* The hypervisor, the port and the trace instance. `port`: the device node of the host channel. */
void doctor_collect_machine(struct doctor_facts *f, const char *port);

/* The word of /proc/cpuinfo that tells of a hypervisor, with the blank before it; NULL: there is none. */
const char *doctor_find_hypervisor_word(void);

/* Adds the programs that have mapped the layers. */
void doctor_collect_mappers(struct doctor_facts *f);

/* Writes what scan reads of this machine's persistent memory, with nothing private in it. 0 or a negative errno. */
int doctor_record(FILE *to);
