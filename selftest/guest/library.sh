#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# The examples of the libraries, on a DAX file and on device-dax. Regions: r0 fsdax, r1 devdax.
. /root/guest/lib.sh

start_agent
check "the shared libraries are found" sh -c '! ldd /root/example-append-log /root/example-pmem2 | grep "not found"'
mkdax "$(vm dev r0)" /mnt ext4

check "a log is made, and a record appended" /root/example-append-log /mnt/log one
before=$(vm fsync count r0)
check "another, and two more" /root/example-append-log /mnt/log two three four
check "each of them reached the host" test "$(vm fsync count r0)" -ge $((before + 4))
check "they are all there" /root/example-append-log /mnt/log
check_equal "in their order" "$(tr '\n' ' ' <"$work/out")" "one two three four "

check "half a record at the end" python3 -c '
f = open("/mnt/log", "r+b")
f.seek(16 * 4)
f.write(bytes((200, 0, 0, 0, 1, 2, 3, 4)) + b"five")'
check "recovery leaves it out" /root/example-append-log /mnt/log
check_equal "and nothing else" "$(tr '\n' ' ' <"$work/out")" "one two three four "
check "and the log goes on" /root/example-append-log /mnt/log six
check "with all of them" /root/example-append-log /mnt/log
check_equal "in their order" "$(tr '\n' ' ' <"$work/out")" "one two three four six "

before=$(vm fsync count r0)
check "pmem2, by the agent" /root/example-pmem2 /mnt/log text
check_output "durable" '^durable$'
check "which reached the host" test "$(vm fsync count r0)" -gt "$before"
chmod 666 "$(vm dev r1)"
check_status 1 "pmem2 on device-dax is refused" /root/example-pmem2 "$(vm dev r1)" text
check_output "pmem2 would have had it a matter of cache lines" 'granularity by pmem2: cache line'
check_output "and the agent knows better" "can't be made durable: Operation not supported"

check "D-Bus in Python" /root/flush.py /mnt/log
check_output "durable" '^durable: file '

vm fsync fail every r0
check_status 1 "the host fails: no record is durable" /root/example-append-log /mnt/log seven
check_output "and it says so" 'not durable: Input/output error'
vm fsync fail off r0
check_status 1 "nor is any after that, though the host is well again" /root/example-append-log /mnt/log eight
check_status 1 "nor by pmem2" /root/example-pmem2 /mnt/log text
check_status 1 "nor in Python" /root/flush.py /mnt/log
finish
