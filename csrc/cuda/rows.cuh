// The phases of an update that are about single rows of the batch, a warp for each: the gather, the policy's
// head with the sampling, the critics' values with the losses' gradients, and the gradient through the
// action. Dot products run over the lanes and are added by a butterfly, in one order.
#pragma once

#include "../adam.h"
#include "dense.cuh"

namespace sacfast::cuda {

constexpr int kMostUpdates = 32;  // per launch of a graph
constexpr int kRowBlock = 128, kRowWarps = kRowBlock / kWarp;

// What differs from one update of a launch to the next.
struct Turn {
  AdamStep critic, actor, alpha;
  int acts;  // whether actor and temperature are updated
};

// What differs from one launch of the same graph to the next; in device memory.
struct Call {
  int64_t seed, step;
  Transitions transitions;
  ObsStatistics statistics;
  const float *next_noise, *noise;
  Turn turn[kMostUpdates];
};

// Everything else: dimensions, parameters and the workspace.
template <typename T>
struct Update {
  int B, O, A, H;  // H: the width of the last hidden layer
  float gamma, target_entropy;
  LogStdBounds log_std_bounds;
  bool learn_alpha;
  const Call* call;
  int64_t* refused;       // the step whose batch was not finite, -1 if there is none: nothing is applied then
  int64_t* host_refused;  // the same for the host to read
  float *log_alpha, *alpha_m, *alpha_v, *metrics;

  const float *mean_weight, *mean_bias, *log_std_weight, *log_std_bias;
  const float *value_weight[2], *value_bias[2], *target_weight[2], *target_bias[2];
  const float* action_weight[2];  // the critics' first layers from the action's columns on, rows O + A apart
  int first_width;

  Rows<T> pair, next_pair, policy_pair;                       // (s, a), (s', a'), (s, pi(s))
  Rows<T> actor_top, next_top, critic_top[2], target_top[2];  // last hidden layers
  Rows<T> critic_top_gradient[2], critic_first_gradient[2];   // of the last and the first hidden layer
  Rows<T> head_gradient, actor_top_gradient;                  // [B][2 A]
  float *mean, *log_std, *noise;                              // [B][A]
  float* log_std_slope;                                       // [B][A]: of bounded_log_std
  float *reward, *not_terminated, *next_log_prob, *log_prob, *target;  // [B]
  float *q[2], *q_gradient[2], *q_policy;                              // [B]; q_policy of the smaller critic,
  int* smaller;                                                        // which is this one
};

__device__ __forceinline__ int lane_id() { return static_cast<int>(threadIdx.x) % kWarp; }
__device__ __forceinline__ int warp_id() { return static_cast<int>(threadIdx.x) / kWarp; }

constexpr int kAtOnce = 4;  // dot products of a warp that load side by side, since every load waits long

// The dot products x[n] . w[n] of `length` numbers.
template <int kCount, typename T>
__device__ __forceinline__ void dots(const T* const (&x)[kCount], const float* const (&w)[kCount], int length,
                                     float (&sum)[kCount]) {
#pragma unroll
  for (int n = 0; n < kCount; ++n) sum[n] = 0.0f;
  for (int j = lane_id(); j < length; j += kWarp) {
#pragma unroll
    for (int n = 0; n < kCount; ++n) sum[n] += as_float(x[n][j]) * w[n][j];
  }
#pragma unroll
  for (int n = 0; n < kCount; ++n) sum[n] = warp_sum(sum[n]);
}

// --------------------------------------------------------------------------------------------------- gather

static __global__ void begin_kernel(const __grid_constant__ Call call, Call* to) {
  static_assert(sizeof(Call) % 4 == 0 && sizeof(Call) < 4000);
  const uint32_t* const from = reinterpret_cast<const uint32_t*>(&call);
  for (int i = threadIdx.x; i < static_cast<int>(sizeof(Call) / 4); i += blockDim.x) {
    reinterpret_cast<uint32_t*>(to)[i] = from[i];
  }
}

__device__ __forceinline__ bool is_finite(float number) {
  return (float_bits(number) & 0x7F800000u) != 0x7F800000u;
}

// Copies n numbers of a transition, normalised, and says whether all of this lane's are finite.
template <typename From, typename T>
__device__ __forceinline__ bool copy_numbers(const From* from, int n, const ObsStatistics& statistics, T* to,
                                             T* also = nullptr) {
  bool finite = true;
  for (int k = lane_id(); k < n; k += kWarp) {
    float number = as_float(from[k]);
    finite = finite && is_finite(number);
    if (statistics.shift != nullptr) number = normalised(number, statistics.shift[k], statistics.scale[k]);
    put(to + k, number);
    if (also != nullptr) put(also + k, number);
  }
  return finite;
}

// Observation and next observation of transition t, stored as Obs, into `row` of the pairs.
template <typename Obs, typename T>
__device__ __forceinline__ bool copy_observations(const Update<T>& x, const Transitions& from, int64_t t,
                                                  int row) {
  const Obs* const obs = static_cast<const Obs*>(from.obs);
  const Obs* next = static_cast<const Obs*>(from.next_obs);
  if (from.link == nullptr) {
    next += t * from.next_obs_stride;
  } else {
    const int64_t at = next_row(from.link[t * from.link_stride]);
    next =
        at < from.capacity ? obs + at * from.obs_stride : next + (at - from.capacity) * from.next_obs_stride;
  }
  const ObsStatistics& statistics = x.call->statistics;
  const bool finite =
      copy_numbers(obs + t * from.obs_stride, x.O, statistics, x.pair.data + row * x.pair.stride,
                   x.policy_pair.data + row * x.policy_pair.stride);
  return copy_numbers(next, x.O, statistics, x.next_pair.data + row * x.next_pair.stride) && finite;
}

template <typename T>
__global__ void __launch_bounds__(kRowBlock) gather_kernel(const __grid_constant__ Update<T> x, int u) {
  const int row = static_cast<int>(blockIdx.x) * kRowWarps + warp_id();
  if (row >= x.B) return;
  const Transitions& from = x.call->transitions;
  int64_t t = row;
  if (from.link != nullptr) {
    const int64_t key[] = {x.call->seed, kBatch, x.call->step + u};
    int64_t two[2];
    draw_indices(philox_key(key), row / 2 * 2, row / 2 * 2 + 2, from.size, two);
    t = row % 2 ? two[1] : two[0];
  }
  bool finite = from.obs_type == kFloat16    ? copy_observations<Float16>(x, from, t, row)
                : from.obs_type == kBFloat16 ? copy_observations<BFloat16>(x, from, t, row)
                                             : copy_observations<float>(x, from, t, row);
  finite &=
      copy_numbers(from.action + t * from.action_stride, x.A, {}, x.pair.data + row * x.pair.stride + x.O);
  if (lane_id() == 0) {
    const float reward = from.reward[t * from.reward_stride];
    const float terminated = from.link == nullptr
                                 ? from.terminated[t * from.terminated_stride]
                                 : static_cast<float>(is_terminated(from.link[t * from.link_stride]));
    x.reward[row] = reward;
    x.not_terminated[row] = 1.0f - terminated;
    finite = finite && is_finite(reward) && is_finite(terminated);
  }
  if (!finite && *x.refused < 0) *x.refused = x.call->step + u;
}

// --------------------------------------------------------------------------------------------------- policy

__device__ __forceinline__ float normal_number(const PhiloxKey& key, int64_t i) {
  float four[4];
  draw_normals(key, static_cast<uint32_t>(i / 4), four);
  const float low = i % 2 ? four[1] : four[0], high = i % 2 ? four[3] : four[2];
  return i % 4 < 2 ? low : high;
}

// a' ~ pi(s') for rows [0, B), then a ~ pi(s) for rows [B, rows), where `rows` is 2 B or B, kEach rows to a
// warp, which share the weights.
template <typename T, int kEach>
__global__ void __launch_bounds__(kRowBlock)
    policy_kernel(const __grid_constant__ Update<T> x, int rows, int u) {
  const int first = (static_cast<int>(blockIdx.x) * kRowWarps + warp_id()) * kEach, outputs = 2 * x.A;
  if (first >= rows) return;
  float* const heads = dynamic_shared() + warp_id() * kEach * outputs;  // [kEach][2 A]
  const T* h[kEach];
#pragma unroll
  for (int e = 0; e < kEach; ++e) {
    const int row = min(first + e, rows - 1);
    h[e] = row < x.B ? x.next_top.data + row * x.next_top.stride
                     : x.actor_top.data + (row - x.B) * x.actor_top.stride;
  }
  for (int o = 0; o < outputs; o += kAtOnce) {
    const float* w[kAtOnce];
    float sum[kAtOnce][kEach] = {};
#pragma unroll
    for (int n = 0; n < kAtOnce; ++n) {
      const int a = min(o + n, outputs - 1);
      w[n] = a < x.A ? x.mean_weight + static_cast<int64_t>(a) * x.H
                     : x.log_std_weight + static_cast<int64_t>(a - x.A) * x.H;
    }
    for (int j = lane_id(); j < x.H; j += kWarp) {
#pragma unroll
      for (int e = 0; e < kEach; ++e) {
        const float number = as_float(h[e][j]);
#pragma unroll
        for (int n = 0; n < kAtOnce; ++n) sum[n][e] += w[n][j] * number;
      }
    }
#pragma unroll
    for (int n = 0; n < kAtOnce; ++n) {
#pragma unroll
      for (int e = 0; e < kEach; ++e) {
        const float total = warp_sum(sum[n][e]);
        if (lane_id() != 0 || o + n >= outputs) continue;
        heads[e * outputs + o + n] = total + (o + n < x.A ? x.mean_bias[o + n] : x.log_std_bias[o + n - x.A]);
      }
    }
  }
  __syncwarp();
  for (int e = 0; e < kEach && first + e < rows; ++e) {
    const bool next = first + e < x.B;
    const int row = next ? first + e : first + e - x.B;
    const int64_t key[] = {x.call->seed, next ? kNextAction : kAction, x.call->step + u};
    const PhiloxKey philox = philox_key(key);
    const float* const given = next ? x.call->next_noise : x.call->noise;
    const Rows<T>& pairs = next ? x.next_pair : x.policy_pair;
    float log_prob = 0.0f;
    for (int a = lane_id(); a < x.A; a += kWarp) {
      const int64_t i = static_cast<int64_t>(row) * x.A + a;
      const float mean = heads[e * outputs + a];
      const Pair<float> log_std = bounded_log_std(heads[e * outputs + x.A + a], x.log_std_bounds);
      const float noise = given != nullptr ? given[i] : normal_number(philox, i);
      const Pair<float> sampled = squashed_gaussian_element(mean, log_std.first, noise);
      put(pairs.data + row * pairs.stride + x.O + a, sampled.first);
      log_prob += sampled.second;
      if (!next) {
        x.mean[i] = mean, x.log_std[i] = log_std.first, x.noise[i] = noise;
        x.log_std_slope[i] = log_std.second;
      }
    }
    log_prob = warp_sum(log_prob);
    if (lane_id() == 0) (next ? x.next_log_prob : x.log_prob)[row] = log_prob;
  }
}

// -------------------------------------------------------------------------------------------------- critics

// The gradient of a value q = w . h + b with respect to the layer below: dq w where h > 0.
template <typename T>
__device__ __forceinline__ void value_gradient(float dq, const float* w, const T* h, T* dh, int n) {
  for (int j = lane_id(); j < n; j += kWarp) put(dh + j, as_float(h[j]) > 0.0f ? dq * w[j] : 0.0f);
}

// y = r + gamma (1 - d) [min_i Qbar_i - alpha log pi(a'|s')],  dJ/dQ_i = 2/B (Q_i - y), and back one layer.
template <typename T>
__global__ void __launch_bounds__(kRowBlock) target_kernel(const __grid_constant__ Update<T> x) {
  const int row = static_cast<int>(blockIdx.x) * kRowWarps + warp_id();
  if (row >= x.B) return;
  const T* const h[] = {x.target_top[0].data + row * x.target_top[0].stride,
                        x.target_top[1].data + row * x.target_top[1].stride,
                        x.critic_top[0].data + row * x.critic_top[0].stride,
                        x.critic_top[1].data + row * x.critic_top[1].stride};
  const float* const w[] = {x.target_weight[0], x.target_weight[1], x.value_weight[0], x.value_weight[1]};
  float sum[4];
  dots(h, w, x.H, sum);
  const float q_target[] = {sum[0] + *x.target_bias[0], sum[1] + *x.target_bias[1]};
  const float q[] = {sum[2] + *x.value_bias[0], sum[3] + *x.value_bias[1]};
  const float y = td_target(x.reward[row], x.not_terminated[row], q_target[0], q_target[1],
                            x.next_log_prob[row], exponential(*x.log_alpha), x.gamma);
  for (int c = 0; c < 2; ++c) {
    const float dq = 2.0f / static_cast<float>(x.B) * (q[c] - y);
    value_gradient(dq, w[2 + c], h[2 + c],
                   x.critic_top_gradient[c].data + row * x.critic_top_gradient[c].stride, x.H);
    if (lane_id() == 0) x.q[c][row] = q[c], x.q_gradient[c][row] = dq;
  }
  if (lane_id() == 0) x.target[row] = y;
}

// min_i Q_i(s, pi(s)), and the gradient of -1/B of it one layer back: zero for the critic that is not the
// least (second_is_least).
template <typename T>
__global__ void __launch_bounds__(kRowBlock) policy_value_kernel(const __grid_constant__ Update<T> x) {
  const int row = static_cast<int>(blockIdx.x) * kRowWarps + warp_id();
  if (row >= x.B) return;
  const T* const h[] = {x.critic_top[0].data + row * x.critic_top[0].stride,
                        x.critic_top[1].data + row * x.critic_top[1].stride};
  const float* const w[] = {x.value_weight[0], x.value_weight[1]};
  float q[2];
  dots(h, w, x.H, q);
  q[0] += *x.value_bias[0], q[1] += *x.value_bias[1];
  const int smaller = second_is_least(q[0], q[1]) ? 1 : 0;
  for (int c = 0; c < 2; ++c) {
    const float dq = c == smaller ? -1.0f / static_cast<float>(x.B) : 0.0f;
    value_gradient(dq, w[c], h[c], x.critic_top_gradient[c].data + row * x.critic_top_gradient[c].stride,
                   x.H);
  }
  if (lane_id() == 0) x.q_policy[row] = q[smaller], x.smaller[row] = smaller;
}

// ---------------------------------------------------------------------------------------------------- actor

// From the smaller critic's first layer to the action, through tanh and the Gaussian to the head, and back to
// the layer below it. With `cached`, the critics' action columns come to shared memory first, transposed:
// every row of the block reads them, and there lanes read neighbours.
template <typename T>
__global__ void __launch_bounds__(kRowBlock)
    action_gradient_kernel(const __grid_constant__ Update<T> x, bool cached) {
  const int inputs = x.O + x.A, width = x.first_width;
  float* const columns = dynamic_shared();  // [2][A][width]
  if (cached) {
    for (int i = threadIdx.x; i < 2 * width; i += kRowBlock) {
      const int c = i / width, j = i % width;
#pragma unroll 4
      for (int a = 0; a < x.A; ++a) {
        columns[(c * x.A + a) * width + j] = x.action_weight[c][static_cast<int64_t>(j) * inputs + a];
      }
    }
    __syncthreads();
  }
  float* const heads = columns + (cached ? 2 * x.A * width : 0) + warp_id() * 2 * x.A;
  const float entropy_weight = exponential(*x.log_alpha) / static_cast<float>(x.B);
  for (int row = static_cast<int>(blockIdx.x) * kRowWarps + warp_id(); row < x.B;
       row += static_cast<int>(gridDim.x) * kRowWarps) {
    const int c = x.smaller[row];
    const T* const gradient = x.critic_first_gradient[c].data + row * x.critic_first_gradient[c].stride;
    const float* const w = cached ? columns + c * x.A * width : x.action_weight[c];
    const int64_t w_row = cached ? 1 : inputs, w_column = cached ? width : 1;
    for (int a = 0; a < x.A; a += kAtOnce) {
      float sum[kAtOnce] = {};
      for (int j = lane_id(); j < width; j += kWarp) {
        const float number = as_float(gradient[j]);
#pragma unroll
        for (int n = 0; n < kAtOnce; ++n) sum[n] += number * w[j * w_row + min(a + n, x.A - 1) * w_column];
      }
#pragma unroll
      for (int n = 0; n < kAtOnce; ++n) {
        const float total = warp_sum(sum[n]);
        if (lane_id() == 0 && a + n < x.A) heads[a + n] = total;
      }
    }
    __syncwarp();
    for (int a = lane_id(); a < x.A; a += kWarp) {
      const int64_t i = static_cast<int64_t>(row) * x.A + a;
      const Pair<float> gradients =
          squashed_gaussian_element_gradient(heads[a], entropy_weight, x.mean[i], x.log_std[i], x.noise[i]);
      T* const to = x.head_gradient.data + row * x.head_gradient.stride + a;
      heads[a] = gradients.first;
      heads[x.A + a] = gradients.second * x.log_std_slope[i];
      put(to, heads[a]), put(to + x.A, heads[x.A + a]);
    }
    __syncwarp();
    for (int j = lane_id(); j < x.H; j += kWarp) {
      float sum = 0.0f;
#pragma unroll 4
      for (int a = 0; a < x.A; ++a) {
        const int64_t at = static_cast<int64_t>(a) * x.H + j;
        sum += heads[a] * x.mean_weight[at] + heads[x.A + a] * x.log_std_weight[at];
      }
      const bool on = as_float(x.actor_top.data[row * x.actor_top.stride + j]) > 0.0f;
      put(x.actor_top_gradient.data + row * x.actor_top_gradient.stride + j, on ? sum : 0.0f);
    }
    __syncwarp();
  }
}

}  // namespace sacfast::cuda
