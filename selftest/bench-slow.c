/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * bench-slow: preloaded, it makes the flush of one file slow, as that of a disk is, and counts
 *
 * BENCH_SLOW names a file that is shared by all processes that count together; the first makes it. BENCH_SLOW_FILE is
 * the file whose fsync and fdatasync take BENCH_SLOW_USEC longer, one after the other if BENCH_SLOW_SERIALISED is set.
 */
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
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
static uint64_t *count;
static uint64_t delay_usec;
static int serialised;
static pthread_mutex_t disk =
    PTHREAD_MUTEX_INITIALIZER; /* only one process flushes at a time: a caller's or the agent's */

__attribute__((constructor)) static void load(void)
{
	const char *shared = getenv("BENCH_SLOW"), *path = getenv("BENCH_SLOW_FILE"), *usec = getenv("BENCH_SLOW_USEC");
	int fd = shared ? open(shared, O_RDWR | O_CREAT | O_CLOEXEC, 0600) : -1;

	if (fd < 0 || !path || stat(path, &file) < 0 || ftruncate(fd, sizeof(*count)) < 0) {
		fputs("bench-slow: set BENCH_SLOW and BENCH_SLOW_FILE\n", stderr);
		_exit(1);
	}
	count = mmap(NULL, sizeof(*count), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	if (count == MAP_FAILED)
		_exit(1);
	delay_usec = usec ? strtoull(usec, NULL, 10) : 0;
	serialised = getenv("BENCH_SLOW_SERIALISED") != NULL;
}

static int slow(const char *name, int fd)
{
	const struct timespec delay = { .tv_sec = (time_t)(delay_usec / 1000000),
					.tv_nsec = (long)(delay_usec % 1000000 * 1000) };
	int (*real)(int) = dlsym(RTLD_NEXT, name);
	struct stat st;
	int r;

	if (fstat(fd, &st) < 0 || st.st_dev != file.st_dev || st.st_ino != file.st_ino)
		return real(fd);
	__atomic_add_fetch(count, 1, __ATOMIC_RELAXED);
	if (serialised)
		pthread_mutex_lock(&disk);
	r = real(fd);
	nanosleep(&delay, NULL);
	if (serialised)
		pthread_mutex_unlock(&disk);
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
