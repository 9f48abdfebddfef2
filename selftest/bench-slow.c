/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * bench-slow: preloaded, it makes the flush of one file slow, as that of a disk is, and counts
 *
 * BENCH_SLOW names a file that is shared by all processes that count together; the first makes it. BENCH_SLOW_FILE is
 * the file whose fsync, fdatasync and msync take BENCH_SLOW_USEC longer, one after the other if BENCH_SLOW_SERIALISED
 * is set. With BENCH_SLOW_ONLY they do nothing else: what this machine's own disk would take is left out.
 */
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

int fsync(int fd);
int fdatasync(int fd);

static struct stat file;
static uint64_t delay_usec;
static bool serialised, only;
static char *mapped; /* of the file, the last one */
static size_t mapped_size;

/* Only one process flushes at a time: a caller's or the agent's. */
static struct shared {
	uint64_t count;
	pthread_mutex_t disk;
	uint32_t ready;
} * shared;

static void share(int fd)
{
	pthread_mutexattr_t attributes;
	uint32_t none = 0;

	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (shared == MAP_FAILED)
		_exit(1);
	if (__atomic_compare_exchange_n(&shared->ready, &none, 1, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) {
		pthread_mutexattr_init(&attributes);
		pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
		pthread_mutex_init(&shared->disk, &attributes);
		__atomic_store_n(&shared->ready, 2, __ATOMIC_RELEASE);
	}
	while (__atomic_load_n(&shared->ready, __ATOMIC_ACQUIRE) != 2)
		;
}

__attribute__((constructor)) static void load(void)
{
	const char *name = getenv("BENCH_SLOW"), *path = getenv("BENCH_SLOW_FILE"), *usec = getenv("BENCH_SLOW_USEC");
	int fd = name ? open(name, O_RDWR | O_CREAT | O_CLOEXEC, 0600) : -1;

	if (fd < 0 || !path || lstat(path, &file) < 0 || ftruncate(fd, sizeof(*shared)) < 0) {
		fputs("bench-slow: set BENCH_SLOW and BENCH_SLOW_FILE\n", stderr);
		_exit(1);
	}
	share(fd);
	close(fd);
	delay_usec = usec ? strtoull(usec, NULL, 10) : 0;
	serialised = getenv("BENCH_SLOW_SERIALISED") != NULL;
	only = getenv("BENCH_SLOW_ONLY") != NULL;
}

static bool is_slow(int fd)
{
	struct stat st;

	return fstat(fd, &st) == 0 && st.st_dev == file.st_dev && st.st_ino == file.st_ino;
}

/* `r`: what the real one has returned, if it has been called. */
static int sleep_long(int r)
{
	const struct timespec delay = { .tv_sec = (time_t)(delay_usec / 1000000),
					.tv_nsec = (long)(delay_usec % 1000000 * 1000) };

	nanosleep(&delay, NULL);
	return r;
}

static void begin(void)
{
	__atomic_add_fetch(&shared->count, 1, __ATOMIC_RELAXED);
	if (serialised)
		pthread_mutex_lock(&shared->disk);
}

static void end(void)
{
	if (serialised)
		pthread_mutex_unlock(&shared->disk);
}

static int slow(const char *name, int fd)
{
	int (*real)(int) = dlsym(RTLD_NEXT, name);
	int r;

	if (!is_slow(fd))
		return real(fd);
	begin();
	r = sleep_long(only ? 0 : real(fd));
	end();
	return r;
}

__attribute__((visibility("default"))) int fsync(int fd)
{
	return slow("fsync", fd);
}

__attribute__((visibility("default"))) int fdatasync(int fd)
{
	return slow("fdatasync", fd);
}

__attribute__((visibility("default"))) void *mmap(void *address, size_t size, int protection, int flags, int fd,
						  off_t offset)
{
	void *(*real)(void *, size_t, int, int, int, off_t) = dlsym(RTLD_NEXT, "mmap");
	void *p = real(address, size, protection, flags, fd, offset);

	if (p != MAP_FAILED && fd >= 0 && flags & MAP_SHARED && is_slow(fd)) {
		mapped = p;
		mapped_size = size;
	}
	return p;
}

__attribute__((visibility("default"))) int msync(void *address, size_t size, int flags)
{
	int (*real)(void *, size_t, int) = dlsym(RTLD_NEXT, "msync");
	int r;

	if (!(flags & MS_SYNC) || (char *)address < mapped || (char *)address >= mapped + mapped_size)
		return real(address, size, flags);
	begin();
	r = sleep_long(only ? 0 : real(address, size, flags));
	end();
	return r;
}
