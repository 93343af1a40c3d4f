// Products on tiles, a block of 32 x 32 results at a time, and what is done with a block once it is there.
//
// Bias, relu, split and packing of a block are 500, 900 or 1200 vector instructions for S = 1, 2, 3 parts,
// 600, 1200 or 1700 for a gradient, which is transposed too; at two per cycle, at most 60 % of what the
// tile unit takes at 256 columns of depth. So the vector units do them while the tile unit computes the next
// block: the loop over depth does the epilogue of the block before, a few rows per step. Left in sequence
// they would not overlap, since one block's instructions fill the processor's window. At 32 columns of depth,
// a network's first layer, the vector units are the limit.
#pragma once

#include "amx_layout.h"
#include "amx_tiles.h"

namespace sacfast::cpu {
namespace {

// ------------------------------------------------------------------------------------------ products

// Tiles 0..3 are the sums of a block, [half of the rows][half of the columns]; 4, 5 hold the left operand, 6,
// 7 the right one. The four products of one part of each; while they run, the parts that come next are
// loaded.
SACFAST_INLINE void load_left(const char* a) {
  tile_load<4>(a);
  tile_load<5>(a + kTileBytes);
}

SACFAST_INLINE void load_right(const char* b) {
  tile_load<6>(b);
  tile_load<7>(b + kTileBytes);
}

SACFAST_INLINE void dot_then_load_left(const char* a) {
  tile_dot<0, 4, 6>();
  tile_dot<1, 4, 7>();
  tile_load<4>(a);
  tile_dot<2, 5, 6>();
  tile_dot<3, 5, 7>();
  tile_load<5>(a + kTileBytes);
}

SACFAST_INLINE void dot_then_load_right(const char* b) {
  tile_dot<0, 4, 6>();
  tile_dot<2, 5, 6>();
  tile_load<6>(b);
  tile_dot<1, 4, 7>();
  tile_dot<3, 5, 7>();
  tile_load<7>(b + kTileBytes);
}

SACFAST_INLINE void dot() {
  tile_dot<0, 4, 6>();
  tile_dot<1, 4, 7>();
  tile_dot<2, 5, 6>();
  tile_dot<3, 5, 7>();
}

// One block of depth. From one pair of parts to the next only one side changes: (left, right) =
// (0, 0), or (1, 0) (0, 0) (0, 1), or (2, 0) (1, 0) (1, 1) (0, 1) (0, 0) (0, 2).
template <int S>
SACFAST_INLINE void multiply_step(const char* a, const char* b) {
  constexpr int64_t kPart = 2 * kTileBytes;
  load_left(a + (S - 1) * kPart);
  load_right(b);
  if constexpr (S == 2) {
    dot_then_load_left(a);
    dot_then_load_right(b + kPart);
  } else if constexpr (S == 3) {
    dot_then_load_left(a + kPart);
    dot_then_load_right(b + kPart);
    dot_then_load_left(a);
    dot_then_load_right(b);
    dot_then_load_right(b + 2 * kPart);
  }
  dot();
}

// An epilogue's steps on one block, to be done a few at a time.
template <class E>
struct Pending {
  E& epilogue;
  int done = E::kSteps;

  SACFAST_INLINE void advance(int steps) {
    for (; steps > 0 && done < E::kSteps; --steps) epilogue.step(done++);
  }
};

struct Nothing {
  static constexpr int kSteps = 0;
  void step(int) {}
};

// Adds the products of `depth` blocks of a and b, each consecutive, to the sums; after each, `share` steps of
// what is pending.
template <int S, class E>
SACFAST_INLINE void multiply(const char* a, const char* b, int64_t depth, Pending<E>& pending, int share) {
  for (int64_t k = 0; k < depth; ++k) {
    multiply_step<S>(a + k * kBlockBytes<S>, b + k * kBlockBytes<S>);
    pending.advance(share);
  }
}

SACFAST_INLINE void zero_sums() {
  tile_zero<0>();
  tile_zero<1>();
  tile_zero<2>();
  tile_zero<3>();
}

// The sums as a float32 matrix whose rows are `stride` apart.
SACFAST_INLINE void load_sums(const float* from, int64_t stride) {
  tile_load<0>(from, stride);
  tile_load<1>(from + 16, stride);
  tile_load<2>(from + 16 * stride, stride);
  tile_load<3>(from + 16 * stride + 16, stride);
}

SACFAST_INLINE void store_sums(float* to, int64_t stride) {
  tile_store<0>(to, stride);
  tile_store<1>(to + 16, stride);
  tile_store<2>(to + 16 * stride, stride);
  tile_store<3>(to + 16 * stride + 16, stride);
}

// One block of results, [32][32].
struct Sums {
  float values[kBlock * kBlock];

  const float* at(int64_t row, int64_t half) const { return values + row * kBlock + half * 16; }
};

// All blocks of a product: `row_blocks` of a, `a_stride` bytes apart, with `panels` of b. The epilogue hears
// of each block (row block, panel) once its sums are there, and is given its steps during the next one.
template <int S, class E>
[[gnu::noinline]] void product(const char* a, int64_t a_stride, int64_t row_blocks, const char* b,
                               int64_t panels, int64_t depth, E epilogue) {
  const Tiles tiles;
  alignas(64) Sums sums[2];
  Pending<E> pending{epilogue};
  const int share = static_cast<int>((E::kSteps + depth - 1) / depth);
  int64_t turn = 0;
  for (int64_t p = 0; p < panels; ++p) {
    for (int64_t r = 0; r < row_blocks; ++r) {
      zero_sums();
      multiply<S>(a + r * a_stride, b + p * depth * kBlockBytes<S>, depth, pending, share);
      store_sums(sums[turn].values, kBlock);
      epilogue.begin(sums[turn], r, p);
      pending.done = 0;
      turn ^= 1;
    }
  }
  pending.advance(E::kSteps);
}

// ----------------------------------------------------------------------------------------- epilogues

template <int S>
struct HiddenRows {
  static constexpr int kSteps = 16;
  Activation<S> y;
  int64_t first_block;
  const float* bias;
  int64_t outputs;

  const Sums* sums = nullptr;
  int64_t row_block = 0, panel = 0;
  __m512 panel_bias[2] = {};

  void begin(const Sums& block, int64_t r, int64_t p) {
    sums = &block;
    row_block = first_block + r;
    panel = p;
    load_row(bias + p * kBlock, existing(outputs - p * kBlock), panel_bias);
  }

  SACFAST_INLINE void step(int i) const {
    RowPair x;
    SACFAST_UNROLLED
    for (int j = 0; j < 4; ++j) {
      const __m512 sum = _mm512_load_ps(sums->at(i + j / 2 * 16, j % 2));
      x.v[j / 2][j % 2] = relu(sum + panel_bias[j % 2]);
    }
    y.write(row_block, panel, i, x);
  }
};

// Float32 rows, with a bias or without.
struct FloatRows {
  static constexpr int kSteps = 16;
  float* out;
  int64_t stride, columns;
  const float* bias;

  const Sums* sums = nullptr;
  float* to = nullptr;
  bool both_halves = false;
  __m512 panel_bias[2] = {};

  void begin(const Sums& block, int64_t r, int64_t p) {
    sums = &block;
    to = out + r * kBlock * stride + p * kBlock;
    both_halves = columns - p * kBlock > 16;
    panel_bias[0] = panel_bias[1] = __m512{};
    if (bias) load_row(bias + p * kBlock, existing(columns - p * kBlock), panel_bias);
  }

  SACFAST_INLINE void step(int i) const {
    SACFAST_UNROLLED
    for (int j = 0; j < 2; ++j) {
      const int64_t row = i + j * 16;
      float* const at = to + row * stride;
      _mm512_storeu_ps(at, _mm512_load_ps(sums->at(row, 0)) + panel_bias[0]);
      if (both_halves) {
        _mm512_storeu_ps(at + 16, _mm512_load_ps(sums->at(row, 1)) + panel_bias[1]);
      }
    }
  }
};

// Where the gradient of h's relu is one, in the rows that take part.
template <int S>
struct Passes {
  const uint32_t* bits;
  int64_t stride, begin;
  const int32_t* rows;

  Passes(Operand h, int64_t begin, const int32_t* rows)
      : bits(Activation<S>(h).passes), stride(h.rows), begin(begin), rows(rows) {}

  SACFAST_INLINE uint32_t at(int64_t i, int64_t panel) const {
    return bits[panel * stride + (rows ? rows[i] : begin + i)];
  }
};

template <int S>
struct HiddenGradientRows {
  static constexpr int kSteps = 16 + 2 * S;
  Gradient<S> dx;
  int64_t first_block;
  Passes<S> passes;
  char* pairs;  // a block's pair tiles

  const Sums* sums = nullptr;
  int64_t row_block = 0, panel = 0;

  void begin(const Sums& block, int64_t r, int64_t p) {
    sums = &block;
    row_block = r;
    panel = p;
  }

  SACFAST_INLINE void step(int i) const {
    const int64_t block = first_block + row_block;
    if (i >= 16) return dx.turn(block, panel, i - 16, pairs);
    RowPair x;
    SACFAST_UNROLLED
    for (int j = 0; j < 2; ++j) {
      const int64_t row = i + j * 16;
      const uint32_t bits = passes.at(row_block * kBlock + row, panel);
      x.v[j][0] = _mm512_maskz_load_ps(static_cast<__mmask16>(bits), sums->at(row, 0));
      x.v[j][1] = _mm512_maskz_load_ps(static_cast<__mmask16>(bits >> 16), sums->at(row, 1));
    }
    dx.write(block, panel, i, x, pairs);
  }
};

}  // namespace
}  // namespace sacfast::cpu
