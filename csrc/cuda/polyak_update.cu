// target <- target + tau (source - target), over a list of tensors
// (SAC, arXiv:1812.05905, algorithm 1)
//
// Up to 64 tensors per launch, their addresses by value in the kernel's parameters. Row y of the grid works
// on tensor y, one thread per 16 bytes where both addresses allow it, else one per element; the tail goes
// element by element. bfloat16 is computed in float32 and rounded to nearest, ties to even.
#include <cstdint>
#include <type_traits>

#include "../kernels.h"
#include "launch.cuh"

namespace sacfast::cuda {
namespace {

struct Table {
  PolyakPair pairs[kMaxPolyakPairs];
};

template <typename T>
using Arithmetic = std::conditional_t<std::is_same_v<T, double>, double, float>;

template <typename T>
struct alignas(16) Pack {
  T values[16 / sizeof(T)];
};

template <typename T>
__device__ __forceinline__ T updated(T target, T source, T tau) {
  return interpolate(target, source, tau);
}

__device__ __forceinline__ BFloat16 updated(BFloat16 target, BFloat16 source, float tau) {
  return float_to_bfloat16(interpolate(bfloat16_to_float(target), bfloat16_to_float(source), tau));
}

template <typename T>
__global__ void polyak_update_kernel(const __grid_constant__ Table table, Arithmetic<T> tau) {
  constexpr int kLanes = 16 / sizeof(T);
  const PolyakPair& pair = table.pairs[blockIdx.y];
  T* target = static_cast<T*>(pair.target);
  const T* source = static_cast<const T*>(pair.source);
  const bool aligned =
      ((reinterpret_cast<uintptr_t>(target) | reinterpret_cast<uintptr_t>(source)) & 15) == 0;
  const int64_t packs = aligned ? pair.numel / kLanes : 0;
  for (int64_t i = thread_index(); i < packs; i += thread_count()) {
    Pack<T> to = reinterpret_cast<Pack<T>*>(target)[i];
    const Pack<T> from = reinterpret_cast<const Pack<T>*>(source)[i];
#pragma unroll
    for (int lane = 0; lane < kLanes; ++lane)
      to.values[lane] = updated(to.values[lane], from.values[lane], tau);
    reinterpret_cast<Pack<T>*>(target)[i] = to;
  }
  for (int64_t i = packs * kLanes + thread_index(); i < pair.numel; i += thread_count()) {
    target[i] = updated(target[i], source[i], tau);
  }
}

}  // namespace

template <typename T>
int launch_polyak_update(const PolyakPair* pairs, int64_t count, double tau, void* stream) {
  for (int64_t first = 0; first < count; first += kMaxPolyakPairs) {
    const int64_t n = std::min<int64_t>(count - first, kMaxPolyakPairs);
    Table table = {};
    int64_t longest = 0;
    for (int64_t i = 0; i < n; ++i) {
      table.pairs[i] = pairs[first + i];
      longest = std::max(longest, table.pairs[i].numel);
    }
    if (longest == 0) continue;
    const int64_t packs = (longest * static_cast<int64_t>(sizeof(T)) + 15) / 16;
    const dim3 grid(blocks_for(packs), static_cast<unsigned>(n));
    if (const int error = launch(polyak_update_kernel<T>, grid, kThreads, 0, stream, table, tau))
      return error;
  }
  return 0;
}

template int launch_polyak_update<float>(const PolyakPair*, int64_t, double, void*);
template int launch_polyak_update<double>(const PolyakPair*, int64_t, double, void*);
template int launch_polyak_update<BFloat16>(const PolyakPair*, int64_t, double, void*);

}  // namespace sacfast::cuda
