/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * oom: preloaded into the agent, or a client of it: one allocation fails, the Nth from a moment that the test chooses
 *
 * OOM_CONTROL names a file of struct control, which the process shares with its children and with the test. What the C
 * library allocates by itself is counted too. Flushes are counted besides, and fail when told to: so a test knows
 * whether anything has been flushed. OOM_PROGRAM, if set, is the only program in which any of this is so.
 */
#include <dlfcn.h>
#include <errno.h>
#include <execinfo.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

struct control {
	uint64_t count;  /* allocations so far */
	uint64_t fail;   /* the one of that number fails; 0: none */
	uint64_t failed; /* how many have */
	uint64_t flushes;
	uint64_t flushes_fail; /* not 0: each of them, with EIO */
	uint64_t inode;        /* of the file whose flushes these are */
};

#define EXPORT __attribute__((visibility("default")))

static struct control *control;

#define NEXT(name)                                                                                                     \
	static __typeof__(name) *next;                                                                                 \
	if (!next)                                                                                                     \
	next = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

static bool fails(void)
{
	if (!control)
		return false;
	if (__atomic_add_fetch(&control->count, 1, __ATOMIC_SEQ_CST) !=
	    __atomic_load_n(&control->fail, __ATOMIC_SEQ_CST))
		return false;
	__atomic_add_fetch(&control->failed, 1, __ATOMIC_SEQ_CST);
	errno = ENOMEM;
	return true;
}

EXPORT void *malloc(size_t size)
{
	NEXT(malloc);
	return fails() ? NULL : next(size);
}

EXPORT void *calloc(size_t n, size_t size)
{
	NEXT(calloc);
	return fails() ? NULL : next(n, size);
}

EXPORT void *realloc(void *p, size_t size)
{
	NEXT(realloc);
	return size > 0 && fails() ? NULL : next(p, size);
}

EXPORT int posix_memalign(void **ret, size_t alignment, size_t size)
{
	NEXT(posix_memalign);
	return fails() ? ENOMEM : next(ret, alignment, size);
}

EXPORT void *aligned_alloc(size_t alignment, size_t size)
{
	NEXT(aligned_alloc);
	return fails() ? NULL : next(alignment, size);
}

static int flush(int fd, int (*real)(int))
{
	struct stat st;

	if (!control || fstat(fd, &st) < 0 || st.st_ino != control->inode)
		return real(fd);
	__atomic_add_fetch(&control->flushes, 1, __ATOMIC_SEQ_CST);
	if (!control->flushes_fail)
		return real(fd);
	errno = EIO;
	return -1;
}

EXPORT int fsync(int fd)
{
	NEXT(fsync);
	return flush(fd, next);
}

EXPORT int fdatasync(int fd)
{
	NEXT(fdatasync);
	return flush(fd, next);
}

EXPORT int msync(void *address, size_t size, int flags)
{
	NEXT(msync);
	if (control && flags & MS_SYNC)
		__atomic_add_fetch(&control->flushes, 1, __ATOMIC_SEQ_CST);
	return next(address, size, flags);
}

/* Says in whose code, the program's or a library's, since no test can tell that from the outside. */
static void on_crash(int number)
{
	void *frames[5];
	int n = backtrace(frames, 5);

	dprintf(STDERR_FILENO, "SEGV in");
	for (int i = 1; i < n; i++) { /* 0 is here */
		Dl_info found;

		dprintf(STDERR_FILENO, " %s", dladdr(frames[i], &found) ? basename(found.dli_fname) : "?");
	}
	dprintf(STDERR_FILENO, "\n");
	raise(number); /* once we have returned, and then without us */
}

/* What `backtrace` loads has to be there before. */
static void watch_crashes(void)
{
	void *here;

	if (dlsym(RTLD_DEFAULT, "__asan_init")) /* tells more */
		return;
	backtrace(&here, 1);
	sigaction(SIGSEGV, &(struct sigaction){ .sa_handler = on_crash, .sa_flags = SA_RESETHAND }, NULL);
}

__attribute__((constructor)) static void start(void)
{
	const char *path = getenv("OOM_CONTROL"), *program = getenv("OOM_PROGRAM");
	int fd = path && (!program || strcmp(program, program_invocation_short_name) == 0)
		     ? open(path, O_RDWR | O_CLOEXEC)
		     : -1;
	void *p = fd < 0 ? MAP_FAILED : mmap(NULL, sizeof(*control), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	if (fd >= 0)
		close(fd);
	if (p == MAP_FAILED)
		return;
	watch_crashes();
	control = p;
}
