#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Every kind of target gets its own answer, and the doctor's. Regions: r0 fsdax, r1 devdax, r2 NVDIMM, r3 NVDIMM unarmed,
# r4 raw, and RAM that memmap= has named persistent.
. /root/guest/lib.sh

region_of() {	# REGION of the test host: the agent's name for it, by its guest-physical address
	pmemctl list --json | python3 -c '
import json, sys
print([r["region"] for r in json.load(sys.stdin)["regions"] if r["resource"] == int(sys.argv[1], 0)][0])' "$(vm region address "$1")"
}

# finds STATUS "FINDING..." PATH: the doctor finds these there, and the worst of them gives the status
finds() {
	local id
	check_status "$1" "doctor $3" pmemctl doctor "$3"
	cp "$work/out" "$work/doctor"
	for id in $2; do
		grep -Eq "^[a-z]+: $id: " "$work/doctor"
		report $? "finds $id" "$work/doctor"
	done
}

# finds_not FINDING: nor this, at the last path
finds_not() {
	not grep -Eq "^[a-z]+: $1: " "$work/doctor"
	report $? "and not $1" "$work/doctor"
}

modprobe -a xfs dm-mod dm-crypt loop ext4 nd_e820 2>/dev/null
start_agent
check "all are listed" sh -c '[ "$(pmemctl list --json | python3 -c "import json, sys; print(len(json.load(sys.stdin)[\"regions\"]))")" = 6 ]'

check_status 12 "device-dax on virtio-pmem: nothing in the guest can" pmemctl flush "$(vm dev r1)"
check_output "so it says" 'device-dax|host'
check_status 9 "a synchronous NVDIMM needs no flush by the agent" pmemctl flush "$(region_of r2)"
check_status 12 "an unarmed NVDIMM: impossible" pmemctl flush "$(region_of r3)"
check "raw: by its block device" pmemctl flush "$(vm dev r4)"
e820=$(pmemctl list --json | sed -n '/"kind": "e820"/{x;s/.*"region": "\(.*\)".*/\1/p};h')
check_status 12 "RAM named persistent: impossible" pmemctl flush "$e820"
finds 21 "plain-ram" "$e820"
finds 21 "devdax-unflushed libpmem2-granularity" "$(vm dev r1)"
finds 21 "unarmed" "$(region_of r3)"
finds 0 "unattested" "$(vm dev r4)"
finds 20 "unattested-cpu-flush" "$(region_of r2)"

mkdax "$(vm dev r2)" /mnt
date >/mnt/file
finds 20 "unattested-cpu-flush" /mnt/file
finds_not map-sync-refused
check_output "MAP_SYNC works on the NVDIMM" 'DAX, MAP_SYNC is granted'
umount /mnt

mkdax "$(vm dev r0)" /mnt xfs
echo data >/mnt/file
before=$(vm fsync count r0)
check "XFS with DAX" pmemctl flush /mnt
check "reaches the host" test "$(vm fsync count r0)" -gt "$before"
before=$(vm fsync count r0)
check "also with a clean log" pmemctl flush /mnt
check "reaches the host too" test "$(vm fsync count r0)" -gt "$before"
finds 0 "unattested" /mnt/file
finds_not no-dax
check_output "MAP_SYNC is refused on virtio-pmem" 'DAX, MAP_SYNC is refused'

# A program that maps it and asks nobody.
python3 -c '
import mmap, sys, time
f = open("/mnt/mapped", "w+b"); f.truncate(4096); m = mmap.mmap(f.fileno(), 4096); m[0] = 1
print("mapped", flush=True); sys.stdin.read()' <"$work/never" >"$work/mapped" &
mapper=$!
wait_until 30 grep -q mapped "$work/mapped"
finds 20 "mapped-without-library" /mnt
kill $mapper
wait $mapper 2>/dev/null
finds 0 "unattested" /mnt
finds_not mapped-without-library
umount /mnt
mount -o dax=never "$(vm dev r0)" /mnt
finds 20 "dax-never" /mnt
umount /mnt

mkfs.ext4 -q -F -b 1024 "$(vm dev r0)" 16M
mount -o nobarrier "$(vm dev r0)" /mnt
finds 21 "nobarrier block-size" /mnt
mount -o remount,ro "$(vm dev r0)" /mnt
finds 21 "read-only" /mnt
umount /mnt
echo "write through" >"/sys/block/$(basename "$(vm dev r0)")/queue/write_cache"
finds 21 "write-through" "$(vm dev r0)"
eval "$(sed -n 's/^ *\(echo .*write_cache\)$/\1/p' "$work/doctor")"
finds 0 "unattested" "$(vm dev r0)"
finds_not write-through

addpart "$(vm dev r0)" 1 8192 131072
mkdax "$(vm dev r0)p1" /mnt
date >/mnt/file
check "a partition" pmemctl flush /mnt/file
finds 0 "unattested" /mnt/file
check_output "with its disk below it" 'device pmem[0-9]*p1 +partition'
umount /mnt
delpart "$(vm dev r0)" 1

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
finds 20 "mixed-storage" /mnt
umount /mnt
dmsetup remove mixed

# As cryptsetup would have it mapped.
printf '0 %d crypt aes-xts-plain64 %064d 0 %s 0\n' $half 7 "$(vm dev r0)" | dmsetup create secret --uuid CRYPT-LUKS2-secret
mkext4 /dev/mapper/secret
mount /dev/mapper/secret /mnt
date >/mnt/file
before=$(vm fsync count r0)
check "an encrypted device" pmemctl flush /mnt/file
check "reaches the host" test "$(vm fsync count r0)" -gt "$before"
finds 0 "no-dax" /mnt/file
umount /mnt
dmsetup remove secret

printf '0 %d linear %s 0\n%d %d linear %s 0\n' $half "$(vm dev r0)" $half $half "$(vm dev r4)" | dmsetup create both --uuid LVM-both
mkext4 /dev/mapper/both
mount /dev/mapper/both /mnt
a=$(vm fsync count r0) b=$(vm fsync count r4)
check "device-mapper over two regions" pmemctl flush /mnt
check "reaches the host for the first" test "$(vm fsync count r0)" -gt "$a"
check "and for the second" test "$(vm fsync count r4)" -gt "$b"
finds 0 "unattested" /mnt
check_equal "both regions are below it" "$(grep -c 'region region' "$work/doctor")" 2
vm fsync fail every r4
date >/mnt/file
check_status 3 "an error on one is an error of all" pmemctl flush /mnt
vm fsync fail off r4
check_status 3 "and a loss of the region that failed" pmemctl flush "$(vm dev r4)"
finds 21 "lost" /mnt
systemctl stop pmem-agent
check_status 21 "doctor without a path" pmemctl doctor
check "is JSON too" sh -c 'pmemctl doctor --json | python3 -m json.tool'
check_status 15 "nothing there" pmemctl doctor /nothing
finish
