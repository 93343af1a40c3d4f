// One SAC update (arXiv:1812.05905, algorithm 1; sacfast/engines/reference.py is the readable version), in
// eight phases, each of which begins when the one before has ended:
//
//   gather_and_act            batch;  a' ~ pi(s'), a ~ pi(s)
//   evaluate_critics          Qbar_i(s', a') and Q_i(s, a_batch)
//   critic_gradients          y = r + gamma (1 - d) [min_i Qbar_i - alpha log pi(a'|s')],
//                             dJ/dQ_i = 2/B (Q_i - y), and back through the layers' inputs
//   critic_step               weight gradients; Adam, Polyak and packing of each panel while it is in cache
//   evaluate_policy_actions   Q_i(s, a) with the new critics
//   action_gradients          d/da of -1/B min_i Q_i, each critic on the rows where it is the smaller
//   actor_gradients           through tanh and the Gaussian, and back through the layers' inputs
//   actor_step                weight gradients, Adam, packing; the temperature
//
// The policy does not change between its two uses of an update, so both are taken from one pass; what a pass
// needs only for itself stays in a chunk of rows per thread.
#include "sac_update.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "kernels.h"

namespace sacfast::cpu {
namespace {

double sum(const float* values, int64_t n) {
  double total = 0;
  for (int64_t i = 0; i < n; ++i) total += values[i];
  return total;
}

}  // namespace

// ---------------------------------------------------------------------------------------------- phases

const SacUpdate::Step SacUpdate::kSteps[] = {
    {kCriticTasks, &SacUpdate::pack_critic},  // once, if the call asks for it
    {kActorTasks, &SacUpdate::pack_actor},
    {kRows, &SacUpdate::gather_and_act},  // kUpdate: every update
    {kCriticRows, &SacUpdate::evaluate_critics},
    {kCriticRows, &SacUpdate::critic_gradients},
    {kCriticTasks, &SacUpdate::critic_step},
    {kCriticRows, &SacUpdate::evaluate_policy_actions},  // kActor: where it is the actor's turn
    {kChosenRows, &SacUpdate::action_gradients},
    {kRows, &SacUpdate::actor_gradients},
    {kActorTasks, &SacUpdate::actor_step},
};

// ------------------------------------------------------------------------------------- batch and policy

// Transitions [row, row + count) into scratch.pair and next_pair (whose action follows) and the workspace;
// rows beyond the batch become zeros.
void SacUpdate::gather(int64_t row, int64_t count, Scratch& scratch) {
  Workspace& w = *workspace_;
  const Transitions& from = call_->transitions;
  const int64_t O = spec_.obs_dim, A = spec_.action_dim, I = O + A;
  const int64_t n = std::clamp<int64_t>(w.B - row, 0, count);
  if (from.link == nullptr) std::iota(w.indices + row, w.indices + row + n, row);
  float* const terminated = w.not_terminated + row;
  cpu::gather(from, O, A, w.indices + row, n,
              {scratch.pair, scratch.pair + O, w.reward + row, scratch.next_pair, terminated, I, I, I});
  for (int64_t i = 0; i < n; ++i) terminated[i] = 1.0f - terminated[i];
  std::fill(scratch.pair + n * I, scratch.pair + count * I, 0.0f);
  std::fill(scratch.next_pair + n * I, scratch.next_pair + count * I, 0.0f);
  std::fill(w.reward + row + n, w.reward + row + count, 0.0f);
  std::fill(w.not_terminated + row + n, w.not_terminated + row + count, 0.0f);

  for (int64_t i = 0; i < n; ++i) std::fill_n(scratch.next_pair + i * I + O, A, 0.0f);
  const bool finite = math_.finite(scratch.pair, n * I) && math_.finite(scratch.next_pair, n * I) &&
                      math_.finite(w.reward + row, n) && math_.finite(w.not_terminated + row, n);
  if (!finite) finite_.store(false, std::memory_order_relaxed);

  if (call_->statistics.shift == nullptr) return;
  for (float* const rows : {scratch.pair, scratch.next_pair}) {
    for (int64_t i = 0; i < n; ++i) normalise(call_->statistics, rows + i * I, O, rows + i * I);
  }
}

// The policy on rows of `input`, from `input_row` on: actions into scratch.action, the rest where `pass`
// says.
void SacUpdate::act(int64_t row, int64_t count, Operand input, int64_t input_row, const PolicyPass& pass,
                    Scratch& scratch) {
  const int64_t L = spec_.hidden_layers, A = spec_.action_dim, stride = (2 * A + 15) / 16 * 16;
  for (int64_t l = 0; l < L; ++l) {
    math_.hidden(l == 0 ? input : pass.hidden[l - 1], l == 0 ? input_row : pass.first, pass.hidden[l],
                 pass.first, count, networks_.actor_forward[l], call_->state.actor + spec_.actor[l].bias);
  }
  math_.output(pass.hidden[L - 1], pass.first, count, networks_.actor_forward[L], networks_.head_bias, 2 * A,
               scratch.head, stride);

  const int64_t n = std::clamp<int64_t>(workspace_->B - row, 0, count);
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t a = 0; a < A; ++a) {
      const Pair<float> bounded = bounded_log_std(scratch.head[i * stride + A + a], spec_.log_std);
      pass.mean[i * A + a] = scratch.head[i * stride + a];
      pass.log_std[i * A + a] = bounded.first;
      if (pass.slope != nullptr) pass.slope[i * A + a] = bounded.second;
    }
  }

  float* const noise = workspace_->noise + row * A;
  if (pass.noise != nullptr) {
    memcpy(noise, pass.noise + row * A, n * A * sizeof(float));
  } else {
    const int64_t key[] = {call_->state.seed, pass.stream, call_->state.step};
    normal<float>(key, workspace_->noise, row * A, (row + n) * A);
  }
  squashed_gaussian<float>(pass.mean, pass.log_std, noise, scratch.action, pass.log_prob, A, 0, n);
}

void SacUpdate::gather_and_act(const Piece& piece, Scratch& scratch, Lap& lap) {
  Workspace& w = *workspace_;
  const auto [row, count] = piece.rows;
  const int64_t O = spec_.obs_dim, A = spec_.action_dim, I = O + A;
  if (call_->transitions.link != nullptr) {
    const int64_t key[] = {call_->state.seed, kBatch, call_->state.step};
    draw_indices(philox_key(key), row, row + count, call_->transitions.size, w.indices + row);
  }
  gather(row, count, scratch);
  const int64_t n = std::clamp<int64_t>(w.B - row, 0, count);
  const auto place_action = [&](float* pairs) {
    for (int64_t i = 0; i < n; ++i) memcpy(pairs + i * I + O, scratch.action + i * A, A * sizeof(float));
  };
  math_.store_activation(scratch.pair, I, w.pair, row, count);
  math_.store_activation(scratch.next_pair, I, scratch.obs, 0, count);
  lap.mark(kGather);

  act(row, count, scratch.obs, 0,
      {scratch.hidden, 0, scratch.mean, scratch.log_std, nullptr, w.next_log_prob + row, call_->next_noise,
       kNextAction},
      scratch);
  place_action(scratch.next_pair);
  math_.store_activation(scratch.next_pair, I, w.next_pair, row, count);
  if (actor_turn()) {
    math_.store_activation(scratch.pair, I, w.obs, row, count);
    act(row, count, w.obs, row,
        {w.actor, row, w.mean + row * A, w.log_std + row * A, w.log_std_slope + row * A, w.log_prob + row,
         call_->noise, kAction},
        scratch);
    place_action(scratch.pair);
    math_.store_activation(scratch.pair, I, w.policy_pair, row, count);
  }
  lap.mark(kActorForward);
}

// --------------------------------------------------------------------------------------------- critics

// q[row + i] = Q_c of rows of `input`, with `params` and their packed weights `forward`; the hidden layers
// into `hidden` from its row `first` on.
void SacUpdate::evaluate(int64_t c, const float* params, char* const* forward, Operand input,
                         const Operand* hidden, int64_t first, int64_t row, int64_t count, float* q) const {
  const int64_t L = spec_.hidden_layers;
  const Layer* const layers = spec_.critic[c];
  for (int64_t l = 0; l < L; ++l) {
    math_.hidden(l == 0 ? input : hidden[l - 1], l == 0 ? row : first, hidden[l], first, count, forward[l],
                 params + layers[l].bias);
  }
  math_.value(hidden[L - 1], first, count, params + layers[L].weight, params[layers[L].bias], q + row);
}

void SacUpdate::evaluate_critics(const Piece& piece, Scratch& scratch, Lap& lap) {
  Workspace& w = *workspace_;
  const auto [row, count] = piece.rows;
  const int64_t c = piece.critic;
  evaluate(c, call_->state.critic_target, networks_.target_forward[c], w.next_pair, scratch.hidden, 0, row,
           count, w.q_target[c]);
  lap.mark(kTarget);
  evaluate(c, call_->state.critic, networks_.critic_forward[c], w.pair, w.critic[c], row, row, count, w.q[c]);
  lap.mark(kCriticForward);
}

void SacUpdate::critic_gradients(const Piece& piece, Scratch&, Lap& lap) {
  Workspace& w = *workspace_;
  const auto [row, count] = piece.rows;
  const int64_t c = piece.critic, L = spec_.hidden_layers;
  const float alpha = std::exp(*call_->state.log_alpha), gamma = static_cast<float>(spec_.gamma);
  const float scale = 2.0f / static_cast<float>(w.B);
  for (int64_t i = row; i < row + count; ++i) {
    const float y = td_target(w.reward[i], w.not_terminated[i], w.q_target[0][i], w.q_target[1][i],
                              w.next_log_prob[i], alpha, gamma);
    if (c == 0) w.target[i] = y;
    w.q_gradient[c][i] = i < w.B ? scale * (w.q[c][i] - y) : 0.0f;
  }
  const Operand* const hidden = w.critic[c];
  const Operand* const gradient = w.critic_gradient[c];
  math_.value_gradient(w.q_gradient[c] + row, call_->state.critic + spec_.critic[c][L].weight, hidden[L - 1],
                       row, nullptr, gradient[L - 1], row, count);
  for (int64_t l = L - 1; l > 0; --l) {
    math_.hidden_gradient(gradient[l], row, networks_.critic_backward[c][l], hidden[l - 1], row, nullptr,
                          gradient[l - 1], row, count);
  }
  lap.mark(kCriticBackward);
}

void SacUpdate::critic_step(const Piece& piece, Scratch& scratch, Lap& lap) {
  Workspace& w = *workspace_;
  const Task& task = *piece.task;
  const StatePointers& state = call_->state;
  const AdamStep step = adam_step(spec_, spec_.lr.critic, state.critic_adam_step + 1);
  const float tau = static_cast<float>(spec_.tau);
  const int64_t L = spec_.hidden_layers, c = task.network, l = task.layer;
  const Layer& layer = spec_.critic[c][l];
  const auto apply = [&](const float* gradient, int64_t offset, int64_t n) {
    math_.adam_polyak(state.critic + offset, state.critic_m + offset, state.critic_v + offset, gradient,
                      state.critic_target + offset, n, step, tau);
  };
  if (l == L) {
    math_.value_weight_gradient(w.q_gradient[c], w.critic[c][L - 1], task.begin, task.end, scratch.dw);
    scratch.db[0] = static_cast<float>(sum(w.q_gradient[c], w.B));
    lap.mark(kCriticBackward);
    apply(scratch.dw, layer.weight, layer.inputs);
    apply(scratch.db, layer.bias, 1);
  } else {
    math_.weight_gradient(w.critic_gradient[c][l], task.begin, task.end, l == 0 ? w.pair : w.critic[c][l - 1],
                          scratch.dw, scratch.db, scratch.weights);
    lap.mark(kCriticBackward);
    apply(scratch.dw, layer.weight + task.begin * layer.inputs, (task.end - task.begin) * layer.inputs);
    apply(scratch.db, layer.bias + task.begin, task.end - task.begin);
  }
  pack_critic(piece, scratch, lap);
}

// Packs a task's weights of a critic and of its target; a value layer has no packed form.
void SacUpdate::pack_critic(const Piece& piece, Scratch&, Lap& lap) {
  const Task& task = *piece.task;
  const int64_t c = task.network, l = task.layer, O = spec_.obs_dim, A = spec_.action_dim;
  if (l == spec_.hidden_layers) return lap.mark(kAdam);
  const Layer& layer = spec_.critic[c][l];
  const float* const weight = call_->state.critic + layer.weight;
  math_.pack_forward(weight, layer.inputs, layer.outputs, layer.inputs, task.begin, task.end,
                     networks_.critic_forward[c][l]);
  math_.pack_forward(call_->state.critic_target + layer.weight, layer.inputs, layer.outputs, layer.inputs,
                     task.begin, task.end, networks_.target_forward[c][l]);
  math_.pack_backward(weight + (l == 0 ? O : 0), layer.inputs, layer.outputs, l == 0 ? A : layer.inputs,
                      task.begin, task.end, networks_.critic_backward[c][l]);
  lap.mark(kAdam);
}

// ----------------------------------------------------------------------------------------------- actor

void SacUpdate::evaluate_policy_actions(const Piece& piece, Scratch&, Lap& lap) {
  Workspace& w = *workspace_;
  const auto [row, count] = piece.rows;
  const int64_t c = piece.critic;
  evaluate(c, call_->state.critic, networks_.critic_forward[c], w.policy_pair, w.critic[c], row, row, count,
           w.q_policy[c]);
  lap.mark(kActorCritic);
}

void SacUpdate::action_gradients(const Piece& piece, Scratch& scratch, Lap& lap) {
  Workspace& w = *workspace_;
  const auto [first, count] = piece.rows;
  const int64_t c = piece.critic, L = spec_.hidden_layers, A = spec_.action_dim, stride = (A + 15) / 16 * 16;
  const int64_t n = std::clamp<int64_t>(w.chosen_count[c] - first, 0, count);
  const int32_t* const rows = w.chosen[c] + first;
  std::fill_n(scratch.value, n, -1.0f / static_cast<float>(w.B));
  std::fill(scratch.value + n, scratch.value + count, 0.0f);
  math_.value_gradient(scratch.value, call_->state.critic + spec_.critic[c][L].weight, w.critic[c][L - 1], 0,
                       rows, scratch.gradient[L - 1], 0, count);
  for (int64_t l = L - 1; l > 0; --l) {
    math_.hidden_gradient(scratch.gradient[l], 0, networks_.critic_backward[c][l], w.critic[c][l - 1], 0,
                          rows, scratch.gradient[l - 1], 0, count);
  }
  math_.input_gradient(scratch.gradient[0], 0, count, networks_.critic_backward[c][0], A, scratch.head,
                       stride);
  for (int64_t i = 0; i < n; ++i) {
    memcpy(w.action_gradient + rows[i] * A, scratch.head + i * stride, A * sizeof(float));
  }
  lap.mark(kActorCritic);
}

void SacUpdate::actor_gradients(const Piece& piece, Scratch& scratch, Lap& lap) {
  Workspace& w = *workspace_;
  const auto [row, count] = piece.rows;
  const int64_t L = spec_.hidden_layers, A = spec_.action_dim;
  const int64_t n = std::clamp<int64_t>(w.B - row, 0, count);
  std::fill_n(scratch.value, n, std::exp(*call_->state.log_alpha) / static_cast<float>(w.B));
  float* const grad_mean = scratch.mean;
  float* const grad_log_std = scratch.log_std;
  squashed_gaussian_backward<float>(w.action_gradient + row * A, scratch.value, w.mean + row * A,
                                    w.log_std + row * A, w.noise + row * A, grad_mean, grad_log_std, A, 0, n);
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t a = 0; a < A; ++a) {
      scratch.head[i * 2 * A + a] = grad_mean[i * A + a];
      scratch.head[i * 2 * A + A + a] = grad_log_std[i * A + a] * w.log_std_slope[(row + i) * A + a];
    }
  }
  std::fill(scratch.head + n * 2 * A, scratch.head + count * 2 * A, 0.0f);
  math_.store_gradient(scratch.head, 2 * A, w.head_gradient, row, count);
  for (int64_t l = L; l > 0; --l) {
    math_.hidden_gradient(l == L ? w.head_gradient : w.actor_gradient[l], row, networks_.actor_backward[l],
                          w.actor[l - 1], row, nullptr, w.actor_gradient[l - 1], row, count);
  }
  lap.mark(kActorBackward);
}

void SacUpdate::actor_step(const Piece& piece, Scratch& scratch, Lap& lap) {
  Workspace& w = *workspace_;
  const Task& task = *piece.task;
  const StatePointers& state = call_->state;
  const AdamStep step = adam_step(spec_, spec_.lr.actor, state.actor_adam_step + 1);
  const int64_t l = task.layer, L = spec_.hidden_layers, A = spec_.action_dim;
  math_.weight_gradient(l == L ? w.head_gradient : w.actor_gradient[l], task.begin, task.end,
                        l == 0 ? w.obs : w.actor[l - 1], scratch.dw, scratch.db, scratch.weights);
  lap.mark(kActorBackward);
  // Outputs [begin, end) of the gradient belong to `layer` from its output `first` on.
  const auto apply = [&](const Layer& layer, int64_t first, int64_t begin, int64_t end) {
    if (begin >= end) return;
    const auto pass = [&](const float* gradient, int64_t offset, int64_t n) {
      math_.adam(state.actor + offset, state.actor_m + offset, state.actor_v + offset, gradient, n, step);
    };
    pass(scratch.dw + (begin - task.begin) * layer.inputs, layer.weight + first * layer.inputs,
         (end - begin) * layer.inputs);
    pass(scratch.db + (begin - task.begin), layer.bias + first, end - begin);
  };
  if (l < L) {
    apply(spec_.actor[l], task.begin, task.begin, task.end);
  } else {
    apply(spec_.actor[L], task.begin, task.begin, std::min(task.end, A));
    apply(spec_.actor[L + 1], std::max(task.begin - A, int64_t{0}), std::max(task.begin, A), task.end);
  }
  pack_actor(piece, scratch, lap);
}

void SacUpdate::pack_actor(const Piece& piece, Scratch&, Lap& lap) {
  const Task& task = *piece.task;
  const int64_t l = task.layer, L = spec_.hidden_layers, A = spec_.action_dim;
  const float* const params = call_->state.actor;
  const Layer& layer = spec_.actor[l];
  const float* weight = params + layer.weight;
  int64_t outputs = layer.outputs;
  if (l == L) {  // mean and log_std as one layer
    for (int64_t o = task.begin; o < task.end; ++o) {
      const Layer& half = spec_.actor[o < A ? L : L + 1];
      const int64_t output = o < A ? o : o - A;
      memcpy(networks_.head_weight + o * layer.inputs, params + half.weight + output * layer.inputs,
             layer.inputs * sizeof(float));
      networks_.head_bias[o] = params[half.bias + output];
    }
    weight = networks_.head_weight;
    outputs = 2 * A;
  }
  math_.pack_forward(weight, layer.inputs, outputs, layer.inputs, task.begin, task.end,
                     networks_.actor_forward[l]);
  if (l > 0) {
    math_.pack_backward(weight, layer.inputs, outputs, layer.inputs, task.begin, task.end,
                        networks_.actor_backward[l]);
  }
  lap.mark(kAdam);
}

// ---------------------------------------------------------------------------- temperature and metrics

// J(alpha) = -log alpha * mean [log pi(a|s) + target entropy]; then the counters, and the metrics if this is
// the call's last update. One thread, between phases.
void SacUpdate::end_update(bool last) {
  Workspace& w = *workspace_;
  StatePointers& state = call_->state;
  float* const metrics = call_->metrics;
  const double n = static_cast<double>(w.B);
  if (actor_turn()) {
    const double log_prob = sum(w.log_prob, w.B) / n;
    double value = 0;
    for (int64_t i = 0; i < w.B; ++i) {
      value += w.q_policy[second_is_least(w.q_policy[0][i], w.q_policy[1][i])][i];
    }
    metrics[1] = static_cast<float>(std::exp(*state.log_alpha) * log_prob - value / n);
    metrics[2] = 0.0f;
    metrics[6] = static_cast<float>(log_prob);
    if (spec_.learn_alpha) {
      const float gradient = static_cast<float>(-(log_prob + spec_.target_entropy));
      metrics[2] = *state.log_alpha * gradient;
      math_.adam(state.log_alpha, state.alpha_m, state.alpha_v, &gradient, 1,
                 adam_step(spec_, spec_.lr.alpha, ++state.alpha_adam_step));
    }
    ++state.actor_adam_step;
  }
  if (last) {
    double squares = 0;
    for (int c = 0; c < 2; ++c) {
      for (int64_t i = 0; i < w.B; ++i) {
        const double difference = double{w.q[c][i]} - w.target[i];
        squares += difference * difference;
      }
      metrics[4 + c] = static_cast<float>(sum(w.q[c], w.B) / n);
    }
    metrics[0] = static_cast<float>(squares / n);
    metrics[3] = std::exp(*state.log_alpha);
  }
  ++state.critic_adam_step;
  ++state.step;
}

}  // namespace sacfast::cpu
