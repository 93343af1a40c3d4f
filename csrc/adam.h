// One step of Adam (Kingma & Ba, arXiv:1412.6980, Algorithm 1) with its bias corrections c1 = 1 - beta1^t and
// c2 = 1 - beta2^t folded in:
//
//   m += (1 - beta1) (g - m),  v = beta2 v + (1 - beta2) g^2,  p -= (lr / c1) m / (sqrt(v) / sqrt(c2) +
//   epsilon)
//
// adam_element is the scalar form; cpu/parameters.h has the same over vectors.
#pragma once

#include <cmath>

#include "engine.h"
#include "sac_math.h"

namespace sacfast {

struct AdamStep {
  float one_minus_beta1, beta2, one_minus_beta2;
  float step_size;        // lr / c1
  float inverse_root_c2;  // 1 / sqrt(c2)
  float epsilon;
};

// Step number t, from 1 on, of one of spec.lr; on the host.
inline __attribute__((always_inline)) AdamStep adam_step(const UpdateSpec& spec, double lr, int64_t t) {
  const double n = static_cast<double>(t);
  const double c1 = 1.0 - std::pow(spec.beta1, n), c2 = 1.0 - std::pow(spec.beta2, n);
  return {static_cast<float>(1.0 - spec.beta1),    static_cast<float>(spec.beta2),
          static_cast<float>(1.0 - spec.beta2),    static_cast<float>(lr / c1),
          static_cast<float>(1.0 / std::sqrt(c2)), static_cast<float>(spec.epsilon)};
}

// The new value of one parameter, whose moments m and v are advanced.
SACFAST_HD float adam_element(float p, float& m, float& v, float g, const AdamStep& step) {
  m += step.one_minus_beta1 * (g - m);
  v = step.beta2 * v + step.one_minus_beta2 * g * g;
  return p - step.step_size * m / (square_root(v) * step.inverse_root_c2 + step.epsilon);
}

}  // namespace sacfast
