/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * ctl-region: the regions, as D-Bus tells them
 */
#include <inttypes.h>
#include <string.h>

#include "bus.h"
#include "ctl-host.h"

#define CTL_TIMEOUT_USEC (10 * USEC_PER_SEC)

static const struct property {
	const char *name, *type;
	size_t offset;
} properties[] = {
	{ "Name", "s", offsetof(struct ctl_region, name) },
	{ "Bus", "s", offsetof(struct ctl_region, bus) },
	{ "Provider", "s", offsetof(struct ctl_region, provider) },
	{ "Kind", "s", offsetof(struct ctl_region, kind) },
	{ "Asynchronous", "b", offsetof(struct ctl_region, asynchronous) },
	{ "Method", "s", offsetof(struct ctl_region, method) },
	{ "Evidence", "as", offsetof(struct ctl_region, evidence) },
	{ "Attestation", "s", offsetof(struct ctl_region, attestation) },
	{ "Resource", "t", offsetof(struct ctl_region, resource) },
	{ "Size", "t", offsetof(struct ctl_region, size) },
	{ "Namespaces", "a(ssss)", 0 },
	{ "Identity", "s", offsetof(struct ctl_region, identity) },
	{ "State", "s", offsetof(struct ctl_region, state) },
	{ "Epoch", "t", offsetof(struct ctl_region, epoch) },
	{ "DurableUSec", "t", offsetof(struct ctl_region, durable_usec) },
	{ "FlushingSinceUSec", "t", offsetof(struct ctl_region, flushing_since_usec) },
	{ "Waiting", "u", offsetof(struct ctl_region, waiting) },
	{ "Loss", "t", offsetof(struct ctl_region, loss) },
	{ "LossErrno", "i", offsetof(struct ctl_region, loss_errno) },
	{ "LossUSec", "t", offsetof(struct ctl_region, loss_usec) },
	{ "LossOrigin", "s", offsetof(struct ctl_region, loss_origin) },
	{ "LossRound", "t", offsetof(struct ctl_region, loss_round) },
	{ "LossEpoch", "t", offsetof(struct ctl_region, loss_epoch) },
	{ "LossEarlierBoot", "b", offsetof(struct ctl_region, loss_earlier_boot) },
	{ "Acknowledged", "t", offsetof(struct ctl_region, acknowledged) },
};

/* Replaces *text by itself with `line` at its end. */
static int add_line(char **text, const char *line)
{
	char *more = *text ? ctl_format("%s\n%s", *text, line) : strdup(line);

	if (!more)
		return -ENOMEM;
	free(*text);
	*text = more;
	return 0;
}

static int set_text(char **text, const char *value)
{
	free(*text);
	*text = strdup(value);
	return *text ? 0 : -ENOMEM;
}

static int read_evidence(sd_bus_message *m, char **text)
{
	const char *line;
	int r = sd_bus_message_enter_container(m, 'a', "s");

	*text = (free(*text), NULL);
	while (r >= 0 && (r = sd_bus_message_read(m, "s", &line)) > 0)
		r = add_line(text, line);
	return r < 0 ? r : sd_bus_message_exit_container(m);
}

static int read_namespaces(sd_bus_message *m, struct ctl_region *region)
{
	const char *name, *mode, *device, *uuid;
	int r = sd_bus_message_enter_container(m, 'a', "(ssss)");

	region->namespaces = (free(region->namespaces), NULL);
	region->modes = (free(region->modes), NULL);
	region->devices = (free(region->devices), NULL);
	while (r >= 0 && (r = sd_bus_message_read(m, "(ssss)", &name, &mode, &device, &uuid)) > 0) {
		r = add_line(&region->namespaces, name);
		if (r >= 0)
			r = add_line(&region->modes, mode);
		if (r >= 0)
			r = add_line(&region->devices, device[0] ? device : "-");
	}
	return r < 0 ? r : sd_bus_message_exit_container(m);
}

static int read_value(sd_bus_message *m, const struct property *p, struct ctl_region *region)
{
	void *field = (char *)region + p->offset;
	const char *text;
	int r;

	if (strcmp(p->type, "as") == 0)
		return read_evidence(m, field);
	if (strcmp(p->type, "a(ssss)") == 0)
		return read_namespaces(m, region);
	if (strcmp(p->type, "s") != 0)
		return sd_bus_message_read(m, p->type, field);
	r = sd_bus_message_read(m, "s", &text);
	return r < 0 ? r : set_text(field, text);
}

static int read_property(sd_bus_message *m, struct ctl_region *region)
{
	const char *name, *type;
	int r = sd_bus_message_read(m, "s", &name);

	if (r >= 0)
		r = sd_bus_message_peek_type(m, NULL, &type);
	for (unsigned int i = 0; r >= 0 && i < ARRAY_SIZE(properties); i++) {
		if (strcmp(properties[i].name, name) != 0 || strcmp(properties[i].type, type) != 0)
			continue;
		r = sd_bus_message_enter_container(m, 'v', type);
		if (r >= 0)
			r = read_value(m, &properties[i], region);
		return r < 0 ? r : sd_bus_message_exit_container(m);
	}
	return r < 0 ? r : sd_bus_message_skip(m, "v");
}

int ctl_region_read(struct ctl_region *region, sd_bus_message *m)
{
	int r = sd_bus_message_enter_container(m, 'a', "{sv}");

	while (r >= 0 && (r = sd_bus_message_enter_container(m, 'e', "sv")) > 0) {
		r = read_property(m, region);
		if (r >= 0)
			r = sd_bus_message_exit_container(m);
	}
	return r < 0 ? r : sd_bus_message_exit_container(m);
}

void ctl_region_clear(struct ctl_region *region)
{
	char *texts[] = { region->path,       region->name,     region->bus,     region->provider,    region->kind,
			  region->method,     region->identity, region->state,   region->loss_origin, region->evidence,
			  region->namespaces, region->modes,    region->devices, region->attestation };

	for (unsigned int i = 0; i < ARRAY_SIZE(texts); i++)
		free(texts[i]);
	*region = (struct ctl_region){ 0 };
}

void ctl_regions_clear(struct ctl_regions *list)
{
	for (unsigned int i = 0; i < list->n_regions; i++)
		ctl_region_clear(&list->regions[i]);
	free(list->regions);
	*list = (struct ctl_regions){ 0 };
}

/* The interfaces of one object: a{sa{sv}}. 1 if it is a region. */
static int read_interfaces(sd_bus_message *m, struct ctl_region *region)
{
	bool found = false;
	int r = sd_bus_message_enter_container(m, 'a', "{sa{sv}}");

	while (r >= 0 && (r = sd_bus_message_enter_container(m, 'e', "sa{sv}")) > 0) {
		const char *interface;

		r = sd_bus_message_read(m, "s", &interface);
		if (r < 0)
			break;
		if (strcmp(interface, BUS_INTERFACE_REGION) == 0) {
			r = ctl_region_read(region, m);
			found = true;
		} else {
			r = sd_bus_message_skip(m, "a{sv}");
		}
		if (r >= 0)
			r = sd_bus_message_exit_container(m);
	}
	if (r >= 0)
		r = sd_bus_message_exit_container(m);
	return r < 0 ? r : found;
}

static int append_region(struct ctl_regions *list, struct ctl_region *region)
{
	struct ctl_region *more = reallocarray(list->regions, list->n_regions + 1, sizeof(*list->regions));

	if (!more)
		return -ENOMEM;
	list->regions = more;
	list->regions[list->n_regions++] = *region;
	*region = (struct ctl_region){ 0 };
	return 0;
}

static int read_objects(sd_bus_message *m, struct ctl_regions *list)
{
	int r = sd_bus_message_enter_container(m, 'a', "{oa{sa{sv}}}");

	while (r >= 0 && (r = sd_bus_message_enter_container(m, 'e', "oa{sa{sv}}")) > 0) {
		_cleanup_(ctl_region_clear) struct ctl_region region = { 0 };
		const char *path;

		r = sd_bus_message_read(m, "o", &path);
		if (r >= 0)
			r = set_text(&region.path, path);
		if (r >= 0)
			r = read_interfaces(m, &region);
		if (r > 0)
			r = region.name && region.state && region.method ? append_region(list, &region) : -EBADMSG;
		if (r >= 0)
			r = sd_bus_message_exit_container(m);
	}
	return r < 0 ? r : sd_bus_message_exit_container(m);
}

static int compare_names(const void *a, const void *b)
{
	return strverscmp(((const struct ctl_region *)a)->name, ((const struct ctl_region *)b)->name);
}

int ctl_get_regions(struct ctl *c, struct ctl_regions *ret)
{
	_cleanup_(sd_bus_message_unrefp) sd_bus_message *call = NULL, *reply = NULL;
	_cleanup_(sd_bus_error_free) sd_bus_error error = SD_BUS_ERROR_NULL;
	_cleanup_(ctl_regions_clear) struct ctl_regions list = { 0 };
	int r;

	if (c->link)
		return ctl_host_get_regions(c, ret);
	r = ctl_connect(c);
	if (r != 0)
		return r;
	r = sd_bus_message_new_method_call(c->bus, &call, BUS_NAME, BUS_PATH, "org.freedesktop.DBus.ObjectManager",
					   "GetManagedObjects");
	if (r >= 0)
		r = sd_bus_call(c->bus, call, CTL_TIMEOUT_USEC, &error, &reply);
	if (sd_bus_error_is_set(&error))
		return ctl_call_failed(NULL, &error);
	if (r >= 0)
		r = read_objects(reply, &list);
	if (r < 0) {
		ctl_error(NULL, "cannot read the agent's reply: %s; is it of another version?", strerrordesc_np(-r));
		return CTL_EXIT_FAILURE;
	}
	if (list.n_regions > 0)
		qsort(list.regions, list.n_regions, sizeof(*list.regions), compare_names);
	*ret = list;
	list = (struct ctl_regions){ 0 };
	return 0;
}

char *ctl_get_problem(struct ctl *c, const char *property)
{
	_cleanup_free_ char *text = NULL;

	/* The host is not told. */
	if (c->link)
		return NULL;
	if (sd_bus_get_property_string(c->bus, BUS_NAME, BUS_PATH, BUS_INTERFACE_MANAGER, property, NULL, &text) < 0 ||
	    !text[0])
		return NULL;
	return strdup(text);
}

const struct ctl_region *ctl_regions_find(const struct ctl_regions *list, const char *name)
{
	for (unsigned int i = 0; i < list->n_regions; i++)
		if (strcmp(list->regions[i].name, name) == 0)
			return &list->regions[i];
	return NULL;
}

/* ---- */

static char *describe_loss(const struct ctl_region *region)
{
	_cleanup_free_ char *when = ctl_format_time(region->loss_usec), *then = NULL;

	/* Without its name it is not a command. */
	if (region->name)
		then =
		    ctl_format("; once made good: pmemctl acknowledge %s --loss=%" PRIu64, region->name, region->loss);
	return ctl_format(
	    "loss %" PRIu64 " at %s: %s, noticed by %s; of stores since epoch %" PRIu64 ", up to round %" PRIu64 "%s%s",
	    region->loss, when ?: "an unknown time", strerrordesc_np(region->loss_errno) ?: "unknown error",
	    region->loss_origin ?: "nobody", region->loss_epoch, region->loss_round,
	    region->loss_earlier_boot ? " of an earlier boot" : "", then ?: "");
}

char *ctl_region_describe(const struct ctl_region *region)
{
	uint64_t now = now_usec(CLOCK_REALTIME), since = region->flushing_since_usec;
	uint64_t seconds = now > since ? (now - since) / USEC_PER_SEC : 0;
	_cleanup_free_ char *loss = NULL, *when = NULL;
	char flying[64] = "";

	if (since != 0)
		snprintf(flying, sizeof(flying), "in flight for %" PRIu64 " s%s", seconds,
			 seconds > 0 ? ": the host has not answered" : "");
	if (region->loss != 0) {
		loss = describe_loss(region);
		return loss ? ctl_format("%s%s%s", loss, flying[0] ? "; " : "", flying) : NULL;
	}
	if (flying[0])
		return strdup(flying);
	if (strcmp(region->state, "unknown") == 0)
		return strdup("what earlier boots lost has not been read");
	if (strcmp(region->state, "stalled") == 0)
		return strdup("a flush of an agent before this one has not been answered");
	if (!region->asynchronous)
		return strdup("synchronous: needs no flush by the agent");
	when = ctl_format_time(region->durable_usec);
	return when ? ctl_format("durable: what was stored before %s", when) : strdup("not flushed yet by this agent");
}
