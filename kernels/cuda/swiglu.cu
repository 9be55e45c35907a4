// swiglu.cu: y = silu(gate) * up (Shazeer 2020, arXiv:2002.05202), silu(g) = g sigmoid(g).
//
//   dgate = dy up s (1 + g (1 - s))        dup = dy g s        with s = sigmoid(g)
#include "swiglu.cuh"

namespace metalora {
namespace cuda {

static const int THREADS = 256;

// A block takes one of `pieces` parts of a row.
template <int W>
static __global__ void __launch_bounds__(THREADS) forward(int64_t f, int pieces, const bf16* gate_up, int64_t ldg, bf16* y, int64_t ldy) {
  const int64_t t = blockIdx.x / pieces, j = ((int64_t)(blockIdx.x % pieces) * blockDim.x + threadIdx.x) * W;
  if (j >= f) return;
  const bf16* row = gate_up + t * ldg + j;
  const Bits<W> gate = load_bits<W>(row), up = load_bits<W>(row + f);
  float g[W], u[W];
  unpack(gate, g);
  unpack(up, u);
#pragma unroll
  for (int i = 0; i < W; i++) u[i] *= silu(g[i]);
  store<W>(y + t * ldy + j, u);
}

// dgate_up may be gate_up itself, y may be dy: a thread reads its elements before it writes them, and nobody else reads them.
template <int W>
static __global__ void __launch_bounds__(THREADS) backward(int64_t f, int pieces, const bf16* gate_up, int64_t ldg, const bf16* dy, int64_t lddy,
                                                           bf16* dgate_up, bf16* y) {
  const int64_t t = blockIdx.x / pieces, j = ((int64_t)(blockIdx.x % pieces) * blockDim.x + threadIdx.x) * W;
  if (j >= f) return;
  const int64_t at = t * ldg + j;
  const Bits<W> gate = load_bits<W>(gate_up + at), up = load_bits<W>(gate_up + at + f), out = load_bits<W>(dy + t * lddy + j);
  float g[W], u[W], o[W];
  unpack(gate, g);
  unpack(up, u);
  unpack(out, o);
#pragma unroll
  for (int i = 0; i < W; i++) {
    swiglu_backward(g[i], u[i], o[i]);
  }
  store<W>(dgate_up + at, g);
  store<W>(dgate_up + at + f, u);
  if (y) store<W>(y + t * lddy + j, o);
}

// Threads of a block and blocks of a row, such that the last block of a row is nearly as full as the others.
struct Pieces {
  int threads, count;
};
static Pieces divide(int64_t vectors) {
  const int64_t count = ceil_div(vectors, THREADS);
  return {round_to_warps(ceil_div(vectors, count)), (int)count};
}

cudaError_t swiglu_forward(const Launch& on, int64_t T, int64_t f, const bf16* gate_up, int64_t ldg, bf16* y, int64_t ldy) {
  if (T == 0 || f == 0) return cudaSuccess;
  const bool wide = f % 8 == 0 && aligned16(gate_up, ldg) && aligned16(y, ldy);
  const Pieces pieces = divide(wide ? f / 8 : f);
  const unsigned grid = (unsigned)(T * pieces.count);
  if (wide)
    forward<8><<<grid, pieces.threads, 0, on.stream>>>(f, pieces.count, gate_up, ldg, y, ldy);
  else
    forward<1><<<grid, pieces.threads, 0, on.stream>>>(f, pieces.count, gate_up, ldg, y, ldy);
  return cudaGetLastError();
}

cudaError_t swiglu_backward(const Launch& on, int64_t T, int64_t f, const bf16* gate_up, int64_t ldg, const bf16* dy, int64_t lddy, bf16* dgate_up,
                            bf16* y) {
  if (T == 0 || f == 0) return cudaSuccess;
  const bool wide = f % 8 == 0 && aligned16(gate_up, ldg) && aligned16(dgate_up) && aligned16(dy, lddy) && aligned16(y);
  const Pieces pieces = divide(wide ? f / 8 : f);
  const unsigned grid = (unsigned)(T * pieces.count);
  if (wide)
    backward<8><<<grid, pieces.threads, 0, on.stream>>>(f, pieces.count, gate_up, ldg, dy, lddy, dgate_up, y);
  else
    backward<1><<<grid, pieces.threads, 0, on.stream>>>(f, pieces.count, gate_up, ldg, dy, lddy, dgate_up, y);
  return cudaGetLastError();
}

}  // namespace cuda
}  // namespace metalora
