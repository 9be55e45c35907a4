# kernels.mk: builds build/libmetalora_cpu.so. Included by the Makefile.
#
# Every kernel is compiled once per instruction set into its own namespace and folder (build/obj/avx2/gemm.o, ...);
# ffi/shim picks one when it opens the device. The library links nothing but libc and libm.

CXX ?= g++
CPU_LIB := build/libmetalora_cpu.so
# `make V=1` prints whole commands.
Q := $(if $(V),,@)
CPU_KERNELS := $(basename $(notdir $(wildcard kernels/cpu/*.cpp)))
SHARED_SHIM := api context gradients memory
CPU_SHIM := $(SHARED_SHIM) $(basename $(notdir $(wildcard ffi/shim/cpu_*.cpp)))

CPU_WARNINGS := -Wall -Wextra -Werror
CPU_FLAGS := -std=c++17 -O3 -g1 -fPIC -fvisibility=hidden -fno-math-errno -ffp-contract=fast -fno-exceptions -fno-rtti \
  $(CPU_WARNINGS) -MMD -MP
# nodelete: a worker that ends closes its libraries, while the main thread may be running what they have to do at the program's end.
# The CUDA runtime has such handlers, and one run in some four hundred died of a library that was gone (exit code 139).
CPU_LINK := -shared -pthread -static-libstdc++ -static-libgcc -Wl,-z,defs -Wl,-z,nodelete -Wl,--as-needed \
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

# ---- build/libmetalora_cuda.so -----------------------------------------------------------------------------------------
#
# Needs nvcc (13); nothing of CUDA is needed to run but a driver and cuBLAS, which the library finds itself. Machine code for
# Ampere, Hopper (90a: wgmma) and Blackwell, and PTX that a driver can compile for chips to come. `make cuda CUDA_ARCHS=90a`
# builds for one chip in a fraction of the time.

NVCC ?= nvcc
CUDA_LIB := build/libmetalora_cuda.so
CUDA_ARCHS ?= 80 90a 100
CUDA_PTX ?= 80
CUDA_KERNELS := $(basename $(notdir $(wildcard kernels/cuda/*.cu)))
CUDA_SHIM := $(SHARED_SHIM) $(basename $(notdir $(wildcard ffi/shim/cuda_*.cpp)))
CUDA_OBJECTS := $(CUDA_SHIM:%=build/obj/cuda_shim/%.o) $(CUDA_KERNELS:%=build/obj/cuda/%.o)
CUDA_CODE := $(foreach arch,$(CUDA_ARCHS),-gencode arch=compute_$(arch),code=sm_$(arch)) \
  $(foreach arch,$(CUDA_PTX),-gencode arch=compute_$(arch),code=compute_$(arch))
CUDA_FLAGS := -std=c++17 -O3 -Werror all-warnings \
  -Xcompiler -fPIC,-fvisibility=hidden,-fno-exceptions,-Wall,-Wextra,-Wno-missing-field-initializers,-Werror
CUDA_LINK := -shared -cudart static -Xcompiler -static-libstdc++,-static-libgcc -Xlinker -z,defs,-z,nodelete,--as-needed,--version-script=ffi/shim/exports.map

.PHONY: cuda gpu-harness test-gpu
cuda: $(CUDA_LIB)

# The library wherever it can be built.
CUDA_WHERE_NVCC := $(if $(shell command -v $(NVCC)),cuda)

# Stand-alone checks and timings of the kernels, for a machine with a GPU. `make test-gpu` runs all tests there.
GPU_HARNESSES := build/gpu-attention build/gpu-kernels build/gpu-skinny
gpu-harness: $(GPU_HARNESSES) build/gpu-hand_over
GPU_REST := $(addprefix build/obj/cuda/,activation_gradients.o adam.o convert.o cross_entropy.o embedding.o layernorm.o lora.o outer_hopper.o relu.o rmsnorm.o rope.o segment.o swiglu.o vector.o)
build/gpu-attention: build/obj/cuda/attention.o build/obj/cuda/attention_hopper.o
build/gpu-kernels: $(GPU_REST)
build/gpu-skinny: build/obj/cuda_shim/cuda_library.o
build/gpu-hand_over: private CUDA_CODE := -gencode arch=compute_90a,code=sm_90a
$(GPU_HARNESSES) build/gpu-hand_over: kernels/kernels.mk build/obj/cuda/code | nvcc
	@echo "nvcc  $@"
	$(Q)$(NVCC) -std=c++17 -O2 -Ikernels/cuda -Xcompiler -ffp-contract=off,-fopenmp-simd,-mavx2,-mfma,-pthread $(CUDA_CODE) -cudart static \
	  -MMD -MP -MF build/obj/$(@F).d -o $@ tests/gpu/$(@F:gpu-%=%).cu $(filter %.o,$^) -ldl
-include $(wildcard build/obj/gpu-*.d)

test-gpu: all cuda gpu-harness
	@DENO=$(DENO) sh tests/gpu/run.sh

$(CUDA_LIB): $(CUDA_OBJECTS) ffi/shim/exports.map
	@echo "link  $@"
	$(Q)$(NVCC) $(CUDA_LINK) -o $@.new $(CUDA_OBJECTS)
	@mv $@.new $@

build/obj/cuda_shim/%.o: ffi/shim/%.cpp kernels/kernels.mk | nvcc
	@mkdir -p $(@D)
	@echo "nvcc  $@"
	$(Q)$(NVCC) $(CUDA_FLAGS) -MMD -MP -MF $(@:.o=.d) -c $< -o $@

build/obj/cuda/%.o: kernels/cuda/%.cu kernels/kernels.mk build/obj/cuda/code | nvcc
	@mkdir -p $(@D)
	@echo "nvcc  $@"
	$(Q)$(NVCC) $(CUDA_FLAGS) $(CUDA_CODE) -MMD -MP -MF $(@:.o=.d) -c $< -o $@

# Stand-ins for what a machine with a GPU has, so that its faults can be tested without one (tests/e2e/cuda_*_test.ts): a
# driver, cuBLAS whole and incomplete, and the library itself on a runtime without a GPU.
STAND_IN := tests/gpu/stand_in
STAND_INS := $(addprefix build/stand_in/,driver/libcuda.so.1 cublas/libcublas.so.13 cublas_incomplete/libcublas.so.13 libmetalora_cuda.so)
STAND_IN_FLAGS := -std=c++17 -O1 -shared -fPIC -fvisibility=hidden $(CPU_WARNINGS)
.PHONY: stand-ins
stand-ins: $(STAND_INS)
build/stand_in/driver/libcuda.so.1: $(STAND_IN)/driver.cpp
build/stand_in/cublas/libcublas.so.13 build/stand_in/cublas_incomplete/libcublas.so.13: $(STAND_IN)/cublas.cpp
build/stand_in/cublas_incomplete/libcublas.so.13: STAND_IN_FLAGS += -DINCOMPLETE
$(filter-out %/libmetalora_cuda.so,$(STAND_INS)): kernels/kernels.mk | compiler
	@mkdir -p $(@D)
	@echo "c++   $@"
	$(Q)$(CXX) $(STAND_IN_FLAGS) -o $@ $(filter %.cpp,$^)
build/stand_in/libmetalora_cuda.so: $(STAND_IN)/runtime.cpp $(CUDA_OBJECTS) ffi/shim/exports.map
	@mkdir -p $(@D)
	@echo "nvcc  $@"
	$(Q)$(NVCC) -std=c++17 -O1 -Xcompiler -fPIC,-Wall,-Wextra,-Werror $(CUDA_LINK:static=none) -o $@.new $(filter %.cpp %.o,$^)
	@mv $@.new $@

# Other chips, other objects: this file changes with CUDA_ARCHS and CUDA_PTX.
.PHONY: force
build/obj/cuda/code: force
	@mkdir -p $(@D)
	@echo '$(CUDA_CODE)' | cmp -s - $@ || echo '$(CUDA_CODE)' > $@

.PHONY: nvcc
nvcc:
	@command -v $(NVCC) > /dev/null || { \
	  echo "Cannot compile the CUDA kernels: $(NVCC) not found. Install the CUDA toolkit 13 (only nvcc is needed), or set NVCC" >&2; exit 2; }

-include $(CUDA_OBJECTS:.o=.d)
