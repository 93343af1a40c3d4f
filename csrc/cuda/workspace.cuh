// What the kernels of an update are given: where its numbers lie in one block of memory, and how the rows of
// a large batch are divided.
#pragma once

#include <algorithm>

#include "rows.cuh"

namespace sacfast::cuda {

// Pieces of one allocation; with a null base it counts only.
class Arena {
 public:
  explicit Arena(void* base) : base_(static_cast<char*>(base)) {}

  template <typename T>
  void take(T*& piece, int64_t count) {
    constexpr int64_t kAlign = 256;
    piece = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + used_);
    used_ += (count * static_cast<int64_t>(sizeof(T)) + kAlign - 1) / kAlign * kAlign;
  }

  // Rows begin at multiples of 16 bytes in every precision.
  template <typename T>
  void take(Rows<T>& rows, int64_t count, int64_t columns) {
    rows.stride = (columns + 7) / 8 * 8;
    take(rows.data, count * rows.stride);
  }

  int64_t used() const { return used_; }

 private:
  char* base_;
  int64_t used_ = 0;
};

template <Precision P>
class Workspace {
  using T = Stored<P>;

 public:
  Workspace(const UpdateSpec& spec, int multiprocessors) : spec(spec), multiprocessors(multiprocessors) {}

  // What a batch of this size needs.
  int64_t bytes(int64_t batch_size) const {
    Workspace other(spec, multiprocessors);
    Arena counting(nullptr);
    other.lay_out(counting, batch_size);
    return counting.used();
  }

  // For calls with these pointers and this batch size.
  void prepare(const UpdateCall& call, void* memory) {
    Arena arena(memory);
    lay_out(arena, call.batch_size);
    fill(call);
  }

  // Whether large tiles give the multiprocessors enough to do.
  bool large(int64_t batch_size) const {
    const int64_t width = spec.actor[spec.hidden_layers - 1].outputs;
    return 4 * tiles_of(batch_size, Large::kExtent) * tiles_of(width, Large::kExtent) >= multiprocessors;
  }

  struct Hidden {
    Rows<T> actor[kMaxHidden], next[kMaxHidden], critic[2][kMaxHidden], target[2][kMaxHidden];
    Rows<T> actor_gradient[kMaxHidden], critic_gradient[2][kMaxHidden];
  };

  Update<T> x = {};
  Hidden hidden = {};
  Trained critic = {}, actor = {};
  int critic_splits = 1, actor_splits = 1;  // blocks over which the rows of a weight's gradient are divided

 private:
  int splits(int64_t batch_size, const Layer* layers, int networks) const {
    int64_t tiles = 0;
    const int size = large(batch_size) ? Large::kExtent : Small::kExtent;
    for (int64_t l = 0; l < spec.hidden_layers; ++l) {
      tiles += networks * tiles_of(layers[l].outputs, size) * tiles_of(layers[l].inputs, size);
    }
    const int64_t wanted = 2 * multiprocessors / tiles, most = batch_size / kRowsPerSplit;
    return static_cast<int>(std::max<int64_t>(1, std::min(wanted, most)));
  }

  static int64_t parameters(const Layer* layers, int64_t count) {
    int64_t end = 0;
    for (int64_t l = 0; l < count; ++l) {
      end = std::max(
          {end, layers[l].weight + layers[l].outputs * layers[l].inputs, layers[l].bias + layers[l].outputs});
    }
    return end;
  }

  void lay_out(Arena& arena, int64_t B) {
    const int64_t O = spec.obs_dim, A = spec.action_dim, L = spec.hidden_layers;
    x = {};
    hidden = {};
    for (Rows<T>* pair : {&x.pair, &x.next_pair, &x.policy_pair}) arena.take(*pair, B, O + A);
    for (int64_t l = 0; l < L; ++l) {
      for (Rows<T>* rows : {&hidden.actor[l], &hidden.next[l], &hidden.actor_gradient[l]}) {
        arena.take(*rows, B, spec.actor[l].outputs);
      }
      for (int c = 0; c < 2; ++c) {
        for (Rows<T>* rows : {&hidden.critic[c][l], &hidden.target[c][l], &hidden.critic_gradient[c][l]}) {
          arena.take(*rows, B, spec.critic[c][l].outputs);
        }
      }
    }
    arena.take(x.head_gradient, B, 2 * A);
    for (float** numbers : {&x.mean, &x.log_std, &x.noise, &x.log_std_slope}) arena.take(*numbers, B * A);
    for (float** numbers : {&x.reward, &x.not_terminated, &x.next_log_prob, &x.log_prob, &x.target, &x.q[0],
                            &x.q[1], &x.q_gradient[0], &x.q_gradient[1], &x.q_policy}) {
      arena.take(*numbers, B);
    }
    arena.take(x.smaller, B);

    critic_splits = splits(B, spec.critic[0], 2);
    actor_splits = splits(B, spec.actor, 1);
    critic = {}, actor = {};
    critic.size = parameters(spec.critic[1], L + 1);
    actor.size = parameters(spec.actor, L + 2);
    if (critic_splits > 1) arena.take(critic.partial, critic_splits * critic.size);
    if (actor_splits > 1) arena.take(actor.partial, actor_splits * actor.size);
  }

  void fill(const UpdateCall& call) {
    const StatePointers& state = call.state;
    const int64_t L = spec.hidden_layers, O = spec.obs_dim;
    x.B = static_cast<int>(call.batch_size);
    x.O = static_cast<int>(O), x.A = static_cast<int>(spec.action_dim);
    x.H = static_cast<int>(spec.actor[L - 1].outputs),
    x.first_width = static_cast<int>(spec.critic[0][0].outputs);
    x.gamma = static_cast<float>(spec.gamma);
    x.log_std_bounds = spec.log_std;
    x.target_entropy = static_cast<float>(spec.target_entropy), x.learn_alpha = spec.learn_alpha != 0;
    x.log_alpha = state.log_alpha, x.alpha_m = state.alpha_m, x.alpha_v = state.alpha_v;
    x.metrics = call.metrics;
    x.mean_weight = state.actor + spec.actor[L].weight, x.mean_bias = state.actor + spec.actor[L].bias;
    x.log_std_weight = state.actor + spec.actor[L + 1].weight;
    x.log_std_bias = state.actor + spec.actor[L + 1].bias;
    x.actor_top = hidden.actor[L - 1], x.next_top = hidden.next[L - 1];
    x.actor_top_gradient = hidden.actor_gradient[L - 1];
    for (int c = 0; c < 2; ++c) {
      const Layer& value = spec.critic[c][L];
      x.value_weight[c] = state.critic + value.weight, x.value_bias[c] = state.critic + value.bias;
      x.target_weight[c] = state.critic_target + value.weight,
      x.target_bias[c] = state.critic_target + value.bias;
      x.action_weight[c] = state.critic + spec.critic[c][0].weight + O;
      x.critic_top[c] = hidden.critic[c][L - 1], x.target_top[c] = hidden.target[c][L - 1];
      x.critic_top_gradient[c] = hidden.critic_gradient[c][L - 1];
      x.critic_first_gradient[c] = hidden.critic_gradient[c][0];
    }
    critic.p = state.critic, critic.m = state.critic_m, critic.v = state.critic_v;
    critic.target = state.critic_target, critic.tau = static_cast<float>(spec.tau);
    actor.p = state.actor, actor.m = state.actor_m, actor.v = state.actor_v;
  }

  static constexpr int64_t kRowsPerSplit = 512;

  const UpdateSpec spec;
  const int multiprocessors;
};

}  // namespace sacfast::cuda
