// cuda_device.cpp: opening a GPU, what is found on this machine, time and graphs.
#include "cuda_device.h"
#include "cuda_products.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <new>

using namespace metalora;

namespace metalora {

namespace {

constexpr int OLDEST_CHIP = 80;  // bf16 matrix instructions and asynchronous copies begin with Ampere

bool cannot_open(int device, const char* format, ...) __attribute__((format(printf, 2, 3)));
bool cannot_open(int device, const char* format, ...) {
  const int used = snprintf(global_error, sizeof global_error, "Cannot open CUDA device %d: ", device);
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(global_error + used, sizeof global_error - (size_t)used, format, arguments);
  va_end(arguments);
  return false;
}

// "13.0" from 13000.
void version_text(int version, char* text, size_t capacity) {
  snprintf(text, capacity, "%d.%d", version / 1000, version % 1000 / 10);
}

// Why there is no GPU to use, and what to do about it.
struct Obstacle {
  char reason[256] = "";
  const char* remedy = nullptr;
};

// What the driver answers where it needs a hand.
const char* remedy_of(cudaError_t error) {
  switch (error) {
    case cudaErrorSystemNotReady: return "Start its Fabric Manager (systemctl start nvidia-fabricmanager)";
    case cudaErrorSystemDriverMismatch: return "Restart the machine: the driver was updated, and the old one still runs";
    case cudaErrorStubLibrary: return "Leave the folder with the CUDA toolkit's stub of libcuda.so.1 out of LD_LIBRARY_PATH";
    default: return "See nvidia-smi";
  }
}

// False when a GPU can be asked for.
bool obstructed(Obstacle& found) {
  int driver = 0, count = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) {
    snprintf(found.reason, sizeof found.reason, "there is no NVIDIA driver (libcuda.so.1)");
    found.remedy = "Install one";
    return true;
  }
  const cudaError_t error = cudaGetDeviceCount(&count);
  cudaGetLastError();
  if (error == cudaErrorInsufficientDriver) {
    char has[16], needs[16];
    version_text(driver, has, sizeof has);
    version_text(CUDART_VERSION, needs, sizeof needs);
    snprintf(found.reason, sizeof found.reason, "the NVIDIA driver is too old: it supports CUDA %s, this library needs %s", has, needs);
    found.remedy = "Update the driver";
    return true;
  }
  if (error == cudaErrorNoDevice || (error == cudaSuccess && count == 0)) {
    const char* visible = getenv("CUDA_VISIBLE_DEVICES");
    if (visible)
      snprintf(found.reason, sizeof found.reason, "the NVIDIA driver shows no GPU while CUDA_VISIBLE_DEVICES is '%.64s'", visible);
    else
      snprintf(found.reason, sizeof found.reason, "the NVIDIA driver sees no GPU");
    found.remedy = visible ? "Correct or unset it" : "Give one to this machine or container (nvidia-smi must list it)";
    return true;
  }
  if (error == cudaSuccess) return false;
  snprintf(found.reason, sizeof found.reason, "the NVIDIA driver answers '%s' (%d)", cudaGetErrorString(error), (int)error);
  found.remedy = remedy_of(error);
  return true;
}

bool open(ml_ctx* ctx, int device) {
  Obstacle obstacle;
  if (obstructed(obstacle)) return cannot_open(device, "%s. %s, or use --device cpu", obstacle.reason, obstacle.remedy);
  int count = 0;
  cudaGetDeviceCount(&count);
  if (device < 0 || device >= count) return cannot_open(device, "this machine has %d GPU%s, numbered from 0", count, count == 1 ? "" : "s");
  cudaDeviceProp properties;
  cudaError_t error = cudaGetDeviceProperties(&properties, device);
  if (error != cudaSuccess) return cannot_open(device, "CUDA says '%s'", cudaGetErrorString(error));
  const int arch = 10 * properties.major + properties.minor;
  if (arch < OLDEST_CHIP)
    return cannot_open(device, "%s has compute capability %d.%d, at least 8.0 (Ampere) is needed. Use --device cpu", properties.name,
                       properties.major, properties.minor);
  Found found;
  ctx->cublas = load_cublas(&found);
  if (!ctx->cublas)
    return cannot_open(device,
                       "%s. Install it (the CUDA toolkit, or its package libcublas), name its folder in METALORA_CUDA_DIR, or use "
                       "--device cpu",
                       found.problem);
  ctx->device = device;
  if ((error = cudaSetDevice(device)) != cudaSuccess) {
    const char* reason = cudaGetErrorString(error);
    if (error == cudaErrorDevicesUnavailable)
      reason = "another process holds it exclusively (nvidia-smi shows it). Wait for it, or use another --device";
    if (error == cudaErrorMemoryAllocation) reason = "other processes hold its memory (nvidia-smi shows them). Wait for them, or use another --device";
    return cannot_open(device, "%s", reason);
  }
  const auto take = [&](cudaError_t result) {
    if (error == cudaSuccess) error = result;
  };
  take(cudaStreamCreateWithFlags(&ctx->stream, cudaStreamNonBlocking));
  take(cudaMalloc(&ctx->workspace, WORKSPACE_BYTES));
  take(cudaMalloc((void**)&ctx->scratch, SCRATCH_BYTES));
  take(cudaMalloc((void**)&ctx->fault, 256));
  if (error == cudaSuccess) take(cudaMemset(ctx->fault, 0, 256));
  take(cudaMallocHost((void**)&ctx->fault_host, 256));
  for (int i = 0; i < 2; i++) take(cudaEventCreateWithFlags(&ctx->staged[i], cudaEventDisableTiming));
  for (cudaEvent_t& mark : ctx->marks) take(cudaEventCreate(&mark));
  if (error != cudaSuccess) {
    const Left left;
    if (error == cudaErrorMemoryAllocation)
      return cannot_open(device,
                         "%llu of %llu MiB are free, at least %zu are needed; other processes hold the rest (nvidia-smi shows them). Wait "
                         "for them, or use another --device",
                         left.free, left.total, (WORKSPACE_BYTES + SCRATCH_BYTES + MIB) / MIB);
    return cannot_open(device, "CUDA says '%s' (%d)", cudaGetErrorString(error), (int)error);
  }
  int status = ctx->cublas->create(&ctx->handle);
  if (status == 0) status = ctx->cublas->set_stream(ctx->handle, ctx->stream);
  if (status == 0) status = ctx->cublas->set_workspace(ctx->handle, ctx->workspace, WORKSPACE_BYTES);
  if (status != 0) {
    const Left left;
    return cannot_open(device, "cuBLAS (%.400s) answers '%s' (%d), with %llu of %llu MiB free. Free some memory, or use another cuBLAS",
                       found.path, cublas_status(status), status, left.free, left.total);
  }
  // METALORA_ARCH=80 takes the kernels of an older chip, for tests and to tell a kernel's fault from another.
  const char* asked = getenv("METALORA_ARCH");
  const int lower = asked && *asked ? atoi(asked) : arch;
  ctx->on = {ctx->stream, lower >= OLDEST_CHIP && lower < arch ? lower : arch, properties.multiProcessorCount};
  const char* tune = getenv("METALORA_TUNE");
  ctx->tuning = !tune || strcmp(tune, "0") != 0;
  const char* synchronous = getenv("METALORA_SYNCHRONOUS");
  ctx->slow = synchronous && *synchronous && strcmp(synchronous, "0") != 0;
  snprintf(ctx->name, sizeof ctx->name, "%.96s, compute capability %d.%d, %llu MiB", properties.name, properties.major, properties.minor,
           (unsigned long long)(properties.totalGlobalMem >> 20));
  return true;
}

void close(ml_ctx* ctx) {
  forget_products(*ctx);
  if (ctx->handle) ctx->cublas->destroy(ctx->handle);
  for (int64_t i = 0; i < ctx->count; i++) free_anywhere(ctx->allocations[i].data);
  free(ctx->allocations);
  for (cudaEvent_t mark : ctx->marks)
    if (mark) cudaEventDestroy(mark);
  for (cudaEvent_t staged : ctx->staged)
    if (staged) cudaEventDestroy(staged);
  for (void* staging : ctx->staging) cudaFreeHost(staging);
  cudaFreeHost(ctx->fault_host);
  cudaFree(ctx->landing);
  cudaFree(ctx->fault);
  cudaFree(ctx->scratch);
  cudaFree(ctx->workspace);
  if (ctx->stream) cudaStreamDestroy(ctx->stream);
  // Freeing one by one fails in a lost context, and its memory would stay taken until the process ends.
  if (ctx->lost) cudaDeviceReset();
  cudaGetLastError();
  ctx->~ml_ctx();
  free(ctx);
}

// Errors of work that was under way: the context is lost, and whichever call comes next tells them.
bool ends_context(cudaError_t error) {
  switch (error) {
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchTimeout:
    case cudaErrorAssert:
    case cudaErrorHardwareStackError:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorLaunchFailure:
    case cudaErrorECCUncorrectable:
    case cudaErrorNvlinkUncorrectable:
    case cudaErrorContained: return true;
    default: return false;
  }
}

}  // namespace

Context* base(ml_ctx* ctx) { return ctx; }

Left::Left() {
  size_t free_bytes = 0, total_bytes = 0;
  cudaMemGetInfo(&free_bytes, &total_bytes);
  cudaGetLastError();
  free = free_bytes / MIB;
  total = total_bytes / MIB;
}

bool succeeded(Call& call, ml_ctx&, cudaError_t error) {
  if (error == cudaSuccess) return true;
  cudaGetLastError();
  if (error == cudaErrorMemoryAllocation) {
    const Left left;
    return call.fault("the GPU's memory is exhausted: %llu of %llu MiB are free (nvidia-smi shows who holds the rest)", left.free, left.total);
  }
  const char* text = cudaGetErrorString(error);
  return ends_context(error) ? call.lost("CUDA says '%s' (%d)", text, (int)error) : call.fault("CUDA says '%s' (%d)", text, (int)error);
}

void launched(Call& call, ml_ctx& ctx, cudaError_t error) {
  if (error == cudaSuccess && ctx.slow && !ctx.capturing) error = cudaStreamSynchronize(ctx.stream);
  succeeded(call, ctx, error);
}

bool enter(Call& call, ml_ctx& ctx) { return succeeded(call, ctx, cudaSetDevice(ctx.device)); }

namespace backend {

void mark(Call& call, ml_ctx& ctx, int32_t slot) {
  if (enter(call, ctx) && !ctx.capturing) succeeded(call, ctx, cudaEventRecord(ctx.marks[slot], ctx.stream));
}

void elapsed(Call& call, ml_ctx& ctx, int32_t from, int32_t to, double* milliseconds) {
  float time = 0;
  if (enter(call, ctx) && succeeded(call, ctx, cudaEventSynchronize(ctx.marks[to])))
    succeeded(call, ctx, cudaEventElapsedTime(&time, ctx.marks[from], ctx.marks[to]));
  *milliseconds = time;
}

void graph_begin(Call& call, ml_ctx& ctx) {
  if (ctx.capturing) return (void)call.fail("one is being recorded already");
  if (!enter(call, ctx)) return;
  // Relaxed: other threads of the process may use CUDA meanwhile.
  ctx.capturing = succeeded(call, ctx, cudaStreamBeginCapture(ctx.stream, cudaStreamCaptureModeRelaxed));
}

void* graph_end(Call& call, ml_ctx& ctx) {
  if (!ctx.capturing) return call.fail("none is being recorded"), nullptr;
  ctx.capturing = false;
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  if (!enter(call, ctx) || !succeeded(call, ctx, cudaStreamEndCapture(ctx.stream, &graph))) return nullptr;
  succeeded(call, ctx, cudaGraphInstantiate(&executable, graph, 0));
  cudaGraphDestroy(graph);
  return executable;
}

void graph_launch(Call& call, ml_ctx& ctx, void* graph) {
  if (enter(call, ctx)) launched(call, ctx, cudaGraphLaunch((cudaGraphExec_t)graph, ctx.stream));
}

// As with memory, what a lost context says while it is cleared away is no news: the call that met the fault has told it.
void graph_free(Call&, ml_ctx& ctx, void* graph) {
  cudaSetDevice(ctx.device);
  cudaGraphExecDestroy((cudaGraphExec_t)graph);
  cudaGetLastError();
}

}  // namespace backend
}  // namespace metalora

extern "C" {

int32_t ml_create(int32_t device, int32_t, void* out) {
  if (!out) {
    snprintf(global_error, sizeof global_error, "Cannot open CUDA device %d: out is NULL", device);
    return ML_WRONG;
  }
  void* memory = calloc(1, sizeof(ml_ctx));
  if (!memory) {
    snprintf(global_error, sizeof global_error, "Cannot open CUDA device %d: the machine's memory is exhausted", device);
    return ML_FAULT;
  }
  ml_ctx* ctx = new (memory) ml_ctx();
  if (!open(ctx, device)) {
    close(ctx);
    return ML_FAULT;
  }
  memcpy(out, &ctx, sizeof ctx);
  return 0;
}

void ml_destroy(ml_ctx* ctx) {
  if (!ctx) return;
  cudaSetDevice(ctx->device);
  if (ends_context(cudaStreamSynchronize(ctx->stream))) ctx->lost = true;
  close(ctx);
}

int32_t ml_device_units(ml_ctx* ctx) { return ctx ? ctx->on.units : 0; }

// Opens no device: asking must not take memory of every GPU.
int32_t ml_report(void* text, int32_t capacity) {
  static char report[16384];
  char version[16] = "", built[16];
  Obstacle obstacle;
  const bool none = obstructed(obstacle);
  int driver = 0, count = 0;
  if (cudaDriverGetVersion(&driver) == cudaSuccess && driver > 0) version_text(driver, version, sizeof version);
  version_text(CUDART_VERSION, built, sizeof built);
  if (!none) cudaGetDeviceCount(&count);
  size_t used = 0;
  // What a person named must not end a string of JSON.
  const auto clean = [](char* text) {
    for (char* c = text; *c; c++)
      if (*c == '"' || *c == '\\' || (unsigned char)*c < ' ') *c = '_';
  };
  const auto add = [&](const char* format, auto... values) {
    if (used < sizeof report) used += (size_t)snprintf(report + used, sizeof report - used, format, values...);
  };
  clean(obstacle.reason);
  add("{\"driver\":\"%s\",\"built_for\":\"%s\",\"problem\":\"%s%s%s\",\"gpus\":[", version, built, obstacle.reason,
      obstacle.remedy ? ". " : "", obstacle.remedy ? obstacle.remedy : "");
  for (int i = 0; i < count; i++) {
    cudaDeviceProp properties;
    if (cudaGetDeviceProperties(&properties, i) != cudaSuccess) continue;
    add("%s{\"index\":%d,\"name\":\"%s\",\"compute_capability\":\"%d.%d\",\"multiprocessors\":%d,\"memory_bytes\":%llu,\"usable\":%s}",
        i ? "," : "", i, properties.name, properties.major, properties.minor, properties.multiProcessorCount,
        (unsigned long long)properties.totalGlobalMem, 10 * properties.major + properties.minor >= OLDEST_CHIP ? "true" : "false");
  }
  cudaGetLastError();
  Found found;
  const Cublas* cublas = load_cublas(&found);
  clean(found.path);
  clean(found.problem);
  int cublas_version[3] = {};
  for (int i = 0; cublas && i < 3; i++) cublas->get_property(i, &cublas_version[i]);
  add("],\"cublas\":{\"found\":%s,\"path\":\"%s\",\"version\":\"%d.%d.%d\",\"problem\":\"%s\"}}", cublas ? "true" : "false", found.path,
      cublas_version[0], cublas_version[1], cublas_version[2], found.problem);
  return copy_text(report, text, capacity);
}

}  // extern "C"
