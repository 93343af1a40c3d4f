// The whole SAC update (arXiv:1812.05905, algorithm 1) as one call on the CPU: the class behind the C
// interface of engine.cpp.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
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

class SacUpdate final : Phases {
 public:
  enum Result { kApplied, kNotFinite };

  // Throws std::bad_alloc and std::system_error.
  SacUpdate(const UpdateSpec& spec, const Arithmetic& arithmetic);
  ~SacUpdate() { finish(); }

  // One caller at a time. Advances call.state. kNotFinite: a transition of the batch at state.step holds a
  // NaN or an infinity; the updates before it were applied, it was not. Throws std::bad_alloc.
  Result run(UpdateCall& call) {
    start(call);
    return finish();
  }

  // The same in two: between them the other threads work, while the caller does something else. `call` and
  // what it points to must live until `finish` has returned, which does nothing where nothing was started.
  void start(UpdateCall& call);
  Result finish();

  // Seconds per Phase since this was last called, summed over threads; zeros unless profiling is on.
  void take_profile(double* seconds);
  void set_profiling(bool on) { profiling_ = on; }

 private:
  // Attributes the time since the last mark, in one piece, to a phase; costs nothing while profiling is off.
  struct Lap {
    double* seconds;
    std::chrono::steady_clock::time_point last{};

    explicit Lap(double* phases) : seconds(phases) {
      if (seconds) last = std::chrono::steady_clock::now();
    }

    void mark(Phase phase) {
      if (!seconds) return;
      const auto now = std::chrono::steady_clock::now();
      seconds[phase] += std::chrono::duration<double>(now - last).count();
      last = now;
    }
  };

  // What one call of a phase's function does: a chunk of rows (of one critic, where it is about critics), or
  // the weights of one task.
  struct Rows {
    int64_t first, count;
  };
  struct Piece {
    int64_t critic;
    Rows rows;
    const Task* task;
  };
  // How a phase is cut into pieces.
  enum Cut : int { kRows, kCriticRows, kChosenRows, kCriticTasks, kActorTasks, kCuts };
  struct Step {
    Cut cut;
    void (SacUpdate::*run)(const Piece& piece, Scratch& scratch, Lap& lap);
  };
  // Where one of the policy's two passes leaves what it computes: on s', of which only the action and its
  // log-density are needed, or on s, of which the backward pass needs the rest.
  struct PolicyPass {
    const Operand* hidden;  // layers, from row `first` on
    int64_t first;
    float *mean, *log_std;
    float* slope;  // of log_std's bounds, or null
    float* log_prob;
    const float* noise;  // given, of all rows, or null: drawn from `stream`
    Stream stream;
  };
  enum : int { kUpdate = 2, kActor = 6, kEnd = 10 };
  static const Step kSteps[kEnd];

  bool next(int64_t* counts) noexcept override;
  void piece(int thread, int owner, int64_t index) noexcept override;

  // The phases, in order; each begins when the one before has ended.
  void gather_and_act(const Piece& piece, Scratch& scratch, Lap& lap);
  void evaluate_critics(const Piece& piece, Scratch& scratch, Lap& lap);
  void critic_gradients(const Piece& piece, Scratch& scratch, Lap& lap);
  void critic_step(const Piece& piece, Scratch& scratch, Lap& lap);
  void evaluate_policy_actions(const Piece& piece, Scratch& scratch, Lap& lap);
  void action_gradients(const Piece& piece, Scratch& scratch, Lap& lap);
  void actor_gradients(const Piece& piece, Scratch& scratch, Lap& lap);
  void actor_step(const Piece& piece, Scratch& scratch, Lap& lap);
  void end_update(bool last);

  void gather(int64_t row, int64_t count, Scratch& scratch);
  void act(int64_t row, int64_t count, Operand input, int64_t input_row, const PolicyPass& pass,
           Scratch& scratch);
  void evaluate(int64_t c, const float* params, char* const* forward, Operand input, const Operand* hidden,
                int64_t first, int64_t row, int64_t count, float* q) const;
  void pack_critic(const Piece& piece, Scratch& scratch, Lap& lap);
  void pack_actor(const Piece& piece, Scratch& scratch, Lap& lap);

  bool actor_turn() const { return call_->state.step % spec_.actor_update_period == 0; }
  void make_room(int64_t batch_size);
  void choose_rows();
  void cut_rows(Cut cut, const int64_t (&rows)[2]);
  void cut_tasks(Cut cut, const std::vector<Task>& tasks);

  const UpdateSpec spec_;
  const Arithmetic& math_;
  ThreadPool pool_;
  Networks networks_;
  std::unique_ptr<Workspace> workspace_;
  std::vector<Task> critic_tasks_, actor_tasks_;
  std::vector<std::vector<Piece>> pieces_[kCuts];  // [cut][thread]: its own

  // Of the call in progress.
  UpdateCall* call_ = nullptr;
  int step_ = 0;         // the phase under way
  int64_t updates_ = 0;  // done
  std::atomic<bool> finite_{true};

  bool profiling_ = false;
  std::vector<double> seconds_;  // [threads][kPhases], but for kWaiting
  double all_seconds_ = 0;       // of all threads
  std::chrono::steady_clock::time_point begin_{};
};

}  // namespace sacfast::cpu
