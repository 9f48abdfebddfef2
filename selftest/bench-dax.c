/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * bench-dax: preloaded after libpmem-agent-preload, the file BENCH_DAX looks as if it lay on DAX of an asynchronous
 * region
 *
 * So what the library does for such files can be watched without any: the agent takes the file for an emulated region,
 * and flushes it. By itself the library would know that, and make the real call as well.
 */
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))

static struct stat file;

__attribute__((constructor)) static void load(void)
{
	const char *path = getenv("BENCH_DAX");

	if (path)
		lstat(path, &file);
}

/* As if nothing were there: a region whose file can't be found is no emulated one. */
EXPORT int stat(const char *path, struct stat *ret)
{
	int r = lstat(path, ret);

	if (r < 0 || ret->st_dev != file.st_dev || ret->st_ino != file.st_ino)
		return r;
	errno = ENOENT;
	return -1;
}

EXPORT int statx(int fd, const char *path, int flags, unsigned int mask, struct statx *ret)
{
	int (*real)(int, const char *, int, unsigned int, struct statx *) = dlsym(RTLD_NEXT, "statx");
	int r = real(fd, path, flags, mask, ret);

	if (r == 0 && ret->stx_ino == file.st_ino && makedev(ret->stx_dev_major, ret->stx_dev_minor) == file.st_dev)
		ret->stx_attributes |= STATX_ATTR_DAX;
	return r;
}

EXPORT ssize_t readlink(const char *path, char *buffer, size_t size)
{
	static const char link[] = "../../devices/ndbus0/region0/namespace0.0/block/pmem0";
	ssize_t (*real)(const char *, char *, size_t) = dlsym(RTLD_NEXT, "readlink");

	if (file.st_ino == 0 || strncmp(path, "/sys/dev/block/", 15) != 0 || size < sizeof(link))
		return real(path, buffer, size);
	memcpy(buffer, link, sizeof(link) - 1);
	return sizeof(link) - 1;
}
