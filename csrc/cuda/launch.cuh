// How kernels are launched, and the warp's own operations. Every elementwise kernel walks its work with a
// grid-stride loop, so that the grid may be smaller than the work.
//
// With SACFAST_EMULATE_CUDA all of this, and the few things of the CUDA runtime that are used, come from the
// emulator of the tests, which runs the kernels on the CPU.
#pragma once

#ifdef SACFAST_EMULATE_CUDA
#include "emulator.h"
#else
#include <cuda_runtime_api.h>
#endif

#include <algorithm>
#include <cstdint>
#include <tuple>

namespace sacfast::cuda {

constexpr int kThreads = 128;
constexpr int kWarp = 32;
constexpr int64_t kMostBlocks = 1 << 16;

// Blocks of kThreads threads for `items` > 0, one thread each.
inline unsigned blocks_for(int64_t items) {
  return static_cast<unsigned>(std::min<int64_t>((items + kThreads - 1) / kThreads, kMostBlocks));
}

#ifdef SACFAST_EMULATE_CUDA
using emulator::dynamic_shared;
using emulator::launch;
#else

// Runs kernel(arguments...) on the grid, with `shared_bytes` of dynamic shared memory. Returns a cudaError_t.
template <typename... Parameters, typename... Arguments>
int launch(void (*kernel)(Parameters...), dim3 grid, int threads, int64_t shared_bytes, void* stream,
           const Arguments&... arguments) {
  std::tuple<Parameters...> values(static_cast<Parameters>(arguments)...);
  return std::apply(
      [&](auto&... value) {
        void* addresses[] = {const_cast<void*>(static_cast<const void*>(&value))...};
        const cudaError_t error =
            cudaLaunchKernel(reinterpret_cast<const void*>(kernel), grid, dim3(threads), addresses,
                             static_cast<size_t>(shared_bytes), static_cast<cudaStream_t>(stream));
        if (error != cudaSuccess) cudaGetLastError();  // returned, so that it must not be found once more
        return static_cast<int>(error);
      },
      values);
}

// The dynamic shared memory of the block.
__device__ __forceinline__ float* dynamic_shared() {
  extern __shared__ float block_memory[];
  return block_memory;
}

#endif

__device__ __forceinline__ int64_t thread_index() {
  return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}

__device__ __forceinline__ int64_t thread_count() { return static_cast<int64_t>(gridDim.x) * blockDim.x; }

// The sum over the warp, the same bits in every lane.
__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(~0u, value, offset);
  return value;
}

}  // namespace sacfast::cuda
