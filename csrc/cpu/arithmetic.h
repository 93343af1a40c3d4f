// What an arithmetic path provides: the dense layers of an update, forward and backward, and the elementwise
// passes over parameters. The update (sac_update.cpp) is written once against this table; each path fills it
// in arithmetic_<path>.cpp, compiled with that path's instruction set and without torch's headers:
//
//   amx       bf16 matrix tiles (Intel); float32 by six products of a three-way split, bf16x3, bf16
//   avx512    512-bit float32 with FMA
//   avx2      256-bit float32 with FMA
//   portable  what the compiler's baseline has (SSE2, NEON, ...)
//
// Layouts are the path's own. An Operand is a matrix [rows, columns] whose bytes only the path interprets;
// the update asks for its size, and names rows by index. Weights are packed from the float32 master
// [outputs][inputs] 32 outputs at a time, the quantum of all work on weights.
//
// The rows of every call are multiples of `row_unit`. Rows beyond the batch are zeros, in activations' inputs
// and in gradients, so that they add nothing.
#pragma once

#include <cstdint>

#include "adam.h"

namespace sacfast::cpu {

constexpr int64_t kPanel = 32;      // outputs per panel of weights
constexpr int64_t kChunkRows = 64;  // most rows in one call of a row-wise function

// A matrix in a path's layout. Activations (inputs and hidden layers) are the left operand of forward
// products and the right one of weight gradients; gradients are those with respect to a layer's output.
struct Operand {
  char* data;
  int64_t rows, columns;
};

struct Arithmetic {
  const char* path;
  const char* precision;
  int64_t row_unit;

  // Bytes of an operand [rows, columns], rows a multiple of row_unit; of the packed weights of a layer.
  // All storage is 64-byte aligned; its bytes start as zeros.
  int64_t (*activation_bytes)(int64_t rows, int64_t columns);
  int64_t (*gradient_bytes)(int64_t rows, int64_t columns);
  int64_t (*forward_bytes)(int64_t outputs, int64_t inputs);
  int64_t (*backward_bytes)(int64_t outputs, int64_t inputs);

  // Packs outputs [begin, end) of w [outputs][inputs], rows `stride` floats apart; begin is a multiple of
  // kPanel, and end is one or is `outputs`. Forward is for x W^T, backward for dy W.
  void (*pack_forward)(const float* w, int64_t stride, int64_t outputs, int64_t inputs, int64_t begin,
                       int64_t end, char* forward);
  void (*pack_backward)(const float* w, int64_t stride, int64_t outputs, int64_t inputs, int64_t begin,
                        int64_t end, char* backward);

  // x[begin + i] = rows[i] for i < count; `rows` float32 [count][x.columns], `stride` floats apart.
  void (*store_activation)(const float* rows, int64_t stride, Operand x, int64_t begin, int64_t count);
  void (*store_gradient)(const float* rows, int64_t stride, Operand dy, int64_t begin, int64_t count);

  // y[y_begin + i] = relu(W x[x_begin + i] + b) for i < count <= kChunkRows; W [y.columns][x.columns].
  void (*hidden)(Operand x, int64_t x_begin, Operand y, int64_t y_begin, int64_t count, const char* forward,
                 const float* bias);

  // out[i] = W x[begin + i] + b, float32 [count][outputs], `stride` floats apart; stride is at least outputs
  // rounded up to 16, and what lies between is overwritten.
  void (*output)(Operand x, int64_t begin, int64_t count, const char* forward, const float* bias,
                 int64_t outputs, float* out, int64_t stride);

  // q[i] = w . x[begin + i] + b: a critic's last layer.
  void (*value)(Operand x, int64_t begin, int64_t count, const float* w, float bias, float* q);

  // dy[dy_begin + i][j] = dq[i] w[j] where h[row(i)][j] > 0, else 0, with row(i) = rows ? rows[i] : h_begin +
  // i.
  void (*value_gradient)(const float* dq, const float* w, Operand h, int64_t h_begin, const int32_t* rows,
                         Operand dy, int64_t dy_begin, int64_t count);

  // dx[dx_begin + i] = dy[dy_begin + i] W where h[row(i)] > 0, else 0; W [dy.columns][dx.columns].
  void (*hidden_gradient)(Operand dy, int64_t dy_begin, const char* backward, Operand h, int64_t h_begin,
                          const int32_t* rows, Operand dx, int64_t dx_begin, int64_t count);

  // dx[i] = dy[begin + i] W, float32 [count][inputs], `stride` floats apart (as in `output`).
  void (*input_gradient)(Operand dy, int64_t begin, int64_t count, const char* backward, int64_t inputs,
                         float* dx, int64_t stride);

  // dW[o - begin][i] = sum_r dy[r][o] x[r][i] and db[o - begin] = sum_r dy[r][o] over r < dy.rows, for
  // outputs o in [begin, end), at most kPanel of them from a multiple of it; dW is dense, [end -
  // begin][x.columns]. `scratch` is weight_scratch_bytes(x.columns) large.
  void (*weight_gradient)(Operand dy, int64_t begin, int64_t end, Operand x, float* dw, float* db,
                          char* scratch);
  int64_t (*weight_scratch_bytes)(int64_t inputs);

  // dw[j] = sum_r dq[r] h[r][j] over r < h.rows, for columns j in [begin, end), begin a multiple of kPanel.
  void (*value_weight_gradient)(const float* dq, Operand h, int64_t begin, int64_t end, float* dw);

  // Adam over n flat elements, and the same followed by target += tau (p - target).
  void (*adam)(float* p, float* m, float* v, const float* g, int64_t n, const AdamStep& step);
  void (*adam_polyak)(float* p, float* m, float* v, const float* g, float* target, int64_t n,
                      const AdamStep& step, float tau);

  // y = W x + b with W [outputs][inputs] dense float32 as the master is, relu(y) on request: one
  // observation's layer, in float32 in every precision.
  void (*dense_vector)(const float* w, const float* bias, int64_t outputs, int64_t inputs, const float* x,
                       float* y, bool relu);

  // Whether all n numbers are finite.
  bool (*finite)(const float* x, int64_t n);
};

// The fastest compiled path that this CPU runs, or the one called `path` ("" for the fastest), at `precision`
// ("float32", "bf16x3", "bf16"). nullptr where there is none; `arithmetic_names` says what there is.
const Arithmetic* find_arithmetic(const char* path, const char* precision);

// "path:precision path:precision ...", fastest first, of what is compiled in and runs on this CPU.
const char* arithmetic_names();

}  // namespace sacfast::cpu
