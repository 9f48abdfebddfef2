# SPDX-License-Identifier: LGPL-2.1-or-later
# pmem-agent: `make help` lists the targets.

VERSION := 0.1.0
O ?= build
V ?= 0
prefix ?= /usr/local
sbindir ?= $(prefix)/sbin
bindir ?= $(prefix)/bin
libexecdir ?= $(prefix)/libexec
libdir ?= $(prefix)/lib
includedir ?= $(prefix)/include
mandir ?= $(prefix)/share/man
sysconfdir ?= /etc

CC ?= cc
SCDOC ?= scdoc
PKG_CONFIG ?= pkg-config
OBJCOPY ?= objcopy
CFLAGS ?= -O2 -g
SANITIZE ?=
# no: there is no libpmem2 for this architecture, and so no libpmem-agent-pmem2
PMEM2 ?= yes

modules := libsystemd libndctl libdaxctl mount smartcols json-c inih
test-modules := cmocka umockdev-1.0

# Units, rules and policies go where systemd, udev, D-Bus and polkit read them, whatever the prefix.
pc-dir = $(or $(shell $(PKG_CONFIG) --variable=$(2) $(1) 2>/dev/null),$(3))
unitdir ?= $(call pc-dir,systemd,systemdsystemunitdir,/lib/systemd/system)
sysusersdir ?= $(call pc-dir,systemd,sysusersdir,/usr/lib/sysusers.d)
udevrulesdir ?= $(call pc-dir,udev,udevdir,/lib/udev)/rules.d
dbuspolicydir ?= $(call pc-dir,dbus-1,datadir,/usr/share)/dbus-1/system.d
dbusservicedir ?= $(call pc-dir,dbus-1,system_bus_services_dir,/usr/share/dbus-1/system-services)
dbusinterfacedir ?= $(call pc-dir,dbus-1,interfaces_dir,/usr/share/dbus-1/interfaces)
polkitdir ?= $(call pc-dir,polkit-gobject-1,actiondir,/usr/share/polkit-1/actions)
completionsdir ?= $(call pc-dir,bash-completion,completionsdir,/usr/share/bash-completion/completions)

# The same name for the same place, however it is given: what depends on what is remembered by names.
build := $(patsubst $(CURDIR)/%,%,$(abspath $(O)))
Q := $(if $(filter-out 0,$(V)),,@)
silent := $(findstring s,$(firstword -$(MAKEFLAGS)))
say = $(if $(silent)$(filter-out 0,$(V)),@:,@printf '  %-7s %s\n')

cflags := -std=gnu11 -D_GNU_SOURCE -DPMEM_AGENT_VERSION='"$(VERSION)"' \
	-DPMEM_AGENT_CONF='"$(sysconfdir)/pmem-agent.conf"' -DPMEM_AGENT_LIBDIR='"$(libdir)"' -I. -fvisibility=hidden -ffunction-sections \
	-Wall -Wextra -Wshadow -Wundef -Wformat=2 -Wmissing-prototypes -Wstrict-prototypes -Wvla \
	-Wno-unused-parameter -Wno-missing-field-initializers -Werror \
	$(if $(SANITIZE),-fsanitize=$(SANITIZE) -fno-omit-frame-pointer -fno-sanitize-recover=all,-D_FORTIFY_SOURCE=2 -fstack-protector-strong)
ldflags := -Wl,--gc-sections -Wl,-z,relro,-z,now $(if $(SANITIZE),-fsanitize=$(SANITIZE))

# Everything but the mains is one static library, which the tests link too.
mains := pmem-agent pmemctl
main-pmem-agent := agent/main.c
main-pmemctl := agent/pmemctl.c
sources := $(filter-out $(foreach m,$(mains),$(main-$(m))),$(wildcard agent/*.c))
without-pmem2 = $(if $(filter no,$(PMEM2)),$(foreach f,$(1),$(if $(findstring pmem2,$(notdir $(f))),,$(f))),$(1))
tests := $(call without-pmem2,$(patsubst selftest/%.c,%,$(wildcard selftest/test-*.c)))
simulators := $(patsubst selftest/%.c,%,$(wildcard selftest/sim-*.c))
clients := $(patsubst selftest/%.c,%,$(wildcard selftest/stress-*.c selftest/load-*.c selftest/kill-*.c selftest/bench-flush.c))
clients := $(if $(filter no,$(PMEM2)),$(filter-out load-cut,$(clients)),$(clients))

test-libraries := $(patsubst %,$(build)/%.so,bench-slow bench-dax preload-fail oom)

objects := $(sources:%.c=$(build)/%.o)
preload-objects := $(patsubst %.c,$(build)/%.o,$(wildcard lib/preload*.c))
lib-objects := $(call without-pmem2,$(filter-out $(preload-objects),$(patsubst %.c,$(build)/%.o,$(wildcard lib/*.c))))
lib-names := $(call without-pmem2,libpmem-agent libpmem-agent-pmem2)
libraries := $(foreach l,$(lib-names),$(build)/$(l).a $(build)/$(l).so.0)
examples := $(call without-pmem2,$(patsubst lib/examples/%.c,$(build)/example-%,$(wildcard lib/examples/*.c)))
programs := $(mains:%=$(build)/%)
# A page has each call of a library: the one of the same name, or the one that it is a link to.
page-of-flush := connect close submit wait get_fd
page-of-epoch := lost
page-of-persist := map_new map_delete map_get_store_granularity persist_or_abort
manual-links := $(foreach p,flush epoch persist,$(page-of-$(p):%=$(build)/lib/pmem_agent_%.3))
manuals := $(patsubst %.scd,$(build)/%,$(wildcard agent/*.scd lib/*.scd)) $(manual-links)
test-programs := $(tests:%=$(build)/%) $(simulators:%=$(build)/%) $(clients:%=$(build)/%) $(test-libraries) $(examples)

all: $(programs) $(libraries) $(build)/libpmem-agent-preload.so $(lib-names:%=$(build)/%.pc) $(manuals)

# What is built names these places: given other ones, it is built anew.
places = $(prefix) $(libdir) $(includedir) $(sysconfdir)
$(build)/.places: FORCE
	$(Q)mkdir -p $(@D); echo '$(places)' | cmp -s - $@ || echo '$(places)' > $@
FORCE:

$(build)/%.o: %.c $(build)/.deps-ok $(build)/.places
	$(say) CC $<
	$(Q)mkdir -p $(@D)
	$(Q)$(CC) $(cflags) $(CFLAGS) $(shell $(PKG_CONFIG) --cflags $(modules)) -MMD -MP -c -o $@ $<

$(build)/libagent.a: $(objects)
	$(say) AR $@
	$(Q)rm -f $@ && $(AR) rcs $@ $^

# What applications link. Only what its map names is seen from outside, of a static one too.
$(lib-objects) $(preload-objects): cflags += -fPIC
$(build)/libpmem-agent.a $(build)/libpmem-agent.so.0: $(filter-out %/pmem2.o,$(lib-objects))
$(build)/libpmem-agent-pmem2.a $(build)/libpmem-agent-pmem2.so.0: $(build)/lib/pmem2.o
$(build)/libpmem-agent-pmem2.so.0: $(build)/libpmem-agent.so.0
$(build)/libpmem-agent-pmem2.so.0: needs = $(shell $(PKG_CONFIG) --libs libpmem2)

$(lib-names:%=$(build)/%.a):
	$(say) AR $@
	$(Q)$(LD) -r -o $(@:.a=-whole.o) $^ && $(OBJCOPY) --localize-hidden $(@:.a=-whole.o)
	$(Q)rm -f $@ && $(AR) rcs $@ $(@:.a=-whole.o) && rm -f $(@:.a=-whole.o)

$(lib-names:%=$(build)/%.so.0): $(build)/%.so.0: lib/%.map
	$(say) LD $@
	$(Q)$(CC) $(ldflags) $(CFLAGS) $(LDFLAGS) -shared -pthread -Wl,-soname,$(@F) -Wl,--version-script=$(filter %.map,$^) \
		$(if $(SANITIZE),,-Wl,-z,defs) -o $@ $(filter-out %.map,$^) $(needs)

# It takes the place of calls in any program: nothing but these is seen, and nothing is bound when they are called.
$(build)/libpmem-agent-preload.so: $(preload-objects) $(build)/lib/exchange.o lib/libpmem-agent-preload.map
	$(say) LD $@
	$(Q)$(CC) $(ldflags) $(CFLAGS) $(LDFLAGS) -shared -Wl,-soname,$(@F) -Wl,--version-script=lib/libpmem-agent-preload.map \
		$(if $(SANITIZE),,-Wl,-z,defs) -o $@ $(filter %.o,$^)

$(build)/%.pc: lib/%.pc.in Makefile $(build)/.places
	$(Q)mkdir -p $(@D)
	$(Q)sed 's|@prefix@|$(prefix)|; s|@libdir@|$(libdir)|; s|@includedir@|$(includedir)|; s|@VERSION@|$(VERSION)|' $< > $@

$(build)/pmem-agent: $(build)/agent/main.o $(build)/libagent.a
$(build)/pmemctl: $(build)/agent/pmemctl.o $(build)/libagent.a
$(programs):
	$(say) LD $@
	$(Q)$(CC) $(ldflags) $(CFLAGS) $(LDFLAGS) -o $@ $^ $(shell $(PKG_CONFIG) --libs $(modules))

$(build)/test-pmem2: $(build)/libpmem-agent-pmem2.a
$(build)/test-pmem2: test-modules += libpmem2
$(build)/test-%: $(build)/selftest/test-%.o $(build)/selftest/patience.o $(build)/libagent.a $(build)/libpmem-agent.a
	$(say) LD $@
	$(Q)$(CC) $(ldflags) -Wl,--wrap=alarm $(CFLAGS) $(LDFLAGS) -o $@ $^ $(shell $(PKG_CONFIG) --libs $(modules) $(test-modules))

$(build)/test-watch $(build)/test-watch-regions: private ldflags += -Wl,--wrap=witness_next
$(build)/test-watch: private ldflags += -Wl,--wrap=witness_open

# A simulator sees what makes no system call, and links nothing else.
$(build)/sim-%: $(build)/selftest/sim-%.o $(build)/libagent.a
	$(say) LD $@
	$(Q)$(CC) $(ldflags) $(CFLAGS) $(LDFLAGS) -o $@ $^

# As an application would be linked.
$(build)/load-cut: $(build)/libpmem-agent-pmem2.a
$(build)/load-cut: client-modules = libsystemd libpmem2
$(build)/bench-flush: client-modules = libsystemd
$(clients:%=$(build)/%): $(build)/%: $(build)/selftest/%.o $(build)/libpmem-agent.a
	$(say) LD $@
	$(Q)$(CC) $(ldflags) $(CFLAGS) $(LDFLAGS) -pthread -o $@ $(filter %.o,$^) $(sort $(filter %.a,$^)) \
		$(if $(client-modules),$(shell $(PKG_CONFIG) --libs $(client-modules)))

# As the manual says, with the shared libraries.
$(examples:$(build)/example-%=$(build)/lib/examples/%.o): cflags += -I$(build)/include
$(examples:$(build)/example-%=$(build)/lib/examples/%.o): | $(build)/include/pmem-agent
$(build)/include/pmem-agent:
	$(Q)mkdir -p $(@D) && ln -sfn $(CURDIR)/lib $@

$(examples): $(build)/example-%: $(build)/lib/examples/%.o $(libraries)
	$(say) LD $@
	$(Q)$(CC) $(ldflags) $(CFLAGS) $(LDFLAGS) -o $@ $< $(if $(findstring pmem2,$@),$(build)/libpmem-agent-pmem2.so.0) \
		$(build)/libpmem-agent.so.0 $(if $(findstring pmem2,$@),$(shell $(PKG_CONFIG) --libs libpmem2))

$(test-libraries): $(build)/%.so: selftest/%.c $(build)/.deps-ok
	$(say) LD $@
	$(Q)mkdir -p $(@D)
	$(Q)$(CC) $(cflags) $(CFLAGS) -fPIC -shared -o $@ $<

$(page-of-flush:%=$(build)/lib/pmem_agent_%.3): page = pmem_agent_flush.3
$(page-of-epoch:%=$(build)/lib/pmem_agent_%.3): page = pmem_agent_epoch.3
$(page-of-persist:%=$(build)/lib/pmem_agent_%.3): page = pmem_agent_persist.3
$(manual-links):
	$(Q)mkdir -p $(@D)
	$(Q)echo '.so man3/$(page)' > $@

$(filter-out $(manual-links),$(manuals)): $(build)/%: %.scd $(build)/.deps-ok
	$(say) MAN $@
	$(Q)mkdir -p $(@D)
	$(Q)$(SCDOC) < $< > $@.tmp && mv $@.tmp $@

clean:
	rm -rf $(build)/agent $(build)/lib $(build)/include $(build)/selftest $(build)/control $(build)/*.a $(build)/*.so.0 $(build)/libpmem-agent-preload.so $(build)/*.pc $(programs) $(test-programs)

# ---- dependencies: what shows that it is there (a program, a .pc file, a file), and the Debian package that has it ----

deps-build := $(CC)=gcc $(PKG_CONFIG)=pkg-config $(SCDOC)=scdoc libsystemd.pc=libsystemd-dev libndctl.pc=libndctl-dev \
	libdaxctl.pc=libdaxctl-dev mount.pc=libmount-dev smartcols.pc=libsmartcols-dev json-c.pc=libjson-c-dev \
	inih.pc=libinih-dev $(call without-pmem2,libpmem2.pc=libpmem2-dev) $(LD)=binutils /usr/include/stdio.h=libc6-dev
deps-test := cmocka.pc=libcmocka-dev umockdev-1.0.pc=libumockdev-dev umockdev-run=umockdev dbus-daemon=dbus valgrind=valgrind
deps-guest := python3=python3 qemu-system-x86_64=qemu-system-x86 mmdebstrap=mmdebstrap mkfs.ext4=e2fsprogs depmod=kmod \
	xz=xz-utils fakeroot=fakeroot newuidmap=uidmap \
	/usr/share/keyrings/debian-archive-keyring.gpg=debian-archive-keyring
# The kernel of the pseries guest is built here: flex and what follows.
deps-cross := $(foreach t,powerpc64le s390x,$(t)-linux-gnu-gcc=gcc-$(t)-linux-gnu) qemu-ppc64le=qemu-user qemu-system-ppc64=qemu-system-ppc \
	/usr/powerpc64le-linux-gnu/include/stdio.h=libc6-dev-ppc64el-cross /usr/s390x-linux-gnu/include/stdio.h=libc6-dev-s390x-cross \
	flex=flex bison=bison bc=bc libelf.pc=libelf-dev

find-missing = PATH="$$PATH:/usr/sbin:/sbin"; missing=; for d in $(1); do p=$${d%%=*}; \
	case $$p in *.pc) $(PKG_CONFIG) --exists $${p%.pc} ;; /*) [ -e $$p ] ;; *) command -v $$p >/dev/null ;; esac \
	2>/dev/null || missing="$$missing $${d\#*=}"; done

$(build)/.deps-ok: Makefile
	$(Q)mkdir -p $(@D)
	$(Q)$(call find-missing,$(deps-build)); [ -z "$$missing" ] || { \
		echo "To build, this is missing here:$$missing"; \
		echo "Install it with 'make deps', or on Debian and Ubuntu: apt-get install$$missing"; exit 1; } >&2
	$(Q)touch $@

# Package lists may be missing (containers) or old (a package is gone from the archive).
deps deps-cross:
	$(Q)$(call find-missing,$(wanted)); [ -n "$$missing" ] || exit 0; \
	command -v apt-get >/dev/null || { \
		echo "Only apt-get is known here. Install by hand (Debian's names):$$missing" >&2; exit 1; }; \
	echo "Installing with apt-get, for the build, the tests and the guests:$$missing"; \
	sudo=; [ "$$(id -u)" = 0 ] || sudo=sudo; \
	install="$$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends$$missing"; \
	{ apt-get install -s $$missing >/dev/null 2>&1 && $$install; } || { $$sudo apt-get update -q && $$install; }
deps: wanted = $(deps-build) $(deps-test) $(deps-guest)
deps-cross: wanted = $(deps-build) $(deps-test) $(deps-guest) $(deps-cross)

# ---- installation: mode:source:destination; text from units/ gets its @directories@ filled in ----

installed = \
	755:$(build)/pmem-agent:$(sbindir)/pmem-agent \
	755:$(build)/pmemctl:$(bindir)/pmemctl \
	755:$(build)/libpmem-agent-preload.so:$(libdir)/libpmem-agent-preload.so \
	$(foreach l,$(lib-names),644:$(build)/$(l).a:$(libdir)/$(l).a 755:$(build)/$(l).so.0:$(libdir)/$(l).so.0 \
		644:$(build)/$(l).pc:$(libdir)/pkgconfig/$(l).pc) \
	$(call without-pmem2,644:lib/pmem-agent-pmem2.h:$(includedir)/pmem-agent/pmem-agent-pmem2.h) \
	644:lib/pmem-agent.h:$(includedir)/pmem-agent/pmem-agent.h \
	644:lib/wire.h:$(includedir)/pmem-agent/wire.h \
	755:units/pmem-agent-witness:$(libexecdir)/pmem-agent/pmem-agent-witness \
	644:units/pmem-agent.service:$(unitdir)/pmem-agent.service \
	644:units/pmem-agent.socket:$(unitdir)/pmem-agent.socket \
	644:units/pmem-agent-host@.service:$(unitdir)/pmem-agent-host@.service \
	644:units/pmem-async@.target:$(unitdir)/pmem-async@.target \
	644:units/pmem-agent.sysusers:$(sysusersdir)/pmem-agent.conf \
	644:udev/90-pmem-agent.rules:$(udevrulesdir)/90-pmem-agent.rules \
	644:units/io.pmem.Agent1.conf:$(dbuspolicydir)/io.pmem.Agent1.conf \
	644:units/io.pmem.Agent1.service:$(dbusservicedir)/io.pmem.Agent1.service \
	644:units/io.pmem.Agent1.xml:$(dbusinterfacedir)/io.pmem.Agent1.xml \
	644:units/io.pmem.agent.policy:$(polkitdir)/io.pmem.agent.policy \
	644:agent/pmemctl.bash:$(completionsdir)/pmemctl \
	$(foreach m,$(manuals),644:$(m):$(mandir)/man$(patsubst .%,%,$(suffix $(m)))/$(notdir $(m)))
conffile = $(DESTDIR)$(sysconfdir)/pmem-agent.conf

install: all
	$(Q)set -e; for row in $(installed); do \
		mode=$${row%%:*}; row=$${row#*:}; source=$${row%%:*}; to="$(DESTDIR)$${row#*:}"; mkdir -p "$${to%/*}"; \
		case $$source in \
		units/*) sed 's|@sbindir@|$(sbindir)|g; s|@bindir@|$(bindir)|g; s|@libexecdir@|$(libexecdir)|g' $$source > $(build)/.install ;; \
		*) cp $$source $(build)/.install ;; \
		esac; \
		install -m $$mode $(build)/.install "$$to"; rm -f $(build)/.install; \
	done
	$(Q)for l in $(lib-names); do ln -sf $$l.so.0 "$(DESTDIR)$(libdir)/$$l.so"; done
	$(Q)if [ -e "$(conffile)" ]; then echo "Kept as it is: $(conffile)"; else \
		install -D -m 644 pmem-agent.conf "$(conffile)"; fi
	$(if $(DESTDIR),,$(announce))

# Devices that are there already get what the new rules say.
announce = $(Q)[ "$$(id -u)" != 0 ] || ldconfig 2>/dev/null; [ "$$(id -u)" = 0 ] && [ -d /run/systemd/system ] || exit 0; \
	systemd-sysusers $(sysusersdir)/pmem-agent.conf; \
	systemctl daemon-reload; \
	systemctl reload dbus.service 2>/dev/null; \
	udevadm control --reload && for s in nd dax block virtio-ports; do udevadm trigger --subsystem-match=$$s; done; \
	echo "Installed. Next: systemctl enable --now pmem-agent"

uninstall:
	$(Q)rm -f $(foreach row,$(installed),"$(DESTDIR)$(lastword $(subst :, ,$(row)))")
	$(Q)rm -f $(lib-names:%="$(DESTDIR)$(libdir)/%.so")
	$(Q)rmdir "$(DESTDIR)$(libexecdir)/pmem-agent" "$(DESTDIR)$(includedir)/pmem-agent" 2>/dev/null || true
	$(Q)[ ! -e "$(conffile)" ] || echo "Left, since it may be yours: $(conffile)"

# ---- tests ----

# Agents that are broken on purpose, which rows of selftest/guest/tests must catch.
controls := $(addprefix $(build)/control/,small-rounds shutdown-unseen)

controls: $(controls)

$(controls): $(build)/control/%: selftest/controls.py $(build)/agent/main.o $(build)/libagent.a
	$(say) CONTROL $@
	$(Q)$< $(build) $(@D) $*

run-tests = selftest/run-tests --build-dir $(build)
# Another make, with as many jobs as there are CPUs unless it was told how many.
again = $(MAKE) --no-print-directory $(if $(findstring -j,$(MAKEFLAGS)),,-j$(shell nproc))
asan = $(again) O=$(build)/asan SANITIZE=address,undefined
tsan = $(again) O=$(build)/tsan SANITIZE=thread

tests: all $(test-programs)

check-fast: tests
	$(Q)$(run-tests) unit

# The whole of it, as CI runs it: `deps` first, since what builds the rest must be there before make looks for it.
check: deps
	$(Q)$(again) tests controls
	$(Q)$(asan) tests
	$(Q)$(tsan) $(addprefix $(build)/tsan/,test-threads test-group test-preload test-preload-fail pmem-agent libpmem-agent-preload.so preload-fail.so load-rows)
	$(Q)$(run-tests) unit asan tsan valgrind oom sim machine prove guest

# Schedules that nobody has seen yet; it names the first, from which it can be repeated.
soak: $(build)/sim-flush
	$(Q)$< --events 1000000000 --first $$(date +%s%N)

# A hostile host and a hostile guest, a minute each, against programs with ASan and UBSan; `check` has seconds of it.
hostile: deps
	$(Q)$(asan) tests
	$(Q)selftest/test-host $(build)/asan --hostile 60
	$(Q)HOSTILE_SEC=60 $(build)/asan/test-hostile-guest

# Built for ppc64el (pages of 64 KiB) and s390x (big-endian) and tested by user emulation; and a pseries guest with
# papr_scm, whose kernel is built the first time.
check-cross: deps-cross
	$(Q)selftest/cross/build ppc64el $(build) tests
	$(Q)selftest/cross/build s390x $(build) tests
	$(Q)$(run-tests) ppc64el s390x pseries

# NVDIMMs with flush hints, which the kernel's nfit_test makes up in the guest; its modules are built the first time.
check-nfit: deps
	$(Q)$(again) tests
	$(Q)selftest/nfit/build $(build)
	$(Q)$(run-tests) nfit

check-full: check
	$(Q)$(MAKE) --no-print-directory check-nfit
	$(Q)$(MAKE) --no-print-directory check-cross

# What `make check` does once, with the other kernels and for longer; libvirt; and what needs a quiet machine.
check-long: deps
	$(Q)$(again) tests
	$(Q)$(run-tests) long

# Some minutes; the two places can be had one by one: selftest/bench guest, selftest/bench machine.
bench: deps
	$(Q)$(again) tests
	$(Q)selftest/bench --build-dir $(build)

# Power is cut at every moment of many runs, on three kernels; and each allocation fails in turn.
prove: deps
	$(Q)$(again) tests
	$(Q)selftest/out-of-memory $(build)
	$(Q)selftest/prove/prove --build-dir $(build)

# What test-recorded compares with; look at the differences before they are committed.
golden: $(build)/test-recorded
	$(Q)$< --golden

demo: deps
	$(Q)$(MAKE) --no-print-directory all
	$(Q)selftest/demo $(build)

# ---- for who works on it ----

format:
	clang-format -i $(wildcard agent/*.[ch] lib/*.[ch] selftest/*.[ch] selftest/vm/*.c)

compile_commands.json: export COMMAND = $(CC) $(cflags) $(CFLAGS) $(shell $(PKG_CONFIG) --cflags $(modules) 2>/dev/null)
compile_commands.json: Makefile $(wildcard agent/*.c lib/*.c selftest/*.c)
	$(Q)command=$$(printf '%s' "$$COMMAND" | sed 's/["\\]/\\&/g'); separator=; { echo '['; \
	for f in $(filter %.c,$^); do \
		printf '%s{"directory": "%s", "file": "%s", "command": "%s -c %s"}' "$$separator" '$(CURDIR)' $$f "$$command" $$f; \
		separator=",$$(printf '\n ')"; \
	done; printf '\n]\n'; } > $@

define help-text
make                       build the programs and manual pages in build/
make check-fast            unit tests, without a guest
make check-cross           units for ppc64el and s390x, and a pseries guest with papr_scm; begins with make deps-cross
make check-nfit            NVDIMMs with flush hints, by the kernel's nfit_test, which is built for the guest
make check-full            check, check-nfit and check-cross; not check-long
make check                 the tests that CI runs, the guests' included; begins with make deps
make soak                  the flush engine through 10^9 random events, a few minutes
make hostile               a host, and a guest, that mean the other side no good, a minute each
make check-long            what check does once, with the other kernels and for longer; libvirt; what needs a quiet machine
make bench                 plain, agent and ideal side by side, in a guest and on this machine
make prove                 the durability campaign: power is cut at every moment, on three kernels; an hour
make demo                  show it at work in a guest, on both sides; begins with make deps
make golden                write selftest/sysfs/*.list and *.doctor anew, see test-recorded
make deps                  install what building and testing need (apt-get)
make install, uninstall    DESTDIR= prefix=$(prefix) sysconfdir=$(sysconfdir)
make format                clang-format on the sources
make compile_commands.json for clangd and other tools
make clean                 remove what was built; the guest's images in build/vm stay

Variables: O=DIR (build there), V=1 (show commands), CC=, CFLAGS=, SANITIZE=address,undefined,
           PMEM2=no (where there is no libpmem2, which is for few architectures)
endef
help: export HELP = $(help-text)
help:
	@echo "$$HELP"

.PHONY: FORCE all tests controls check check-fast check-cross check-nfit check-full soak hostile bench prove demo golden clean deps deps-cross install uninstall format help check-long
.SECONDARY:
-include $(objects:.o=.d) $(lib-objects:.o=.d) $(preload-objects:.o=.d) $(wildcard $(build)/lib/examples/*.d $(build)/selftest/*.d $(build)/agent/*.d)
