// float32 in 128-bit vectors, which every compiler maps to what its target has. Of SSE2's 16 registers 4 rows
// by 2 vectors leave half, as its multiply-add needs one more for the product; of NEON's 32, 6 by 4 use 29.
#include "dense.h"

namespace sacfast::cpu {
namespace {

struct Tile {
#if defined(__aarch64__)
  static constexpr int kRows = 6, kRestRows = 4, kVectors = 4;
#else
  static constexpr int kRows = 4, kRestRows = 4, kVectors = 2;
#endif
};

constexpr Arithmetic kFloat32 = float32_table<Tile>("portable");

}  // namespace

const Arithmetic* arithmetic_portable(const char* precision) {
  return __builtin_strcmp(precision, kFloat32.precision) == 0 ? &kFloat32 : nullptr;
}

}  // namespace sacfast::cpu
