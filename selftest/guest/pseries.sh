#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# papr_scm, in the guest of selftest/cross/pseries: r0 and r1 want H_SCM_FLUSH, r2 doesn't. Then the unit tests on ppc64el:
# pseries.sh [TEST...] runs all there are, or only those.
. /root/guest/lib.sh

# Their numbers follow the order in which the device tree has them.
region_of() {
	local r
	for r in /sys/bus/nd/devices/region*; do
		[ "$(tr -d '\0' <"$r/of_node/ibm,unit-guid")" = "00000000-0000-4000-8000-$(printf %012d $((${1#r} + 1)))" ] && basename "$r"
	done
}

method_of() {
	pmemctl list --json | python3 -c '
import json, sys
print([r["method"] for r in json.load(sys.stdin)["regions"] if r["region"] == sys.argv[1]][0])' "$1"
}

# flushed_once TEXT COMMAND...: it succeeds, with one flush of the host, of $region
flushed_once() {
	local text=$1 before
	before=$(vm count "$region")
	shift
	check "$text" "$@"
	check_equal "with one flush of the host" $(($(vm count "$region") - before)) 1
}

# never_flushed TEXT STATUS COMMAND...: it ends so, and the host has got nothing
never_flushed() {
	local text=$1 before
	before=$(vm count "$region")
	shift
	check_status "$1" "$text" "${@:2}"
	check_equal "and the host has got no flush" $(($(vm count "$region") - before)) 0
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

pmem-agent-witness
a=$(region_of r0) b=$(region_of r1) c=$(region_of r2) dax=/dev/dax$(region_of r1 | tr -d a-z).0
echo "# $(uname -rm), r0 is $a, r1 is $b, r2 is $c"
namespace -r "$a" -m raw >/dev/null
namespace -r "$b" -m devdax >/dev/null
disk=$(namespace -r "$c" -m fsdax | tail -n 1)
[ $# -gt 0 ] || . /root/guest/pseries-regions.sh

# Built for this machine, and run on it, with no emulation of system calls. What they skip they name.
# They have regions of their own: those of the machine are put out of their sight.
cd /root/tree || exit 1
mount -t tmpfs none /sys/class/nd
# What is served to a guest has to be on a disk; all else here is memory.
mkfs.ext4 -q -F "/dev/$disk" && mount "/dev/$disk" /var/tmp || exit 1
[ $# -gt 0 ] && programs=("${@/#/build/}") || programs=(build/test-* build/sim-*)
export SELFTEST_PATIENCE=10 HOSTILE_SEC=10
for program in "${programs[@]}"; do
	# It starts /bin/true and sh with a library preloaded; here they are busybox, which is static.
	[ "$program" = build/test-run ] && { skip "$program" "dynamically linked /bin/true and /bin/sh in the guest"; continue; }
	timeout 600 "$program" >"$work/out" 2>&1
	status=$?
	echo "status $status" >>"$work/out"
	if grep -q '^1\.\.0.*SKIP needs ' "$work/out"; then
		skip "$program" "$(sed -n 's/^1\.\.0.*SKIP needs //p' "$work/out")"
		continue
	fi
	report $status "$program on $(uname -m): $(grep -c '^ok' "$work/out") checks" "$work/out"
	grep -i '^ok.*# skip' "$work/out" | sed 's/^ok [0-9]*//; s/^/# skipped:/'
done
finish
