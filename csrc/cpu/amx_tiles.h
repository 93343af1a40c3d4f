// The tile instructions of AMX-BF16 that the products need: eight tiles of 16 rows by 64 bytes each, and
//
//   c[m][n] += sum_k a[m][2k] b[k][2n] + a[m][2k + 1] b[k][2n + 1]
//
// for c float32 [16][16], a and b bf16 [16][32]. With SACFAST_EMULATE_AMX the same functions run in plain C++
// on any CPU, with the instruction's own order of additions and rounding, so that what uses them can be
// tested.
//
// Written as inline assembly, as the compilers' intrinsics are, because these say more: which memory a load
// reads, and a tile's number as a template argument. The compiler knows nothing of tiles; that the statements
// are volatile keeps them in order.
#pragma once

#include <cstdint>

#if defined(SACFAST_EMULATE_AMX)
#include <cstdlib>
#include <cstring>
#endif

namespace sacfast::cpu {
namespace {

constexpr int64_t kTileBytes = 1024, kTileRowBytes = 64, kTileRows = 16;

struct alignas(64) TileBytes {
  char bytes[kTileBytes];
};

#if !defined(SACFAST_EMULATE_AMX)

constexpr const char* kPathName = "amx";

// The operand of ldtilecfg: palette 1, all eight tiles whole.
struct alignas(64) TileConfiguration {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
constexpr TileConfiguration kTileConfiguration;

// Tiles belong to a thread and to whoever configured them last: other libraries on this thread do too. So
// they are configured for the length of one call, and given back: a thread that sleeps or takes a signal then
// has no 8 KB of tiles to save.
struct Tiles {
  Tiles() { asm volatile("ldtilecfg %0" : : "m"(kTileConfiguration)); }
  ~Tiles() { asm volatile("tilerelease"); }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;
};

template <int T>
[[gnu::always_inline]] inline void tile_zero() {
  asm volatile("tilezero %%tmm%c0" : : "i"(T));
}

// A tile of 1 KB in one piece.
template <int T>
[[gnu::always_inline]] inline void tile_load(const char* tile) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2"
               :
               : "r"(tile), "r"(kTileRowBytes), "i"(T), "m"(*reinterpret_cast<const TileBytes*>(tile)));
}

// A float32 tile whose rows are `stride` floats apart.
template <int T>
[[gnu::always_inline]] inline void tile_load(const float* tile, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(tile), "r"(stride * 4), "i"(T) : "memory");
}

template <int T>
[[gnu::always_inline]] inline void tile_store(float* tile, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(tile), "r"(stride * 4), "i"(T) : "memory");
}

template <int C, int A, int B>
[[gnu::always_inline]] inline void tile_dot() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(C), "i"(A), "i"(B));
}

#else

constexpr const char* kPathName = "amx-emulated";

struct EmulatedTiles {
  bool configured;
  uint32_t words[8][kTileRows][kTileRows];
};
thread_local EmulatedTiles emulated_tiles;

struct Tiles {
  Tiles() {
    memset(&emulated_tiles, 0, sizeof emulated_tiles);
    emulated_tiles.configured = true;
  }
  ~Tiles() { emulated_tiles.configured = false; }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;
};

// The tile's words; unconfigured, the instruction is an illegal one.
template <int T>
auto& emulated_tile() {
  static_assert(T >= 0 && T < 8);
  if (!emulated_tiles.configured) abort();
  return emulated_tiles.words[T];
}

template <int T>
void tile_zero() {
  memset(emulated_tile<T>(), 0, kTileBytes);
}

template <int T>
void tile_load(const char* tile) {
  memcpy(emulated_tile<T>(), tile, kTileBytes);
}

template <int T>
void tile_load(const float* tile, int64_t stride) {
  for (int64_t r = 0; r < kTileRows; ++r) memcpy(emulated_tile<T>()[r], tile + r * stride, kTileRowBytes);
}

template <int T>
void tile_store(float* tile, int64_t stride) {
  for (int64_t r = 0; r < kTileRows; ++r) memcpy(tile + r * stride, emulated_tile<T>()[r], kTileRowBytes);
}

// The float32 with these bits; denormals count as zeros, in operands and in results.
inline float flushed(uint32_t bits) {
  bits = (bits & 0x7f800000u) == 0 ? bits & 0x80000000u : bits;
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

inline float flushed(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return flushed(bits);
}

inline float low_half(uint32_t word) { return flushed(word << 16); }
inline float high_half(uint32_t word) { return flushed(word & 0xffff0000u); }

// As the manual's TDPBF16PS: fused multiply-adds over k, even and odd elements apart, then their sum, then c;
// every step rounds to nearest even.
[[gnu::noinline]] inline void emulated_dot(uint32_t (&c)[16][16], const uint32_t (&a)[16][16],
                                           const uint32_t (&b)[16][16]) {
  float b_even[16][16], b_odd[16][16];
  for (int k = 0; k < 16; ++k) {
    for (int n = 0; n < 16; ++n) {
      b_even[k][n] = low_half(b[k][n]);
      b_odd[k][n] = high_half(b[k][n]);
    }
  }
  for (int m = 0; m < 16; ++m) {
    float even[16] = {}, odd[16] = {};
    for (int k = 0; k < 16; ++k) {
      const float a_even = low_half(a[m][k]), a_odd = high_half(a[m][k]);
      for (int n = 0; n < 16; ++n) even[n] = flushed(__builtin_fmaf(a_even, b_even[k][n], even[n]));
      for (int n = 0; n < 16; ++n) odd[n] = flushed(__builtin_fmaf(a_odd, b_odd[k][n], odd[n]));
    }
    for (int n = 0; n < 16; ++n) {
      const float sum = flushed(flushed(c[m][n]) + flushed(even[n] + odd[n]));
      memcpy(&c[m][n], &sum, sizeof sum);
    }
  }
}

template <int C, int A, int B>
void tile_dot() {
  static_assert(C != A && C != B && A != B);
  emulated_dot(emulated_tile<C>(), emulated_tile<A>(), emulated_tile<B>());
}

#endif

}  // namespace
}  // namespace sacfast::cpu
