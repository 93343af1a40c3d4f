// A critic's last layer, which has one output, forward and backward:
//
//   q = h w + b      dh = dq w^T relu'(h)      dw = h^T dq
//
// Every number of h is used once: the limit is the bandwidth of L2, not arithmetic. Threads divide rows, and
// columns of dw.
#pragma once

#include "activation.h"
#include "arithmetic.h"
#include "lanes.h"
#include "panels.h"

namespace sacfast::cpu {
namespace {

// sum over r of weight[r] panel[r][j], or of panel[r][j], for j < count. Several rows at a time, each with
// its own accumulators, as an addition takes some four cycles; in blocks, whose sums round less than a long
// one.
SACFAST_INLINE void column_sums(const float* panel, int64_t rows, const float* weight, int64_t count,
                                float* sums) {
  constexpr int kVectors = kPanel / kLanes, kAtOnce = 8 / kVectors;
  constexpr int64_t kBlock = 256;
  V total[kVectors] = {};
  for (int64_t row = 0; row < rows;) {
    const int64_t end = row + kBlock < rows ? row + kBlock : rows;
    V sum[kAtOnce][kVectors] = {};
    for (; row < end; row += kAtOnce) {
      SACFAST_UNROLLED
      for (int i = 0; i < kAtOnce; ++i) {
        const float factor = weight ? weight[row + i] : 1.0f;
        SACFAST_UNROLLED
        for (int n = 0; n < kVectors; ++n)
          sum[i][n] += factor * load(panel + (row + i) * kPanel + n * kLanes);
      }
    }
    SACFAST_UNROLLED
    for (int i = 0; i < kAtOnce; ++i) {
      SACFAST_UNROLLED
      for (int n = 0; n < kVectors; ++n) total[n] += sum[i][n];
    }
  }
  SACFAST_UNROLLED
  for (int n = 0; n < kVectors; ++n) store(sums + n * kLanes, total[n], count - n * kLanes);
}

// The implementations of the table's functions of these names, for float32.
struct Value {
  static void value(Operand x, int64_t begin, int64_t count, const float* w, float bias, float* q) {
    constexpr int kAtOnce = kLanes < kRowUnit ? kLanes : kRowUnit;
    const Panels h(x);
    for (int64_t row = 0; row < count; row += kAtOnce) {
      V sum[kAtOnce] = {};
      for (int64_t column = 0; column < x.columns; column += kLanes) {
        const V weight = load(w + column, x.columns - column);
        const float* from = h.at(begin + row, column);
        SACFAST_UNROLLED
        for (int i = 0; i < kAtOnce; ++i) sum[i] += weight * load(from + i * kPanel);
      }
      store(q + row, sums(sum) + bias, kAtOnce);
    }
  }

  static void value_gradient(const float* dq, const float* w, Operand h, int64_t h_begin, const int32_t* rows,
                             Operand dy, int64_t dy_begin, int64_t count) {
    constexpr int kVectors = kPanel / kLanes;
    const MaskRows hidden{Panels(h), h_begin, rows};
    const Panels gradient(dy);
    for (int64_t column = 0; column < dy.columns; column += kPanel) {
      V weight[kVectors];
      SACFAST_UNROLLED
      for (int n = 0; n < kVectors; ++n) {
        weight[n] = load(w + column + n * kLanes, dy.columns - column - n * kLanes);
      }
      for (int64_t row = 0; row < count; ++row) {
        const float* from = hidden.at(row, column);
        float* to = gradient.at(dy_begin + row, column);
        SACFAST_UNROLLED
        for (int n = 0; n < kVectors; ++n) {
          store(to + n * kLanes, Relu::gradient(load(from + n * kLanes), dq[row] * weight[n]));
        }
      }
    }
  }

  static void value_weight_gradient(const float* dq, Operand h, int64_t begin, int64_t end, float* dw) {
    const Panels from(h);
    for (int64_t column = begin; column < end; column += kPanel) {
      column_sums(from.at(0, column), h.rows, dq, end - column, dw + column);
    }
  }
};

}  // namespace
}  // namespace sacfast::cpu
