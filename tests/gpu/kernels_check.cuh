// kernels_check.cuh: checks of the operators over rows of activations, of Adam and of the conversions.
#pragma once
#include <cuda_fp16.h>

#include "../../ffi/metalora.h"
#include "harness.cuh"

using namespace harness;
using metalora::cuda::Launch;
namespace ops = metalora::cuda;

// One size of the rows: columns, padding of each leading dimension, elements off the 16-byte grid.
struct Size {
  int64_t rows, cols, pad, shift;
  std::string name(const char* op) const {
    return std::string(op) + " [" + std::to_string(rows) + ", " + std::to_string(cols) + "] pad " + std::to_string(pad) + " shift " +
           std::to_string(shift);
  }
};

template <typename T>
bool same_bits(T a, T b) {
  return memcmp(&a, &b, sizeof(T)) == 0;
}

static void check_embedding(const Launch& on, const Size& size) {
  Random random(1);
  const int64_t T = size.rows, d = size.cols, V = 50;
  const int64_t places_rows = 13;
  Matrix<bf16> table(V, d), places(places_rows, d), out(T, d, d + size.pad, size.shift), back(T + 5, d, d + size.pad, size.shift), picked(T, d, d + size.pad);
  Matrix<int32_t> fault(1, 1);
  table.random(random).put(), places.random(random).put();
  std::vector<int32_t> ids(T), rows(T), positions(T);
  for (auto& position : positions) position = random.below((int)places_rows);
  for (auto& id : ids) id = random.below((int)V);
  for (int64_t t = 0; t < T; t++) rows[t] = (int32_t)(T - 1 - t);  // no row twice
  for (int32_t wrong : {0, -1, (int)V, -7})
    for (bool learned : {true, false}) {
      if (wrong) ids[T / 2] = wrong;
      Ints on_device(ids), at(positions);
      fault.host[0] = 0;
      run_repeatedly(out, [&] { out.poison(), out.put(), fault.put(); },
                     [&] {
                       return ops::embedding_forward(on, T, d, V, table.device, on_device, learned ? places.device : nullptr, at, out.device,
                                                     out.ld, fault.device);
                     },
                     size.name("embedding_forward"));
      bool right = true;
      for (int64_t t = 0; t < T; t++)
        for (int64_t j = 0; j < d; j++) {
          const bool known = ids[t] >= 0 && ids[t] < V;
          const float place = learned ? __bfloat162float(places.at(positions[t], j)) : 0.0f;
          right = right && same_bits(out.at(t, j), !known ? bf16(0.0f)
                                                   : learned ? __float2bfloat16_rn(__bfloat162float(table.at(ids[t], j)) + place)
                                                             : table.at(ids[t], j));
        }
      fault.get();
      expect(right, size.name("embedding_forward rows"));
      expect(fault.host[0] == (wrong == 0 ? 0 : wrong == -1 ? INT32_MIN : wrong + 1), size.name("embedding_forward fault"));
    }
  Ints on_device(rows);
  run_repeatedly(picked, [&] { picked.poison(), picked.put(); },
                 [&] { return ops::gather_rows(on, T, d, out.device, out.ld, on_device, picked.device, picked.ld); },
                 size.name("gather_rows"));
  run_repeatedly(back, [&] { back.poison(), back.put(); },
                 [&] { return ops::scatter_rows(on, T, T + 5, d, picked.device, picked.ld, on_device, back.device, back.ld); },
                 size.name("scatter_rows"));
  bool gathered = true, scattered = true;
  for (int64_t t = 0; t < T + 5; t++)
    for (int64_t j = 0; j < d; j++) {
      if (t < T) gathered = gathered && same_bits(picked.at(t, j), out.at(rows[t], j));
      scattered = scattered && same_bits(back.at(t, j), t < T ? out.at(t, j) : bf16(0.0f));
    }
  expect(gathered, size.name("gather_rows values"));
  expect(scattered, size.name("scatter_rows values"));
}

static void check_rmsnorm(const Launch& on, const Size& size) {
  Random random(2);
  const int64_t T = size.rows, d = size.cols;
  const float eps = 1e-5f;
  Matrix<bf16> x(T, d), y(T, d, d + size.pad, size.shift), dy(T, d, d + size.pad, size.shift), dx(T, d), old(T, d);
  Matrix<float> weight(1, d), rstd(1, T);
  x.random(random, 2).put(), weight.random(random, 1.5f).put(), dy.random(random).put(), old.random(random);
  const std::string name = size.name("rmsnorm_forward");
  run_repeatedly(y, [&] { y.poison(), y.put(), rstd.poison(), rstd.put(); },
                 [&] { return ops::rmsnorm_forward(on, T, d, eps, x.device, weight.device, y.device, y.ld, rstd.device); }, name);
  rstd.get();
  expect(rstd.intact(), name + " bounds of rstd");
  std::vector<double> scale(T), mean(T);
  for (int64_t t = 0; t < T; t++) {
    double squares = 0;
    for (int64_t j = 0; j < d; j++) squares += x.value(t, j) * x.value(t, j);
    scale[t] = 1 / sqrt(squares / (double)d + (double)eps);
  }
  expect_close(rstd, [&](int64_t, int64_t t) { return scale[t]; }, [&](int64_t, int64_t t) { return 2e-6 * scale[t]; }, name + " rstd");
  const auto want = [&](int64_t t, int64_t j) { return x.value(t, j) * scale[t] * weight.value(0, j); };
  expect_close(y, want, [&](int64_t t, int64_t j) { return ROUNDING * fabs(want(t, j)) + 1e-30; }, name + " y");
  run_repeatedly(dx, [&] { dx.host = old.host, dx.put(); },
                 [&] { return ops::rmsnorm_backward(on, T, d, x.device, weight.device, rstd.device, dy.device, dy.ld, dx.device, dx.ld); },
                 size.name("rmsnorm_backward"));
  for (int64_t t = 0; t < T; t++) {
    mean[t] = 0;
    for (int64_t j = 0; j < d; j++) mean[t] += weight.value(0, j) * dy.value(t, j) * x.value(t, j) / (double)d;
  }
  const auto gradient = [&](int64_t t, int64_t j) {
    return old.value(t, j) + scale[t] * (weight.value(0, j) * dy.value(t, j) - x.value(t, j) * scale[t] * scale[t] * mean[t]);
  };
  expect_close(dx, gradient, [&](int64_t t, int64_t j) { return ROUNDING * fabs(gradient(t, j)) + 1e-5; },
               size.name("rmsnorm_backward dx"));
}

static void check_layernorm(const Launch& on, const Size& size) {
  Random random(12);
  const int64_t T = size.rows, d = size.cols;
  const float eps = 1e-5f;
  Matrix<bf16> x(T, d), y(T, d, d + size.pad, size.shift), again(T, d, d + size.pad, size.shift);
  Matrix<bf16> dy(T, d, d + size.pad, size.shift), dx(T, d), old(T, d);
  Matrix<float> weight(1, d), bias(1, d), stats(T, 2);
  x.random(random, 2).put(), dy.random(random).put(), old.random(random), weight.random(random, 1.5f).put(), bias.random(random).put();
  const std::string name = size.name("layernorm_forward");
  run_repeatedly(y, [&] { y.poison(), y.put(), stats.poison(), stats.put(); },
                 [&] {
                   return ops::layernorm_forward(on, T, d, eps, x.device, weight.device, bias.device, y.device, y.ld, stats.device);
                 },
                 name);
  stats.get();
  expect(stats.intact(), name + " bounds of stats");
  std::vector<double> mean(T), scale(T), even(T), along(T);
  for (int64_t t = 0; t < T; t++) {
    double squares = 0;
    for (int64_t j = 0; j < d; j++) mean[t] += x.value(t, j) / (double)d;
    for (int64_t j = 0; j < d; j++) squares += (x.value(t, j) - mean[t]) * (x.value(t, j) - mean[t]);
    scale[t] = 1 / sqrt(squares / (double)d + (double)eps);
  }
  expect_close(stats, [&](int64_t t, int64_t i) { return i == 0 ? mean[t] : scale[t]; },
               [&](int64_t t, int64_t i) { return i == 0 ? 4e-6 : 4e-6 * scale[t]; }, name + " stats");
  const auto z = [&](int64_t t, int64_t j) { return (x.value(t, j) - mean[t]) * scale[t]; };
  const auto want = [&](int64_t t, int64_t j) { return z(t, j) * weight.value(0, j) + bias.value(0, j); };
  // Rounding of the result, and of z (the mean is known to 4e-6) where it nearly cancels against the bias.
  expect_close(y, want, [&](int64_t t, int64_t j) { return ROUNDING * fabs(want(t, j)) + 1e-5 * (1 + scale[t]); }, name + " y");
  // The backward pass forms the same bits, without a gradient, too.
  again.poison(), again.put();
  CUDA_OK(ops::layernorm_backward(on, T, d, x.device, weight.device, bias.device, stats.device, nullptr, 0, nullptr, 0, again.device, again.ld));
  CUDA_OK(cudaDeviceSynchronize());
  again.get();
  expect(memcmp((void*)again.host.data(), (void*)y.host.data(), y.count * 2) == 0, name + " again");
  for (bool with_y : {false, true}) {
    again.poison(), again.put();
    run_repeatedly(dx, [&] { dx.host = old.host, dx.put(); },
                   [&] {
                     return ops::layernorm_backward(on, T, d, x.device, weight.device, bias.device, stats.device, dy.device, dy.ld,
                                                    dx.device, dx.ld, with_y ? again.device : nullptr, again.ld);
                   },
                   size.name("layernorm_backward"));
    again.get();
    if (with_y) expect(memcmp((void*)again.host.data(), (void*)y.host.data(), y.count * 2) == 0, size.name("layernorm_backward y"));
  }
  for (int64_t t = 0; t < T; t++)
    for (int64_t j = 0; j < d; j++) {
      even[t] += weight.value(0, j) * dy.value(t, j) / (double)d;
      along[t] += weight.value(0, j) * dy.value(t, j) * z(t, j) / (double)d;
    }
  const auto gradient = [&](int64_t t, int64_t j) {
    return old.value(t, j) + scale[t] * (weight.value(0, j) * dy.value(t, j) - even[t] - z(t, j) * along[t]);
  };
  expect_close(dx, gradient, [&](int64_t t, int64_t j) { return ROUNDING * fabs(gradient(t, j)) + 1e-5 * (1 + scale[t]); },
               size.name("layernorm_backward dx"));
}

static void check_relu(const Launch& on, const Size& size) {
  Random random(13);
  const int64_t T = size.rows, f = size.cols;
  Matrix<bf16> y(T, f, f + size.pad, size.shift), old(T, f, f + size.pad), dy(T, f, f + size.pad, size.shift);
  old.random(random), dy.random(random).put();
  const auto check = [&](const std::string& name, const auto& want) {
    bool right = true;
    for (int64_t t = 0; t < T; t++)
      for (int64_t j = 0; j < f; j++) right = right && same_bits(y.at(t, j), __bfloat162float(old.at(t, j)) <= 0 ? bf16(0.0f) : want(t, j));
    expect(right, name);
  };
  run_repeatedly(y, [&] { y.host = old.host, y.put(); }, [&] { return ops::relu_forward(on, T, f, y.device, y.ld); }, size.name("relu_forward"));
  check(size.name("relu_forward values"), [&](int64_t t, int64_t j) { return old.at(t, j); });
  const std::vector<bf16> made(y.host.begin(), y.host.end());
  run_repeatedly(y, [&] { std::copy(made.begin(), made.end(), y.host.begin()), y.put(); },
                 [&] { return ops::relu_backward(on, T, f, y.device, y.ld, dy.device, dy.ld); }, size.name("relu_backward"));
  check(size.name("relu_backward values"), [&](int64_t t, int64_t j) { return dy.at(t, j); });
}

static void check_rope(const Launch& on, int64_t T, int64_t heads, int64_t D, int64_t pad, int64_t shift) {
  Random random(3);
  const Size size = {T, heads * D, pad, shift};
  const int64_t half = D / 2, places = 40;
  Matrix<bf16> x(T, heads * D, heads * D + pad, shift), old(T, heads * D, heads * D + pad);
  Matrix<float> c(places, half), s(places, half);
  old.random(random);
  for (int64_t i = 0; i < places; i++)
    for (int64_t j = 0; j < half; j++) {
      const double angle = (double)i * pow(10000, -2.0 * (double)j / (double)D);
      c.at(i, j) = (float)cos(angle), s.at(i, j) = (float)sin(angle);
    }
  c.put(), s.put();
  std::vector<int32_t> positions(T);
  for (auto& position : positions) position = random.below((int)places);
  Ints on_device(positions);
  for (bool inverse : {false, true}) {
    run_repeatedly(x, [&] { x.host = old.host, x.put(); },
                   [&] { return ops::rope(on, T, heads, D, x.device, x.ld, c.device, s.device, on_device, inverse); }, size.name("rope"));
    const auto want = [&](int64_t t, int64_t column) {
      const int64_t h = column / D * D, j = column % D % half;
      const double a = old.value(t, h + j), b = old.value(t, h + j + half), cosine = c.value(positions[t], j);
      const double sine = s.value(positions[t], j) * (inverse ? -1 : 1);
      return column % D < half ? a * cosine - b * sine : b * cosine + a * sine;
    };
    expect_close(x, want, [&](int64_t t, int64_t j) { return ROUNDING * fabs(want(t, j)) + 1e-6; }, size.name("rope values"));
  }
}

static void check_swiglu(const Launch& on, const Size& size) {
  Random random(4);
  const int64_t T = size.rows, f = size.cols;
  Matrix<bf16> gate_up(T, 2 * f), y(T, f, f + size.pad, size.shift), dy(T, f, f + size.pad, size.shift), grad(T, 2 * f), in_place(T, 2 * f);
  gate_up.random(random, 8), dy.random(random).put();
  assign(gate_up.at(0, 0), -200.0f), assign(gate_up.at(T - 1, f - 1), 200.0f);  // where e^-x is infinite, and 0
  gate_up.put();
  run_repeatedly(y, [&] { y.poison(), y.put(); }, [&] { return ops::swiglu_forward(on, T, f, gate_up.device, gate_up.ld, y.device, y.ld); },
                 size.name("swiglu_forward"));
  const auto sigmoid = [](double g) { return 1 / (1 + exp(-g)); };
  const auto value = [&](int64_t t, int64_t j) { return gate_up.value(t, j) * sigmoid(gate_up.value(t, j)) * gate_up.value(t, f + j); };
  expect_close(y, value, [&](int64_t t, int64_t j) { return ROUNDING * fabs(value(t, j)) + 1e-30; }, size.name("swiglu_forward y"));
  const auto gradient = [&](int64_t t, int64_t column) {
    const int64_t j = column % f;
    const double g = gate_up.value(t, j), u = gate_up.value(t, f + j), o = dy.value(t, j), s = sigmoid(g);
    return column < f ? o * u * s * (1 + g * (1 - s)) : o * g * s;
  };
  run_repeatedly(grad, [&] { grad.poison(), grad.put(); },
                 [&] { return ops::swiglu_backward(on, T, f, gate_up.device, gate_up.ld, dy.device, dy.ld, grad.device, nullptr); },
                 size.name("swiglu_backward"));
  expect_close(grad, gradient, [&](int64_t t, int64_t j) { return ROUNDING * fabs(gradient(t, j)) + 1e-5; },
               size.name("swiglu_backward values"));
  run_repeatedly(in_place, [&] { in_place.host = gate_up.host, in_place.put(); },
                 [&] { return ops::swiglu_backward(on, T, f, in_place.device, in_place.ld, dy.device, dy.ld, in_place.device, nullptr); },
                 size.name("swiglu_backward in place"));
  expect(memcmp((void*)in_place.host.data(), (void*)grad.host.data(), grad.count * 2) == 0,
         size.name("swiglu_backward in place: other bits"));
}

// lib/optim/adam.ts in C++, which this file's flags keep from contraction.
static void adam_on_host(int64_t P, float* theta, const float* grad, float* m, float* v, double lr, double b1, double b2, double eps,
                         double weight_decay, double bias1, double bias2, double grad_scale) {
  for (int64_t j = 0; j < P; j++) {
    const double g = grad_scale * (double)grad[j];
    m[j] = (float)(b1 * (double)m[j] + (1 - b1) * g);
    v[j] = (float)(b2 * (double)v[j] + (1 - b2) * (g * g));
    const double decayed = (double)theta[j] - lr * weight_decay * (double)theta[j];
    theta[j] = (float)(decayed - lr * ((double)m[j] / bias1) / (sqrt((double)v[j] / bias2) + eps));
  }
}

// The gradient in `count` pieces of about the same length.
static void check_adam(const Launch& on, int64_t P, int64_t shift, int count = 1) {
  Random random(5);
  const Size size = {1, P, 0, shift};
  Matrix<float> theta(1, P, 0, shift), g(1, P, 0, shift), m(1, P, 0, shift), v(1, P, 0, shift), out(1, P, 0, shift);
  theta.random(random), m.random(random, 1e-3f), v.random(random, 1e-6f), g.random(random);
  for (int64_t j = 0; j < P; j++) {
    v.at(0, j) = fabsf(v.at(0, j));
    g.at(0, j) *= powf(10, random.next() * 20);  // from 1e-20 to 1e20: subnormal and large moments too
  }
  theta.put(), m.put(), v.put(), g.put();
  const double lr = 5e-4, b1 = 0.9, b2 = 0.95, eps = 1e-8, decay = 0.01, clip = 0.37;
  std::vector<float> wanted[3] = {theta.host, m.host, v.host};
  const std::vector<metalora::Piece> pieces = harness::in_pieces(g, count);
  for (int step = 1; step <= 3; step++) {
    const double bias1 = 1 - pow(b1, step), bias2 = 1 - pow(b2, step);
    CUDA_OK(ops::adam(on, pieces.data(), (int)pieces.size(), theta.device, m.device, v.device, lr, b1, b2, eps, decay, bias1, bias2, clip));
    CUDA_OK(cudaDeviceSynchronize());
    adam_on_host(P, wanted[0].data(), g.host.data(), wanted[1].data(), wanted[2].data(), lr, b1, b2, eps, decay, bias1, bias2, clip);
  }
  theta.get(), m.get(), v.get();
  expect(memcmp(theta.host.data(), wanted[0].data(), P * 4) == 0, size.name("adam theta: other bits than on the host"));
  expect(memcmp(m.host.data(), wanted[1].data(), P * 4) == 0, size.name("adam m: other bits than on the host"));
  expect(memcmp(v.host.data(), wanted[2].data(), P * 4) == 0, size.name("adam v: other bits than on the host"));
  expect(theta.intact() && m.intact() && v.intact(), size.name("adam: guards were written"));
  const double bias2 = 1 - pow(b2, 3);
  run_repeatedly(out, [&] { out.poison(), out.put(); },
                 [&] { return ops::adam_precondition(on, P, g.device, v.device, bias2, eps, out.device); },
                 size.name("adam_precondition"));
  bool same = true;
  for (int64_t j = 0; j < P; j++)
    same = same && same_bits(out.at(0, j), (float)((double)g.at(0, j) / (sqrt((double)v.at(0, j) / bias2) + eps)));
  expect(same, size.name("adam_precondition: other bits than on the host"));
}

static float as_float(float x) { return x; }
static float as_float(bf16 x) { return __bfloat162float(x); }
static float as_float(__half x) { return __half2float(x); }

template <typename From, typename To>
static void check_convert_as(const Launch& on, const Size& size, int32_t from, int32_t to) {
  Random random(6);
  Matrix<From> src(size.rows, size.cols, size.cols + size.pad, size.shift);
  Matrix<To> dst(size.rows, size.cols, size.cols + size.pad, size.shift);
  for (int64_t i = 0; i < size.rows; i++)
    for (int64_t j = 0; j < size.cols; j++) {
      uint32_t bits = random.bits();  // any bits but NaN: subnormals and infinities too
      memcpy((void*)&src.at(i, j), &bits, sizeof(From));
      while (isnan(as_float(src.at(i, j)))) bits = random.bits(), memcpy((void*)&src.at(i, j), &bits, sizeof(From));
    }
  src.put();
  const std::string name = size.name("convert_2d") + " " + std::to_string(from) + " to " + std::to_string(to);
  run_repeatedly(dst, [&] { dst.poison(), dst.put(); },
                 [&] { return ops::convert_2d(on, size.rows, size.cols, src.device, from, src.ld, dst.device, to, dst.ld); }, name);
  bool same = true;
  for (int64_t i = 0; i < size.rows; i++)
    for (int64_t j = 0; j < size.cols; j++) {
      To wanted;
      assign(wanted, as_float(src.at(i, j)));
      same = same && same_bits(dst.at(i, j), wanted);
    }
  expect(same, name + " values");
}

static void check_convert(const Launch& on, const Size& size) {
  check_convert_as<float, float>(on, size, ML_F32, ML_F32);
  check_convert_as<float, bf16>(on, size, ML_F32, ML_BF16);
  check_convert_as<bf16, float>(on, size, ML_BF16, ML_F32);
  check_convert_as<bf16, bf16>(on, size, ML_BF16, ML_BF16);
  check_convert_as<__half, float>(on, size, ML_F16, ML_F32);
  check_convert_as<__half, bf16>(on, size, ML_F16, ML_BF16);
}

// Two adapters (ranks r and r2) on d_out rows each of W [2 d_out, d_in + r + r2]; A goes below W, with W's own pitch.
static void check_lora_refresh(const Launch& on, int64_t d_out, int64_t d_in, int64_t r, int64_t r2, int64_t pad) {
  Random random(7);
  const int64_t Q = r + r2, N = 2 * d_out;
  Matrix<bf16> W(N + Q, d_in + Q, d_in + Q + pad);
  Matrix<float> theta(1, Q * d_in + d_out * Q);
  theta.random(random).put();
  const Size size = {N, d_in, r, r2};
  const metalora::Group groups[2] = {{(int32_t)d_out, (int32_t)r}, {(int32_t)d_out, (int32_t)r2}};
  const float scales[2] = {0.5f, 3.0f};
  // The second of three layers: one without adapters before it, and one whose matrix is its own behind it.
  const metalora::Group none[1] = {{8, 0}}, alone[1] = {{(int32_t)d_out, (int32_t)r}};
  Matrix<bf16> other(d_out, d_in + r);
  const metalora::LoraLayer layers[3] = {{8, 1, none, scales, theta.device, other.device, d_in + r, nullptr, 0},
                                         {d_in, 2, groups, scales, theta.device, W.device, W.ld, W.device + N * W.ld, W.ld},
                                         {d_in, 1, alone, scales, theta.device, other.device, d_in + r, nullptr, 0}};
  run_repeatedly(W, [&] { W.poison(), W.put(), other.poison(), other.put(); }, [&] { return ops::lora_refresh(on, layers, 3); },
                 size.name("lora_refresh"));
  other.get();
  bool behind = true;
  for (int64_t n = 0; n < d_out; n++)
    for (int64_t c = 0; c < d_in + r; c++)
      behind = behind && (c < d_in ? isnan(other.value(n, c))
                                   : same_bits(other.at(n, c), __float2bfloat16_rn(0.5f * theta.at(0, r * d_in + n * r + c - d_in))));
  expect(behind, size.name("lora_refresh of another layer"));
  bool same = true;
  const int64_t B = Q * d_in, B2 = B + d_out * r;
  for (int64_t n = 0; n < N + Q; n++)
    for (int64_t c = 0; c < d_in + Q; c++) {
      const int64_t j = c - d_in;
      const bool first = n < d_out;
      if (n >= N)
        same = same && (j < 0 ? same_bits(W.at(n, c), __float2bfloat16_rn(theta.at(0, (n - N) * d_in + c))) : isnan(W.value(n, c)));
      else if (j < 0)
        same = same && isnan(W.value(n, c));  // the frozen weight is left alone
      else if (first ? j < r : j >= r)
        same = same && same_bits(W.at(n, c), __float2bfloat16_rn(first ? 0.5f * theta.at(0, B + n * r + j)
                                                                      : 3.0f * theta.at(0, B2 + (n - d_out) * r2 + j - r)));
      else
        same = same && same_bits(W.at(n, c), bf16(0.0f));
    }
  expect(same, size.name("lora_refresh values"));
}

static void check_rows(const Launch& on) {
  const Size sizes[] = {{37, 64, 0, 0}, {5, 576, 8, 0}, {3, 2048, 64, 8}, {3, 4096, 96, 0}, {2, 8192, 8, 0}, {2, 14336, 32, 0},
                        {2, 20000, 16, 0},
                        {7, 4096, 3, 0}, {5, 264, 8, 1}, {5, 33, 2, 0}, {3, 4097, 7, 3}, {9, 1, 0, 0}, {300, 8, 0, 0}};
  for (const Size& size : sizes) {
    if (harness::turn()) check_embedding(on, size);
    if (harness::turn()) check_rmsnorm(on, size);
    if (harness::turn()) check_layernorm(on, size);
    if (harness::turn()) check_swiglu(on, size);
    if (harness::turn()) check_relu(on, size);
    if (harness::turn()) check_convert(on, size);
  }
  const int64_t heads[][4] = {{12, 64, 0, 0}, {5, 128, 32, 0}, {40, 128, 0, 8}, {3, 80, 8, 0}, {9, 64, 3, 0}, {2, 6, 0, 0},
                              {7, 20, 1, 1}, {130, 256, 0, 0}};
  for (const auto& h : heads)
    if (harness::turn()) check_rope(on, 23, h[0], h[1], h[2], h[3]);
  for (int64_t P : {1, 7, 1024, 100000, 99999})
    for (int64_t shift : {0, 1})
      if (harness::turn()) check_adam(on, P, shift);
  for (int count : {3, 200})
    if (harness::turn()) check_adam(on, 99999, 0, count);
  if (harness::turn()) check_lora_refresh(on, 48, 64, 16, 8, 0);
  if (harness::turn()) check_lora_refresh(on, 48, 64, 32, 32, 3);
  if (harness::turn()) check_lora_refresh(on, 33, 21, 5, 3, 1);
}
