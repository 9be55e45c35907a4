// types.h: operands that the shim hands to kernels of any device.
#pragma once
#include <stdint.h>

namespace metalora {

// A dense or strided matrix operand, f32 (dtype 0) or bf16 (dtype 1). The reduction dimension may jump: indices
// k >= jump_at are read jump_by elements further on, which lets one product read [W | s B_g] out of a wider row.
struct Operand {
  const void* data;
  int64_t ld;
  int dtype;
  bool trans;  // a: false = [M, K], true = [K, M]; b: false = [K, N], true = [N, K]
  int64_t jump_at;  // = K when there is no jump
  int64_t jump_by;
};

struct Group { int32_t d_out, r; };
constexpr int MOST_GROUPS = 8;  // matrices that share an input

// Factors of an outer product's terms (one a row of the stream) and of its columns, f32; NULL: 1.
struct OuterScales {
  const void *rows, *columns;
};

// out_i [p, q] = beta out_i + alpha a_i^T b_i over the rows of segment i, terms and columns scaled.
struct OuterProduct {
  int64_t p, q;
  const void* a;
  int64_t lda;
  const void* b;
  int64_t ldb;
  OuterScales scales;
  float alpha;
  void* out;
};

// The narrow side of an outer product with a wide one that is at hand: rows [T, r], ld apart; out = scale * product. r 0: none.
struct NarrowSide {
  int64_t r;
  const void* rows;
  int64_t ld;
  void* out;
  float scale;
};

// The adapters of a linear layer (ml_lora_refresh).
struct LoraLayer {
  int64_t d_in;
  int32_t G;
  const Group* groups;
  const float *scales, *theta;
  void* W;
  int64_t ldw;
  void* a_cast;  // or NULL
  int64_t lda;
};
constexpr int MOST_LAYERS = 1024;

// Columns first .. first + length - 1 of n long f32 rows: row i begins at x + i * ld.
struct Piece {
  const float* x;
  int64_t ld, first, length;
};
constexpr int MOST_PIECES = 1024;

}  // namespace metalora
