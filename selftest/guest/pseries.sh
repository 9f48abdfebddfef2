#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# papr_scm, in the guest of selftest/ppc64el/run: r0 and r1 want H_SCM_FLUSH, r2 doesn't. Then the unit tests on ppc64el.
. /root/guest/lib.sh

# Their numbers follow the order in which the device tree has them.
region_of() {
	local r
	for r in /sys/bus/nd/devices/region*; do
		[ "$(cat "$r/of_node/ibm,unit-guid")" = "00000000-0000-4000-8000-$(printf %012d $((${1#r} + 1)))" ] && basename "$r"
	done
}

method_of() {
	pmemctl list --json | python3 -c '
import json, sys
print([r["method"] for r in json.load(sys.stdin)["regions"] if r["region"] == sys.argv[1]][0])' "$1"
}

# flushed_once TEXT REGION COMMAND...: it succeeds, with one flush of the host
flushed_once() {
	local text=$1 before
	before=$(vm count "$2")
	shift 2
	check "$text" "$@"
	check_equal "with one flush of the host" $(($(vm count "$region") - before)) 1
}

namespace() {
	ndctl create-namespace -f "$@" >"$work/ndctl" 2>&1 || cat "$work/ndctl"
	grep -Eo '"(dev|blockdev|chardev)":"[^"]*"' "$work/ndctl" | sed 's/.*:"\(.*\)"/\1/'
}

start_agent() {
	pmem-agent 2>"$work/agent.log" &
	agent=$!
	wait_until 60 pmemctl list
}

a=$(region_of r0) b=$(region_of r1) c=$(region_of r2)
echo "# $(uname -rm), r0 is $a, r1 is $b, r2 is $c"
namespace -r "$a" -m raw >/dev/null
namespace -r "$b" -m devdax >/dev/null
namespace -r "$c" -m fsdax >/dev/null
start_agent
check_equal "H_SCM_FLUSH, raw: deep-flush" "$(method_of "$a")" deep-flush
check_equal "H_SCM_FLUSH, devdax: deep-flush" "$(method_of "$b")" deep-flush
check_equal "without H_SCM_FLUSH: cpu-flush" "$(method_of "$c")" cpu-flush

region=r0
flushed_once "raw, by the region's name" r0 pmemctl flush "$a"
flushed_once "raw, by its device" r0 pmemctl flush "/dev/pmem${a#region}"
region=r1
flushed_once "devdax, by the region's name" r1 pmemctl flush "$b"
flushed_once "devdax, by its device" r1 pmemctl flush "/dev/dax${b#region}.0"
before=$(vm count r2)
check_status 9 "a synchronous region needs no flush by the agent" pmemctl flush "$c"
check_equal "and the host gets none" "$(vm count r2)" "$before"
check_status 20 "doctor on device-dax" pmemctl doctor "/dev/dax${b#region}.0"
check_output "libpmem2 takes a CPU flush for enough there" 'warning: libpmem2-granularity: '
check "which is not what the agent does" not grep -q devdax-unflushed "$work/last"
check_status 20 "doctor on the synchronous region" pmemctl doctor "$c"
check_output "whose host has said nothing" 'warning: unattested-cpu-flush: '

kill $agent
wait $agent
namespace -e "namespace${a#region}.0" -m fsdax >/dev/null
start_agent
check_equal "H_SCM_FLUSH, fsdax: deep-flush" "$(method_of "$a")" deep-flush
mkfs.ext4 -q -F -b 65536 -E lazy_itable_init=0,lazy_journal_init=0 "/dev/pmem${a#region}" 2>&1 | grep -v Warning
check "ext4 with DAX" mount -t ext4 -o dax=always "/dev/pmem${a#region}" /mnt
date >/mnt/file
before=$(vm count r0)
check "a file on it" pmemctl flush /mnt/file
check "reaches the host" test "$(vm count r0)" -gt "$before"
pmemctl doctor /mnt/file >"$work/out" 2>&1
check_output "MAP_SYNC is refused there" 'DAX, MAP_SYNC is refused'
check "and nothing is wrong" not grep -Eq '^error:' "$work/last"
umount /mnt

vm fail r0 every >/dev/null
check_status 3 "an error of the host is a loss" pmemctl flush "$a"
vm fail r0 off >/dev/null
check_status 3 "and remains one" pmemctl flush "$a"
check_status 21 "the doctor says so" pmemctl doctor "$a"
check_output "and how to end it" "pmemctl acknowledge $a --loss="
check "the other region has lost nothing" pmemctl flush "$b"

# For selftest/sysfs.
pmemctl doctor --record | sed 's/^/#record /'
kill $agent
wait $agent

# Built for this machine, and run on it: no emulation of system calls. Left out is what does not pass in a guest without
# systemd, with a kernel of few features and regions of its own; why each doesn't has not been looked into.
cd /root/tree || exit 1
for program in build/test-* build/sim-*; do
	case $program in
	*/test-pmem2) continue ;; # dcbstps, which the emulated CPU does not know
	*/test-bus | */test-client | */test-conf | */test-log | */test-manager | */test-pmemctl | */test-preload | */test-run | \
		*/test-signal | */test-sock | */test-stats | */test-threads) continue ;;
	esac
	timeout 60 "$program" >"$work/out" 2>&1
	status=$?
	[ $status = 0 ] || echo "status $status" >>"$work/out"
	grep -E '^1\.\.0' "$work/out" | grep -i skip && { skip "$program" "$(sed -n 's/^1\.\.0.*SKIP needs //p' "$work/out")"; continue; }
	report $status "$program on $(uname -m): $(grep -c '^ok' "$work/out") checks" "$work/out"
done
finish
