// The float32 layout of activations and gradients: panels of 32 columns,
//
//   [column / 32][row][column % 32]
//
// so that a product reads 32 columns of 8 rows as 1 KB, or one panel over all rows, in one stream. A panel is
// 64 bytes longer than its numbers, because equal offsets modulo 4 KB in the streams of one loop would make
// loads wait for unrelated stores.
#pragma once

#include "arithmetic.h"
#include "lanes.h"

namespace sacfast::cpu {
namespace {

constexpr int64_t kRowUnit = 8;

SACFAST_INLINE int64_t panel_stride(int64_t rows) { return rows * kPanel + 16; }
SACFAST_INLINE int64_t panel_count(int64_t columns) { return (columns + kPanel - 1) / kPanel; }

// An Operand's numbers.
struct Panels {
  float* data;
  int64_t stride;

  explicit SACFAST_INLINE Panels(const Operand& operand)
      : data(reinterpret_cast<float*>(operand.data)), stride(panel_stride(operand.rows)) {}

  // Row `row`, from column `column` to the end of its panel.
  SACFAST_INLINE float* at(int64_t row, int64_t column) const {
    return data + column / kPanel * stride + row * kPanel + column % kPanel;
  }

  static int64_t bytes(int64_t rows, int64_t columns) {
    return panel_count(columns) * panel_stride(rows) * static_cast<int64_t>(sizeof(float));
  }

  // Padding becomes zero, though no product reads it.
  static void store_rows(const float* rows, int64_t stride, Operand x, int64_t begin, int64_t count) {
    const Panels to(x);
    for (int64_t column = 0; column < x.columns; column += kLanes) {
      for (int64_t row = 0; row < count; ++row) {
        store(to.at(begin + row, column), load(rows + row * stride + column, x.columns - column));
      }
    }
  }
};

// The rows of hidden units that a gradient is masked with: named one by one, or following on from `begin`.
struct MaskRows {
  Panels h;
  int64_t begin;
  const int32_t* rows;

  SACFAST_INLINE const float* at(int64_t row, int64_t column) const {
    return h.at(rows ? rows[row] : begin + row, column);
  }
};

}  // namespace
}  // namespace sacfast::cpu
