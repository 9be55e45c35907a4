// cuda_memory.cpp: memory of a GPU and copies to, from and within it. Uploads go through two pinned buffers in turn, so that the
// host fills one while the other travels.
#include <string.h>

#include "cuda_device.h"

namespace metalora {

void free_anywhere(void* data) {
  cudaPointerAttributes about = {};
  if (cudaPointerGetAttributes(&about, data) == cudaSuccess && about.type == cudaMemoryTypeHost)
    cudaFreeHost(data);
  else
    cudaFree(data);
}

namespace backend {

namespace {

bool not_while_recording(Call& call, ml_ctx& ctx) {
  return enter(call, ctx) && (!ctx.capturing || call.fail("a graph is being recorded"));
}

// The next pinned buffer, free to be written.
void* staging(Call& call, ml_ctx& ctx) {
  const int i = ctx.next_staging;
  if (!ctx.staging[i]) {
    const cudaError_t error = cudaMallocHost(&ctx.staging[i], STAGING_BYTES);
    if (error == cudaErrorMemoryAllocation) {
      cudaGetLastError();
      return call.fault("the machine has no %zu MiB of memory left for a buffer that the GPU reads", STAGING_BYTES / MIB), nullptr;
    }
    if (!succeeded(call, ctx, error)) return nullptr;
  }
  if (!succeeded(call, ctx, cudaEventSynchronize(ctx.staged[i]))) return nullptr;
  return ctx.staging[i];
}

void sent(Call& call, ml_ctx& ctx) {
  succeeded(call, ctx, cudaEventRecord(ctx.staged[ctx.next_staging], ctx.stream));
  ctx.next_staging ^= 1;
}

}  // namespace

char* allocate(Call& call, ml_ctx& ctx, uint64_t bytes, bool host) {
  if (!not_while_recording(call, ctx)) return nullptr;
  void* data = nullptr;
  if (host) {
    const cudaError_t error = cudaMallocHost(&data, bytes);
    if (error == cudaErrorMemoryAllocation) {
      cudaGetLastError();
      call.fault("the host has not that much memory left that a GPU can read (pinned memory)");
      return nullptr;
    }
    if (!succeeded(call, ctx, error)) return nullptr;
    memset(data, 0, bytes);
    return (char*)data;
  }
  cudaError_t error = cudaMalloc(&data, bytes);
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    const Left left;
    call.fault("that is %llu MiB, the GPU has %llu of %llu MiB free (this process holds %llu; nvidia-smi shows the others)",
               (unsigned long long)(bytes + MIB - 1) / MIB, left.free, left.total, (unsigned long long)ctx.allocated / MIB);
    return nullptr;
  }
  if (!succeeded(call, ctx, error)) return nullptr;
  if (!succeeded(call, ctx, cudaMemsetAsync(data, 0, bytes, ctx.stream))) return nullptr;
  return (char*)data;
}

void release(ml_ctx& ctx, char* data, uint64_t) {
  cudaSetDevice(ctx.device);
  cudaStreamSynchronize(ctx.stream);
  free_anywhere(data);
}

void upload(Call& call, ml_ctx& ctx, void* dst, const void* src, uint64_t bytes) {
  if (!not_while_recording(call, ctx)) return;
  for (uint64_t at = 0; at < bytes && !call.failed(); at += STAGING_BYTES) {
    const uint64_t part = bytes - at < STAGING_BYTES ? bytes - at : STAGING_BYTES;
    void* buffer = staging(call, ctx);
    if (!buffer) return;
    memcpy(buffer, (const char*)src + at, part);
    if (succeeded(call, ctx, cudaMemcpyAsync((char*)dst + at, buffer, part, cudaMemcpyDefault, ctx.stream))) sent(call, ctx);
  }
}

void download(Call& call, ml_ctx& ctx, void* dst, const void* src, uint64_t bytes) {
  if (!not_while_recording(call, ctx)) return;
  if (succeeded(call, ctx, cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDefault, ctx.stream))) synchronize(call, ctx);
}

void copy(Call& call, ml_ctx& ctx, void* dst, const void* src, uint64_t bytes) {
  if (enter(call, ctx)) launched(call, ctx, cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDefault, ctx.stream));
}

void zero(Call& call, ml_ctx& ctx, void* dst, uint64_t bytes) {
  if (enter(call, ctx)) launched(call, ctx, cudaMemsetAsync(dst, 0, bytes, ctx.stream));
}

void upload_2d(Call& call, ml_ctx& ctx, int64_t rows, int64_t cols, const void* src, int32_t src_dtype, void* dst, int32_t dst_dtype,
               int64_t ld_dst) {
  if (!not_while_recording(call, ctx)) return;
  const int64_t from = cols * dtype_size(src_dtype), to = dtype_size(dst_dtype);
  const int64_t most = (int64_t)STAGING_BYTES / from;  // rows in one staging buffer
  if (most == 0) return (void)call.fail("a row has %lld bytes, at most %lld travel at a time", (long long)from, (long long)STAGING_BYTES);
  if (src_dtype != dst_dtype && !ctx.landing && !succeeded(call, ctx, cudaMalloc(&ctx.landing, STAGING_BYTES))) return;
  for (int64_t row = 0; row < rows && !call.failed(); row += most) {
    const int64_t count = rows - row < most ? rows - row : most;
    void* buffer = staging(call, ctx);
    if (!buffer) return;
    memcpy(buffer, (const char*)src + row * from, (size_t)(count * from));
    char* target = (char*)dst + row * ld_dst * to;
    if (src_dtype == dst_dtype) {
      succeeded(call, ctx, cudaMemcpy2DAsync(target, (size_t)(ld_dst * to), buffer, (size_t)from, (size_t)from, (size_t)count,
                                        cudaMemcpyDefault, ctx.stream));
      sent(call, ctx);
    } else {
      succeeded(call, ctx, cudaMemcpyAsync(ctx.landing, buffer, (size_t)(count * from), cudaMemcpyDefault, ctx.stream));
      sent(call, ctx);
      launched(call, ctx, cuda::convert_2d(ctx.on, count, cols, ctx.landing, src_dtype, cols, target, dst_dtype, ld_dst));
    }
  }
}

void copy_2d(Call& call, ml_ctx& ctx, int64_t rows, int64_t cols, int64_t size, const void* src, int64_t ld_src, void* dst, int64_t ld_dst) {
  if (!enter(call, ctx)) return;
  // For the few columns that LoRA copies a kernel is faster than the driver's own copy: 0.60 ms instead of 1.12 for the 96 of a step of
  // Llama-2-7B, 4 x 2048 tokens (H100, `bench --parts`).
  launched(call, ctx, cuda::copy_2d(ctx.on, rows, cols * size, src, ld_src * size, dst, ld_dst * size));
}

// Waits, then asks the fault word whether an input was impossible.
void synchronize(Call& call, ml_ctx& ctx) {
  if (!not_while_recording(call, ctx)) return;
  if (!succeeded(call, ctx, cudaMemcpyAsync(ctx.fault_host, ctx.fault, 4, cudaMemcpyDefault, ctx.stream))) return;
  if (!succeeded(call, ctx, cudaStreamSynchronize(ctx.stream)) || *ctx.fault_host == 0) return;
  const int32_t id = *ctx.fault_host - 1;
  succeeded(call, ctx, cudaMemsetAsync(ctx.fault, 0, 4, ctx.stream));
  call.fail("a batch had the token id %d, which the embedding does not have", id);
}

void memory_info(Call& call, ml_ctx& ctx, uint64_t* free_bytes, uint64_t* total_bytes) {
  size_t free_now = 0, total = 0;
  if (enter(call, ctx)) succeeded(call, ctx, cudaMemGetInfo(&free_now, &total));
  *free_bytes = free_now;
  *total_bytes = total;
}

}  // namespace backend
}  // namespace metalora
