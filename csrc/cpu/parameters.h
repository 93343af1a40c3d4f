// The elementwise passes over a network's flat parameters, for any vector width: Adam (Kingma & Ba,
// arXiv:1412.6980, Algorithm 1; AdamStep states it), the Polyak average of the targets behind it in the same
// pass, and the search for numbers that are not finite.
//
// All of them are limited by memory. Threads take ranges; an element's result does not depend on the range it
// is in, because the last vector of a range is computed like the others, only shorter.
#pragma once

#include "arithmetic.h"
#include "lanes.h"

namespace sacfast::cpu {
namespace {

// The new values of `count` parameters, at most a vector of them.
SACFAST_INLINE V adam_vector(float* p, float* m, float* v, const float* g, int64_t count,
                             const AdamStep& step) {
  const V gradient = load(g, count), old_mean = load(m, count);
  const V mean = old_mean + step.one_minus_beta1 * (gradient - old_mean);
  const V square = step.beta2 * load(v, count) + step.one_minus_beta2 * gradient * gradient;
  const V root = square_root(square) * step.inverse_root_c2 + step.epsilon;
  const V value = load(p, count) - quotient(step.step_size * mean, root);
  store(m, mean, count);
  store(v, square, count);
  store(p, value, count);
  return value;
}

void adam(float* p, float* m, float* v, const float* g, int64_t n, const AdamStep& given) {
  const AdamStep step = given;  // a copy, which no store to p, m or v can change
  for (int64_t i = 0; i < n; i += kLanes) adam_vector(p + i, m + i, v + i, g + i, n - i, step);
}

// target + tau (value - target) is taken from the nearer end, so that tau = 0 and tau = 1 are exact.
void adam_polyak(float* p, float* m, float* v, const float* g, float* target, int64_t n,
                 const AdamStep& given, float tau) {
  const AdamStep step = given;
  const bool near_target = tau < 0.5f;
  const float weight = near_target ? tau : tau - 1.0f;
  for (int64_t i = 0; i < n; i += kLanes) {
    const V value = adam_vector(p + i, m + i, v + i, g + i, n - i, step);
    const V old = load(target + i, n - i);
    store(target + i, (near_target ? old : value) + weight * (value - old), n - i);
  }
}

// Zero times a number is zero, unless the number is infinite or NaN.
bool finite(const float* x, int64_t n) {
  constexpr int kAtOnce = 4;
  V sum[kAtOnce] = {};
  for (int64_t i = 0; i < n; i += kAtOnce * kLanes) {
    SACFAST_UNROLLED
    for (int j = 0; j < kAtOnce; ++j) sum[j] += 0.0f * load(x + i + j * kLanes, n - i - j * kLanes);
  }
  float lane[kLanes];
  store(lane, (sum[0] + sum[1]) + (sum[2] + sum[3]));
  float total = 0.0f;
  for (int j = 0; j < kLanes; ++j) total += lane[j];
  return total == 0.0f;
}

}  // namespace
}  // namespace sacfast::cpu
