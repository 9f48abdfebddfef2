#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# A region's epoch says that its memory reached the host: also where a flush of the filesystem would pass it by, as an fsync
# without a commit does with the journal's device.
. /root/guest/lib.sh

start_agent
mke2fs -q -F -b 4096 -O journal_dev "$(vm dev r1)"
mkext4 -J "device=$(vm dev r1)" "$(vm dev r0)"
mkdir -p /mnt
check "an ext4 whose journal is in another region" mount -o dax=always "$(vm dev r0)" /mnt
dd if=/dev/zero of=/mnt/file bs=4096 count=4 status=none
check "a file with something to commit" pmemctl flush /mnt/file

before=$(vm fsync count r1)
python3 -c 'import os; os.fsync(os.open("/mnt/file", os.O_RDONLY))'
check_equal "without, fsync does not flush the journal's region" "$(vm fsync count r1)" "$before"

for scope in --scope=file --datasync --scope=filesystem; do
	before=$(vm fsync count r1)
	epoch=$(region_property Epoch region1)
	check "flushed with $scope" pmemctl flush $scope /mnt/file
	check "the journal's region has a new epoch" test "$(region_property Epoch region1)" -gt "$epoch"
	check "and has been flushed" test "$(vm fsync count r1)" -gt "$before"
done

vm fsync fail 1 r1
check_status 3 "its failure is one of the file" pmemctl flush /mnt/file
check_equal "and of both regions" "$(region_property State region0) $(region_property State region1)" "lost lost"
finish
