/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * patience: how much longer things take on a machine that is emulated: SELFTEST_PATIENCE; alarm() heeds it by itself
 */
#pragma once

#include <stdlib.h>

static inline unsigned int patient(unsigned int duration)
{
	const char *patience = getenv("SELFTEST_PATIENCE");

	return patience ? duration * (unsigned int)strtoul(patience, NULL, 10) : duration;
}
