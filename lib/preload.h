/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * preload: what the files of libpmem-agent-preload share
 *
 *   preload.c         the calls that are replaced, and what becomes of each
 *   preload-agent.c   connections, and one request over one of them
 *   preload-device.c  which files concern us, and what is known of the regions below them, also without the agent
 *   preload-map.c     which files lie below an address range
 *
 * All of this may run in a signal handler and in a child of vfork(), which shares our memory and not our descriptors.
 * So there is no lock and no malloc; tables are of fixed size, and what is in them is checked before it is relied on.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "wire.h"

struct statx;

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
};

/* Reads the environment: not in a signal handler. */
void preload_device_init(void);
const char *preload_directory(void);

/* Whether there is anything to be routed to, or any failure to be remembered. Looks once a second. */
bool preload_is_active(void);

/* What `fd` stands for. `filesystem`: whether its filesystem concerns us, whatever the file is. */
void preload_classify(int fd, bool filesystem, struct preload_file *ret);

/* The same without a descriptor, by what has been seen of its device. */
void preload_device_guess(uint64_t device, uint64_t inode, struct preload_file *ret);

/* NULL: no file of this device has concerned us yet. */
struct preload_device *preload_device_find(uint64_t device);

/* The agent has told what is below it: the number of a page; or for now: that it is nothing of ours. */
void preload_device_learn(const struct preload_file *file, uint64_t page);
void preload_device_dismiss(const struct preload_file *file);

/* The real call has failed with EIO, and the agent may not know. */
void preload_device_stick(const struct preload_file *file);
bool preload_device_is_stuck(const struct preload_file *file);

/*
 * Whether its region has lost something or nobody can tell, by its page; by all there are if it isn't known which.
 * `settle`: waits for the rounds that are in flight: an error that one of them takes is one of ours.
 */
bool preload_device_is_lost(const struct preload_file *file, bool settle);

/* ---- preload-agent.c ---- */

void preload_agent_init(void);

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

/* Have it flushed, and wait for it. `fd` should be `file`: if not, PRELOAD_CHANGED. */
enum preload_outcome preload_ask(int fd, enum pmem_agent_scope scope, const struct preload_file *file,
				 struct preload_reply *ret);

/* ---- preload-map.c ---- */

/* A shared mapping of `fd` has been made. */
void preload_map_note(int fd);

/* None of the mappings concerns us. */
bool preload_map_is_empty(void);

/* A descriptor of this file that the application holds at the moment, and what it stands for; -1: none. */
int preload_map_find_fd(uint64_t device, uint64_t inode, struct preload_file *ret);

/* Shared mappings of files, in the order of their addresses. */
struct preload_map {
	int fd;
	bool text; /* the kernel has no PROCMAP_QUERY */
	size_t at, n;
	char buffer[512];
};

struct preload_mapping {
	uintptr_t start, end;
	bool shared;
	uint64_t device, inode;
};

/* 0 or a negative errno. */
int preload_map_open(struct preload_map *map);
void preload_map_close(struct preload_map *map);

/* The first mapping that ends after `address`. 1; 0: there is none; or a negative errno. Addresses never decrease. */
int preload_map_next(struct preload_map *map, uintptr_t address, struct preload_mapping *ret);
