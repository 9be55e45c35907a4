// cpu_pool.cpp: the threads behind class Pool (kernels/cpu/kernels.h).
//
// A job is a counter from which every thread takes the next index. Between jobs a worker spins for some microseconds,
// because operators follow one another closely, and then sleeps on a futex, because an idle program should cost nothing.
#include "../../kernels/cpu/kernels.h"
#include "cpu_pages.h"

#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>

namespace metalora {

namespace {

constexpr int SPINS = 4000;  // of about 40 cycles: some 50 microseconds
constexpr int SLOTS = 4;

void pause_once() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

void futex_wait(std::atomic<uint32_t>* word, uint32_t seen) {
  syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, seen, nullptr, nullptr, 0);
}
void futex_wake(std::atomic<uint32_t>* word) { syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, 1 << 30, nullptr, nullptr, 0); }

// A word that can be waited for: spin first, sleep then. `sleepers` spares the waker a system call nobody needs.
struct Signal {
  std::atomic<uint32_t> word{0};
  std::atomic<uint32_t> sleepers{0};

  void wait_while(uint32_t seen) {
    for (int i = 0; i < SPINS; i++) {
      if (word.load(std::memory_order_acquire) != seen) return;
      pause_once();
    }
    sleepers.fetch_add(1);
    while (word.load() == seen) futex_wait(&word, seen);
    sleepers.fetch_sub(1);
  }
  void notify() {
    if (sleepers.load() != 0) futex_wake(&word);
  }
};

struct Buffer {
  void* data = nullptr;
  size_t bytes = 0;
};

struct alignas(64) Lane {
  Buffer slots[SLOTS];
  pthread_t thread;
};

}  // namespace

struct Pool::Impl {
  alignas(64) Signal job;   // counts jobs; a change starts the workers
  alignas(64) Signal busy;  // workers still inside the job
  alignas(64) std::atomic<int64_t> next{0};
  int64_t n = 0;
  void (*task)(void*, int64_t, int) = nullptr;
  void* arg = nullptr;
  bool stop = false;
  bool running = false;
  int workers = 0;
  Lane* lanes = nullptr;

  struct Start {
    Impl* impl;
    int thread;
  };
  static void* worker(void* start);

  void work(int thread) {
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < n;) task(arg, i, thread);
  }
};

void* Pool::Impl::worker(void* raw) {
  const Start start = *(Start*)raw;
  free(raw);
  Pool::Impl& p = *start.impl;
  for (uint32_t seen = 0;;) {
    p.job.wait_while(seen);
    seen++;
    if (p.stop) return nullptr;
    p.work(start.thread);
    if (p.busy.word.fetch_sub(1) == 1) p.busy.notify();
  }
}

Pool::Pool(int threads) : impl_(new Impl), threads_(threads < 1 ? 1 : threads) {
  impl_->lanes = new Lane[threads_];
  for (int i = 1; i < threads_; i++) {
    Impl::Start* start = (Impl::Start*)malloc(sizeof(Impl::Start));
    if (start) *start = {impl_, i};
    if (!start || pthread_create(&impl_->lanes[i].thread, nullptr, Impl::worker, start) != 0) {
      free(start);
      threads_ = i;  // go on with the threads there are
      break;
    }
    impl_->workers++;
  }
}

Pool::~Pool() {
  impl_->stop = true;
  impl_->job.word.fetch_add(1);
  impl_->job.notify();
  for (int i = 1; i <= impl_->workers; i++) pthread_join(impl_->lanes[i].thread, nullptr);
  for (int i = 0; i < threads_; i++)
    for (Buffer& slot : impl_->lanes[i].slots)
      pages_unmap(slot.data, slot.bytes);
  delete[] impl_->lanes;
  delete impl_;
}

void Pool::run(int64_t n, void (*task)(void*, int64_t, int), void* arg) {
  Impl& p = *impl_;
  if (p.running) {
    fprintf(stderr, "metalora: internal error: Pool::run called from inside a task\n");
    abort();
  }
  if (n <= 1 || p.workers == 0) {
    for (int64_t i = 0; i < n; i++) task(arg, i, 0);
    return;
  }
  p.running = true;
  p.n = n;
  p.task = task;
  p.arg = arg;
  p.next.store(0, std::memory_order_relaxed);
  p.busy.word.store((uint32_t)p.workers);
  p.job.word.fetch_add(1);
  p.job.notify();
  p.work(0);
  for (uint32_t left; (left = p.busy.word.load(std::memory_order_acquire)) != 0;) p.busy.wait_while(left);
  p.running = false;
}

void* Pool::scratch(int thread, int slot, size_t bytes) {
  Buffer& buffer = impl_->lanes[thread].slots[slot];
  if (buffer.bytes < bytes) {
    pages_unmap(buffer.data, buffer.bytes);
    buffer = {pages_map(bytes), bytes};
    if (!buffer.data) {
      fprintf(stderr, "metalora: cannot allocate %zu bytes of scratch memory: the machine's memory is exhausted\n", bytes);
      abort();
    }
  }
  return buffer.data;
}

size_t Pool::scratch_bytes() const {
  size_t sum = 0;
  for (int i = 0; i < threads_; i++)
    for (const Buffer& slot : impl_->lanes[i].slots) sum += slot.bytes;
  return sum;
}

}  // namespace metalora
