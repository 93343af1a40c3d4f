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

// The next piece of `share`, or -1. That another phase may have begun since it was looked at does no harm:
// the piece is then one of that phase.
int64_t take(std::atomic<uint64_t>& share) {
  uint64_t seen = share.load(std::memory_order_acquire);
  while ((seen & UINT32_MAX) < seen >> 32) {
    if (share.compare_exchange_weak(seen, seen + 1, std::memory_order_acquire)) return seen & UINT32_MAX;
  }
  return -1;
}

}  // namespace

ThreadPool::ThreadPool(int threads) : size_(threads) { start_threads(); }

void ThreadPool::start_threads() {
  shared_ = new Shared(size_);
  process_ = getpid();
  const auto work = [this, shared = shared_](int thread) {
    const FlushDenormals mode;
    for (;;) {
      const uint32_t phase = shared->phase.load(std::memory_order_acquire);
      if (shared->stop) return;
      do_pieces(*shared, thread);
      wait_while(shared->phase, phase);
    }
  };
  try {
    for (int thread = 1; thread < size_; ++thread) shared_->workers.emplace_back(work, thread);
  } catch (...) {
    shared_->stop = true;
    advance(shared_->phase);
    for (std::thread& worker : shared_->workers) worker.join();
    delete shared_;
    shared_ = nullptr;
    throw;
  }
}

ThreadPool::~ThreadPool() {
  if (shared_ == nullptr || process_ != getpid()) return;  // a forked child has no threads to join
  shared_->stop = true;
  advance(shared_->phase);
  for (std::thread& worker : shared_->workers) worker.join();
  delete shared_;
}

void ThreadPool::start(Phases& work) {
  const FlushDenormals mode;
  if (shared_ == nullptr || process_ != getpid()) start_threads();
  Shared& shared = *shared_;
  shared.work = &work;
  shared.finished.store(false, std::memory_order_relaxed);
  open_phase(shared);
}

void ThreadPool::finish() {
  if (shared_ == nullptr || process_ != getpid()) return;  // the threads that had begun are the parent's
  const FlushDenormals mode;
  Shared& shared = *shared_;
  for (;;) {
    const uint32_t phase = shared.phase.load(std::memory_order_acquire);
    do_pieces(shared, 0);
    if (shared.finished.load(std::memory_order_acquire)) return;
    wait_while(shared.phase, phase);
  }
}

// By one thread, while there is no piece left for any other.
void ThreadPool::open_phase(Shared& shared) const {
  if (shared.work->next(shared.counts.data())) {
    int64_t total = 0;
    for (const int64_t count : shared.counts) total += count;
    shared.left.store(total, std::memory_order_relaxed);
    // Not beyond the last piece: once that can be taken, others may end the phase and open the next one. The
    // shares behind it are used up, as the phase before left them.
    for (int t = 0; total > 0; ++t) {
      const int64_t count = shared.counts[t];
      total -= count;
      shared.shares[t].word.store(static_cast<uint64_t>(count) << 32, std::memory_order_release);
    }
  } else {
    shared.finished.store(true, std::memory_order_release);
  }
  if (size_ > 1) advance(shared.phase);
}

// Until there is none to begin; the thread that ends a phase opens the next one.
void ThreadPool::do_pieces(Shared& shared, int thread) const {
  for (;;) {
    int64_t index = -1;
    int owner = thread;
    for (int i = 0; i < size_ && index < 0; ++i) {
      owner = (thread + i) % size_;
      index = take(shared.shares[owner].word);
    }
    if (index < 0) return;
    shared.work->piece(thread, owner, index);
    if (shared.left.fetch_sub(1, std::memory_order_acq_rel) == 1) open_phase(shared);
  }
}

}  // namespace sacfast::cpu
