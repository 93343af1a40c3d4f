// float32 in 512-bit vectors: 8 rows by 2 vectors are 16 of 32 registers' accumulators, enough to cover the
// latency of two multipliers, and 10 loads for 16 multiply-adds.
#if defined(__AVX512F__)
#include "dense.h"

namespace sacfast::cpu {
namespace {

struct Tile {
  static constexpr int kRows = 8, kRestRows = 8, kVectors = 2;
};

constexpr Arithmetic kFloat32 = float32_table<Tile>("avx512");

}  // namespace

const Arithmetic* arithmetic_avx512(const char* precision) {
  return __builtin_strcmp(precision, kFloat32.precision) == 0 ? &kFloat32 : nullptr;
}

}  // namespace sacfast::cpu
#endif
