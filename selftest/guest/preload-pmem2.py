#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""What libpmem2 says of stores in a device, as a program finds it that is linked with it.

usage: preload-pmem2.py DEVICE [deep-flush] [persist]     both, unless one is named
"""

import ctypes as c
import os
import sys

PAGE_GRANULARITY = 2

c.CDLL("libpmem2.so.1", mode=c.RTLD_GLOBAL)
program = c.CDLL(None)
program.pmem2_map_get_address.restype = c.c_void_p
program.pmem2_get_persist_fn.restype = c.c_void_p
source, config, mapping = c.c_void_p(), c.c_void_p(), c.c_void_p()
assert program.pmem2_source_from_fd(c.byref(source), os.open(sys.argv[1], os.O_RDWR)) == 0
assert program.pmem2_config_new(c.byref(config)) == 0
assert program.pmem2_config_set_required_store_granularity(config, PAGE_GRANULARITY) == 0
assert program.pmem2_map_new(c.byref(mapping), config, source) == 0
address = program.pmem2_map_get_address(mapping)
c.memset(address, 1, 64)
calls = sys.argv[2:] or ["deep-flush", "persist"]
if "deep-flush" in calls:
    print("deep flush", program.pmem2_deep_flush(mapping, c.c_void_p(address), c.c_size_t(64)), flush=True)
if "persist" in calls:
    c.CFUNCTYPE(None, c.c_void_p, c.c_size_t)(program.pmem2_get_persist_fn(mapping))(address, 64)
    print("persisted")
