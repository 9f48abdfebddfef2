/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * log: entries with fields for the journal, or lines on stderr where there is no journal
 *
 * The journal's socket is never waited for: an entry that it does not take at once is dropped and counted, since a
 * journal that is stuck on its own disk must not hold up a flush. Floors 0 to 2 do not log.
 */
#pragma once

#include <stdint.h>
#include <syslog.h>

#include "util.h"

/* One MESSAGE_ID an event; their values are in log.c and in pmem-agent(8). */
enum log_event {
	LOG_EVENT_NONE,
	LOG_EVENT_STARTED,
	LOG_EVENT_STOPPED,
	LOG_EVENT_REGION_ADDED,
	LOG_EVENT_REGION_REMOVED,
	LOG_EVENT_LOST,
	LOG_EVENT_STALLED,
	LOG_EVENT_RECOVERED,
	LOG_EVENT_CONFIG,
	LOG_EVENT_WITNESS,
	LOG_EVENT_HOST,
	LOG_EVENT_ACKNOWLEDGED,
	LOG_EVENT_STATE,
	LOG_EVENT_SCAN,
	N_LOG_EVENTS,
};

void log_open(void);
void log_close(void);

/* As log_open(), with the journal's socket at another path. */
void log_open_at(const char *socket_path);

/* Text of an event's MESSAGE_ID, 32 hex digits; NULL for LOG_EVENT_NONE. */
const char *log_event_id(enum log_event event);

/* An entry of the daemon as a whole. */
void log_daemon(int priority, enum log_event event, const char *format, ...) _printf_(3, 4);

/* The agent ends here, and says what it has no memory for: going on would tell something else, or abort. */
_Noreturn void log_end_without_memory(const char *what);

/* An entry of one region: REGION= and EPOCH= go with it. */
void log_region(int priority, enum log_event event, const char *region, uint64_t epoch, const char *format, ...)
    _printf_(5, 6);
