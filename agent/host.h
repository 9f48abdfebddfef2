/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * host: the door to the host: QMP's envelope on the virtio-serial port io.pmem.agent.0
 */
#pragma once

#include "manager.h"

struct host;

/* Listens to the manager from here on; without a port it waits for host_open(). 0 or a negative errno. */
int host_new(struct manager *m, struct host **ret);
struct host *host_free(struct host *h);
DEFINE_CLEANUP(struct host *, host_free)

/* The port may have appeared: opens it unless it is open. */
void host_open(struct host *h);

/* Tells the host that the agent ends, and whether everything was durable then. */
void host_shutdown(struct host *h, bool clean);
