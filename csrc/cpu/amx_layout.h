// How the AMX path keeps matrices, and how float32 numbers become them.
//
// Split: x = x_0 + ... + x_{S-1}, each a bf16: x_0 = round(x), x_1 = round(x - x_0), x_2 = x - x_0 - x_1. The
// differences are exact. What S = 1, 2, 3 parts leave out is at most 2^-8, 2^-17 and 0 of |x|. Rounding is to
// nearest, ties away from zero: one integer addition, where ties to even take four operations; the bound is
// the same.
//
// Pairs: the instruction multiplies 32-bit words that hold two neighbours of the inner dimension. Nothing
// says which: elements i and i + 16 of every 32 make all packing a shift and a blend of two vectors. Of a
// block of 32 x 32 elements x[r][c] there are three forms, S parts of two tiles each:
//
//   row tiles     word (r, k) of tile r / 16 = x[r][k], x[r][k + 16]       left operand, inner dimension c
//   pair tiles    word (k, c) of tile c / 16 = x[k][c], x[k + 16][c]       right operand, inner dimension r
//   turned tiles  the pair tiles transposed                                left operand, inner dimension r
//
// A product is then a walk along consecutive blocks of both operands. An activation keeps row tiles, pair
// tiles, and the bits of x > 0; a gradient keeps row tiles and turned tiles.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "amx_tiles.h"
#include "arithmetic.h"
#include "lanes.h"

namespace sacfast::cpu {
namespace {

constexpr int64_t kBlock = 32;  // rows and columns of a block
static_assert(kBlock == kPanel && kChunkRows % kBlock == 0);

template <int S>
constexpr int64_t kBlockBytes = S * 2 * kTileBytes;

inline int64_t blocks_of(int64_t n) { return (n + kBlock - 1) / kBlock; }

// ---------------------------------------------------------------------------------------- vectors

typedef uint32_t Words __attribute__((vector_size(64)));
typedef Words AliasingWords __attribute__((may_alias));

template <int S>
struct Parts {
  Words part[S];  // bf16 in the upper halves; the lower ones mean nothing
};

constexpr uint32_t kUpperHalf = 0xffff0000u;

SACFAST_INLINE Words words(__m512 x) { return reinterpret_cast<Words>(x); }
SACFAST_INLINE __m512 upper_value(Words word) { return reinterpret_cast<__m512>(word & kUpperHalf); }
SACFAST_INLINE __m512 lower_value(Words word) { return reinterpret_cast<__m512>(word << 16); }
SACFAST_INLINE Words rounded(__m512 x) { return words(x) + 0x8000u; }

template <int S>
SACFAST_INLINE Parts<S> split(__m512 x) {
  Parts<S> parts;
  parts.part[0] = rounded(x);
  if constexpr (S >= 2) {
    const __m512 rest = x - upper_value(parts.part[0]);
    parts.part[1] = rounded(rest);
    if constexpr (S == 3) parts.part[2] = words(rest - upper_value(parts.part[1]));
  }
  return parts;
}

// Words of two bf16: `first` in the lower halves, `second` in the upper ones.
SACFAST_INLINE __m512i paired(Words first, Words second) {
  constexpr int kFirstOrMaskedSecond = 0xf8;  // a | (b & c)
  const Words upper = Words{} + kUpperHalf;
  return _mm512_ternarylogic_epi32(reinterpret_cast<__m512i>(first >> 16), reinterpret_cast<__m512i>(second),
                                   reinterpret_cast<__m512i>(upper), kFirstOrMaskedSecond);
}

// activation.h's nonlinearity in one instruction, and where its derivative is one, as bits. The maximum is
// the second operand where one of them is not a number: a NaN stays one.
SACFAST_INLINE __m512 relu(__m512 x) { return _mm512_maskz_max_ps(0xffff, __m512{}, x); }
SACFAST_INLINE __mmask16 relu_passes(__m512 y) { return _mm512_cmp_ps_mask(y, __m512{}, _CMP_GT_OQ); }

// Bits of the columns of a block that exist, where `left` of them begin with it.
inline uint32_t existing(int64_t left) { return left >= kBlock ? ~0u : left > 0 ? (1u << left) - 1 : 0u; }

// Two rows, 16 apart, of a block: [row][half of the columns].
struct RowPair {
  __m512 v[2][2];
};

SACFAST_INLINE void load_row(const float* row, uint32_t columns, __m512 (&v)[2]) {
  v[0] = _mm512_maskz_loadu_ps(static_cast<__mmask16>(columns), row);
  v[1] = _mm512_maskz_loadu_ps(static_cast<__mmask16>(columns >> 16), row + 16);
}

// out[n][m] = in[m][n] for 16 x 16 words. The lanes of 128 bits meet their places as they are loaded.
SACFAST_INLINE void transpose(const char* in, char* out) {
  const auto lane = [in](int64_t row, int64_t quarter) {
    return _mm_load_si128(reinterpret_cast<const __m128i*>(in + row * kTileRowBytes + quarter * 16));
  };
  SACFAST_UNROLLED
  for (int64_t q = 0; q < 4; ++q) {
    __m512i row[4];
    SACFAST_UNROLLED
    for (int64_t i = 0; i < 4; ++i) {
      row[i] = _mm512_castsi128_si512(lane(i, q));
      row[i] = _mm512_mask_broadcast_i32x4(row[i], 0x00f0, lane(i + 4, q));
      row[i] = _mm512_mask_broadcast_i32x4(row[i], 0x0f00, lane(i + 8, q));
      row[i] = _mm512_mask_broadcast_i32x4(row[i], 0xf000, lane(i + 12, q));
    }
    constexpr __mmask16 kAll = 0xffff;  // GCC 12 warns of the functions without a mask
    const __m512i a = _mm512_maskz_unpacklo_epi32(kAll, row[0], row[1]);
    const __m512i b = _mm512_maskz_unpackhi_epi32(kAll, row[0], row[1]);
    const __m512i c = _mm512_maskz_unpacklo_epi32(kAll, row[2], row[3]);
    const __m512i d = _mm512_maskz_unpackhi_epi32(kAll, row[2], row[3]);
    char* const to = out + 4 * q * kTileRowBytes;
    _mm512_store_si512(to, _mm512_maskz_unpacklo_epi64(0xff, a, c));
    _mm512_store_si512(to + kTileRowBytes, _mm512_maskz_unpackhi_epi64(0xff, a, c));
    _mm512_store_si512(to + 2 * kTileRowBytes, _mm512_maskz_unpacklo_epi64(0xff, b, d));
    _mm512_store_si512(to + 3 * kTileRowBytes, _mm512_maskz_unpackhi_epi64(0xff, b, d));
  }
}

// Half a row of 32 columns from a row tile's: the sum of the parts, smallest first, which is exact.
template <int S>
SACFAST_INLINE void restore(const char* row, __m512 (&v)[2]) {
  SACFAST_UNROLLED
  for (int s = S - 1; s >= 0; --s) {
    const Words both = *reinterpret_cast<const AliasingWords*>(row + s * 2 * kTileBytes);
    v[0] = s == S - 1 ? lower_value(both) : v[0] + lower_value(both);
    v[1] = s == S - 1 ? upper_value(both) : v[1] + upper_value(both);
  }
}

// ---------------------------------------------------------------------------------------- operands

// Row tiles lie [row block][column block], so that a forward product walks along columns; the other form lies
// [column block][row block], so that a weight gradient walks along rows.
template <int S>
struct Blocks {
  int64_t row_blocks, column_blocks;
  char *row_tiles, *other_tiles;

  explicit Blocks(Operand x)
      : row_blocks(x.rows / kBlock),
        column_blocks(blocks_of(x.columns)),
        row_tiles(x.data),
        other_tiles(x.data + row_blocks * column_blocks * kBlockBytes<S>) {}

  char* row_block(int64_t r, int64_t c) const { return row_tiles + (r * column_blocks + c) * kBlockBytes<S>; }
  char* other_block(int64_t r, int64_t c) const {
    return other_tiles + (c * row_blocks + r) * kBlockBytes<S>;
  }
  int64_t row_stride() const { return column_blocks * kBlockBytes<S>; }

  static int64_t bytes(int64_t rows, int64_t columns) {
    return 2 * (rows / kBlock) * blocks_of(columns) * kBlockBytes<S>;
  }
};

// Writes rows r and r + 16 of a block's row tiles.
template <int S>
SACFAST_INLINE void write_row_tiles(char* block, int64_t r, const Parts<S> (&p)[2][2]) {
  SACFAST_UNROLLED
  for (int s = 0; s < S; ++s) {
    char* const to = block + s * 2 * kTileBytes + r * kTileRowBytes;
    _mm512_store_si512(to, paired(p[0][0].part[s], p[0][1].part[s]));
    _mm512_store_si512(to + kTileBytes, paired(p[1][0].part[s], p[1][1].part[s]));
  }
}

// Writes row r of a block's pair tiles, from rows r and r + 16 of the matrix.
template <int S>
SACFAST_INLINE void write_pair_tiles(char* block, int64_t r, const Parts<S> (&p)[2][2]) {
  SACFAST_UNROLLED
  for (int s = 0; s < S; ++s) {
    char* const to = block + s * 2 * kTileBytes + r * kTileRowBytes;
    _mm512_store_si512(to, paired(p[0][0].part[s], p[1][0].part[s]));
    _mm512_store_si512(to + kTileBytes, paired(p[0][1].part[s], p[1][1].part[s]));
  }
}

template <int S>
SACFAST_INLINE void split_rows(const RowPair& x, Parts<S> (&p)[2][2]) {
  p[0][0] = split<S>(x.v[0][0]);
  p[0][1] = split<S>(x.v[0][1]);
  p[1][0] = split<S>(x.v[1][0]);
  p[1][1] = split<S>(x.v[1][1]);
}

template <int S>
struct Activation : Blocks<S> {
  int64_t rows;
  uint32_t* passes;  // [column block][row]: the bits of relu_passes

  explicit Activation(Operand x)
      : Blocks<S>(x),
        rows(x.rows),
        passes(reinterpret_cast<uint32_t*>(x.data + Blocks<S>::bytes(x.rows, x.columns))) {}

  static int64_t bytes(int64_t rows, int64_t columns) {
    const int64_t bits = blocks_of(columns) * rows * static_cast<int64_t>(sizeof(uint32_t));
    return Blocks<S>::bytes(rows, columns) + (bits + 63) / 64 * 64;
  }

  // Rows i and i + 16 of block (r, c).
  SACFAST_INLINE void write(int64_t r, int64_t c, int64_t i, const RowPair& x) const {
    Parts<S> p[2][2];
    split_rows<S>(x, p);
    write_row_tiles<S>(this->row_block(r, c), i, p);
    write_pair_tiles<S>(this->other_block(r, c), i, p);
    uint32_t* const bits = passes + c * rows + r * kBlock + i;
    bits[0] = _mm512_kunpackw(relu_passes(x.v[0][1]), relu_passes(x.v[0][0]));
    bits[16] = _mm512_kunpackw(relu_passes(x.v[1][1]), relu_passes(x.v[1][0]));
  }
};

template <int S>
struct Gradient : Blocks<S> {
  using Blocks<S>::Blocks;

  // Rows i and i + 16 of block (r, c); `pairs` takes its pair tiles, for `turn`.
  SACFAST_INLINE void write(int64_t r, int64_t c, int64_t i, const RowPair& x, char* pairs) const {
    Parts<S> p[2][2];
    split_rows<S>(x, p);
    write_row_tiles<S>(this->row_block(r, c), i, p);
    write_pair_tiles<S>(pairs, i, p);
  }

  // Tile t < 2 S of block (r, c), when all its rows are written.
  SACFAST_INLINE void turn(int64_t r, int64_t c, int64_t t, const char* pairs) const {
    transpose(pairs + t * kTileBytes, this->other_block(r, c) + t * kTileBytes);
  }
};

}  // namespace
}  // namespace sacfast::cpu
