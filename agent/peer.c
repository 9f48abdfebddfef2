/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * peer: JSON objects, one a line, to and from whoever is on the other side of a Unix socket
 */
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "json-make.h"
#include "line.h"
#include "peer.h"

#define READ_SIZE 16384

struct peer {
	sd_event *event;
	const struct peer_callbacks *callbacks;
	void *userdata;
	const char *path; /* NULL: it came to us */
	uint64_t redial_usec;

	int fd; /* -1: not connected */
	pid_t pid;
	sd_event_source *io_source, *dial_source;
	struct line_reader reader;
	struct line_queue queue;
	struct json_tokener *tokener;
	bool refused;         /* a line found no room */
	unsigned int n_turns; /* in which it is being used */
	bool freed;
};

static void destroy(struct peer *p)
{
	sd_event_source_disable_unref(p->io_source);
	sd_event_source_disable_unref(p->dial_source);
	safe_close(p->fd);
	line_reader_clear(&p->reader);
	line_queue_clear(&p->queue);
	if (p->tokener)
		json_tokener_free(p->tokener);
	sd_event_unref(p->event);
	free(p);
}

/* Callbacks may free the peer: it goes when the last of these has been left. */
static void enter(struct peer *p)
{
	p->n_turns++;
}

static void leave(struct peer *p)
{
	if (--p->n_turns == 0 && p->freed)
		destroy(p);
}

struct peer *peer_free(struct peer *p)
{
	if (!p)
		return NULL;
	p->freed = true;
	if (p->io_source)
		sd_event_source_set_enabled(p->io_source, SD_EVENT_OFF);
	if (p->dial_source)
		sd_event_source_set_enabled(p->dial_source, SD_EVENT_OFF);
	if (p->n_turns == 0)
		destroy(p);
	return NULL;
}

pid_t peer_get_pid(const struct peer *p)
{
	return p->pid;
}

static void dial_later(struct peer *p, uint64_t usec)
{
	sd_event_source_set_time_relative(p->dial_source, usec);
	sd_event_source_set_enabled(p->dial_source, SD_EVENT_ONESHOT);
}

static void end(struct peer *p, int error)
{
	p->io_source = sd_event_source_disable_unref(p->io_source);
	p->fd = safe_close(p->fd);
	p->pid = 0;
	p->refused = false;
	p->queue.size = 0;
	line_reader_reset(&p->reader);
	if (p->path && p->redial_usec > 0)
		dial_later(p, p->redial_usec);
	p->callbacks->closed(p, error, p->userdata);
}

/* ---- to the other side ---- */

void peer_hang_up(struct peer *p)
{
	if (p->fd < 0)
		return;
	p->queue.size = 0;
	shutdown(p->fd, SHUT_RDWR);
}

/* Who does not take what we send is read to the end, and that is now. */
static void write_queue(struct peer *p)
{
	if (line_queue_write(&p->queue, p->fd) < 0)
		peer_hang_up(p);
	sd_event_source_set_io_events(p->io_source, EPOLLIN | (p->queue.size > 0 ? EPOLLOUT : 0));
}

static int send_line(struct peer *p, const char *line)
{
	if (p->fd < 0)
		return -ENOTCONN;
	if (line_queue_add(&p->queue, line) < 0) {
		p->refused = true;
		return -ENOBUFS;
	}
	write_queue(p);
	return 0;
}

int peer_send(struct peer *p, struct json_object *o)
{
	return send_line(p, json_text(o, JSON_C_TO_STRING_NOSLASHESCAPE));
}

int peer_send_resync(struct peer *p)
{
	static const char resync[] = { (char)LINE_RESYNC, '\0' };

	return send_line(p, resync);
}

/* ---- from the other side ---- */

static void garbage(struct peer *p, const char *what)
{
	if (p->callbacks->garbage)
		p->callbacks->garbage(p, what, p->userdata);
}

/* What JSON takes in memory is many times its length where it has many parts. */
static bool has_too_many_parts(const char *text, size_t length)
{
	unsigned int n = 0;

	for (size_t i = 0; i < length; i++)
		n += text[i] == ',' || text[i] == '{' || text[i] == '[';
	return n > PEER_MAX_PARTS;
}

static void take_line(struct peer *p)
{
	struct json_object *o;

	if (has_too_many_parts(p->reader.text, p->reader.length)) {
		garbage(p, "a line with too many members");
		return;
	}
	o = json_parse(p->tokener, p->reader.text, p->reader.length + 1);
	if (json_object_is_type(o, json_type_object))
		p->callbacks->object(p, o, p->userdata);
	else
		garbage(p, "not a JSON object on a line");
	json_object_put(o);
}

static void take(struct peer *p, const char *data, size_t size)
{
	/* A callback may have ended it. */
	for (size_t i = 0; i < size && !p->freed && p->fd >= 0; i++) {
		switch (line_reader_add(&p->reader, (unsigned char)data[i])) {
		case LINE_NONE:
			break;
		case LINE_WHOLE:
			take_line(p);
			break;
		case LINE_RESET:
			if (p->callbacks->reset)
				p->callbacks->reset(p, p->userdata);
			break;
		case LINE_OVERLONG:
			garbage(p, "a line that is too long");
			break;
		}
	}
}

static int on_io(sd_event_source *source, int fd, uint32_t events, void *userdata)
{
	struct peer *p = userdata;
	char data[READ_SIZE];
	ssize_t n;

	enter(p);
	if (events & EPOLLOUT)
		write_queue(p);
	if (p->refused && p->queue.size == 0) {
		p->refused = false;
		if (p->callbacks->drained)
			p->callbacks->drained(p, p->userdata);
	}
	if (!p->freed && p->fd >= 0 && (events & ~(uint32_t)EPOLLOUT)) {
		n = read(p->fd, data, sizeof(data));
		if (n > 0)
			take(p, data, (size_t)n);
		else if (n == 0 || (errno != EAGAIN && errno != EINTR))
			end(p, n == 0 ? 0 : errno);
	}
	leave(p);
	return 0;
}

/* ---- the socket ---- */

int peer_address(const char *path, struct sockaddr_un *ret, int *ret_directory)
{
	char directory[PATH_MAX], name[PATH_MAX];

	*ret = (struct sockaddr_un){ .sun_family = AF_UNIX };
	*ret_directory = -1;
	if (strlen(path) < sizeof(ret->sun_path)) {
		memcpy(ret->sun_path, path, strlen(path));
		return 0;
	}
	if (strlen(path) >= sizeof(directory))
		return -ENAMETOOLONG;
	memcpy(directory, path, strlen(path) + 1);
	memcpy(name, path, strlen(path) + 1);
	*ret_directory = open(dirname(directory), O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (*ret_directory < 0)
		return -errno;
	if (snprintf(ret->sun_path, sizeof(ret->sun_path), "/proc/self/fd/%d/%s", *ret_directory, basename(name)) >=
	    (int)sizeof(ret->sun_path)) {
		*ret_directory = safe_close(*ret_directory);
		return -ENAMETOOLONG;
	}
	return 0;
}

static int open_socket(const char *path, int *ret_fd)
{
	_cleanup_close_ int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), directory = -1;
	struct sockaddr_un address;
	int r;

	if (fd < 0)
		return -errno;
	r = peer_address(path, &address, &directory);
	if (r < 0)
		return r;
	/* EAGAIN: those that wait to be accepted are too many already. */
	if (connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
		return errno == EAGAIN ? -EBUSY : -errno;
	*ret_fd = fd;
	fd = -1;
	return 0;
}

static int begin(struct peer *p, int fd)
{
	struct ucred credentials = { 0 };
	socklen_t size = sizeof(credentials);
	int r = sd_event_add_io(p->event, &p->io_source, fd, EPOLLIN, on_io, p);

	if (r < 0)
		return r;
	p->fd = fd;
	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &credentials, &size) == 0)
		p->pid = credentials.pid;
	if (p->callbacks->connected)
		p->callbacks->connected(p, p->userdata);
	return 0;
}

static int on_dial(sd_event_source *source, uint64_t usec, void *userdata)
{
	struct peer *p = userdata;
	int fd = -1, r = open_socket(p->path, &fd);

	enter(p);
	if (r == 0)
		r = begin(p, fd);
	if (r < 0) {
		safe_close(fd);
		end(p, -r);
	}
	leave(p);
	return 0;
}

static int create(sd_event *event, struct peer_limits limits, const struct peer_callbacks *callbacks, void *userdata,
		  struct peer **ret)
{
	struct peer *p = calloc(1, sizeof(*p));

	if (!p)
		return -ENOMEM;
	p->event = sd_event_ref(event);
	p->callbacks = callbacks;
	p->userdata = userdata;
	p->fd = -1;
	p->tokener = json_line_tokener(PEER_MAX_DEPTH);
	*ret = p;
	if (!p->tokener || line_reader_init(&p->reader, limits.line) < 0 ||
	    line_queue_init(&p->queue, limits.queue) < 0)
		return -ENOMEM;
	return 0;
}

int peer_dial(sd_event *event, const char *path, uint64_t redial_usec, struct peer_limits limits,
	      const struct peer_callbacks *callbacks, void *userdata, struct peer **ret)
{
	_cleanup_(peer_freep) struct peer *p = NULL;
	int r = create(event, limits, callbacks, userdata, &p);

	if (r < 0)
		return r;
	p->path = path;
	p->redial_usec = redial_usec;
	r = sd_event_add_time_relative(event, &p->dial_source, CLOCK_MONOTONIC, 0, 1, on_dial, p);
	if (r < 0)
		return r;
	*ret = p;
	p = NULL;
	return 0;
}

int peer_adopt(sd_event *event, int fd, struct peer_limits limits, const struct peer_callbacks *callbacks,
	       void *userdata, struct peer **ret)
{
	_cleanup_(peer_freep) struct peer *p = NULL;
	_cleanup_close_ int ours = fd;
	int r = create(event, limits, callbacks, userdata, &p);

	if (r < 0)
		return r;
	*ret = p;
	r = begin(p, fd);
	if (r < 0) {
		*ret = NULL;
		return r;
	}
	ours = -1;
	p = NULL;
	return 0;
}
