#include "workspace.h"

#include <algorithm>
#include <cstring>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "sac_update.h"

namespace sacfast::cpu {
namespace {

int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

void take_activation(Arena& arena, const Arithmetic& math, Operand& operand, int64_t rows, int64_t columns) {
  operand.rows = rows;
  operand.columns = columns;
  arena.take(operand.data, math.activation_bytes(rows, columns));
}

void take_gradient(Arena& arena, const Arithmetic& math, Operand& operand, int64_t rows, int64_t columns) {
  operand.rows = rows;
  operand.columns = columns;
  arena.take(operand.data, math.gradient_bytes(rows, columns));
}

}  // namespace

void* Arena::allocate(int64_t bytes) {
  constexpr int64_t kHugePage =
      2 << 20;  // fewer misses of the page table's cache, where the system grants them
  bytes = round_up(std::max<int64_t>(bytes, 1), kHugePage);
  void* memory = std::aligned_alloc(kHugePage, bytes);
  if (memory == nullptr) throw std::bad_alloc();
#if defined(__linux__)
  madvise(memory, bytes, MADV_HUGEPAGE);
#endif
  return std::memset(memory, 0, bytes);
}

Networks::Networks(const UpdateSpec& spec, const Arithmetic& math) {
  const int64_t L = spec.hidden_layers, A = spec.action_dim;
  arena_.build([&](Arena& arena) {
    const auto forward = [&](char*& piece, int64_t outputs, int64_t inputs) {
      arena.take(piece, math.forward_bytes(outputs, inputs));
    };
    const auto backward = [&](char*& piece, int64_t outputs, int64_t inputs) {
      arena.take(piece, math.backward_bytes(outputs, inputs));
    };
    for (int64_t l = 0; l < L; ++l) {
      const Layer& layer = spec.actor[l];
      forward(actor_forward[l], layer.outputs, layer.inputs);
      if (l > 0) backward(actor_backward[l], layer.outputs, layer.inputs);
    }
    const int64_t width = spec.actor[L - 1].outputs;
    forward(actor_forward[L], 2 * A, width);
    backward(actor_backward[L], 2 * A, width);
    arena.take(head_weight, 2 * A * width);
    arena.take(head_bias, 2 * A);
    for (int c = 0; c < 2; ++c) {
      for (int64_t l = 0; l < L; ++l) {
        const Layer& layer = spec.critic[c][l];
        forward(critic_forward[c][l], layer.outputs, layer.inputs);
        forward(target_forward[c][l], layer.outputs, layer.inputs);
        backward(critic_backward[c][l], layer.outputs, l > 0 ? layer.inputs : A);
      }
    }
  });
}

namespace {

void take_scratch(Arena& arena, const UpdateSpec& spec, const Arithmetic& math, Scratch& scratch) {
  const int64_t L = spec.hidden_layers, O = spec.obs_dim, A = spec.action_dim;
  int64_t widest = O + A;
  take_activation(arena, math, scratch.obs, kChunkRows, O);
  for (int64_t l = 0; l < L; ++l) {  // actor and critics have the same widths
    const int64_t width = spec.critic[0][l].outputs;
    widest = std::max(widest, width);
    take_activation(arena, math, scratch.hidden[l], kChunkRows, width);
    take_gradient(arena, math, scratch.gradient[l], kChunkRows, width);
  }
  for (float** piece : {&scratch.pair, &scratch.next_pair}) arena.take(*piece, kChunkRows * (O + A));
  arena.take(scratch.head, kChunkRows * round_up(2 * A, 16));
  for (float** piece : {&scratch.mean, &scratch.log_std, &scratch.action}) {
    arena.take(*piece, kChunkRows * A);
  }
  arena.take(scratch.value, kChunkRows);
  arena.take(scratch.dw, kPanel * widest);
  arena.take(scratch.db, kPanel);
  arena.take(scratch.weights, math.weight_scratch_bytes(widest));
}

}  // namespace

Workspace::Workspace(const UpdateSpec& spec, const Arithmetic& math, int64_t batch_size)
    : B(batch_size), rows(round_up(batch_size, math.row_unit)), threads(spec.threads) {
  const int64_t L = spec.hidden_layers, O = spec.obs_dim, A = spec.action_dim;
  arena_.build([&](Arena& arena) {
    arena.take(indices, rows);
    arena.take(chosen_rows, 2 * rows + math.row_unit);
    take_activation(arena, math, obs, rows, O);
    for (Operand* operand : {&pair, &next_pair, &policy_pair}) {
      take_activation(arena, math, *operand, rows, O + A);
    }
    for (int64_t l = 0; l < L; ++l) {
      take_activation(arena, math, actor[l], rows, spec.actor[l].outputs);
      take_gradient(arena, math, actor_gradient[l], rows, spec.actor[l].outputs);
      for (int c = 0; c < 2; ++c) {
        take_activation(arena, math, critic[c][l], rows, spec.critic[c][l].outputs);
        take_gradient(arena, math, critic_gradient[c][l], rows, spec.critic[c][l].outputs);
      }
    }
    take_gradient(arena, math, head_gradient, rows, 2 * A);
    for (float** piece : {&mean, &log_std, &log_std_slope, &noise, &action_gradient}) {
      arena.take(*piece, rows * A);
    }
    for (float** piece :
         {&log_prob, &next_log_prob, &reward, &not_terminated, &target, &q[0], &q[1], &q_target[0],
          &q_target[1], &q_policy[0], &q_policy[1], &q_gradient[0], &q_gradient[1]}) {
      arena.take(*piece, rows);
    }
    for (Scratch& scratch : threads) take_scratch(arena, spec, math, scratch);
  });
}

}  // namespace sacfast::cpu
