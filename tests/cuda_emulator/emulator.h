// Runs CUDA kernels on the CPU, for tests on machines without a GPU: what csrc/cuda uses of the language and
// of the runtime, and no more.
//
// Blocks run one after the other. The threads of a block are fibers on one operating-system thread: each runs
// until it has to wait for others, at __syncthreads or in an operation of its warp. Both orders, of blocks
// and of threads, are chosen by emulator_set_schedule: code that lacks a barrier gives other results in
// another order. Memory that nobody has written is NaN. What a GPU would leave undefined is an error here,
// and ends the process: threads of a block that wait at different places, or for a thread that has ended;
// memory written beyond what a block asked for.
//
// Not emulated: the memory model between blocks and streams, timing, and the rounding of the matrix units.
// Of __shared__ arrays of a fixed size neither holds: they begin as zeros, go on with what the block before
// left there, and have no guards. compute-sanitizer on a GPU looks at these.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <tuple>

// ------------------------------------------------------------------------------------------------- language

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define __shared__ static

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(8) uint2 {
  uint32_t x, y;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

template <typename T>
T min(T a, T b) {
  return b < a ? b : a;
}
template <typename T>
T max(T a, T b) {
  return a < b ? b : a;
}

namespace emulator {

enum class Wait { kNothing, kBlock, kShuffle, kMultiply, kWarp };

// What the lanes of a warp bring to an operation of theirs, and what they get from it.
struct Exchange {
  float value[32];
  int mask[32];
  uint32_t a[32][4], b[32][2];
  float d[32][4];
  bool bf16;
};

Exchange& exchange();      // of this thread's warp
int lane();                // this thread's
void wait(Wait for_what);  // until all threads of the block, or the warp, are here
float* dynamic_shared();

// d += A B, of the fragments of m16n8k8 (TF32) and m16n8k16 (bfloat16).
void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], bool bf16);

inline uint32_t round_tf32(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return (bits & 0x7F800000u) == 0x7F800000u ? bits : (bits + 0x1000u) & 0xFFFFE000u;
}

// Runs `thread` for every thread of the grid, now, or when the graph does that `stream` is being captured
// into.
int enqueue(std::function<void()> thread, dim3 grid, int threads, int64_t shared_bytes, void* stream);

template <typename... Parameters, typename... Arguments>
int launch(void (*kernel)(Parameters...), dim3 grid, int threads, int64_t shared_bytes, void* stream,
           const Arguments&... arguments) {
  std::tuple<Parameters...> values(static_cast<Parameters>(arguments)...);
  return enqueue([=] { std::apply(kernel, values); }, grid, threads, shared_bytes, stream);
}

}  // namespace emulator

inline void __syncthreads() { emulator::wait(emulator::Wait::kBlock); }
inline void __syncwarp() { emulator::wait(emulator::Wait::kWarp); }
inline void __threadfence_system() {}

inline float __shfl_xor_sync(unsigned, float value, int mask) {
  emulator::Exchange& all = emulator::exchange();
  all.value[emulator::lane()] = value, all.mask[emulator::lane()] = mask;
  emulator::wait(emulator::Wait::kShuffle);
  const float result = all.value[emulator::lane() ^ mask];
  emulator::wait(emulator::Wait::kWarp);  // until everybody has read
  return result;
}

// -------------------------------------------------------------------------------------------------- runtime

using cudaError_t = int;
using cudaStream_t = struct EmulatedStream*;
using cudaGraph_t = struct EmulatedGraph*;
using cudaGraphExec_t = struct EmulatedGraph*;
using cudaEvent_t = struct EmulatedEvent*;
enum { cudaStreamNonBlocking, cudaEventDefault = 0, cudaEventDisableTiming = 2, cudaHostAllocMapped = 2 };
enum {
  cudaStreamCaptureModeThreadLocal,
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrComputeCapabilityMajor = 75
};

const char* cudaGetErrorString(cudaError_t error);
cudaError_t cudaGetLastError();
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaDeviceGetAttribute(int* value, int attribute, int device);
cudaError_t cudaDeviceSynchronize();
cudaError_t cudaMalloc(void** memory, size_t bytes);
cudaError_t cudaFree(void* memory);
cudaError_t cudaHostAlloc(void** memory, size_t bytes, unsigned flags);
cudaError_t cudaFreeHost(void* memory);
cudaError_t cudaMemset(void* memory, int value, size_t bytes);
cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t stream);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags);
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, int mode);
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* made, cudaGraph_t graph, unsigned long long flags);
cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream);
cudaError_t cudaGraphDestroy(cudaGraph_t graph);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream);
cudaError_t cudaEventSynchronize(cudaEvent_t event);
cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t from, cudaEvent_t to);
cudaError_t cudaEventDestroy(cudaEvent_t event);
