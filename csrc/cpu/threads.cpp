#include "threads.h"

#include <unistd.h>

#include <chrono>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace sacfast::cpu {
namespace {

constexpr auto kSpin = std::chrono::microseconds(200);

inline void pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Returns once value != old.
void wait_while(const std::atomic<uint32_t>& value, uint32_t old) {
  const auto deadline = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < 64; ++i) {
      if (value.load(std::memory_order_acquire) != old) return;
      pause();
    }
  } while (std::chrono::steady_clock::now() < deadline);
  while (value.load(std::memory_order_acquire) == old) value.wait(old, std::memory_order_acquire);
}

void advance(std::atomic<uint32_t>& value) {
  value.fetch_add(1, std::memory_order_release);
  value.notify_all();
}

// Flushes denormals, as inputs and as results, in this thread for as long as it lives.
class FlushDenormals {
 public:
#if defined(__x86_64__)
  FlushDenormals() : saved_(_mm_getcsr()) { _mm_setcsr(saved_ | 0x8040); }
  ~FlushDenormals() { _mm_setcsr(saved_); }

 private:
  const unsigned saved_;
#elif defined(__aarch64__)
  FlushDenormals() {
    asm volatile("mrs %0, fpcr" : "=r"(saved_));
    asm volatile("msr fpcr, %0" ::"r"(saved_ | (uint64_t{1} << 24)));
  }
  ~FlushDenormals() { asm volatile("msr fpcr, %0" ::"r"(saved_)); }

 private:
  uint64_t saved_;
#endif
};

}  // namespace

ThreadPool::ThreadPool(int threads) : size_(threads) { start(); }

void ThreadPool::start() {
  shared_ = new Shared;
  process_ = getpid();
  try {
    for (int thread = 1; thread < size_; ++thread) shared_->workers.emplace_back(work, this, shared_, thread);
  } catch (...) {
    shared_->stop = true;
    advance(shared_->generation);
    for (std::thread& worker : shared_->workers) worker.join();
    delete shared_;
    shared_ = nullptr;
    throw;
  }
}

ThreadPool::~ThreadPool() {
  if (shared_ == nullptr || process_ != getpid()) return;  // a forked child has no threads to join
  shared_->stop = true;
  advance(shared_->generation);
  for (std::thread& worker : shared_->workers) worker.join();
  delete shared_;
}

void ThreadPool::run(Body body, void* context) {
  const FlushDenormals mode;
  if (size_ > 1) {
    if (shared_ == nullptr || process_ != getpid()) start();
    shared_->body = body;
    shared_->context = context;
    advance(shared_->generation);
  }
  body(context, 0);
  barrier();
}

void ThreadPool::barrier() {
  if (size_ == 1) return;
  Shared& shared = *shared_;
  const uint32_t phase = shared.phase.load(std::memory_order_relaxed);
  if (shared.arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == static_cast<uint32_t>(size_)) {
    shared.arrived.store(0, std::memory_order_relaxed);
    advance(shared.phase);
  } else {
    wait_while(shared.phase, phase);
  }
}

void ThreadPool::work(ThreadPool* pool, Shared* shared, int thread) {
  const FlushDenormals mode;
  for (uint32_t seen = 0;; ++seen) {
    wait_while(shared->generation, seen);
    if (shared->stop) return;
    shared->body(shared->context, thread);
    pool->barrier();
  }
}

}  // namespace sacfast::cpu
