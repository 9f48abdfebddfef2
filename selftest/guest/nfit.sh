#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# NFIT with flush hint addresses, made up by the kernel's own test: its modules are in /root/nfit, see selftest/nfit/build.
. /root/guest/lib.sh

tracing=/sys/kernel/tracing

# regions_of METHOD: those that the agent flushes so
regions_of() {
	pmemctl list --json | python3 -c '
import json, sys
print(*[r["region"] for r in json.load(sys.stdin)["regions"] if r["method"] == sys.argv[1]])' "$1"
}

# How often the kernel has written to the hints of a region.
hints() {
	awk '$1 == "hint" { print $2 }' $tracing/kprobe_profile
}

# In place of those that are there for the machine's ACPI.
modprobe -r nfit nd_pmem nd_btt dax_pmem device_dax libnvdimm
for module in nfit_test_iomap libnvdimm nd_btt nd_pmem device_dax dax_pmem nfit nfit_test; do
	insmod "/root/nfit/$module.ko" || { report 1 "insmod $module"; finish; }
done
udevadm settle
[ -d $tracing/events ] || mount -t tracefs tracefs $tracing
echo 'p:hint libnvdimm:generic_nvdimm_flush' >$tracing/kprobe_events
echo 1 >$tracing/events/kprobes/hint/enable
start_agent

set -- $(regions_of deep-flush)
check_equal "the regions with hints" "$(grep -lx 1 /sys/bus/nd/devices/region*/deep_flush | wc -l)" $#
check "there are some" [ $# -gt 0 ]
for region; do
	before=$(hints)
	check "deep flush of $region" pmemctl flush "$region"
	check_equal "has written to its hints once" $(($(hints) - before)) 1
	check_status 0 "doctor on it" pmemctl doctor "$region"
	check_output "says how" 'nfit, synchronous, deep-flush'
done
chmod 444 "/sys/bus/nd/devices/$1/deep_flush"
start_agent restart
before=$(hints)
check_status 9 "hints that the agent may not write: the CPU's own flush" pmemctl flush "$1"
check_equal "has written to none" $(($(hints) - before)) 0
chmod 664 "/sys/bus/nd/devices/$1/deep_flush"

set -- $(regions_of impossible)
check "and there are DIMMs that aren't armed" [ $# -gt 0 ]
check_status 12 "which is impossible" pmemctl flush "$1"
check_status 21 "as the doctor says" pmemctl doctor "$1"
check_output "of it" 'error: unarmed: '

# For selftest/sysfs.
pmemctl doctor --record | sed 's/^/#record /'
finish
