#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Power is cut right after `pmemctl flush`: what was stored before is there, from the host's durable image.
# Run twice with --durable, a boot each. The control is a store that nobody flushed: it must be gone, or the cut is none.
. /root/guest/lib.sh

store() {	# FILE TEXT: a store through a mapping, without any flush
	python3 -c '
import mmap, sys
with open(sys.argv[1], "r+b") as f, mmap.mmap(f.fileno(), 4096) as m:
    m[:len(sys.argv[2])] = sys.argv[2].encode()
    import os
    os._exit(0)' "$1" "$2"
}

start_agent
if [ ! -e /root/phase ]; then
	mkext4 "$(vm dev r0)"
	# No commit of the journal on its own: it would flush what the control must not have flushed.
	mount -o dax=always,commit=300 "$(vm dev r0)" /mnt
	fallocate -l 4096 /mnt/flushed
	dd if=/dev/zero of=/mnt/unflushed bs=4096 count=1 conv=fsync status=none
	store /mnt/flushed "here to stay"
	check "stored and flushed" pmemctl flush /mnt
	[ $n_failed = 0 ] || finish
	touch /root/phase
	sync -f /root
	store /mnt/unflushed "gone"
	echo "1..$n_checks"
	vm cut
fi
mount -o dax=always "$(vm dev r0)" /mnt
check_equal "after the cut it is there" "$(head -c 12 /mnt/flushed)" "here to stay"
check_equal "control: what nobody flushed is not" "$(head -c 4 /mnt/unflushed | tr -d '\0')" ""
finish
