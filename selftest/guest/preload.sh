#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Programs that can't be changed, under `pmemctl run`, on ext4 with DAX.
. /root/guest/lib.sh

run="pmemctl --quiet run --"
sqlite="python3 /root/guest/preload-sqlite.py"
# requests SCOPE...: how many the agent has had
requests() {
	pmemctl stats --json region0 | python3 -c 'import json, sys
requests = json.load(sys.stdin)["regions"][0]["requests"]
requests = dict(line.split() for line in requests) if isinstance(requests, list) else requests
print(sum(int(requests[scope]) for scope in sys.argv[1:]))' "$@"
}
is_there() {
	busctl status io.pmem.Agent1
}
kill_agent() {
	local pid
	pid=$(systemctl show -P MainPID pmem-agent)
	systemctl reset-failed pmem-agent # systemd starts nothing that has been started five times in ten seconds
	kill -KILL "$pid"
	wait_until 30 sh -c "p=\$(systemctl show -P MainPID pmem-agent); [ \$p != 0 ] && [ \$p != $pid ]"
}

systemctl is-system-running --wait >/dev/null
check "the agent runs" wait_until 30 is_there
check "ext4 with DAX is mounted" mkdax "$(vm dev r0)" /mnt
mkdir /mnt/d
head -c 65536 /dev/zero >/mnt/d/file
sync

# ---- calls ----

before=$(requests file file-data filesystem)
check "without pmemctl run" sync /mnt/d/file
check_equal "the agent is not asked" "$(requests file file-data filesystem)" "$before"
before=$(requests file)
check "fsync" $run sync /mnt/d/file
check_equal "is a flush of the file" "$(requests file)" $((before + 1))
before=$(requests file-data)
check "fdatasync" $run sync -d /mnt/d/file
check_equal "is one of its data" "$(requests file-data)" $((before + 1))
check "msync" $run python3 -c 'import mmap
f = open("/mnt/d/file", "r+b")
m = mmap.mmap(f.fileno(), 65536)
m[100] = 1
m.flush()'
check_equal "is one of its data" "$(requests file-data)" $((before + 2))
before=$(requests filesystem)
check "syncfs" $run sync -f /mnt/d
check_equal "is one of the filesystem" "$(requests filesystem)" $((before + 1))
before=$(requests file file-data filesystem)
echo x >/root/file
check "a file elsewhere" $run sync /root/file
check "and its filesystem" $run sync -f /root/file
check "the block device" $run sync "$(vm dev r0)"
check_equal "are nothing for the agent" "$(requests file file-data filesystem)" "$before"
check_equal "as is what runs by itself" "$($run sh -c 'sync /mnt/d/nothing 2>&1; sh -c "exit 7"; echo $?')" \
	"$(sh -c 'sync /mnt/d/nothing 2>&1; sh -c "exit 7"; echo $?')"
check "dd asks for sync of both kinds" $run dd if=/dev/zero of=/mnt/d/dd bs=64k count=4 conv=fsync,fdatasync
check "and has been routed" test "$(requests file file-data)" -gt "$before"
if dax=$(vm dev r1) && [ -c "$dax" ]; then
	check_status 1 "fsync of device-dax without a flush" $run python3 -c "import os
os.fsync(os.open('$dax', os.O_RDWR))"
	check_output "is EIO" 'Errno 5'
	check "libpmem2 by itself" python3 /root/guest/preload-pmem2.py "$dax"
	check_equal "has it that it is durable" "$(tr '\n' ' ' <"$work/out")" "deep flush 0 persisted "
	check_status 134 "under pmemctl run it ends the program" $run python3 /root/guest/preload-pmem2.py "$dax"
	check_output "where it can't return an error, which is EIO" 'deep flush -5'
	check_output "and says why" "pmem2_persist: stores can't be made durable: Input/output error"
fi

# ---- what the manual pages say ----

/root/load-rows /mnt/d/file >"$work/bare" 2>&1
before=$(requests file-data)
$run /root/load-rows /mnt/d/file >"$work/ours" 2>&1
check "each of $(wc -l <"$work/bare") cases ends as without" diff "$work/bare" "$work/ours"
check "there are some" test "$(wc -l <"$work/bare")" -ge 60
check "and were routed" test "$(requests file-data)" -gt $((before + 500))

# ---- a mapping without a descriptor ----

before=$(requests file-data)
check "a file is mapped and closed" $run python3 /root/guest/preload-kept.py /mnt/d/file /mnt
check_equal "what comes then" "$(tr '\n' ' ' <"$work/out")" \
	"msync done msync done msync done locked munmap done munmap done munmap done umount done "
check_equal "each msync was made by the agent" "$(requests file-data)" $((before + 3))
check "it is mounted again" mount -o dax=always "$(vm dev r0)" /mnt

# ---- SQLite ----

for mode in delete wal; do
	bare=$($sqlite /mnt/d/bare-$mode.db $mode 40 | tail -1)
	before=$(requests file file-data)
	ours=$($run $sqlite /mnt/d/ours-$mode.db $mode 40 | tail -1)
	n=$(($(requests file file-data) - before))
	check_equal "SQLite, $mode: the same with and without" "$ours" "$bare"
	check "its 40 transactions were $n flushes" test $n -ge 40
	rm -f "$work/rows"
	$run $sqlite /mnt/d/restarted-$mode.db $mode 150 >"$work/rows" 2>&1 &
	for at in 20 60 100; do
		wait_until 60 sh -c "[ \$(wc -l <$work/rows) -ge $at ]"
		systemctl reset-failed pmem-agent
		check "$mode: the agent is restarted after $(wc -l <"$work/rows") transactions" systemctl restart pmem-agent
	done
	wait $!
	report $? "$mode: it does not notice" "$work/rows"
	tail -1 "$work/rows" | sed 's/^/# /'
	check "$mode: nothing failed" grep -q '^0 failed, integrity ok, 150 rows' "$work/rows"
	$run $sqlite /mnt/d/killed-$mode.db $mode 150 retry >"$work/rows" 2>&1 &
	for at in 20 60 100; do
		wait_until 60 sh -c "[ \$(wc -l <$work/rows) -ge $at ]"
		check "$mode: the agent is killed after $(wc -l <"$work/rows") transactions" kill_agent
	done
	wait $!
	report $? "$mode: what was committed is there" "$work/rows"
	tail -1 "$work/rows" | sed 's/^/# /'
	systemctl reset-failed pmem-agent
done

# ---- a loss ----

twice='import errno, os
fd = os.open("/mnt/d/file", os.O_RDWR)
for i in range(2):
    try:
        os.fdatasync(fd)
        print("done")
    except OSError as error:
        print(errno.errorcode[error.errno])'
check "before it" $run python3 -c "$twice"
check_equal "both succeed" "$(tr '\n' ' ' <"$work/out")" "done done "
vm fsync fail 1 r0
check "the host fails" $run python3 -c "$twice"
check_equal "that is EIO, and stays it" "$(tr '\n' ' ' <"$work/out")" "EIO EIO "
check_equal "the region is lost" "$(region_property State)" lost
check "another program" $run python3 -c "$twice"
check_equal "is told so too" "$(tr '\n' ' ' <"$work/out")" "EIO EIO "
systemctl stop pmem-agent.socket pmem-agent
check "and without an agent" $run python3 -c "$twice"
check_equal "the page tells it" "$(tr '\n' ' ' <"$work/out")" "EIO EIO "
finish
