/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * hotplug: uevents of regions, namespaces and ports, from udev
 */
#pragma once

#include "host.h"
#include "manager.h"

struct hotplug;

/* Rescans when regions come, go or change, and opens the host's port when it comes. 0 or a negative errno. */
int hotplug_new(struct manager *m, struct host *h, struct hotplug **ret);
struct hotplug *hotplug_free(struct hotplug *h);
DEFINE_CLEANUP(struct hotplug *, hotplug_free)
