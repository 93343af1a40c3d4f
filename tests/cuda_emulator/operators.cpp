// The operators' launchers under C names, for tests/ops/test_cuda_emulated.py; dtype 0: float, 1: double, 2:
// bfloat16.
#include "guarded.h"
#include "kernels.h"

using namespace sacfast;

template <typename F>
static int with_float(int dtype, F f) {
  return dtype == 1 ? f(double{}) : f(float{});
}

SACFAST_EXPORT int emulated_normal(int dtype, const int64_t* key, void* out, int64_t numel) {
  return with_float(dtype, [&](auto zero) {
    return cuda::launch_normal(key, static_cast<decltype(zero)*>(out), numel, nullptr);
  });
}

SACFAST_EXPORT int emulated_squashed_gaussian(int dtype, const void* mean, const void* log_std,
                                              const void* noise, void* action, void* log_prob, int64_t B,
                                              int64_t A) {
  return with_float(dtype, [&](auto zero) {
    using T = decltype(zero);
    return cuda::launch_squashed_gaussian(static_cast<const T*>(mean), static_cast<const T*>(log_std),
                                          static_cast<const T*>(noise), static_cast<T*>(action),
                                          static_cast<T*>(log_prob), B, A, nullptr);
  });
}

SACFAST_EXPORT int emulated_squashed_gaussian_key(int dtype, const void* mean, const void* log_std,
                                                  const int64_t* key, void* action, void* log_prob,
                                                  void* noise, int64_t B, int64_t A) {
  return with_float(dtype, [&](auto zero) {
    using T = decltype(zero);
    return cuda::launch_squashed_gaussian_key(static_cast<const T*>(mean), static_cast<const T*>(log_std),
                                              key, static_cast<T*>(action), static_cast<T*>(log_prob),
                                              static_cast<T*>(noise), B, A, nullptr);
  });
}

SACFAST_EXPORT int emulated_squashed_gaussian_backward(int dtype, const void* grad_action,
                                                       const void* grad_log_prob, const void* mean,
                                                       const void* log_std, const void* noise,
                                                       void* grad_mean, void* grad_log_std, int64_t B,
                                                       int64_t A) {
  return with_float(dtype, [&](auto zero) {
    using T = decltype(zero);
    return cuda::launch_squashed_gaussian_backward(
        static_cast<const T*>(grad_action), static_cast<const T*>(grad_log_prob), static_cast<const T*>(mean),
        static_cast<const T*>(log_std), static_cast<const T*>(noise), static_cast<T*>(grad_mean),
        static_cast<T*>(grad_log_std), B, A, nullptr);
  });
}

SACFAST_EXPORT int emulated_polyak_update(int dtype, const PolyakPair* pairs, int64_t count, double tau) {
  if (dtype == 2) return cuda::launch_polyak_update<BFloat16>(pairs, count, tau, nullptr);
  return with_float(dtype, [&](auto zero) {
    return cuda::launch_polyak_update<decltype(zero)>(pairs, count, tau, nullptr);
  });
}

SACFAST_EXPORT int emulated_replay_sample(const ReplayField* fields, int64_t count, int64_t N,
                                          const int64_t* size, const int64_t* key, int64_t* indices,
                                          int64_t B) {
  return cuda::launch_replay_sample(fields, count, N, size, key, indices, B, nullptr);
}

SACFAST_EXPORT int emulated_replay_insert(const ReplayField* fields, int64_t count, int64_t N, int64_t n,
                                          int64_t position) {
  return cuda::launch_replay_insert(fields, count, N, n, position, nullptr);
}
