#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# The machine is saved into a file, and another one goes on from it, as after a migration. Epochs of before are void, and all
# sides learn it. QEMU 7.2 does not take virtio-pmem's queue along, so that a flush which the guest makes after that is never
# answered: it must not be called durable. r1 is device-dax, which serve flushes.
. /root/guest/lib.sh

instance() {
	busctl get-property io.pmem.Agent1 /io/pmem/Agent1 io.pmem.Agent1.Manager Instance
}
is_served() {
	local since
	since=$(vm host count)
	vm host send '{"execute":"query","id":"is-served"}'
	vm host wait '"id": *"is-served"' --since "$since" --timeout 20 | grep -q '"region":"region1".*"served":true'
}

# Of the one that there is: serve may have begun another, after that of the agent, whose greeting it keeps to itself.
tells_clients() {
	vm host lines --since "$since" | grep -q "\"pmem-agent\".*\"instance\":\"$(instance | cut -d'"' -f2)\""
}

start_agent
check "a filesystem" mkdax "$(vm dev r0)" /mnt
vm serve start
check "serve serves" wait_until 30 is_served
# Nothing is left to be written: ext4 would begin a commit by itself later, which hangs in the machine that goes on.
mount -o remount,noatime /mnt
echo data >/mnt/file
echo memory >/run/file
check "flushed" pmemctl flush /mnt region1
before=$(instance) since=$(vm host count)

check "the machine is saved, and another goes on" vm restore
check_equal "with what was in its memory" "$(cat /run/file)" memory
check_equal "and in its region" "$(cat /mnt/file)" data
check "the host is greeted by another instance" wait_until 30 sh -c "[ '$before' != \"\$(busctl get-property io.pmem.Agent1 /io/pmem/Agent1 io.pmem.Agent1.Manager Instance)\" ]"
check "serve tells its clients" wait_until 30 tells_clients
check "the filesystem is durable no more" vm host lines --since "$since"
check_output "it says" '"region0".*"durable-usec":0'
check "device-dax is served as before" wait_until 30 is_served
check "and flushed" pmemctl flush region1
check_status 18 "a flush through virtio-pmem is not answered by this QEMU, and not called durable" pmemctl flush --timeout=3 /mnt
check_status 18 "nor is it to the host" vm pmemctl flush --timeout=3 /mnt
vm serve stop
finish
