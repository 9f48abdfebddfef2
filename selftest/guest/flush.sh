#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# A filesystem on virtio-pmem is flushed, the host confirms it, and reads so on its port.
. /root/guest/lib.sh

check "the service starts" start_agent
check "the host is greeted" vm host wait '"pmem-agent".*"region0".*"method":"block"' --timeout 30
before=$(vm fsync count r0)
check "the region by name" pmemctl flush region0
check_equal "is one host flush" "$(($(vm fsync count r0) - before))" 1
check "ext4 with DAX is mounted" mkdax "$(vm dev r0)" /mnt
check "pmemctl list names the region, its method and why" pmemctl list
check_output "and says block" 'region0.*virtio-pmem.*block'

address=$(vm region address r0)
echo some data >/mnt/file
before=$(vm fsync count r0) begun=$(vm time) since=$(vm host count)
check "pmemctl flush of the mount point" pmemctl flush /mnt
check_output "names scope and basis" 'filesystem.*watched|watched.*filesystem'
check "a host flush began after the command did" test "$(vm fsync count r0)" -gt "$before"
vm fsync log r0 >"$work/log"
check "and fsync.log has it as done well" python3 - "$work/log" "$begun" <<'END'
import json, sys
rows = [json.loads(line) for line in open(sys.argv[1])]
sys.exit(not any(row["time"] > float(sys.argv[2]) and row["result"] == 0 for row in rows))
END
check "the host reads DURABLE" vm host wait '"DURABLE"' --since "$since" --timeout 10
check_output "with the guest-physical address" "\"address\": *$((address))\b"
check_output "its scope, target and epoch" '"scope": *"filesystem".*"target": *"/mnt".*"epoch": *[1-9]'

before=$(vm fsync count r0) since=$(vm host count)
check "FlushPath over busctl as root" busctl call io.pmem.Agent1 /io/pmem/Agent1 io.pmem.Agent1.Manager FlushPath 'sa{sv}' /mnt 0
check "reaches the host" test "$(vm fsync count r0)" -gt "$before"
check "and the host reads DURABLE" vm host wait '"DURABLE"' --since "$since" --timeout 10

before=$(vm fsync count r0)
check "one file" pmemctl flush /mnt/file
check "reaches the host" test "$(vm fsync count r0)" -gt "$before"
check "all regions" pmemctl flush --all
before=$(vm fsync count r0)
check "submitted, not waited for" sh -c 'pmemctl flush --no-wait /mnt region0 >/run/tickets'
check "both are durable in the end" sh -c 'pmemctl wait $(cat /run/tickets)'
check_output "as a filesystem and as a region" 'durable \(filesystem.*watched'
check "flushes have reached the host" test "$(vm fsync count r0)" -gt "$before"
check_status 4 "and a ticket is good once" sh -c 'pmemctl wait $(head -n 1 /run/tickets)'
check "numbers for a node exporter, as a whole file" pmemctl stats --openmetrics --output=/run/pmem.prom
check_equal "ends where it should" "$(tail -n 1 /run/pmem.prom)" "# EOF"
check "has syncfs among the calls" grep -q '^pmem_agent_calls_total{region="region0",call="syncfs"} [1-9]' /run/pmem.prom
check "and as many rounds as confirmed" sh -c \
	'[ $(grep -E "^pmem_agent_rounds_(begun|confirmed)_total" /run/pmem.prom | cut -d" " -f2 | uniq | wc -l) = 1 ]'
check "a picture for people" pmemctl stats region0
check_output "of how long it took" '#####'
check "JSON for scripts" sh -c 'pmemctl flush --json /mnt | python3 -m json.tool'

since=$(vm host count)
check "the host asks for a flush" vm host send '{"execute":"flush","arguments":{"path":"/mnt"},"id":"q1"}'
check "and gets the epoch" vm host wait '"return".*"epoch".*"id": *"q1"' --since "$since" --timeout 10
vm host send '{"execute":"query","id":7}'
check "the host asks for the state" vm host wait '"return".*"state": *"idle".*"id": *7' --since "$since" --timeout 10
vm host send '{"execute":"format-c","id":8}'
check "an unknown command is an error by class" vm host wait '"CommandNotFound".*"id": *8' --since "$since" --timeout 10

# Flushes that do not reach the host are never called durable.
umount /mnt
mount -o dax=always,nobarrier "$(vm dev r0)" /mnt
check_status 11 "mounted nobarrier: refused as not flushed" pmemctl flush /mnt
check "and counted as that" sh -c 'pmemctl stats --openmetrics | grep -q "answer=\"NotFlushed\"} [1-9]"'
umount /mnt
mount -o dax=always,ro "$(vm dev r0)" /mnt
check_status 11 "mounted read-only: refused" pmemctl flush /mnt
umount /mnt
mount -o dax=always "$(vm dev r0)" /mnt
echo "write through" >/sys/block/pmem0/queue/write_cache
check "write through: not durable" not pmemctl flush /mnt
check "write through: not durable, the region either" not pmemctl flush region0
echo "write back" >/sys/block/pmem0/queue/write_cache
check "write back again: durable" wait_until 10 pmemctl flush /mnt
# Nobody's table of mounts tells of that.
unshare --mount mount -o remount,nobarrier /mnt
check_status 11 "remounted nobarrier in another mount namespace: refused" pmemctl flush /mnt
unshare --mount mount -o remount,barrier /mnt
check "and barrier again: durable" pmemctl flush /mnt
vm fsync hang 1 r0
pmemctl flush /mnt/file >"$work/remounted" 2>&1 &
flush=$!
vm fsync wait-hung r0 >/dev/null
check "remounted nobarrier in mid-flush, and barrier again" timeout 10 unshare --mount sh -c 'mount -o remount,nobarrier /mnt && mount -o remount,barrier /mnt'
vm fsync release r0
wait $flush
check_equal "it is unknown, though nothing is to be seen of that" $? 4
cp "$work/remounted" "$work/out"
check_output "and says why" 'was remounted'
check "the next one is durable" pmemctl flush /mnt/file

# A change in mid-flush: the flush may not have reached the host. Newer kernels hold the change back until the flush has
# ended, and 7.x whoever reads the attribute too: that may not be the daemon.
vm fsync hang 1 r0
pmemctl flush region0 >"$work/changed" 2>&1 &
flush=$!
vm fsync wait-hung r0 >/dev/null
echo "write through" >/sys/block/pmem0/queue/write_cache &
pmemctl flush region0 >"$work/queued" 2>&1 &
wait_until 10 sh -c '[ "$(busctl get-property io.pmem.Agent1 /io/pmem/Agent1/region/region0 io.pmem.Agent1.Region Waiting)" = "u 2" ]'
check "write through in mid-flush: the daemon answers" timeout 5 pmemctl list
timeout 2 busctl call io.pmem.Agent1 /io/pmem/Agent1 io.pmem.Agent1.Manager FlushPath 'sa{sv}' /mnt 0 >"$work/path" 2>&1
check "also when another request has been resolved and queued" timeout 5 pmemctl list
vm fsync release r0
wait $flush
status=$?
case $(uname -r) in
6.1.*) check_equal "it is unknown, though the call succeeded" $status 4 ;;
esac
wait	# for who was queued, and for the change
check_status 11 "who comes after that: not flushed" pmemctl flush region0
echo "write back" >/sys/block/pmem0/queue/write_cache
check "write back again: durable" wait_until 10 pmemctl flush region0

# Where it isn't ours to say
check_status 7 "a path on ordinary storage" pmemctl flush /dev/shm
check "is synced with --fallback" pmemctl flush --fallback /dev/shm
check_output "which says so" 'not through a region'
check_status 10 "an overlay, which hides what is below it" pmemctl flush /root
check_status 15 "a missing path" pmemctl flush /mnt/nothing
check_status 2 "a wrong option" pmemctl flush --nonsense
check_status 16 "no permission" setpriv --reuid=65534 --clear-groups pmemctl flush region0
chmod 644 /mnt/file
check "who can open a file may flush it" setpriv --reuid=65534 --clear-groups pmemctl flush /mnt/file

since=$(vm host count)
check "the service stops" systemctl stop pmem-agent
check "and tells the host a clean end" vm host wait '"SHUTDOWN".*"clean": *true' --since "$since" --timeout 10
check_status 1 "pmemctl says that no agent answers" env DBUS_SYSTEM_BUS_ADDRESS=unix:path=/nonexistent pmemctl status
finish
