// What crosses the C interface of the engines, engine.cpp for the CPU and cuda/engine.cu for CUDA, as plain
// structs that sacfast/engines/abi.py mirrors. Every pointer is to memory of the engine's device, if not said
// otherwise.
#pragma once

#include <cstdint>

#include "sac_math.h"
#include "transitions.h"

namespace sacfast {

constexpr int64_t kMaxHidden = 4;

// What the draws of one update are for, as in sacfast/ops/philox.py.
enum Stream : int64_t { kBatch = 0, kNextAction = 1, kAction = 2 };

// A linear layer inside a flat parameter buffer: weight [outputs][inputs] and bias [outputs] at these floats.
struct Layer {
  int64_t weight, bias, outputs, inputs;
};

// What an engine is made for. Layers come in forward order, the hidden ones first; the actor then has mean
// and log_std, a critic its one output.
struct UpdateSpec {
  int64_t obs_dim, action_dim, hidden_layers, threads;
  Layer actor[kMaxHidden + 2];
  Layer critic[2][kMaxHidden + 1];
  struct {
    double actor, critic, alpha;
  } lr;
  double gamma, tau, beta1, beta2, epsilon, target_entropy;
  LogStdBounds log_std;
  int64_t learn_alpha, actor_update_period;
};

// The learned tensors of a SACState, float32, and its counters, which the update advances.
struct StatePointers {
  float *actor, *critic, *critic_target, *log_alpha;
  float *actor_m, *actor_v, *critic_m, *critic_v, *alpha_m, *alpha_v;
  int64_t seed, step, actor_adam_step, critic_adam_step, alpha_adam_step;
};

// `updates` updates on batches of `batch_size`, drawn from `transitions` where these are a replay memory,
// else on these themselves. Noise [batch_size][A] may be given for the batch itself, else it is drawn.
// `repack`: the weights changed since this engine last saw them. `metrics` receives the seven numbers of the
// last update; those of the actor stay as they are where it was not updated.
struct UpdateCall {
  StatePointers state;
  Transitions transitions;
  ObsStatistics statistics;
  int64_t batch_size, updates;
  const float *next_noise, *noise;
  float* metrics;
  int64_t repack;
};

// low, high: [A], the environment's bounds; copied, so they need not outlive the constructor.
struct PolicySpec {
  int64_t obs_dim, action_dim, hidden_layers;
  Layer actor[kMaxHidden + 2];
  LogStdBounds log_std;
  const float *low, *high;
};

// n observations [n][O]; the noise of the draw (seed, stream, step), or none and the deterministic action.
// `action` [n][A]. `bad` returns, on the CPU, the index of the first observation's number that is not finite,
// else -1.
struct PolicyCall {
  ObsStatistics statistics;
  const float *params, *obs;
  float* action;
  int64_t n, seed, stream, step, deterministic, bad;
};

}  // namespace sacfast
