// context.h: what an ml_ctx is on every device (its allocations, its name, its last error), and the check of an operator's
// arguments before it runs.
#pragma once
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#pragma GCC visibility push(default)  // the ABI is all that the library exports
#include "../metalora.h"
#pragma GCC visibility pop

namespace metalora {

struct Allocation {
  char* data;
  uint64_t bytes;
};

// The part of an ml_ctx that checks read. A backend's ml_ctx derives from it.
struct Context {
  // What this device computes with.
  const char* where;          // "on the CPU", for messages
  int32_t activations;        // type of activations
  bool wide_weights;          // whether frozen weights may be f32
  bool host_memory;           // whether memory can be read here: then offsets and ids are checked before use

  Allocation* allocations = nullptr;  // sorted by address
  int64_t count = 0, capacity = 0;
  uint64_t allocated = 0;
  bool lost = false;  // work that was under way failed: nothing can be computed here any more
  char name[160] = "";
  char error[1024] = "";

  Context(const char* where, int32_t activations, bool wide_weights, bool host_memory)
      : where(where), activations(activations), wide_weights(wide_weights), host_memory(host_memory) {}
  // The allocation that holds address p, or NULL.
  const Allocation* find(const void* p) const;
  // Room for one more entry in the table; false when the machine's memory is exhausted.
  bool reserve();
  void add(char* data, uint64_t bytes);
  void remove(const Allocation* block);
};

// Text of the last failure without a context (ml_create, or a NULL context).
extern char global_error[1024];

// Copies text, NUL-terminated and cut to capacity. Returns the length of the whole text.
int32_t copy_text(const char* from, void* text, int32_t capacity);

// Bytes of an ML_* element.
inline int64_t dtype_size(int32_t dtype) { return dtype == ML_F32 ? 4 : 2; }

// One call of the ABI: what it attempts, and the first of its arguments that is wrong. Checks cost no formatting unless
// one fails. After the checks:  if (call.failed()) return call.status();
//
// The message is "Cannot <action>: <what is wrong>", the action with the shapes of this call.
class Call {
 public:
  // action: printf text with at most 6 %lld for the numbers that follow.
  template <class... Numbers>
  Call(Context* ctx, const char* action, Numbers... numbers) : ctx_(ctx), action_(action), numbers_{(long long)numbers...} {
    if (!ctx) fail("the context is NULL");
  }

  bool failed() const { return status_ != 0; }
  int32_t status() const { return status_; }

  // A wrong argument. Keeps the first failure. Always returns false.
  bool fail(const char* format, ...) __attribute__((format(printf, 2, 3)));
  // The device cannot: its memory is taken, a kernel cannot be started. Otherwise as `fail`.
  bool fault(const char* format, ...) __attribute__((format(printf, 2, 3)));
  // Work that was under way failed, and the context is lost. Otherwise as `fail`.
  bool lost(const char* format, ...) __attribute__((format(printf, 2, 3)));

  bool positive(const char* name, int64_t value) {
    return value > 0 || fail("%s is %lld, must be positive", name, (long long)value);
  }
  bool at_least(const char* name, int64_t value, int64_t least, const char* why) {
    return value >= least || fail("%s is %lld, must be at least %lld (%s)", name, (long long)value, (long long)least, why);
  }
  bool number_dtype(const char* name, int32_t dtype);  // f32 or bf16
  bool weight_dtype(const char* name, int32_t dtype);  // what frozen weights may be on this device
  bool activation_dtype(int32_t dtype);                // what activations are on this device
  // Operands and result of a bare matrix product.
  bool product_dtypes(int32_t a, int32_t b, int32_t c);
  int64_t activation_size() const { return ctx_ ? dtype_size(ctx_->activations) : 4; }
  // [rows, cols] elements of `size` bytes, rows ld apart, inside one allocation, aligned to the element.
  bool matrix(const char* name, ml_ptr p, int64_t rows, int64_t cols, int64_t ld, int64_t size);
  bool dense(const char* name, ml_ptr p, int64_t rows, int64_t cols, int64_t size) {
    return matrix(name, p, rows, cols, cols, size);
  }
  bool bytes(const char* name, ml_ptr p, uint64_t bytes, uint64_t alignment);
  // int32 [n], each in low .. high - 1 (values are looked at where the host can read them).
  bool indices(const char* name, ml_ptr p, int64_t n, int64_t low, int64_t high);
  // int32 [S + 1], from >= 0 on and never decreasing. The end of the last segment goes to `rows`, or 0 where the host
  // cannot read it.
  bool offsets(const char* name, ml_ptr p, int64_t S, int64_t* rows);
  // The table of a linear group; totals through N and Q.
  bool groups(int64_t d_in, int32_t G, const int32_t* groups, int64_t* N, int64_t* Q);
  bool host(const char* name, const void* p) { return p != nullptr || fail("%s is NULL", name); }
  // Whether values behind device pointers can be read here.
  bool readable() const { return !failed() && ctx_->host_memory; }

 private:
  bool tell(int32_t status, const char* format, va_list arguments);

  Context* ctx_;
  const char* action_;
  long long numbers_[6];
  int32_t status_ = 0;  // ML_WRONG, ML_FAULT or ML_LOST
};

}  // namespace metalora
