// The whole SAC update (arXiv:1812.05905, algorithm 1) as one call on the CPU. This header has what crosses
// the C interface of engine.cpp, which sacfast/engines/native.py mirrors, and the class behind it.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "arithmetic.h"
#include "threads.h"
#include "workspace.h"

namespace sacfast::cpu {

// What an engine is made for. Layers come in forward order, the hidden ones first; the actor then has mean
// and log_std, a critic its one output.
struct UpdateSpec {
  int64_t obs_dim, action_dim, hidden_layers, threads;
  Layer actor[kMaxHidden + 2];
  Layer critic[2][kMaxHidden + 1];
  double lr, gamma, tau, beta1, beta2, epsilon, target_entropy, log_std_min, log_std_max;
  int64_t learn_alpha, actor_update_period;
};

// The learned tensors of a SACState, float32, and its counters, which the update advances.
struct StatePointers {
  float *actor, *critic, *critic_target, *log_alpha;
  float *actor_m, *actor_v, *critic_m, *critic_v, *alpha_m, *alpha_v;
  int64_t seed, step, actor_adam_step, critic_adam_step, alpha_adam_step;
};

// Float32 rows of transitions; each field is `stride` floats from one row to the next. With size > 0 they are
// a replay buffer of that many rows, from which the update draws; with size 0 they are the batch itself.
struct Transitions {
  const float *obs, *action, *reward, *next_obs, *terminated;
  int64_t obs_stride, action_stride, reward_stride, next_obs_stride, terminated_stride;
  int64_t size;
};

// `updates` updates on batches of `batch_size`. Noise [batch_size][A] may be given for the batch itself, else
// it is drawn. `repack`: the weights changed since this engine last saw them. `metrics` receives the seven
// numbers of the last update; those of the actor stay as they are where it was not updated.
struct UpdateCall {
  StatePointers state;
  Transitions transitions;
  int64_t batch_size, updates;
  const float *next_noise, *noise;
  float* metrics;
  int64_t repack;
};

// What the time of an update goes to.
enum Phase : int {
  kGather,          // indices, transitions copied into operands
  kActorForward,    // the policy on next_obs and obs, sampling included
  kTarget,          // target critics
  kCriticForward,   // critics on the batch's actions
  kCriticBackward,  // TD error, input and weight gradients
  kAdam,            // Adam, Polyak, packing of the new weights
  kActorCritic,     // critics on the policy's actions, gradient to those
  kActorBackward,   // the policy's input and weight gradients
  kWaiting,         // for other threads
  kPhases
};

class SacUpdate {
 public:
  enum Result { kApplied, kNotFinite };

  // Throws std::bad_alloc and std::system_error.
  SacUpdate(const UpdateSpec& spec, const Arithmetic& arithmetic);

  // One caller at a time. Advances call.state. kNotFinite: a transition of the batch at state.step holds a
  // NaN or an infinity; the updates before it were applied, it was not. Throws std::bad_alloc.
  Result run(UpdateCall& call);

  // Seconds per Phase since this was last called, summed over threads; zeros unless profiling is on.
  void take_profile(double* seconds);
  void set_profiling(bool on) { profiling_ = on; }

 private:
  struct Lap;
  void work(int thread) noexcept;
  bool update(int thread, Lap& lap) noexcept;

  // The phases, in order; all threads meet after each.
  void gather_and_act(int thread, Lap& lap);
  void evaluate_critics(int thread, Lap& lap);
  void critic_gradients(int thread, Lap& lap);
  void critic_step(int thread, Lap& lap);
  void evaluate_policy_actions(int thread, Lap& lap);
  void action_gradients(int thread, Lap& lap);
  void actor_gradients(int thread, Lap& lap);
  void actor_step(int thread, Lap& lap);
  void finish(bool actor_turn);

  void gather(int64_t row, int64_t count, Scratch& scratch);
  void act(int64_t row, int64_t count, Operand input, int64_t input_row, bool next, Scratch& scratch);
  void evaluate(int64_t c, const float* params, char* const* forward, Operand input, const Operand* hidden,
                int64_t first, int64_t row, int64_t count, float* q) const;
  int64_t choose_rows(Scratch& scratch, int64_t counts[2]) const;
  void pack_critic(const Task& task);
  void pack_actor(const Task& task);
  void repack(int thread);
  AdamStep adam_step(int64_t t) const;

  template <typename F>
  void for_rows(int thread, F body) const;
  template <typename F>
  void for_critic_rows(int thread, F body) const;

  const UpdateSpec spec_;
  const Arithmetic& math_;
  ThreadPool pool_;
  Networks networks_;
  std::unique_ptr<Workspace> workspace_;
  std::vector<Task> critic_tasks_, actor_tasks_;

  // Of the call in progress.
  UpdateCall* call_ = nullptr;
  bool last_ = false;
  std::atomic<bool> finite_{true};

  bool profiling_ = false;
  std::vector<double> seconds_;  // [threads][kPhases]
};

}  // namespace sacfast::cpu
