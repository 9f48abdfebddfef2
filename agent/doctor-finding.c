/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * doctor-finding: what can be found, how bad it is, and how it is said
 */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "doctor-private.h"

static const struct {
	const char *name;
	enum doctor_severity severity;
} rows[DOCTOR_N_IDS] = {
	[DOCTOR_AGENT_ABSENT] = { "agent-absent", DOCTOR_WARNING },
	[DOCTOR_WITNESS_ABSENT] = { "witness-absent", DOCTOR_WARNING },
	[DOCTOR_LOSSES_UNRECORDED] = { "losses-unrecorded", DOCTOR_WARNING },
	[DOCTOR_PORT_ABSENT] = { "port-absent", DOCTOR_NOTE },
	[DOCTOR_PROCESSES_UNSEEN] = { "processes-unseen", DOCTOR_NOTE },
	[DOCTOR_NO_REGION] = { "no-region", DOCTOR_NOTE },
	[DOCTOR_TOO_MUCH] = { "too-much", DOCTOR_WARNING },
	[DOCTOR_MAPPED_WITHOUT_LIBRARY] = { "mapped-without-library", DOCTOR_WARNING },
	[DOCTOR_GRANULARITY_FORCED] = { "granularity-forced", DOCTOR_ERROR },
	[DOCTOR_MAP_SYNC_REFUSED] = { "map-sync-refused", DOCTOR_ERROR },
	[DOCTOR_ORDINARY_STORAGE] = { "ordinary-storage", DOCTOR_NOTE },
	[DOCTOR_MIXED_STORAGE] = { "mixed-storage", DOCTOR_WARNING },
	[DOCTOR_FILESYSTEM_UNKNOWN] = { "filesystem-unknown", DOCTOR_WARNING },
	[DOCTOR_NOBARRIER] = { "nobarrier", DOCTOR_ERROR },
	[DOCTOR_READ_ONLY] = { "read-only", DOCTOR_WARNING },
	[DOCTOR_SHUT_DOWN] = { "shut-down", DOCTOR_ERROR },
	[DOCTOR_BLOCK_SIZE] = { "block-size", DOCTOR_WARNING },
	[DOCTOR_DAX_NEVER] = { "dax-never", DOCTOR_WARNING },
	[DOCTOR_DAX_INODE] = { "dax-inode", DOCTOR_NOTE },
	[DOCTOR_NO_DAX] = { "no-dax", DOCTOR_NOTE },
	[DOCTOR_WRITE_THROUGH] = { "write-through", DOCTOR_ERROR },
	[DOCTOR_SECTOR_MODE_BROKEN] = { "sector-mode-broken", DOCTOR_ERROR },
	[DOCTOR_SECTOR_MODE] = { "sector-mode", DOCTOR_NOTE },
	[DOCTOR_NAMESPACE_DISABLED] = { "namespace-disabled", DOCTOR_WARNING },
	[DOCTOR_DEVDAX_UNFLUSHED] = { "devdax-unflushed", DOCTOR_ERROR },
	[DOCTOR_LIBPMEM2_GRANULARITY] = { "libpmem2-granularity", DOCTOR_WARNING },
	[DOCTOR_NO_NAMESPACE] = { "no-namespace", DOCTOR_WARNING },
	[DOCTOR_UNARMED] = { "unarmed", DOCTOR_ERROR },
	[DOCTOR_REGION_READ_ONLY] = { "region-read-only", DOCTOR_ERROR },
	[DOCTOR_PLAIN_RAM] = { "plain-ram", DOCTOR_ERROR },
	[DOCTOR_KIND_UNKNOWN] = { "kind-unknown", DOCTOR_ERROR },
	[DOCTOR_DEEP_FLUSH_ABSENT] = { "deep-flush-absent", DOCTOR_ERROR },
	[DOCTOR_DEEP_FLUSH_CLOSED] = { "deep-flush-closed", DOCTOR_ERROR },
	[DOCTOR_HINTS_CLOSED] = { "hints-closed", DOCTOR_WARNING },
	[DOCTOR_COPY] = { "copy", DOCTOR_ERROR },
	[DOCTOR_LOST] = { "lost", DOCTOR_ERROR },
	[DOCTOR_STALLED] = { "stalled", DOCTOR_ERROR },
	[DOCTOR_REFUSED] = { "refused", DOCTOR_ERROR },
	[DOCTOR_UNATTESTED] = { "unattested", DOCTOR_NOTE },
	[DOCTOR_UNATTESTED_CPU_FLUSH] = { "unattested-cpu-flush", DOCTOR_WARNING },
	[DOCTOR_XEN] = { "xen", DOCTOR_WARNING },
};

static const char *const severity_names[] = {
	[DOCTOR_OK] = "ok",
	[DOCTOR_NOTE] = "note",
	[DOCTOR_WARNING] = "warning",
	[DOCTOR_ERROR] = "error",
};

static const char *const layer_names[DOCTOR_N_LAYER_TYPES] = {
	[DOCTOR_LAYER_FILE] = "file",     [DOCTOR_LAYER_FILESYSTEM] = "filesystem",
	[DOCTOR_LAYER_DEVICE] = "device", [DOCTOR_LAYER_NAMESPACE] = "namespace",
	[DOCTOR_LAYER_REGION] = "region", [DOCTOR_LAYER_HOST] = "host",
};

const char *doctor_id_to_string(enum doctor_id id)
{
	return rows[id].name;
}

enum doctor_severity doctor_id_severity(enum doctor_id id)
{
	return rows[id].severity;
}

const char *doctor_severity_to_string(enum doctor_severity severity)
{
	return severity_names[severity];
}

const char *doctor_layer_type_to_string(enum doctor_layer_type type)
{
	return layer_names[type];
}

struct doctor_finding *finding_add(const struct examination *e, enum doctor_id id, int layer)
{
	const struct doctor_layer *layers = e->facts->layers;
	struct doctor_report *r = e->report;

	if (rows[id].severity > r->worst)
		r->worst = rows[id].severity;
	for (unsigned int i = 0; layer >= 0 && i < r->n_findings; i++) {
		const struct doctor_finding *other = &r->findings[i];

		if (other->id == id && id != DOCTOR_MAPPED_WITHOUT_LIBRARY && id != DOCTOR_GRANULARITY_FORCED &&
		    strcmp(layers[other->layer].name, layers[layer].name) == 0 &&
		    layers[other->layer].region == layers[layer].region)
			return NULL;
	}
	if (r->n_findings == DOCTOR_MAX_FINDINGS)
		return NULL;
	r->findings[r->n_findings] = (struct doctor_finding){ .id = id, .layer = layer };
	return &r->findings[r->n_findings++];
}

void finding_say(struct doctor_finding *f, const char *format, ...)
{
	va_list args;

	if (!f)
		return;
	va_start(args, format);
	vsnprintf(f->text, sizeof(f->text), format, args);
	va_end(args);
}

void finding_mend(struct doctor_finding *f, const char *format, ...)
{
	va_list args;

	if (!f)
		return;
	va_start(args, format);
	if (vsnprintf(f->mend, sizeof(f->mend), format, args) >= (int)sizeof(f->mend))
		f->mend[0] = '\0';
	va_end(args);
}

struct finding_word finding_quote(const char *name)
{
	static const char plain[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-+:@%,=";
	struct finding_word w;
	char *to = w.text;

	if (name[0] && !name[strspn(name, plain)]) {
		snprintf(w.text, sizeof(w.text), "%s", name);
		return w;
	}
	*to++ = '\'';
	for (; *name && to < w.text + sizeof(w.text) - 6; name++)
		to = *name == '\'' ? stpcpy(to, "'\\''") : stpncpy(to, name, 1);
	strcpy(to, "'");
	return w;
}
