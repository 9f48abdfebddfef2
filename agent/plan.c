/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "plan.h"

/* A call that others have taken over; its place is used again. */
#define HOLE N_FLUSH_SCOPES

void plan_begin(struct flush_plan *p)
{
	p->n_calls = p->n_members = p->n_descriptors = 0;
}

static bool is_file(enum flush_scope scope)
{
	return scope == FLUSH_FILE || scope == FLUSH_FILE_DATA;
}

/* A partition or a mapped device has no inode: no filesystem call serves it. */
static bool is_of_filesystem(const struct flush_call *c, uint64_t device)
{
	return is_file(c->scope) && c->device == device && c->inode != 0;
}

static const struct flush_member *leader_of(const struct flush_plan *p, const struct flush_call *c)
{
	return &p->members[c->leader];
}

static int find_region(const struct flush_plan *p)
{
	for (unsigned int i = 0; i < p->n_calls; i++)
		if (p->calls[i].scope == FLUSH_REGION)
			return (int)i;
	return -1;
}

static int find_file(const struct flush_plan *p, const struct flush_target *target)
{
	for (unsigned int i = 0; i < p->n_calls; i++) {
		const struct flush_call *c = &p->calls[i];

		if (is_file(c->scope) && c->device == target->device && c->inode == target->inode)
			return (int)i;
	}
	return -1;
}

static int find_filesystem(const struct flush_plan *p, uint64_t device)
{
	for (unsigned int i = 0; i < p->n_calls; i++)
		if (p->calls[i].scope == FLUSH_FILESYSTEM && p->calls[i].device == device)
			return (int)i;
	return -1;
}

/* The one whose filesystem the worker opens itself. */
static int find_unopened(const struct flush_plan *p, uint64_t device)
{
	for (unsigned int i = 0; i < p->n_calls; i++) {
		const struct flush_call *c = &p->calls[i];

		if (c->scope == FLUSH_FILESYSTEM && c->device == device && leader_of(p, c)->descriptor < 0)
			return (int)i;
	}
	return -1;
}

/* `into` serves what the call did. */
static void take_over(struct flush_plan *p, unsigned int call, unsigned int into)
{
	if (call == into)
		return;
	for (unsigned int i = 0; i < p->n_members; i++)
		if (p->members[i].call == call)
			p->members[i].call = into;
	p->calls[call].scope = HOLE;
}

/* One file more, and the calls for this filesystem's files would cost more than one for all of it. */
static int upgrade(struct flush_plan *p, uint64_t device)
{
	unsigned int n = 0, oldest = 0;

	for (unsigned int i = 0; i < p->n_calls; i++) {
		if (!is_of_filesystem(&p->calls[i], device))
			continue;
		if (n++ == 0 || p->calls[i].leader < p->calls[oldest].leader)
			oldest = i;
	}
	if (n + 1 < FLUSH_SYNCFS_FILES)
		return -1;
	for (unsigned int i = 0; i < p->n_calls; i++)
		if (is_of_filesystem(&p->calls[i], device))
			take_over(p, i, oldest);
	p->calls[oldest].scope = FLUSH_FILESYSTEM;
	return (int)oldest;
}

static int join_file(struct flush_plan *p, const struct flush_target *target)
{
	int call = target->inode != 0 ? find_filesystem(p, target->device) : -1;

	if (call >= 0)
		return call;
	call = find_file(p, target);
	if (call < 0)
		return target->inode != 0 ? upgrade(p, target->device) : -1;
	if (target->scope == FLUSH_FILE)
		p->calls[call].scope = FLUSH_FILE;
	return call;
}

/* A call that serves the target, though others have asked for it; -1: none. */
static int join(struct flush_plan *p, const struct flush_target *target)
{
	switch (target->scope) {
	case FLUSH_REGION:
		return find_region(p);
	case FLUSH_FILESYSTEM:
		return target->descriptor ? -1 : find_unopened(p, target->device);
	case FLUSH_FILE:
	case FLUSH_FILE_DATA:
		return join_file(p, target);
	case N_FLUSH_SCOPES:
		break;
	}
	return -1;
}

/* A call more than those that are made already, unless that is too many. */
static bool has_room(const struct flush_plan *p, const struct flush_target *target, uid_t uid)
{
	unsigned int n = 0, of_uid = 0;
	bool filesystem = false;
	int region = find_region(p);

	for (unsigned int i = 0; i < p->n_calls; i++) {
		const struct flush_call *c = &p->calls[i];

		if (c->scope == HOLE)
			continue;
		n++;
		of_uid += c->uid == uid;
		filesystem |= c->scope == FLUSH_FILESYSTEM;
	}
	if (filesystem && target->scope == FLUSH_REGION)
		return true;
	if (filesystem && region >= 0) {
		n--;
		of_uid -= p->calls[region].uid == uid;
	}
	return n < FLUSH_ROUND_MAX_CALLS && of_uid < FLUSH_UID_MAX_CALLS;
}

static unsigned int find_place(struct flush_plan *p)
{
	for (unsigned int i = 0; i < p->n_calls; i++)
		if (p->calls[i].scope == HOLE)
			return i;
	return p->n_calls++;
}

static int lead(struct flush_plan *p, const struct flush_target *target, uid_t uid)
{
	unsigned int call;

	if (!has_room(p, target, uid))
		return -1;
	call = find_place(p);
	p->calls[call] = (struct flush_call){
		.scope = target->scope,
		.device = target->device,
		.inode = target->inode,
		.uid = uid,
		.leader = p->n_members,
		.served_by = -1,
	};
	if (target->scope != FLUSH_FILESYSTEM)
		return (int)call;
	/* It serves the files, and what serves nothing but files. */
	for (unsigned int i = 0; i < p->n_calls; i++) {
		const struct flush_call *c = &p->calls[i];

		if (i != call && (is_of_filesystem(c, target->device) ||
				  (c->scope == FLUSH_FILESYSTEM && c->device == target->device &&
				   leader_of(p, c)->scope != FLUSH_FILESYSTEM)))
			take_over(p, i, call);
	}
	return (int)call;
}

bool plan_add(struct flush_plan *p, const struct flush_target *target, uid_t uid, void *owner)
{
	int call;

	if (target->descriptor && p->n_descriptors == FLUSH_ROUND_MAX_DESCRIPTORS)
		return false;
	call = join(p, target);
	if (call < 0)
		call = lead(p, target, uid);
	if (call < 0)
		return false;

	p->members[p->n_members] = (struct flush_member){
		.owner = owner,
		.scope = target->scope,
		.call = (unsigned int)call,
		.descriptor = target->descriptor ? (int)p->n_descriptors : -1,
	};
	if (target->descriptor)
		p->descriptors[p->n_descriptors++] = p->n_members;
	p->n_members++;
	return true;
}

static void fill_holes(struct flush_plan *p)
{
	for (unsigned int i = 0; i < p->n_calls; i++) {
		while (p->n_calls > i && p->calls[p->n_calls - 1].scope == HOLE)
			p->n_calls--;
		if (i == p->n_calls || p->calls[i].scope != HOLE)
			continue;
		p->calls[i] = p->calls[--p->n_calls];
		take_over(p, p->n_calls, i);
	}
}

static void swap(struct flush_plan *p, unsigned int a, unsigned int b)
{
	struct flush_call c = p->calls[a];

	p->calls[a] = p->calls[b];
	p->calls[b] = c;
	for (unsigned int i = 0; i < p->n_members; i++) {
		unsigned int *call = &p->members[i].call;

		*call = *call == a ? b : *call == b ? a : *call;
	}
}

/* A filesystem call flushes the region too. Whether it has is known after it, so the region comes last. */
static void serve_region(struct flush_plan *p)
{
	int region = find_region(p);

	if (region < 0)
		return;
	for (unsigned int i = 0; i < p->n_calls; i++) {
		if (p->calls[i].scope != FLUSH_FILESYSTEM)
			continue;
		swap(p, (unsigned int)region, p->n_calls - 1);
		p->calls[p->n_calls - 1].served_by = (int)(i == p->n_calls - 1 ? (unsigned int)region : i);
		return;
	}
}

void plan_finish(struct flush_plan *p)
{
	fill_holes(p);
	serve_region(p);
	for (unsigned int i = 0; i < p->n_members; i++) {
		struct flush_member *m = &p->members[i];
		const struct flush_call *c = &p->calls[m->call];
		bool leads = c->leader == i && c->scope != FLUSH_REGION &&
			     (c->scope == FLUSH_FILESYSTEM) == (m->scope == FLUSH_FILESYSTEM);

		m->fetch = m->descriptor >= 0 && !leads;
	}
}
