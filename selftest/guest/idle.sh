#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# An idle agent uses nothing: no wake-ups but the watchdog's, at most 10 MiB, 2 MiB a worker.
. /root/guest/lib.sh

start_agent
pmemctl flush -q --all
agent=$(systemctl show -P MainPID pmem-agent)
wakeups() {
	awk '/ctxt_switches/ { n += $2 } END { print n }' "/proc/$agent/status"
}
private() {
	awk '/^Private/ { n += $2 } END { print n }' "/proc/$1/smaps_rollup"
}

# The signals that report the flush come within 100 ms of it; then nothing may come. This is a measurement, not a wait.
read -r -t 1 -u 9
before=$(wakeups)
read -r -t 12 -u 9
after=$(wakeups)
check "12 s idle: $((after - before)) wake-ups, the watchdog's" test $((after - before)) -le 2

rss=$(awk '/^VmRSS/ { print $2 }' "/proc/$agent/status")
check "RSS of the daemon: $rss KiB" test "$rss" -le 10240
for worker in $(pgrep -P "$agent" pmem-worker); do
	check "a worker, beyond shared pages: $(private "$worker") KiB" test "$(private "$worker")" -le 2048
done
check "there are workers" pgrep -P "$agent" pmem-worker

# The control: the count does see wake-ups.
before=$(wakeups)
pmemctl flush -q --all
check "control: a flush is seen as wake-ups" test "$(wakeups)" -gt "$before"
finish
