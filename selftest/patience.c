/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * patience: the tests' alarm(), which comes later on a machine that is emulated: SELFTEST_PATIENCE times as late
 */
#include <stdlib.h>

unsigned int __real_alarm(unsigned int seconds);
unsigned int __wrap_alarm(unsigned int seconds);

unsigned int __wrap_alarm(unsigned int seconds)
{
	const char *patience = getenv("SELFTEST_PATIENCE");

	return __real_alarm(patience ? seconds * (unsigned int)strtoul(patience, NULL, 10) : seconds);
}
