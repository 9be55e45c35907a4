// cpu_pages.cpp: see cpu_pages.h.
#include "cpu_pages.h"

#include <stdint.h>
#include <sys/mman.h>

namespace metalora {

namespace {
constexpr size_t HUGE = size_t(2) << 20;
size_t padded(size_t bytes) {
  const size_t page = bytes >= HUGE ? HUGE : 4096;
  return (bytes + page - 1) / page * page;
}
}  // namespace

void* pages_map(size_t bytes) {
  const size_t size = padded(bytes);
  if (size < bytes) return nullptr;  // beyond the address space
  if (size < HUGE) {
    void* small = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return small == MAP_FAILED ? nullptr : small;
  }
  // One huge page more than needed; what lies outside the aligned part goes back.
  char* raw = (char*)mmap(nullptr, size + HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (raw == MAP_FAILED) return nullptr;
  char* data = (char*)(((uintptr_t)raw + HUGE - 1) / HUGE * HUGE);
  if (data > raw) munmap(raw, (size_t)(data - raw));
  const size_t behind = (size_t)(raw + HUGE - data);
  if (behind > 0) munmap(data + size, behind);
  madvise(data, size, MADV_HUGEPAGE);
  return data;
}

void pages_unmap(void* data, size_t bytes) {
  if (data) munmap(data, padded(bytes));
}

}  // namespace metalora
