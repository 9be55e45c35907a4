// kernels_reduce_check.cuh: checks of the operators that reduce: cross-entropy, segments, flat vectors.
#pragma once
#include "kernels_check.cuh"

// Row 0 is ordinary, row 1 has its largest logit twice, 2 a NaN, 3 an infinity, 4 a negative infinity, 5 nothing but NaN, 6 and 7 a
// label out of range, 8 large logits, 9 nothing but the same.
static void check_cross_entropy(const Launch& on, int64_t V, bool backward) {
  Random random(8);
  const int64_t R = 10;
  Matrix<float> logits(R, V), seeds(1, R), losses(1, R), old(R, V);
  Matrix<int32_t> argmax(1, R);
  old.random(random, 12), seeds.random(random).put();
  std::vector<int32_t> labels(R);
  for (auto& label : labels) label = random.below((int)V);
  labels[0] = (int32_t)V - 1;
  const int64_t twice[2] = {V / 3, V - 1};
  old.at(1, twice[0]) = old.at(1, twice[1]) = 20;
  old.at(2, V / 2) = NAN, old.at(3, V / 4) = INFINITY, old.at(4, V - 1) = -INFINITY;
  for (int64_t v = 0; v < V; v++) old.at(5, v) = NAN, old.at(8, v) = old.at(8, v) * 1000 + 5e6f, old.at(9, v) = -3;
  labels[6] = -100, labels[7] = (int32_t)V;
  Ints on_device(labels);
  const std::string name = "cross_entropy V = " + std::to_string(V) + " arch " + std::to_string(on.arch);
  run_repeatedly(logits, [&] { logits.host = old.host, logits.put(), losses.poison(), losses.put(), argmax.poison(), argmax.put(); },
                 [&] {
                   return ops::cross_entropy(on, R, V, logits.device, on_device, backward ? seeds.device : nullptr, losses.device,
                                             argmax.device, backward);
                 },
                 name);
  losses.get(), argmax.get();
  expect(losses.intact() && argmax.intact(), name + ": guards were written");
  for (int64_t r = 0; r < R; r++) {
    float largest = -INFINITY;
    int64_t first = -1;
    bool finite = true;
    for (int64_t v = 0; v < V; v++) {
      const float z = old.at(r, v);
      finite = finite && isfinite(z);
      if (z > largest || (first < 0 && z == largest)) largest = z, first = v;
    }
    expect(argmax.host[r] == (first < 0 ? 0 : first), name + " argmax of row " + std::to_string(r));
    if (r == 1 && V >= 3) expect(argmax.host[r] == twice[0], name + " first of two largest");
    double sum = 0;
    for (int64_t v = 0; v < V; v++) sum += exp((double)old.at(r, v) - (double)largest);
    const bool labelled = labels[r] >= 0 && labels[r] < V;
    if (!finite || !labelled) {
      expect(!isfinite(losses.host[r]), name + " faulty row " + std::to_string(r) + " has a finite loss");
    } else {
      const double loss = log(sum) + ((double)largest - (double)old.at(r, labels[r]));
      expect(fabs((double)losses.host[r] - loss) <= 2e-6 * fabs(loss) + 2e-6, name + " loss of row " + std::to_string(r));
    }
    if (!backward) {
      if (r == 0) expect(memcmp((void*)logits.host.data(), (void*)old.host.data(), old.count * 4) == 0, name + ": logits were written");
      continue;
    }
    const bf16* gradient = (const bf16*)logits.host.data() + r * 2 * V;
    bool right = true;
    for (int64_t v = 0; v < V; v++) {
      const double softmax = exp((double)old.at(r, v) - (double)largest) / sum, got = as_double(gradient[v]);
      const double want = seeds.value(0, r) * (softmax - (v == labels[r] ? 1 : 0));
      if (!finite)
        right = right && (isnan(got) || r == 4);  // a row with a fault does not pass for a gradient; -inf alone has softmax 0
      else
        right = right && fabs(got - want) <= ROUNDING * fabs(want) + 1e-7 * fabs(seeds.value(0, r)) + 1e-38;
    }
    expect(right, name + " gradient of row " + std::to_string(r));
  }
}

struct Outer {
  std::vector<int32_t> cu;
  int64_t p, q, pad_a, pad_b, shift_a, shift_b;
};

// Factors of rows and columns: none; powers of two, with which a narrow side times its rows' factors is what it should be to the bit; or any.
enum class Factors { none, exact, any };

static void check_segment_outer(const Launch& on, const Outer& o, Factors factors) {
  const bool scaled = factors != Factors::none;
  Random random(9);
  const int64_t S = (int64_t)o.cu.size() - 1, T = o.cu[S] + 3, stride = o.p * o.q + 5;  // three rows belong to no segment
  Matrix<bf16> a(T, o.p, o.p + o.pad_a, o.shift_a), b(T, o.q, o.q + o.pad_b, o.shift_b);
  Matrix<float> out(S, o.p * o.q, stride), old(S, o.p * o.q, stride);
  a.random(random), b.random(random), old.random(random);
  for (int64_t t = o.cu[S]; t < T; t++) {
    for (int64_t i = 0; i < o.p; i++) assign(a.at(t, i), NAN);
    for (int64_t j = 0; j < o.q; j++) assign(b.at(t, j), NAN);
  }
  a.put(), b.put();
  Ints cu(o.cu);
  Matrix<float> rows(1, T), columns(1, o.q);
  for (int64_t t = 0; t < o.cu[S]; t++)
    assign(rows.at(0, t), factors == Factors::any ? random.next() : ldexpf(random.next() < 0 ? -1 : 1, random.below(5) - 2));
  for (int64_t t = o.cu[S]; t < T; t++) assign(rows.at(0, t), NAN);
  columns.random(random);
  rows.put(), columns.put();
  std::vector<double> product(S * o.p * o.q), size(S * o.p * o.q);
  for (int64_t s = 0; s < S; s++)
    for (int64_t t = o.cu[s]; t < o.cu[s + 1]; t++)
      for (int64_t i = 0; i < o.p; i++) {
        const double x = a.value(t, i) * (scaled ? rows.value(0, t) : 1);
        for (int64_t j = 0; j < o.q; j++) {
          const double y = x * b.value(t, j) * (scaled ? columns.value(0, j) : 1);
          product[(s * o.p + i) * o.q + j] += y, size[(s * o.p + i) * o.q + j] += fabs(y);
        }
      }
  const std::string name = "segment_outer S = " + std::to_string(S) + " [" + std::to_string(o.p) + ", " + std::to_string(o.q) + "] pad " +
                           std::to_string(o.pad_a) + " " + std::to_string(o.pad_b) + " arch " + std::to_string(on.arch) +
                           (factors == Factors::any ? " scaled" : scaled ? " scaled by powers of two" : "");
  for (float beta : {0.0f, 1.0f, -0.5f}) {
    const float alpha = 0.75f;
    run_repeatedly(out,
                   [&] {
                     if (beta == 0)
                       out.poison();
                     else
                       out.host = old.host;
                     out.put();
                   },
                   [&] {
                     const metalora::OuterProduct one = {o.p, o.q, a.device, a.ld, b.device, b.ld,
                                                         {scaled ? rows.device : nullptr, scaled ? columns.device : nullptr}, alpha, out.device};
                     return ops::segment_outers(on, S, cu, &one, 1, beta, stride);
                   },
                   name);
    expect_close(out,
                 [&](int64_t s, int64_t e) { return alpha * product[s * o.p * o.q + e] + (beta == 0 ? 0 : beta * old.value(s, e)); },
                 // A narrow side times its rows' factors is rounded to bf16 once more.
                 [&](int64_t s, int64_t e) { return 1e-6 + (factors == Factors::any ? 4e-3 : 2e-6) * size[s * o.p * o.q + e]; }, name + " beta " + std::to_string(beta));
  }
}

static void check_segment_mean(const Launch& on, const std::vector<int32_t>& lengths, const Size& size) {
  Random random(10);
  const int64_t S = (int64_t)lengths.size() - 1, T = lengths[S] + 2;
  Matrix<bf16> a(T, size.cols, size.cols + size.pad, size.shift);
  Matrix<float> out(S, size.cols, size.cols + 3), values(1, lengths[S]);
  Matrix<double> sums(1, S);
  a.random(random).put(), values.random(random).put();
  Ints cu(lengths);
  const auto mean = [&](int64_t s, int64_t j) {
    double sum = 0;
    for (int64_t t = lengths[s]; t < lengths[s + 1]; t++) sum += a.value(t, j);
    return lengths[s + 1] > lengths[s] ? sum / (lengths[s + 1] - lengths[s]) : 0;
  };
  run_repeatedly(out, [&] { out.poison(), out.put(); },
                 [&] { return ops::segment_mean(on, S, cu, size.cols, a.device, a.ld, out.device, out.ld); }, size.name("segment_mean"));
  expect_close(out, mean, [&](int64_t s, int64_t j) { return 1e-7 * fabs(mean(s, j)); }, size.name("segment_mean values"));
  const auto total = [&](int64_t, int64_t s) {
    double sum = 0;
    for (int64_t t = lengths[s]; t < lengths[s + 1]; t++) sum += values.value(0, t);
    return sum;
  };
  run_repeatedly(sums, [&] { sums.poison(), sums.put(); }, [&] { return ops::segment_sum(on, S, cu, values.device, sums.device); },
                 size.name("segment_sum"));
  expect_close(sums, total, [&](int64_t, int64_t) { return 1e-12 * (double)lengths[S]; }, size.name("segment_sum values"));
}

enum class Other { rows, shared, same };

// The rows in `count` pieces of about the same length.
static void check_vectors(const Launch& on, int64_t n, int64_t P, int64_t pad, int64_t shift, Other other, int count = 1) {
  Random random(11);
  const Size size = {n, P, pad, shift};
  Matrix<float> a(n, P, P + pad, shift), b(n, P, P + pad, shift), weights(1, n), y(1, P, 0, shift), old(1, P);
  const std::vector<metalora::Piece> pieces = harness::in_pieces(a, count);
  const int m = (int)pieces.size();
  Matrix<double> out(1, n), parts(1, ops::row_dots_parts(n, pieces.data(), m));
  a.random(random).put(), b.random(random).put(), weights.random(random).put(), old.random(random);
  const float* second = other == Other::same ? nullptr : b.device;
  const int64_t ldb = other == Other::shared ? 0 : b.ld;
  run_repeatedly(out, [&] { out.poison(), out.put(), parts.poison(), parts.put(); },
                 [&] { return ops::row_dots(on, n, pieces.data(), m, second, ldb, out.device, parts.device); }, size.name("row_dots"));
  const auto dot = [&](int64_t, int64_t i) {
    double sum = 0;
    for (int64_t j = 0; j < P; j++)
      sum += a.value(i, j) * (other == Other::same ? a.value(i, j) : b.value(other == Other::shared ? 0 : i, j));
    return sum;
  };
  expect_close(out, dot, [&](int64_t, int64_t) { return 1e-13 * (double)P; }, size.name("row_dots values"));
  parts.get();
  expect(parts.intact(), size.name("row_dots parts"));
  for (float beta : {0.0f, 1.0f, 0.8f}) {
    run_repeatedly(y,
                   [&] {
                     if (beta == 0)
                       y.poison();
                     else
                       y.host = old.host;
                     y.put();
                   },
                   [&] { return ops::combine(on, n, pieces.data(), m, weights.device, beta, y.device); }, size.name("combine"));
    bool same = true;
    for (int64_t j = 0; j < P; j++) {
      float sum = beta == 0 ? 0 : beta * old.at(0, j);
      for (int64_t i = 0; i < n; i++) sum = fmaf(weights.at(0, i), a.at(i, j), sum);
      same = same && same_bits(y.at(0, j), sum);
    }
    expect(same, size.name("combine: other bits than on the host"));
  }
  CUDA_OK(ops::combine(on, n, pieces.data(), m, weights.device, 0, y.device));
  CUDA_OK(ops::combine(on, n, pieces.data(), m, weights.device, 0, nullptr));
  a.get(), y.get();
  bool same = true;
  for (int64_t j = 0; j < P; j++) same = same && same_bits(a.at(0, j), y.at(0, j));
  expect(same && a.intact(), size.name("combine in place"));
}

static void check_reductions(const Launch& on) {
  Launch older = on;
  older.arch = 80;
  // 12288: with what the kernel declares itself, just over the shared memory that needs no asking
  for (int64_t V : {1, 7, 32, 1000, 1001, 4099, 12288, 32000, 50257, 125696, 152064})
    for (const Launch& where : {on, older})
      for (bool backward : {false, true})
        if (harness::turn()) check_cross_entropy(where, V, backward);
  if (harness::turn()) check_cross_entropy(on, 470001, true);

  const std::vector<int32_t> one = {0, 700}, few = {0, 130, 130, 131, 400, 517};
  const std::vector<int32_t> many = {0, 1, 3, 100, 165, 165, 300, 301, 333, 350, 364, 365};
  const Outer outers[] = {
      {one, 32, 1024, 64, 96, 0, 0},  {few, 8, 520, 8, 8, 0, 8},    {few, 16, 640, 0, 0, 0, 0},   {one, 64, 300, 8, 4, 0, 0},
      {few, 96, 264, 8, 8, 8, 0},     {one, 512, 32, 32, 8, 0, 0},  {few, 777, 16, 7, 0, 0, 0},   {many, 32, 32, 0, 0, 0, 0},
      {many, 8, 8, 8, 8, 0, 0},       {one, 96, 96, 0, 0, 0, 0},    {few, 33, 130, 1, 0, 0, 2},   {few, 130, 5, 0, 3, 1, 0},
      {one, 1, 1, 0, 0, 0, 0},        {few, 128, 200, 0, 8, 0, 0},  {few, 200, 192, 8, 0, 0, 0},  {{0, 0}, 16, 64, 0, 0, 0, 0},
      {{0, 2100}, 24, 96, 0, 8, 0, 0}, {many, 48, 1000, 0, 0, 0, 0},
      // On Hopper: two warpgroups and clusters of two, one and two, two of which the second has columns, or none.
      {{0, 150}, 32, 8192, 0, 0, 0, 0}, {{0, 150}, 32, 4096, 0, 0, 0, 0}, {many, 32, 2112, 0, 0, 0, 0}, {many, 32, 2056, 0, 0, 0, 0},
      {{0, 3, 20000}, 40, 72, 0, 0, 0, 0}, {{0, 19999}, 128, 16, 0, 0, 0, 0},  // more stages than a ring has
      {many, 32, 2048, 0, 0, 0, 0},    {many, 64, 1024, 0, 8, 0, 0}, {many, 96, 2048, 8, 0, 0, 0}};
  for (const Outer& o : outers) {
    for (Factors factors : {Factors::none, Factors::exact, Factors::any}) {
      if (harness::turn()) check_segment_outer(on, o, factors);
      if (harness::turn()) check_segment_outer(older, o, factors);
    }
  }
  for (const Size& size : {Size{0, 64, 0, 0}, Size{0, 520, 8, 8}, Size{0, 33, 2, 1}, Size{0, 1, 0, 0}})
    for (const auto& lengths : {one, few, many})
      if (harness::turn()) check_segment_mean(on, lengths, size);
  for (int64_t n : {1, 3, 8, 17})
    for (int64_t P : {1, 1000, 8192, 40000, 40001})
      for (Other other : {Other::rows, Other::shared, Other::same}) {
        if (harness::turn()) check_vectors(on, n, P, 0, 0, other);
        if (harness::turn()) check_vectors(on, n, P, 5, 1, other);
        if (P > 1 && harness::turn()) check_vectors(on, n, P, 4, 0, other, 3);
        if (P > 1 && harness::turn()) check_vectors(on, n, P, 0, 0, other, 200);
      }
}
