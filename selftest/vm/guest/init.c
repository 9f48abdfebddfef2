/*
 * init.c - first process of the guest: modules, root file system, systemd
 *
 * The root is an overlay: the base image and the kernel's modules below, the disk of this run above.
 * Disks are told apart by their serial number. "vm.probe" on the kernel command line means: say
 * that a guest runs here at all, and power off.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/netlink.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#define FIRST_BOOT      "/usr/local/lib/vm/first-boot"
#define FIRST_BOOT_DONE "/var/lib/vm/first-boot-done"

static void fail(const char *what)
{
	fprintf(stderr, "vm-init: %s: %s\n", what, strerror(errno));
	sync();
	reboot(RB_POWER_OFF);
	_exit(1);
}

static void mount_or_fail(const char *what, const char *where, const char *type, unsigned long flags,
			  const char *options)
{
	if (mount(what, where, type, flags, options) < 0)
		fail(where);
}

static void insert_modules(void)
{
	struct dirent **names;
	int n = scandir("/m", &names, NULL, alphasort);

	for (int i = 0; i < n; i++) {
		char path[300];
		int fd;

		if (names[i]->d_name[0] == '.')
			continue;
		snprintf(path, sizeof(path), "/m/%s", names[i]->d_name);
		fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd < 0 || (syscall(SYS_finit_module, fd, "", 0) < 0 && errno != EEXIST))
			fail(path);
		close(fd);
		unlink(path);
	}
}

/* The disk with this serial number, as a node "/disk-SERIAL"; false when it isn't there yet. */
static int find_disk(const char *serial)
{
	for (char letter = 'a'; letter <= 'z'; letter++) {
		char path[64], text[64] = "";
		unsigned int major, minor;
		FILE *f;

		snprintf(path, sizeof(path), "/sys/block/vd%c/serial", letter);
		f = fopen(path, "re");
		if (!f)
			continue;
		if (!fgets(text, sizeof(text), f))
			text[0] = 0;
		fclose(f);
		if (strcmp(text, serial) != 0)
			continue;
		snprintf(path, sizeof(path), "/sys/block/vd%c/dev", letter);
		f = fopen(path, "re");
		if (!f || fscanf(f, "%u:%u", &major, &minor) != 2)
			fail(path);
		fclose(f);
		snprintf(path, sizeof(path), "/disk-%s", serial);
		if (mknod(path, S_IFBLK | 0600, makedev(major, minor)) < 0 && errno != EEXIST)
			fail(path);
		return 1;
	}
	return 0;
}

static void mount_disk(int uevents, const char *serial, const char *where, unsigned long flags, const char *options)
{
	char path[64], skip[4096];

	while (!find_disk(serial)) {
		struct pollfd p = { .fd = uevents, .events = POLLIN };

		if (poll(&p, 1, 20000) <= 0) {
			errno = ENODEV;
			fail(serial);
		}
		while (recv(uevents, skip, sizeof(skip), MSG_DONTWAIT) > 0)
			;
	}
	snprintf(path, sizeof(path), "/disk-%s", serial);
	mount_or_fail(path, where, "ext4", flags | MS_NOATIME, options);
}

static void first_boot(void)
{
	pid_t pid;
	int status;

	if (access("/root" FIRST_BOOT_DONE, F_OK) == 0)
		return;
	pid = fork();
	if (pid == 0) {
		if (chroot("/root") < 0 || chdir("/") < 0)
			fail("chroot");
		execl("/bin/sh", "sh", FIRST_BOOT, NULL);
		fail(FIRST_BOOT);
	}
	if (pid < 0 || waitpid(pid, &status, 0) < 0 || status != 0)
		fprintf(stderr, "vm-init: %s failed (%#x)\n", FIRST_BOOT, status);
}

static int on_command_line(const char *word)
{
	char text[4096] = " ";
	int fd = open("/proc/cmdline", O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? 0 : read(fd, text + 1, sizeof(text) - 3);

	close(fd);
	if (n > 0)
		text[n] = ' ';
	return strstr(text, word) != NULL;
}

int main(void)
{
	struct sockaddr_nl address = { .nl_family = AF_NETLINK, .nl_groups = 1 };
	int uevents;

	mount_or_fail("devtmpfs", "/dev", "devtmpfs", MS_NOSUID, "mode=0755");
	mount_or_fail("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
	mount_or_fail("sysfs", "/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
	if (on_command_line(" vm.probe ")) {
		printf("vm-init: a guest runs here\n");
		fflush(stdout);
		reboot(RB_POWER_OFF);
	}
	uevents = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_KOBJECT_UEVENT);
	if (uevents < 0 || bind(uevents, (struct sockaddr *)&address, sizeof(address)) < 0)
		fail("netlink");
	insert_modules();
	mount_disk(uevents, "base", "/base", MS_RDONLY, NULL);
	mount_disk(uevents, "kernel", "/kernel", MS_RDONLY, NULL);
	mount_disk(uevents, "run", "/rw", 0, "noinit_itable");
	mount_or_fail("overlay", "/root", "overlay", 0, "lowerdir=/kernel:/base,upperdir=/rw/upper,workdir=/rw/work");
	mount_or_fail("/proc", "/root/proc", NULL, MS_MOVE, NULL);
	mount_or_fail("/sys", "/root/sys", NULL, MS_MOVE, NULL);
	mount_or_fail("/dev", "/root/dev", NULL, MS_MOVE, NULL);
	first_boot();
	close(uevents);
	if (chdir("/root") < 0)
		fail("/root");
	mount_or_fail(".", "/", NULL, MS_MOVE, NULL);
	if (chroot(".") < 0 || chdir("/") < 0)
		fail("chroot");
	execl("/lib/systemd/systemd", "/sbin/init", NULL);
	fail("/lib/systemd/systemd");
}
