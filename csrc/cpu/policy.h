// Acting: observations in, actions in the environment's units out, in one call.
#pragma once

#include <cstdint>
#include <vector>

#include "arithmetic.h"
#include "engine.h"

namespace sacfast::cpu {

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
  std::vector<float> obs_;                         // [O], normalised
  std::vector<float> x_, y_;                       // a layer's input and output
  std::vector<float> mean_, log_std_;              // [A]
};

}  // namespace sacfast::cpu
