/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * log: entries with fields for the journal, or lines on stderr where there is no journal
 */
#include <endian.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "log.h"

#define LOG_IDENTIFIER  "pmem-agent"
#define LOG_MESSAGE_MAX 1024
#define LOG_NOTE_MAX    64 /* of it, kept for the note of what was dropped */
#define LOG_ENTRY_MAX   2048

/* What the entry is about, as text; "" leaves the field out. */
struct subject {
	const char *region;
	char epoch[24];
};

struct entry {
	char data[LOG_ENTRY_MAX];
	size_t size;
};

static struct {
	int fd; /* of the journal's socket; -1: lines on stderr */
	struct sockaddr_un address;
	unsigned long dropped; /* entries since the last one that passed */
} log_state = { .fd = -1 };

static const char *const event_ids[N_LOG_EVENTS] = {
	[LOG_EVENT_STARTED] = "99df5deec8c645558d54c5092388c9d1",
	[LOG_EVENT_STOPPED] = "a501021fc6864af9a5f77753c57d7a31",
	[LOG_EVENT_REGION_ADDED] = "d53f37a209fb4dff9867caf2c31e2aad",
	[LOG_EVENT_REGION_REMOVED] = "69e19974db7840eb87c4ae8fb757e17e",
	[LOG_EVENT_LOST] = "b827d6bd8140426dbb1d29ffb1960159",
	[LOG_EVENT_STALLED] = "1484e67059704f54893811c572d8cde5",
	[LOG_EVENT_RECOVERED] = "fa78ac72efae49f6bee74b2a0dc02942",
	[LOG_EVENT_CONFIG] = "294289191b03493fa7cd63a9ab58b274",
	[LOG_EVENT_WITNESS] = "ac4e5344b18b41c1a86e547c8855db2f",
	[LOG_EVENT_HOST] = "308aa7fdd4a640a8ac950c2cdd3f38ac",
	[LOG_EVENT_ACKNOWLEDGED] = "15e85b4bad9744a788e4fafc252c2cb5",
	[LOG_EVENT_STATE] = "6775714e59e04d0e930907fd0a005fa8",
	[LOG_EVENT_SCAN] = "af5bc1650b0d4cdd913991299ec75404",
};

const char *log_event_id(enum log_event event)
{
	return event > LOG_EVENT_NONE && event < N_LOG_EVENTS ? event_ids[event] : NULL;
}

/* systemd says in JOURNAL_STREAM which stream of ours it connected to the journal. */
static bool stderr_is_journal(void)
{
	const char *stream = getenv("JOURNAL_STREAM");
	unsigned long long device, inode;
	struct stat st;

	return stream && sscanf(stream, "%llu:%llu", &device, &inode) == 2 && fstat(STDERR_FILENO, &st) == 0 &&
	       st.st_dev == device && st.st_ino == inode;
}

void log_open_at(const char *socket_path)
{
	log_close();
	if (!stderr_is_journal())
		return;

	log_state.address.sun_family = AF_UNIX;
	snprintf(log_state.address.sun_path, sizeof(log_state.address.sun_path), "%s", socket_path);
	log_state.fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
}

void log_open(void)
{
	log_open_at("/run/systemd/journal/socket");
}

void log_close(void)
{
	log_state.fd = safe_close(log_state.fd);
	log_state.dropped = 0;
}

/* The form with a length, which takes any value, newlines included. */
static void entry_add(struct entry *e, const char *name, const char *value)
{
	size_t name_size = strlen(name), value_size = strlen(value);
	uint64_t length = htole64(value_size);
	char *p = e->data + e->size;

	if (name_size + value_size + sizeof(length) + 2 > sizeof(e->data) - e->size)
		return;

	p = mempcpy(p, name, name_size);
	*p++ = '\n';
	p = mempcpy(p, &length, sizeof(length));
	p = mempcpy(p, value, value_size);
	*p++ = '\n';
	e->size = p - e->data;
}

static bool send_to_journal(int priority, enum log_event event, const struct subject *subject, const char *message)
{
	struct entry e = {};

	entry_add(&e, "PRIORITY", (char[]){ '0' + LOG_PRI(priority), '\0' });
	entry_add(&e, "SYSLOG_IDENTIFIER", LOG_IDENTIFIER);
	if (log_event_id(event))
		entry_add(&e, "MESSAGE_ID", log_event_id(event));
	if (subject->region) {
		entry_add(&e, "REGION", subject->region);
		entry_add(&e, "EPOCH", subject->epoch);
	}
	entry_add(&e, "MESSAGE", message);

	return sendto(log_state.fd, e.data, e.size, MSG_NOSIGNAL, (const struct sockaddr *)&log_state.address,
		      sizeof(log_state.address)) >= 0;
}

/* Not O_NONBLOCK, which would change the terminal for everybody who shares it: a line fits if poll says so. */
static bool write_to_stderr(const struct subject *subject, const char *message)
{
	struct pollfd pfd = { .fd = STDERR_FILENO, .events = POLLOUT };
	char line[LOG_ENTRY_MAX];
	int n;

	if (subject->region)
		n = snprintf(line, sizeof(line), "%s: %s (region=%s epoch=%s)\n", LOG_IDENTIFIER, message,
			     subject->region, subject->epoch);
	else
		n = snprintf(line, sizeof(line), "%s: %s\n", LOG_IDENTIFIER, message);
	if (n < 0 || poll(&pfd, 1, 0) != 1 || !(pfd.revents & POLLOUT) || (pfd.revents & (POLLERR | POLLHUP)))
		return false;

	return write(STDERR_FILENO, line, (size_t)n < sizeof(line) ? (size_t)n : sizeof(line) - 1) >= 0;
}

static void log_va(int priority, enum log_event event, const struct subject *subject, const char *format, va_list args)
{
	char message[LOG_MESSAGE_MAX];
	int saved = errno;
	size_t size;

	vsnprintf(message, sizeof(message) - LOG_NOTE_MAX, format, args);
	size = strlen(message);
	if (log_state.dropped > 0)
		snprintf(message + size, sizeof(message) - size, " [entries dropped before this one: %lu]",
			 log_state.dropped);

	if (log_state.fd >= 0 ? send_to_journal(priority, event, subject, message) : write_to_stderr(subject, message))
		log_state.dropped = 0;
	else
		log_state.dropped++;
	errno = saved;
}

void log_daemon(int priority, enum log_event event, const char *format, ...)
{
	struct subject subject = {};
	va_list args;

	va_start(args, format);
	log_va(priority, event, &subject, format, args);
	va_end(args);
}

void log_region(int priority, enum log_event event, const char *region, uint64_t epoch, const char *format, ...)
{
	struct subject subject = { .region = region };
	va_list args;

	snprintf(subject.epoch, sizeof(subject.epoch), "%llu", (unsigned long long)epoch);
	va_start(args, format);
	log_va(priority, event, &subject, format, args);
	va_end(args);
}

void log_end_without_memory(const char *what)
{
	log_daemon(LOG_ERR, LOG_EVENT_STOPPED, "cannot go on: no memory for %s", what);
	_exit(1);
}
