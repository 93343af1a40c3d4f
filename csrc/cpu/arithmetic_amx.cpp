// The dense layers of an update on bf16 matrix tiles, with float32 sums, at three precisions. With every
// factor a as a sum of bf16 numbers a0 + a1 + a2, each at most 2^-8 of the one before,
//
//   a b = a0 b0                                        bf16      what is left out is at most 2^-7 |a b|
//         + a0 b1 + a1 b0                              bf16x3    2^-15 |a b|
//                         + a1 b1 + a0 b2 + a2 b0      float32   2^-24 |a b|, as is float32's own rounding
//
// amx_layout.h has the split and the layouts, amx_products.h the loops.
//
// The unit of work is a block of 32 x 32 results: four tiles of sums, two of a, two of b, so that 32 columns
// of depth are 4, 12 or 24 products and 4, 8 or 14 loads of tiles. A product takes the tile unit 16 cycles
// and a load both load ports 8, so the products are the limit: 64, 192 or 384 cycles, next to 32, 64 or 112
// of loads. 256 x 256 x 256 then takes at least 32768, 98304 or 196608 cycles: 10.6, 31.7 or 63.4 us at 3.1
// GHz. L2 delivers some 40 bytes per cycle; a weight gradient needs 32, 21 or 16 of them for x, and a forward
// or backward product at most that for the weights.
//
// Threads divide chunks of rows, and panels of outputs; each call configures the tiles and gives them back.
#include "amx_layout.h"
#include "amx_products.h"
#include "amx_tiles.h"
#include "dense.h"

namespace sacfast::cpu {
namespace {

template <int S>
struct Amx {
  static constexpr int64_t kPairsBytes = kBlockBytes<S>;

  static int64_t activation_bytes(int64_t rows, int64_t columns) {
    return Activation<S>::bytes(rows, columns);
  }
  static int64_t gradient_bytes(int64_t rows, int64_t columns) { return Gradient<S>::bytes(rows, columns); }

  static int64_t weight_bytes(int64_t outputs, int64_t inputs) {
    return blocks_of(outputs) * blocks_of(inputs) * kBlockBytes<S>;
  }

  // Pair tiles of W^T: 16 outputs make rows of words, inputs (i, i + 16), which are then transposed.
  static void pack_forward(const float* w, int64_t stride, int64_t /*outputs*/, int64_t inputs, int64_t begin,
                           int64_t end, char* forward) {
    alignas(64) char words[S * kTileBytes];
    const int64_t depth = blocks_of(inputs);
    for (int64_t o = begin; o < end; o += 16) {
      const int64_t there = end - o < 16 ? end - o : 16;
      for (int64_t k = 0; k < depth; ++k) {
        const uint32_t columns = existing(inputs - k * kBlock);
        for (int64_t n = 0; n < 16; ++n) {
          __m512 v[2];
          load_row(w + (n < there ? o + n : o) * stride + k * kBlock, n < there ? columns : 0, v);
          const Parts<S> first = split<S>(v[0]), second = split<S>(v[1]);
          SACFAST_UNROLLED
          for (int s = 0; s < S; ++s) {
            _mm512_store_si512(words + s * kTileBytes + n * kTileRowBytes,
                               paired(first.part[s], second.part[s]));
          }
        }
        char* const to = forward + (o / kBlock * depth + k) * kBlockBytes<S> + o / 16 % 2 * kTileBytes;
        for (int s = 0; s < S; ++s) transpose(words + s * kTileBytes, to + s * 2 * kTileBytes);
      }
    }
  }

  static void pack_backward(const float* w, int64_t stride, int64_t outputs, int64_t inputs, int64_t begin,
                            int64_t end, char* backward) {
    const int64_t depth = blocks_of(outputs);
    for (int64_t o = begin; o < end; o += kBlock) {
      for (int64_t p = 0; p < blocks_of(inputs); ++p) {
        const uint32_t columns = existing(inputs - p * kBlock);
        char* const block = backward + (p * depth + o / kBlock) * kBlockBytes<S>;
        for (int64_t k = 0; k < 16; ++k) {
          RowPair x;
          for (int64_t j = 0; j < 2; ++j) {
            const int64_t row = o + k + 16 * j;
            load_row(w + (row < end ? row : o) * stride + p * kBlock, row < end ? columns : 0, x.v[j]);
          }
          Parts<S> parts[2][2];
          split_rows<S>(x, parts);
          write_pair_tiles<S>(block, k, parts);
        }
      }
    }
  }

  // body(row block, column block, i, rows i and i + 16 of it) over `count` rows of float32.
  template <class F>
  static SACFAST_INLINE void for_row_pairs(const float* rows, int64_t stride, int64_t columns, int64_t count,
                                           F body) {
    for (int64_t r = 0; r < count / kBlock; ++r) {
      for (int64_t c = 0; c < blocks_of(columns); ++c) {
        const uint32_t there = existing(columns - c * kBlock);
        for (int64_t i = 0; i < 16; ++i) {
          const float* const row = rows + (r * kBlock + i) * stride + c * kBlock;
          RowPair x;
          load_row(row, there, x.v[0]);
          load_row(row + 16 * stride, there, x.v[1]);
          body(r, c, i, x);
        }
      }
    }
  }

  static void store_activation(const float* rows, int64_t stride, Operand x, int64_t begin, int64_t count) {
    const Activation<S> to(x);
    for_row_pairs(rows, stride, x.columns, count, [&](int64_t r, int64_t c, int64_t i, const RowPair& v) {
      to.write(begin / kBlock + r, c, i, v);
    });
  }

  static void store_gradient(const float* rows, int64_t stride, Operand dy, int64_t begin, int64_t count) {
    const Gradient<S> to(dy);
    alignas(64) char pairs[kPairsBytes];
    for_row_pairs(rows, stride, dy.columns, count, [&](int64_t r, int64_t c, int64_t i, const RowPair& v) {
      to.write(begin / kBlock + r, c, i, v, pairs);
      if (i < 15) return;
      for (int64_t t = 0; t < 2 * S; ++t) to.turn(begin / kBlock + r, c, t, pairs);
    });
  }

  static void hidden(Operand x, int64_t x_begin, Operand y, int64_t y_begin, int64_t count,
                     const char* forward, const float* bias) {
    const Activation<S> left(x), to(y);
    HiddenRows<S> epilogue{to, y_begin / kBlock, bias, y.columns};
    product<S>(left.row_block(x_begin / kBlock, 0), left.row_stride(), count / kBlock, forward,
               to.column_blocks, left.column_blocks, epilogue);
  }

  static void output(Operand x, int64_t begin, int64_t count, const char* forward, const float* bias,
                     int64_t outputs, float* out, int64_t stride) {
    const Activation<S> left(x);
    product<S>(left.row_block(begin / kBlock, 0), left.row_stride(), count / kBlock, forward,
               blocks_of(outputs), left.column_blocks, FloatRows{out, stride, outputs, bias});
  }

  static void hidden_gradient(Operand dy, int64_t dy_begin, const char* backward, Operand h, int64_t h_begin,
                              const int32_t* rows, Operand dx, int64_t dx_begin, int64_t count) {
    alignas(64) char pairs[kPairsBytes];
    const Gradient<S> left(dy), to(dx);
    HiddenGradientRows<S> epilogue{to, dx_begin / kBlock, Passes<S>(h, h_begin, rows), pairs};
    product<S>(left.row_block(dy_begin / kBlock, 0), left.row_stride(), count / kBlock, backward,
               to.column_blocks, left.column_blocks, epilogue);
  }

  static void input_gradient(Operand dy, int64_t begin, int64_t count, const char* backward, int64_t inputs,
                             float* dx, int64_t stride) {
    const Gradient<S> left(dy);
    product<S>(left.row_block(begin / kBlock, 0), left.row_stride(), count / kBlock, backward,
               blocks_of(inputs), left.column_blocks, FloatRows{dx, stride, inputs, nullptr});
  }

  // Row blocks at a time: dy's panel of these (32 KB) stays in L1, while x's blocks pass.
  static constexpr int64_t kDepth = S == 1 ? 16 : 8;

  static int64_t weight_scratch_bytes(int64_t inputs) { return kBlock * blocks_of(inputs) * kBlock * 4; }

  static void weight_gradient(Operand dy, int64_t begin, int64_t end, Operand x, float* dw, float* db,
                              char* scratch) {
    const Tiles tiles;
    const Gradient<S> left(dy);
    const Activation<S> right(x);
    const bool whole = end - begin == kBlock && x.columns % kBlock == 0;
    float* const sums = whole ? dw : reinterpret_cast<float*>(scratch);
    const int64_t stride = right.column_blocks * kBlock, depth = left.row_blocks;
    Nothing nothing;
    Pending<Nothing> pending{nothing};
    for (int64_t k = 0; k < depth; k += kDepth) {
      const char* const a = left.other_block(k, begin / kBlock);
      for (int64_t c = 0; c < right.column_blocks; ++c) {
        if (k == 0) {
          zero_sums();
        } else {
          load_sums(sums + c * kBlock, stride);
        }
        multiply<S>(a, right.other_block(k, c), depth - k < kDepth ? depth - k : kDepth, pending, 0);
        store_sums(sums + c * kBlock, stride);
      }
    }
    for (int64_t o = 0; !whole && o < end - begin; ++o) {
      for (int64_t i = 0; i < x.columns; i += 16) {
        const auto there = static_cast<__mmask16>(existing(x.columns - i));
        _mm512_mask_storeu_ps(dw + o * x.columns + i, there, _mm512_load_ps(sums + o * stride + i));
      }
    }
    bias_gradient(left.other_block(0, begin / kBlock), depth, end - begin, db);
  }

  // Sums over all rows, as products with ones. Two blocks of rows in turn: a product takes 52 cycles until
  // the next one may add to its sums.
  static void bias_gradient(const char* turned, int64_t depth, int64_t outputs, float* db) {
    alignas(64) uint32_t ones[kTileBytes / 4];
    alignas(64) Sums sums;
    for (uint32_t& word : ones) word = 0x3f803f80u;  // two bf16 of 1
    zero_sums();
    tile_load<4>(reinterpret_cast<const char*>(ones));
    for (int64_t k = 0; k < depth; k += 2) {
      for (int s = S - 1; s >= 0; --s) {
        const char* const part = turned + k * kBlockBytes<S> + s * 2 * kTileBytes;
        tile_load<5>(part);
        tile_load<6>(part + kTileBytes);
        tile_dot<0, 5, 4>();
        tile_dot<2, 6, 4>();
        if (k + 1 == depth) continue;
        tile_load<5>(part + kBlockBytes<S>);
        tile_load<6>(part + kBlockBytes<S> + kTileBytes);
        tile_dot<1, 5, 4>();
        tile_dot<3, 6, 4>();
      }
    }
    store_sums(sums.values, kBlock);
    for (int64_t o = 0; o < outputs; ++o) db[o] = *sums.at(o, 0) + *sums.at(o, 1);
  }

  // ---- A critic's last layer, of one output: float32 with the activation as it is stored

  static void value(Operand x, int64_t begin, int64_t count, const float* w, float bias, float* q) {
    constexpr int kAtOnce = 8;
    const Activation<S> from(x);
    for (int64_t i = 0; i < count; i += kAtOnce) {
      const int64_t row = (begin + i) % kBlock;
      V sum[kAtOnce] = {};
      for (int64_t c = 0; c < from.column_blocks; ++c) {
        __m512 weight[2];
        load_row(w + c * kBlock, existing(x.columns - c * kBlock), weight);
        const char* const at = from.row_block((begin + i) / kBlock, c) + row * kTileRowBytes;
        SACFAST_UNROLLED
        for (int j = 0; j < kAtOnce; ++j) {
          __m512 v[2];
          restore<S>(at + j * kTileRowBytes, v);
          sum[j] += v[0] * weight[0];
          sum[j] += v[1] * weight[1];
        }
      }
      store(q + i, sums(sum) + bias, kAtOnce);
    }
  }

  static void value_gradient(const float* dq, const float* w, Operand h, int64_t h_begin, const int32_t* rows,
                             Operand dy, int64_t dy_begin, int64_t count) {
    alignas(64) char pairs[kPairsBytes];
    const Passes<S> passes(h, h_begin, rows);
    const Gradient<S> to(dy);
    for (int64_t r = 0; r < count / kBlock; ++r) {
      for (int64_t c = 0; c < to.column_blocks; ++c) {
        __m512 weight[2];
        load_row(w + c * kBlock, existing(dy.columns - c * kBlock), weight);
        for (int64_t i = 0; i < 16; ++i) {
          RowPair x;
          SACFAST_UNROLLED
          for (int j = 0; j < 2; ++j) {
            const int64_t row = r * kBlock + i + j * 16;
            const uint32_t bits = passes.at(row, c);
            const __m512 factor = _mm512_set1_ps(dq[row]);
            x.v[j][0] = _mm512_maskz_mul_ps(static_cast<__mmask16>(bits), factor, weight[0]);
            x.v[j][1] = _mm512_maskz_mul_ps(static_cast<__mmask16>(bits >> 16), factor, weight[1]);
          }
          to.write(dy_begin / kBlock + r, c, i, x, pairs);
        }
        for (int64_t t = 0; t < 2 * S; ++t) to.turn(dy_begin / kBlock + r, c, t, pairs);
      }
    }
  }

  static void value_weight_gradient(const float* dq, Operand h, int64_t begin, int64_t end, float* dw) {
    constexpr int kAtOnce = 4;
    const Activation<S> from(h);
    for (int64_t column = begin; column < end; column += kBlock) {
      __m512 sum[kAtOnce][2] = {};
      for (int64_t r = 0; r < from.row_blocks; ++r) {
        const char* const block = from.row_block(r, column / kBlock);
        for (int64_t i = 0; i < kBlock; i += kAtOnce) {
          SACFAST_UNROLLED
          for (int j = 0; j < kAtOnce; ++j) {
            __m512 v[2];
            restore<S>(block + (i + j) * kTileRowBytes, v);
            const float factor = dq[r * kBlock + i + j];
            sum[j][0] += factor * v[0];
            sum[j][1] += factor * v[1];
          }
        }
      }
      const uint32_t there = existing(end - column);
      SACFAST_UNROLLED
      for (int n = 0; n < 2; ++n) {
        const __m512 total = (sum[0][n] + sum[1][n]) + (sum[2][n] + sum[3][n]);
        _mm512_mask_storeu_ps(dw + column + n * 16, static_cast<__mmask16>(there >> (n * 16)), total);
      }
    }
  }
};

// One observation's layer and the passes over parameters are those of the float32 paths. The layer takes no
// tile of registers.
struct NoTile {};

template <int S>
constexpr Arithmetic table(const char* precision) {
  using A = Amx<S>;
  return {
      .path = kPathName,
      .precision = precision,
      .row_unit = kBlock,
      .activation_bytes = A::activation_bytes,
      .gradient_bytes = A::gradient_bytes,
      .forward_bytes = A::weight_bytes,
      .backward_bytes = A::weight_bytes,
      .pack_forward = A::pack_forward,
      .pack_backward = A::pack_backward,
      .store_activation = A::store_activation,
      .store_gradient = A::store_gradient,
      .hidden = A::hidden,
      .output = A::output,
      .value = A::value,
      .value_gradient = A::value_gradient,
      .hidden_gradient = A::hidden_gradient,
      .input_gradient = A::input_gradient,
      .weight_gradient = A::weight_gradient,
      .weight_scratch_bytes = A::weight_scratch_bytes,
      .value_weight_gradient = A::value_weight_gradient,
      .adam = adam,
      .adam_polyak = adam_polyak,
      .dense_vector = Dense<NoTile>::dense_vector,
      .finite = finite,
  };
}

constexpr Arithmetic kTables[] = {table<1>("bf16"), table<2>("bf16x3"), table<3>("float32")};

}  // namespace

const Arithmetic* arithmetic_amx(const char* precision) {
  for (const Arithmetic& table : kTables) {
    if (__builtin_strcmp(precision, table.precision) == 0) return &table;
  }
  return nullptr;
}

}  // namespace sacfast::cpu
