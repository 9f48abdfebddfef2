/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * preload-close: the calls that close descriptors, and what is remembered of descriptors by their numbers
 *
 * That a number stands for an ordinary file is remembered for a second, and until it is closed, so that a call on one
 * costs no look at it each time. What closes it behind our back (system calls that a program makes by itself) is
 * noticed when the second is over.
 */
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "preload.h"

#define EXPORT __attribute__((visibility("default")))

#define N_STAMPS 1024

/* The low half: the second in which it was of an ordinary file, 0: it wasn't; the high half counts what closed it. */
static uint64_t stamps[N_STAMPS];
static uint32_t any_marked;

uint64_t preload_fd_stamp(int fd)
{
	if (fd < 0 || fd >= N_STAMPS)
		return 0;
	__atomic_store_n(&any_marked, 1, __ATOMIC_SEQ_CST);
	return __atomic_load_n(&stamps[fd], __ATOMIC_SEQ_CST);
}

void preload_fd_mark(int fd, uint64_t stamp, uint32_t second)
{
	if (fd >= 0 && fd < N_STAMPS && preload_is_own_process())
		__atomic_compare_exchange_n(&stamps[fd], &stamp, (stamp & ~(uint64_t)UINT32_MAX) | second, false,
					    __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
}

bool preload_fd_is_ordinary(int fd, uint32_t second)
{
	return fd >= 0 && fd < N_STAMPS && (uint32_t)__atomic_load_n(&stamps[fd], __ATOMIC_ACQUIRE) == second;
}

static void forget(int fd)
{
	uint64_t stamp;

	if (fd < 0 || fd >= N_STAMPS || !__atomic_load_n(&any_marked, __ATOMIC_SEQ_CST))
		return;
	stamp = __atomic_load_n(&stamps[fd], __ATOMIC_SEQ_CST);
	while (!__atomic_compare_exchange_n(&stamps[fd], &stamp, ((stamp >> 32) + 1) << 32, false, __ATOMIC_SEQ_CST,
					    __ATOMIC_SEQ_CST))
		;
}

static void forget_from(unsigned int first, unsigned int last)
{
	for (unsigned int fd = first; fd <= last && fd < N_STAMPS; fd++)
		forget((int)fd);
}

void preload_fd_closing(int fd)
{
	forget(fd);
	preload_map_closing(fd);
}

/* ---- the calls ---- */

static struct {
	int (*close)(int fd);
	int (*dup2)(int old, int new);
	int (*dup3)(int old, int new, int flags);
	int (*close_range)(unsigned int first, unsigned int last, int flags);
	void (*closefrom)(int first);
	int (*fclose)(FILE *stream);
	FILE *(*freopen)(const char *path, const char *mode, FILE *stream);
	FILE *(*freopen64)(const char *path, const char *mode, FILE *stream);
} real;

/* Those of streams have no system call to stand in for them before this library is initialised. */
#define FIND(name) (real.name ? real.name : (__typeof__(real.name))dlsym(RTLD_NEXT, #name))

__attribute__((constructor)) static void init(void)
{
	real.close = (int (*)(int))dlsym(RTLD_NEXT, "close");
	real.dup2 = (int (*)(int, int))dlsym(RTLD_NEXT, "dup2");
	real.dup3 = (int (*)(int, int, int))dlsym(RTLD_NEXT, "dup3");
	real.close_range = (int (*)(unsigned int, unsigned int, int))dlsym(RTLD_NEXT, "close_range");
	real.closefrom = (void (*)(int))dlsym(RTLD_NEXT, "closefrom");
	real.fclose = (int (*)(FILE *))dlsym(RTLD_NEXT, "fclose");
	real.freopen = (FILE * (*)(const char *, const char *, FILE *)) dlsym(RTLD_NEXT, "freopen");
	real.freopen64 = (FILE * (*)(const char *, const char *, FILE *)) dlsym(RTLD_NEXT, "freopen64");
}

EXPORT int close(int fd)
{
	preload_fd_closing(fd);
	return real.close ? real.close(fd) : (int)syscall(SYS_close, fd);
}

EXPORT int dup2(int old, int new)
{
	if (old != new)
		preload_fd_closing(new);
	return real.dup2 ? real.dup2(old, new) : (int)syscall(SYS_dup3, old, new, 0);
}

EXPORT int dup3(int old, int new, int flags)
{
	preload_fd_closing(new);
	return real.dup3 ? real.dup3(old, new, flags) : (int)syscall(SYS_dup3, old, new, flags);
}

EXPORT int close_range(unsigned int first, unsigned int last, int flags)
{
	forget_from(first, last);
	return real.close_range ? real.close_range(first, last, flags)
				: (int)syscall(SYS_close_range, first, last, flags);
}

EXPORT void closefrom(int first)
{
	forget_from(first > 0 ? (unsigned int)first : 0, UINT32_MAX);
	if (real.closefrom)
		real.closefrom(first);
	else
		syscall(SYS_close_range, first > 0 ? first : 0, UINT32_MAX, 0);
}

static void stream_closing(FILE *stream)
{
	int saved = errno;

	preload_fd_closing(fileno(stream));
	errno = saved;
}

EXPORT int fclose(FILE *stream)
{
	stream_closing(stream);
	return FIND(fclose)(stream);
}

EXPORT FILE *freopen(const char *path, const char *mode, FILE *stream)
{
	stream_closing(stream);
	return FIND(freopen)(path, mode, stream);
}

EXPORT FILE *freopen64(const char *path, const char *mode, FILE *stream)
{
	stream_closing(stream);
	return FIND(freopen64)(path, mode, stream);
}
