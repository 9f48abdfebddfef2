/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * patience: the tests' alarm(), which comes later on a machine that is emulated
 */
#include "selftest/patience.h"

unsigned int __real_alarm(unsigned int seconds);
unsigned int __wrap_alarm(unsigned int seconds);

unsigned int __wrap_alarm(unsigned int seconds)
{
	return __real_alarm(patient(seconds));
}
