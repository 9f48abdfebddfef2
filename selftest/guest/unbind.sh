#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# A driver that is being unbound hangs in a flush, and holds the device's lock: who looks for regions then hangs too, and
# that is not the daemon.
. /root/guest/lib.sh

hangs() {	# a child of the agent, in its look at what the driver has locked
	pgrep -x pmem-scan
}
answers() {
	timeout 20 pmemctl flush region1 && timeout 20 pmemctl status region1 &&
		timeout 20 python3 /root/guest/ask-socket.py "$(vm dev r1)" | grep -q '^answer 0 '
}

start_agent
check "before: it answers" answers
namespace=/sys/bus/nd/devices/namespace0.0
vm fsync hang 1 r0
basename $namespace >/sys/bus/nd/drivers/nd_pmem/unbind &
vm fsync wait-hung r0 >/dev/null
cat $namespace/mode >"$work/mode" &
reader=$!
check "who reads what a scan reads waits in the kernel" wait_until 10 grep -q '^State:.*D' /proc/$reader/status

udevadm trigger --action=change --settle "$(readlink -f /sys/bus/nd/devices/region1)"
check "something has changed: the daemon answers, on D-Bus and at the socket" answers
check "who hangs is a child" wait_until 10 hangs
check "which is reported" wait_until 20 sh -c "pmemctl status 2>&1 | grep -q 'has not ended for'"
check "in the journal" sh -c 'journalctl -q -u pmem-agent | grep -q "has not ended for"'
udevadm trigger --action=change --settle "$(readlink -f /sys/bus/nd/devices/region1)"
check "something has changed once more: the daemon answers" answers
check_equal "no second one hangs beside it" "$(hangs | wc -l)" 1

vm region add virtio-pmem:64M >/dev/null
check "a region is plugged in meanwhile" wait_until 20 test -e /sys/bus/nd/devices/region2
check "the daemon answers" answers
check_status 4 "of the new one it does not say that it is no persistent memory" timeout 5 pmemctl flush "$(vm dev r2)"
check "restart returns" timeout 60 systemctl restart pmem-agent
check_status 4 "the next agent knows no region, and says so" timeout 5 pmemctl flush "$(vm dev r1)"
check_status 4 "it does not hang" timeout 5 pmemctl status

vm fsync release r0
check "released: every region is there" wait_until 20 sh -c '[ "$(pmemctl list | grep -c virtio-pmem)" = 3 ]'
check "the daemon answers" answers
check "the new region is flushed" pmemctl flush "$(vm dev r2)"
check "nothing is left to report" wait_until 20 sh -c "[ \"\$(busctl get-property io.pmem.Agent1 /io/pmem/Agent1 io.pmem.Agent1.Manager ScanProblem)\" = 's \"\"' ]"
check "no child is left" wait_until 20 not hangs
finish
