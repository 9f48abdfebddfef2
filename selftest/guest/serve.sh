#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# The host's own flushes: device-dax on virtio-pmem (r1) becomes durable, which a power cut shows; and all that may happen to
# pmemctl serve meanwhile. r2 is mapped private. Run twice with --durable, a boot each.
. /root/guest/lib.sh

store() {	# OFFSET TEXT: through a mapping of device-dax, without any flush
	python3 -c '
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
m = mmap.mmap(fd, 4 << 20)
m[int(sys.argv[2]):int(sys.argv[2]) + len(sys.argv[3])] = sys.argv[3].encode()
os._exit(0)' "$dax" "$1" "$2"
}
load() {	# OFFSET
	python3 -c '
import mmap, os, sys
m = mmap.mmap(os.open(sys.argv[1], os.O_RDWR), 4 << 20)
print(m[int(sys.argv[2]):int(sys.argv[2]) + 4].strip(b"\0").decode())' "$dax" "$1"
}
region_of() {	# REGION of the test host: the agent's name for it, by its guest-physical address
	pmemctl list --json | python3 -c '
import json, sys
print([r["region"] for r in json.load(sys.stdin)["regions"] if r["resource"] == int(sys.argv[1], 0)][0])' "$(vm region address "$1")"
}
attestations() {	# of r0 and r1
	vm host send '{"execute":"query","id":"attestations"}'
	vm host wait '"id": *"attestations"' --since "$1" --timeout 20 | python3 -c '
import json, sys
for r in json.load(sys.stdin)["return"]["regions"]:
    print(r["attestation"], r["served"])
    print(r["region"], r["attestation"])'
}
is_refused() {
	attestations "$(vm host count)" | grep -qx "$1 refused"
}
is_served() {
	[ "$(attestations "$(vm host count)" | grep -c "attested True")" = "$1" ]
}

dax=$(vm dev r1)
if [ -e /root/phase ]; then
	check_equal "after the cut, what serve flushed is there" "$(load 4096)" "keep"
	check_equal "control: what nobody flushed is not" "$(load 8192)" ""
	vm host connect
	start_agent
	check "serve is connected to the machine that was started again" wait_until 60 is_served 3
	check "and flushes for it" pmemctl flush "$(region_of r1)"
	vm serve stop
	finish
fi

start_agent
fs=$(region_of r0) device=$(region_of r1) private=$(region_of r2)
check "control: unless the host says so, nobody sees that a region is mapped private" pmemctl flush "$private"
check_status 12 "control: without a host that serves, device-dax can't be flushed" pmemctl flush "$device"
check "a filesystem for r0" mkdax "$(vm dev r0)" /mnt

vm serve start
check "serve tells the agent of both backings" wait_until 30 is_served 2
check "and of the one that is mapped private" is_refused "$private"
check_status 12 "which is flushed no more" pmemctl flush "$private"
ours=$(vm serve fsync count r1) qemus=$(vm fsync count r1)
check "device-dax is flushed" pmemctl flush --json "$device"
check_output "and the host has confirmed it" '"basis": "host-confirmed"'
check_equal "by one flush of serve" "$(($(vm serve fsync count r1) - ours))" 1
check_equal "and none of QEMU" "$(($(vm fsync count r1) - qemus))" 0
check "the host may demand it too" vm pmemctl flush "$device"
check "and that of a filesystem" vm pmemctl flush /mnt
check "the host sees the regions" vm pmemctl list
check_output "as the guest does" "$device +virtio-pmem +yes +host"
check_status 15 "a path that is no mount point" vm pmemctl flush /none

once() {	# MORE: the host's flush of device-dax, under an id that it keeps
	vm host send "{\"execute\":\"flush\",\"arguments\":{\"address\":$(($(vm region address r1)))$1},\"id\":\"backup-of-november-29\"}"
}
answered() {
	vm host wait '"return".*"id":"backup-of-november-29"' --since "$since" --timeout 20
}
since=$(vm host count) ours=$(vm serve fsync count r1)
once ""
check "a program of the host asks serve for a flush" answered
since=$(vm host count)
vm host disconnect
vm host connect
vm host wait '"pmem-agent"' --since "$since" --timeout 20 >/dev/null
once ',"retry":true'
check "asks again, connected anew, since it had no answer" answered
check_output "and is told of the first" '"repeated":true'
check_equal "no other is made" "$(($(vm serve fsync count r1) - ours))" 1

vm serve fsync hang 1 r1
pmemctl flush "$device" >"$work/hung" 2>&1 &
hung=$!
vm serve fsync wait-hung r1
check "while the host's disk hangs, the other region is flushed" pmemctl flush "$fs"
check "and the host is answered" vm pmemctl status "$fs"
vm serve fsync release r1
wait $hung
check_equal "then the flush ends well" $? 0

since=$(vm host count)
vm serve fsync fail 1 r1
check_status 3 "an error of the host's flush is a loss" pmemctl flush "$device"
check "of which its clients hear" vm host wait '"LOST".*"origin": *"host"' --since "$since" --timeout 20
check_status 3 "and which the host's status shows" vm pmemctl status "$device"
check_status 17 "another loss than that can't be acknowledged" vm pmemctl acknowledge "$device" --loss=99
check "the host acknowledges it" vm pmemctl acknowledge "$device" --loss=1
check "and it can be flushed again" pmemctl flush "$device"

vm serve stop
check "without serve it can't" wait_until 20 sh -c "pmemctl flush $device; [ \$? = 12 ]"
vm serve start --backing "$(vm region address r1)=$(vm region backing r1 | head -n 1),share=off"
check "mapped private, by what the host says" wait_until 20 is_refused "$device"
check_status 12 "no flush is confirmed" pmemctl flush "$device"
vm serve stop
vm serve start
check "it comes back" wait_until 30 is_served 2

since=$(vm host count)
# Busy within a second of the one before, which serve may have asked for as it began.
new_instance() {
	vm host send '{"execute":"new-instance","id":"new"}'
	vm host wait '"NEW_INSTANCE"' --since "$since" --timeout 2
}
check "a new instance, as after a migration" wait_until 20 new_instance
check "is served as the one before" wait_until 30 is_served 2
systemctl restart pmem-agent
check "so is another agent" wait_until 30 is_served 2

vm region add virtio-pmem:64M >/dev/null
check "a region that is plugged in is served too" wait_until 60 is_served 3

sed -i 's/^#Confirm=no/Confirm=host/' /etc/pmem-agent.conf
systemctl restart pmem-agent
wait_until 30 is_served 3
ours=$(vm serve fsync count r0) qemus=$(vm fsync count r0)
check "with Confirm=host a flush is" pmemctl flush --json "$fs"
check_output "confirmed by the host" '"basis": "host-confirmed"'
check_equal "by a flush of serve" "$(($(vm serve fsync count r0) - ours))" 1
check_equal "after the one of QEMU" "$(($(vm fsync count r0) - qemus))" 1
vm serve fsync fail 1 r0
check_status 3 "an error that only serve's descriptor sees is a loss" pmemctl flush "$fs"
check "which is acknowledged" vm pmemctl acknowledge "$fs" --loss=1
vm serve stop
check_status 4 "nobody there to confirm: unknown" pmemctl flush "$fs"
vm serve start
check "and it comes back" wait_until 30 is_served 3

store 4096 keep
check "stored and flushed" pmemctl flush "$device"
store 8192 gone
[ $n_failed = 0 ] || finish
touch /root/phase
sync -f /root
echo "1..$n_checks"
vm cut
