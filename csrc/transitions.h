// Where transitions lie in memory, for readers on every device; sacfast/replay/ring.py writes it.
#pragma once

#include <cstdint>

#include "philox.h"

namespace sacfast {

enum ObsType : int64_t { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2 };  // as in sacfast/ops/replay_batch.py

// Rows of transitions, each field `stride` of its elements from one row to the next.
//
// Without `link` they are a batch: row i of every field is transition i, and obs_type is kFloat32. With it
// they are a replay memory, whose first `size` rows of `capacity` are transitions, and `terminated` is not
// read. The observation after row i is then, by link[i] (next_row), a row of `obs`, or from `capacity` on a
// row of `next_obs`, the table of those that are no row's obs.
struct Transitions {
  const void* obs;
  const float *action, *reward;
  const void* next_obs;
  const float* terminated;
  const int32_t* link;
  int64_t obs_stride, action_stride, reward_stride, next_obs_stride, terminated_stride, link_stride;
  int64_t size, capacity, obs_type;
};

SACFAST_HD bool is_terminated(int32_t link) { return link < 0; }
SACFAST_HD int64_t next_row(int32_t link) { return link < 0 ? ~link : link; }

}  // namespace sacfast
