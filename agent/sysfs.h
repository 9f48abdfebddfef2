/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * sysfs: attributes, by the path that a format gives
 */
#pragma once

#include <sys/types.h>

#include "util.h"

/* The text of an attribute, without its newline. 0 or a negative errno; -EOVERFLOW: `size` is too small. */
int sysfs_read(char *ret, size_t size, const char *format, ...) _printf_(3, 4);

/* A `dev` attribute: "259:0". 0 or a negative errno. */
int sysfs_read_devnum(dev_t *ret, const char *format, ...) _printf_(2, 3);

bool sysfs_exists(const char *format, ...) _printf_(1, 2);

/* The path without symbolic links; NULL with errno. */
char *sysfs_resolve(const char *format, ...) _printf_(1, 2);
