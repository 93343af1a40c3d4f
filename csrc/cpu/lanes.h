// Vectors of floats as wide as the instruction set of the unit that includes this, in GCC's and Clang's
// vector extensions: an expression in V is one machine instruction per operator, for any width, so that
// dense.h is written once.
//
// What the extensions lack is added here: access to unaligned and to partial vectors, the square root, and
// the two interleavings of which transposes and reductions are made.
//
// The units of several instruction sets are linked into one library. All that they share in source is
// therefore in an unnamed namespace: were it `inline`, the linker would keep one unit's code for all of them.
#pragma once

#include <cstdint>
#include <utility>

#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

#define SACFAST_INLINE inline __attribute__((always_inline))
#if defined(__clang__)
#define SACFAST_UNROLLED _Pragma("unroll")
#else
#define SACFAST_UNROLLED _Pragma("GCC unroll 32")
#endif

namespace sacfast::cpu {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float V __attribute__((vector_size(4 * kLanes)));
typedef int32_t LaneIndices __attribute__((vector_size(4 * kLanes)));
typedef float UnalignedV __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));

SACFAST_INLINE V load(const float* from) { return *reinterpret_cast<const UnalignedV*>(from); }
SACFAST_INLINE void store(float* to, V v) { *reinterpret_cast<UnalignedV*>(to) = v; }

// Asks for a row of `count` numbers, a cache line at a time.
SACFAST_INLINE void prefetch(const float* row, int count) {
  for (int i = 0; i < count; i += 16) __builtin_prefetch(row + i);
}

// The first `count` lanes: none if it is below 1, all if it is at least kLanes. The others are zeros in a
// load, and their memory is not touched.
SACFAST_INLINE V load(const float* from, int64_t count);
SACFAST_INLINE void store(float* to, V v, int64_t count);

// sqrt(x) for finite x >= 0 and a / b for normal b > 0, to 0.6 units in the last place or better.
SACFAST_INLINE V square_root(V x);
SACFAST_INLINE V quotient(V a, V b);

#if defined(__AVX512F__)

// Whole vectors take the branch: masked loads and stores cost Adam 3 % of its time.
SACFAST_INLINE __mmask16 first(int64_t count) {
  return static_cast<__mmask16>(count < 1 ? 0 : (1u << count) - 1);
}
SACFAST_INLINE V load(const float* from, int64_t count) {
  return count >= 16 ? load(from) : _mm512_maskz_loadu_ps(first(count), from);
}
SACFAST_INLINE void store(float* to, V v, int64_t count) {
  if (count >= 16) return store(to, v);
  _mm512_mask_storeu_ps(to, first(count), v);
}

// One Newton step each from the instructions' 14 bits, because the exact ones take 16 to 34 cycles together
// and were most of Adam's time. With e <= 2^-14 the step leaves 1.5 e^2 = 2^-27.4 and e^2 = 2^-28,
// relatively, before its rounding; the residuals x - s^2 and a - q b are exact but for one rounding, of
// themselves. Below 2^-126 the square root comes out too small (by less than 2^-63 = 1.1e-19, the largest
// such root); infinity has the largest number's. NaN stays NaN, being the second operand.
SACFAST_INLINE V square_root(V x) {
  x = _mm512_maskz_min_ps(0xFFFF, V{} + 0x1.fffffep+127f, x);
  const V inverse = _mm512_maskz_rsqrt14_ps(0xFFFF, _mm512_maskz_max_ps(0xFFFF, x, V{} + 0x1p-126f));
  const V root = x * inverse;
  return root + 0.5f * inverse * (x - root * root);
}
SACFAST_INLINE V quotient(V a, V b) {
  const V inverse = _mm512_maskz_rcp14_ps(0xFFFF, b);
  const V ratio = a * inverse;
  return ratio + inverse * (a - ratio * b);
}

#elif defined(__AVX2__)

SACFAST_INLINE __m256i first(int64_t count) {
  const int32_t limit = count < 0 ? 0 : static_cast<int32_t>(count);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(limit), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
SACFAST_INLINE V load(const float* from, int64_t count) {
  return count >= 8 ? load(from) : _mm256_maskload_ps(from, first(count));
}
SACFAST_INLINE void store(float* to, V v, int64_t count) {
  if (count >= 8) return store(to, v);
  _mm256_maskstore_ps(to, first(count), v);
}
SACFAST_INLINE V square_root(V x) { return _mm256_sqrt_ps(x); }
SACFAST_INLINE V quotient(V a, V b) { return a / b; }

#else

SACFAST_INLINE V load(const float* from, int64_t count) {
  if (count >= kLanes) return load(from);
  return V{count > 0 ? from[0] : 0.0f, count > 1 ? from[1] : 0.0f, count > 2 ? from[2] : 0.0f, 0.0f};
}
SACFAST_INLINE void store(float* to, V v, int64_t count) {
  if (count >= kLanes) return store(to, v);
  for (int64_t i = 0; i < count; ++i) to[i] = v[i];
}
SACFAST_INLINE V square_root(V x) {
  return V{__builtin_sqrtf(x[0]), __builtin_sqrtf(x[1]), __builtin_sqrtf(x[2]), __builtin_sqrtf(x[3])};
}
SACFAST_INLINE V quotient(V a, V b) { return a / b; }

#endif

constexpr int interleaved(int lane, int width) {
  return lane / (2 * width) * (2 * width) + lane % width + (lane / width % 2 ? kLanes : 0);
}

template <int width, int offset, int... lane>
SACFAST_INLINE V interleave(V a, V b, std::integer_sequence<int, lane...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, (interleaved(lane, width) + offset)...);
#else
  return __builtin_shuffle(a, b, LaneIndices{(interleaved(lane, width) + offset)...});
#endif
}

// With vectors cut into blocks of `width` lanes: a's even (or odd) blocks, and between them b's.
// For 8 lanes and width 2: even (a0 a1 b0 b1 a4 a5 b4 b5), odd (a2 a3 b2 b3 a6 a7 b6 b7).
template <int width>
SACFAST_INLINE V even(V a, V b) {
  return interleave<width, 0>(a, b, std::make_integer_sequence<int, kLanes>());
}
template <int width>
SACFAST_INLINE V odd(V a, V b) {
  return interleave<width, width>(a, b, std::make_integer_sequence<int, kLanes>());
}

// The matrix of which v are the rows becomes that of which they are the columns, by exchanging ever larger
// blocks across the diagonal.
template <int width = 1>
SACFAST_INLINE void transpose(V (&v)[kLanes]) {
  SACFAST_UNROLLED
  for (int i = 0; i < kLanes; ++i) {
    if ((i & width) == 0) {
      const V a = v[i], b = v[i + width];
      v[i] = even<width>(a, b);
      v[i + width] = odd<width>(a, b);
    }
  }
  if constexpr (2 * width < kLanes) transpose<2 * width>(v);
}

// Lane i of the result is the sum of v[i]'s lanes, for i < count <= kLanes, a power of two: the transpose
// above, with an addition in place of every exchange.
template <int count, int width = 1>
SACFAST_INLINE V sums(V (&v)[count]) {
  if constexpr (width >= kLanes) {
    return v[0];
  } else {
    SACFAST_UNROLLED
    for (int i = 0; i < count; i += 2 * width) {
      const V a = v[i], b = v[width < count ? i + width : i];
      v[i] = even<width>(a, b) + odd<width>(a, b);
    }
    return sums<count, 2 * width>(v);
  }
}

}  // namespace
}  // namespace sacfast::cpu
