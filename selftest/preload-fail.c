/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * preload-fail: preloaded, the first fsync of the file that PRELOAD_FAIL names ends with EIO, as on a disk that failed;
 * and it counts the calls of statx(), and the bytes that msync() writes
 */
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

int fsync(int fd);
unsigned int preload_looks(void);
size_t preload_synced(void);

static unsigned int looks;
static size_t synced;

__attribute__((visibility("default"))) unsigned int preload_looks(void)
{
	return looks;
}

__attribute__((visibility("default"))) size_t preload_synced(void)
{
	return synced;
}

__attribute__((visibility("default"))) int msync(void *address, size_t size, int flags)
{
	synced += flags & MS_SYNC ? size : 0;
	return (int)syscall(SYS_msync, address, size, flags);
}

__attribute__((visibility("default"))) int statx(int fd, const char *path, int flags, unsigned int mask,
						 struct statx *st)
{
	looks++;
	return (int)syscall(SYS_statx, fd, path, flags, mask, st);
}

__attribute__((visibility("default"))) int fsync(int fd)
{
	static int failed;
	struct stat wanted, st;
	const char *path = getenv("PRELOAD_FAIL");

	if (!failed && path && stat(path, &wanted) == 0 && fstat(fd, &st) == 0 && wanted.st_ino == st.st_ino) {
		failed = 1;
		errno = EIO;
		return -1;
	}
	return (int)syscall(SYS_fsync, fd);
}
