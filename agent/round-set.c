/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * round-set: from the plan of a round to what its worker is told
 */
#include <stdio.h>
#include <string.h>

#include "layers.h"
#include "manager-private.h"

static void set_region(const struct region *region, struct worker_node *ret)
{
	*ret = (struct worker_node){};
	switch (region->method) {
	case REGION_METHOD_BLOCK:
		snprintf(ret->path, sizeof(ret->path), "/dev/%s", region->flush_namespace->device);
		ret->device = region->flush_namespace->devnum;
		break;
	case REGION_METHOD_DEEP_FLUSH:
		ret->attribute = true;
		snprintf(ret->path, sizeof(ret->path), "%s/deep_flush", region->syspath);
		break;
	case REGION_METHOD_FILE:
		snprintf(ret->path, sizeof(ret->path), "%s", region->emulate);
		ret->device = region->emulate_device;
		ret->inode = region->emulate_inode;
		break;
	case REGION_METHOD_HOST:
	case REGION_METHOD_CPU_FLUSH:
	case REGION_METHOD_IMPOSSIBLE:
	case N_REGION_METHODS:
		break;
	}
}

void round_target_region(const struct manager_region *mr, struct target *ret)
{
	const struct namespace *ns = mr->region->flush_namespace;

	*ret = (struct target){ .flush.scope = FLUSH_REGION };
	snprintf(ret->source, sizeof(ret->source), "%s", mr->region->name);
	if (ns) {
		ret->device = ns->devnum;
		ret->n_leaves = 1;
		ret->leaves[0].devnum = ns->devnum;
		snprintf(ret->leaves[0].name, sizeof(ret->leaves[0].name), "%s", ns->device);
	}
}

void round_set_region(const struct manager_region *mr, uint64_t number, struct worker_round *ret)
{
	ret->round = number;
	set_region(mr->region, &ret->region);
	ret->n_calls = ret->n_targets = 1;
	ret->n_descriptors = 0;
	ret->calls[0] = (struct worker_call){ .scope = FLUSH_REGION, .descriptor = -1, .served_by = -1 };
	round_target_region(mr, &ret->targets[0]);
}

/* Whether mount_check() says the same of both, and both can be opened by the same name. */
static bool is_checked_as(const struct target *a, const struct target *b)
{
	return a->device == b->device && (a->flush.scope == FLUSH_REGION) == (b->flush.scope == FLUSH_REGION) &&
	       strcmp(a->source, b->source) == 0 && strcmp(a->fstype, b->fstype) == 0 &&
	       layers_equal(a->leaves, a->n_leaves, b->leaves, b->n_leaves);
}

static unsigned int set_target(struct worker_round *round, const struct target *target)
{
	for (unsigned int i = 0; i < round->n_targets; i++)
		if (is_checked_as(&round->targets[i], target))
			return i;
	round->targets[round->n_targets] = *target;
	return round->n_targets++;
}

static const struct part *part_of(const struct flush_plan *p, unsigned int member)
{
	return p->members[member].owner;
}

/*
 * Whether such a call may leave the region itself without a flush, while the epoch would say that there was one. Of
 * several devices a filesystem flushes only those that it has to: an fsync without a commit not that of the journal.
 */
static bool needs_region(enum flush_scope scope, const struct target *target)
{
	return scope != FLUSH_REGION &&
	       (target->n_leaves != 1 || (scope == FLUSH_FILESYSTEM && !target->syncfs_is_enough));
}

static void set_call(struct worker_round *round, const struct flush_plan *p, unsigned int call)
{
	const struct flush_call *from = &p->calls[call];
	const struct target *target = &part_of(p, from->leader)->request->target;

	round->calls[call] = (struct worker_call){
		.scope = from->scope,
		.descriptor = from->scope == FLUSH_REGION ? -1 : p->members[from->leader].descriptor,
		.served_by = from->served_by,
		.then_region = needs_region(from->scope, target),
		.target = set_target(round, target),
	};
}

void round_set(struct manager_region *mr, uint64_t number, int ret_fds[static WORKER_MAX_DESCRIPTORS])
{
	const struct flush_plan *p = flush_get_plan(mr->flush);
	struct worker_round *round = &mr->round;

	round->round = number;
	set_region(mr->region, &round->region);
	round->n_calls = p->n_calls;
	round->n_descriptors = p->n_descriptors;
	round->n_targets = 0;
	for (unsigned int i = 0; i < p->n_calls; i++) {
		set_call(round, p, i);
		mr->stats.calls[p->calls[i].scope] += p->calls[i].served_by < 0;
	}
	for (unsigned int i = 0; i < p->n_descriptors; i++) {
		const struct flush_member *m = &p->members[p->descriptors[i]];

		round->descriptors[i] = (struct worker_descriptor){ .call = m->call, .fetch = m->fetch };
		ret_fds[i] = part_of(p, p->descriptors[i])->request->fd;
	}
}
