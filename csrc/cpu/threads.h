// The threads of one engine: they wait for work by spinning for about 200 us, then asleep.
//
// A region runs the same function on every thread, the caller being thread 0, and the function meets the
// others at `barrier`. A waiting thread spins first, because the next phase is microseconds away; then it
// sleeps on a futex, so that an idle or overcommitted machine pays nothing. Denormal numbers are flushed to
// zero inside a region only (Adam's moments of dead units decay into them, at 100 cycles an operation), and
// the caller's own mode is restored.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace sacfast::cpu {

class ThreadPool {
 public:
  using Body = void (*)(void* context, int thread);

  // Starts `threads` - 1 threads. Throws std::system_error where the system refuses.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  // body(context, t) for every t < threads, then returns. One caller at a time. In a forked child, where only
  // the forking thread exists, the first call starts the threads anew.
  void run(Body body, void* context);

  // Inside a region: returns once every thread of it has called.
  void barrier();

 private:
  // Shared with the workers; on the heap, so that a forked child can leave the parent's copy behind.
  struct Shared {
    alignas(64) std::atomic<uint32_t> generation{0};  // regions begun
    alignas(64) std::atomic<uint32_t> arrived{0};
    alignas(64) std::atomic<uint32_t> phase{0};
    bool stop = false;
    Body body = nullptr;
    void* context = nullptr;
    std::vector<std::thread> workers;
  };

  void start();
  static void work(ThreadPool* pool, Shared* shared, int thread);

  const int size_;
  Shared* shared_ = nullptr;
  int process_ = 0;
};

}  // namespace sacfast::cpu
