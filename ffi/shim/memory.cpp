// memory.cpp: memory of a device, copies to, from and within it, time and graphs: the checks; backend.h does the work.
#include <string.h>

#include "backend.h"

using namespace metalora;

extern "C" {

int32_t ml_alloc(ml_ctx* ctx, uint64_t bytes, int32_t host, void* out) {
  Call call(base(ctx), "allocate %lld bytes", bytes);
  call.host("out", out);
  if (bytes == 0) call.fail("the size must be positive");
  if (host != 0 && host != 1) call.fail("host is %d, must be 0 or 1", host);
  if (call.failed()) return call.status();
  if (!base(ctx)->reserve()) return call.fault("the machine's memory is exhausted"), call.status();
  char* data = backend::allocate(call, *ctx, bytes, host == 1);
  if (!data) return call.status();
  base(ctx)->add(data, bytes);
  memcpy(out, &data, sizeof data);
  return 0;
}

int32_t ml_free(ml_ctx* ctx, ml_ptr p) {
  Call call(base(ctx), "free memory");
  if (call.failed()) return call.status();
  if (!p) return 0;
  const Allocation* block = base(ctx)->find(p);
  if (!block || block->data != p) {
    call.fail("the address is not one that ml_alloc gave, or is free already");
    return call.status();
  }
  backend::release(*ctx, block->data, block->bytes);
  base(ctx)->remove(block);
  return 0;
}

int32_t ml_upload(ml_ctx* ctx, ml_ptr dst, const void* src_host, uint64_t bytes) {
  Call call(base(ctx), "upload %lld bytes", bytes);
  if (bytes == 0 && !call.failed()) return 0;
  call.host("the source", src_host);
  call.bytes("the destination", dst, bytes, 1);
  if (call.failed()) return call.status();
  backend::upload(call, *ctx, dst, src_host, bytes);
  return call.status();
}

int32_t ml_download(ml_ctx* ctx, void* dst_host, ml_ptr src, uint64_t bytes) {
  Call call(base(ctx), "download %lld bytes", bytes);
  if (bytes == 0 && !call.failed()) return 0;
  call.host("the destination", dst_host);
  call.bytes("the source", src, bytes, 1);
  if (call.failed()) return call.status();
  backend::download(call, *ctx, dst_host, src, bytes);
  return call.status();
}

int32_t ml_copy(ml_ctx* ctx, ml_ptr dst, ml_ptr src, uint64_t bytes) {
  Call call(base(ctx), "copy %lld bytes", bytes);
  if (bytes == 0 && !call.failed()) return 0;
  call.bytes("the destination", dst, bytes, 1);
  call.bytes("the source", src, bytes, 1);
  if (!call.failed() && (char*)dst < (char*)src + bytes && (char*)src < (char*)dst + bytes && dst != src)
    call.fail("source and destination overlap");
  if (call.failed()) return call.status();
  if (dst != src) backend::copy(call, *ctx, dst, src, bytes);
  return call.status();
}

int32_t ml_zero(ml_ctx* ctx, ml_ptr dst, uint64_t bytes) {
  Call call(base(ctx), "zero %lld bytes", bytes);
  if (bytes == 0 && !call.failed()) return 0;
  call.bytes("the destination", dst, bytes, 1);
  if (call.failed()) return call.status();
  backend::zero(call, *ctx, dst, bytes);
  return call.status();
}

int32_t ml_upload_2d(ml_ctx* ctx, int32_t rows, int32_t cols, const void* src_host, int32_t src_dtype, ml_ptr dst,
                     int32_t dst_dtype, int32_t ld_dst) {
  Call call(base(ctx), "upload [%lld,%lld]", rows, cols);
  call.positive("rows", rows);
  call.positive("cols", cols);
  call.host("the source", src_host);
  if (src_dtype != ML_F16) call.number_dtype("the source's dtype", src_dtype);
  call.number_dtype("the destination's dtype", dst_dtype);
  call.matrix("the destination", dst, rows, cols, ld_dst, dtype_size(dst_dtype));
  if (call.failed()) return call.status();
  backend::upload_2d(call, *ctx, rows, cols, src_host, src_dtype, dst, dst_dtype, ld_dst);
  return call.status();
}

int32_t ml_copy_2d(ml_ctx* ctx, int32_t rows, int32_t cols, int32_t dtype, ml_ptr src, int32_t ld_src, ml_ptr dst,
                   int32_t ld_dst) {
  Call call(base(ctx), "copy [%lld,%lld]", rows, cols);
  call.positive("rows", rows);
  call.positive("cols", cols);
  call.number_dtype("dtype", dtype);
  const int64_t size = dtype_size(dtype);
  call.matrix("the source", src, rows, cols, ld_src, size);
  call.matrix("the destination", dst, rows, cols, ld_dst, size);
  if (call.failed()) return call.status();
  backend::copy_2d(call, *ctx, rows, cols, size, src, ld_src, dst, ld_dst);
  return call.status();
}

int32_t ml_synchronize(ml_ctx* ctx) {
  Call call(base(ctx), "wait for the device");
  if (!call.failed()) backend::synchronize(call, *ctx);
  return call.status();
}

int32_t ml_memory_info(ml_ctx* ctx, void* out) {
  Call call(base(ctx), "ask for the device's memory");
  call.host("out", out);
  if (call.failed()) return call.status();
  uint64_t* bytes = (uint64_t*)out;
  backend::memory_info(call, *ctx, bytes, bytes + 1);
  return call.status();
}

int32_t ml_mark(ml_ctx* ctx, int32_t slot) {
  Call call(base(ctx), "mark the time in slot %lld", slot);
  if (slot < 0 || slot >= ML_MARKS) call.fail("slots are 0..%d", ML_MARKS - 1);
  if (!call.failed()) backend::mark(call, *ctx, slot);
  return call.status();
}

int32_t ml_elapsed(ml_ctx* ctx, int32_t from, int32_t to, void* out) {
  Call call(base(ctx), "take the time from mark %lld to mark %lld", from, to);
  if (from < 0 || from >= ML_MARKS || to < 0 || to >= ML_MARKS) call.fail("slots are 0..%d", ML_MARKS - 1);
  call.host("out", out);
  if (!call.failed()) backend::elapsed(call, *ctx, from, to, (double*)out);
  return call.status();
}

int32_t ml_graph_begin(ml_ctx* ctx) {
  Call call(base(ctx), "record a graph");
  if (!call.failed()) backend::graph_begin(call, *ctx);
  return call.status();
}

int32_t ml_graph_end(ml_ctx* ctx, void* out) {
  Call call(base(ctx), "end a graph");
  call.host("out", out);
  if (call.failed()) return call.status();
  void* graph = backend::graph_end(call, *ctx);
  memcpy(out, &graph, sizeof graph);
  return call.status();
}

int32_t ml_graph_launch(ml_ctx* ctx, ml_ptr graph) {
  Call call(base(ctx), "replay a graph");
  call.host("the graph", graph);
  if (!call.failed()) backend::graph_launch(call, *ctx, graph);
  return call.status();
}

int32_t ml_graph_free(ml_ctx* ctx, ml_ptr graph) {
  Call call(base(ctx), "free a graph");
  if (!call.failed() && graph) backend::graph_free(call, *ctx, graph);
  return call.status();
}

}  // extern "C"
