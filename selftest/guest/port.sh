#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Whatever the host does with its end of the port, flushes go on, and the agent's memory stays bounded.
. /root/guest/lib.sh

memory() {
	awk '/^VmRSS/ { print $2 }' "/proc/$(systemctl show -P MainPID pmem-agent)/status"
}
cpu_usec() {
	systemctl show -P CPUUsageNSec pmem-agent | sed 's/...$//'
}
flush_often() {
	for _ in $(seq "$1"); do pmemctl flush -q region0 || return; done
}

vm host disconnect
start_agent
check "no host: flushes go on" flush_often 5
before=$(cpu_usec)
read -r -t 3 -u 9
after=$(cpu_usec)
check "and no CPU is used while it is absent (${before} to ${after} us)" test $((after - before)) -lt 20000

since=$(vm host count)
vm host connect
check "a late host is greeted" vm host wait '"pmem-agent".*"missed": *[1-9]' --since "$since" --timeout 20

vm host send-raw "$(printf '{"execute":"qu' | base64)"
vm host disconnect
check "disconnected in mid-line: flushes go on" flush_often 2
since=$(vm host count)
vm host connect
vm host wait '"pmem-agent"' --since "$since" --timeout 20 >/dev/null
vm host send '{"execute":"query","id":"next"}'
check "the next host is understood" vm host wait '"return".*"id": *"next"' --since "$since" --timeout 20

since=$(vm host count)
vm host send "{\"execute\":\"query\",\"id\":\"$(printf '%300s' | tr ' ' x)\"}"
check "an id that would have to be kept is bounded" vm host wait '"error".*id is longer' --since "$since" --timeout 20

start=$(memory)
vm host pause
vm host send '{"execute":"query"}'
for _ in $(seq 30); do vm host send '{"execute":"query"}{"x":'; done
check "a host that never reads: flushes go on" flush_often 60
vm host flood 1048576
check "1 MiB without a newline: flushes go on" flush_often 3
head -c 65536 /dev/urandom | base64 -w0 >"$work/noise"
for part in $(fold -w 3000 "$work/noise"); do vm host send-raw "$part"; done
check "binary: flushes go on" flush_often 3
check "memory stays bounded ($start to $(memory) KiB)" test "$(memory)" -lt $((start + 1024))

since=$(vm host count)
vm host resume
vm host send-raw "$(printf '\n\377' | base64)"
check "0xFF resyncs" vm host wait '"pmem-agent"' --since "$since" --timeout 20
vm host send '{"execute":"query","id":"after"}'
check "and then all is well" vm host wait '"return".*"id": *"after"' --since "$since" --timeout 20

for _ in 1 2 3 4 5; do
	vm host disconnect
	vm host connect
done
since=$(vm host count)
vm host send-raw "$(printf '\377' | base64)"
check "after coming and going too" vm host wait '"pmem-agent"' --since "$since" --timeout 20

since=$(vm host count) first=$(region_property Epoch) begun=$SECONDS
/root/guest/ask-socket.py --often 400 "$(vm dev r0)"
check "under load the last epoch is delivered" \
	vm host wait "\"DURABLE\".*\"epoch\": *$(region_property Epoch)\\b" --since "$since" --timeout 10
rounds=$(($(region_property Epoch) - first))
told=$(vm host lines --since "$since" | grep -c '"DURABLE"')
echo "# $rounds rounds in $((SECONDS - begun)) s, told in $told events"
check "in no more than ten events a second" test "$told" -le $((10 * (SECONDS - begun + 1)))
check "which are fewer than the rounds" test "$told" -lt "$rounds"

vm port remove
wait_until 20 test ! -e /dev/virtio-ports/io.pmem.agent.0
check "the port is unplugged: flushes go on" flush_often 2
since=$(vm host count)
vm port add
check "plugged in again: the host is greeted" vm host wait '"pmem-agent"' --since "$since" --timeout 30
finish
