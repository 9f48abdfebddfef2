#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# A machine without any region: nothing to do, and an emulated region does what a real one does.
. /root/guest/lib.sh

check "the service starts" start_agent
check "and says that there is nothing to do" sh -c 'journalctl -q -u pmem-agent | grep -q "nothing to do"'
check "list is empty" pmemctl list

# A disk that can be made to hang and to fail
modprobe -a loop dm-mod
truncate -s 64M /dev/shm/disk.img
loop=$(losetup --show -f /dev/shm/disk.img)
dmsetup create disk --table "0 131072 linear $loop 0"
mkext4 /dev/mapper/disk
mkdir -p /srv
mount /dev/mapper/disk /srv
dd if=/dev/zero of=/srv/region bs=1M count=16 conv=fsync status=none
printf '[Agent]\nStallSec=1\nNonsense=1\n[Region laptop]\nEmulate=/srv/region\n' >/etc/pmem-agent.conf
systemctl restart pmem-agent
check "a wrong key is named with file and line" sh -c \
	'journalctl -q -u pmem-agent | grep -q "pmem-agent.conf:3.*Nonsense"'
check "an emulated region" pmemctl list
check_output "is a region" 'laptop'
since=$(vm host count)
check "is flushed by name" pmemctl flush laptop
check "and by its file" pmemctl flush /srv/region
check_output "as a region" 'region'
check "the host reads DURABLE" vm host wait '"DURABLE".*"laptop"' --since "$since" --timeout 20
check_status 7 "another file of that filesystem is ordinary storage, or hidden" sh -c \
	'pmemctl flush /dev/shm'

check "idle: RSS of the daemon at most 10 MiB" test \
	"$(awk '/^VmRSS/ { print $2 }' "/proc/$(systemctl show -P MainPID pmem-agent)/status")" -le 10240

store() {
	dd if=/dev/urandom of=/srv/region bs=4096 count=1 conv=notrunc status=none
}
state() {
	busctl get-property io.pmem.Agent1 /io/pmem/Agent1/region/laptop io.pmem.Agent1.Region "$1"
}

# The disk hangs: the same answers as with a host that does.
store
dmsetup suspend --nolockfs disk
pmemctl flush laptop >"$work/hanging" 2>&1 &
hanging=$!
check "a stalled flush is reported" vm host wait '"STALLED".*"laptop"' --since "$since" --timeout 20
check_status 4 "status says so" timeout 1 pmemctl status
check_output "and for how long" 'in flight for [0-9]+'
check "restart returns within its stop time" timeout 17 systemctl restart pmem-agent
wait $hanging
check_equal "who waited is told unknown" $? 4
pmemctl flush laptop >"$work/queued" 2>&1 &
queued=$!
check "the next one waits" wait_until 20 sh -c "[ \"\$(busctl get-property io.pmem.Agent1 \
	/io/pmem/Agent1/region/laptop io.pmem.Agent1.Region Waiting)\" = 'u 1' ]"
check_equal "the new agent sees the stall" "$(state State)" 's "stalled"'
check_equal "and has begun no second flush beside it" "$(pgrep -c pmem-worker)" 1
dmsetup resume disk
wait $queued
check_equal "when the disk answers, the queue goes on" $? 0

# The disk fails
store
dmsetup suspend --nolockfs disk
dmsetup load disk --table "0 131072 error"
dmsetup resume disk
check_status 3 "a flush that fails says lost" pmemctl flush laptop
check_output "and names region and error" 'laptop.*Input/output error'
check "the host reads LOST" vm host wait '"LOST".*"laptop"' --since "$since" --timeout 20
check_status 3 "so does every later request" pmemctl flush /srv/region
systemctl restart pmem-agent
check_status 3 "and the next agent" pmemctl flush laptop
finish
