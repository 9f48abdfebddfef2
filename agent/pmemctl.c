/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * pmemctl: asks the agent on D-Bus
 */
#include "ctl.h"

int main(int argc, char **argv)
{
	return ctl_main(argc, argv);
}
