// runtime.cpp: the part of the CUDA runtime that libmetalora_cuda.so uses, without a GPU: build/stand_in/libmetalora_cuda.so is
// the real library linked with this file. Memory is the machine's, copies copy, kernels do nothing, and what a real card would do
// on a bad day is told through the environment:
//
//   STAND_IN_DRIVER=0           the driver's version (that of the runtime); 0: there is none
//   STAND_IN_GPUS=2             how many there are (1)
//   STAND_IN_CAPABILITY=7.5,8.6    of each of them (8.0)
//   STAND_IN_OPEN=46            what taking a GPU answers (46: another process holds it, 2: out of memory)
//   STAND_IN_FREE_MIB=100       memory that other processes leave (15360 of 16384)
//   STAND_IN_POOL=FILE          processes with the same file share the memory; a context takes 500 MiB of it then
//   STAND_IN_ALLOCATIONS=4      allocations that succeed: just before the next one somebody else takes all that is left
//   STAND_IN_LAUNCH="98 6update"    starting a kernel of that name answers 98
//   STAND_IN_FAULT="700 6update 3"  the third kernel of that name runs into fault 700, which waiting for it tells; from then
//                                          on every call answers it, as with a real context, whose memory stays taken until the GPU
//                                          is reset
//   STAND_IN_RESET=0            resetting the GPU gives the memory of a lost context back (1); 0: it does not
//   STAND_IN_FAULT_AGAIN="700 6update 1"    the same where METALORA_SYNCHRONOUS=1, instead of STAND_IN_FAULT: what becomes of a
//                                          fault when a run repeats what it was doing
#include <cuda_runtime.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <map>
#include <string>
#include <vector>

namespace {

constexpr size_t MIB = 1 << 20, TOTAL = 16384 * MIB, CONTEXT = 500 * MIB;

int number(const char* name, int otherwise) {
  const char* value = getenv(name);
  return value ? atoi(value) : otherwise;
}

struct State {
  cudaError_t last = cudaSuccess;     // what cudaGetLastError tells
  cudaError_t pending = cudaSuccess;  // a fault that nobody has waited for
  cudaError_t lost = cudaSuccess;     // the context's end
  std::map<const void*, std::string> kernels;
  std::map<void*, size_t> memory;
  size_t taken = 0;                     // by this process
  bool context = false;
  int allocations = 0, faults = 0;
  bool full = false;
  std::vector<std::string>* recording = nullptr;
};

// Kernels register themselves before this file's own variables are there.
State& state() {
  static State* there = new State;
  return *there;
}

cudaError_t answer(cudaError_t error) {
  State& s = state();
  if (s.lost != cudaSuccess) error = s.lost;
  if (error != cudaSuccess) s.last = error;
  return error;
}

// What a call that waits for the GPU answers.
cudaError_t waited() {
  State& s = state();
  if (s.pending != cudaSuccess) s.lost = s.pending;
  return answer(cudaSuccess);
}

// What all processes with the same file have taken; this process alone without one.
std::atomic<uint64_t>* open_pool() {
  static std::atomic<uint64_t> own;
  const char* path = getenv("STAND_IN_POOL");
  const int file = path ? open(path, O_RDWR | O_CREAT, 0600) : -1;
  if (file < 0 || ftruncate(file, sizeof own) != 0) return &own;
  void* shared = mmap(nullptr, sizeof own, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  close(file);
  return shared == MAP_FAILED ? &own : (std::atomic<uint64_t>*)shared;
}

std::atomic<uint64_t>& pool() {
  static std::atomic<uint64_t>* there = open_pool();
  return *there;
}

size_t free_bytes() {
  const size_t left = state().full ? 0 : (size_t)number("STAND_IN_FREE_MIB", 15360) * MIB, taken = pool();
  return left > taken ? left - taken : 0;
}

bool take(size_t bytes) {
  if (pool().fetch_add(bytes) + bytes <= (size_t)number("STAND_IN_FREE_MIB", 15360) * MIB && !state().full) {
    state().taken += bytes;
    return true;
  }
  pool() -= bytes;
  return false;
}

void give_back(size_t bytes) {
  pool() -= bytes;
  state().taken -= bytes;
}

// Zeros over much memory cost none: it is the machine's again until somebody writes.
void fill(void* data, int value, size_t bytes) {
  const uintptr_t first = ((uintptr_t)data + 4095) & ~(uintptr_t)4095, last = ((uintptr_t)data + bytes) & ~(uintptr_t)4095;
  if (value != 0 || bytes < MIB || madvise((void*)first, last - first, MADV_DONTNEED) != 0) return (void)memset(data, value, bytes);
  memset(data, 0, first - (uintptr_t)data);
  memset((void*)last, 0, (uintptr_t)data + bytes - last);
}

// A kernel's turn on the GPU.
void execute(const std::string& name) {
  int error = 0, turn = 1;
  char part[128] = "";
  const char *synchronous = getenv("METALORA_SYNCHRONOUS"), *again = getenv("STAND_IN_FAULT_AGAIN");
  const char* fault = again && synchronous && *synchronous && strcmp(synchronous, "0") != 0 ? again : getenv("STAND_IN_FAULT");
  if (!fault || sscanf(fault, "%d %127s %d", &error, part, &turn) < 2 || name.find(part) == std::string::npos) return;
  if (++state().faults == turn) state().pending = (cudaError_t)error;
}

cudaError_t launch(const void* kernel) {
  State& s = state();
  const std::string& name = s.kernels[kernel];
  int error = 0;
  char part[128] = "";
  const char* refused = getenv("STAND_IN_LAUNCH");
  if (refused && sscanf(refused, "%d %127s", &error, part) == 2 && name.find(part) != std::string::npos) return answer((cudaError_t)error);
  if (s.recording) s.recording->push_back(name);
  else execute(name);
  return answer(cudaSuccess);
}

}  // namespace

extern "C" {

// ---- what nvcc's own code calls ----
void** __cudaRegisterFatBinary(void*) {
  static void* none = nullptr;
  return &none;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterFunction(void**, const char* host, char*, const char* name, int, uint3*, uint3*, dim3*, dim3*, int*) {
  state().kernels[host] = name;
}
unsigned __cudaPushCallConfiguration(dim3, dim3, size_t, cudaStream_t) { return 0; }
cudaError_t __cudaPopCallConfiguration(dim3*, dim3*, size_t*, void*) { return cudaSuccess; }
cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* host) {
  *kernel = (cudaKernel_t)host;
  return cudaSuccess;
}
cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3, dim3, void**, size_t, cudaStream_t) { return launch((const void*)kernel); }
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t*, const void* kernel, void**) { return launch(kernel); }
cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) { return answer(cudaSuccess); }

// ---- devices ----
cudaError_t cudaDriverGetVersion(int* version) {
  *version = number("STAND_IN_DRIVER", CUDART_VERSION);
  return cudaSuccess;
}
cudaError_t cudaGetDeviceCount(int* count) {
  const char* visible = getenv("CUDA_VISIBLE_DEVICES");
  *count = visible && !*visible ? 0 : number("STAND_IN_GPUS", 1);
  return answer(*count > 0 ? cudaSuccess : cudaErrorNoDevice);
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  *properties = {};
  const char* capability = getenv("STAND_IN_CAPABILITY");
  for (int i = 0; i < device && capability; i++) {
    const char* comma = strchr(capability, ',');
    if (comma) capability = comma + 1;
  }
  snprintf(properties->name, sizeof properties->name, "Stand-in");
  properties->major = 8;
  if (capability) sscanf(capability, "%d.%d", &properties->major, &properties->minor);
  properties->multiProcessorCount = 16;
  properties->totalGlobalMem = TOTAL;
  return answer(cudaSuccess);
}
cudaError_t cudaSetDevice(int) {
  State& s = state();
  const cudaError_t refused = (cudaError_t)number("STAND_IN_OPEN", 0);
  if (s.context || refused != cudaSuccess || !getenv("STAND_IN_POOL")) return answer(refused);
  if (!take(CONTEXT)) return answer(cudaErrorMemoryAllocation);
  s.context = true;
  atexit([] { give_back(state().taken); });
  return answer(cudaSuccess);
}
cudaError_t cudaDeviceReset() {
  State& s = state();
  if (number("STAND_IN_RESET", 1) == 0) return answer(cudaSuccess);
  for (const auto& block : s.memory) free(block.first);
  s.memory.clear();
  give_back(s.taken);
  s.context = false;
  s.last = s.pending = s.lost = cudaSuccess;
  return cudaSuccess;
}
cudaError_t cudaGetLastError() {
  const cudaError_t last = state().last;
  state().last = state().lost;
  return last;
}
const char* cudaGetErrorString(cudaError_t error) {
  switch ((int)error) {
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorDevicesUnavailable: return "CUDA-capable device(s) is/are busy or unavailable";
    case cudaErrorInvalidDeviceFunction: return "invalid device function";
    case cudaErrorIllegalAddress: return "an illegal memory access was encountered";
    default: return "an error of the stand-in";
  }
}
cudaError_t cudaGetDriverEntryPointByVersion(const char*, void** entry, unsigned, unsigned long long, cudaDriverEntryPointQueryResult* found) {
  *entry = nullptr;
  if (found) *found = cudaDriverEntryPointSymbolNotFound;
  return answer(cudaErrorSymbolNotFound);
}

// ---- memory ----
cudaError_t cudaMalloc(void** data, size_t bytes) {
  State& s = state();
  *data = nullptr;
  s.full = s.full || s.allocations >= number("STAND_IN_ALLOCATIONS", 1 << 30);
  if (s.lost != cudaSuccess || !take(bytes)) return answer(cudaErrorMemoryAllocation);
  *data = calloc(1, bytes);
  if (!*data) {
    give_back(bytes);
    return answer(cudaErrorMemoryAllocation);
  }
  s.allocations++;
  s.memory[*data] = bytes;
  return cudaSuccess;
}
cudaError_t cudaFree(void* data) {
  State& s = state();
  const cudaError_t error = waited();
  const auto there = s.memory.find(data);
  if (error == cudaSuccess && there != s.memory.end()) {
    give_back(there->second);
    s.memory.erase(there);
    free(data);
  }
  return error;
}
cudaError_t cudaMallocHost(void** data, size_t bytes) {
  *data = calloc(1, bytes);
  return answer(cudaSuccess);
}
cudaError_t cudaFreeHost(void* data) {
  free(data);
  return answer(cudaSuccess);
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* about, const void* data) {
  *about = {};
  about->type = state().memory.count(const_cast<void*>(data)) ? cudaMemoryTypeDevice : cudaMemoryTypeHost;
  return answer(cudaSuccess);
}
cudaError_t cudaMemGetInfo(size_t* free_now, size_t* total) {
  *free_now = free_bytes();
  *total = TOTAL;
  return answer(cudaSuccess);
}
cudaError_t cudaMemset(void* data, int value, size_t bytes) {
  fill(data, value, bytes);
  return waited();
}
cudaError_t cudaMemsetAsync(void* data, int value, size_t bytes, cudaStream_t) {
  fill(data, value, bytes);
  return answer(cudaSuccess);
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t) {
  memmove(to, from, bytes);
  return answer(cudaSuccess);
}
cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width, size_t rows, cudaMemcpyKind,
                              cudaStream_t) {
  for (size_t i = 0; i < rows; i++) memmove((char*)to + i * to_pitch, (const char*)from + i * from_pitch, width);
  return answer(cudaSuccess);
}

// ---- streams, events, graphs ----
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  *stream = (cudaStream_t)&state();
  return answer(cudaSuccess);
}
cudaError_t cudaStreamDestroy(cudaStream_t) { return answer(cudaSuccess); }
cudaError_t cudaStreamSynchronize(cudaStream_t) { return waited(); }
cudaError_t cudaEventCreate(cudaEvent_t* event) {
  *event = (cudaEvent_t)&state();
  return answer(cudaSuccess);
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) { return cudaEventCreate(event); }
cudaError_t cudaEventDestroy(cudaEvent_t) { return answer(cudaSuccess); }
cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) { return answer(cudaSuccess); }
cudaError_t cudaEventSynchronize(cudaEvent_t) { return waited(); }
cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t, cudaEvent_t) {
  *ms = 1;
  return answer(cudaSuccess);
}
cudaError_t cudaStreamBeginCapture(cudaStream_t, cudaStreamCaptureMode) {
  state().recording = new std::vector<std::string>;
  return answer(cudaSuccess);
}
cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t* graph) {
  *graph = (cudaGraph_t)state().recording;
  state().recording = nullptr;
  return answer(cudaSuccess);
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long) {
  *executable = (cudaGraphExec_t) new std::vector<std::string>(*(const std::vector<std::string>*)graph);
  return answer(cudaSuccess);
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete (std::vector<std::string>*)graph;
  return answer(cudaSuccess);
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t) {
  for (const std::string& name : *(const std::vector<std::string>*)executable) execute(name);
  return answer(cudaSuccess);
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  delete (std::vector<std::string>*)executable;
  return answer(cudaSuccess);
}

}  // extern "C"
