// The memory of an update, allocated once for a batch size: what lies where, and nothing of what is computed.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <vector>

#include "arithmetic.h"
#include "engine.h"

namespace sacfast::cpu {

// Outputs [begin, end) of one layer: the unit of weight gradients, Adam and packing. `layer` counts from 0;
// the number of hidden layers stands for a critic's value and for the actor's head.
struct Task {
  int64_t network, layer, begin, end;
  int64_t cost;
};

// One zeroed allocation, handed out in pieces of 64-byte alignment. Successive pieces begin at different
// offsets within 4 KB, because loads and stores at equal ones wait for each other.
class Arena {
 public:
  // Lays out with `place(arena)` twice: first to count, then in memory. Throws std::bad_alloc.
  template <typename F>
  void build(F place) {
    used_ = 0;
    place(*this);
    memory_.reset(static_cast<char*>(allocate(used_)));
    used_ = 0;
    place(*this);
  }

  template <typename T>
  void take(T*& piece, int64_t count) {
    piece = memory_ ? reinterpret_cast<T*>(memory_.get() + used_) : nullptr;
    used_ += (count * static_cast<int64_t>(sizeof(T)) + kLine - 1) / kLine * kLine + kStagger;
  }

 private:
  static constexpr int64_t kLine = 64, kStagger = 5 * kLine;
  struct Free {
    void operator()(char* memory) const { std::free(memory); }
  };
  static void* allocate(int64_t bytes);

  std::unique_ptr<char, Free> memory_;
  int64_t used_ = 0;
};

// The packed copies of the weights. A critic's first backward pack holds its action columns alone; its value
// layer and the actor's input gradient need none.
struct Networks {
  Networks(const UpdateSpec& spec, const Arithmetic& math);

  char* actor_forward[kMaxHidden + 1];
  char* actor_backward[kMaxHidden + 1];
  char* critic_forward[2][kMaxHidden];
  char* critic_backward[2][kMaxHidden];
  char* target_forward[2][kMaxHidden];
  float* head_weight;  // mean and log_std as one layer [2 A][H]
  float* head_bias;

 private:
  Arena arena_;
};

// One thread's memory, for a chunk of rows at a time.
struct Scratch {
  Operand obs, hidden[kMaxHidden], gradient[kMaxHidden];  // [kChunkRows, ...]
  float *pair, *next_pair;                                // [kChunkRows][O + A]: rows (s, a) and (s', a')
  float *head, *mean, *log_std, *action;                  // [kChunkRows][2 A padded], then [kChunkRows][A]
  float* value;                                           // [kChunkRows]
  float *dw, *db;                                         // one task's gradient
  char* weights;
};

struct Workspace {
  Workspace(const UpdateSpec& spec, const Arithmetic& math, int64_t batch_size);

  const int64_t B, rows;  // the batch, and the same padded to the arithmetic's row_unit

  int64_t* indices;                                  // [rows]
  Operand obs, pair, next_pair, policy_pair;         // s; (s, a); (s', a'); (s, pi(s))
  Operand actor[kMaxHidden], critic[2][kMaxHidden];  // hidden layers on s and (s, a), then on (s, pi(s))
  Operand actor_gradient[kMaxHidden], critic_gradient[2][kMaxHidden], head_gradient;
  float *mean, *log_std, *noise, *action_gradient;          // [rows][A]
  float* log_std_slope;                                     // [rows][A]: of bounded_log_std
  float *log_prob, *next_log_prob;                          // [rows]
  float *reward, *not_terminated, *target;                  // [rows]
  float *q[2], *q_target[2], *q_policy[2], *q_gradient[2];  // [rows]
  int32_t *chosen_rows, *chosen[2];  // [2 rows]; in it, the rows where each critic is the smaller, padded
  int64_t chosen_count[2];
  std::vector<Scratch> threads;

 private:
  Arena arena_;
};

}  // namespace sacfast::cpu
