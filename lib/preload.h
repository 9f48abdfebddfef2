/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * preload: what the files of libpmem-agent-preload share
 *
 *   preload.c         the calls that are replaced, and what becomes of each
 *   preload-pmem.c    those of libpmem and libpmem2 among them
 *   preload-close.c   those that close descriptors, and what is remembered of descriptors by their numbers
 *   preload-agent.c   connections, and one request over one of them
 *   preload-kept.c    descriptors that the agent keeps for mappings whose own have been closed
 *   preload-group.c   threads that want the same share one request
 *   preload-device.c  which files concern us, and what has failed on them
 *   preload-page.c    the pages of regions: what was lost, also without the agent
 *   preload-map.c     which files lie below an address range
 *
 * All of this may run in a signal handler and in a child of vfork(), which shares our memory and not our descriptors.
 * So there is no lock and no malloc; tables are of fixed size, and what is in them is checked before it is relied on.
 * Other threads may be waited for, but not for ever: a signal handler may be what keeps them.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "wire.h"

struct statx;

/* What others may be storing: it is checked before it is relied on. */
#define PRELOAD_PEEK(field)        __atomic_load_n(&(field), __ATOMIC_RELAXED)
#define PRELOAD_POKE(field, value) __atomic_store_n(&(field), value, __ATOMIC_RELAXED)

/* ---- preload.c ---- */

/*
 * Stores in these addresses which the CPU has flushed are made durable as far as they are in mappings of device-dax, or
 * of emulated regions. 0 or an errno. `ret_all`: whether all of them are; NULL is allowed.
 */
int preload_flush_regions(uintptr_t start, uintptr_t end, bool *ret_all);

/* ---- preload-device.c ---- */

enum preload_kind {
	PRELOAD_NONE,     /* the real call, and nothing else */
	PRELOAD_DAX_FILE, /* on a device that may be an asynchronous region */
	PRELOAD_DAX_DEVICE,
	PRELOAD_EMULATED, /* a file that the agent was told to take for a region */
};

struct preload_device;

struct preload_file {
	enum preload_kind kind;
	uint64_t device, inode;
	struct preload_device *known; /* of its device; NULL: there was no room to remember it */
	bool ordinary;                /* it will never be of another kind */
};

/* Closing by the C library's name would come back to us. */
static inline void preload_close(int fd)
{
	syscall(SYS_close, fd);
}

/* Reads the environment: not in a signal handler. */
void preload_device_init(void);
const char *preload_directory(void);

/*
 * Whether there is anything to be routed to, or any failure to be remembered: 0: no; else a number that is another one
 * after a second. Looks once for each.
 */
uint32_t preload_is_active(void);

/* What `fd` stands for. `filesystem`: whether its filesystem concerns us, whatever the file is. */
void preload_classify(int fd, bool filesystem, struct preload_file *ret);

/* The same without a descriptor, by what has been seen of its device. */
void preload_device_guess(uint64_t device, uint64_t inode, struct preload_file *ret);

/* NULL: no file of this device has concerned us yet. */
struct preload_device *preload_device_find(uint64_t device);

/* The agent has told what is below it: the number of a page, 0: several; or for now: that it is nothing of ours. */
void preload_device_learn(const struct preload_file *file, uint64_t page);
void preload_device_dismiss(const struct preload_file *file);

/* Of device-dax: the CPU's own flush is enough. */
void preload_device_learn_synchronous(const struct preload_file *file);

/* A mapping of it has been made; whether stores in any such file need more than the CPU's flush, by what is known. */
void preload_device_note_mapped(const struct preload_file *file);
bool preload_device_any_mapped(void);

/* A file that stands for a region: device-dax, or an emulated one. */
bool preload_device_is_region(uint64_t device, uint64_t inode);

/* Such a page is there: of an emulated region, maybe. */
void preload_device_add_page(const struct pmem_agent_page *page, uint64_t number);

/* The real call has failed with EIO, and the agent may not know. */
void preload_device_stick(const struct preload_file *file);

/* Once: it is to be told so. It has been, says the caller, if preload_device_told() follows. */
bool preload_device_is_to_tell(const struct preload_file *file);
void preload_device_told(const struct preload_file *file);

bool preload_device_is_stuck(const struct preload_file *file);

/*
 * Whether its region has lost something or nobody can tell, by its page; by all there are if it isn't known which
 * (PRELOAD_NONE: nothing is known at all).
 * `settle`: waits for the rounds that are in flight: an error that one of them takes is one of ours.
 */
bool preload_device_is_lost(const struct preload_file *file, bool settle);

/* ---- preload-page.c ---- */

/* What is in `directory` is mapped, as far as it isn't yet. 0; -ENOENT: there is no such directory; -EAGAIN, or another
 * negative errno: maybe not all. */
int preload_page_look(const char *directory);

/* NULL: there is none of this number, or it can't be read. It stays where it is. */
const struct pmem_agent_page *preload_page_find(const char *directory, uint64_t number);

/*
 * Whether it tells of a loss, or nobody can tell; of any, also if there may be others. `emulated`: of those regions
 * too, which have nothing to do with devices.
 */
bool preload_page_is_lost(const struct pmem_agent_page *page, bool settle);
bool preload_page_any_is_lost(const char *directory, bool emulated, bool settle);

/* ---- preload-wait.c ---- */

#define PRELOAD_NSEC_PER_SEC 1000000000ULL

/* CLOCK_MONOTONIC, in nanoseconds. */
uint64_t preload_now(void);

/* While the word is `seen`, until then at the latest. False: it is that time. */
bool preload_wait(const uint32_t *word, uint32_t seen, uint64_t until);

/* So many of those who wait. */
void preload_wake(const uint32_t *word, int n);

/* ---- preload-agent.c ---- */

#define PRELOAD_HIGH_FD 960 /* where no application expects its own, and select() still reaches */

void preload_agent_init(void);

/* Whether what is remembered of descriptors is of this process: not in a child of vfork(). */
bool preload_is_own_process(void);

/* Whether what is remembered of memory is of this process, or of the parent whose memory a child of vfork() uses. */
bool preload_is_own_memory(void);

/* A connection of ours. */
struct preload_line {
	uint32_t state;
	int fd;
	uint64_t inode; /* of the socket: whether the number is still ours */
};

/* 0; -EAGAIN: too many wait for the agent to accept them; or another negative errno. */
int preload_line_connect(struct preload_line *line);
bool preload_line_is_ours(const struct preload_line *line);
void preload_line_close(const struct preload_line *line);

enum preload_outcome {
	PRELOAD_TOLD,    /* the agent has spoken: `answer` and `error` */
	PRELOAD_UNASKED, /* surely no agent has got it */
	PRELOAD_UNKNOWN, /* it was sent, and what became of it nobody knows */
	PRELOAD_CHANGED, /* the descriptor stood for something else when it was sent */
};

struct preload_reply {
	enum pmem_agent_answer answer;
	int error; /* positive */
	uint64_t page;
};

/* How the application holds the file: a descriptor, -1: none; or the number by which the agent keeps one, 0: none. */
struct preload_handle {
	int fd;
	uint64_t kept;
};

/* Have it flushed, and wait for it. `h.fd` should be `file`: if not, PRELOAD_CHANGED. */
enum preload_outcome preload_ask(struct preload_handle h, enum pmem_agent_scope scope, const struct preload_file *file,
				 struct preload_reply *ret);

/* Tells the agent that a real call on `file` has failed: PRELOAD_TOLD, else it doesn't know. As preload_ask(). */
enum preload_outcome preload_tell(struct preload_handle h, const struct preload_file *file);

/* ---- preload-kept.c ---- */

/* `fd`, by which `file` was mapped, is about to be closed. */
void preload_kept_offer(int fd, const struct preload_file *file);

/* By which number the agent keeps this file; 0: it doesn't. */
uint64_t preload_kept_find(uint64_t device, uint64_t inode);

/* It has been mapped there, too. */
void preload_kept_extend(uint64_t device, uint64_t inode, uintptr_t start, uintptr_t end);

/* A mapping has been moved or changed in size: whether of a kept file isn't looked at. */
void preload_kept_moved(uintptr_t old, uintptr_t old_end, uintptr_t start, uintptr_t end);

/* What was there is mapped no more. Returns when the agent has dropped what nothing is mapped of. */
void preload_kept_unmapped(uintptr_t start, uintptr_t end);

/* In a child of fork(): they are the parent's. */
void preload_kept_inherit(void);

/* ---- preload-close.c ---- */

/* What is remembered of this number for preload_fd_mark(). */
uint64_t preload_fd_stamp(int fd);

/* `fd` was of an ordinary file in that second, and has not been closed since preload_fd_stamp() gave `stamp`. */
void preload_fd_mark(int fd, uint64_t stamp, uint32_t second);
bool preload_fd_is_ordinary(int fd, uint32_t second);

/* `fd` is closed, or becomes something else. */
void preload_fd_closing(int fd);

/* ---- preload-group.c ---- */

/* All of it: what is padding in a structure is compared too. */
struct preload_question {
	uint64_t device, inode, kept;
	int32_t fd;
	uint32_t scope;
};

/* For a process of its own: nobody of its parent's will come. */
void preload_group_inherit(void);

/* How it is asked: `prepare` while others may still join, `send` when what they have stored is to be flushed. */
struct preload_ask {
	void (*prepare)(struct preload_ask *ask);
	enum preload_outcome (*send)(struct preload_ask *ask, struct preload_reply *ret);
};

/* By this thread, or by another that asks the same, after this call has begun. */
enum preload_outcome preload_group_ask(const struct preload_question *q, struct preload_ask *ask,
				       struct preload_reply *ret);

/* ---- preload-map.c ---- */

/* A shared mapping of `fd` has been made. */
void preload_map_note(int fd, uintptr_t start, uintptr_t end);

/* `fd` is about to be closed. */
void preload_map_closing(int fd);

/* Whether anything that concerns us may be mapped there, or has been. */
bool preload_map_concerns(uintptr_t start, uintptr_t end);

/* It may, from now on: a mapping has been moved there. */
void preload_map_add(uintptr_t start, uintptr_t end);

/* Others may be doing the same. */
void preload_range_widen(uintptr_t *range_start, uintptr_t *range_end, uintptr_t start, uintptr_t end);

/* How the application holds this file, by what is known, and what it is. */
struct preload_handle preload_map_find_handle(uint64_t device, uint64_t inode, struct preload_file *ret);

/* That descriptor is of something else now. */
void preload_map_disown(uint64_t device, uint64_t inode, int fd);

/* Shared mappings of files, in the order of their addresses. */
struct preload_map {
	int fd;
	bool text;  /* the kernel has no PROCMAP_QUERY */
	bool asked; /* it has it */
	bool is_kept;
	size_t at, n;
	char buffer[512];
};

struct preload_mapping {
	uintptr_t start, end;
	bool shared;
	uint64_t device, inode;
};

/* In a child of fork(). */
void preload_map_inherit(void);

/* 0 or a negative errno. */
int preload_map_open(struct preload_map *map);
void preload_map_close(struct preload_map *map);

/* The first mapping that ends after `address`. 1; 0: there is none; or a negative errno. Addresses never decrease. */
int preload_map_next(struct preload_map *map, uintptr_t address, struct preload_mapping *ret);
