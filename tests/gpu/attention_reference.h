// attention_reference.h: attention and its gradients in double on the CPU, straight from the formulas of kernels/cuda/attention.cu, for
// tests/gpu/attention.cu.
#pragma once
#include <atomic>
#include <cmath>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

struct Shape {
  std::vector<int> lengths, kv_lens;  // kv_lens empty: all keys
  int H, K, D;
  float scale;

  int rows() const {
    int sum = 0;
    for (int n : lengths) sum += n;
    return sum;
  }
  int longest() const {
    int most = 0;
    for (int n : lengths) most = n > most ? n : most;
    return most;
  }
  int keys(size_t i) const { return kv_lens.empty() ? lengths[i] : std::max(0, std::min(kv_lens[i], lengths[i])); }
};

// Dense rows of the segments: q, dout, out, dq [T, H, D]; k, v, dk, dv [T, K, D]; lse [T, H].
struct Tensors {
  std::vector<double> q, k, v, dout, out, lse, dq, dk, dv;
};

inline void parallel(int tasks, const std::function<void(int)>& f) {
  std::atomic<int> next{0};
  std::vector<std::thread> threads;
  for (unsigned i = 0; i < std::max(1u, std::thread::hardware_concurrency()); i++)
    threads.emplace_back([&] {
      for (int task; (task = next++) < tasks;) f(task);
    });
  for (auto& t : threads) t.join();
}

inline double dot(const double* a, const double* b, int n) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int i = 0; i < n; i++) sum += a[i] * b[i];
  return sum;
}
inline void add(double* y, double factor, const double* x, int n) {
#pragma omp simd
  for (int i = 0; i < n; i++) y[i] += factor * x[i];
}

// Fills out, lse, dq, dk, dv from q, k, v, dout.
inline void reference(const Shape& shape, Tensors& t) {
  const int T = shape.rows(), H = shape.H, K = shape.K, D = shape.D;
  t.out.assign((size_t)T * H * D, 0);
  t.lse.assign((size_t)T * H, -INFINITY);
  t.dq.assign((size_t)T * H * D, 0);
  t.dk.assign((size_t)T * K * D, 0);
  t.dv.assign((size_t)T * K * D, 0);
  std::vector<int> start(1, 0);
  for (int n : shape.lengths) start.push_back(start.back() + n);
  parallel((int)shape.lengths.size() * K, [&](int task) {
    const int segment = task / K, kv = task % K, n = shape.lengths[segment], keys = shape.keys(segment);
    std::vector<double> p(n), dp(n);
    for (int h = kv * (H / K); h < (kv + 1) * (H / K); h++)
      for (int i = 0; i < n; i++) {
        const size_t row = ((size_t)(start[segment] + i) * H + h) * D;
        const auto key = [&](int j) { return ((size_t)(start[segment] + j) * K + kv) * D; };
        const int seen = std::min(i + 1, keys);
        if (seen == 0) continue;
        double max = -INFINITY, sum = 0, delta = 0;
        for (int j = 0; j < seen; j++) max = std::max(max, p[j] = shape.scale * dot(&t.q[row], &t.k[key(j)], D));
        for (int j = 0; j < seen; j++) sum += p[j] = std::exp(p[j] - max);
        for (int j = 0; j < seen; j++) {
          p[j] /= sum;
          add(&t.out[row], p[j], &t.v[key(j)], D);
          dp[j] = dot(&t.dout[row], &t.v[key(j)], D);
          delta += p[j] * dp[j];
        }
        t.lse[(size_t)(start[segment] + i) * H + h] = max + std::log(sum);
        for (int j = 0; j < seen; j++) {
          const double ds = p[j] * (dp[j] - delta) * shape.scale;
          add(&t.dq[row], ds, &t.k[key(j)], D);
          add(&t.dk[key(j)], ds, &t.q[row], D);
          add(&t.dv[key(j)], p[j], &t.dout[row], D);
        }
      }
  });
}
