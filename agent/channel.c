/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/epoll.h>

#include "channel.h"

#define READ_SIZE      4096
#define READS_PER_TURN 16 /* then others have their turn: the host may send for ever */
#define RESYNC         0xFF

struct channel {
	int fd;
	sd_event_source *io_source;
	sd_event_source *more_source; /* deferred: there may be more to read than one turn took */
	const struct channel_callbacks *callbacks;
	void *userdata;
	bool connected, gone;

	char *line; /* CHANNEL_LINE_MAX + 1 bytes */
	size_t line_size;
	bool skipping; /* to the end of a line that was too long */

	char *queue; /* CHANNEL_QUEUE_MAX bytes */
	size_t queue_size;
	bool refused; /* a line found no room since the queue was empty */
};

bool channel_is_gone(const struct channel *c)
{
	return c->gone;
}

static void reset_line(struct channel *c)
{
	c->line_size = 0;
	c->skipping = false;
}

static void set_connected(struct channel *c, bool connected)
{
	if (c->connected == connected)
		return;
	c->connected = connected;
	reset_line(c);
	c->queue_size = 0;
	c->refused = false;
	if (connected)
		c->callbacks->connected(c, c->userdata);
	else
		c->callbacks->disconnected(c, c->userdata);
}

/* ---- to the host ---- */

/* The remainder waits for the next edge: the port wakes its pollers when the host has taken something. */
static void write_queue(struct channel *c)
{
	size_t written = 0;

	while (written < c->queue_size) {
		ssize_t n = write(c->fd, c->queue + written, c->queue_size - written);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			break;
		written += (size_t)n;
	}
	c->queue_size -= written;
	memmove(c->queue, c->queue + written, c->queue_size);

	if (c->queue_size == 0 && c->refused) {
		c->refused = false;
		c->callbacks->drained(c, c->userdata);
	}
}

int channel_send(struct channel *c, const char *line)
{
	size_t size = strlen(line);

	if (!c->connected)
		return -ENOTCONN;
	if (c->refused || size + 1 > CHANNEL_QUEUE_MAX - c->queue_size) {
		c->refused = true;
		return -ENOBUFS;
	}
	memcpy(c->queue + c->queue_size, line, size);
	c->queue[c->queue_size + size] = '\n';
	c->queue_size += size + 1;
	write_queue(c);
	return 0;
}

/* ---- from the host ---- */

static void end_line(struct channel *c)
{
	bool whole = !c->skipping;
	size_t size = c->line_size;

	reset_line(c);
	if (!whole || size == 0)
		return;
	c->line[size] = '\0';
	c->callbacks->line(c, c->line, size, c->userdata);
}

static void take(struct channel *c, const char *data, size_t size)
{
	for (size_t i = 0; i < size; i++) {
		unsigned char byte = (unsigned char)data[i];

		if (byte == RESYNC) {
			reset_line(c);
			c->callbacks->reset(c, c->userdata);
		} else if (byte == '\n') {
			end_line(c);
		} else if (c->line_size < CHANNEL_LINE_MAX) {
			c->line[c->line_size++] = (char)byte;
		} else if (!c->skipping) {
			c->skipping = true;
			c->callbacks->overlong(c, c->userdata);
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
		if (n < 0 && errno != EAGAIN)
			c->gone = true; /* ENODEV: unplugged */
		if (n <= 0)
			return;
		if (c->connected)
			take(c, data, (size_t)n);
	}
	sd_event_source_set_enabled(c->more_source, SD_EVENT_ONESHOT);
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

	if (c->gone) {
		sd_event_source_set_enabled(c->io_source, SD_EVENT_OFF);
		sd_event_source_set_enabled(c->more_source, SD_EVENT_OFF);
	}
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

int channel_open(sd_event *event, const char *path, const struct channel_callbacks *callbacks, void *userdata,
		 struct channel **ret)
{
	_cleanup_(channel_freep) struct channel *c = calloc(1, sizeof(*c));
	int r;

	if (!c)
		return -ENOMEM;
	c->callbacks = callbacks;
	c->userdata = userdata;
	c->fd = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
	if (c->fd < 0)
		return -errno;
	c->line = malloc(CHANNEL_LINE_MAX + 1);
	c->queue = malloc(CHANNEL_QUEUE_MAX);
	if (!c->line || !c->queue)
		return -ENOMEM;

	r = sd_event_add_io(event, &c->io_source, c->fd, EPOLLIN | EPOLLOUT | EPOLLET, on_io, c);
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
	safe_close(c->fd);
	free(c->line);
	free(c->queue);
	free(c);
	return NULL;
}
