// pieces.cuh: rows that lie in pieces (kernels/types.h), as kernels are told of them: many pieces share a launch.
#pragma once
#include "math.cuh"

namespace metalora {
namespace cuda {

// What one launch can be told: pieces, and how many blocks' worth of columns lie before each.
constexpr int AT_ONCE = 96;
struct Listed {
  int count;
  struct {
    const float* x;
    int ld, first, length, before;
  } items[AT_ONCE];
};

// Launches of at most AT_ONCE pieces each, cut into units of `columns` columns: launch(list, units, units before them).
template <class Launcher>
static cudaError_t each_list(const Piece* pieces, int count, int64_t columns, const Launcher& launch) {
  int64_t before = 0;
  for (int at = 0; at < count; at += AT_ONCE) {
    Listed list = {};
    int64_t units = 0;
    for (int i = at; i < count && i < at + AT_ONCE; i++) {
      const Piece& piece = pieces[i];
      list.items[list.count++] = {piece.x, (int)piece.ld, (int)piece.first, (int)piece.length, (int)units};
      units += ceil_div(piece.length, columns);
    }
    launch(list, units, before);
    const cudaError_t error = cudaGetLastError();
    if (error != cudaSuccess) return error;
    before += units;
  }
  return cudaSuccess;
}

// Whether rows of all pieces, and of another matrix, may be read 16 bytes at a time.
static inline bool aligned(int64_t n, const Piece* pieces, int count, const float* other, int64_t ld_other) {
  bool all = aligned16(other, n > 1 ? ld_other : 0, 4);
  for (int i = 0; i < count; i++) all = all && aligned16(pieces[i].x, n > 1 ? pieces[i].ld : 0, 4) && pieces[i].first % 4 == 0;
  return all;
}

// Whether the lengths of all pieces are multiples of four.
static inline bool fours(const Piece* pieces, int count) {
  for (int i = 0; i < count; i++)
    if (pieces[i].length % 4 != 0) return false;
  return true;
}

}  // namespace cuda
}  // namespace metalora
