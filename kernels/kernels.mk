# kernels.mk: builds build/libmetalora_cpu.so. Included by the Makefile.
#
# Every kernel is compiled once per instruction set into its own namespace and folder (build/obj/avx2/gemm.o, ...);
# ffi/shim picks one when it opens the device. The library links nothing but libc and libm.

CXX ?= g++
CPU_LIB := build/libmetalora_cpu.so
# `make V=1` prints whole commands.
Q := $(if $(V),,@)
CPU_KERNELS := $(basename $(notdir $(wildcard kernels/cpu/*.cpp)))
SHARED_SHIM := api context memory
CPU_SHIM := $(SHARED_SHIM) $(basename $(notdir $(wildcard ffi/shim/cpu_*.cpp)))

CPU_WARNINGS := -Wall -Wextra -Werror
CPU_FLAGS := -std=c++17 -O3 -g1 -fPIC -fvisibility=hidden -fno-math-errno -ffp-contract=fast -fno-exceptions -fno-rtti \
  $(CPU_WARNINGS) -MMD -MP
CPU_LINK := -shared -pthread -static-libstdc++ -static-libgcc -Wl,-z,defs -Wl,--as-needed \
  -Wl,--version-script=ffi/shim/exports.map

# GCC 12 takes the undefined placeholders inside its own AVX-512 header for mistakes of ours.
CPU_512 := -mfma -mavx512f -mavx512bw -mavx512vl -mavx512dq -mprefer-vector-width=512 -Wno-uninitialized -Wno-maybe-uninitialized
ISA_FLAGS_generic :=
ISA_FLAGS_avx2 := -mavx2 -mfma
ISA_FLAGS_avx512 := $(CPU_512)
ISA_FLAGS_avx512bf16 := $(CPU_512) -mavx512bf16

# Other processors than x86-64 get the generic kernels, which GCC's vector extensions turn into their own instructions.
ifeq ($(shell uname -m),x86_64)
  CPU_ISAS := generic avx2 avx512 avx512bf16
else
  CPU_ISAS := generic
endif

CPU_OBJECTS := $(CPU_SHIM:%=build/obj/shim/%.o) $(foreach isa,$(CPU_ISAS),$(CPU_KERNELS:%=build/obj/$(isa)/%.o))

.PHONY: kernels bench-gemm
kernels: $(CPU_LIB)

$(CPU_LIB): $(CPU_OBJECTS) ffi/shim/exports.map
	@echo "link  $@"
	$(Q)$(CXX) $(CPU_LINK) -o $@.new $(CPU_OBJECTS)
	@mv $@.new $@

build/obj/shim/%.o: ffi/shim/%.cpp kernels/kernels.mk | compiler
	@mkdir -p $(@D)
	@echo "c++   $@"
	$(Q)$(CXX) $(CPU_FLAGS) -c $< -o $@

define compile_for
build/obj/$(1)/%.o: kernels/cpu/%.cpp kernels/kernels.mk | compiler
	@mkdir -p $$(@D)
	@echo "c++   $$@"
	$$(Q)$$(CXX) $$(CPU_FLAGS) $$(ISA_FLAGS_$(1)) -DML_ISA=$(1) -c $$< -o $$@
endef
$(foreach isa,$(CPU_ISAS),$(eval $(call compile_for,$(isa))))

# Adam must round like the same program in JavaScript (kernels/cpu/adam.cpp).
$(foreach isa,$(CPU_ISAS),build/obj/$(isa)/adam.o): CPU_FLAGS += -ffp-contract=off

.PHONY: compiler
compiler:
	@command -v $(CXX) > /dev/null || { \
	  echo "Cannot compile the CPU kernels: $(CXX) not found. Install it: apt-get install g++" >&2; exit 2; }

# GFLOP/s of the shapes that fine-tuning runs, beside the peak of one core measured in the same run.
bench-gemm: build/bench-gemm
	build/bench-gemm
build/bench-gemm: tests/bench/gemm.cpp ffi/metalora.h $(CPU_LIB)
	$(CXX) -std=c++17 -O3 -mavx2 -mfma $(CPU_WARNINGS) -pthread -o $@ $< -Lbuild -lmetalora_cpu -Wl,-rpath,'$$ORIGIN'

-include $(CPU_OBJECTS:.o=.d)
