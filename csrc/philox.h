// Counter-based random numbers: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
// SC 2011).
//
//   words = philox4x32(counter = (block, stream, step lo, step hi), key = (seed lo, seed hi))
//
// A number depends on its position alone, not on what was drawn before it or by which thread, so that any
// split of the work gives the same bytes on every device. Branch-free, so that a loop over blocks vectorises;
// host and device.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define SACFAST_HD __host__ __device__ __forceinline__
#else
#define SACFAST_HD inline __attribute__((always_inline))
#endif

#if defined(__CUDACC__) || defined(__clang__)
#define SACFAST_UNROLL _Pragma("unroll")
#else
#define SACFAST_UNROLL _Pragma("GCC unroll 16")
#endif

namespace sacfast {

// The part of key and counter that all blocks of one draw share.
struct PhiloxKey {
  uint32_t seed_lo, seed_hi, stream, step_lo, step_hi;
};

// The four 32-bit words of one block.
struct PhiloxWords {
  uint32_t w0, w1, w2, w3;
};

// key: int64 [3] = (seed, stream, step); any bit pattern.
SACFAST_HD PhiloxKey philox_key(const int64_t* key) {
  const uint64_t seed = static_cast<uint64_t>(key[0]), step = static_cast<uint64_t>(key[2]);
  return {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32), static_cast<uint32_t>(key[1]),
          static_cast<uint32_t>(step), static_cast<uint32_t>(step >> 32)};
}

SACFAST_HD PhiloxWords philox4x32(const PhiloxKey& key, uint32_t block) {
  uint32_t c0 = block, c1 = key.stream, c2 = key.step_lo, c3 = key.step_hi;
  uint32_t k0 = key.seed_lo, k1 = key.seed_hi;
  SACFAST_UNROLL
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = static_cast<uint64_t>(0xD2511F53u) * c0;
    const uint64_t p1 = static_cast<uint64_t>(0xCD9E8D57u) * c2;
    c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
    c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c1 = static_cast<uint32_t>(p1);
    c3 = static_cast<uint32_t>(p0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {c0, c1, c2, c3};
}

// High 64 bits of a 64 x 64-bit product, from 32-bit halves: the same on every compiler.
SACFAST_HD uint64_t multiply_high(uint64_t a, uint64_t b) {
  const uint64_t a_lo = static_cast<uint32_t>(a), a_hi = a >> 32, b_lo = static_cast<uint32_t>(b),
                 b_hi = b >> 32;
  const uint64_t low = a_lo * b_lo, middle = a_hi * b_lo + (low >> 32);
  const uint64_t cross = a_lo * b_hi + static_cast<uint32_t>(middle);
  return a_hi * b_hi + (middle >> 32) + (cross >> 32);
}

// Maps 64 random bits to [0, size): floor(bits * size / 2^64). The bias is below size / 2^64.
SACFAST_HD int64_t random_index(uint32_t hi, uint32_t lo, int64_t size) {
  return static_cast<int64_t>(
      multiply_high((static_cast<uint64_t>(hi) << 32) | lo, static_cast<uint64_t>(size)));
}

// Numbers [begin, end) of a draw of indices into out[0], out[1], ...: two to a block. Both ends are even.
SACFAST_HD void draw_indices(const PhiloxKey& key, int64_t begin, int64_t end, int64_t size, int64_t* out) {
  for (int64_t i = begin; i < end; i += 2) {
    const PhiloxWords words = philox4x32(key, static_cast<uint32_t>(i / 2));
    out[i - begin] = random_index(words.w0, words.w1, size);
    out[i - begin + 1] = random_index(words.w2, words.w3, size);
  }
}

}  // namespace sacfast
