/*
 * runner.c - the guest's end: runs what the host sends, and passes on what `vm` asks
 *
 * One thread around poll(2): the virtio-serial port, a socket for `vm` (so that scripts may use it
 * side by side, whoever they run as), the output of the job, and signals.
 */
#define _GNU_SOURCE
#include "frame.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

enum { CALLERS = 64 };

struct caller {
	int fd;
	uint32_t id; /* 0: hasn't asked yet */
	uint32_t have;
	char *request; /* length, then that many bytes */
};

static int port, listener, signals, output = -1;
static char boot_id[37];
static char cgroup[256];
static pid_t job;
static uint32_t job_id, next_request = 1;
static struct caller callers[CALLERS];
static char in[VM_REQUEST_MAX + sizeof(struct vm_frame)];
static size_t in_have;
static int welcome;

static void fail(const char *what)
{
	fprintf(stderr, "vm-runner: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void write_all(int fd, const void *data, size_t size)
{
	const char *p = data;

	while (size) {
		ssize_t n = write(fd, p, size);

		if (n < 0 && errno == EAGAIN) {
			struct pollfd wait = { .fd = fd, .events = POLLOUT };

			poll(&wait, 1, -1);
			continue;
		}
		if (n < 0)
			return;
		p += n;
		size -= n;
	}
}

static void send_frame(enum vm_frame_type type, uint32_t id, const void *payload, size_t size)
{
	const char *p = payload;

	do {
		char buffer[sizeof(struct vm_frame) + VM_FRAME_MAX];
		size_t part = size < VM_FRAME_MAX ? size : VM_FRAME_MAX;
		struct vm_frame head = { .type = type, .id = id, .length = part };

		memcpy(buffer, &head, sizeof(head));
		if (part)
			memcpy(buffer + sizeof(head), p, part);
		write_all(port, buffer, sizeof(head) + part);
		p += part;
		size -= part;
	} while (size);
}

static int write_file(const char *name, const char *text)
{
	char path[300];
	int fd, r;

	snprintf(path, sizeof(path), "%s/%s", cgroup, name);
	fd = open(path, O_WRONLY | O_CLOEXEC);
	r = fd < 0 || write(fd, text, strlen(text)) < 0 ? -errno : 0;
	if (fd >= 0)
		close(fd);
	return r;
}

/* A group below our own: whatever a job leaves behind is killed with it. */
static void find_cgroup(void)
{
	char line[200] = "";
	FILE *f = fopen("/proc/self/cgroup", "re");

	if (f) {
		while (fgets(line, sizeof(line), f) && strncmp(line, "0::", 3) != 0)
			;
		fclose(f);
	}
	line[strcspn(line, "\n")] = 0;
	snprintf(cgroup, sizeof(cgroup), "/sys/fs/cgroup%s/job", line + 3);
}

static void job_child(char **argv, int out)
{
	sigset_t none;

	write_file("cgroup.procs", "0");
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	signal(SIGPIPE, SIG_DFL);
	setsid();
	close(STDIN_FILENO);
	open("/dev/null", O_RDONLY);
	dup2(out, STDOUT_FILENO);
	dup2(out, STDERR_FILENO);
	setenv("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin", 1);
	setenv("HOME", "/root", 1);
	setenv("LANG", "C.UTF-8", 1);
	if (chdir("/root") < 0)
		fail("/root");
	execvp(argv[0], argv);
	fprintf(stderr, "%s: %s\n", argv[0], strerror(errno));
	_exit(errno == ENOENT ? 127 : 126);
}

static void start_job(uint32_t id, char *args, size_t size)
{
	char *argv[1024];
	size_t n = 0;
	int pipes[2];

	for (char *p = args; p < args + size && n < 1023; p += strlen(p) + 1)
		argv[n++] = p;
	argv[n] = NULL;
	mkdir(cgroup, 0755);
	if (pipe2(pipes, O_CLOEXEC) < 0)
		fail("pipe");
	fcntl(pipes[0], F_SETFL, O_NONBLOCK);
	job = fork();
	if (job < 0)
		fail("fork");
	if (job == 0)
		job_child(argv, pipes[1]);
	close(pipes[1]);
	output = pipes[0];
	job_id = id;
}

static void drain_output(void)
{
	char buffer[VM_FRAME_MAX];
	ssize_t n;

	while (output >= 0) {
		n = read(output, buffer, sizeof(buffer));
		if (n > 0) {
			send_frame(VM_OUTPUT, job_id, buffer, n);
		} else if (n == 0 || errno != EAGAIN) {
			close(output);
			output = -1;
		} else {
			return;
		}
	}
}

static void reap(void)
{
	struct signalfd_siginfo info;
	int32_t status;
	int wait_status;
	pid_t pid;

	while (read(signals, &info, sizeof(info)) == sizeof(info)) {
		if (info.ssi_signo == SIGTERM) {
			drain_output();
			send_frame(VM_BYE, 0, NULL, 0);
			exit(0);
		}
	}
	while ((pid = waitpid(-1, &wait_status, WNOHANG)) > 0 && pid != job)
		;
	if (pid <= 0)
		return;
	status = WIFEXITED(wait_status) ? WEXITSTATUS(wait_status) : 128 + WTERMSIG(wait_status);
	drain_output();
	write_file("cgroup.kill", "1");
	if (output >= 0)
		close(output);
	output = -1;
	job = 0;
	send_frame(VM_EXIT, job_id, &status, sizeof(status));
}

static void drop_caller(struct caller *c)
{
	close(c->fd);
	free(c->request);
	*c = (struct caller){ .fd = -1 };
}

static void accept_caller(void)
{
	int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

	for (int i = 0; fd >= 0 && i < CALLERS; i++) {
		if (callers[i].fd >= 0)
			continue;
		callers[i] = (struct caller){ .fd = fd, .request = malloc(VM_FRAME_MAX + 4) };
		return;
	}
	close(fd);
}

/* A request is its length and that many bytes; after it nothing more comes but the end. */
static void read_caller(struct caller *c)
{
	uint32_t length;
	ssize_t n = read(c->fd, c->request + c->have, VM_FRAME_MAX + 4 - c->have);

	if (n < 0 && errno == EAGAIN)
		return;
	if (n <= 0) {
		if (c->id)
			send_frame(VM_CANCEL, c->id, NULL, 0);
		drop_caller(c);
		return;
	}
	c->have += n;
	if (c->have < 4 || c->id)
		return;
	memcpy(&length, c->request, 4);
	if (length > VM_FRAME_MAX)
		drop_caller(c);
	else if (c->have >= 4 + length) {
		c->id = next_request++;
		drain_output();
		send_frame(VM_REQUEST, c->id, c->request + 4, length);
	}
}

static void answer_caller(uint32_t id, const char *payload, size_t size, int last)
{
	for (int i = 0; i < CALLERS; i++) {
		if (callers[i].fd < 0 || callers[i].id != id)
			continue;
		fcntl(callers[i].fd, F_SETFL, 0);
		if (size && send(callers[i].fd, payload, size, MSG_NOSIGNAL) < 0)
			last = 1;
		if (last)
			drop_caller(&callers[i]);
	}
}

static void take_frame(const struct vm_frame *head, char *payload)
{
	switch (head->type) {
	case VM_JOB:
		start_job(head->id, payload, head->length);
		break;
	case VM_LEAVE:
		if (fork() == 0) {
			execl("/bin/systemctl", "systemctl", "--no-block", payload, NULL);
			_exit(127);
		}
		break;
	case VM_PART:
	case VM_ANSWER:
		answer_caller(head->id, payload, head->length, head->type == VM_ANSWER);
		break;
	default:
		errno = EPROTO;
		fail("frame");
	}
}

/* Bytes that an earlier boot left in the port come before the host's welcome: drop them. */
static void find_welcome(void)
{
	char text[64];
	char *at;
	int length = snprintf(text, sizeof(text), "\nwelcome %s\n", boot_id);

	at = memmem(in, in_have, text, length);
	if (!at) {
		size_t keep = in_have < (size_t)length ? in_have : (size_t)length;

		memmove(in, in + in_have - keep, keep);
		in_have = keep;
		return;
	}
	at += length;
	in_have -= at - in;
	memmove(in, at, in_have);
	welcome = 1;
}

static void read_port(void)
{
	ssize_t n = read(port, in + in_have, sizeof(in) - in_have);

	if (n < 0 && errno != EAGAIN)
		fail(VM_PORT);
	if (n > 0)
		in_have += n;
	if (!welcome)
		find_welcome();
	while (welcome && in_have >= sizeof(struct vm_frame)) {
		struct vm_frame head;
		size_t size;

		memcpy(&head, in, sizeof(head));
		size = sizeof(head) + head.length;
		if (head.length > VM_REQUEST_MAX) {
			errno = EPROTO;
			fail("frame");
		}
		if (in_have < size)
			break;
		take_frame(&head, in + sizeof(head));
		in_have -= size;
		memmove(in, in + size, in_have);
	}
}

static void set_up(void)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX, .sun_path = VM_SOCKET };
	char text[64];
	sigset_t set;
	int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);

	if (fd < 0 || read(fd, boot_id, 36) != 36)
		fail("boot_id");
	close(fd);
	find_cgroup();
	signal(SIGPIPE, SIG_IGN);
	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	sigaddset(&set, SIGTERM);
	sigprocmask(SIG_BLOCK, &set, NULL);
	signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	unlink(VM_SOCKET);
	listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (listener < 0 || bind(listener, (struct sockaddr *)&address, sizeof(address)) < 0 ||
	    chmod(VM_SOCKET, 0666) < 0 || listen(listener, CALLERS) < 0)
		fail(VM_SOCKET);
	for (int i = 0; i < CALLERS; i++)
		callers[i].fd = -1;
	port = open(VM_PORT, O_RDWR | O_NONBLOCK | O_CLOEXEC);
	if (port < 0)
		fail(VM_PORT);
	write_all(port, text, snprintf(text, sizeof(text), "\nhello %s\n", boot_id));
}

int main(void)
{
	set_up();
	for (;;) {
		struct pollfd p[4 + CALLERS] = {
			{ .fd = port, .events = POLLIN },
			{ .fd = signals, .events = POLLIN },
			{ .fd = listener, .events = POLLIN },
			{ .fd = output, .events = POLLIN },
		};

		for (int i = 0; i < CALLERS; i++)
			p[4 + i] = (struct pollfd){ .fd = callers[i].fd, .events = POLLIN };
		if (poll(p, 4 + CALLERS, -1) < 0 && errno != EINTR)
			fail("poll");
		if (p[3].revents)
			drain_output();
		for (int i = 0; i < CALLERS; i++)
			if (p[4 + i].revents)
				read_caller(&callers[i]);
		if (p[2].revents)
			accept_caller();
		if (p[1].revents)
			reap();
		if (p[0].revents)
			read_port();
	}
}
