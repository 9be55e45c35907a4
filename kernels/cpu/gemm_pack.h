// gemm_pack.h: copies an operand into the order in which the innermost loop reads it.
//
// A panel is W rows of A (or W columns of B) over a stretch of K, stored as [units of k][W]; see gemm_kernel.h for `unit`.
// bf16 sources become f32, or with PAIRS both kinds become pairs of bf16. What lies outside the matrix is filled with 0.
#pragma once
#include "vec.h"

namespace metalora {
namespace ML_ISA {

// Where panel position i and step k of an operand lie: base + i * wide + k * deep, in elements; one of the two is 1.
struct Source {
  const char* base;
  int64_t wide, deep;
  int dtype;

  int64_t size() const { return dtype == 0 ? 4 : 2; }
  const char* at(int64_t i, int64_t k) const { return base + (i * wide + k * deep) * size(); }
};

// VL units read from memory. BF16: the source's type. PAIRS: units are two bf16 instead of one f32.
template <bool BF16, bool PAIRS>
struct Reader {
  static constexpr int64_t SIZE = BF16 ? 2 : 4;

  // Units that follow one another along k; `left` elements exist from p on, the rest reads as 0.
  ML_INLINE vf along_k(const char* p, int64_t left) {
    constexpr int64_t need = PAIRS ? 2 * VL : VL;
    char copy[need * SIZE];
    if (left < need) {
      memset(copy, 0, sizeof copy);
      memcpy(copy, p, (size_t)(left * SIZE));
      p = copy;
    }
    if (!PAIRS) return BF16 ? load_bf16((const uint16_t*)p) : load((const float*)p);
    if (BF16) return load((const float*)p);
#if defined(__AVX512BF16__)
    return (vf)_mm512_cvtne2ps_pbh((__m512)load((const float*)p + VL), (__m512)load((const float*)p));
#endif
    uint16_t pair[2 * VL];
    store_bf16(pair, load((const float*)p));
    store_bf16(pair + VL, load((const float*)p + VL));
    return load((const float*)pair);
  }

  // The same k of VL neighbouring rows or columns, `left` of which exist. PAIRS: joined with the next k, `deep` bytes on,
  // unless `last` (an odd K ends with half a pair).
  ML_INLINE vf across(const char* p, int64_t deep, bool last, int64_t left) {
    const vf first = some(p, left);
    if (!PAIRS) return first;
    const vf second = last ? vf{} : some(p + deep, left);
    const vu low = __builtin_convertvector(to_bf16(first), vu);
    const vu high = __builtin_convertvector(to_bf16(second), vu);
    return (vf)(low | high << 16);
  }

 private:
  ML_INLINE vf some(const char* p, int64_t left) {
    if (!BF16) return left >= VL ? load((const float*)p) : load_part((const float*)p, left);
    if (left >= VL) return load_bf16((const uint16_t*)p);
    uint16_t copy[VL] = {};
    memcpy(copy, p, (size_t)(left * 2));
    return load_bf16(copy);
  }
};

// One round of a transposition: of two rows, swaps the blocks of SIZE lanes that lie across the diagonal.
template <int SIZE>
constexpr int from_low(int lane) {
  return lane & SIZE ? VL + lane - SIZE : lane;
}
template <int SIZE>
constexpr int from_high(int lane) {
  return lane & SIZE ? VL + lane : lane + SIZE;
}
#if defined(__AVX512F__)
#define ML_LANES(f) \
  vi { f(0), f(1), f(2), f(3), f(4), f(5), f(6), f(7), f(8), f(9), f(10), f(11), f(12), f(13), f(14), f(15) }
#elif defined(__AVX2__)
#define ML_LANES(f) \
  vi { f(0), f(1), f(2), f(3), f(4), f(5), f(6), f(7) }
#else
#define ML_LANES(f) \
  vi { f(0), f(1), f(2), f(3) }
#endif
template <int SIZE>
ML_INLINE void transpose_round(vf (&row)[VL]) {
#pragma GCC unroll 16
  for (int i = 0; i < VL; i++) {
    if (i & SIZE) continue;
    const vf a = row[i], b = row[i + SIZE];
    row[i] = __builtin_shuffle(a, b, ML_LANES(from_low<SIZE>));
    row[i + SIZE] = __builtin_shuffle(a, b, ML_LANES(from_high<SIZE>));
  }
}
ML_INLINE void transpose(vf (&row)[VL]) {
  if constexpr (VL > 8) transpose_round<VL / 2>(row);
  if constexpr (VL > 4) transpose_round<4>(row);
  transpose_round<2>(row);
  transpose_round<1>(row);
}

// Stores the first LANES of v. Where that is no whole or half vector, what is written too much is overwritten by the
// step of k that follows; only the last step of a panel must be exact.
template <int LANES>
ML_INLINE void store_lanes(float* p, vf v, bool exact) {
  if (LANES >= VL) {
    store(p, v);
  } else if (LANES * 2 == VL) {
    memcpy(p, &v, sizeof v / 2);
  } else if (exact) {
    store_part(p, v, LANES);
  } else {
    store(p, v);
  }
}

// Positions FIRST .. FIRST + LANES - 1 of a panel of W.
template <int W, int FIRST>
struct Part {
  static constexpr int LANES = W - FIRST < VL ? W - FIRST : VL;
  static_assert(LANES == VL || LANES * 2 == VL || FIRST == 0, "odd remainders may not overwrite finished positions");
};

// Neighbouring positions lie next to each other: a step of k is a short copy. `whole`: VL elements exist from each part on.
template <int W, int FIRST, bool BF16, bool PAIRS>
ML_INLINE void copy_step(float* dst, const char* p, int64_t deep, bool last, int64_t there, bool whole, bool exact) {
  using Read = Reader<BF16, PAIRS>;
  const int64_t left = there - FIRST;
  const vf v = whole ? Read::across(p + FIRST * Read::SIZE, deep, last, VL)
               : left > 0 ? Read::across(p + FIRST * Read::SIZE, deep, last, left)
                          : vf{};
  store_lanes<Part<W, FIRST>::LANES>(dst + FIRST, v, exact);
  if constexpr (FIRST + VL < W) copy_step<W, FIRST + VL, BF16, PAIRS>(dst, p, deep, last, there, whole, exact);
}
template <int W, bool BF16, bool PAIRS>
ML_INLINE void copy_panel(float* dst, const char* p, int64_t deep, int64_t n, int64_t there) {
  constexpr int64_t step = PAIRS ? 2 : 1;
  int64_t k = 0;
  if (there >= round_up(W, VL)) {
#pragma GCC unroll 4
    for (; k + step < n; k += step, p += step * deep, dst += W)
      copy_step<W, 0, BF16, PAIRS>(dst, p, deep, false, there, true, false);
  }
  for (; k < n; k += step, p += step * deep, dst += W)
    copy_step<W, 0, BF16, PAIRS>(dst, p, deep, k + 1 >= n, there, false, k + step >= n);
}

// Neighbouring steps of k lie next to each other: blocks of VL x VL are transposed.
template <int W, int FIRST, bool BF16, bool PAIRS>
ML_INLINE void transpose_part(float* dst, const char* p, int64_t wide, int64_t n, int64_t there) {
  constexpr int LANES = Part<W, FIRST>::LANES;
  constexpr int64_t step = PAIRS ? 2 : 1;
  using Read = Reader<BF16, PAIRS>;
  const int64_t units = ceil_div(n, step);
  p += FIRST * wide;
  there -= FIRST;
  for (int64_t u = 0; u < units; u += VL, p += VL * step * Read::SIZE) {
    vf row[VL];
    const int64_t left = n - u * step;
    if (there >= LANES && left >= VL * step) {
#pragma GCC unroll 16
      for (int r = 0; r < VL; r++) row[r] = r < LANES ? Read::along_k(p + r * wide, VL * step) : vf{};
    } else {
      for (int r = 0; r < VL; r++) row[r] = r < LANES && r < there ? Read::along_k(p + r * wide, left) : vf{};
    }
    transpose(row);
    if (u + VL < units) {
#pragma GCC unroll 16
      for (int r = 0; r < VL; r++) store_lanes<LANES>(dst + (u + r) * W + FIRST, row[r], false);
    } else {
      for (int r = 0; r < units - u; r++) store_lanes<LANES>(dst + (u + r) * W + FIRST, row[r], u + r + 1 == units);
    }
  }
}
template <int W, bool BF16, bool PAIRS>
ML_INLINE void transpose_panel(float* dst, const char* p, int64_t wide, int64_t n, int64_t there) {
  transpose_part<W, 0, BF16, PAIRS>(dst, p, wide, n, there);
  if constexpr (W > VL) transpose_part<W, VL, BF16, PAIRS>(dst, p, wide, n, there);
  if constexpr (W > 2 * VL) transpose_part<W, 2 * VL, BF16, PAIRS>(dst, p, wide, n, there);
  static_assert(W <= 3 * VL, "three vectors at most");
}

// One panel: W positions from i on (of `exist` in the matrix), elements k0..k1-1 of K.
template <int W, bool BF16, bool PAIRS>
static void pack_panel_as(float* dst, const Source& src, int64_t i, int64_t exist, int64_t k0, int64_t k1) {
  if (src.wide == 1)
    copy_panel<W, BF16, PAIRS>(dst, src.at(i, k0), src.deep * src.size(), k1 - k0, exist - i);
  else
    transpose_panel<W, BF16, PAIRS>(dst, src.at(i, k0), src.wide * src.size(), k1 - k0, exist - i);
}

template <int W>
static void pack_panel(float* dst, const Source& src, bool pairs, int64_t i, int64_t exist, int64_t k0, int64_t k1) {
#if defined(__AVX512BF16__)
  if (pairs) return src.dtype ? pack_panel_as<W, true, true>(dst, src, i, exist, k0, k1)
                              : pack_panel_as<W, false, true>(dst, src, i, exist, k0, k1);
#endif
  (void)pairs;
  return src.dtype ? pack_panel_as<W, true, false>(dst, src, i, exist, k0, k1)
                   : pack_panel_as<W, false, false>(dst, src, i, exist, k0, k1);
}

typedef void (*PackPanel)(float* dst, const Source& src, bool pairs, int64_t i, int64_t exist, int64_t k0, int64_t k1);

}  // namespace ML_ISA
}  // namespace metalora
