// cpu_context.h: the CPU device behind an ml_ctx, and the check of an operator's arguments before it runs.
#pragma once
#include "../../kernels/cpu/kernels.h"

#pragma GCC visibility push(default)  // the ABI is all that the library exports
#include "../metalora.h"
#pragma GCC visibility pop

struct ml_allocation {
  char* data;
  uint64_t bytes;
};

struct ml_ctx {
  metalora::Pool pool;
  const metalora::Kernels* kernels;
  ml_allocation* allocations = nullptr;  // sorted by address
  int64_t count = 0, capacity = 0;
  uint64_t allocated = 0;
  char name[160] = "";
  char error[1024] = "";

  explicit ml_ctx(int threads) : pool(threads) {}
  // The allocation that holds address p, or NULL.
  const ml_allocation* find(const void* p) const;
};

namespace metalora {

// Text of the last failure without a context (ml_create, or a NULL context).
extern char global_error[1024];

// One call of the ABI: what it attempts, and the first of its arguments that is wrong. Checks cost no formatting unless
// one fails. After the checks:  if (call.failed()) return call.status();
//
// The message is "Cannot <action>: <what is wrong>", the action with the shapes of this call.
class Call {
 public:
  // action: printf text with at most 6 %lld for the numbers that follow.
  template <class... Numbers>
  Call(ml_ctx* ctx, const char* action, Numbers... numbers) : ctx_(ctx), action_(action), numbers_{(long long)numbers...} {
    if (!ctx) fail("the context is NULL");
  }

  bool failed() const { return failed_; }
  int32_t status() const { return failed_ ? 1 : 0; }

  // Keeps the first failure. Always returns false.
  bool fail(const char* format, ...) __attribute__((format(printf, 2, 3)));

  bool positive(const char* name, int64_t value) {
    return value > 0 || fail("%s is %lld, must be positive", name, (long long)value);
  }
  bool at_least(const char* name, int64_t value, int64_t least, const char* why) {
    return value >= least || fail("%s is %lld, must be at least %lld (%s)", name, (long long)value, (long long)least, why);
  }
  bool weight_dtype(const char* name, int32_t dtype);    // f32 or bf16
  bool activation_dtype(int32_t dtype);                  // f32
  // [rows, cols] elements of `size` bytes, rows ld apart, inside one allocation, aligned to the element.
  bool matrix(const char* name, ml_ptr p, int64_t rows, int64_t cols, int64_t ld, int64_t size);
  bool dense(const char* name, ml_ptr p, int64_t rows, int64_t cols, int64_t size) {
    return matrix(name, p, rows, cols, cols, size);
  }
  bool bytes(const char* name, ml_ptr p, uint64_t bytes, uint64_t alignment);
  // int32 [n], each in low .. high - 1.
  bool indices(const char* name, ml_ptr p, int64_t n, int64_t low, int64_t high);
  // int32 [S + 1], from >= 0 on and never decreasing. Returns the end of the last segment through `rows`.
  bool offsets(const char* name, ml_ptr p, int64_t S, int64_t* rows);
  // The table of a linear group; totals through N and Q.
  bool groups(int64_t d_in, int32_t G, const int32_t* groups, int64_t* N, int64_t* Q);
  bool host(const char* name, const void* p) { return p != nullptr || fail("%s is NULL", name); }

 private:
  ml_ctx* ctx_;
  const char* action_;
  long long numbers_[6];
  bool failed_ = false;
};

inline int64_t dtype_size(int32_t dtype) { return dtype == ML_F32 ? 4 : 2; }

}  // namespace metalora
