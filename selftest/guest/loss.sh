#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# A loss outlives agent and boot, until it is acknowledged by its number; so does the acknowledgement, and the count.
# Run three times, a boot each: /root/phase says which. The machine is switched off in between, and starts again.
. /root/guest/lib.sh
phase=$(cat /root/phase 2>/dev/null || echo nothing)

next_phase() {
	[ $n_failed = 0 ] || finish
	echo "$1" >/root/phase
	echo "1..$n_checks"
	vm poweroff
}

# The agent says nothing of what earlier boots lost before it has read of it.
recalled() {
	[ "$(region_property State)" != unknown ]
}

record_says() {	# REGION_PROPERTY: its number is in a record, as a 64-bit one
	python3 - "$(region_property "$1")" <<'END'
import glob, struct, sys
number = struct.pack("=Q", int(sys.argv[1]))
sys.exit(not any(number in open(path, "rb").read()[272:] for path in glob.glob("/var/lib/pmem-agent/*.loss")))
END
}

acknowledge_as_nobody() {
	setpriv --reuid=65534 --clear-groups pmemctl acknowledge region0 --loss=1
}

check "the agent starts" start_agent
wait_until 10 recalled
since=$(vm host count)
case $phase in
nothing)
	check "durable while the host is well" pmemctl flush region0
	check_equal "nothing is on record" "$(ls /var/lib/pmem-agent)" ""
	check_status 17 "there is no loss to acknowledge" pmemctl acknowledge region0 --loss=1
	vm fsync fail 1 r0
	check_status 3 "a host flush that fails is a loss" pmemctl flush region0
	check "which is recorded" wait_until 10 sh -c 'ls /var/lib/pmem-agent/*.loss'
	check_status 3 "status shows it" pmemctl status region0
	check_output "with time, error, epochs and who noticed it" \
		'loss 1 at 20[-0-9 :]+: Input/output error, noticed by (round|witness); of stores since epoch 1, up to round 2'
	check_output "and the command to acknowledge it" 'pmemctl acknowledge region0 --loss=1'
	check_status 17 "another number is refused" pmemctl acknowledge region0 --loss=2
	check_output "by name" 'newest loss of region0 is 1, not 2'
	check_status 16 "and another user" acknowledge_as_nobody
	check_status 3 "all that changed nothing" pmemctl flush region0
	check "restart" systemctl restart pmem-agent
	check_status 3 "lost in the next agent" pmemctl flush region0
	check_equal "by the same number" "$(region_property Loss)" 1
	next_phase lost
	;;
lost)
	check_status 3 "still lost after a boot" pmemctl flush region0
	check_status 3 "status says so" pmemctl status
	check_output "and of when it is" 'loss 1 .*of stores since epoch 1, up to round 2 of an earlier boot'
	vm host send '{"execute":"flush","id":"late"}'
	check "the host is told" vm host wait '"Lost".*"id": *"late"' --since "$since" --timeout 10
	check_status 17 "another number is refused" pmemctl acknowledge region0 --loss=2
	check "this loss is acknowledged" pmemctl acknowledge region0 --loss=1
	check "the host reads ACKNOWLEDGED" vm host wait '"ACKNOWLEDGED".*"region0".*"loss": *1' --since "$since" --timeout 10
	check_status 17 "once" pmemctl acknowledge region0 --loss=1
	check "durable again" pmemctl flush region0
	check "status has nothing to say" pmemctl status
	check "restart" systemctl restart pmem-agent
	check "durable with the next agent" pmemctl flush region0
	next_phase acknowledged
	;;
acknowledged)
	check "not lost after another boot" pmemctl flush region0
	check_equal "the acknowledgement is known" "$(region_property Acknowledged)" 1
	vm fsync fail 1 r0
	check_status 3 "the next loss" pmemctl flush region0
	check_equal "has the next number" "$(region_property Loss)" 2
	check "recorded" wait_until 10 record_says Loss
	check_status 17 "the acknowledged one says nothing of it" pmemctl acknowledge region0 --loss=1

	systemctl stop pmem-agent
	rm /run/pmem-agent/*.page
	check "without its page" start_agent
	check_status 3 "the record is enough" pmemctl flush region0
	systemctl stop pmem-agent
	rm /run/pmem-agent/*.page
	printf x | dd of="$(echo /var/lib/pmem-agent/*.loss)" bs=1 seek=300 conv=notrunc status=none
	start_agent
	check_status 3 "a damaged record is a loss" pmemctl flush region0
	check_equal "known as such" "$(region_property LossOrigin)" record
	check "with a number beyond any" test "$(region_property Loss)" -gt 2
	check "that can be acknowledged" pmemctl acknowledge region0 --loss="$(region_property Loss)"
	check "durable then" pmemctl flush region0
	vm fsync fail 1 r0
	check_status 3 "control: lost" pmemctl flush region0
	systemctl stop pmem-agent
	rm /run/pmem-agent/*.page /var/lib/pmem-agent/*.loss
	start_agent
	check "without page and record it would not know" pmemctl flush region0
	;;
esac
finish
