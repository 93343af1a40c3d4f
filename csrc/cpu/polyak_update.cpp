// target <- target + tau (source - target), over a list of tensors in one pass
// (SAC, arXiv:1812.05905, algorithm 1)
//
// Parallel over the concatenation of all tensors: a range may begin and end inside a tensor. bfloat16 is
// computed in float32 and rounded to nearest, ties to even.
#include <algorithm>
#include <type_traits>

#include "kernels.h"

namespace sacfast::cpu {
namespace {

template <typename T>
void update(T* __restrict target, const T* __restrict source, T tau, int64_t n) {
  for (int64_t i = 0; i < n; ++i) target[i] = interpolate(target[i], source[i], tau);
}

void update(BFloat16* __restrict target, const BFloat16* __restrict source, float tau, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    target[i] =
        float_to_bfloat16(interpolate(bfloat16_to_float(target[i]), bfloat16_to_float(source[i]), tau));
  }
}

}  // namespace

template <typename T>
void polyak_update(const PolyakPair* pairs, int64_t count, double tau, int64_t begin, int64_t end) {
  int64_t first = 0;
  for (int64_t i = 0; i < count && first < end; ++i) {
    const int64_t from = std::max<int64_t>(begin - first, 0), to = std::min(end - first, pairs[i].numel);
    if (from < to) {
      update(static_cast<T*>(pairs[i].target) + from, static_cast<const T*>(pairs[i].source) + from,
             static_cast<std::conditional_t<std::is_same_v<T, double>, double, float>>(tau), to - from);
    }
    first += pairs[i].numel;
  }
}

template void polyak_update<float>(const PolyakPair*, int64_t, double, int64_t, int64_t);
template void polyak_update<double>(const PolyakPair*, int64_t, double, int64_t, int64_t);
template void polyak_update<BFloat16>(const PolyakPair*, int64_t, double, int64_t, int64_t);

}  // namespace sacfast::cpu
