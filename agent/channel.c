/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "channel.h"
#include "event.h"
#include "line.h"

#define READ_SIZE      4096
#define READS_PER_TURN 16 /* then others have their turn: the host may send for ever */

/* How long after the end of a connection to a socket, or an attempt, the next one is made. */
#define RETRY_MIN_USEC (5 * USEC_PER_MSEC)
#define RETRY_MAX_USEC USEC_PER_SEC

struct channel {
	int fd;
	sd_event_source *io_source;
	sd_event_source *more_source; /* deferred: there may be more to read than one turn took */
	const struct channel_callbacks *callbacks;
	void *userdata;
	bool connected, gone;

	sd_event *event;
	struct sockaddr_un address; /* where a socket stands for the port; family 0: a port */
	sd_event_source *retry_source;
	uint64_t retry_usec;

	struct line_reader reader;
	struct line_queue queue;
	bool refused; /* a line found no room since the queue was empty */
};

bool channel_is_gone(const struct channel *c)
{
	return c->gone;
}

static void set_connected(struct channel *c, bool connected)
{
	if (c->connected == connected)
		return;
	c->connected = connected;
	line_reader_reset(&c->reader);
	c->queue.size = 0;
	c->refused = false;
	if (connected)
		c->callbacks->connected(c, c->userdata);
	else
		c->callbacks->disconnected(c, c->userdata);
}

/* ---- to the host ---- */

/*
 * The remainder waits for the next edge: the port wakes its pollers when the host has taken something. An error is
 * found by reading too.
 */
static void write_queue(struct channel *c)
{
	line_queue_write(&c->queue, c->fd);
	if (c->queue.size == 0 && c->refused) {
		c->refused = false;
		c->callbacks->drained(c, c->userdata);
	}
}

int channel_send(struct channel *c, const char *line)
{
	if (!c->connected)
		return -ENOTCONN;
	if (c->refused || line_queue_add(&c->queue, line) < 0) {
		c->refused = true;
		return -ENOBUFS;
	}
	write_queue(c);
	return 0;
}

/* ---- from the host ---- */

static void take(struct channel *c, const char *data, size_t size)
{
	for (size_t i = 0; i < size; i++) {
		switch (line_reader_add(&c->reader, (unsigned char)data[i])) {
		case LINE_NONE:
			break;
		case LINE_WHOLE:
			c->callbacks->line(c, c->reader.text, c->reader.length, c->userdata);
			break;
		case LINE_RESET:
			c->callbacks->reset(c, c->userdata);
			break;
		case LINE_OVERLONG:
			c->callbacks->overlong(c, c->userdata);
			break;
		}
	}
}

static void read_lines(struct channel *c)
{
	char data[READ_SIZE];

	for (unsigned int i = 0; i < READS_PER_TURN; i++) {
		ssize_t n = read(c->fd, data, sizeof(data));

		if (n < 0 && errno == EINTR)
			continue;
		if ((n < 0 && errno != EAGAIN) || (n == 0 && c->address.sun_family))
			c->gone = true; /* ENODEV: unplugged */
		if (n <= 0)
			return;
		if (c->connected)
			take(c, data, (size_t)n);
	}
	event_enable(c->more_source, SD_EVENT_ONESHOT);
}

static void retry_later(struct channel *c)
{
	c->gone = false;
	sd_event_source_set_time_relative(c->retry_source, c->retry_usec);
	event_enable(c->retry_source, SD_EVENT_ONESHOT);
	c->retry_usec = 2 * c->retry_usec < RETRY_MAX_USEC ? 2 * c->retry_usec : RETRY_MAX_USEC;
}

static void turn(struct channel *c, bool hangup)
{
	if (!hangup)
		set_connected(c, true);
	read_lines(c);
	if (hangup || c->gone)
		set_connected(c, false);
	else
		write_queue(c);

	if (!c->gone && !(hangup && c->address.sun_family))
		return;
	sd_event_source_set_enabled(c->io_source, SD_EVENT_OFF);
	sd_event_source_set_enabled(c->more_source, SD_EVENT_OFF);
	if (c->address.sun_family)
		retry_later(c);
}

static int on_io(sd_event_source *source, int fd, uint32_t events, void *userdata)
{
	turn(userdata, events & (EPOLLHUP | EPOLLERR));
	return 0;
}

static int on_more(sd_event_source *source, void *userdata)
{
	struct channel *c = userdata;

	turn(c, !c->connected);
	return 0;
}

static int watch(struct channel *c)
{
	return sd_event_add_io(c->event, &c->io_source, c->fd, EPOLLIN | EPOLLOUT | EPOLLET, on_io, c);
}

static int on_retry(sd_event_source *source, uint64_t usec, void *userdata)
{
	struct channel *c = userdata;

	c->io_source = sd_event_source_disable_unref(c->io_source);
	c->fd = safe_close(c->fd);
	c->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (c->fd < 0 || connect(c->fd, (const struct sockaddr *)&c->address, sizeof(c->address)) < 0 || watch(c) < 0) {
		retry_later(c);
		return 0;
	}
	c->retry_usec = RETRY_MIN_USEC;
	return 0;
}

/* A port is there or isn't; of a socket only its name has to be. */
static int open_path(struct channel *c, const char *path)
{
	struct stat st;
	int r;

	if (stat(path, &st) < 0)
		return -errno;
	if (!S_ISSOCK(st.st_mode)) {
		c->fd = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
		return c->fd < 0 ? -errno : watch(c);
	}
	if (strlen(path) >= sizeof(c->address.sun_path))
		return -ENAMETOOLONG;
	c->address.sun_family = AF_UNIX;
	strcpy(c->address.sun_path, path);
	c->retry_usec = RETRY_MIN_USEC;
	r = sd_event_add_time_relative(c->event, &c->retry_source, CLOCK_MONOTONIC, 0, USEC_PER_MSEC, on_retry, c);
	return r < 0 ? r : 0;
}

int channel_open(sd_event *event, const char *path, const struct channel_callbacks *callbacks, void *userdata,
		 struct channel **ret)
{
	_cleanup_(channel_freep) struct channel *c = calloc(1, sizeof(*c));
	int r;

	if (!c)
		return -ENOMEM;
	c->fd = -1;
	c->callbacks = callbacks;
	c->userdata = userdata;
	c->event = sd_event_ref(event);
	if (line_reader_init(&c->reader, CHANNEL_LINE_MAX) < 0 || line_queue_init(&c->queue, CHANNEL_QUEUE_MAX) < 0)
		return -ENOMEM;

	r = open_path(c, path);
	if (r < 0)
		return r;
	r = sd_event_add_defer(event, &c->more_source, on_more, c);
	if (r < 0)
		return r;
	r = sd_event_source_set_enabled(c->more_source, SD_EVENT_OFF);
	if (r < 0)
		return r;
	*ret = c;
	c = NULL;
	return 0;
}

struct channel *channel_free(struct channel *c)
{
	if (!c)
		return NULL;
	sd_event_source_disable_unref(c->io_source);
	sd_event_source_disable_unref(c->more_source);
	sd_event_source_disable_unref(c->retry_source);
	sd_event_unref(c->event);
	safe_close(c->fd);
	line_reader_clear(&c->reader);
	line_queue_clear(&c->queue);
	free(c);
	return NULL;
}
