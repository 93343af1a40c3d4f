// Acting: observations in, actions in the environment's units out, in one call.
#pragma once

#include <cstdint>
#include <vector>

#include "arithmetic.h"
#include "workspace.h"

namespace sacfast::cpu {

// low, high: [A], the environment's bounds; copied, so they need not outlive the constructor.
struct PolicySpec {
  int64_t obs_dim, action_dim, hidden_layers;
  Layer actor[kMaxHidden + 2];
  double log_std_min, log_std_max;
  const float *low, *high;
};

// n observations [n][O]; the noise of the draw (seed, stream, step), or none and the deterministic action.
// `action` [n][A]. `bad` returns the index of the first observation's number that is not finite, else -1.
struct PolicyCall {
  const float *params, *obs;
  float* action;
  int64_t n, seed, stream, step, deterministic, bad;
};

class Policy {
 public:
  Policy(const PolicySpec& spec, const Arithmetic& arithmetic);
  void act(PolicyCall& call);

 private:
  void heads(const float* params, const float* obs);
  void squash(const PolicyCall& call, int64_t row);

  const PolicySpec spec_;
  const Arithmetic& math_;
  std::vector<float> low_, high_, centre_, half_;  // [A]
  std::vector<float> x_, y_;                       // a layer's input and output
  std::vector<float> mean_, log_std_;              // [A]
};

}  // namespace sacfast::cpu
