/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * polkit: may the sender of a message do something? Asked without waiting
 */
#pragma once

#include <stdbool.h>
#include <sys/types.h>
#include <systemd/sd-bus.h>

#include "lib/wire.h"
#include "util.h"

struct polkit;

/* PMEM_AGENT_DURABLE stands for yes; else PMEM_AGENT_DENIED with the reason. Called once, from the bus; free it then.
 */
typedef void (*polkit_done_t)(enum pmem_agent_answer answer, const char *reason, void *userdata);

/* Root and our own user may do anything, and nobody is asked. */
bool polkit_trusts(uid_t uid);

/*
 * Whoever else: polkit decides, and may ask the user only if the message allows it. Where there is no polkit they may
 * not. 0: `done` will be called; or a negative errno.
 */
int polkit_check(sd_bus_message *m, const char *action, polkit_done_t done, void *userdata, struct polkit **ret);

/* Also takes the question back: `done` will not be called. */
struct polkit *polkit_free(struct polkit *p);
DEFINE_CLEANUP(struct polkit *, polkit_free)
