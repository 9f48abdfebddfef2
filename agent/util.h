/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * util: cleanup helpers and the few idioms that every file uses
 */
#pragma once

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#define _cleanup_(f)   __attribute__((cleanup(f)))
#define _printf_(f, a) __attribute__((format(printf, f, a)))

/* A cleanup function `namep` for a destructor that takes NULL and returns NULL. */
#define DEFINE_CLEANUP(type, destroy)                                                                                  \
	static inline void destroy##p(type *p)                                                                         \
	{                                                                                                              \
		if (*p)                                                                                                \
			*p = destroy(*p);                                                                              \
	}

#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))

#define USEC_PER_SEC  UINT64_C(1000000)
#define USEC_PER_MSEC UINT64_C(1000)

static inline void freep(void *p)
{
	free(*(void **)p);
}

#define _cleanup_free_ _cleanup_(freep)

/* Closes and returns -1, errno kept. Only for descriptors whose closing cannot hang. */
static inline int safe_close(int fd)
{
	int saved = errno;

	if (fd >= 0)
		close(fd);
	errno = saved;
	return -1;
}

static inline void closep(int *fd)
{
	*fd = safe_close(*fd);
}

#define _cleanup_close_ _cleanup_(closep)

static inline uint64_t now_usec(clockid_t clock)
{
	struct timespec ts;

	clock_gettime(clock, &ts);
	return (uint64_t)ts.tv_sec * USEC_PER_SEC + (uint64_t)ts.tv_nsec / 1000;
}
