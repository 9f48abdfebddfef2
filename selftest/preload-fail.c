/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * preload-fail: preloaded, the first fsync of the file that PRELOAD_FAIL names ends with EIO, as on a disk that failed
 */
#include <errno.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

int fsync(int fd);

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
