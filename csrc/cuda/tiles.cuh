// C = A B, a tile of C per block: C[i][j] = sum_k a(i, k) b(j, k), in three precisions of the same form.
//
// Shared memory holds A and B as 32-bit words [k][i]: one number of k in float32 and TF32, two neighbours of
// it in bfloat16. Per 16 words of k, the block loads the next 16 of both while it multiplies the present
// ones:
//
//   float32   each thread a rectangle of C, by FMA on the CUDA cores
//   tf32      mma.m16n8k8    } each warp a rectangle of C; the words that a lane needs are the same for
//   bf16      mma.m16n8k16   } both (PTX ISA, "Matrix Fragments for mma.m16n8k8 / m16n8k16")
//
// Columns are swizzled by k so that stores from and loads to any layout meet each bank once. A sum runs over
// k in one order whatever the grid: the same bytes every time.
#pragma once

#include <type_traits>

#include "../sac_math.h"
#include "launch.cuh"
#include "sac_update.cuh"

namespace sacfast::cuda {

// How activations and gradients lie in memory. Weights are float32 always.
template <Precision P>
using Stored = std::conditional_t<P == Precision::kBf16, BFloat16, float>;

__device__ __forceinline__ float as_float(float value) { return value; }
__device__ __forceinline__ float as_float(BFloat16 value) { return bfloat16_to_float(value); }
__device__ __forceinline__ float as_float(Float16 value) { return float16_to_float(value); }
__device__ __forceinline__ void put(float* to, float value) { *to = value; }
__device__ __forceinline__ void put(BFloat16* to, float value) { *to = float_to_bfloat16(value); }

// ------------------------------------------------------------------------------------------- instructions

// Two floats as bfloat16, the first in the low half, each rounded to nearest even.
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
#ifdef SACFAST_EMULATE_CUDA
  return float_to_bfloat16(low).bits | static_cast<uint32_t>(float_to_bfloat16(high).bits) << 16;
#elif !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  uint32_t word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
#else
  return 0;
#endif
}

// The nearest TF32 number: a float32 with ten bits of mantissa.
__device__ __forceinline__ uint32_t round_tf32(float value) {
#ifdef SACFAST_EMULATE_CUDA
  return emulator::round_tf32(value);
#elif !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  uint32_t word;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(word) : "f"(value));
  return word;
#else
  return 0;
#endif
}

// d += A B for a warp: A 16 x 8 words, B 8 words x 8. Of lane 4 g + t: a = A[g][t], A[g + 8][t], A[g][t + 4],
// A[g + 8][t + 4]; b = B[t][g], B[t + 4][g]; d = D[g][2 t], D[g][2 t + 1], D[g + 8][2 t], D[g + 8][2 t + 1].
template <Precision P>
__device__ __forceinline__ void multiply_words(float (&d)[4], const uint32_t (&a)[4],
                                               const uint32_t (&b)[2]) {
#ifdef SACFAST_EMULATE_CUDA
  emulator::mma(d, a, b, P == Precision::kBf16);
#elif !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  if constexpr (P == Precision::kBf16) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
#endif
}

// ------------------------------------------------------------------------------------------------ operands

// A factor's numbers, (i, k) for i < extent and k < depth, zero beyond: at data[i * stride + k] along k, else
// at data[k * stride + i].
template <typename T, bool kAlongK>
struct Factor {
  const T* data;
  int64_t stride;
  int extent, depth;
  bool aligned;  // four numbers that begin at a multiple of four can be loaded at once

  __device__ Factor(const T* from, int64_t row_stride, int extent, int depth)
      : data(from),
        stride(row_stride),
        extent(extent),
        depth(depth),
        aligned((reinterpret_cast<uintptr_t>(from) | static_cast<uintptr_t>(row_stride * sizeof(T))) %
                    (4 * sizeof(T)) ==
                0) {}

  // Numbers (i, k), ... of the next four k along k, else of the next four i.
  __device__ __forceinline__ void load(int i, int k, float (&out)[4]) const {
    const int major = kAlongK ? i : k, minor = kAlongK ? k : i;
    const int rows = kAlongK ? extent : depth, columns = kAlongK ? depth : extent;
    const T* from = data + major * stride + minor;
    if (aligned && major < rows && minor + 3 < columns) {
      load_four(from, out);
    } else {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        out[e] = major < rows && minor + e < columns ? as_float(from[e]) : 0.0f;
      }
    }
  }

 private:
  static __device__ __forceinline__ void load_four(const float* from, float (&out)[4]) {
    const float4 four = *reinterpret_cast<const float4*>(from);
    out[0] = four.x, out[1] = four.y, out[2] = four.z, out[3] = four.w;
  }

  static __device__ __forceinline__ void load_four(const BFloat16* from, float (&out)[4]) {
    const uint2 four = *reinterpret_cast<const uint2*>(from);
    out[0] = bits_float(four.x << 16), out[1] = bits_float(four.x & 0xFFFF0000u);
    out[2] = bits_float(four.y << 16), out[3] = bits_float(four.y & 0xFFFF0000u);
  }
};

// Four words: (i, w) to (i, w + 3) along k, else (i, w) to (i + 3, w).
template <Precision P, typename T, bool kAlongK>
__device__ __forceinline__ uint4 words(const Factor<T, kAlongK>& factor, int i, int w) {
  float x[4];
  if constexpr (P != Precision::kBf16) {
    factor.load(i, w, x);
    if constexpr (P == Precision::kTf32) {
      return {round_tf32(x[0]), round_tf32(x[1]), round_tf32(x[2]), round_tf32(x[3])};
    } else {
      return {float_bits(x[0]), float_bits(x[1]), float_bits(x[2]), float_bits(x[3])};
    }
  } else {
    float y[4];
    factor.load(i, 2 * w, x);
    if constexpr (kAlongK) {
      factor.load(i, 2 * w + 4, y);
      return {pack_bf16(x[0], x[1]), pack_bf16(x[2], x[3]), pack_bf16(y[0], y[1]), pack_bf16(y[2], y[3])};
    } else {
      factor.load(i, 2 * w + 1, y);
      return {pack_bf16(x[0], y[0]), pack_bf16(x[1], y[1]), pack_bf16(x[2], y[2]), pack_bf16(x[3], y[3])};
    }
  }
}

// ---------------------------------------------------------------------------------------------------- tile

constexpr int kSlab = 16;  // words of k in shared memory at a time

// One factor's words of a slab, [k][i]. Rows are 8 words longer than what they hold, and within one row i is
// swizzled: threads 4 r + q that store word 4 q of row r then meet 32 banks, as do lanes 4 g + t that load
// words [t][g].
template <int kExtent>
struct Slab {
  alignas(16) uint32_t word[kSlab][kExtent + 8];

  static __device__ __forceinline__ int column(int k, int i) { return i ^ (((k >> 2) & 3) << 3); }

  // The address of (i, k); the three that follow it in memory are i + 1 to i + 3 if i is a multiple of four.
  __device__ __forceinline__ uint32_t* at(int k, int i) { return &word[k][column(k, i)]; }
  __device__ __forceinline__ const uint32_t* at(int k, int i) const { return &word[k][column(k, i)]; }
};

// A block's copy of its factor from memory, through registers, one slab ahead of the multiplication.
template <Precision P, int kExtent, int kBlock, typename T, bool kAlongK>
struct Loader {
  static constexpr int kEach = kExtent * kSlab / 4 / kBlock;  // fours of words per thread
  static_assert(kEach * kBlock * 4 == kExtent * kSlab);
  const Factor<T, kAlongK>& factor;
  const int first;
  uint4 held[kEach];

  __device__ Loader(const Factor<T, kAlongK>& from, int first_i) : factor(from), first(first_i) {}

  static __device__ __forceinline__ void place(int n, int& i, int& w) {
    const int four = threadIdx.x + n * kBlock;
    i = kAlongK ? four / (kSlab / 4) : four % (kExtent / 4) * 4;
    w = kAlongK ? four % (kSlab / 4) * 4 : four / (kExtent / 4);
  }

  __device__ __forceinline__ void fetch(int from_word) {
#pragma unroll
    for (int n = 0; n < kEach; ++n) {
      int i, w;
      place(n, i, w);
      held[n] = words<P>(factor, first + i, from_word + w);
    }
  }

  __device__ __forceinline__ void store(Slab<kExtent>& slab) const {
#pragma unroll
    for (int n = 0; n < kEach; ++n) {
      int i, w;
      place(n, i, w);
      if constexpr (kAlongK) {
        *slab.at(w, i) = held[n].x, *slab.at(w + 1, i) = held[n].y;
        *slab.at(w + 2, i) = held[n].z, *slab.at(w + 3, i) = held[n].w;
      } else {
        *reinterpret_cast<uint4*>(slab.at(w, i)) = held[n];
      }
    }
  }
};

// The part of C that a thread of the block has: by FMA, fours of rows by kWide columns.
template <int kRows, int kColumns, int kBlock>
struct Part {
  static constexpr int kTall = 4, kWide = kRows * kColumns / kBlock >= 64 ? 4 : 2;
  static constexpr int kAcross = kColumns >= 128 ? 2 : 1, kDown = kRows >= 128 ? 2 : 1;
  static constexpr int kThreadsAcross = kColumns / (kAcross * kWide);
  static_assert(kThreadsAcross * (kRows / (kDown * kTall)) == kBlock);
  float sum[kDown][kTall][kAcross][kWide] = {};

  __device__ __forceinline__ int row(int down) const {
    return static_cast<int>(threadIdx.x) / kThreadsAcross * kTall + down * (kRows / kDown);
  }
  __device__ __forceinline__ int column(int across) const {
    return static_cast<int>(threadIdx.x) % kThreadsAcross * kWide + across * (kColumns / kAcross);
  }

  template <Precision P>
  __device__ __forceinline__ void multiply(const Slab<kRows>& a, const Slab<kColumns>& b) {
#pragma unroll
    for (int k = 0; k < kSlab; ++k) {
      float x[kDown][kTall], y[kAcross][kWide];
#pragma unroll
      for (int d = 0; d < kDown; ++d) {
        const float4 four = *reinterpret_cast<const float4*>(a.at(k, row(d)));
        x[d][0] = four.x, x[d][1] = four.y, x[d][2] = four.z, x[d][3] = four.w;
      }
#pragma unroll
      for (int c = 0; c < kAcross; ++c) {
#pragma unroll
        for (int j = 0; j < kWide; j += 2) {
          const float2 two = *reinterpret_cast<const float2*>(b.at(k, column(c)) + j);
          y[c][j] = two.x, y[c][j + 1] = two.y;
        }
      }
#pragma unroll
      for (int d = 0; d < kDown; ++d) {
#pragma unroll
        for (int i = 0; i < kTall; ++i) {
#pragma unroll
          for (int c = 0; c < kAcross; ++c) {
#pragma unroll
            for (int j = 0; j < kWide; ++j) sum[d][i][c][j] = fmaf(x[d][i], y[c][j], sum[d][i][c][j]);
          }
        }
      }
    }
  }

  // use(row, column, value, value of column + 1), rows and columns within the tile; column is even.
  template <typename F>
  __device__ __forceinline__ void for_pairs(F use) const {
#pragma unroll
    for (int d = 0; d < kDown; ++d) {
#pragma unroll
      for (int i = 0; i < kTall; ++i) {
#pragma unroll
        for (int c = 0; c < kAcross; ++c) {
#pragma unroll
          for (int j = 0; j < kWide; j += 2) {
            use(row(d) + i, column(c) + j, sum[d][i][c][j], sum[d][i][c][j + 1]);
          }
        }
      }
    }
  }
};

// The same on the matrix units: warps in two rows, each with fragments of 16 x 8.
template <int kRows, int kColumns, int kBlock>
struct Fragments {
  static constexpr int kWarpsDown = 2, kWarpsAcross = kBlock / kWarp / kWarpsDown;
  static constexpr int kTall = kRows / kWarpsDown, kWide = kColumns / kWarpsAcross;
  static constexpr int kDown = kTall / 16, kAcross = kWide / 8;
  static_assert(kDown * 16 == kTall && kAcross * 8 == kWide);
  float sum[kDown][kAcross][4] = {};

  __device__ __forceinline__ int row() const {
    return static_cast<int>(threadIdx.x) / kWarp % kWarpsDown * kTall;
  }
  __device__ __forceinline__ int column() const {
    return static_cast<int>(threadIdx.x) / kWarp / kWarpsDown * kWide;
  }

  template <Precision P>
  __device__ __forceinline__ void multiply(const Slab<kRows>& a, const Slab<kColumns>& b) {
    const int g = threadIdx.x % kWarp / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int k = t; k < kSlab; k += 8) {
      uint32_t x[kDown][4], y[kAcross][2];
#pragma unroll
      for (int d = 0; d < kDown; ++d) {
        const int i = row() + 16 * d + g;
        x[d][0] = *a.at(k, i), x[d][1] = *a.at(k, i + 8);
        x[d][2] = *a.at(k + 4, i), x[d][3] = *a.at(k + 4, i + 8);
      }
#pragma unroll
      for (int c = 0; c < kAcross; ++c) {
        const int j = column() + 8 * c + g;
        y[c][0] = *b.at(k, j), y[c][1] = *b.at(k + 4, j);
      }
#pragma unroll
      for (int d = 0; d < kDown; ++d) {
#pragma unroll
        for (int c = 0; c < kAcross; ++c) multiply_words<P>(sum[d][c], x[d], y[c]);
      }
    }
  }

  template <typename F>
  __device__ __forceinline__ void for_pairs(F use) const {
    const int g = threadIdx.x % kWarp / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int d = 0; d < kDown; ++d) {
#pragma unroll
      for (int c = 0; c < kAcross; ++c) {
        const int i = row() + 16 * d + g, j = column() + 8 * c + 2 * t;
        use(i, j, sum[d][c][0], sum[d][c][1]);
        use(i + 8, j, sum[d][c][2], sum[d][c][3]);
      }
    }
  }
};

// A tile's size and its block. Small tiles give a batch of 256 enough blocks for every multiprocessor, large
// ones use each number that they load 128 times.
struct Small {
  static constexpr int kExtent = 32, kBlock = 128;
};
struct Large {
  static constexpr int kExtent = 128, kBlock = 256;
};

// Words of k in a slab, as numbers of k.
template <Precision P>
constexpr int kSlabDepth = P == Precision::kBf16 ? 2 * kSlab : kSlab;

// use(i, j, C[i][j], C[i][j + 1]) for the tile of C that begins at (i, j) = (first_i, first_j), with sums
// over k from `k_begin`, a multiple of kSlabDepth, up to the factors' depth. i and j may lie beyond the
// factors, where the sums are zero. For all threads of the block.
template <Precision P, typename Size, typename A, bool kAlongA, typename B, bool kAlongB, typename F>
__device__ __forceinline__ void tile_product(const Factor<A, kAlongA>& a, const Factor<B, kAlongB>& b,
                                             int first_i, int first_j, int k_begin, F use) {
  constexpr int kExtent = Size::kExtent, kBlock = Size::kBlock;
  __shared__ Slab<kExtent> shared_a[2], shared_b[2];
  using Sums = std::conditional_t<P == Precision::kFloat32, Part<kExtent, kExtent, kBlock>,
                                  Fragments<kExtent, kExtent, kBlock>>;
  Sums sums;
  Loader<P, kExtent, kBlock, A, kAlongA> load_a(a, first_i);
  Loader<P, kExtent, kBlock, B, kAlongB> load_b(b, first_j);
  const int depth = a.depth - k_begin, slabs = (depth + kSlabDepth<P> - 1) / kSlabDepth<P>;
  int word = k_begin * kSlab / kSlabDepth<P>;
  load_a.fetch(word), load_b.fetch(word);
  load_a.store(shared_a[0]), load_b.store(shared_b[0]);
  __syncthreads();
  for (int s = 0; s < slabs; ++s) {
    const bool more = s + 1 < slabs;
    if (more) {
      word += kSlab;
      load_a.fetch(word), load_b.fetch(word);
    }
    sums.template multiply<P>(shared_a[s % 2], shared_b[s % 2]);
    if (more) {  // into the halves that the slab before this one was read from
      load_a.store(shared_a[(s + 1) % 2]), load_b.store(shared_b[(s + 1) % 2]);
      __syncthreads();
    }
  }
  sums.for_pairs([&](int i, int j, float value, float next) { use(first_i + i, first_j + j, value, next); });
}

}  // namespace sacfast::cuda
