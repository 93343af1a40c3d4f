// u = mean + exp(log_std) * noise,  a = tanh(u),
// log pi = sum_i [-noise_i^2 / 2 - log_std_i - log(2 pi) / 2 - log(1 - a_i^2)]
// (SAC, arXiv:1801.01290, eq. 21)
//
// One thread per row: A is small (7 for Pusher, 17 for Humanoid), and a sum in order gives the bytes that the
// CPU's sum gives for the same terms. With a key each thread draws the Philox blocks that its row touches;
// neighbours share at most one. `normal` alone: one thread per block of four.
#include "../kernels.h"
#include "launch.cuh"

namespace sacfast::cuda {
namespace {

template <typename T>
__global__ void normal_kernel(const int64_t* __restrict__ key, T* __restrict__ out, int64_t numel) {
  const PhiloxKey philox = philox_key(key);
  for (int64_t block = thread_index(); 4 * block < numel; block += thread_count()) {
    T lanes[4];
    draw_normals(philox, static_cast<uint32_t>(block), lanes);
#pragma unroll
    for (int lane = 0; lane < 4; ++lane) {
      if (4 * block + lane < numel) out[4 * block + lane] = lanes[lane];
    }
  }
}

template <typename T>
__global__ void squashed_gaussian_kernel(const T* __restrict__ mean, const T* __restrict__ log_std,
                                         const T* __restrict__ noise, T* __restrict__ action,
                                         T* __restrict__ log_prob, int64_t B, int64_t A) {
  for (int64_t row = thread_index(); row < B; row += thread_count()) {
    T sum = 0;
    for (int64_t i = row * A; i < (row + 1) * A; ++i) {
      const Pair<T> result = squashed_gaussian_element(mean[i], log_std[i], noise[i]);
      action[i] = result.first;
      sum += result.second;
    }
    log_prob[row] = sum;
  }
}

template <typename T>
__global__ void squashed_gaussian_key_kernel(const T* __restrict__ mean, const T* __restrict__ log_std,
                                             const int64_t* __restrict__ key, T* __restrict__ action,
                                             T* __restrict__ log_prob, T* __restrict__ noise, int64_t B,
                                             int64_t A) {
  const PhiloxKey philox = philox_key(key);
  for (int64_t row = thread_index(); row < B; row += thread_count()) {
    const int64_t begin = row * A, end = begin + A;
    T sum = 0;
    for (int64_t block = begin / 4; 4 * block < end; ++block) {
      T lanes[4];
      draw_normals(philox, static_cast<uint32_t>(block), lanes);
#pragma unroll
      for (int lane = 0; lane < 4; ++lane) {
        const int64_t i = 4 * block + lane;
        if (i < begin || i >= end) continue;
        const Pair<T> result = squashed_gaussian_element(mean[i], log_std[i], lanes[lane]);
        noise[i] = lanes[lane];
        action[i] = result.first;
        sum += result.second;
      }
    }
    log_prob[row] = sum;
  }
}

// One thread per element: nothing is summed.
template <typename T>
__global__ void squashed_gaussian_backward_kernel(const T* __restrict__ grad_action,
                                                  const T* __restrict__ grad_log_prob,
                                                  const T* __restrict__ mean, const T* __restrict__ log_std,
                                                  const T* __restrict__ noise, T* __restrict__ grad_mean,
                                                  T* __restrict__ grad_log_std, int64_t numel, int64_t A) {
  for (int64_t i = thread_index(); i < numel; i += thread_count()) {
    const Pair<T> result = squashed_gaussian_element_gradient(grad_action[i], grad_log_prob[i / A], mean[i],
                                                              log_std[i], noise[i]);
    grad_mean[i] = result.first;
    grad_log_std[i] = result.second;
  }
}

}  // namespace

template <typename T>
int launch_normal(const int64_t* key, T* out, int64_t numel, void* stream) {
  if (numel == 0) return 0;
  return launch(normal_kernel<T>, blocks_for((numel + 3) / 4), kThreads, 0, stream, key, out, numel);
}

template <typename T>
int launch_squashed_gaussian(const T* mean, const T* log_std, const T* noise, T* action, T* log_prob,
                             int64_t B, int64_t A, void* stream) {
  if (B == 0) return 0;
  return launch(squashed_gaussian_kernel<T>, blocks_for(B), kThreads, 0, stream, mean, log_std, noise, action,
                log_prob, B, A);
}

template <typename T>
int launch_squashed_gaussian_key(const T* mean, const T* log_std, const int64_t* key, T* action, T* log_prob,
                                 T* noise, int64_t B, int64_t A, void* stream) {
  if (B == 0) return 0;
  return launch(squashed_gaussian_key_kernel<T>, blocks_for(B), kThreads, 0, stream, mean, log_std, key,
                action, log_prob, noise, B, A);
}

template <typename T>
int launch_squashed_gaussian_backward(const T* grad_action, const T* grad_log_prob, const T* mean,
                                      const T* log_std, const T* noise, T* grad_mean, T* grad_log_std,
                                      int64_t B, int64_t A, void* stream) {
  if (B * A == 0) return 0;
  return launch(squashed_gaussian_backward_kernel<T>, blocks_for(B * A), kThreads, 0, stream, grad_action,
                grad_log_prob, mean, log_std, noise, grad_mean, grad_log_std, B * A, A);
}

#define SACFAST_INSTANTIATE(T)                                                                             \
  template int launch_normal<T>(const int64_t*, T*, int64_t, void*);                                       \
  template int launch_squashed_gaussian<T>(const T*, const T*, const T*, T*, T*, int64_t, int64_t, void*); \
  template int launch_squashed_gaussian_key<T>(const T*, const T*, const int64_t*, T*, T*, T*, int64_t,    \
                                               int64_t, void*);                                            \
  template int launch_squashed_gaussian_backward<T>(const T*, const T*, const T*, const T*, const T*, T*,  \
                                                    T*, int64_t, int64_t, void*);
SACFAST_INSTANTIATE(float)
SACFAST_INSTANTIATE(double)
#undef SACFAST_INSTANTIATE

}  // namespace sacfast::cuda
