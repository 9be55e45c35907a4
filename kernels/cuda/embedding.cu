// embedding.cu: rows of a table by token id and of another by position, and the rows that carry a label out of the stream and back into it.
#include "math.cuh"

namespace metalora {
namespace cuda {

static const int THREADS = 256;

// A block's shape for rows of `vectors` accesses: threads along the row, and rows beside each other where rows are short.
static dim3 shape(int64_t vectors) {
  const int along = vectors >= THREADS / 2 ? THREADS / 2 : round_to_warps(vectors);
  return dim3((unsigned)along, (unsigned)(THREADS / along));
}

// Copies one row, or writes zeros where there is none (from NULL).
template <int W>
static __device__ __forceinline__ void copy_row(int64_t d, const bf16* from, bf16* to) {
#pragma unroll 4
  for (int64_t j = threadIdx.x * W; j < d; j += blockDim.x * W) store_bits<W>(to + j, from ? load_bits<W>(from + j) : Bits<W>{});
}

template <int W>
static __device__ __forceinline__ void add_rows(int64_t d, const bf16* one, const bf16* other, bf16* to) {
#pragma unroll 4
  for (int64_t j = threadIdx.x * W; j < d; j += blockDim.x * W) {
    float a[W], b[W];
    load<W>(one + j, a);
    load<W>(other + j, b);
#pragma unroll
    for (int i = 0; i < W; i++) a[i] += b[i];
    store<W>(to + j, a);
  }
}

template <int W>
static __global__ void __launch_bounds__(THREADS) embed(int64_t T, int64_t d, int64_t V, const bf16* table, const int32_t* ids,
                                                        const bf16* places, const int32_t* positions, bf16* out, int64_t ldo, int32_t* fault) {
  const int64_t t = (int64_t)blockIdx.x * blockDim.y + threadIdx.y;
  if (t >= T) return;
  const int32_t id = ids[t];
  const bool known = id >= 0 && id < V;
  if (places && known)
    add_rows<W>(d, table + id * d, places + positions[t] * d, out + t * ldo);
  else
    copy_row<W>(d, known ? table + id * d : nullptr, out + t * ldo);
  // The largest of the faults (as unsigned numbers), so that the same ids leave the same word; 1 + -1 would mean no fault.
  if (!known && threadIdx.x == 0) atomicMax((unsigned*)fault, id == -1 ? 0x80000000u : (unsigned)id + 1u);
}

template <int W>
static __global__ void __launch_bounds__(THREADS) gather(int64_t R, int64_t d, const bf16* x, int64_t ldx, const int32_t* rows, bf16* out,
                                                         int64_t ldo) {
  const int64_t r = (int64_t)blockIdx.x * blockDim.y + threadIdx.y;
  if (r >= R) return;
  const int32_t row = rows[r];
  copy_row<W>(d, row >= 0 ? x + row * ldx : nullptr, out + r * ldo);
}

template <int W>
static __global__ void __launch_bounds__(THREADS) zero(int64_t T, int64_t d, bf16* out, int64_t ldo) {
  const int64_t t = (int64_t)blockIdx.x * blockDim.y + threadIdx.y;
  if (t < T) copy_row<W>(d, nullptr, out + t * ldo);
}

template <int W>
static __global__ void __launch_bounds__(THREADS) scatter(int64_t R, int64_t T, int64_t d, const bf16* x, int64_t ldx, const int32_t* rows,
                                                          bf16* out, int64_t ldo) {
  const int64_t r = (int64_t)blockIdx.x * blockDim.y + threadIdx.y;
  if (r >= R) return;
  const int32_t row = rows[r];
  if (row >= 0 && row < T) copy_row<W>(d, x + r * ldx, out + row * ldo);
}

cudaError_t embedding_forward(const Launch& on, int64_t T, int64_t d, int64_t V, const bf16* table, const int32_t* ids, const bf16* places,
                              const int32_t* positions, bf16* out, int64_t ldo, int32_t* fault) {
  if (T == 0 || d == 0) return cudaSuccess;
  const bool wide = d % 8 == 0 && aligned16(table) && aligned16(places) && aligned16(out, ldo);
  const dim3 block = shape(wide ? d / 8 : d);
  const unsigned grid = (unsigned)ceil_div(T, block.y);
  if (wide)
    embed<8><<<grid, block, 0, on.stream>>>(T, d, V, table, ids, places, positions, out, ldo, fault);
  else
    embed<1><<<grid, block, 0, on.stream>>>(T, d, V, table, ids, places, positions, out, ldo, fault);
  return cudaGetLastError();
}

cudaError_t gather_rows(const Launch& on, int64_t R, int64_t d, const bf16* x, int64_t ldx, const int32_t* rows, bf16* out, int64_t ldo) {
  if (R == 0 || d == 0) return cudaSuccess;
  const bool wide = d % 8 == 0 && aligned16(x, ldx) && aligned16(out, ldo);
  const dim3 block = shape(wide ? d / 8 : d);
  const unsigned grid = (unsigned)ceil_div(R, block.y);
  if (wide)
    gather<8><<<grid, block, 0, on.stream>>>(R, d, x, ldx, rows, out, ldo);
  else
    gather<1><<<grid, block, 0, on.stream>>>(R, d, x, ldx, rows, out, ldo);
  return cudaGetLastError();
}

cudaError_t scatter_rows(const Launch& on, int64_t R, int64_t T, int64_t d, const bf16* x, int64_t ldx, const int32_t* rows, bf16* out,
                         int64_t ldo) {
  if (T == 0 || d == 0) return cudaSuccess;
  const bool wide = d % 8 == 0 && aligned16(x, ldx) && aligned16(out, ldo);
  const dim3 block = shape(wide ? d / 8 : d);
  const unsigned all = (unsigned)ceil_div(T, block.y), some = (unsigned)ceil_div(R, block.y);
  if (wide)
    zero<8><<<all, block, 0, on.stream>>>(T, d, out, ldo);
  else
    zero<1><<<all, block, 0, on.stream>>>(T, d, out, ldo);
  if (R > 0) {
    if (wide)
      scatter<8><<<some, block, 0, on.stream>>>(R, T, d, x, ldx, rows, out, ldo);
    else
      scatter<1><<<some, block, 0, on.stream>>>(R, T, d, x, ldx, rows, out, ldo);
  }
  return cudaGetLastError();
}

}  // namespace cuda
}  // namespace metalora
