/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * bus-object: the objects of io.pmem.Agent1, their properties and methods
 */
#include <limits.h>
#include <string.h>

#include "bus-private.h"
#include "text.h"

/* ---- options of the flush methods ---- */

struct options {
	bool only_timeout; /* the only one there is */
	enum mount_scope scope;
	bool datasync;
	uint64_t timeout_usec; /* 0: none */
};

static const char *const scope_names[] = {
	[MOUNT_SCOPE_AUTO] = "auto",
	[MOUNT_SCOPE_FILE] = "file",
	[MOUNT_SCOPE_FILESYSTEM] = "filesystem",
	[MOUNT_SCOPE_REGION] = "region",
};

static int parse_scope(const char *text, enum mount_scope *ret)
{
	for (unsigned int i = 0; i < ARRAY_SIZE(scope_names); i++) {
		if (scope_names[i] && strcmp(scope_names[i], text) == 0) {
			*ret = i;
			return 0;
		}
	}
	return -EINVAL;
}

static int read_option(sd_bus_message *m, struct options *o, sd_bus_error *error)
{
	const char *key, *contents, *text;
	int yes, r;

	r = sd_bus_message_read(m, "s", &key);
	if (r < 0)
		return r;
	r = sd_bus_message_peek_type(m, NULL, &contents);
	if (r < 0)
		return r;
	if (strcmp(key, "timeout-usec") == 0 && strcmp(contents, "t") == 0)
		return sd_bus_message_read(m, "v", "t", &o->timeout_usec);
	if (o->only_timeout)
		return sd_bus_error_setf(error, SD_BUS_ERROR_INVALID_ARGS,
					 "Unknown option \"%s\" of type %s; known: timeout-usec (t)", key, contents);
	if (strcmp(key, "scope") == 0 && strcmp(contents, "s") == 0) {
		r = sd_bus_message_read(m, "v", "s", &text);
		if (r >= 0 && parse_scope(text, &o->scope) < 0)
			return sd_bus_error_setf(error, SD_BUS_ERROR_INVALID_ARGS,
						 "Unknown scope \"%s\"; known: auto, file, filesystem, region", text);
		return r;
	}
	if (strcmp(key, "datasync") == 0 && strcmp(contents, "b") == 0) {
		r = sd_bus_message_read(m, "v", "b", &yes);
		o->datasync = r >= 0 && yes;
		return r;
	}
	return sd_bus_error_setf(error, SD_BUS_ERROR_INVALID_ARGS,
				 "Unknown option \"%s\" of type %s; known: scope (s), datasync (b), timeout-usec (t)",
				 key, contents);
}

static uint64_t deadline(uint64_t timeout_usec)
{
	uint64_t now = now_usec(CLOCK_MONOTONIC);

	return timeout_usec == 0 || timeout_usec > UINT64_MAX - now ? 0 : now + timeout_usec;
}

static int read_all_options(sd_bus_message *m, struct options *o, sd_bus_error *error)
{
	int r = sd_bus_message_enter_container(m, 'a', "{sv}");

	while (r >= 0 && (r = sd_bus_message_enter_container(m, 'e', "sv")) > 0) {
		r = read_option(m, o, error);
		if (r >= 0)
			r = sd_bus_message_exit_container(m);
	}
	return r < 0 ? r : sd_bus_message_exit_container(m);
}

/* `only`: besides auto, the one scope that makes sense; MOUNT_SCOPE_AUTO: all do. */
static int read_options(sd_bus_message *m, enum mount_scope only, struct bus_options *ret, sd_bus_error *error)
{
	struct options o = { .scope = MOUNT_SCOPE_AUTO };
	int r = read_all_options(m, &o, error);

	if (r < 0)
		return r;
	if (only != MOUNT_SCOPE_AUTO && o.scope != MOUNT_SCOPE_AUTO && o.scope != only)
		return sd_bus_error_setf(error, SD_BUS_ERROR_INVALID_ARGS,
					 "Scope \"%s\" is not possible here; possible: auto, %s", scope_names[o.scope],
					 scope_names[only]);
	if (o.datasync && o.scope != MOUNT_SCOPE_FILE)
		return sd_bus_error_set(error, SD_BUS_ERROR_INVALID_ARGS,
					"Option \"datasync\" needs option \"scope\" to be \"file\"");
	*ret = (struct bus_options){
		.scope = o.datasync ? MOUNT_SCOPE_FILE_DATA : o.scope,
		.deadline_usec = deadline(o.timeout_usec),
	};
	return 0;
}

/* ---- io.pmem.Agent1.Manager ---- */

/* With names in it that others have made up. */
static int append_text(sd_bus_message *m, const char *text)
{
	_cleanup_free_ char *copy = strdup(text);

	return copy ? sd_bus_message_append(m, "s", text_make_utf8(copy)) : -ENOMEM;
}

static int get_boot_id(sd_bus *bus, const char *path, const char *interface, const char *property,
		       sd_bus_message *reply, void *userdata, sd_bus_error *error)
{
	struct bus *b = userdata;

	return sd_bus_message_append(reply, "s", SD_ID128_TO_STRING(manager_get_boot_id(b->manager)));
}

static int get_instance(sd_bus *bus, const char *path, const char *interface, const char *property,
			sd_bus_message *reply, void *userdata, sd_bus_error *error)
{
	struct bus *b = userdata;

	return sd_bus_message_append(reply, "s", SD_ID128_TO_STRING(manager_get_instance(b->manager)));
}

static int get_basis(sd_bus *bus, const char *path, const char *interface, const char *property, sd_bus_message *reply,
		     void *userdata, sd_bus_error *error)
{
	struct bus *b = userdata;

	return sd_bus_message_append(reply, "s", manager_get_basis(b->manager));
}

static int get_state_problem(sd_bus *bus, const char *path, const char *interface, const char *property,
			     sd_bus_message *reply, void *userdata, sd_bus_error *error)
{
	struct bus *b = userdata;

	return append_text(reply, manager_get_state_problem(b->manager));
}

static int get_scan_problem(sd_bus *bus, const char *path, const char *interface, const char *property,
			    sd_bus_message *reply, void *userdata, sd_bus_error *error)
{
	struct bus *b = userdata;

	return append_text(reply, manager_get_scan_problem(b->manager));
}

static int get_version(sd_bus *bus, const char *path, const char *interface, const char *property,
		       sd_bus_message *reply, void *userdata, sd_bus_error *error)
{
	return sd_bus_message_append(reply, "s", PMEM_AGENT_VERSION);
}

static int flush_fd(sd_bus_message *m, struct bus *b, bool submit, sd_bus_error *error)
{
	struct bus_options options;
	int fd, r;

	r = sd_bus_message_read(m, "h", &fd);
	if (r < 0)
		return r;
	r = read_options(m, MOUNT_SCOPE_AUTO, &options, error);
	options.submit = submit;
	return r < 0 ? r : bus_call_flush_fd(b, m, fd, &options, error);
}

static int method_flush(sd_bus_message *m, void *userdata, sd_bus_error *error)
{
	return flush_fd(m, userdata, false, error);
}

static int method_submit(sd_bus_message *m, void *userdata, sd_bus_error *error)
{
	return flush_fd(m, userdata, true, error);
}

static int flush_path(sd_bus_message *m, struct bus *b, bool submit, sd_bus_error *error)
{
	struct bus_options options;
	const char *path;
	int r;

	r = sd_bus_message_read(m, "s", &path);
	if (r < 0)
		return r;
	r = read_options(m, MOUNT_SCOPE_FILESYSTEM, &options, error);
	options.submit = submit;
	return r < 0 ? r : bus_call_flush_path(b, m, path, &options, error);
}

static int method_flush_path(sd_bus_message *m, void *userdata, sd_bus_error *error)
{
	return flush_path(m, userdata, false, error);
}

static int method_submit_path(sd_bus_message *m, void *userdata, sd_bus_error *error)
{
	return flush_path(m, userdata, true, error);
}

static int method_wait(sd_bus_message *m, void *userdata, sd_bus_error *error)
{
	struct options o = { .only_timeout = true };
	struct bus_options options;
	const char *ticket;
	int r;

	r = sd_bus_message_read(m, "s", &ticket);
	if (r < 0)
		return r;
	r = read_all_options(m, &o, error);
	options = (struct bus_options){ .deadline_usec = deadline(o.timeout_usec) };
	return r < 0 ? r : bus_call_wait(userdata, m, ticket, &options, error);
}

#define FLUSH_RESULT  SD_BUS_RESULT("a(ot)", epochs, "s", scope, "s", basis, "t", durable_usec)
#define SUBMIT_RESULT SD_BUS_RESULT("s", ticket)

static const sd_bus_vtable manager_vtable[] = {
	SD_BUS_VTABLE_START(0),
	SD_BUS_PROPERTY("Version", "s", get_version, 0, SD_BUS_VTABLE_PROPERTY_CONST),
	SD_BUS_PROPERTY("BootId", "s", get_boot_id, 0, SD_BUS_VTABLE_PROPERTY_CONST),
	SD_BUS_PROPERTY("Instance", "s", get_instance, 0, SD_BUS_VTABLE_PROPERTY_EMITS_CHANGE),
	SD_BUS_PROPERTY("Basis", "s", get_basis, 0, 0),
	SD_BUS_PROPERTY("StateProblem", "s", get_state_problem, 0, SD_BUS_VTABLE_PROPERTY_EMITS_CHANGE),
	SD_BUS_PROPERTY("ScanProblem", "s", get_scan_problem, 0, SD_BUS_VTABLE_PROPERTY_EMITS_CHANGE),
	SD_BUS_METHOD_WITH_ARGS("Flush", SD_BUS_ARGS("h", descriptor, "a{sv}", options), FLUSH_RESULT, method_flush,
				SD_BUS_VTABLE_UNPRIVILEGED),
	SD_BUS_METHOD_WITH_ARGS("FlushPath", SD_BUS_ARGS("s", path, "a{sv}", options), FLUSH_RESULT, method_flush_path,
				SD_BUS_VTABLE_UNPRIVILEGED),
	SD_BUS_METHOD_WITH_ARGS("Submit", SD_BUS_ARGS("h", descriptor, "a{sv}", options), SUBMIT_RESULT, method_submit,
				SD_BUS_VTABLE_UNPRIVILEGED),
	SD_BUS_METHOD_WITH_ARGS("SubmitPath", SD_BUS_ARGS("s", path, "a{sv}", options), SUBMIT_RESULT,
				method_submit_path, SD_BUS_VTABLE_UNPRIVILEGED),
	SD_BUS_METHOD_WITH_ARGS("Wait", SD_BUS_ARGS("s", ticket, "a{sv}", options), FLUSH_RESULT, method_wait,
				SD_BUS_VTABLE_UNPRIVILEGED),
	SD_BUS_VTABLE_END,
};

int bus_add_manager(struct bus *b)
{
	int r = sd_bus_add_object_manager(b->bus, NULL, BUS_PATH);

	return r < 0 ? r : sd_bus_add_object_vtable(b->bus, NULL, BUS_PATH, BUS_INTERFACE_MANAGER, manager_vtable, b);
}

void bus_manager_tell(struct bus *b, const char *property)
{
	sd_bus_emit_properties_changed(b->bus, BUS_PATH, BUS_INTERFACE_MANAGER, property, NULL);
}

/* ---- io.pmem.Agent1.Region ---- */

static const struct region *seen(void *userdata)
{
	return manager_region_get(((struct bus_region *)userdata)->mr);
}

static int get_string(sd_bus *bus, const char *path, const char *interface, const char *property, sd_bus_message *reply,
		      void *userdata, sd_bus_error *error)
{
	const struct region *region = seen(userdata);
	const struct {
		const char *property, *value;
	} values[] = {
		{ "Name", region->name },
		{ "Bus", region->bus },
		{ "Provider", region->provider },
		{ "Kind", region_kind_to_string(region->kind) },
		{ "Method", region_method_to_string(region->method) },
		{ "Identity", region->identity },
		{ "Attestation", region_attestation_to_string(region->attestation) },
	};

	for (unsigned int i = 0; i < ARRAY_SIZE(values); i++)
		if (strcmp(values[i].property, property) == 0)
			return sd_bus_message_append(reply, "s", values[i].value);
	return -ENOENT;
}

static int get_page(sd_bus *bus, const char *path, const char *interface, const char *property, sd_bus_message *reply,
		    void *userdata, sd_bus_error *error)
{
	char page[PATH_MAX];

	manager_region_get_page_path(((struct bus_region *)userdata)->mr, page, sizeof(page));
	return sd_bus_message_append(reply, "s", page);
}

static int get_asynchronous(sd_bus *bus, const char *path, const char *interface, const char *property,
			    sd_bus_message *reply, void *userdata, sd_bus_error *error)
{
	return sd_bus_message_append(reply, "b", seen(userdata)->asynchronous);
}

static int get_evidence(sd_bus *bus, const char *path, const char *interface, const char *property,
			sd_bus_message *reply, void *userdata, sd_bus_error *error)
{
	const struct region *region = seen(userdata);
	int r = sd_bus_message_open_container(reply, 'a', "s");

	for (unsigned int i = 0; r >= 0 && i < region->n_evidence; i++)
		r = append_text(reply, region->evidence[i]);
	return r < 0 ? r : sd_bus_message_close_container(reply);
}

static int get_namespaces(sd_bus *bus, const char *path, const char *interface, const char *property,
			  sd_bus_message *reply, void *userdata, sd_bus_error *error)
{
	const struct region *region = seen(userdata);
	int r = sd_bus_message_open_container(reply, 'a', "(ssss)");

	for (unsigned int i = 0; r >= 0 && i < region->n_namespaces; i++) {
		const struct namespace *ns = &region->namespaces[i];

		r = sd_bus_message_append(reply, "(ssss)", ns->name, namespace_mode_to_string(ns->mode), ns->device,
					  ns->uuid);
	}
	return r < 0 ? r : sd_bus_message_close_container(reply);
}

static int get_extent(sd_bus *bus, const char *path, const char *interface, const char *property, sd_bus_message *reply,
		      void *userdata, sd_bus_error *error)
{
	const struct region *region = seen(userdata);

	return sd_bus_message_append(reply, "t", strcmp(property, "Size") == 0 ? region->size : region->resource);
}

static int get_state(sd_bus *bus, const char *path, const char *interface, const char *property, sd_bus_message *reply,
		     void *userdata, sd_bus_error *error)
{
	struct bus_region *br = userdata;
	struct flush_status status;

	manager_region_get_status(br->mr, &status);
	return sd_bus_message_append(reply, "s", flush_status_to_string(&status));
}

static int get_number(sd_bus *bus, const char *path, const char *interface, const char *property, sd_bus_message *reply,
		      void *userdata, sd_bus_error *error)
{
	struct bus_region *br = userdata;
	struct flush_status status;

	manager_region_get_status(br->mr, &status);
	const struct {
		const char *property;
		uint64_t value;
	} values[] = {
		{ "Epoch", status.epoch },
		{ "DurableUSec", status.epoch_usec },
		{ "FlushingSinceUSec", status.in_flight_usec },
		{ "Loss", status.loss.number },
		{ "LossUSec", status.loss.usec },
		{ "LossRound", status.loss.round },
		{ "LossEpoch", status.loss.epoch },
		{ "Acknowledged", status.acknowledged },
	};

	for (unsigned int i = 0; i < ARRAY_SIZE(values); i++)
		if (strcmp(values[i].property, property) == 0)
			return sd_bus_message_append(reply, "t", values[i].value);
	return -ENOENT;
}

static int get_waiting(sd_bus *bus, const char *path, const char *interface, const char *property,
		       sd_bus_message *reply, void *userdata, sd_bus_error *error)
{
	struct bus_region *br = userdata;
	struct flush_status status;

	manager_region_get_status(br->mr, &status);
	return sd_bus_message_append(reply, "u", (uint32_t)status.waiting);
}

static int get_loss_errno(sd_bus *bus, const char *path, const char *interface, const char *property,
			  sd_bus_message *reply, void *userdata, sd_bus_error *error)
{
	struct bus_region *br = userdata;
	struct flush_status status;

	manager_region_get_status(br->mr, &status);
	return sd_bus_message_append(reply, "i", (int32_t)status.loss.error);
}

static int get_loss_origin(sd_bus *bus, const char *path, const char *interface, const char *property,
			   sd_bus_message *reply, void *userdata, sd_bus_error *error)
{
	struct bus_region *br = userdata;
	struct flush_status status;

	manager_region_get_status(br->mr, &status);
	return sd_bus_message_append(reply, "s", flush_origin_to_string(status.loss.origin));
}

static int get_loss_earlier_boot(sd_bus *bus, const char *path, const char *interface, const char *property,
				 sd_bus_message *reply, void *userdata, sd_bus_error *error)
{
	struct bus_region *br = userdata;
	struct flush_status status;

	manager_region_get_status(br->mr, &status);
	return sd_bus_message_append(reply, "b", status.loss.earlier_boot);
}

static int method_acknowledge_loss(sd_bus_message *m, void *userdata, sd_bus_error *error)
{
	struct bus_region *br = userdata;
	uint64_t loss;
	int r = sd_bus_message_read(m, "t", &loss);

	return r < 0 ? r : bus_call_acknowledge(br->bus, m, manager_region_get(br->mr)->name, loss, error);
}

static int flush_region(sd_bus_message *m, struct bus_region *br, bool submit, sd_bus_error *error)
{
	struct bus_options options;
	int r = read_options(m, MOUNT_SCOPE_REGION, &options, error);

	options.submit = submit;
	return r < 0 ? r : bus_call_flush_region(br->bus, m, manager_region_get(br->mr)->name, &options, error);
}

static int method_region_flush(sd_bus_message *m, void *userdata, sd_bus_error *error)
{
	return flush_region(m, userdata, false, error);
}

static int method_region_submit(sd_bus_message *m, void *userdata, sd_bus_error *error)
{
	return flush_region(m, userdata, true, error);
}

static int method_get_statistics(sd_bus_message *m, void *userdata, sd_bus_error *error)
{
	_cleanup_(sd_bus_message_unrefp) sd_bus_message *reply = NULL;
	struct bus_region *br = userdata;
	int r = sd_bus_message_new_method_return(m, &reply);

	if (r >= 0)
		r = bus_append_statistics(reply, br->mr);
	return r < 0 ? r : sd_bus_send(NULL, reply, NULL);
}

#define CONSTANT SD_BUS_VTABLE_PROPERTY_CONST
#define CHANGES  SD_BUS_VTABLE_PROPERTY_EMITS_CHANGE

static const sd_bus_vtable region_vtable[] = {
	SD_BUS_VTABLE_START(0),
	SD_BUS_PROPERTY("Name", "s", get_string, 0, CONSTANT),
	SD_BUS_PROPERTY("Bus", "s", get_string, 0, CONSTANT),
	SD_BUS_PROPERTY("Provider", "s", get_string, 0, CONSTANT),
	SD_BUS_PROPERTY("Kind", "s", get_string, 0, CHANGES),
	SD_BUS_PROPERTY("Asynchronous", "b", get_asynchronous, 0, CHANGES),
	SD_BUS_PROPERTY("Method", "s", get_string, 0, CHANGES),
	SD_BUS_PROPERTY("Evidence", "as", get_evidence, 0, CHANGES),
	SD_BUS_PROPERTY("Attestation", "s", get_string, 0, CHANGES),
	SD_BUS_PROPERTY("Resource", "t", get_extent, 0, CHANGES),
	SD_BUS_PROPERTY("Size", "t", get_extent, 0, CHANGES),
	SD_BUS_PROPERTY("Namespaces", "a(ssss)", get_namespaces, 0, CHANGES),
	SD_BUS_PROPERTY("Identity", "s", get_string, 0, CHANGES),
	SD_BUS_PROPERTY("Page", "s", get_page, 0, CONSTANT),
	SD_BUS_PROPERTY("State", "s", get_state, 0, CHANGES),
	SD_BUS_PROPERTY("Epoch", "t", get_number, 0, CHANGES),
	SD_BUS_PROPERTY("DurableUSec", "t", get_number, 0, CHANGES),
	SD_BUS_PROPERTY("FlushingSinceUSec", "t", get_number, 0, CHANGES),
	SD_BUS_PROPERTY("Waiting", "u", get_waiting, 0, CHANGES),
	SD_BUS_PROPERTY("Loss", "t", get_number, 0, CHANGES),
	SD_BUS_PROPERTY("LossErrno", "i", get_loss_errno, 0, CHANGES),
	SD_BUS_PROPERTY("LossUSec", "t", get_number, 0, CHANGES),
	SD_BUS_PROPERTY("LossOrigin", "s", get_loss_origin, 0, CHANGES),
	SD_BUS_PROPERTY("LossRound", "t", get_number, 0, CHANGES),
	SD_BUS_PROPERTY("LossEpoch", "t", get_number, 0, CHANGES),
	SD_BUS_PROPERTY("LossEarlierBoot", "b", get_loss_earlier_boot, 0, CHANGES),
	SD_BUS_PROPERTY("Acknowledged", "t", get_number, 0, CHANGES),
	SD_BUS_METHOD_WITH_ARGS("Flush", SD_BUS_ARGS("a{sv}", options), FLUSH_RESULT, method_region_flush,
				SD_BUS_VTABLE_UNPRIVILEGED),
	SD_BUS_METHOD_WITH_ARGS("Submit", SD_BUS_ARGS("a{sv}", options), SUBMIT_RESULT, method_region_submit,
				SD_BUS_VTABLE_UNPRIVILEGED),
	SD_BUS_METHOD_WITH_ARGS("AcknowledgeLoss", SD_BUS_ARGS("t", number), SD_BUS_NO_RESULT, method_acknowledge_loss,
				SD_BUS_VTABLE_UNPRIVILEGED),
	SD_BUS_METHOD_WITH_ARGS("GetStatistics", SD_BUS_NO_ARGS, SD_BUS_RESULT("a{sv}", statistics),
				method_get_statistics, SD_BUS_VTABLE_UNPRIVILEGED),
	SD_BUS_SIGNAL_WITH_ARGS("DurabilityLost",
				SD_BUS_ARGS("t", loss, "i", error, "s", origin, "t", epoch, "t", usec), 0),
	SD_BUS_SIGNAL_WITH_ARGS("LossAcknowledged", SD_BUS_ARGS("t", loss), 0),
	SD_BUS_SIGNAL_WITH_ARGS("Stalled", SD_BUS_ARGS("t", round, "t", since_usec), 0),
	SD_BUS_SIGNAL_WITH_ARGS("Recovered", SD_BUS_ARGS("t", epoch), 0),
	SD_BUS_VTABLE_END,
};

char *bus_region_path(const char *name)
{
	char *path = NULL;

	return sd_bus_path_encode(BUS_PATH "/region", name, &path) < 0 ? NULL : path;
}

int bus_add_region(struct bus *b, struct manager_region *mr)
{
	struct bus_region *br = calloc(1, sizeof(*br));
	int r;

	if (!br)
		return -ENOMEM;
	br->bus = b;
	br->mr = mr;
	br->path = bus_region_path(manager_region_get(mr)->name);
	r = br->path ? sd_bus_add_object_vtable(b->bus, &br->slot, br->path, BUS_INTERFACE_REGION, region_vtable, br)
		     : -ENOMEM;
	if (r < 0) {
		free(br->path);
		free(br);
		return r;
	}
	TAILQ_INSERT_TAIL(&b->regions, br, entry);
	manager_region_set_bus_slot(mr, br);
	return 0;
}

struct bus_region *bus_region_free(struct bus_region *br)
{
	manager_region_set_bus_slot(br->mr, NULL);
	TAILQ_REMOVE(&br->bus->regions, br, entry);
	sd_bus_slot_unref(br->slot);
	free(br->path);
	free(br);
	return NULL;
}

void bus_region_tell_scan(struct bus_region *br)
{
	sd_bus_emit_properties_changed(br->bus->bus, br->path, BUS_INTERFACE_REGION, "Kind", "Asynchronous", "Method",
				       "Evidence", "Attestation", "Resource", "Size", "Namespaces", "Identity", NULL);
}

void bus_region_tell_status(struct bus_region *br)
{
	sd_bus_emit_properties_changed(br->bus->bus, br->path, BUS_INTERFACE_REGION, "State", "Epoch", "DurableUSec",
				       "FlushingSinceUSec", "Waiting", "Loss", "LossErrno", "LossUSec", "LossOrigin",
				       "LossRound", "LossEpoch", "LossEarlierBoot", "Acknowledged", NULL);
}

/* Signals of what the properties have told before them. */
void bus_region_signal(struct bus_region *br, enum manager_event event)
{
	sd_bus *bus = br->bus->bus;
	struct flush_status status;

	manager_region_get_status(br->mr, &status);
	if (event == MANAGER_LOST)
		sd_bus_emit_signal(bus, br->path, BUS_INTERFACE_REGION, "DurabilityLost", "tistt", status.loss.number,
				   (int32_t)status.loss.error, flush_origin_to_string(status.loss.origin),
				   status.loss.epoch, status.loss.usec);
	else if (event == MANAGER_ACKNOWLEDGED)
		sd_bus_emit_signal(bus, br->path, BUS_INTERFACE_REGION, "LossAcknowledged", "t", status.acknowledged);
	else if (event == MANAGER_STALLED)
		sd_bus_emit_signal(bus, br->path, BUS_INTERFACE_REGION, "Stalled", "tt", status.started,
				   status.in_flight_usec);
	else if (event == MANAGER_RECOVERED)
		sd_bus_emit_signal(bus, br->path, BUS_INTERFACE_REGION, "Recovered", "t", status.epoch);
}
