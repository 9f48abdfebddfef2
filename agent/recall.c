/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * recall: which of the losses on record are a region's, and how they come into its page
 */
#include <errno.h>
#include <string.h>

#include "manager-private.h"

/* ---- which region a record is of ---- */

bool recall_is_of(const struct loss_record *r, const struct region *region)
{
	return !r->damaged && strcmp(r->record.identity, region->identity) == 0;
}

bool recall_is_present(const struct manager *m, uint64_t hash)
{
	const struct manager_region *mr;

	TAILQ_FOREACH (mr, &m->regions, entry)
		if (region_identity_hash(mr->region->identity) == hash)
			return true;
	return false;
}

static bool is_about_to_join(const struct manager *m, uint64_t hash)
{
	const struct region_list *list = m->look.seen;

	for (unsigned int i = 0; list && i < list->n_regions; i++)
		if (list->regions[i] && region_identity_hash(list->regions[i]->identity) == hash)
			return true;
	return false;
}

static bool begins_with(const char *text, const char *prefix)
{
	return strncmp(text, prefix, strlen(prefix)) == 0;
}

static bool has_uuid(const char *uuids, const char *uuid, size_t n)
{
	for (; *uuids; uuids += strcspn(uuids, ","), uuids += *uuids == ',')
		if (strcspn(uuids, ",") == n && memcmp(uuids, uuid, n) == 0)
			return true;
	return false;
}

/* A namespace of it was made or destroyed: it is still that region. */
static bool shares_uuid(const char *a, const char *b)
{
	a += strlen("uuid:");
	b += strlen("uuid:");
	for (; *a; a += strcspn(a, ","), a += *a == ',')
		if (has_uuid(b, a, strcspn(a, ",")))
			return true;
	return false;
}

/*
 * Whether a record of another identity may be of this region, whose address, namespaces, or the way in which it is
 * identified, are not what they were. A UUID and a file are what they are.
 */
static bool may_be_of(const struct manager *m, const struct loss_record *r, const struct region *region)
{
	if (recall_is_present(m, r->hash) || is_about_to_join(m, r->hash) || begins_with(region->identity, "file:"))
		return false;
	if (r->damaged)
		return true;
	if (r->record.loss <= r->record.acknowledged || begins_with(r->record.identity, "file:"))
		return false;
	if (begins_with(r->record.identity, "uuid:") && begins_with(region->identity, "uuid:"))
		return shares_uuid(r->record.identity, region->identity);
	return r->record.size == region->size;
}

/* ---- which of them is news to it ---- */

/* What is known of its own. What it has taken over from another identity has that one's time. */
struct known {
	const struct loss_record *own; /* NULL: it has no record */
	bool any;                      /* loss, or that there was none when the page was told of earlier boots */
	uint64_t usec;                 /* of the newest loss; 0: none */
};

static void get_known(struct manager_region *mr, struct known *ret)
{
	const struct pmem_agent_page *page = mr->page;
	struct flush_status status;

	manager_region_get_status(mr, &status);
	*ret = (struct known){
		.own = loss_find_record(mr->manager, region_identity_hash(mr->region->identity)),
		.usec = status.loss.usec,
	};
	ret->any = ret->own || page->agent.recalled || status.loss.number > 0;
	if (page->agent.loss > 0 && page->agent.loss_usec > ret->usec)
		ret->usec = page->agent.loss_usec;
	if (ret->own && ret->own->record.usec > ret->usec)
		ret->usec = ret->own->record.usec;
}

/* The newest of them stands for all: who makes that good has made the others good. */
static const struct loss_record *find_news(struct manager *m, const struct region *region, const struct known *known)
{
	const struct loss_record *r, *newest = NULL;

	if (known->own && known->own->damaged)
		return NULL;
	TAILQ_FOREACH (r, &m->memory.records, entry) {
		if (!may_be_of(m, r, region) || (known->any && (r->damaged || r->record.usec <= known->usec)))
			continue;
		if (!newest || r->damaged || (!newest->damaged && r->record.usec > newest->record.usec))
			newest = r;
	}
	return newest;
}

/* The newest loss that the record tells of, or stands for. */
static struct flush_loss loss_of(const struct manager *m, const struct loss_record *r, const struct region *region)
{
	struct flush_loss loss = {
		.number = r->record.loss,
		.error = r->record.error,
		.origin = r->record.origin,
		.round = r->record.round,
		.epoch = r->record.epoch,
		.usec = r->record.usec,
		.earlier_boot = memcmp(r->record.boot_id, m->boot_id.bytes, sizeof(r->record.boot_id)) != 0,
	};

	if (r->damaged) {
		loss = (struct flush_loss){ .error = EIO, .usec = now_usec(CLOCK_REALTIME), .earlier_boot = true };
		/* Nobody knows how far they were counted: this is more than any. */
		loss.number = loss.usec / USEC_PER_SEC;
	}
	if (!recall_is_of(r, region))
		loss.origin = FLUSH_ORIGIN_RECORD;
	return loss;
}

/* ---- into the page ---- */

static void raise_to(uint64_t *number, uint64_t least)
{
	if (*number < least)
		*number = least;
}

/* Whatever number it had, here it is a loss that nobody has acknowledged. */
static void take_over(struct manager_region *mr, const struct loss_record *r, const struct loss_record *own)
{
	struct flush_loss loss = loss_of(mr->manager, r, mr->region);
	uint64_t acknowledged = own ? own->record.acknowledged : r->record.acknowledged;
	struct flush_status status;

	manager_region_get_status(mr, &status);
	raise_to(&loss.number, status.acknowledged + 1);
	if (own)
		raise_to(&loss.number, own->record.loss + 1);
	flush_restore_loss(mr->flush, &loss, mr->page->agent.recalled ? 0 : acknowledged);
}

/* It was removed just now, and is back: nothing can have been lost by it under another identity. */
static bool is_back(const struct manager_region *mr)
{
	const struct manager_region *before;

	TAILQ_FOREACH (before, &mr->manager->removed, entry)
		if (strcmp(before->region->identity, mr->region->identity) == 0)
			return true;
	return false;
}

/* What the page says by now, if it was told: news can only be of another identity. */
static void recall_again(struct manager_region *mr, const struct loss_record *news, const struct loss_record *own)
{
	if (news && !is_back(mr)) {
		take_over(mr, news, own);
		round_publish_loss(mr);
		manager_notify(mr->manager, MANAGER_ROUND, mr);
		round_kick(mr);
	}
	/* The agent before us may not have got to it. */
	loss_remember(mr);
}

void recall_region(struct manager_region *mr)
{
	struct manager *m = mr->manager;
	const struct loss_record *news;
	struct flush_status status;
	struct known known;

	get_known(mr, &known);
	news = find_news(m, mr->region, &known);
	if (mr->page->agent.recalled) {
		recall_again(mr, news, known.own);
		return;
	}
	if (news) {
		take_over(mr, news, known.own);
	} else if (known.own) {
		struct flush_loss loss = loss_of(m, known.own, mr->region);

		flush_restore_loss(mr->flush, &loss, known.own->record.acknowledged);
	}
	round_publish_loss(mr);
	manager_region_get_status(mr, &status);
	if (status.loss.number == 0) {
		mr->page->agent.loss_usec = known.usec;
		page_store(mr->page->agent.loss, status.acknowledged);
	}
	page_store(mr->page->agent.acknowledged, status.acknowledged);
	page_store(mr->page->agent.recalled, 1);
	flush_recalled(mr->flush);
	loss_remember(mr);
	manager_notify(m, MANAGER_ROUND, mr);
	round_kick(mr);
}

/* ---- from one identity to the next, while the agent runs ---- */

static bool is_where(const struct manager_region *mr, const struct region *region)
{
	return mr->region->resource == region->resource && strcmp(mr->region->syspath, region->syspath) == 0;
}

void recall_bequeath(struct manager_region *mr)
{
	if (!mr->flush)
		return;
	mr->bequeaths = true;
	round_region_pin(mr);
}

static void end_bequest(struct manager_region *mr)
{
	mr->bequeaths = false;
	round_region_unpin(mr);
}

bool recall_is_held_up(const struct manager *m, const struct region *region)
{
	const struct manager_region *mr;
	struct flush_status status;

	TAILQ_FOREACH (mr, &m->removed, entry) {
		if (!mr->bequeaths || !is_where(mr, region))
			continue;
		manager_region_get_status(mr, &status);
		if (flush_status_in_flight(&status) || (!mr->page->agent.recalled && !m->memory.loaded))
			return true;
	}
	return false;
}

static void inherit_from(struct manager_region *mr, struct manager_region *before)
{
	struct flush_status status, of_before;

	if (!before->page->agent.recalled)
		recall_region(before);
	manager_region_get_status(before, &of_before);
	if (of_before.loss.number == 0)
		return;
	manager_region_get_status(mr, &status);
	raise_to(&of_before.loss.number, status.acknowledged + 1);
	of_before.loss.origin = FLUSH_ORIGIN_RECORD;
	flush_restore_loss(mr->flush, &of_before.loss, 0);
	round_publish_loss(mr);
}

void recall_inherit(struct manager_region *mr)
{
	struct manager_region *before, *next;

	for (before = TAILQ_FIRST(&mr->manager->removed); before; before = next) {
		next = TAILQ_NEXT(before, entry);
		if (!before->bequeaths || !is_where(before, mr->region))
			continue;
		inherit_from(mr, before);
		end_bequest(before);
	}
}

void recall_forget_gone(struct manager *m)
{
	struct manager_region *before, *mr;

	TAILQ_FOREACH (before, &m->removed, entry) {
		bool there = false;

		TAILQ_FOREACH (mr, &m->regions, entry)
			there |= is_where(before, mr->region);
		for (unsigned int i = 0; i < m->look.seen->n_regions; i++)
			there |= m->look.seen->regions[i] && is_where(before, m->look.seen->regions[i]);
		if (before->bequeaths && !there)
			end_bequest(before);
	}
}
