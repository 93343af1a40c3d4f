// The dense layers of an update in float32, forward and backward, for any vector width.
//
//   y = relu(x W^T + b)      dx = (dy W) relu'(h)      dW = dy^T x,  db = sum of dy over the rows
//
// Every product is C += A B by the same tile: M rows of A against N vectors of B's columns, M N accumulators
// in registers. A step in depth loads N vectors of B and broadcasts M numbers of A for M N multiply-adds, so
// that with 8 x 2 (AVX-512) or 6 x 2 (AVX2) the multipliers, not the loads, are the limit.
//
// So that every stream is contiguous, activations and gradients lie in panels of 32 columns (panels.h), and
// weights in panels of a tile's columns:
//
//   forward    [output / columns][input][output % columns]    B of x W^T
//   backward   [input / columns][output][input % columns]     B of dy W
//
// A is broadcast from an activation's rows. In dy^T x both factors are panels as they are, with the row as
// depth: A is some columns of dy's panel, B is x's panel. Nothing is transposed but weights, once per
// packing.
//
// A chunk of at most 64 rows goes through a whole layer: the loop over panels of weights is outside, so that
// a panel (32 KB for 256 inputs) comes from L2 once in 8 rows, 8 bytes a cycle, and the chunk's rows stay in
// L2 however large the layer. In weight gradients, blocks of rows do the same. Threads divide chunks, and
// panels of outputs.
#pragma once

#include "activation.h"
#include "arithmetic.h"
#include "lanes.h"
#include "panels.h"
#include "parameters.h"
#include "value.h"

namespace sacfast::cpu {
namespace {

constexpr int64_t kRowBlock = 256;  // of weight gradients: 32 KB of a panel

// Tile: kRows, kVectors   the accumulators: as many as registers allow, less B's vectors and one for A
//       kRestRows         rows of the tile for what is left; divides kRowUnit
template <class Tile>
struct Dense {
  static constexpr int kColumns = Tile::kVectors * kLanes;

  // ---- The tile -----------------------------------------------------------------------------------------

  // sum[m][n] += sum over k < depth of a[m * row_step + k * depth_step] b[k][n].
  template <int row_step, int depth_step, int b_step, int M, int N>
  static SACFAST_INLINE void accumulate(V (&sum)[M][N], const float* a, const float* b, int64_t depth) {
    for (int64_t k = 0; k < depth; ++k) {
      V right[N];
      SACFAST_UNROLLED
      for (int n = 0; n < N; ++n) right[n] = load(b + k * b_step + n * kLanes);
      SACFAST_UNROLLED
      for (int m = 0; m < M; ++m) {
        const float left = a[m * row_step + k * depth_step];
        SACFAST_UNROLLED
        for (int n = 0; n < N; ++n) sum[m][n] += left * right[n];
      }
    }
  }

  // How many of `count` rows, a multiple of kRowUnit, are done in tiles of kRows: as many as leave whole
  // tiles of kRestRows. 64 are 10 x 6 + 1 x 4, and 32 are 4 x 6 + 2 x 4; a tile of 2 would wait for its own
  // additions.
  static SACFAST_INLINE int64_t large_tiles(int64_t count) {
    int64_t large = count / Tile::kRows * Tile::kRows;
    while ((count - large) % Tile::kRestRows != 0) large -= Tile::kRows;
    return large;
  }

  // ---- Products of rows: forward, and gradients with respect to inputs ----------------------------------

  // Rows [row, row + M) of task's result, N vectors from `column`. Rows of A and of hidden units come in
  // short pieces, one per panel, which the hardware does not foresee: the next tile's are asked for here.
  template <int M, int N, class Task>
  static SACFAST_INLINE void row_tile(const Panels& a, int64_t begin, const float* b, int64_t depth,
                                      int64_t row, int64_t column, const V (&start)[N], const Task& task) {
    V sum[M][N];
    SACFAST_UNROLLED
    for (int m = 0; m < M; ++m) {
      SACFAST_UNROLLED
      for (int n = 0; n < N; ++n) sum[m][n] = start[n];
    }
    if constexpr (requires { task.prefetch(row, column); }) {
      for (int m = 0; m < M; ++m) task.prefetch(row + m, column);
    }
    int64_t k = 0;
    for (; k + kPanel <= depth; k += kPanel) {
      const float* from = a.at(begin + row, k);
      SACFAST_UNROLLED
      for (int m = M; m < 2 * M; ++m) prefetch(from + m * kPanel, kPanel);
      accumulate<kPanel, 1, kColumns>(sum, from, b + k * kColumns, kPanel);
    }
    if (k < depth) accumulate<kPanel, 1, kColumns>(sum, a.at(begin + row, k), b + k * kColumns, depth - k);
    SACFAST_UNROLLED
    for (int m = 0; m < M; ++m) task.finish(sum[m], row + m, column);
  }

  template <int N, class Task>
  static SACFAST_INLINE void column_tile(const Panels& a, int64_t begin, int64_t count, const float* b,
                                         int64_t depth, int64_t column, const Task& task) {
    V start[N];
    SACFAST_UNROLLED
    for (int n = 0; n < N; ++n) start[n] = task.start(column + n * kLanes);
    const int64_t large = large_tiles(count);
    int64_t row = 0;
    for (; row < large; row += Tile::kRows) {
      row_tile<Tile::kRows, N>(a, begin, b, depth, row, column, start, task);
    }
    for (; row < count; row += Tile::kRestRows) {
      row_tile<Tile::kRestRows, N>(a, begin, b, depth, row, column, start, task);
    }
  }

  // task.finish receives task.start + A B, for rows [begin, begin + count) of A and B's `columns` rounded up
  // to 16: a head with 14 outputs is computed in 16 columns, not 32.
  template <class Task>
  static SACFAST_INLINE void product(const Operand& a, int64_t begin, int64_t count, const char* packed,
                                     int64_t columns, const Task& task) {
    const Panels left(a);
    const float* right = reinterpret_cast<const float*>(packed);
    for (int64_t column = 0; column < columns; column += kColumns) {
      const float* b = right + column * a.columns;
      if constexpr (kColumns == 32) {
        if (columns - column <= 16) {
          column_tile<Tile::kVectors / 2>(left, begin, count, b, a.columns, column, task);
          break;
        }
      }
      column_tile<Tile::kVectors>(left, begin, count, b, a.columns, column, task);
    }
  }

  struct Hidden {
    const float* bias;
    int64_t outputs;
    Panels y;
    int64_t begin;

    SACFAST_INLINE V start(int64_t column) const { return load(bias + column, outputs - column); }
    template <int N>
    SACFAST_INLINE void finish(const V (&sum)[N], int64_t row, int64_t column) const {
      float* to = y.at(begin + row, column);
      SACFAST_UNROLLED
      for (int n = 0; n < N; ++n) store(to + n * kLanes, Relu::value(sum[n]));
    }
  };

  struct Output {
    const float* bias;  // or nullptr
    int64_t outputs;
    float* out;
    int64_t stride;

    SACFAST_INLINE V start(int64_t column) const {
      return bias ? load(bias + column, outputs - column) : V{};
    }
    template <int N>
    SACFAST_INLINE void finish(const V (&sum)[N], int64_t row, int64_t column) const {
      SACFAST_UNROLLED
      for (int n = 0; n < N; ++n) store(out + row * stride + column + n * kLanes, sum[n]);
    }
  };

  struct HiddenGradient {
    MaskRows h;
    Panels dx;
    int64_t begin;

    SACFAST_INLINE void prefetch(int64_t row, int64_t column) const {
      cpu::prefetch(h.at(row, column), kColumns);
    }
    SACFAST_INLINE V start(int64_t) const { return V{}; }
    template <int N>
    SACFAST_INLINE void finish(const V (&sum)[N], int64_t row, int64_t column) const {
      const float* hidden = h.at(row, column);
      float* to = dx.at(begin + row, column);
      SACFAST_UNROLLED
      for (int n = 0; n < N; ++n) {
        store(to + n * kLanes, Relu::gradient(load(hidden + n * kLanes), sum[n]));
      }
    }
  };

  static void hidden(Operand x, int64_t x_begin, Operand y, int64_t y_begin, int64_t count,
                     const char* forward, const float* bias) {
    product(x, x_begin, count, forward, y.columns, Hidden{bias, y.columns, Panels(y), y_begin});
  }

  static void output(Operand x, int64_t begin, int64_t count, const char* forward, const float* bias,
                     int64_t outputs, float* out, int64_t stride) {
    product(x, begin, count, forward, outputs, Output{bias, outputs, out, stride});
  }

  static void hidden_gradient(Operand dy, int64_t dy_begin, const char* backward, Operand h, int64_t h_begin,
                              const int32_t* rows, Operand dx, int64_t dx_begin, int64_t count) {
    product(dy, dy_begin, count, backward, dx.columns,
            HiddenGradient{{Panels(h), h_begin, rows}, Panels(dx), dx_begin});
  }

  static void input_gradient(Operand dy, int64_t begin, int64_t count, const char* backward, int64_t inputs,
                             float* dx, int64_t stride) {
    product(dy, begin, count, backward, inputs, Output{nullptr, inputs, dx, stride});
  }

  // ---- Gradients with respect to weights ----------------------------------------------------------------

  // M outputs by N vectors of inputs over one block of rows, added to dW after the first block. `outputs` and
  // `inputs` say how much of the tile exists: dW's rows have no padding, so nothing else may be written.
  template <int M, int N>
  static SACFAST_INLINE void weight_tile(const float* dy, const float* x, int64_t rows, bool first,
                                         int64_t outputs, int64_t inputs, float* dw, int64_t stride) {
    V sum[M][N] = {};
    accumulate<1, kPanel, kPanel>(sum, dy, x, rows);
    SACFAST_UNROLLED
    for (int m = 0; m < M; ++m) {
      if (m >= outputs) return;
      SACFAST_UNROLLED
      for (int n = 0; n < N; ++n) {
        float* to = dw + m * stride + n * kLanes;
        const int64_t count = inputs - n * kLanes;
        if (!first) sum[m][n] += load(to, count);
        store(to, sum[m][n], count);
      }
    }
  }

  template <int N>
  static SACFAST_INLINE void weight_column(const float* dy, const float* x, int64_t rows, bool first,
                                           int64_t outputs, int64_t inputs, float* dw, int64_t stride) {
    const int64_t count = (outputs + kRowUnit - 1) / kRowUnit * kRowUnit, large = large_tiles(count);
    int64_t m = 0;
    for (; m < large; m += Tile::kRows) {
      weight_tile<Tile::kRows, N>(dy + m, x, rows, first, outputs - m, inputs, dw + m * stride, stride);
    }
    for (; m < count; m += Tile::kRestRows) {
      weight_tile<Tile::kRestRows, N>(dy + m, x, rows, first, outputs - m, inputs, dw + m * stride, stride);
    }
  }

  static void weight_gradient(Operand dy, int64_t begin, int64_t end, Operand x, float* dw, float* db,
                              char*) {
    const Panels left(dy), right(x);
    const int64_t outputs = end - begin, inputs = x.columns;
    for (int64_t row = 0; row < dy.rows; row += kRowBlock) {
      const int64_t rows = dy.rows - row < kRowBlock ? dy.rows - row : kRowBlock;
      const float* a = left.at(row, begin);
      for (int64_t column = 0; column < inputs; column += kColumns) {
        const float* b = right.at(row, column);
        const int64_t there = inputs - column;
        if constexpr (kColumns == 32) {
          if (there <= 16) {
            weight_column<Tile::kVectors / 2>(a, b, rows, row == 0, outputs, there, dw + column, inputs);
            break;
          }
        }
        weight_column<Tile::kVectors>(a, b, rows, row == 0, outputs, there, dw + column, inputs);
      }
    }
    column_sums(left.at(0, begin), dy.rows, nullptr, outputs, db);
  }

  static int64_t weight_scratch_bytes(int64_t) { return 0; }

  // ---- Packing ------------------------------------------------------------------------------------------

  static int64_t packed_bytes(int64_t columns, int64_t depth) {
    return panel_count(columns) * kPanel * depth * static_cast<int64_t>(sizeof(float));
  }
  static int64_t forward_bytes(int64_t outputs, int64_t inputs) { return packed_bytes(outputs, inputs); }
  static int64_t backward_bytes(int64_t outputs, int64_t inputs) { return packed_bytes(inputs, outputs); }

  static void pack_forward(const float* w, int64_t stride, int64_t outputs, int64_t inputs, int64_t begin,
                           int64_t end, char* forward) {
    for (int64_t output = begin; output < end; output += kLanes) {
      float* to =
          reinterpret_cast<float*>(forward) + output / kColumns * kColumns * inputs + output % kColumns;
      for (int64_t input = 0; input < inputs; input += kLanes) {
        V block[kLanes];
        SACFAST_UNROLLED
        for (int i = 0; i < kLanes; ++i) {
          block[i] = load(w + (output + i) * stride + input, output + i < outputs ? inputs - input : 0);
        }
        transpose(block);
        SACFAST_UNROLLED
        for (int i = 0; i < kLanes; ++i) {
          if (input + i < inputs) store(to + (input + i) * kColumns, block[i]);
        }
      }
    }
  }

  static void pack_backward(const float* w, int64_t stride, int64_t outputs, int64_t inputs, int64_t begin,
                            int64_t end, char* backward) {
    for (int64_t input = 0; input < inputs; input += kColumns) {
      float* to = reinterpret_cast<float*>(backward) + input * outputs;
      for (int64_t output = begin; output < end; ++output) {
        SACFAST_UNROLLED
        for (int n = 0; n < Tile::kVectors; ++n) {
          const int64_t from = input + n * kLanes;
          store(to + output * kColumns + n * kLanes, load(w + output * stride + from, inputs - from));
        }
      }
    }
  }

  // ---- One observation ----------------------------------------------------------------------------------

  // From the master weights, where they lie: a vector of outputs at a time, as so many dot products in
  // parallel and one transposing sum. Four rows at once share the loads of x, and are read as one stream.
  static void dense_vector(const float* w, const float* bias, int64_t outputs, int64_t inputs, const float* x,
                           float* y, bool relu) {
    constexpr int kAtOnce = 4;
    for (int64_t output = 0; output < outputs; output += kLanes) {
      V sum[kLanes] = {};
      SACFAST_UNROLLED
      for (int i = 0; i < kLanes; i += kAtOnce) {
        const float* row[kAtOnce];
        SACFAST_UNROLLED
        for (int j = 0; j < kAtOnce; ++j) {
          row[j] = w + (output + i + j < outputs ? output + i + j : outputs - 1) * inputs;
        }
        int64_t k = 0;
        for (; k + kLanes <= inputs; k += kLanes) {
          const V right = load(x + k);
          SACFAST_UNROLLED
          for (int j = 0; j < kAtOnce; ++j) sum[i + j] += load(row[j] + k) * right;
        }
        if (k < inputs) {
          const V right = load(x + k, inputs - k);
          SACFAST_UNROLLED
          for (int j = 0; j < kAtOnce; ++j) sum[i + j] += load(row[j] + k, inputs - k) * right;
        }
      }
      const V result = sums(sum) + load(bias + output, outputs - output);
      store(y + output, relu ? Relu::value(result) : result, outputs - output);
    }
  }
};

template <class Tile>
constexpr Arithmetic float32_table(const char* path) {
  using D = Dense<Tile>;
  return {
      .path = path,
      .precision = "float32",
      .row_unit = kRowUnit,
      .activation_bytes = Panels::bytes,
      .gradient_bytes = Panels::bytes,
      .forward_bytes = D::forward_bytes,
      .backward_bytes = D::backward_bytes,
      .pack_forward = D::pack_forward,
      .pack_backward = D::pack_backward,
      .store_activation = Panels::store_rows,
      .store_gradient = Panels::store_rows,
      .hidden = D::hidden,
      .output = D::output,
      .value = Value::value,
      .value_gradient = Value::value_gradient,
      .hidden_gradient = D::hidden_gradient,
      .input_gradient = D::input_gradient,
      .weight_gradient = D::weight_gradient,
      .weight_scratch_bytes = D::weight_scratch_bytes,
      .value_weight_gradient = Value::value_weight_gradient,
      .adam = adam,
      .adam_polyak = adam_polyak,
      .dense_vector = D::dense_vector,
      .finite = finite,
  };
}

}  // namespace
}  // namespace sacfast::cpu
