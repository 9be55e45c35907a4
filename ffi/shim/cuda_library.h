// cuda_library.h: libraries of the CUDA toolkit found at run time, the way cudarc does it: a list of candidate names, and a
// message that says where none was.
#pragma once
#include <cuda_runtime.h>
#include <stddef.h>
#include <stdint.h>

namespace metalora {

// Where a library was found, or why there is none to use.
struct Found {
  char path[1024] = "";
  char problem[768] = "";  // "cuBLAS was not found: ..."
};

// The part of cublasLt that is used (cublasLt.h of 12 and 13). Without it products take cuBLAS's own choice.
struct CublasLt {
  typedef struct cublasLtContext* Handle;  // a cuBLAS handle serves as one
  typedef void *Operation, *Layout, *Preference;
  struct Algorithm {
    uint64_t data[8];
  };
  struct Proposal {  // cublasLtMatmulHeuristicResult_t
    Algorithm algorithm;
    size_t workspace;
    int state;
    float waves;
    int reserved[4];
  };
  int (*matmul)(Handle, Operation, const void* alpha, const void* a, Layout, const void* b, Layout, const void* beta, const void* c, Layout,
                void* d, Layout, const Algorithm*, void* workspace, size_t bytes, cudaStream_t);
  int (*create_operation)(Operation*, int compute_type, int scale_type);
  int (*destroy_operation)(Operation);
  int (*set_operation)(Operation, int attribute, const void* value, size_t bytes);
  int (*create_layout)(Layout*, int type, uint64_t rows, uint64_t cols, int64_t ld);
  int (*destroy_layout)(Layout);
  int (*create_preference)(Preference*);
  int (*destroy_preference)(Preference);
  int (*set_preference)(Preference, int attribute, const void* value, size_t bytes);
  int (*propose)(Handle, Operation, Layout, Layout, Layout, Layout, Preference, int wanted, Proposal*, int* found);
  int (*check)(Handle, Operation, Layout, Layout, Layout, Layout, const Algorithm*, Proposal*);
};

// The part of cuBLAS that is used, with prototypes declared by hand (cublas_api.h, the same in versions 12 and 13).
struct Cublas {
  typedef struct cublasContext* Handle;
  // CUBLAS_OP_N = 0, CUBLAS_OP_T = 1; CUDA_R_32F = 0, CUDA_R_16BF = 14; CUBLAS_COMPUTE_32F = 68; CUBLAS_GEMM_DEFAULT = -1
  int (*create)(Handle*);
  int (*destroy)(Handle);
  int (*set_stream)(Handle, cudaStream_t);
  int (*set_workspace)(Handle, void*, size_t);
  int (*get_property)(int type, int* value);  // 0 major, 1 minor, 2 patch; needs no device
  int (*gemm)(Handle, int transa, int transb, int m, int n, int k, const void* alpha, const void* a, int a_type, int lda, const void* b,
              int b_type, int ldb, const void* beta, void* c, int c_type, int ldc, int compute_type, int algorithm);
  CublasLt lt;
};

// Loads cuBLAS once per process. NULL when there is none to use; `found` tells where it is, or why there is none.
const Cublas* load_cublas(Found* found);

// The text of a cuBLAS status.
const char* cublas_status(int status);

}  // namespace metalora
