/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * bus: the D-Bus door, io.pmem.Agent1
 *
 * Anyone may send us a message with descriptors, which sd-bus closes when it frees the message, and that close can
 * hang. sd-bus doesn't tell which descriptors a message has, so we find out: they are what came into being between
 * the start of sd_bus_process() and our filter, which is the first to see any message.
 */
#include <fcntl.h>
#include <string.h>
#include <sys/resource.h>

#include "bus-private.h"
#include "closer.h"
#include "event.h"
#include "log.h"

#define BUS_TELL_USEC           (100 * USEC_PER_MSEC)
#define BUS_MAX_CALLS           4096
#define BUS_MAX_TICKETS         1024
#define BUS_MESSAGES_PER_WAKEUP 16

/* ---- descriptors of messages ---- */

/* Received descriptors take the lowest free slots, in order. */
static void guard_note_free_slots(struct bus *b)
{
	for (int fd = 0, n = 0; n < BUS_MAX_MESSAGE_FDS; fd++)
		if (fcntl(fd, F_GETFD) < 0)
			b->guard.before[n++] = fd;
}

static unsigned int guard_take(struct bus *b, int *fds, unsigned int n)
{
	for (unsigned int i = 0; n < BUS_MAX_MESSAGE_FDS && i < BUS_MAX_MESSAGE_FDS; i++) {
		if (fcntl(b->guard.before[i], F_GETFD) < 0)
			break;
		fds[n++] = b->guard.before[i];
	}
	return n;
}

void bus_dispatched(struct bus *b)
{
	b->guard.dispatched = true;
}

static int on_message(sd_bus_message *m, void *userdata, sd_bus_error *error)
{
	struct bus *b = userdata;

	memcpy(b->guard.fds, b->guard.strays, sizeof(b->guard.fds));
	b->guard.n_fds = guard_take(b, b->guard.fds, b->guard.n_strays);
	b->guard.n_strays = 0;
	if (b->guard.n_fds > 0)
		b->guard.message = sd_bus_message_ref(m);
	bus_dispatched(b);
	return 0;
}

void bus_keep_copy(struct bus *b, int fd)
{
	for (unsigned int i = 0; i < b->guard.n_fds; i++) {
		if (b->guard.fds[i] == fd && closer_defuse_copy(fd) == 0) {
			b->guard.fds[i] = b->guard.fds[--b->guard.n_fds];
			return;
		}
	}
}

static void forget_message(void *userdata)
{
	sd_bus_message_unref(userdata);
}

/* The message may be freed only when none of its descriptors can hang. Whose it is the bus does not tell. */
static void guard_release(struct bus *b)
{
	if (b->guard.n_fds > 0)
		closer_defuse(b->guard.fds, b->guard.n_fds, CLOSER_NOBODY, forget_message, b->guard.message);
	else
		sd_bus_message_unref(b->guard.message);
	b->guard.n_fds = 0;
	b->guard.message = NULL;
}

static int process_one(struct bus *b)
{
	int r;

	guard_note_free_slots(b);
	b->guard.dispatched = false;
	r = sd_bus_process(b->bus, NULL);
	if (!b->guard.dispatched)
		b->guard.n_strays = guard_take(b, b->guard.strays, b->guard.n_strays);
	guard_release(b);
	return r;
}

/* ---- the connection ---- */

int bus_lost(struct bus *b, int error)
{
	log_daemon(LOG_ERR, LOG_EVENT_NONE, "The connection to D-Bus is gone: %s", strerror(-error));
	return sd_event_exit(manager_get_event(b->manager), error);
}

static int bus_process(struct bus *b)
{
	int r = 1;

	for (unsigned int i = 0; r > 0 && i < BUS_MESSAGES_PER_WAKEUP && !closer_is_full(CLOSER_NOBODY); i++)
		r = process_one(b);
	return r < 0 ? bus_lost(b, r) : 0;
}

static int on_io(sd_event_source *s, int fd, uint32_t revents, void *userdata)
{
	return bus_process(userdata);
}

static int on_timeout(sd_event_source *s, uint64_t usec, void *userdata)
{
	return bus_process(userdata);
}

/* Before the loop sleeps: what sd-bus waits for now. */
static int on_prepare(sd_event_source *s, void *userdata)
{
	struct bus *b = userdata;
	uint64_t until = UINT64_MAX;
	int events = sd_bus_get_events(b->bus), r;

	if (events < 0)
		return bus_lost(b, events);
	/* Messages that may bring more wait at the bus; the closer wakes the loop. */
	if (closer_is_full(CLOSER_NOBODY)) {
		sd_event_source_set_enabled(b->timeout_source, SD_EVENT_OFF);
		return sd_event_source_set_io_events(b->io_source, 0);
	}
	r = sd_event_source_set_io_events(b->io_source, (uint32_t)events);
	if (r < 0)
		return r;
	r = sd_bus_get_timeout(b->bus, &until);
	if (r < 0)
		return r;
	if (until != UINT64_MAX) {
		r = sd_event_source_set_time(b->timeout_source, until);
		if (r < 0)
			return r;
	}
	return sd_event_source_set_enabled(b->timeout_source, until == UINT64_MAX ? SD_EVENT_OFF : SD_EVENT_ONESHOT);
}

static int bus_attach(struct bus *b)
{
	sd_event *event = manager_get_event(b->manager);
	int r;

	r = sd_event_add_io(event, &b->io_source, sd_bus_get_fd(b->bus), EPOLLIN, on_io, b);
	if (r < 0)
		return r;
	r = sd_event_add_time(event, &b->timeout_source, CLOCK_MONOTONIC, 0, 0, on_timeout, b);
	if (r < 0)
		return r;
	return sd_event_source_set_prepare(b->io_source, on_prepare);
}

/* ---- what is told unasked ---- */

static int on_tell(sd_event_source *s, uint64_t usec, void *userdata)
{
	struct bus *b = userdata;
	struct bus_region *br;
	uint64_t queued = 0;

	b->told_usec = now_usec(CLOCK_MONOTONIC);
	sd_bus_get_n_queued_write(b->bus, &queued);
	if (queued > BUS_MAX_QUEUED_WRITE) {
		sd_event_source_set_time(s, b->told_usec + BUS_TELL_USEC);
		return sd_event_source_set_enabled(s, SD_EVENT_ONESHOT);
	}
	TAILQ_FOREACH (br, &b->regions, entry) {
		if (br->dirty)
			bus_region_tell_status(br);
		br->dirty = false;
	}
	return 0;
}

/* Tells soon, at most so often. */
static void tell_later(struct bus_region *br)
{
	struct bus *b = br->bus;
	int enabled = SD_EVENT_OFF;

	br->dirty = true;
	sd_event_source_get_enabled(b->tell_source, &enabled);
	if (enabled != SD_EVENT_OFF)
		return;
	sd_event_source_set_time(b->tell_source, b->told_usec + BUS_TELL_USEC);
	event_enable(b->tell_source, SD_EVENT_ONESHOT);
}

static void region_added(struct bus *b, struct manager_region *mr)
{
	int r = bus_add_region(b, mr);

	if (r >= 0)
		r = sd_bus_emit_object_added(b->bus, ((struct bus_region *)manager_region_get_bus_slot(mr))->path);
	if (r < 0)
		log_daemon(LOG_WARNING, LOG_EVENT_NONE, "Region %s is not on D-Bus: %s", manager_region_get(mr)->name,
			   strerror(-r));
}

static void on_event(enum manager_event event, struct manager_region *mr, void *userdata)
{
	static const char *const properties[] = {
		[MANAGER_STATE] = "StateProblem",
		[MANAGER_SCAN] = "ScanProblem",
		[MANAGER_INSTANCE] = "Instance",
	};
	struct bus_region *br;

	if (event < ARRAY_SIZE(properties) && properties[event]) {
		bus_manager_tell(userdata, properties[event]);
		return;
	}
	bus_tickets_notice(userdata, event, mr);
	br = manager_region_get_bus_slot(mr);
	if (event == MANAGER_REGION_ADDED) {
		region_added(userdata, mr);
		return;
	}
	if (!br)
		return;
	switch (event) {
	case MANAGER_REGION_REMOVED:
		sd_bus_emit_object_removed(br->bus->bus, br->path);
		bus_region_free(br);
		break;
	case MANAGER_REGION_CHANGED:
		bus_region_tell_scan(br);
		break;
	case MANAGER_LOST:
	case MANAGER_ACKNOWLEDGED:
	case MANAGER_STALLED:
	case MANAGER_RECOVERED:
		br->dirty = false;
		bus_region_tell_status(br);
		bus_region_signal(br, event);
		break;
	case MANAGER_ROUND:
	case MANAGER_DURABLE:
		tell_later(br);
		break;
	case MANAGER_REGION_ADDED:
	case MANAGER_STATE:
	case MANAGER_SCAN:
	case MANAGER_INSTANCE:
		break;
	}
}

/* ---- */

/* A call that waits holds up to three descriptors, and the bus breaks when there is none left for a message. */
static unsigned int calls_that_fit(void)
{
	struct rlimit limit = { .rlim_cur = 1024 };

	getrlimit(RLIMIT_NOFILE, &limit);
	return limit.rlim_cur / 4 < BUS_MAX_CALLS ? (unsigned int)(limit.rlim_cur / 4) : BUS_MAX_CALLS;
}

static int bus_set_up(struct bus *b)
{
	sd_event *event = manager_get_event(b->manager);
	int r;

	r = sd_bus_open_system(&b->bus);
	if (r < 0)
		return r;
	r = sd_bus_add_filter(b->bus, NULL, on_message, b);
	if (r < 0)
		return r;
	r = bus_add_manager(b);
	if (r < 0)
		return r;
	for (struct manager_region *mr = NULL; (mr = manager_next_region(b->manager, mr));) {
		r = bus_add_region(b, mr);
		if (r < 0)
			return r;
	}
	r = sd_event_add_time_relative(event, &b->tell_source, CLOCK_MONOTONIC, 0, USEC_PER_MSEC, on_tell, b);
	if (r < 0)
		return r;
	r = sd_event_source_set_enabled(b->tell_source, SD_EVENT_OFF);
	if (r < 0)
		return r;
	r = bus_attach(b);
	if (r < 0)
		return r;
	/* Last: a message may come in while this waits for its reply, but nobody knows us before. */
	return sd_bus_request_name(b->bus, BUS_NAME, 0);
}

int bus_new(struct manager *m, struct bus **ret)
{
	_cleanup_(bus_freep) struct bus *b = calloc(1, sizeof(*b));
	int r;

	if (!b)
		return -ENOMEM;
	b->manager = m;
	b->max_calls = calls_that_fit();
	/* One that is not finished holds a descriptor. */
	ticket_book_init(&b->tickets, SD_ID128_TO_STRING(manager_get_instance(m)),
			 b->max_calls / 2 < BUS_MAX_TICKETS ? b->max_calls / 2 : BUS_MAX_TICKETS);
	TAILQ_INIT(&b->regions);
	TAILQ_INIT(&b->clients);
	b->listener = (struct manager_listener){ .notify = on_event, .userdata = b };
	manager_add_listener(m, &b->listener);
	r = bus_set_up(b);
	/* libsystemd 252 aborts where a bus is freed for which not all could be allocated. This process ends anyway. */
	if (r == -ENOMEM)
		b->bus = NULL;
	if (r < 0) {
		log_daemon(LOG_ERR, LOG_EVENT_NONE, BUS_NAME " cannot be had on the system bus: %s",
			   strerrordesc_np(-r));
		return r;
	}
	*ret = b;
	b = NULL;
	return 0;
}

struct bus *bus_free(struct bus *b)
{
	struct bus_client *c;
	struct bus_region *br;

	if (!b)
		return NULL;
	manager_remove_listener(b->manager, &b->listener);
	while ((c = TAILQ_FIRST(&b->clients)))
		bus_client_free(c);
	bus_tickets_clear(b);
	while ((br = TAILQ_FIRST(&b->regions)))
		bus_region_free(br);
	sd_event_source_disable_unref(b->tell_source);
	sd_event_source_disable_unref(b->timeout_source);
	sd_event_source_disable_unref(b->io_source);
	sd_bus_close_unref(b->bus);
	free(b);
	return NULL;
}
