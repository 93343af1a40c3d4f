// The arithmetic that this machine can do at most, for the share of it that an update reaches:
//
//   float32   x[k] = x[k] * a + b, over kChains independent vectors that stay in registers
//   bf16      c[k] += a b on matrix tiles, over four independent tiles of sums
//
// One thread per core asked for, all at once, none of which touches memory.
#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#if defined(__AMX_BF16__)
#include "cpu/amx_tiles.h"
#endif

namespace {

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX2__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif
typedef float Vector __attribute__((vector_size(kBytes)));

constexpr int kChains = 12;  // two multipliers of four or five cycles' latency; 12 of 16 registers
constexpr int kSteps = 10000;

double float32_flop() {
  volatile float half = 0.5f;  // a number that the compiler cannot compute with
  Vector x[kChains], a = Vector{} + half, b = Vector{} + 1.0f;
  for (int k = 0; k < kChains; ++k) x[k] = Vector{} + static_cast<float>(k);
  for (int step = 0; step < kSteps; ++step) {
#pragma GCC unroll 12
    for (int k = 0; k < kChains; ++k) x[k] = x[k] * a + b;
  }
  for (int k = 1; k < kChains; ++k) x[0] += x[k];
  volatile float kept = x[0][0];
  (void)kept;
  return 2.0 * kSteps * kChains * (kBytes / sizeof(float));
}

double bf16_flop() {
#if defined(__AMX_BF16__)
  using namespace sacfast::cpu;
  const Tiles tiles;
  tile_zero<0>(), tile_zero<1>(), tile_zero<2>(), tile_zero<3>();
  tile_zero<4>(), tile_zero<5>(), tile_zero<6>(), tile_zero<7>();
  for (int step = 0; step < kSteps; ++step) {
    tile_dot<0, 4, 6>();
    tile_dot<1, 4, 7>();
    tile_dot<2, 5, 6>();
    tile_dot<3, 5, 7>();
  }
  return 4.0 * kSteps * 2 * 16 * 16 * 32;
#else
  return 0.0;
#endif
}

}  // namespace

// GFLOP/s of `threads` threads together, over about `seconds`; 0 for bf16 without matrix tiles, which the
// process must have been granted already.
extern "C" double peak_gflops(int threads, double seconds, int bf16) {
  using Clock = std::chrono::steady_clock;
  std::atomic<int> ready{0};
  std::vector<double> rates(threads);
  std::vector<std::thread> pool;
  for (int i = 0; i < threads; ++i) {
    pool.emplace_back([&, i] {
      ++ready;
      while (ready < threads) {
      }
      const auto start = Clock::now();
      double flop = 0.0, elapsed = 0.0;
      while (elapsed < seconds) {
        flop += bf16 ? bf16_flop() : float32_flop();
        elapsed = std::chrono::duration<double>(Clock::now() - start).count();
      }
      rates[i] = flop / elapsed / 1e9;
    });
  }
  double sum = 0.0;
  for (int i = 0; i < threads; ++i) {
    pool[i].join();
    sum += rates[i];
  }
  return sum;
}
