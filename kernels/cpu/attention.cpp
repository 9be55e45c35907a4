// attention.cpp: causal attention within segments, with grouped query heads, in tiles (FlashAttention: Dao et al. 2022,
// arXiv:2205.14135). Nothing of size T x T exists; a thread works on ROWS queries and KEYS keys at a time.
//
//   s_ij = scale q_i . k_j  (j <= i, j < kv_len)     p_ij = exp(s_ij - lse_i)     out_i = sum_j p_ij v_j
//   delta_i = dout_i . out_i                         ds_ij = p_ij (dout_i . v_j - delta_i) scale
//   dq_i = sum_j ds_ij k_j        dk_j = sum_i ds_ij q_i        dv_j = sum_i p_ij dout_i
//
// Scores are kept transposed, [keys][rows]: then the softmax of VL rows runs in the lanes of one vector with no sum or
// maximum across lanes, and every product of the forward and the backward has the form C += A B with A read one number at
// a time and B along its rows.
#include "attention_tile.h"
#include "math.h"
#include "ops.h"

namespace metalora {
namespace ML_ISA {

// ---- forward ---------------------------------------------------------------------------------------------------------

// Online softmax of one panel: s [keys][ROWS] becomes exp(s - max), max and sum [PANEL] are brought up to date, and
// shrink [PANEL] is what earlier sums must be multiplied by.
static void softmax_panel(float* s, int64_t keys, int64_t first_row, int64_t k0, float* max, float* sum, float* shrink) {
  for (int i = 0; i < PANEL; i += VL) {
    const vf before = load(max + i);
    vf now = before;
    const int64_t diagonal = max64(0, min64(keys, first_row + i + 1 - k0));  // keys before it are visible to all lanes
    for (int64_t j = 0; j < diagonal; j++) now = vmax(load(s + j * ROWS + i), now);
    for (int64_t j = diagonal; j < keys; j++) {
      const vf x = visible(first_row + i, k0 + j) ? load(s + j * ROWS + i) : set1(-INFINITY);
      store(s + j * ROWS + i, x);
      now = vmax(x, now);
    }
    vf total = {};
    for (int64_t j = 0; j < keys; j++) {
      const vf p = vexp_negative(load(s + j * ROWS + i) - now);
      store(s + j * ROWS + i, p);
      total += p;
    }
    const vf factor = vexp_negative(before - now);
    store(max + i, now);
    store(sum + i, load(sum + i) * factor + total);
    store(shrink + i, factor);
  }
}

// Rows of q [T, H*D], k and v [T, K*D] are ldqkv apart; out [T, ldo]; lse [T, H].
void attention_forward(Pool& pool, int64_t S, const int32_t* cu, const int32_t* kv_lens, int64_t H, int64_t K, int64_t D,
                       float scale, const float* q, const float* k, const float* v, int64_t ldqkv, float* out, int64_t ldo,
                       float* lse) {
  const Segments segments = Segments{S, cu, kv_lens}.divide(pool, ROWS);
  const int64_t group = H / K;
  parallel(pool, segments.parts() * K, [&](int64_t task, int thread) {
    const Part strip = segments.part(task / K);
    const int64_t kv = task % K, rows = strip.count, t0 = strip.start + strip.first;
    const int64_t all_keys = min64(strip.first + rows, strip.keys);

    const int64_t per_head = 2 * ROWS * D + 2 * ROWS;  // Q^T [D][ROWS], O [ROWS][D], max and sum [ROWS]
    float* heads = (float*)pool.scratch(thread, 0, (size_t)(group * per_head + (KEYS + 1) * ROWS + 2 * KEYS * pitch(D)) * 4);
    float* s = heads + group * per_head;  // [KEYS][ROWS]
    float* shrink = s + KEYS * ROWS;      // [ROWS]
    float* kt = shrink + ROWS;            // [KEYS, pitch(D)]
    float* vt = kt + KEYS * pitch(D);     // [KEYS, pitch(D)]

    for (int64_t g = 0; g < group; g++) {
      float* head = heads + g * per_head;
      transpose_strip(rows, D, q + t0 * ldqkv + (kv * group + g) * D, ldqkv, scale, head);
      if (all_keys == 0) memset(head + ROWS * D, 0, (size_t)ROWS * D * 4);  // else the first tile overwrites O
      for (int64_t i = 0; i < ROWS; i++) {
        head[2 * ROWS * D + i] = -INFINITY;
        head[2 * ROWS * D + ROWS + i] = 0;
      }
    }

    for (int64_t k0 = 0; k0 < all_keys; k0 += KEYS) {
      const int64_t keys = min64(KEYS, all_keys - k0);
      copy_rows(keys, D, k + (strip.start + k0) * ldqkv + kv * D, ldqkv, kt);
      copy_rows(keys, D, v + (strip.start + k0) * ldqkv + kv * D, ldqkv, vt);
      for (int64_t g = 0; g < group; g++) {
        float* qT = heads + g * per_head;
        float* o = qT + ROWS * D;
        float* max = o + ROWS * D;
        float* sum = max + ROWS;
        for (int64_t row = 0; row < rows; row += PANEL) {
          const int64_t seen = visible_keys(strip, row, k0, keys);
          product(seen, PANEL, kt, pitch(D), 1, qT + row, ROWS, s + row, ROWS, false,
                  [](int64_t) { return (int64_t)0; }, [&](int64_t) { return D; });
          softmax_panel(s + row, seen, strip.first + row, k0, max + row, sum + row, shrink + row);
          zero_scores(s + row, seen, keys);
        }
        if (k0)
          for (int64_t i = 0; i < rows; i++)
            for (int64_t d = 0; d < D; d++) o[i * D + d] *= shrink[i];
        product(rows, D, s, 1, ROWS, vt, pitch(D), o, D, k0 > 0, [](int64_t) { return (int64_t)0; },
                [&](int64_t end) { return min64(keys, strip.first + end - k0); });
      }
    }

    for (int64_t g = 0; g < group; g++) {
      const float* o = heads + g * per_head + ROWS * D;
      const float* max = o + ROWS * D;
      const float* sum = max + ROWS;
      const int64_t h = kv * group + g;
      for (int64_t i = 0; i < rows; i++) {
        const float share = sum[i] == 0 ? 0 : 1 / sum[i];  // 0 only when no key exists: kv_len = 0
        for (int64_t d = 0; d < D; d++) out[(t0 + i) * ldo + h * D + d] = o[i * D + d] * share;
        lse[(t0 + i) * H + h] = max[i] + logf(sum[i]);
      }
    }
  });
}

// ---- backward --------------------------------------------------------------------------------------------------------

namespace {

// The arguments of attention_backward, and what its passes share.
struct Backward {
  int64_t H, K, D;
  float scale;
  const float *q, *k, *v;
  int64_t ldqkv;
  const float *lse, *dout;
  int64_t lddout;
  float *dq, *dk, *dv;
  int64_t lddqkv;
  const float* delta;  // [T, H]

  // Scratch of one head of a strip: Q^T and dout^T [D][ROWS], q and dout [ROWS, pitch(D)], lse and delta [ROWS].
  int64_t head_size() const { return 2 * ROWS * (D + pitch(D) + 1); }
  float* scratch(Pool& pool, int thread) const {
    return (float*)pool.scratch(thread, 0, (size_t)(H / K * head_size() + 2 * KEYS * (ROWS + pitch(D))) * 4);
  }

  void load_strip(const Part& strip, int64_t kv, float* heads) const {
    const int64_t group = H / K, t0 = strip.start + strip.first;
    for (int64_t g = 0; g < group; g++) {
      const int64_t h = kv * group + g;
      float* head = heads + g * head_size();
      transpose_strip(strip.count, D, q + t0 * ldqkv + h * D, ldqkv, scale, head);
      transpose_strip(strip.count, D, dout + t0 * lddout + h * D, lddout, 1.0f, head + ROWS * D);
      float* copies = head + 2 * ROWS * D;
      copy_rows(strip.count, D, q + t0 * ldqkv + h * D, ldqkv, copies);
      copy_rows(strip.count, D, dout + t0 * lddout + h * D, lddout, copies + ROWS * pitch(D));
      float* rows = copies + 2 * ROWS * pitch(D);
      for (int64_t i = 0; i < ROWS; i++) {
        rows[i] = i < strip.count ? lse[(t0 + i) * H + h] : 0;
        rows[ROWS + i] = i < strip.count ? delta[(t0 + i) * H + h] : 0;
      }
    }
  }

  // Adds what the tile of keys k0 .. k0+KEYS-1 and the strip (all query heads of the group) give to dq, to dk and dv.
  // Each element of them receives its tiles or strips in ascending order, whichever pass calls: so the passes agree bit
  // for bit.
  void tile(const Part& strip, int64_t kv, int64_t k0, float* heads, bool want_dq, bool want_dkv) const {
    const int64_t group = H / K, rows = strip.count, t0 = strip.start + strip.first;
    const int64_t keys = min64(KEYS, min64(strip.first + rows, strip.keys) - k0);
    const int64_t ld = pitch(D);
    float* p = heads + group * head_size();  // [KEYS][ROWS]
    float* ds = p + KEYS * ROWS;             // [KEYS][ROWS]
    float* kt = ds + KEYS * ROWS;            // [KEYS, ld]
    float* vt = kt + KEYS * ld;              // [KEYS, ld]
    copy_rows(keys, D, k + (strip.start + k0) * ldqkv + kv * D, ldqkv, kt);
    copy_rows(keys, D, v + (strip.start + k0) * ldqkv + kv * D, ldqkv, vt);
    for (int64_t g = 0; g < group; g++) {
      const float* qT = heads + g * head_size();
      const float* gT = qT + ROWS * D;
      const float* q_rows = gT + ROWS * D;
      const float* g_rows = q_rows + ROWS * ld;
      const float* lse_row = g_rows + ROWS * ld;
      const float* delta_row = lse_row + ROWS;
      const int64_t h = kv * group + g;
      const auto zero = [](int64_t) { return (int64_t)0; };
      for (int64_t row = 0; row < rows; row += PANEL) {
        const int64_t seen = visible_keys(strip, row, k0, keys);
        const auto whole = [&](int64_t) { return D; };
        product(seen, PANEL, kt, ld, 1, qT + row, ROWS, p + row, ROWS, false, zero, whole);
        product(seen, PANEL, vt, ld, 1, gT + row, ROWS, ds + row, ROWS, false, zero, whole);
        for (int64_t i = row; i < row + PANEL; i += VL) {
          const vf shift = load(lse_row + i), mean = load(delta_row + i);
          const int64_t diagonal = max64(0, min64(seen, strip.first + i + 1 - k0));
          for (int64_t j = 0; j < seen; j++) {
            vf pj = vexp_negative(load(p + j * ROWS + i) - shift);
            if (j >= diagonal) pj = visible(strip.first + i, k0 + j) ? pj : vf{};
            store(p + j * ROWS + i, pj);
            store(ds + j * ROWS + i, pj * (load(ds + j * ROWS + i) - mean) * scale);
          }
        }
        zero_scores(p + row, seen, keys);
        zero_scores(ds + row, seen, keys);
      }
      if (want_dq)
        product(rows, D, ds, 1, ROWS, kt, ld, dq + t0 * lddqkv + h * D, lddqkv, true, zero,
                [&](int64_t end) { return min64(keys, strip.first + end - k0); });
      if (want_dkv) {
        const auto first_row = [&](int64_t j) { return max64(0, k0 + j - strip.first); };
        const auto last_row = [&](int64_t) { return rows; };
        const int64_t at = (strip.start + k0) * lddqkv + kv * D;
        product(keys, D, ds, ROWS, 1, q_rows, ld, dk + at, lddqkv, true, first_row, last_row);
        product(keys, D, p, ROWS, 1, g_rows, ld, dv + at, lddqkv, true, first_row, last_row);
      }
    }
  }
};

}  // namespace

static void zero_rows(int64_t rows, int64_t cols, float* x, int64_t ldx) {
  for (int64_t i = 0; i < rows; i++) memset(x + i * ldx, 0, (size_t)cols * 4);
}

// work [T, H] receives delta. dq, dk, dv are overwritten; cos NULL: dq and dk are not rotated back.
void attention_backward(Pool& pool, int64_t S, const int32_t* cu, const int32_t* kv_lens, int64_t H, int64_t K, int64_t D,
                        float scale, const float* q, const float* k, const float* v, int64_t ldqkv, const float* out,
                        int64_t ldo, const float* lse, const float* dout, int64_t lddout, float* dq, float* dk, float* dv,
                        int64_t lddqkv, float* work, const float* cos, const float* sin, const int32_t* positions) {
  const Segments segments = Segments{S, cu, kv_lens}.divide(pool, ROWS);
  const Backward back = {H, K, D, scale, q, k, v, ldqkv, lse, dout, lddout, dq, dk, dv, lddqkv, work};

  parallel(pool, segments.parts(), [&](int64_t task, int) {
    const Part strip = segments.part(task);
    const int64_t t0 = strip.start + strip.first;
    for (int64_t t = t0; t < t0 + strip.count; t++)
      for (int64_t h = 0; h < H; h++) {
        vf sum = {};
        for (int64_t d = 0; d < D; d += VL) {
          const int64_t n = min64(VL, D - d);
          sum = fma(load_part(dout + t * lddout + h * D + d, n), load_part(out + t * ldo + h * D + d, n), sum);
        }
        work[t * H + h] = hsum(sum);
      }
    zero_rows(strip.count, H * D, dq + t0 * lddqkv, lddqkv);
    zero_rows(strip.count, K * D, dk + t0 * lddqkv, lddqkv);
    zero_rows(strip.count, K * D, dv + t0 * lddqkv, lddqkv);
  });

  // One pass over (segment, key/value head) takes 5 products a tile but splits badly over many threads; two passes, one
  // over strips of rows for dq and one over tiles of keys for dk and dv, take 7 and split well. Both give the same bits.
  double all = 0, largest = 0;
  for (int64_t i = 0; i < S; i++) {
    const double cost = (double)segments.length(i) * (double)segments.length(i);
    all += cost * (double)K;
    largest = cost > largest ? cost : largest;
  }
  const double threads = pool.threads();
  const bool one_pass = 5 * (all + largest * (threads - 1)) <= 7 * all;

  if (one_pass) {
    parallel(pool, S * K, [&](int64_t task, int thread) {
      const int64_t i = task / K, kv = task % K, n = segments.length(i);
      const int64_t seg_keys = kv_lens ? min64(kv_lens[i], n) : n;
      float* heads = back.scratch(pool, thread);
      for (int64_t first = 0; first < n; first += ROWS) {
        const Part strip = {cu[i], n, seg_keys, first, min64(ROWS, n - first)};
        back.load_strip(strip, kv, heads);
        for (int64_t k0 = 0; k0 < min64(first + strip.count, seg_keys); k0 += KEYS) back.tile(strip, kv, k0, heads, true, true);
      }
    });
  } else {
    parallel(pool, segments.parts() * K, [&](int64_t task, int thread) {
      const Part strip = segments.part(task / K);
      float* heads = back.scratch(pool, thread);
      back.load_strip(strip, task % K, heads);
      for (int64_t k0 = 0; k0 < min64(strip.first + strip.count, strip.keys); k0 += KEYS)
        back.tile(strip, task % K, k0, heads, true, false);
    });
    const Segments columns = segments.divide(pool, TILES * KEYS);
    parallel(pool, columns.parts() * K, [&](int64_t task, int thread) {
      const Part tiles = columns.part(task / K);
      float* heads = back.scratch(pool, thread);
      for (int64_t first = tiles.first / ROWS * ROWS; first < tiles.length; first += ROWS) {
        const Part strip = {tiles.start, tiles.length, tiles.keys, first, min64(ROWS, tiles.length - first)};
        back.load_strip(strip, task % K, heads);
        const int64_t end = min64(tiles.first + tiles.count, min64(first + strip.count, tiles.keys));
        for (int64_t k0 = tiles.first; k0 < end; k0 += KEYS) back.tile(strip, task % K, k0, heads, false, true);
      }
    });
  }

  if (cos) {
    const int64_t t = cu[0], rows = cu[S] - t;
    rope(pool, rows, H, D, dq + t * lddqkv, lddqkv, cos, sin, positions + t, true);
    rope(pool, rows, K, D, dk + t * lddqkv, lddqkv, cos, sin, positions + t, true);
  }
}

}  // namespace ML_ISA
}  // namespace metalora
