// action = centre + half * tanh(mean + exp(log_std) * noise), within [low, high]; without noise tanh(mean)
//
// A block per observation: a warp per few outputs of a layer, its lanes along the inputs, the layers' numbers
// in shared memory. Made for one observation or a few; for many, products of matrices read the weights less
// often.
#include <algorithm>

#include "../sac_math.h"
#include "launch.cuh"
#include "policy.cuh"

namespace sacfast::cuda {
namespace {

constexpr int kBlock = 512;
constexpr int kAtOnce = 4;  // outputs of a warp that load side by side, since every load waits long

// y = W x + b, relu(y) on request, for all threads of the block; x and y in shared memory.
__device__ __forceinline__ void dense_vector(const float* params, const Layer& layer, const float* x,
                                             float* y, bool relu) {
  const int inputs = static_cast<int>(layer.inputs), outputs = static_cast<int>(layer.outputs);
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  for (int o = static_cast<int>(threadIdx.x) / kWarp * kAtOnce; o < outputs; o += kBlock / kWarp * kAtOnce) {
    const float* const w = params + layer.weight + static_cast<int64_t>(o) * inputs;
    float sum[kAtOnce] = {};
    for (int i = lane; i < inputs; i += kWarp) {
#pragma unroll
      for (int n = 0; n < kAtOnce; ++n) sum[n] += w[min(n, outputs - 1 - o) * inputs + i] * x[i];
    }
#pragma unroll
    for (int n = 0; n < kAtOnce; ++n) {
      const float total = warp_sum(sum[n]) + params[layer.bias + min(o + n, outputs - 1)];
      if (lane == 0 && o + n < outputs) y[o + n] = relu ? rectified(total) : total;
    }
  }
  __syncthreads();
}

__global__ void __launch_bounds__(kBlock) policy_kernel(const __grid_constant__ PolicySpec spec,
                                                        const __grid_constant__ PolicyCall call, int widest) {
  float *x = dynamic_shared(), *y = x + widest;  // [widest] each
  const int64_t row = blockIdx.x;
  const int O = static_cast<int>(spec.obs_dim), A = static_cast<int>(spec.action_dim);
  const int L = static_cast<int>(spec.hidden_layers);
  const ObsStatistics& statistics = call.statistics;
  for (int i = threadIdx.x; i < O; i += kBlock) {
    const float number = call.obs[row * O + i];
    x[i] =
        statistics.shift == nullptr ? number : normalised(number, statistics.shift[i], statistics.scale[i]);
  }
  __syncthreads();
  for (int l = 0; l < L; ++l) {
    dense_vector(call.params, spec.actor[l], x, y, true);
    float* const other = x;
    x = y, y = other;
  }
  dense_vector(call.params, spec.actor[L], x, y, false);
  dense_vector(call.params, spec.actor[L + 1], x, y + A, false);
  const float* const mean = y;
  const int64_t key[] = {call.seed, call.stream, call.step};
  for (int a = threadIdx.x; a < A; a += kBlock) {
    float u = mean[a];
    if (!call.deterministic) {
      const int64_t i = row * A + a;
      float four[4];
      draw_normals(philox_key(key), static_cast<uint32_t>(i / 4), four);
      u += exponential(bounded_log_std(mean[A + a], spec.log_std).first) * four[i % 4];
    }
    const float centre = 0.5f * (spec.high[a] + spec.low[a]), half = 0.5f * (spec.high[a] - spec.low[a]);
    const float scaled = centre + half * squash(u).action;
    call.action[row * A + a] = clamped(scaled, spec.low[a], spec.high[a]);
  }
}

}  // namespace

int launch_policy(const PolicySpec& spec, const PolicyCall& call, void* stream) {
  if (call.n == 0) return 0;
  int64_t widest = std::max(spec.obs_dim, 2 * spec.action_dim);
  for (int64_t l = 0; l < spec.hidden_layers; ++l) widest = std::max(widest, spec.actor[l].outputs);
  return launch(policy_kernel, static_cast<unsigned>(call.n), kBlock,
                2 * widest * static_cast<int64_t>(sizeof(float)), stream, spec, call,
                static_cast<int>(widest));
}

}  // namespace sacfast::cuda
