// table.cpp: the table of this instruction set, in the order of struct Kernels.
#include "ops.h"

#define ML_TEXT_(x) #x
#define ML_TEXT(x) ML_TEXT_(x)

namespace metalora {
namespace ML_ISA {

extern const Kernels table = {
    ML_TEXT(ML_ISA),
    gemm,
    linear_forward,
    linear_backward,
    lora_refresh,
    segment_outer,
    segment_mean,
    embedding_forward,
    rmsnorm_forward,
    rmsnorm_backward,
    layernorm_forward,
    layernorm_backward,
    rope,
    attention_forward,
    attention_backward,
    swiglu_forward,
    swiglu_backward,
    relu_backward,
    head_cross_entropy,
    row_dots,
    combine,
    adam_precondition,
    adam,
};

}  // namespace ML_ISA
}  // namespace metalora
