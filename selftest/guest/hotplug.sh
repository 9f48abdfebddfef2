#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Regions come and go under load: queued callers get ENODEV, nothing crashes, nothing leaks (run it with the ASan build).
. /root/guest/lib.sh

# The sanitizers want what the unit forbids: LeakSanitizer traces the process when it ends.
mkdir -p /run/systemd/system/pmem-agent.service.d
cat >/run/systemd/system/pmem-agent.service.d/sanitizer.conf <<'END'
[Service]
SystemCallFilter=
MemoryDenyWriteExecute=no
Environment=ASAN_OPTIONS=detect_leaks=1:abort_on_error=0:exitcode=99
Restart=no
END
systemctl daemon-reload
start_agent
agent=$(systemctl show -P MainPID pmem-agent)

load() {
	while [ ! -e "$work/enough" ]; do
		pmemctl flush --all >/dev/null 2>"$work/load.$1"
		echo $? >>"$work/statuses.$1"
	done
}
driver() {	# of the virtio device that region N hangs from
	readlink -f "/sys/bus/nd/devices/$1" | grep -o '.*/virtio[0-9]*' | tail -n 1
}
for i in 1 2 3; do load $i & done

for turn in 1 2 3; do
	region=$(pmemctl list --json | python3 -c 'import json, sys; print([r["region"] for r in json.load(sys.stdin)["regions"]][0])')
	device=$(driver "$region")
	basename "$device" >/sys/bus/virtio/drivers/virtio_pmem/unbind
	check "turn $turn: the region is gone" wait_until 30 sh -c "! pmemctl list | grep -q '$region '"
	basename "$device" >/sys/bus/virtio/drivers/virtio_pmem/bind
	check "turn $turn: and back" wait_until 30 sh -c 'pmemctl list | grep -q virtio-pmem'
done
vm region add virtio-pmem:64M >/dev/null
check "another one is plugged in" wait_until 30 sh -c '[ "$(pmemctl list | grep -c virtio-pmem)" = 2 ]'
touch "$work/enough"
wait

# A caller that is queued behind a hanging round when its region goes
second=$(pmemctl list --json | python3 -c 'import json, sys; print([r["region"] for r in json.load(sys.stdin)["regions"]][1])')
device=$(driver "$second")
ticket=$(pmemctl flush --no-wait "$second")
check "a flush that nobody has waited for" pmemctl flush "$second"
vm fsync hang 1 r1
pmemctl flush "$second" >"$work/first" 2>&1 &
first=$!
vm fsync wait-hung r1 >/dev/null
pmemctl flush "$second" >"$work/queued" 2>&1 &
queued=$!
wait_until 20 sh -c "[ \"\$(busctl get-property io.pmem.Agent1 /io/pmem/Agent1/region/$second io.pmem.Agent1.Region Waiting)\" = 'u 2' ]"
basename "$device" >/sys/bus/virtio/drivers/virtio_pmem/unbind &
wait $queued
check_equal "who is queued when the region goes gets ENODEV" $? 6
check_status 4 "what was confirmed, and might have been lost unseen since, is unknown" pmemctl wait "$ticket"
vm fsync release r1
wait $first
first=$?
# Durable; lost, where the driver gave up first; unknown, where the disk had gone before the worker looked at its queue again.
check "the round in flight keeps its own result: exit $first" sh -c "case $first in 0 | 3 | 4) ;; *) exit 1 ;; esac"
grep . "$work/first" | sed 's/^/# the round in flight: /'

check_equal "no crash: it is the same process" "$(systemctl show -P MainPID pmem-agent)" "$agent"
check "it stops in order" systemctl stop pmem-agent
check_equal "no leak, no error of a sanitizer" "$(systemctl show -P ExecMainStatus pmem-agent)" 0
journalctl -q -u pmem-agent | grep -E 'Sanitizer|runtime error|SUMMARY' >"$work/out"
check_equal "nor a word of it in the journal" "$(cat "$work/out")" ""
cat "$work"/statuses.* | sort | uniq -c | sed 's/^/# load: times, status: /'
finish
