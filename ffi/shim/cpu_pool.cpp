// cpu_pool.cpp: the threads behind class Pool (kernels/cpu/kernels.h).
//
// A job is a count of indices, and every thread claims the next one until none is left. The caller waits for claimed
// indices, never for threads: a worker that sleeps, or that another program keeps from its core, costs the others nothing.
// Between jobs a worker spins for some microseconds, because operators follow one another closely, and then sleeps on a
// futex, because an idle program should cost nothing.
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
  alignas(64) Signal job;                         // counts jobs; a change wakes the workers
  alignas(64) Signal done;                        // changes when the last index of a job is finished
  alignas(64) std::atomic<int64_t> unclaimed{0};  // indices that no thread has taken
  alignas(64) std::atomic<int64_t> unfinished{0};
  // The job; whoever has claimed an index may read it, since run() cannot return before that index is finished.
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
    for (int64_t left = unclaimed.load(std::memory_order_acquire); left > 0;) {
      // Success means that an index of the present job is ours, even if it is not the job that `left` was read from.
      if (!unclaimed.compare_exchange_weak(left, left - 1, std::memory_order_acq_rel, std::memory_order_acquire)) continue;
      task(arg, n - left, thread);
      if (unfinished.fetch_sub(1, std::memory_order_acq_rel) == 1) {
        done.word.fetch_add(1);
        done.notify();
      }
      left = unclaimed.load(std::memory_order_acquire);
    }
  }
};

void* Pool::Impl::worker(void* raw) {
  const Start start = *(Start*)raw;
  free(raw);
  Pool::Impl& p = *start.impl;
  for (uint32_t seen = 0;;) {
    p.job.wait_while(seen);
    seen = p.job.word.load(std::memory_order_acquire);
    if (p.stop) return nullptr;
    p.work(start.thread);
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
    for (Buffer& slot : impl_->lanes[i].slots) pages_unmap(slot.data, slot.bytes);
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
  p.unfinished.store(n, std::memory_order_relaxed);
  const uint32_t finished = p.done.word.load(std::memory_order_relaxed);
  p.unclaimed.store(n, std::memory_order_release);
  p.job.word.fetch_add(1);
  p.job.notify();
  p.work(0);
  p.done.wait_while(finished);
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

}  // namespace metalora
