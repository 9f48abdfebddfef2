/*
 * frame.h - what goes between the guest's runner and the host, and between `vm` and the runner
 *
 * After a greeting ("\nhello BOOT_ID\n" from the guest, "\nwelcome BOOT_ID\n" from the host: whatever
 * came before, from an earlier boot, is dropped) both sides send frames, all little-endian.
 */
#ifndef VM_FRAME_H
#define VM_FRAME_H

#include <stdint.h>

#define VM_PORT   "/dev/virtio-ports/io.pmem.vm.0"
#define VM_SOCKET "/run/vm.sock"

enum {
	VM_FRAME_MAX = 4096,    /* payload from the guest: one virtio buffer, never torn by a reset */
	VM_REQUEST_MAX = 65536, /* payload from the host, and a request of `vm` */
};

enum vm_frame_type {
	VM_JOB = 'J',     /* to the guest: run this; arguments, each ended by a NUL */
	VM_LEAVE = 'L',   /* to the guest: "reboot" or "poweroff", in good order */
	VM_PART = 'P',    /* to the guest: a part of the answer to request `id` */
	VM_ANSWER = 'A',  /* to the guest: the last part; first of all came the status byte */
	VM_OUTPUT = 'O',  /* of the job `id` */
	VM_EXIT = 'X',    /* of the job `id`: its status, 4 bytes */
	VM_REQUEST = 'Q', /* request `id` of a `vm` in the guest; arguments as above */
	VM_CANCEL = 'C',  /* that `vm` is gone */
	VM_BYE = 'B',     /* the guest goes down in good order */
};

struct vm_frame {
	uint32_t type; /* enum vm_frame_type */
	uint32_t id;
	uint32_t length;
};

#endif
