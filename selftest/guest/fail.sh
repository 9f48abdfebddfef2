#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Host flushes fail: whoever takes the error (THIEF=), the region is lost, and stays lost.
. /root/guest/lib.sh

thief=${THIEF:-agent}
start_agent
vm host wait '"pmem-agent"' --timeout 30 >/dev/null
mkdax "$(vm dev r0)" /mnt
echo first >/mnt/file
check "durable while the host is well" pmemctl flush /mnt
since=$(vm host count)
epoch=$(region_property Epoch)

case $thief in
agent)
	vm fsync fail every r0
	echo second >/mnt/file
	check_status 3 "the flush that the host fails says lost" pmemctl flush /mnt
	check_output "and names region, error and loss" 'region0.*loss 1.*Input/output error'
	vm fsync fail off r0
	;;
fsync)
	vm fsync fail 1 r0
	# An overwrite in place: nothing for the journal, so that the plain fsync alone takes the error.
	check_status 1 "a plain fsync takes the only EIO" dd if=/dev/zero of=/mnt/file bs=4096 count=1 conv=notrunc,fsync
	vm fsync fail off r0
	;;
journal)
	vm fsync fail 1 r0
	mkdir /mnt/dir
	sync -f /mnt >/dev/null 2>&1
	vm fsync fail off r0
	mount -o remount,rw /mnt 2>/dev/null
	;;
esac

check_status 3 "every later request fails" pmemctl flush /mnt
check_status 3 "one for the region too" pmemctl flush region0
check "the host reads LOST" vm host wait '"LOST".*"loss": *1' --since "$since" --timeout 10
check_equal "the epoch stays" "$(region_property Epoch)" "$epoch"
check_status 3 "status says so by its exit status" pmemctl status
check_output "and in words" 'lost'
check "the journal has it with its MESSAGE_ID and REGION" sh -c 'journalctl -q -o json REGION=region0 PRIORITY=2 | grep -q MESSAGE_ID'

check "restart" systemctl restart pmem-agent
check_status 3 "lost in the next agent too" pmemctl flush region0
check "killed" systemctl kill -s KILL pmem-agent
wait_until 30 systemctl is-active --quiet pmem-agent || start_agent
check_status 3 "lost in the one after it" pmemctl flush region0
vm host send '{"execute":"flush","id":"late"}'
check "and for the host" vm host wait '"Lost".*"id": *"late"' --since "$since" --timeout 10

# After the agent's own failure the block device has an error pending, which the next open of it reports.
if [ "$thief" != agent ]; then
	systemctl stop pmem-agent
	rm -f /run/pmem-agent/*.page /var/lib/pmem-agent/*.loss
	start_agent
	check "control: without page and record it would not know" pmemctl flush region0
fi
finish
