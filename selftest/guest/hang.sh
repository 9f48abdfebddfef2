#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# The host does not answer: the other region does not notice, nobody is told durable, no second flush goes beside.
. /root/guest/lib.sh

start_agent
mkdax "$(vm dev r0)" /mnt
mkdir -p /mnt1
mkdax "$(vm dev r1)" /mnt1
check "both regions flush" pmemctl flush /mnt /mnt1

since=$(vm host count)
busctl monitor --json=short "--match=type='signal',interface='io.pmem.Agent1.Region'" >"$work/signals" 2>&1 &
wait_until 10 grep -q Monitoring "$work/signals"
vm fsync hang 1 r0
pmemctl flush region0 >"$work/hanging" 2>&1 &
hanging=$!
vm fsync wait-hung r0 >/dev/null
check "the second region still flushes" timeout 10 pmemctl flush /mnt1
check "status answers within a second" timeout 1 pmemctl status region1
pmemctl status >"$work/out" 2>&1
check_output "and says for how long region0 waits" 'region0.*(in flight|stalled|for)'
check "the host reads STALLED" vm host wait '"STALLED".*"region0"' --since "$since" --timeout 30
check "the journal has the stall" sh -c 'journalctl -q -u pmem-agent | grep -q "region0: the host has not answered"'
check "so has the bus" wait_until 10 grep -q '"member":"Stalled"' "$work/signals"
pmemctl flush region0 >"$work/queued" 2>&1 &
queued=$!
wait_until 10 sh -c '[ "$(busctl get-property io.pmem.Agent1 /io/pmem/Agent1/region/region0 io.pmem.Agent1.Region Waiting)" = "u 2" ]'

worker=$(od -A n -t u4 -j 288 -N 4 "$(region_property Page)")
flushes=$(vm fsync count r0)
begun=$SECONDS
check "restart returns" timeout 20 systemctl restart pmem-agent
check "within its stop time" test $((SECONDS - begun)) -le 17
wait $hanging
check_equal "who waited is told unknown" $? 4
wait $queued
check_equal "who was queued too" $? 4
check "the worker of the old agent is still there" sh -c "kill -0 $worker"

pmemctl flush region0 >"$work/late" 2>&1 &
late=$!
wait_until 10 sh -c '[ "$(busctl get-property io.pmem.Agent1 /io/pmem/Agent1/region/region0 io.pmem.Agent1.Region Waiting)" = "u 1" ]'
check_equal "the new agent sees the stall" "$(region_property State)" stalled
check_equal "and begins no second flush beside it" "$(vm fsync count r0)" "$flushes"
check "the second region flushes with the new agent" timeout 10 pmemctl flush /mnt1

if [ "${END:-fail}" = fail ]; then
	vm fsync release fail r0
	wait $late
	check_equal "a late error of the old worker is a loss in the new agent" $? 3
	check "the host reads LOST" vm host wait '"LOST".*"region0"' --since "$since" --timeout 10
	check "who listens on the bus is told of it" wait_until 10 grep -q '"member":"DurabilityLost"' "$work/signals"
	check "and of no recovery" not grep -q '"member":"Recovered"' "$work/signals"
	check_status 3 "and it stays" pmemctl flush region0
else
	vm fsync release r0
	wait $late
	check_equal "after a late success the queue goes on" $? 0
	check "the host reads RECOVERED" vm host wait '"RECOVERED".*"region0"' --since "$since" --timeout 10
	check "so does who listens on the bus" wait_until 10 grep -q '"member":"Recovered"' "$work/signals"
	check_equal "with a flush of its own" "$(vm fsync count r0)" $((flushes + 1))
fi
check "the other one never noticed" pmemctl flush region1
finish
