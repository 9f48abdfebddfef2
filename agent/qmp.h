/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qmp: what QEMU has behind the memory devices of its guest
 */
#pragma once

#include "backing.h"

#define QMP_MAX_DEVICES 64

struct qmp;

/*
 * Connects to the monitor at `path`, again and again, and calls `found` with what is there at each connection and after
 * each qmp_refresh(). `path` must stay. 0 or a negative errno.
 */
int qmp_new(sd_event *event, const char *path,
	    void (*found)(const struct backing_info *infos, unsigned int n, void *userdata), void *userdata,
	    struct qmp **ret);
struct qmp *qmp_free(struct qmp *q);
DEFINE_CLEANUP(struct qmp *, qmp_free)

/* Devices may have come or gone. Asks once a second at most. */
void qmp_refresh(struct qmp *q);

/* Why there is nothing known of them: an errno of the connection; 0: it is connected. */
int qmp_get_error(const struct qmp *q);
