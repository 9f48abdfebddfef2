/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * bus: the D-Bus door, io.pmem.Agent1
 */
#pragma once

#include "manager.h"

#define BUS_NAME              "io.pmem.Agent1"
#define BUS_PATH              "/io/pmem/Agent1"
#define BUS_INTERFACE_MANAGER "io.pmem.Agent1.Manager"
#define BUS_INTERFACE_REGION  "io.pmem.Agent1.Region"

struct bus;

/* Connects to the system bus (or DBUS_SYSTEM_BUS_ADDRESS) and takes the name. 0 or a negative errno. */
int bus_new(struct manager *m, struct bus **ret);
struct bus *bus_free(struct bus *b);
DEFINE_CLEANUP(struct bus *, bus_free)
