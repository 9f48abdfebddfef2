# SPDX-License-Identifier: LGPL-2.1-or-later
# Part of pseries.sh: what the agent makes of the regions $a (raw), $b (devdax) and $c (synchronous).
start_agent
check_equal "H_SCM_FLUSH, raw: deep-flush" "$(method_of "$a")" deep-flush
check_equal "H_SCM_FLUSH, devdax: deep-flush" "$(method_of "$b")" deep-flush
check_equal "without H_SCM_FLUSH: cpu-flush" "$(method_of "$c")" cpu-flush

region=r0
flushed_once "raw, by the region's name" pmemctl flush "$a"
flushed_once "raw, by its device" pmemctl flush "/dev/pmem${a#region}"
region=r1
flushed_once "devdax, by the region's name" pmemctl flush "$b"
flushed_once "devdax, by its device" pmemctl flush "$dax"
check_status 20 "doctor on device-dax" pmemctl doctor "$dax"
check_output "libpmem2 takes a CPU flush for enough there" 'warning: libpmem2-granularity: '
check "which is not what the agent does" not grep -q devdax-unflushed "$work/last"

# Programs of libpmem2 on it: by itself, with libpmem-agent-pmem2, and with the preload library.
pmem2="python3 /root/guest/preload-pmem2.py $dax"
never_flushed "libpmem2 by itself calls it persisted" 0 $pmem2 persist
flushed_once "libpmem-agent-pmem2" example-pmem2 "$dax" text
check_output "pmem2 has it a matter of cache lines" 'granularity by pmem2: cache line'
check_output "the agent of pages" 'granularity by the agent: page'
flushed_once "pmem2_persist under pmemctl run" pmemctl run -- $pmem2 persist
flushed_once "pmem2_deep_flush under pmemctl run" pmemctl run -- $pmem2 deep-flush
check_output "succeeds" '^deep flush 0$'
flushed_once "fsync of device-dax under pmemctl run" pmemctl run -- python3 -c "import os
os.fsync(os.open('$dax', os.O_RDWR))"
vm fail r1 every >/dev/null
check_status 1 "an error of the host: libpmem-agent-pmem2" example-pmem2 "$dax" text
vm fail r1 off >/dev/null
check_output "says so" 'Input/output error'
never_flushed "pmem2_persist then ends the program" 134 pmemctl run -- $pmem2 persist
never_flushed "and the region has lost stores" 3 pmemctl flush "$b"
check "until somebody takes it upon himself" pmemctl acknowledge "$b" --loss=1
flushed_once "then it goes on" pmemctl run -- $pmem2 persist

region=r2
never_flushed "a synchronous region needs no flush by the agent" 9 pmemctl flush "$c"
check_status 20 "doctor on the synchronous region" pmemctl doctor "$c"
check_output "whose host has said nothing" 'warning: unattested-cpu-flush: '

kill $agent
wait $agent
region=r1
chmod 444 "/sys/bus/nd/devices/$b/deep_flush"
start_agent
never_flushed "deep_flush that can't be written: impossible" 12 pmemctl flush "$b"
check_status 21 "the doctor finds" pmemctl doctor "$b"
check_output "that it is closed" 'error: deep-flush-closed: '
kill $agent
wait $agent
chmod 644 "/sys/bus/nd/devices/$b/deep_flush"
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

check "the basis is watched" sh -c "pmemctl flush --json $b | grep -q watched"
vm fail r0 every >/dev/null
check_status 1 "an error that another program takes" python3 -c "import os
os.fsync(os.open('/dev/pmem${a#region}', os.O_RDWR))"
vm fail r0 off >/dev/null
check_status 3 "is a loss" pmemctl flush "$a"
check "which is acknowledged" pmemctl acknowledge "$a" --loss=1
check "and it can be flushed again" pmemctl flush "$a"
vm fail r0 every >/dev/null
check_status 3 "an error of the agent's own flush is a loss too" pmemctl flush "$a"
vm fail r0 off >/dev/null
check_status 3 "and remains one" pmemctl flush "$a"
check_status 21 "the doctor says so" pmemctl doctor "$a"
check_output "and how to end it" "pmemctl acknowledge $a --loss="
check "the other region has lost nothing" pmemctl flush "$b"

# For selftest/sysfs.
pmemctl doctor --record | sed 's/^/#record /'
kill $agent
wait $agent
