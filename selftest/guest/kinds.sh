#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Every kind of target gets its own answer. Regions: r0 fsdax, r1 devdax, r2 NVDIMM, r3 NVDIMM unarmed, r4 raw.
. /root/guest/lib.sh

region_of() {	# REGION of the test host: the agent's name for it, by its guest-physical address
	pmemctl list --json | python3 -c '
import json, sys
print([r["region"] for r in json.load(sys.stdin)["regions"] if r["resource"] == int(sys.argv[1], 0)][0])' "$(vm region address "$1")"
}

modprobe -a xfs dm-mod loop ext4 2>/dev/null
start_agent
check "all are listed" sh -c '[ "$(pmemctl list --json | python3 -c "import json, sys; print(len(json.load(sys.stdin)[\"regions\"]))")" = 5 ]'

check_status 12 "device-dax on virtio-pmem: nothing in the guest can" pmemctl flush "$(vm dev r1)"
check_output "so it says" 'device-dax|host'
check_status 9 "a synchronous NVDIMM needs no flush by the agent" pmemctl flush "$(region_of r2)"
check_status 12 "an unarmed NVDIMM: impossible" pmemctl flush "$(region_of r3)"
check "raw: by its block device" pmemctl flush "$(vm dev r4)"

mkdax "$(vm dev r0)" /mnt xfs
echo data >/mnt/file
before=$(vm fsync count r0)
check "XFS with DAX" pmemctl flush /mnt
check "reaches the host" test "$(vm fsync count r0)" -gt "$before"
before=$(vm fsync count r0)
check "also with a clean log" pmemctl flush /mnt
check "reaches the host too" test "$(vm fsync count r0)" -gt "$before"
umount /mnt

mkfs.ext2 -q -F "$(vm dev r0)"
mount "$(vm dev r0)" /mnt
check_status 10 "ext2 on a region: unknown filesystem" pmemctl flush /mnt
check_output "names those it knows" 'ext4.*XFS'
check "and is synced with --fallback" pmemctl flush --fallback /mnt
umount /mnt

half=65536
truncate -s 64M /tmp/disk
disk=$(losetup --show -f /tmp/disk)
printf '0 %d linear %s 0\n%d %d linear %s 0\n' $half "$(vm dev r0)" $half 65536 "$disk" | dmsetup create mixed
mkext4 /dev/mapper/mixed
mount /dev/mapper/mixed /mnt
check_status 8 "device-mapper over a region and a disk: mixed" pmemctl flush /mnt
check_output "names the disk" "$(basename "$disk")"
umount /mnt
dmsetup remove mixed

printf '0 %d linear %s 0\n%d %d linear %s 0\n' $half "$(vm dev r0)" $half $half "$(vm dev r4)" | dmsetup create both
mkext4 /dev/mapper/both
mount /dev/mapper/both /mnt
a=$(vm fsync count r0) b=$(vm fsync count r4)
check "device-mapper over two regions" pmemctl flush /mnt
check "reaches the host for the first" test "$(vm fsync count r0)" -gt "$a"
check "and for the second" test "$(vm fsync count r4)" -gt "$b"
vm fsync fail every r4
date >/mnt/file
check_status 3 "an error on one is an error of all" pmemctl flush /mnt
vm fsync fail off r4
check_status 3 "and a loss of the region that failed" pmemctl flush "$(vm dev r4)"
finish
