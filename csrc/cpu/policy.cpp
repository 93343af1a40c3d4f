// action = centre + half * tanh(mean + exp(log_std) * noise), within [low, high]; without noise tanh(mean)
//
// One observation after the other, each layer a product with the float32 master weights, so that there is no
// packed copy to go stale. Not parallel: an action is microseconds, and a barrier is not free.
#include "policy.h"

#include <algorithm>

#include "kernels.h"

namespace sacfast::cpu {

Policy::Policy(const PolicySpec& spec, const Arithmetic& arithmetic)
    : spec_(spec),
      math_(arithmetic),
      low_(spec.low, spec.low + spec.action_dim),
      high_(spec.high, spec.high + spec.action_dim),
      obs_(spec.obs_dim),
      mean_(spec.action_dim),
      log_std_(spec.action_dim) {
  int64_t widest = spec.obs_dim;
  for (int64_t l = 0; l < spec.hidden_layers; ++l) widest = std::max(widest, spec.actor[l].outputs);
  x_.resize(widest);
  y_.resize(widest);
  for (size_t a = 0; a < low_.size(); ++a) {
    centre_.push_back(0.5f * (high_[a] + low_[a]));
    half_.push_back(0.5f * (high_[a] - low_[a]));
  }
}

void Policy::act(PolicyCall& call) {
  call.bad = -1;
  const int64_t numbers = call.n * spec_.obs_dim;
  if (!math_.finite(call.obs, numbers)) {
    while (math_.finite(call.obs, ++call.bad + 1)) {
    }
    return;
  }
  for (int64_t row = 0; row < call.n; ++row) {
    const float* obs = call.obs + row * spec_.obs_dim;
    if (call.statistics.shift != nullptr) {
      normalise(call.statistics, obs, spec_.obs_dim, obs_.data());
      obs = obs_.data();
    }
    heads(call.params, obs);
    squash(call, row);
  }
}

void Policy::heads(const float* params, const float* obs) {
  const int64_t L = spec_.hidden_layers;
  const auto layer = [&](const Layer& at, const float* x, float* y, bool relu) {
    math_.dense_vector(params + at.weight, params + at.bias, at.outputs, at.inputs, x, y, relu);
  };
  for (int64_t l = 0; l < L; ++l) {
    layer(spec_.actor[l], l == 0 ? obs : x_.data(), y_.data(), true);
    x_.swap(y_);
  }
  layer(spec_.actor[L], x_.data(), mean_.data(), false);
  layer(spec_.actor[L + 1], x_.data(), log_std_.data(), false);
}

// Blocks of fixed length, so that they vectorise; the noise is numbers row * A, row * A + 1, ... of the draw.
void Policy::squash(const PolicyCall& call, int64_t row) {
  constexpr int64_t kBlock = 8;
  const int64_t A = spec_.action_dim;
  const int64_t key[] = {call.seed, call.stream, call.step};
  const PhiloxKey philox = philox_key(key);
  for (int64_t a = 0; a < A; a += kBlock) {
    const int64_t n = std::min(kBlock, A - a), first = row * A + a, skipped = first % 4;
    float u[kBlock] = {}, noise[kBlock + 4];
    if (!call.deterministic) {
      for (int64_t b = 0; b < (kBlock + 4) / 4; ++b) {
        draw_normals(philox, static_cast<uint32_t>(first / 4 + b), noise + 4 * b);
      }
      for (int64_t i = 0; i < n; ++i) {
        u[i] = exponential(bounded_log_std(log_std_[a + i], spec_.log_std).first) * noise[skipped + i];
      }
    }
    for (int64_t i = 0; i < n; ++i) u[i] += mean_[a + i];
    float action[kBlock];
    for (int64_t i = 0; i < kBlock; ++i) action[i] = sacfast::squash(u[i]).action;
    for (int64_t i = 0; i < n; ++i) {
      const float scaled = centre_[a + i] + half_[a + i] * action[i];
      call.action[row * A + a + i] = std::clamp(scaled, low_[a + i], high_[a + i]);
    }
  }
}

}  // namespace sacfast::cpu
