# SPDX-License-Identifier: LGPL-2.1-or-later
# pmem-agent: `make help` lists the targets.

VERSION := 0.1.0
O ?= build
prefix ?= /usr/local
V ?= 0

CC ?= cc
SCDOC ?= scdoc
PKG_CONFIG ?= pkg-config
CFLAGS ?= -O2 -g
SANITIZE ?=

modules := libsystemd libndctl libdaxctl mount smartcols json-c inih
test-modules := cmocka umockdev-1.0

build := $(patsubst %/,%,$(O))
Q := $(if $(filter-out 0,$(V)),,@)
say = $(if $(filter-out 0,$(V)),@:,@printf '  %-7s %s\n')

cflags := -std=gnu11 -D_GNU_SOURCE -DPMEM_AGENT_VERSION='"$(VERSION)"' -I. -fvisibility=hidden -ffunction-sections \
	-Wall -Wextra -Wshadow -Wundef -Wformat=2 -Wmissing-prototypes -Wstrict-prototypes -Wvla \
	-Wno-unused-parameter -Wno-missing-field-initializers -Werror \
	$(if $(SANITIZE),-fsanitize=$(SANITIZE) -fno-omit-frame-pointer -fno-sanitize-recover=all,-D_FORTIFY_SOURCE=2 -fstack-protector-strong)
ldflags := -Wl,--gc-sections -Wl,-z,relro,-z,now $(if $(SANITIZE),-fsanitize=$(SANITIZE))

# Everything but the mains is one static library, which the tests link too.
mains := pmem-agent pmemctl
main-pmem-agent := agent/main.c
main-pmemctl := agent/pmemctl.c
sources := $(filter-out $(foreach m,$(mains),$(main-$(m))),$(wildcard agent/*.c))
tests := $(patsubst selftest/%.c,%,$(wildcard selftest/test-*.c))

objects := $(sources:%.c=$(build)/%.o)
programs := $(mains:%=$(build)/%)
test-programs := $(tests:%=$(build)/%)

all: $(programs)

$(build)/%.o: %.c $(build)/.deps-ok
	$(say) CC $<
	$(Q)mkdir -p $(@D)
	$(Q)$(CC) $(cflags) $(CFLAGS) $(shell $(PKG_CONFIG) --cflags $(modules)) -MMD -MP -c -o $@ $<

$(build)/libagent.a: $(objects)
	$(say) AR $@
	$(Q)rm -f $@ && ar rcs $@ $^

$(build)/pmem-agent: $(build)/agent/main.o $(build)/libagent.a
$(build)/pmemctl: $(build)/agent/pmemctl.o $(build)/libagent.a
$(programs):
	$(say) LD $@
	$(Q)$(CC) $(ldflags) $(CFLAGS) $(LDFLAGS) -o $@ $^ $(shell $(PKG_CONFIG) --libs $(modules))

$(build)/test-%: $(build)/selftest/test-%.o $(build)/libagent.a
	$(say) LD $@
	$(Q)$(CC) $(ldflags) $(CFLAGS) $(LDFLAGS) -o $@ $^ $(shell $(PKG_CONFIG) --libs $(modules) $(test-modules))

$(build)/.deps-ok: Makefile
	$(Q)mkdir -p $(@D)
	$(Q)touch $@

clean:
	rm -rf $(build)/agent $(build)/selftest $(build)/libagent.a $(programs) $(test-programs)

.PHONY: all clean
.SECONDARY:
-include $(objects:.o=.d) $(wildcard $(build)/selftest/*.d $(build)/agent/*.d)
