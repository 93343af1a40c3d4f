// The whole SAC update (arXiv:1812.05905, algorithm 1) as one call on the CPU: the class behind the C
// interface of engine.cpp.
#pragma once

#include <atomic>
#include <cstdint>
#include <future>
#include <memory>
#include <vector>

#include "arithmetic.h"
#include "engine.h"
#include "threads.h"
#include "workspace.h"

namespace sacfast::cpu {

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

  // The same on a thread of its own, while the caller does something else; `wait` returns the result, or
  // throws what `run` would. `call` and what it points to must live until then. Throws std::system_error.
  void start(UpdateCall& call);
  Result wait() { return running_.get(); }

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

  std::future<Result> running_;  // last, and so the first to go: its destructor waits
};

}  // namespace sacfast::cpu
