// float32 in 256-bit vectors: 6 rows by 2 vectors are 12 accumulators, which leaves 4 of 16 registers for two
// vectors of weights and a broadcast number.
#if defined(__AVX2__)
#include "dense.h"

namespace sacfast::cpu {
namespace {

struct Tile {
  static constexpr int kRows = 6, kRestRows = 4, kVectors = 2;
};

constexpr Arithmetic kFloat32 = float32_table<Tile>("avx2");

}  // namespace

const Arithmetic* arithmetic_avx2(const char* precision) {
  return __builtin_strcmp(precision, kFloat32.precision) == 0 ? &kFloat32 : nullptr;
}

}  // namespace sacfast::cpu
#endif
