// The threads of one engine, and how work is shared among them.
//
// Work comes in phases, and a phase in pieces that may be done in any order. Every thread has pieces of its
// own, which it does first, because what they need is in its caches; then it does what others have not begun.
// A phase ends with its last piece: nobody waits for a thread that the system has taken the processor from,
// unless it is in the middle of a piece.
//
// A thread without work spins for about 200 us, because the next phase is microseconds away; then it sleeps
// on a futex, so that an idle or overcommitted machine pays nothing. Denormal numbers are flushed to zero
// while work is done (Adam's moments of dead units decay into them, at 100 cycles an operation); the caller's
// own mode is restored.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

namespace sacfast::cpu {

// What threads work on. `next` is called by one thread while no other works.
class Phases {
 public:
  // Readies the next phase: counts[t] <- how many pieces are thread t's own, not all zero.
  // Returns false at the end of the work.
  virtual bool next(int64_t* counts) noexcept = 0;

  // Does one piece of those of `owner`.
  virtual void piece(int thread, int owner, int64_t index) noexcept = 0;

 protected:
  ~Phases() = default;
};

class ThreadPool {
 public:
  // Starts `threads` - 1 threads. Throws std::system_error where the system refuses.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  // Lets the other threads begin `work`, which must live until `finish` has returned. One caller at a time.
  // In a forked child, where only the forking thread exists, the first call starts the threads anew.
  void start(Phases& work);

  // Works along as thread 0, until all phases have ended.
  void finish();

 private:
  // The pieces of one thread: how many there are in the upper half, how many are taken in the lower one.
  struct alignas(64) Share {
    std::atomic<uint64_t> word{0};
  };

  // On the heap, so that a forked child can leave the parent's copy behind.
  struct Shared {
    explicit Shared(int threads) : shares(new Share[threads]), counts(threads) {}

    alignas(64) std::atomic<uint32_t> phase{0};  // advances with every phase and at the end of the work
    alignas(64) std::atomic<int64_t> left{0};    // pieces of the phase that are not done
    std::atomic<bool> finished{false}, stop{false};
    Phases* work = nullptr;
    std::unique_ptr<Share[]> shares;
    std::vector<int64_t> counts;
    std::vector<std::thread> workers;
  };

  void start_threads();
  void open_phase(Shared& shared) const;
  void do_pieces(Shared& shared, int thread) const;

  const int size_;
  Shared* shared_ = nullptr;
  int process_ = 0;
};

}  // namespace sacfast::cpu
