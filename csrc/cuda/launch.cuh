// Launch geometry shared by the CUDA kernels. Every kernel walks its work with a grid-stride loop, so that
// the grid may be smaller than the work.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>

namespace sacfast::cuda {

constexpr int kThreads = 128;
constexpr int64_t kMostBlocks = 1 << 16;

// Blocks of kThreads threads for `items` > 0, one thread each.
inline unsigned blocks_for(int64_t items) {
  return static_cast<unsigned>(std::min<int64_t>((items + kThreads - 1) / kThreads, kMostBlocks));
}

__device__ __forceinline__ int64_t thread_index() {
  return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}

__device__ __forceinline__ int64_t thread_count() { return static_cast<int64_t>(gridDim.x) * blockDim.x; }

// The error of the launch just made, and of no earlier call.
inline int launch_error() { return static_cast<int>(cudaGetLastError()); }

}  // namespace sacfast::cuda
