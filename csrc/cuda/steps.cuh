// The steps that end the two halves of an update: of the critics, and of the actor with the temperature,
// whose block of the same launch writes the update's metrics too.
#pragma once

#include "rows.cuh"

namespace sacfast::cuda {

// The sum over i < n of number(i), the same in every thread of the block.
template <int kBlock, typename F>
__device__ __forceinline__ double block_sum(int n, F number) {
  __shared__ double sums[kBlock];
  double sum = 0.0;
  for (int i = threadIdx.x; i < n; i += kBlock) sum += number(i);
  __syncthreads();  // the sum before this one has been read
  sums[threadIdx.x] = sum;
  for (int half = kBlock / 2; half > 0; half /= 2) {
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < half) sums[threadIdx.x] += sums[threadIdx.x + half];
  }
  __syncthreads();
  return sums[0];
}

// J(alpha) = -log alpha * mean [log pi(a|s) + target entropy], and the update's seven numbers; for one block.
template <typename T, int kBlock>
__device__ __forceinline__ void finish(const Update<T>& x, const Turn& turn) {
  const double n = x.B;
  double log_prob = 0.0, value = 0.0, q[2], loss = 0.0;
  if (turn.acts) {
    log_prob = block_sum<kBlock>(x.B, [&](int i) { return x.log_prob[i]; }) / n;
    value = block_sum<kBlock>(x.B, [&](int i) { return x.q_policy[i]; }) / n;
  }
  for (int c = 0; c < 2; ++c) {
    q[c] = block_sum<kBlock>(x.B, [&](int i) { return x.q[c][i]; }) / n;
    loss += block_sum<kBlock>(x.B, [&](int i) {
      const double difference = static_cast<double>(x.q[c][i]) - x.target[i];
      return difference * difference;
    });
  }
  if (threadIdx.x != 0) return;
  if (turn.acts) {
    x.metrics[1] = static_cast<float>(exponential(*x.log_alpha) * log_prob - value);
    x.metrics[2] = 0.0f;
    x.metrics[6] = static_cast<float>(log_prob);
    if (x.learn_alpha) {
      const float gradient = static_cast<float>(-(log_prob + x.target_entropy));
      x.metrics[2] = *x.log_alpha * gradient;
      *x.log_alpha = adam_element(*x.log_alpha, *x.alpha_m, *x.alpha_v, gradient, turn.alpha);
    }
  }
  x.metrics[0] = static_cast<float>(loss / n);
  x.metrics[3] = exponential(*x.log_alpha);
  x.metrics[4] = static_cast<float>(q[0]), x.metrics[5] = static_cast<float>(q[1]);
}

template <Precision P, typename Size>
__global__ void __launch_bounds__(Size::kBlock)
    critic_step_kernel(const __grid_constant__ Jobs<WeightJob<Stored<P>>> jobs,
                       const __grid_constant__ Trained trained, const Call* call, const int64_t* refused,
                       int u) {
  if (*refused >= 0) return;
  int tile;
  const auto& job = find_job(jobs, tile);
  weight_gradient<P, Size>(job, tile, trained, call->turn[u].critic);
}

// The last block of the grid is for temperature and metrics.
template <Precision P, typename Size>
__global__ void __launch_bounds__(Size::kBlock)
    actor_step_kernel(const __grid_constant__ Jobs<WeightJob<Stored<P>>> jobs,
                      const __grid_constant__ Trained trained, const __grid_constant__ Update<Stored<P>> x,
                      int u) {
  const bool last = static_cast<int>(blockIdx.x) == jobs.first[jobs.count];
  if (*x.refused >= 0) {
    if (last && threadIdx.x == 0) {
      *x.host_refused = *x.refused;
      __threadfence_system();
    }
    return;
  }
  const Turn& turn = x.call->turn[u];
  if (last) {
    if (blockIdx.y == 0) finish<Stored<P>, Size::kBlock>(x, turn);
    return;
  }
  int tile;
  const auto& job = find_job(jobs, tile);
  weight_gradient<P, Size>(job, tile, trained, turn.actor);
}

// The step that gradients in parts are for.
static __global__ void __launch_bounds__(kThreads)
    adam_kernel(const __grid_constant__ Trained trained, int splits, const Call* call, const int64_t* refused,
                int u, bool actor) {
  const Turn& turn = call->turn[u];
  if (*refused >= 0) return;
  for (int64_t i = thread_index(); i < trained.size; i += thread_count()) {
    float gradient = 0.0f;
    for (int split = 0; split < splits; ++split) gradient += trained.partial[split * trained.size + i];
    trained.step(i, gradient, actor ? turn.actor : turn.critic);
  }
}

}  // namespace sacfast::cuda
