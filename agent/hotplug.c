/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * hotplug: uevents of regions, namespaces and ports, from udev
 *
 * A uevent says only that something changed; what, a scan tells. So any number of them make one scan: the monitor
 * comes before it in priority and is emptied first. That is also why an overflow of the monitor's socket needs no
 * care: entries are dropped only while others wait in it, and the scan comes after those.
 */
#include <string.h>
#include <systemd/sd-device.h>

#include "hotplug.h"

struct hotplug {
	struct manager *manager;
	struct host *host;
	sd_device_monitor *monitor;
	sd_event_source *rescan;
};

static int on_rescan(sd_event_source *source, void *userdata)
{
	struct hotplug *h = userdata;

	manager_rescan(h->manager);
	if (h->host)
		host_open(h->host);
	return 0;
}

static int on_uevent(sd_device_monitor *monitor, sd_device *device, void *userdata)
{
	struct hotplug *h = userdata;
	const char *subsystem = NULL, *name = NULL;

	sd_device_get_subsystem(device, &subsystem);
	sd_device_get_sysname(device, &name);
	if (subsystem && strcmp(subsystem, "block") == 0 && name && strncmp(name, "pmem", 4) != 0)
		return 0;

	return sd_event_source_set_enabled(h->rescan, SD_EVENT_ONESHOT);
}

int hotplug_new(struct manager *m, struct host *host, struct hotplug **ret)
{
	static const struct {
		const char *subsystem, *devtype;
	} matches[] = { { "nd", NULL }, { "dax", NULL }, { "block", "disk" }, { "virtio-ports", NULL } };
	_cleanup_(hotplug_freep) struct hotplug *h = calloc(1, sizeof(*h));
	int r;

	if (!h)
		return -ENOMEM;
	h->manager = m;
	h->host = host;

	/* Begins enabled: what changed between the first scan and now was told to nobody. */
	r = sd_event_add_defer(manager_get_event(m), &h->rescan, on_rescan, h);
	if (r < 0)
		return r;
	r = sd_device_monitor_new(&h->monitor);
	if (r < 0)
		return r;
	for (size_t i = 0; i < ARRAY_SIZE(matches); i++) {
		r = sd_device_monitor_filter_add_match_subsystem_devtype(h->monitor, matches[i].subsystem,
									 matches[i].devtype);
		if (r < 0)
			return r;
	}
	r = sd_device_monitor_attach_event(h->monitor, manager_get_event(m));
	if (r < 0)
		return r;
	r = sd_device_monitor_start(h->monitor, on_uevent, h);
	if (r < 0)
		return r;
	r = sd_event_source_set_priority(sd_device_monitor_get_event_source(h->monitor), SD_EVENT_PRIORITY_IMPORTANT);
	if (r < 0)
		return r;

	*ret = h;
	h = NULL;
	return 0;
}

struct hotplug *hotplug_free(struct hotplug *h)
{
	if (!h)
		return NULL;
	sd_device_monitor_unref(h->monitor);
	sd_event_source_disable_unref(h->rescan);
	free(h);
	return NULL;
}
