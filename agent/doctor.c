/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * doctor: what is wrong or risky with the layers that were collected; makes no system call
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "doctor-private.h"

/* ---- what lies where ---- */

static bool is_below(const struct doctor_facts *f, int layer, int above)
{
	while (layer >= 0 && layer != above)
		layer = f->layers[layer].parent;
	return layer == above;
}

/* The first layer of that type that this one rests on, or is; NULL. */
static const struct doctor_layer *find_below(const struct doctor_facts *f, int above, enum doctor_layer_type type)
{
	for (unsigned int i = 0; i < f->n_layers; i++) {
		if (f->layers[i].type == type && is_below(f, (int)i, above))
			return &f->layers[i];
	}
	return NULL;
}

static bool rests_on_asynchronous(const struct doctor_facts *f, int above)
{
	for (unsigned int i = 0; i < f->n_layers; i++) {
		if (f->layers[i].type == DOCTOR_LAYER_REGION && f->layers[i].region->asynchronous &&
		    is_below(f, (int)i, above))
			return true;
	}
	return false;
}

static const struct doctor_opinion *find_opinion(const struct doctor_facts *f, const struct region *r)
{
	for (unsigned int i = 0; i < f->n_opinions; i++) {
		if (strcmp(f->opinions[i].name, r->name) == 0)
			return &f->opinions[i];
	}
	return NULL;
}

const char *doctor_method(const struct doctor_facts *f, const struct region *r)
{
	const struct doctor_opinion *o = find_opinion(f, r);

	return o && o->method ? o->method : region_method_to_string(r->method);
}

static bool has_method(const struct doctor_facts *f, const struct region *r, enum region_method method)
{
	return strcmp(doctor_method(f, r), region_method_to_string(method)) == 0;
}

static bool has_attestation(const struct doctor_facts *f, const struct region *r, const char *attestation)
{
	const struct doctor_opinion *o = find_opinion(f, r);

	return o && o->attestation && strcmp(o->attestation, attestation) == 0;
}

/* ---- the machine ---- */

static void examine_machine(const struct examination *e)
{
	const struct doctor_facts *f = e->facts;
	bool asynchronous = false;
	struct doctor_finding *n;

	for (unsigned int i = 0; i < f->regions.n_regions; i++)
		asynchronous |= f->regions.regions[i]->asynchronous;
	if (f->regions.n_regions == 0)
		finding_say(finding_add(e, DOCTOR_NO_REGION, -1), "this machine has no persistent memory");
	if (f->truncated)
		finding_say(finding_add(e, DOCTOR_TOO_MUCH, -1),
			    "there are more layers or programs than this command looks at: name a "
			    "path");
	if (f->n_unseen > 0 && asynchronous) {
		n = finding_add(e, DOCTOR_PROCESSES_UNSEEN, -1);
		finding_say(n, "%u processes could not be looked at, which may have mapped persistent memory",
			    f->n_unseen);
		finding_mend(n, "sudo pmemctl doctor");
	}
	if (!asynchronous)
		return;
	if (!f->agent) {
		n = finding_add(e, DOCTOR_AGENT_ABSENT, -1);
		finding_say(n, "the agent does not answer, so nobody here can say that anything is durable");
		finding_mend(n, "systemctl enable --now pmem-agent");
	}
	if (f->witness == 0) {
		n = finding_add(e, DOCTOR_WITNESS_ABSENT, -1);
		finding_say(
		    n, "no trace instance records failed I/O: an error that another program's fsync has taken is not "
		       "noticed");
		finding_mend(n,
			     "systemctl restart pmem-agent; journalctl -u pmem-agent tells why if that is not enough");
	}
	if (f->state_problem[0])
		finding_say(finding_add(e, DOCTOR_LOSSES_UNRECORDED, -1),
			    "%.400s; until then, what is lost may be forgotten at the next boot", f->state_problem);
	if (!f->port) {
		n = finding_add(e, DOCTOR_PORT_ABSENT, -1);
		finding_say(n, "there is no port to the host, which so isn't told what is durable");
		finding_mend(n, "on the host: -device virtserialport,chardev=...,name=io.pmem.agent.0");
	}
}

/* ---- files and programs ---- */

static void examine_file(const struct examination *e, int i)
{
	const struct doctor_layer *l = &e->facts->layers[i];
	const struct doctor_layer *region = find_below(e->facts, i, DOCTOR_LAYER_REGION);

	if (!region || l->dax != 1 || l->map_sync != 0 ||
	    !has_method(e->facts, region->region, REGION_METHOD_CPU_FLUSH))
		return;
	finding_say(
	    finding_add(e, DOCTOR_MAP_SYNC_REFUSED, i),
	    "the kernel refuses MAP_SYNC on this DAX file, although %s looks synchronous: a CPU flush is not enough, "
	    "only msync and fsync are",
	    region->region->name);
}

static void examine_mapper(const struct examination *e, const struct doctor_mapper *m)
{
	const struct doctor_layer *l = &e->facts->layers[m->layer];
	struct doctor_finding *n;

	if (!rests_on_asynchronous(e->facts, m->layer))
		return;
	if (m->forced) {
		n = finding_add(e, DOCTOR_GRANULARITY_FORCED, m->layer);
		finding_say(
		    n,
		    "%s (pid %d) has PMEM2_FORCE_GRANULARITY or PMEM_IS_PMEM_FORCE in its environment: libpmem then "
		    "takes a CPU flush for enough on %s, and nothing is durable",
		    m->command, m->pid, l->name);
		finding_mend(n, "start %s without these variables", finding_quote(m->command).text);
	}
	if (m->library)
		return;
	n = finding_add(e, DOCTOR_MAPPED_WITHOUT_LIBRARY, m->layer);
	finding_say(
	    n,
	    "%s (pid %d) has mapped %s writable without libpmem-agent: what it stores is durable only after an msync "
	    "of "
	    "its own or a flush by someone else",
	    m->command, m->pid, l->name);
	if (l->type == DOCTOR_LAYER_NAMESPACE)
		finding_mend(n, "link it with libpmem-agent-pmem2, see pmem_agent_persist(3)");
	else
		finding_mend(n, "pmemctl run -- %s", finding_quote(m->command).text);
}

/* ---- filesystems ---- */

/* Whether a comma-separated list has the option; `value` NULL: with any value or none. */
static bool has_option(const char *options, const char *name, const char *value)
{
	size_t n = strlen(name);

	for (const char *p = options; p && *p; p = strchr(p, ','), p = p ? p + 1 : NULL) {
		const char *end = p + strcspn(p, ",");

		if (strncmp(p, name, n) != 0 || (p + n != end && p[n] != '='))
			continue;
		if (!value || (p[n] == '=' && (size_t)(end - p) == n + 1 + strlen(value) &&
			       strncmp(p + n + 1, value, strlen(value)) == 0))
			return true;
	}
	return false;
}

static void examine_dax(const struct examination *e, int i)
{
	const struct doctor_layer *l = &e->facts->layers[i], *device = find_below(e->facts, i, DOCTOR_LAYER_DEVICE);
	const struct doctor_layer *ns = find_below(e->facts, i, DOCTOR_LAYER_NAMESPACE);
	const struct doctor_layer *file = l->parent >= 0 ? &e->facts->layers[l->parent] : NULL;
	struct doctor_finding *n;

	if (device && device->dax == 0) {
		n = finding_add(e, DOCTOR_NO_DAX, i);
		finding_say(n, "%s below it has no DAX, so its files go through the page cache", device->name);
		if (ns && ns->ns->mode == NAMESPACE_MODE_RAW && !ns->region->read_only)
			finding_mend(n, "ndctl create-namespace -f -e %s -m fsdax (destroys what is on it)",
				     ns->ns->name);
		return;
	}
	if (l->block_size != 0 && l->block_size != e->facts->page_size) {
		n = finding_add(e, DOCTOR_BLOCK_SIZE, i);
		finding_say(n, "its blocks have %lu bytes, and DAX needs %lu: its files go through the page cache",
			    l->block_size, e->facts->page_size);
		finding_mend(n, "mkfs.%s -b %s%lu /dev/%s (destroys what is on it)", l->fstype,
			     strcmp(l->fstype, "xfs") == 0 ? "size=" : "", e->facts->page_size,
			     device ? device->name : "...");
		return;
	}
	if (has_option(l->options, "dax", "never")) {
		n = finding_add(e, DOCTOR_DAX_NEVER, i);
		finding_say(n, "it is mounted dax=never: its files go through the page cache");
		finding_mend(n, "umount %s && mount -o dax=always /dev/%s %s", finding_quote(l->name).text,
			     device ? device->name : "...", finding_quote(l->name).text);
	} else if (file && file->regular && file->dax == 0) {
		n = finding_add(e, DOCTOR_DAX_INODE, i);
		finding_say(n, "%s is not DAX, since it is not marked so and the filesystem is not mounted dax=always",
			    file->name);
		finding_mend(n, "umount %s && mount -o dax=always /dev/%s %s", finding_quote(l->name).text,
			     device ? device->name : "...", finding_quote(l->name).text);
	}
}

static void examine_options(const struct examination *e, int i)
{
	const struct doctor_layer *l = &e->facts->layers[i], *device = find_below(e->facts, i, DOCTOR_LAYER_DEVICE);
	struct doctor_finding *n;

	if (has_option(l->options, "nobarrier", NULL) || has_option(l->options, "barrier", "0")) {
		n = finding_add(e, DOCTOR_NOBARRIER, i);
		finding_say(n, "it is mounted without barriers: fsync succeeds, and no flush reaches the host");
		finding_mend(n, "mount -o remount,barrier %s", finding_quote(l->name).text);
	}
	if (has_option(l->options, "emergency_ro", NULL) || has_option(l->options, "shutdown", NULL)) {
		n = finding_add(e, DOCTOR_SHUT_DOWN, i);
		finding_say(n, "it has been shut down after an error; what was stored since is not on it");
		finding_mend(n, "umount %s && fsck -t %s /dev/%s", finding_quote(l->name).text, l->fstype,
			     device ? device->name : "...");
	} else if (has_option(l->options, "ro", NULL)) {
		n = finding_add(e, DOCTOR_READ_ONLY, i);
		finding_say(n, "it is read-only, so nothing flushes it");
		finding_mend(n, "mount -o remount,rw %s", finding_quote(l->name).text);
	}
}

static void ordinary_storage(const struct examination *e, int i)
{
	struct doctor_finding *n = finding_add(e, DOCTOR_ORDINARY_STORAGE, i);

	finding_say(n, "it is not on persistent memory: fsync decides, and the agent has no part in it");
	finding_mend(n, "pmemctl flush --fallback %s", finding_quote(e->facts->layers[i].name).text);
}

static void examine_filesystem(const struct examination *e, int i)
{
	const struct doctor_layer *l = &e->facts->layers[i];

	if (!find_below(e->facts, i, DOCTOR_LAYER_REGION)) {
		ordinary_storage(e, i);
		return;
	}
	if (l->refusal == PMEM_AGENT_FILESYSTEM)
		finding_say(finding_add(e, DOCTOR_FILESYSTEM_UNKNOWN, i), "the agent does not flush it: %s",
			    l->refusal_detail);
	examine_options(e, i);
	examine_dax(e, i);
}

/* ---- devices ---- */

static bool has_child(const struct doctor_facts *f, int i)
{
	for (unsigned int j = 0; j < f->n_layers; j++) {
		if (f->layers[j].parent == i)
			return true;
	}
	return false;
}

static int top_of(const struct doctor_facts *f, int i)
{
	while (f->layers[i].parent >= 0)
		i = f->layers[i].parent;
	return i;
}

static void examine_device(const struct examination *e, int i)
{
	const struct doctor_layer *l = &e->facts->layers[i];
	int top = top_of(e->facts, i);
	struct doctor_finding *n;

	if (!find_below(e->facts, top, DOCTOR_LAYER_REGION)) {
		if (top == i)
			ordinary_storage(e, i);
		return;
	}
	if (!has_child(e->facts, i))
		finding_say(
		    finding_add(e, DOCTOR_MIXED_STORAGE, i),
		    "it is no persistent memory, and other parts of %s are: the agent does not flush such a mixture",
		    e->facts->layers[top].name);
	if (l->write_cache[0] && strcmp(l->write_cache, "write back") != 0) {
		n = finding_add(e, DOCTOR_WRITE_THROUGH, i);
		finding_say(n, "its queue is \"%s\": every fsync above it succeeds, and no flush reaches the host",
			    l->write_cache);
		finding_mend(n, "echo \"write back\" > /sys/block/%s/queue/write_cache", l->name);
	}
}

static void examine_namespace(const struct examination *e, int i)
{
	const struct doctor_layer *l = &e->facts->layers[i];
	const struct region *r = l->region;
	struct doctor_finding *n;

	if (!l->ns->devnum) {
		n = finding_add(e, DOCTOR_NAMESPACE_DISABLED, i);
		finding_say(n, "it has no device");
		finding_mend(n, "ndctl enable-namespace %s", l->ns->name);
		return;
	}
	if (l->ns->mode == NAMESPACE_MODE_SECTOR) {
		n = finding_add(e, r->kind == REGION_KIND_VIRTIO_PMEM ? DOCTOR_SECTOR_MODE_BROKEN : DOCTOR_SECTOR_MODE,
				i);
		finding_say(n, r->kind == REGION_KIND_VIRTIO_PMEM
				   ? "it is in sector mode, which the kernel can't write on "
				     "virtio-pmem: it stops with \"scheduling while atomic\""
				   : "it is in sector mode, which has no DAX");
		finding_mend(n, "ndctl create-namespace -f -e %s -m fsdax (destroys what is on it)", l->ns->name);
	}
	if (l->ns->mode != NAMESPACE_MODE_DEVDAX || !r->asynchronous)
		return;
	if ((has_method(e->facts, r, REGION_METHOD_HOST) && !has_attestation(e->facts, r, "attested")) ||
	    has_method(e->facts, r, REGION_METHOD_IMPOSSIBLE)) {
		n = finding_add(e, DOCTOR_DEVDAX_UNFLUSHED, i);
		finding_say(
		    n, "it is device-dax, which this guest has no way to flush: nothing stored there is durable before "
		       "the host flushes its file");
		finding_mend(n, "ndctl create-namespace -f -e %s -m fsdax (destroys what is on it)", l->ns->name);
	}
	n = finding_add(e, DOCTOR_LIBPMEM2_GRANULARITY, i);
	finding_say(
	    n,
	    "the kernel grants MAP_SYNC on /dev/%s although the region is asynchronous: libpmem2 takes a CPU flush for "
	    "enough, and pmem2_persist() makes nothing durable",
	    l->ns->device);
	finding_mend(n, "link programs with libpmem-agent-pmem2, see pmem_agent_persist(3)");
}

/* ---- regions and hosts ---- */

static struct doctor_finding *open_deep_flush(struct doctor_finding *f, const struct region *r)
{
	finding_mend(f, "udevadm control --reload && udevadm trigger %.180s", r->syspath);
	return f;
}

static void examine_papr(const struct examination *e, int i)
{
	const struct region *r = e->facts->layers[i].region;

	if (!r->flush_required || !has_method(e->facts, r, REGION_METHOD_IMPOSSIBLE) || r->unarmed)
		return;
	if (r->deep_flush != 1) {
		finding_say(finding_add(e, DOCTOR_DEEP_FLUSH_ABSENT, i),
			    "its host must be asked to flush, and the kernel offers no deep_flush that would");
		return;
	}
	finding_say(open_deep_flush(finding_add(e, DOCTOR_DEEP_FLUSH_CLOSED, i), r),
		    "its host must be asked to flush, and the agent may not write deep_flush");
}

static void examine_nfit(const struct examination *e, int i)
{
	const struct region *r = e->facts->layers[i].region;

	if (r->deep_flush == 1 && has_method(e->facts, r, REGION_METHOD_CPU_FLUSH))
		finding_say(open_deep_flush(finding_add(e, DOCTOR_HINTS_CLOSED, i), r),
			    "it has flush hints, and the agent may not write deep_flush: what the memory controller "
			    "holds is safe only as far as the platform saves it when the power fails");
}

static bool is_copy(const struct doctor_facts *f, const struct region *r)
{
	for (unsigned int i = 0; i < f->regions.n_regions; i++) {
		const struct region *other = f->regions.regions[i];

		if (other != r && strcmp(other->identity, r->identity) == 0 && region_can_flush(other))
			return !region_can_flush(r);
	}
	return false;
}

static void examine_state(const struct examination *e, int i)
{
	const struct region *r = e->facts->layers[i].region;
	const struct doctor_opinion *o = find_opinion(e->facts, r);
	struct doctor_finding *n;

	if (o && o->loss != 0) {
		n = finding_add(e, DOCTOR_LOST, i);
		finding_say(
		    n, "it has lost stores (loss %" PRIu64 "), and nobody has acknowledged it: see pmem-agent-loss(7)",
		    o->loss);
		finding_mend(n, "pmemctl acknowledge %s --loss=%" PRIu64 " (once the data has been made good)", r->name,
			     o->loss);
	}
	if (o && o->state && strcmp(o->state, "stalled") == 0)
		finding_say(finding_add(e, DOCTOR_STALLED, i),
			    "its host has not answered a flush for a long time; look at the host");
}

static void examine_region(const struct examination *e, int i)
{
	const struct region *r = e->facts->layers[i].region;
	struct doctor_finding *n;

	if (r->kind == REGION_KIND_E820) {
		n = finding_add(e, DOCTOR_PLAIN_RAM, i);
		finding_say(
		    n, "it is plain RAM that memmap= on the kernel's command line named persistent: nothing makes it "
		       "durable");
		finding_mend(n, "give the machine a virtio-pmem or NVDIMM device instead");
	}
	if (r->kind == REGION_KIND_UNKNOWN)
		finding_say(finding_add(e, DOCTOR_KIND_UNKNOWN, i),
			    "nobody here knows how stores to it become durable (provider %s)",
			    r->provider[0] ? r->provider : "not named");
	if (r->unarmed) {
		n = finding_add(e, DOCTOR_UNARMED, i);
		finding_say(n, "a DIMM of it is not armed: its stores do not survive a loss of power");
		finding_mend(n, "on the host: -device nvdimm without unarmed=on, on a file that can be written");
	} else if (r->read_only) {
		n = finding_add(e, DOCTOR_REGION_READ_ONLY, i);
		finding_say(n, "it is read-only: nothing can be stored there");
		finding_mend(n, "echo 0 > %.200s/read_only (if its device can be written)", r->syspath);
	}
	if (r->n_namespaces == 0 && r->kind != REGION_KIND_EMULATED) {
		n = finding_add(e, DOCTOR_NO_NAMESPACE, i);
		finding_say(n, "it has no namespace, so no device");
		finding_mend(n, "ndctl create-namespace -r %s -m fsdax", r->name);
	}
	if (r->kind == REGION_KIND_PAPR_SCM)
		examine_papr(e, i);
	if (r->kind == REGION_KIND_NFIT)
		examine_nfit(e, i);
	if (is_copy(e->facts, r))
		finding_say(
		    finding_add(e, DOCTOR_COPY, i),
		    "it has the UUID of another region, as copies of one image do, and is not flushed: take one away");
	examine_state(e, i);
}

/* What backs the memory only the host can tell; on a bare machine a CPU flush needs nobody's word. */
static void examine_host(const struct examination *e, int i)
{
	const struct doctor_layer *l = &e->facts->layers[i];
	const struct region *r = l->region;
	bool cpu_flush = has_method(e->facts, r, REGION_METHOD_CPU_FLUSH);

	if (has_attestation(e->facts, r, "refused")) {
		finding_say(finding_add(e, DOCTOR_REFUSED, i),
			    "the host says that what backs %s can't keep stores; \"pmemctl list\" shows what it said",
			    r->name);
		return;
	}
	if (has_attestation(e->facts, r, "attested") || r->kind == REGION_KIND_EMULATED ||
	    r->kind == REGION_KIND_E820 || r->unarmed)
		return;
	if (!l->name[0] && !r->asynchronous)
		return;
	if (strcmp(l->name, "xen") == 0 && r->kind == REGION_KIND_NFIT)
		finding_say(finding_add(e, DOCTOR_XEN, i),
			    "this is a guest of Xen, whose NFIT may stand for the host's page cache or "
			    "RAM: a CPU flush is enough "
			    "only if the host says so, and it doesn't");
	else if (cpu_flush)
		finding_say(
		    finding_add(e, DOCTOR_UNATTESTED_CPU_FLUSH, i),
		    "the host has not said what backs %s: with QEMU without pmem=on, with share=off, or in RAM, the "
		    "kernel's \"synchronous\" is not true, and a CPU flush makes nothing durable",
		    r->name);
	else
		finding_say(
		    finding_add(e, DOCTOR_UNATTESTED, i),
		    "the host has not said what backs %s: were it mapped private, each flush would succeed and nothing "
		    "be kept",
		    r->name);
}

void doctor_examine(const struct doctor_facts *f, struct doctor_report *ret)
{
	static void (*const examine[DOCTOR_N_LAYER_TYPES])(const struct examination *, int) = {
		[DOCTOR_LAYER_FILE] = examine_file,     [DOCTOR_LAYER_FILESYSTEM] = examine_filesystem,
		[DOCTOR_LAYER_DEVICE] = examine_device, [DOCTOR_LAYER_NAMESPACE] = examine_namespace,
		[DOCTOR_LAYER_REGION] = examine_region, [DOCTOR_LAYER_HOST] = examine_host,
	};
	const struct examination e = { .facts = f, .report = ret };

	*ret = (struct doctor_report){ .worst = DOCTOR_OK };
	for (unsigned int i = 0; i < f->n_layers; i++)
		examine[f->layers[i].type](&e, (int)i);
	for (unsigned int i = 0; i < f->n_mappers; i++)
		examine_mapper(&e, &f->mappers[i]);
	examine_machine(&e);
}
