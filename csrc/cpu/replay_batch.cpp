// index_i = floor(r_i * size / 2^64), with r_i the i-th 64 bits of the key's Philox stream
// out_i = (obs, action, reward, next obs, terminated) of transition index_i, in float32
//
// Parallel over samples (the caller's threads). A record is asked for 2 kAhead rows before it is copied; its
// link has then arrived kAhead rows before, and the next observation is asked for.
#include <algorithm>

#include "kernels.h"
#include "rows.h"

namespace sacfast::cpu {
namespace {

constexpr int64_t kChunk = 256;
constexpr int64_t kAhead = 24;

inline void load_row(float* out, const float* row, int64_t n) {
  copy_row(reinterpret_cast<char*>(out), reinterpret_cast<const char*>(row),
           n * static_cast<int64_t>(sizeof(float)));
}
inline void load_row(float* out, const Float16* row, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = float16_to_float(row[i]);
}
inline void load_row(float* out, const BFloat16* row, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = bfloat16_to_float(row[i]);
}

template <typename Obs>
void gather_as(const Transitions& from, int64_t O, int64_t A, const int64_t* indices, int64_t n,
               const BatchRows& out) {
  const auto* const obs = static_cast<const Obs*>(from.obs);
  const auto* const next_obs = static_cast<const Obs*>(from.next_obs);
  const int64_t obs_bytes = O * static_cast<int64_t>(sizeof(Obs));
  const auto following = [&](int64_t row) {
    if (from.link == nullptr) return next_obs + row * from.next_obs_stride;
    const int64_t next = next_row(from.link[row * from.link_stride]);
    return next < from.capacity ? obs + next * from.obs_stride
                                : next_obs + (next - from.capacity) * from.next_obs_stride;
  };
  const auto prefetch = [](const void* row, int64_t bytes) {
    prefetch_row(static_cast<const char*>(row), bytes);
  };
  // A record's obs, action, reward and link are neighbours; in a batch the fields are apart, but in order.
  const int64_t record_bytes =
      from.link == nullptr ? obs_bytes : obs_bytes + (A + 2) * static_cast<int64_t>(sizeof(float));
  for (int64_t i = -2 * kAhead; i < n; ++i) {
    if (i + 2 * kAhead < n) prefetch(obs + indices[i + 2 * kAhead] * from.obs_stride, record_bytes);
    if (i >= -kAhead && i + kAhead < n) prefetch(following(indices[i + kAhead]), obs_bytes);
    if (i < 0) continue;
    const int64_t row = indices[i];
    load_row(out.obs + i * out.obs_stride, obs + row * from.obs_stride, O);
    load_row(out.action + i * out.action_stride, from.action + row * from.action_stride, A);
    load_row(out.next_obs + i * out.next_obs_stride, following(row), O);
    out.reward[i] = from.reward[row * from.reward_stride];
    out.terminated[i] = from.link == nullptr
                            ? from.terminated[row * from.terminated_stride]
                            : static_cast<float>(is_terminated(from.link[row * from.link_stride]));
  }
}

}  // namespace

void gather(const Transitions& from, int64_t O, int64_t A, const int64_t* indices, int64_t n,
            const BatchRows& out) {
  switch (from.obs_type) {
    case kFloat16:
      return gather_as<Float16>(from, O, A, indices, n, out);
    case kBFloat16:
      return gather_as<BFloat16>(from, O, A, indices, n, out);
    default:
      return gather_as<float>(from, O, A, indices, n, out);
  }
}

void replay_batch(const Transitions& from, int64_t O, int64_t A, const int64_t* key, const BatchRows& out,
                  int64_t begin, int64_t end) {
  const PhiloxKey philox = philox_key(key);
  for (int64_t i = begin; i < end; i += kChunk) {
    int64_t drawn[kChunk];
    draw_indices(philox, i, i + kChunk, from.size, drawn);
    gather(from, O, A, drawn, std::min(kChunk, end - i), out.from(i));
  }
}

}  // namespace sacfast::cpu
