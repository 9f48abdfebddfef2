/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * event.h - sources of the loop that have to be there when their time comes
 */
#pragma once

#include <systemd/sd-event.h>

/*
 * To enable a source may take memory. Where there is none, what it stands for would never happen, and somebody wait for
 * it for ever: then the agent ends, and the next one begins with what is written down.
 */
static inline void event_enable(sd_event_source *source, int enabled)
{
	int r = sd_event_source_set_enabled(source, enabled);

	if (r < 0)
		sd_event_exit(sd_event_source_get_event(source), r);
}
