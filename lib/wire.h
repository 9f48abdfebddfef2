/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * wire: what the agent shares with other processes: the answers, the packets of its socket, and the region page
 */
#pragma once

#include <stdint.h>

#if defined(__cplusplus) && !defined(_Static_assert)
#define _Static_assert static_assert
#endif

#define PMEM_AGENT_RUNTIME_DIR "/run/pmem-agent"
#define PMEM_AGENT_SOCKET_NAME "socket"

/*
 * Every request ends in exactly one of these. Only PMEM_AGENT_DURABLE is a promise; everything else promises nothing,
 * and PMEM_AGENT_UNKNOWN, _TIMEOUT and _LOST do not say that the data is not durable either.
 */
enum pmem_agent_answer {
	PMEM_AGENT_DURABLE = 0,
	PMEM_AGENT_LOST,        /* the region has lost stores, and nobody has acknowledged it yet */
	PMEM_AGENT_UNKNOWN,     /* a change or a restart in between: nobody can tell */
	PMEM_AGENT_BUSY,        /* the queue is full */
	PMEM_AGENT_GONE,        /* the region was removed before the flush began */
	PMEM_AGENT_ORDINARY,    /* the target is on storage that is no persistent memory */
	PMEM_AGENT_MIXED,       /* the target is on persistent memory and on other storage too */
	PMEM_AGENT_SYNCHRONOUS, /* the region needs no flush by the agent */
	PMEM_AGENT_FILESYSTEM,  /* a filesystem that the agent does not know to flush */
	PMEM_AGENT_UNFLUSHED,   /* flushes do not reach the host: nobarrier, read-only, write through */
	PMEM_AGENT_IMPOSSIBLE,  /* nothing in this guest can make the region durable */
	PMEM_AGENT_FAILED,      /* the target failed by itself (ENOSPC, EDQUOT); the region has lost nothing */
	PMEM_AGENT_REFUSED,     /* no target that can be flushed (EBADF, EINVAL, ENOTSUP) */
	PMEM_AGENT_NOT_FOUND,   /* no such path, mount point or region */
	PMEM_AGENT_DENIED,      /* the caller may not ask for this */
	PMEM_AGENT_STALE_LOSS,  /* the loss to acknowledge is not the newest, or there is none */
	PMEM_AGENT_TIMEOUT,     /* not known yet at the caller's deadline; the flush goes on */
	PMEM_AGENT_N_ANSWERS,
};

/*
 * The socket: /run/pmem-agent/socket, SOCK_SEQPACKET, native byte order. A request is one packet and brings exactly one
 * descriptor (SCM_RIGHTS): what it stands for is to be made durable, or is asked about. Each request has one reply, in
 * any order, and replies carry the id of their request. See pmem-agent-socket(7).
 *
 * `version`, `type` and `id` stay where they are in every version.
 */
#define PMEM_AGENT_WIRE_VERSION 1
#define PMEM_AGENT_MAX_REGIONS  16  /* below one target */
#define PMEM_AGENT_DETAIL_MAX   208 /* with its '\0' */

enum pmem_agent_packet {
	PMEM_AGENT_PACKET_FLUSH = 1, /* a request, and its reply */
	PMEM_AGENT_PACKET_ERROR,  /* a reply to what is no request; id 0: to all that the connection still waits for */
	PMEM_AGENT_PACKET_QUERY,  /* a request to tell what a flush would come to, without making one, and its reply */
	PMEM_AGENT_PACKET_KEEP,   /* a request to keep the descriptor for as long as the connection, and its reply */
	PMEM_AGENT_PACKET_REPORT, /* a flush that the peer made itself, without an agent, failed with EIO; and its reply
				   */
};

enum pmem_agent_scope {
	PMEM_AGENT_SCOPE_AUTO,       /* a directory: its filesystem; a file: itself; a device: its region */
	PMEM_AGENT_SCOPE_FILE,       /* as fsync */
	PMEM_AGENT_SCOPE_FILE_DATA,  /* as fdatasync */
	PMEM_AGENT_SCOPE_FILESYSTEM, /* as syncfs */
	PMEM_AGENT_SCOPE_REGION,     /* the memory alone; of a file: its layout is fixed, says who asks */
	PMEM_AGENT_N_SCOPES,
};

/* What an answer rests on. */
enum pmem_agent_basis {
	PMEM_AGENT_BASIS_NONE,           /* it is not durable */
	PMEM_AGENT_BASIS_OWN_FLUSH,      /* the agent's own flush succeeded */
	PMEM_AGENT_BASIS_WATCHED,        /* moreover, no other program has taken an error meanwhile */
	PMEM_AGENT_BASIS_HOST_CONFIRMED, /* the host flushed the file behind it without error, by its own descriptor */
	PMEM_AGENT_N_BASES,
};

/* How the memory of a region is flushed. */
enum pmem_agent_method {
	PMEM_AGENT_METHOD_NONE,       /* there is no region */
	PMEM_AGENT_METHOD_BLOCK,      /* fsync of its block device */
	PMEM_AGENT_METHOD_DEEP_FLUSH, /* its deep_flush attribute */
	PMEM_AGENT_METHOD_FILE,       /* fsync of the file that stands for it */
	PMEM_AGENT_METHOD_CPU_FLUSH,  /* synchronous: the storing program's own CPU flush */
	PMEM_AGENT_METHOD_HOST,       /* only the host can: device-dax without a flush in the guest */
	PMEM_AGENT_METHOD_IMPOSSIBLE, /* nobody can */
	PMEM_AGENT_N_METHODS,
};

struct pmem_agent_request {
	uint32_t version;
	uint32_t type;
	uint64_t id;           /* the client's; no two that wait should have the same */
	uint32_t scope;        /* enum pmem_agent_scope */
	uint32_t flags;        /* 0 */
	uint64_t timeout_usec; /* from its arrival to PMEM_AGENT_TIMEOUT; 0: none; of a query: 0 */
	uint64_t kept;         /* of a flush without a descriptor: the id with which one was given to be kept; else 0 */
	uint64_t
	    device; /* of a flush or report: st_dev and st_ino of what its descriptor has to be of; 0, 0: anything */
	uint64_t inode;
	uint64_t reserved; /* 0 */
};

/*
 * PMEM_AGENT_PACKET_KEEP is for a mapping whose descriptor is going to be closed. Its `id` is a random number, by which
 * flushes on any connection of the same user name the descriptor. A connection keeps one, until the peer shuts it down
 * for writing or closes it; the agent closes it only after it has dropped the descriptor. The reply's `answer` is 0 if
 * it is kept, and never a promise.
 */

/*
 * PMEM_AGENT_PACKET_REPORT, with the descriptor, is for who made a flush itself while there was no agent. The reply's
 * `answer` is 0 if the agent has heard it, whether it believes it or not.
 */

/* A region, by the name of its page (16 hexadecimal digits, then ".page"), and the round that confirmed. */
struct pmem_agent_epoch {
	uint64_t page;
	uint64_t epoch;
};

/*
 * The reply to a query is never a promise. `answer` is what a flush would be refused with, 0 if it would be made; then
 * too `detail` is filled in, with what tells how the region is flushed. `scope` is what would be flushed and `regions`
 * are those below it, as far as they are known, each with its newest epoch; `method` is how the first of them is
 * flushed, or that one which is why it can't be. A region without a page has 0 there.
 */
struct pmem_agent_reply {
	uint32_t version; /* the agent's */
	uint32_t type;
	uint64_t id;
	uint32_t answer;       /* enum pmem_agent_answer */
	int32_t error;         /* the errno that fits, positive; 0 with PMEM_AGENT_DURABLE only */
	uint32_t scope;        /* what was flushed, never _AUTO; the next four with PMEM_AGENT_DURABLE only, else 0 */
	uint32_t basis;        /* enum pmem_agent_basis */
	uint64_t durable_usec; /* stores made before this are durable, CLOCK_REALTIME */
	uint32_t n_regions;
	uint32_t method; /* enum pmem_agent_method; 0 in the reply to a flush */
	struct pmem_agent_epoch regions[PMEM_AGENT_MAX_REGIONS];
	char detail[PMEM_AGENT_DETAIL_MAX]; /* why it isn't durable, for people */
};

/* Nothing in between: the same places on every machine, whatever its order of bytes and its alignment. */
#define PMEM_AGENT_AT(type, field, offset)                                                                             \
	_Static_assert(__builtin_offsetof(struct type, field) == (offset), #field " has moved")
PMEM_AGENT_AT(pmem_agent_request, id, 8);
PMEM_AGENT_AT(pmem_agent_request, scope, 16);
PMEM_AGENT_AT(pmem_agent_request, timeout_usec, 24);
PMEM_AGENT_AT(pmem_agent_request, kept, 32);
PMEM_AGENT_AT(pmem_agent_request, device, 40);
PMEM_AGENT_AT(pmem_agent_request, inode, 48);
_Static_assert(sizeof(struct pmem_agent_request) == 64, "a request is 64 bytes");
PMEM_AGENT_AT(pmem_agent_reply, id, 8);
PMEM_AGENT_AT(pmem_agent_reply, durable_usec, 32);
PMEM_AGENT_AT(pmem_agent_reply, regions, 48);
PMEM_AGENT_AT(pmem_agent_reply, detail, 304);
_Static_assert(sizeof(struct pmem_agent_reply) == 512, "a reply is 512 bytes");

/*
 * The page of a region: a file under /run/pmem-agent/ (the D-Bus property Page names it), 4096 bytes, native byte
 * order, readable by everyone. It survives the agent, so that the next one finds a round still in flight, and clients
 * keep a latch to read when there is no agent.
 *
 * Every field has one writer, which stores it atomically. The worker writes what its system calls returned; the agent
 * writes what it decided. Whether stores have been lost pmem_agent_page_lost() tells.
 */
#define PMEM_AGENT_PAGE_MAGIC   0x314741504d454d50ULL /* "PMEMPAG1" when little-endian */
#define PMEM_AGENT_PAGE_VERSION 1
#define PMEM_AGENT_PAGE_SIZE    4096

struct pmem_agent_page {
	uint64_t magic;
	uint32_t version;
	uint32_t reserved;
	uint8_t boot_id[16];
	char identity[256]; /* what the region is, whatever its number in this boot */

	/* written by the worker, but for the first two, which the agent writes before it asks anything of it */
	struct {
		uint32_t pid; /* 0: no worker yet */
		uint32_t reserved;
		uint64_t start_time;   /* field 22 of /proc/PID/stat, clock ticks since boot */
		uint64_t started_usec; /* when the newest round began, CLOCK_REALTIME */
		uint64_t started;      /* its number; stored before its system call */
		uint64_t done;         /* newest round that returned; stored after everything else below */
		uint64_t durable;      /* newest round that made all of its requests durable */
		uint64_t failed;       /* newest round whose failure is a loss */
		int32_t error;         /* errno of that round */
		uint32_t peers;        /* 1: the newest round is one of other regions too; stored before `started` */
	} worker;

	/* written by the agent */
	struct {
		uint8_t instance[16];
		uint64_t loss;         /* number of the newest loss; 0: never one */
		uint64_t acknowledged; /* newest loss acknowledged */
		uint64_t loss_usec;    /* when it was noticed, CLOCK_REALTIME */
		uint64_t loss_round;   /* the newest round begun by then */
		uint64_t failed_seen;  /* worker.failed as of the newest loss counted */
		uint64_t epoch;        /* newest round the agent told anyone of as durable */
		int32_t loss_error;    /* errno */
		uint32_t loss_origin;  /* enum flush_origin */
		uint32_t reading;      /* not 0: it is taking errors from the trace instance, or could not count them */
		uint32_t recalled;     /* 1: what earlier boots lost is counted here; stored after it */
		uint64_t loss_epoch;   /* newest round confirmed before it */
		uint32_t loss_earlier; /* 1: loss_round and loss_epoch are those of an earlier boot */
		uint32_t refused;      /* not 0: the host has said that no flush keeps anything, and how */
		uint64_t handed;       /* newest round whose descriptors only the worker has now */
		uint64_t answered;     /* newest round of which nobody waits for an answer any more */
	} agent;

	uint8_t padding[PMEM_AGENT_PAGE_SIZE - 464];
};

PMEM_AGENT_AT(pmem_agent_page, identity, 32);
PMEM_AGENT_AT(pmem_agent_page, worker, 288);
PMEM_AGENT_AT(pmem_agent_page, worker.started, 312);
PMEM_AGENT_AT(pmem_agent_page, agent, 352);
PMEM_AGENT_AT(pmem_agent_page, agent.loss, 368);
PMEM_AGENT_AT(pmem_agent_page, agent.recalled, 428);
PMEM_AGENT_AT(pmem_agent_page, agent.handed, 448);
PMEM_AGENT_AT(pmem_agent_page, agent.answered, 456);
_Static_assert(sizeof(struct pmem_agent_page) == PMEM_AGENT_PAGE_SIZE, "the region page is 4096 bytes");
#undef PMEM_AGENT_AT

/*
 * What the page tells of losses. 0: none that nobody acknowledged. PMEM_AGENT_LOST: there is one. PMEM_AGENT_UNKNOWN:
 * nobody can tell: the agent is looking at errors right now, or died doing so, or saw one when it could not flush the
 * region; or it does not know yet what earlier boots lost; or this is no page, or not any more. The first of these
 * passes within milliseconds if the agent lives.
 *
 * An error that the trace instance has is announced in `reading`, then counted in loss, and then no more announced. A
 * failure of a round is stored in worker.failed, then counted in loss, then noted in failed_seen. Both may be
 * acknowledged after that. So they are looked for in the reverse order, or they could pass from one field to the next
 * behind our back.
 */
static inline int pmem_agent_page_lost(const volatile struct pmem_agent_page *page)
{
	uint32_t recalled = __atomic_load_n(&page->agent.recalled, __ATOMIC_ACQUIRE);
	uint64_t acknowledged = __atomic_load_n(&page->agent.acknowledged, __ATOMIC_ACQUIRE);
	uint32_t reading = __atomic_load_n(&page->agent.reading, __ATOMIC_ACQUIRE);
	uint64_t failed_seen = __atomic_load_n(&page->agent.failed_seen, __ATOMIC_ACQUIRE);
	uint64_t loss = __atomic_load_n(&page->agent.loss, __ATOMIC_ACQUIRE);
	uint64_t failed = __atomic_load_n(&page->worker.failed, __ATOMIC_ACQUIRE);

	if (loss > acknowledged || failed > failed_seen)
		return PMEM_AGENT_LOST;
	return reading || !recalled || __atomic_load_n(&page->magic, __ATOMIC_ACQUIRE) != PMEM_AGENT_PAGE_MAGIC ||
		       page->version != PMEM_AGENT_PAGE_VERSION
		   ? PMEM_AGENT_UNKNOWN
		   : 0;
}
