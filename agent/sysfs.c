/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * sysfs: attributes, by the path that a format gives
 */
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/sysmacros.h>

#include "sysfs.h"

/* The path that `format` gives, in `path`; false with errno if it is too long. */
#define FORMAT_PATH(path, format)                                                                                      \
	({                                                                                                             \
		va_list args_;                                                                                         \
		int n_;                                                                                                \
		va_start(args_, format);                                                                               \
		n_ = vsnprintf(path, sizeof(path), format, args_);                                                     \
		va_end(args_);                                                                                         \
		errno = ENAMETOOLONG;                                                                                  \
		n_ >= 0 && (size_t)n_ < sizeof(path);                                                                  \
	})

static int read_path(const char *path, char *ret, size_t size)
{
	_cleanup_close_ int fd = -1;
	char text[256];
	ssize_t n;

	fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
	if (fd < 0)
		return -errno;
	n = read(fd, text, sizeof(text));
	if (n < 0)
		return -errno;
	if (n > 0 && text[n - 1] == '\n')
		n--;
	if ((size_t)n >= size || n == sizeof(text))
		return -EOVERFLOW;
	memcpy(ret, text, n);
	ret[n] = '\0';
	return 0;
}

int sysfs_read(char *ret, size_t size, const char *format, ...)
{
	char path[PATH_MAX];

	if (!FORMAT_PATH(path, format))
		return -errno;
	return read_path(path, ret, size);
}

int sysfs_read_devnum(dev_t *ret, const char *format, ...)
{
	char path[PATH_MAX], text[32];
	unsigned int major, minor;
	int e, n = 0;

	if (!FORMAT_PATH(path, format))
		return -errno;
	e = read_path(path, text, sizeof(text));
	if (e < 0)
		return e;
	if (sscanf(text, "%u:%u%n", &major, &minor, &n) != 2 || text[n])
		return -EINVAL;
	*ret = makedev(major, minor);
	return 0;
}

bool sysfs_exists(const char *format, ...)
{
	char path[PATH_MAX];

	return FORMAT_PATH(path, format) && access(path, F_OK) == 0;
}

char *sysfs_resolve(const char *format, ...)
{
	char path[PATH_MAX];

	return FORMAT_PATH(path, format) ? realpath(path, NULL) : NULL;
}
