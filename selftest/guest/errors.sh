#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# The error state of a file belongs to each open file description: a file on a thin device of the region that is full.
. /root/guest/lib.sh

modprobe -a dm-mod dm-thin-pool
disk=$(vm dev r0)
dmsetup create meta --table "0 8192 linear $disk 0"
dmsetup create data --table "0 65536 linear $disk 8192"
dd if=/dev/zero of=/dev/mapper/meta bs=4096 count=1 status=none
dmsetup create pool --table '0 65536 thin-pool /dev/mapper/meta /dev/mapper/data 128 0 1 error_if_no_space'
dmsetup message pool 0 'create_thin 0'
dmsetup create thin --table '0 131072 thin /dev/mapper/pool 0'
mkdir -p /mnt
check "ext4 on a thin device of the region, half of it there" mkext4 -E nodiscard -J size=4 /dev/mapper/thin
check "is mounted" mount /dev/mapper/thin /mnt
touch /mnt/file
sync -f /mnt
start_agent
check "the agent flushes it" pmemctl flush /mnt/file
check "what the kernel does" python3 /root/guest/errors.py facts
sed 's/^/# /' "$work/out"
# The pool's own failure, of which the region's disk knows nothing.
check_status 3 "what the thin device can't take is a loss of the region below" pmemctl flush /mnt/file
check_output "which the witness has seen" 'noticed by witness'
# Without one, it is a matter of the descriptors in which it waits.
systemctl stop pmem-agent.service
mount --bind /bin/true "$(systemctl cat pmem-agent.service | sed -n 's/^ExecStartPre=-+//p')"
rmdir /sys/kernel/tracing/instances/pmem-agent
start_agent
check "it is acknowledged" pmemctl acknowledge region0 --loss="$(region_property Loss)"
check "what the agent does" python3 /root/guest/errors.py agent
sed 's/^/# /' "$work/out"
finish
