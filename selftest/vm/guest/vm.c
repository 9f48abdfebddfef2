/*
 * vm.c - ask the host's side of the test machine: `vm help` lists what it can do
 *
 * The host understands the words; here they are only passed on, but for three that need the guest.
 */
#define _GNU_SOURCE
#include "frame.h"

#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

static int ask(int argc, char **argv)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX, .sun_path = VM_SOCKET };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	char request[4 + VM_FRAME_MAX];
	size_t have = 4;
	uint32_t length;

	for (int i = 0; i < argc; i++) {
		size_t size = strlen(argv[i]) + 1;

		if (have + size > sizeof(request)) {
			fprintf(stderr, "vm: arguments longer than %d bytes\n", VM_FRAME_MAX);
			exit(2);
		}
		memcpy(request + have, argv[i], size);
		have += size;
	}
	length = have - 4;
	memcpy(request, &length, 4);
	if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0 ||
	    write(fd, request, have) != (ssize_t)have) {
		fprintf(stderr, "vm: %s: %s\n", VM_SOCKET, strerror(errno));
		exit(2);
	}
	return fd;
}

/* The answer: one byte of status, then text, for standard error when the status isn't 0. */
static int answer(int fd, int out)
{
	char buffer[4096];
	unsigned char status;
	ssize_t n;

	if (read(fd, &status, 1) != 1) {
		fprintf(stderr, "vm: the host gave no answer\n");
		return 2;
	}
	if (status)
		out = STDERR_FILENO;
	while ((n = read(fd, buffer, sizeof(buffer))) > 0)
		if (write(out, buffer, n) != n)
			return 2;
	return status;
}

/* vm dev REGION: its block or DAX device, found by the address that the host knows. */
static int region_device(char *region)
{
	char *words[] = { "region", "address", region };
	char address[64] = "", path[300], text[64];
	int fd = ask(3, words), pipes[2], status;
	static const char *const places[] = { "*/block/*", "dax*/dax[0-9]*" };
	glob_t found;

	if (pipe(pipes) < 0)
		return 2;
	status = answer(fd, pipes[1]);
	if (status)
		return status;
	if (read(pipes[0], address, sizeof(address) - 1) <= 0 || glob("/sys/bus/nd/devices/region*", 0, NULL, &found))
		return 1;
	address[strcspn(address, "\n")] = 0;
	for (size_t i = 0; i < found.gl_pathc; i++) {
		glob_t devices;
		FILE *f;

		snprintf(path, sizeof(path), "%s/resource", found.gl_pathv[i]);
		f = fopen(path, "re");
		if (!f || !fgets(text, sizeof(text), f))
			text[0] = 0;
		if (f)
			fclose(f);
		text[strcspn(text, "\n")] = 0;
		if (strtoull(text, NULL, 16) != strtoull(address, NULL, 16))
			continue;
		for (size_t j = 0; j < sizeof(places) / sizeof(places[0]); j++) {
			snprintf(path, sizeof(path), "%s/%s", found.gl_pathv[i], places[j]);
			if (glob(path, 0, NULL, &devices))
				continue;
			printf("/dev/%s\n", basename(devices.gl_pathv[0]));
			return 0;
		}
	}
	fprintf(stderr, "vm: no device for %s at %s\n", region, address);
	return 1;
}

/* vm suspend SECONDS: the host wakes the machine that long after it fell asleep. */
static int suspend(char *seconds)
{
	char *words[] = { "wake-after", seconds };
	int status = answer(ask(2, words), STDOUT_FILENO);
	int fd;

	if (status)
		return status;
	fd = open("/sys/power/state", O_WRONLY | O_CLOEXEC);
	if (fd < 0 || write(fd, "mem", 3) != 3) {
		fprintf(stderr, "vm: suspend: %s\n", strerror(errno));
		return 1;
	}
	return 0;
}

static double seconds(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* The host's clock now; 0 or the exit status. */
static int ask_time(double *ret)
{
	char *words[] = { "time" };
	char text[64] = "";
	int pipes[2], status;

	if (pipe(pipes) < 0)
		return 2;
	status = answer(ask(1, words), pipes[1]);
	if (status == 0 && read(pipes[0], text, sizeof(text) - 1) <= 0)
		status = 2;
	close(pipes[0]);
	close(pipes[1]);
	*ret = strtod(text, NULL);
	return status;
}

/*
 * vm set-clock: the guest's clock, which came from a clock chip that knows only seconds. The quickest of several
 * answers tells best: it was given between the question and its arrival here.
 */
static int set_clock(void)
{
	double ahead = 0, shortest = 1e9, host;
	struct timespec now;

	for (int i = 0; i < 8; i++) {
		double asked = seconds(), took;
		int status = ask_time(&host);

		if (status)
			return status;
		took = seconds() - asked;
		if (took < shortest) {
			shortest = took;
			ahead = host - asked - took / 2;
		}
	}
	host = seconds() + ahead;
	now.tv_sec = (time_t)host;
	now.tv_nsec = (long)((host - (double)now.tv_sec) * 1e9);
	if (clock_settime(CLOCK_REALTIME, &now) < 0) {
		fprintf(stderr, "vm: set-clock: %s\n", strerror(errno));
		return 1;
	}
	return 0;
}

int main(int argc, char **argv)
{
	if (argc == 3 && strcmp(argv[1], "dev") == 0)
		return region_device(argv[2]);
	if (argc == 3 && strcmp(argv[1], "suspend") == 0)
		return suspend(argv[2]);
	if (argc == 2 && strcmp(argv[1], "set-clock") == 0)
		return set_clock();
	return answer(ask(argc - 1, argv + 1), STDOUT_FILENO);
}
