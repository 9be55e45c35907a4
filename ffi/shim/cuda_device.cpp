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

// Why there is no GPU to use, or NULL.
const char* no_driver(char* text, size_t capacity) {
  int driver = 0, count = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0)
    return "there is no NVIDIA driver (libcuda.so.1). Install one, or use --device cpu";
  const cudaError_t error = cudaGetDeviceCount(&count);
  cudaGetLastError();
  if (error == cudaErrorInsufficientDriver) {
    char has[16], needs[16];
    version_text(driver, has, sizeof has);
    version_text(CUDART_VERSION, needs, sizeof needs);
    snprintf(text, capacity, "the NVIDIA driver is too old: it supports CUDA %s, this library needs %s. Update the driver", has, needs);
    return text;
  }
  if (error == cudaErrorNoDevice || (error == cudaSuccess && count == 0))
    return "the NVIDIA driver sees no GPU (CUDA_VISIBLE_DEVICES may hide it). Use --device cpu";
  if (error != cudaSuccess) {
    snprintf(text, capacity, "the NVIDIA driver answers '%s' (%d). See nvidia-smi", cudaGetErrorString(error), (int)error);
    return text;
  }
  return nullptr;
}

bool open(ml_ctx* ctx, int device) {
  char text[256];
  if (const char* reason = no_driver(text, sizeof text)) return cannot_open(device, "%s", reason);
  int count = 0;
  cudaGetDeviceCount(&count);
  if (device < 0 || device >= count) return cannot_open(device, "this machine has %d, numbered from 0", count);
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
                       "cuBLAS was not found (tried %.700s). Install it (the CUDA toolkit, or the package libcublas), or name its folder "
                       "in METALORA_CUDA_DIR",
                       found.tried);
  ctx->device = device;
  if ((error = cudaSetDevice(device)) != cudaSuccess) {
    const char* reason = cudaGetErrorString(error);
    if (error == cudaErrorDevicesUnavailable)
      reason = "another process holds it exclusively; wait for it, or choose another device";
    if (error == cudaErrorMemoryAllocation) reason = "its memory is taken by other processes; see nvidia-smi";
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
    size_t free_bytes = 0, total = 0;
    cudaMemGetInfo(&free_bytes, &total);
    return cannot_open(device, "CUDA says '%s' (%zu of %zu MiB are free)", cudaGetErrorString(error), free_bytes >> 20, total >> 20);
  }
  int status = ctx->cublas->create(&ctx->handle);
  if (status == 0) status = ctx->cublas->set_stream(ctx->handle, ctx->stream);
  if (status == 0) status = ctx->cublas->set_workspace(ctx->handle, ctx->workspace, WORKSPACE_BYTES);
  if (status != 0) return cannot_open(device, "cuBLAS (%s) answers '%s' (%d)", found.path, cublas_status(status), status);
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
  cudaGetLastError();
  ctx->~ml_ctx();
  free(ctx);
}

}  // namespace

Context* base(ml_ctx* ctx) { return ctx; }

bool succeeded(Call& call, cudaError_t error) {
  if (error == cudaSuccess) return true;
  cudaGetLastError();
  const bool lost = error == cudaErrorIllegalAddress || error == cudaErrorLaunchFailure || error == cudaErrorMisalignedAddress ||
                    error == cudaErrorIllegalInstruction;
  return call.fail("CUDA says '%s' (%d)%s", cudaGetErrorString(error), (int)error,
                   lost ? "; it may stem from an operator before this one: run again with METALORA_SYNCHRONOUS=1 to learn which" : "");
}

void launched(Call& call, ml_ctx& ctx, cudaError_t error) {
  if (error == cudaSuccess && ctx.slow && !ctx.capturing) error = cudaStreamSynchronize(ctx.stream);
  succeeded(call, error);
}

bool enter(Call& call, ml_ctx& ctx) { return succeeded(call, cudaSetDevice(ctx.device)); }

namespace backend {

void mark(Call& call, ml_ctx& ctx, int32_t slot) {
  if (enter(call, ctx) && !ctx.capturing) succeeded(call, cudaEventRecord(ctx.marks[slot], ctx.stream));
}

void elapsed(Call& call, ml_ctx& ctx, int32_t from, int32_t to, double* milliseconds) {
  float time = 0;
  if (enter(call, ctx) && succeeded(call, cudaEventSynchronize(ctx.marks[to])))
    succeeded(call, cudaEventElapsedTime(&time, ctx.marks[from], ctx.marks[to]));
  *milliseconds = time;
}

void graph_begin(Call& call, ml_ctx& ctx) {
  if (ctx.capturing) return (void)call.fail("one is being recorded already");
  if (!enter(call, ctx)) return;
  // Relaxed: other threads of the process may use CUDA meanwhile.
  ctx.capturing = succeeded(call, cudaStreamBeginCapture(ctx.stream, cudaStreamCaptureModeRelaxed));
}

void* graph_end(Call& call, ml_ctx& ctx) {
  if (!ctx.capturing) return call.fail("none is being recorded"), nullptr;
  ctx.capturing = false;
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  if (!enter(call, ctx) || !succeeded(call, cudaStreamEndCapture(ctx.stream, &graph))) return nullptr;
  succeeded(call, cudaGraphInstantiate(&executable, graph, 0));
  cudaGraphDestroy(graph);
  return executable;
}

void graph_launch(Call& call, ml_ctx& ctx, void* graph) {
  if (enter(call, ctx)) launched(call, ctx, cudaGraphLaunch((cudaGraphExec_t)graph, ctx.stream));
}

void graph_free(Call& call, ml_ctx& ctx, void* graph) {
  if (enter(call, ctx)) succeeded(call, cudaGraphExecDestroy((cudaGraphExec_t)graph));
}

}  // namespace backend
}  // namespace metalora

extern "C" {

int32_t ml_create(int32_t device, int32_t, void* out) {
  if (!out) {
    snprintf(global_error, sizeof global_error, "Cannot open CUDA device %d: out is NULL", device);
    return 1;
  }
  void* memory = calloc(1, sizeof(ml_ctx));
  if (!memory) {
    snprintf(global_error, sizeof global_error, "Cannot open CUDA device %d: the machine's memory is exhausted", device);
    return 1;
  }
  ml_ctx* ctx = new (memory) ml_ctx();
  if (!open(ctx, device)) {
    close(ctx);
    return 1;
  }
  memcpy(out, &ctx, sizeof ctx);
  return 0;
}

void ml_destroy(ml_ctx* ctx) {
  if (!ctx) return;
  cudaSetDevice(ctx->device);
  cudaStreamSynchronize(ctx->stream);
  close(ctx);
}

int32_t ml_device_units(ml_ctx* ctx) { return ctx ? ctx->on.units : 0; }

// Opens no device: asking must not take memory of every GPU.
int32_t ml_report(void* text, int32_t capacity) {
  static char report[16384];
  char reason_text[256], version[16] = "", built[16];
  const char* reason = no_driver(reason_text, sizeof reason_text);
  int driver = 0, count = 0;
  if (cudaDriverGetVersion(&driver) == cudaSuccess && driver > 0) version_text(driver, version, sizeof version);
  version_text(CUDART_VERSION, built, sizeof built);
  if (!reason) cudaGetDeviceCount(&count);
  size_t used = 0;
  const auto add = [&](const char* format, auto... values) {
    if (used < sizeof report) used += (size_t)snprintf(report + used, sizeof report - used, format, values...);
  };
  add("{\"driver\":\"%s\",\"built_for\":\"%s\",\"problem\":\"%s\",\"gpus\":[", version, built, reason ? reason : "");
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
  for (char* text : {found.path, found.tried})
    for (char* c = text; *c; c++)
      if (*c == '"' || *c == '\\' || (unsigned char)*c < ' ') *c = '_';  // a folder's name must not end a string
  int cublas_version[3] = {};
  for (int i = 0; cublas && i < 3; i++) cublas->get_property(i, &cublas_version[i]);
  add("],\"cublas\":{\"found\":%s,\"path\":\"%s\",\"version\":\"%d.%d.%d\",\"tried\":\"%s\"}}", cublas ? "true" : "false", found.path,
      cublas_version[0], cublas_version[1], cublas_version[2], found.tried);
  return copy_text(report, text, capacity);
}

}  // extern "C"
