// What one step of one environment leaves: its transition, rounded as the replay ring stores it, and the
// moments of its observation (Welford 1962). NumPy takes a few dozen calls for it, whose code the update
// before has driven out of the caches.
#include <algorithm>
#include <cmath>
#include <cstdint>

#include "guarded.h"

namespace {

// to[i] = (from[i] - centre[i]) / half[i] within [-1, 1], or from[i] without bounds; whether all are finite.
bool round_to(float* to, const double* from, int64_t n, const float* centre, const float* half) {
  bool finite = true;
  for (int64_t i = 0; i < n; ++i) {
    const auto value = static_cast<float>(from[i]);
    finite &= std::isfinite(value);
    to[i] = half == nullptr ? value : std::clamp((value - centre[i]) / half[i], -1.0f, 1.0f);
  }
  return finite;
}

}  // namespace

// given: obs [O], action [A], next_obs [O], reward. record: obs, action in [-1, 1], scaled reward.
// Returns 1, or 0 where a number is not finite in float32.
SACFAST_EXPORT int sacfast_transition(int64_t obs_dim, int64_t action_dim, const double* given,
                                      const float* centre, const float* half, float reward_scale,
                                      float* record, float* next_obs) {
  const double* action = given + obs_dim;
  const double* following = action + action_dim;
  const float reward = static_cast<float>(following[obs_dim]) * reward_scale;
  record[obs_dim + action_dim] = reward;
  return static_cast<int>(round_to(record, given, obs_dim, nullptr, nullptr) &
                          round_to(record + obs_dim, action, action_dim, centre, half) &
                          round_to(next_obs, following, obs_dim, nullptr, nullptr) & std::isfinite(reward));
}

// mean += (x - mean) / (count + 1), squares += (x - mean before)^2 count / (count + 1), count being of the
// observations before x; then shift = mean and scale = (squares / (count + 1) + epsilon)^-1/2.
SACFAST_EXPORT void sacfast_moments(int64_t obs_dim, double epsilon, const double* x, double* mean,
                                    double* squares, float* shift, float* scale, int64_t count) {
  const double before = static_cast<double>(count), total = before + 1;
  for (int64_t i = 0; i < obs_dim; ++i) {
    const double delta = x[i] - mean[i];
    mean[i] += delta * (1 / total);
    squares[i] += delta * delta * (before / total);
    shift[i] = static_cast<float>(mean[i]);
    scale[i] = static_cast<float>(1 / std::sqrt(squares[i] / total + epsilon));
  }
}
