/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * attest: what the host says of the regions, and when all that was said and confirmed is void
 */
#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "log.h"
#include "manager-private.h"

/* ---- a refusal outlives the agent that was told of it, as the region's page does ---- */

static uint32_t pack(const struct region_backing *b)
{
	return 1U << 31 | (uint32_t)b->type | (uint32_t)b->share << 4 | (uint32_t)b->pmem << 8 |
	       (uint32_t)b->read_only << 12;
}

static struct region_backing unpack(uint32_t refused)
{
	return (struct region_backing){
		.type = refused & 0xf,
		.share = refused >> 4 & 0xf,
		.pmem = refused >> 8 & 0xf,
		.read_only = refused >> 12 & 0xf,
	};
}

static int remember(struct manager *m, const struct region *r)
{
	_cleanup_(worker_close_pagep) struct pmem_agent_page *page = NULL;
	int e = worker_open_page(m->runtime_dir, r->identity, m->boot_id, &page);

	if (e == 0)
		page_store(page->agent.refused, r->attestation == REGION_REFUSED ? pack(&r->backing) : 0);
	return e;
}

int attest_recall(struct manager *m, struct region *r)
{
	_cleanup_(worker_close_pagep) struct pmem_agent_page *page = NULL;
	struct region_backing said;
	char path[PATH_MAX];
	int e;

	worker_page_path(m->runtime_dir, r->identity, path, sizeof(path));
	if (r->unattested.is_set /* the host has said since what it is */ || access(path, F_OK) < 0)
		return 0;
	e = worker_open_page(m->runtime_dir, r->identity, m->boot_id, &page);
	if (e < 0 || page->agent.refused == 0)
		return e;
	said = unpack(page->agent.refused);
	return region_set_backing(r, &said);
}

/* ---- what it says ---- */

struct manager_region *manager_set_backing(struct manager *m, struct manager_region *mr,
					   const struct region_backing *backing)
{
	_cleanup_(region_freep) struct region *said = region_copy(mr->region);
	enum region_attestation before = mr->region->attestation;
	char name[REGION_NAME_MAX];

	if (!said || region_set_backing(said, backing) < 0)
		return NULL;
	/* First: who is told of it is not told otherwise after us. */
	if ((said->attestation == REGION_REFUSED || before == REGION_REFUSED) && remember(m, said) < 0)
		return NULL;
	snprintf(name, sizeof(name), "%s", said->name);
	if (said->attestation != before)
		log_region(said->attestation == REGION_REFUSED ? LOG_WARNING : LOG_INFO, LOG_EVENT_HOST, name, 0,
			   "%s is %s%s%s", name, region_attestation_to_string(said->attestation),
			   said->attestation == REGION_REFUSED ? ": " : "",
			   said->attestation == REGION_REFUSED && said->n_evidence > 0
			       ? said->evidence[said->n_evidence - 1]
			       : "");
	mr->host.is_refused = said->attestation == REGION_REFUSED;
	manager_replace_region(m, mr, &said);
	mr = manager_find_region(m, name);
	if (mr && !manager_region_is_served(mr))
		round_host_left(mr);
	manager_host_ask(m);
	return mr;
}

/* A refusal stands until the host says otherwise: to forget it would be to call durable what is known not to be. */
static void forget_backing(struct manager *m, struct manager_region *mr)
{
	struct region_backing void_backing = {};

	if (mr->region->attestation == REGION_REFUSED) {
		void_backing = mr->region->backing;
		void_backing.served = false;
	}
	manager_set_backing(m, mr, &void_backing);
}

void manager_forget_host(struct manager *m)
{
	struct manager_region *mr, *next;

	manager_host_offers(m, false, false);
	for (mr = TAILQ_FIRST(&m->regions); mr; mr = next) {
		next = TAILQ_NEXT(mr, entry);
		mr->host.number = 0;
		forget_backing(m, mr);
	}
}

int manager_new_instance(struct manager *m)
{
	struct manager_region *mr;
	sd_id128_t instance;
	int r = sd_id128_randomize(&instance);

	if (r < 0)
		return r;
	m->instance = instance;
	manager_forget_host(m);
	TAILQ_FOREACH (mr, &m->regions, entry) {
		if (!mr->flush)
			continue;
		flush_void(mr->flush);
		if (!mr->detail[0])
			snprintf(mr->detail, sizeof(mr->detail), "a new instance has begun before it was told");
		memcpy(mr->page->agent.instance, m->instance.bytes, sizeof(mr->page->agent.instance));
	}
	manager_notify(m, MANAGER_INSTANCE, NULL);
	return 0;
}
