// The kernels that bindings.cpp calls. They assume what bindings.cpp has checked: contiguous buffers of the
// given sizes, sizes that fit, and for CUDA the right device. CPU functions work on a range [begin, end), so
// that the caller divides the work between threads; CUDA launchers enqueue on `stream` (a cudaStream_t) and
// return the cudaError_t of the launch as an int, 0 for success.
#pragma once

#include <cstdint>

#include "sac_math.h"
#include "transitions.h"

namespace sacfast {

// One tensor of polyak_update_, as flat memory.
struct PolyakPair {
  void* target;
  const void* source;
  int64_t numel;
};

// One field of the replay storage: rows of `row_bytes` bytes, `stride_bytes` from one row of the storage to
// the next. `rows`, dense, is the output of a sample or the input of an insert.
struct ReplayField {
  char* storage;
  char* rows;
  int64_t row_bytes, stride_bytes;
};

// Where a batch goes: float32 rows; reward and terminated one after the other.
struct BatchRows {
  float *obs, *action, *reward, *next_obs, *terminated;
  int64_t obs_stride, action_stride, next_obs_stride;

  BatchRows from(int64_t row) const {
    return {obs + row * obs_stride, action + row * action_stride,
            reward + row,           next_obs + row * next_obs_stride,
            terminated + row,       obs_stride,
            action_stride,          next_obs_stride};
  }
};

namespace cpu {

// Elements [begin, end) of the draw; begin is a multiple of 4.
template <typename T>
void normal(const int64_t* key, T* out, int64_t begin, int64_t end);

// Rows [begin, end) of [B, A].
template <typename T>
void squashed_gaussian(const T* mean, const T* log_std, const T* noise, T* action, T* log_prob, int64_t A,
                       int64_t begin, int64_t end);

// The same with noise drawn from the key and stored; begin is a multiple of 4.
template <typename T>
void squashed_gaussian_key(const T* mean, const T* log_std, const int64_t* key, T* action, T* log_prob,
                           T* noise, int64_t A, int64_t begin, int64_t end);

template <typename T>
void squashed_gaussian_backward(const T* grad_action, const T* grad_log_prob, const T* mean, const T* log_std,
                                const T* noise, T* grad_mean, T* grad_log_std, int64_t A, int64_t begin,
                                int64_t end);

// Elements [begin, end) of the concatenation of all pairs.
template <typename T>
void polyak_update(const PolyakPair* pairs, int64_t count, double tau, int64_t begin, int64_t end);

// Samples [begin, end); begin is a multiple of 2.
void replay_sample(const ReplayField* fields, int64_t count, int64_t size, const int64_t* key,
                   int64_t* indices, int64_t begin, int64_t end);

// Transitions indices[0], ..., indices[n - 1].
void gather(const Transitions& from, int64_t O, int64_t A, const int64_t* indices, int64_t n,
            const BatchRows& out);

// Samples [begin, end) of a batch from a replay memory; begin is a multiple of 2.
void replay_batch(const Transitions& from, int64_t O, int64_t A, const int64_t* key, const BatchRows& out,
                  int64_t begin, int64_t end);

// Copies n rows to storage rows position, position + 1, ... of N, going round at N; n <= N, 0 <= position <
// N.
void replay_insert(const ReplayField* fields, int64_t count, int64_t N, int64_t n, int64_t position);

}  // namespace cpu

namespace cuda {

// Tables travel by value in the kernel's parameters (4 KB): the most entries that one launch takes.
constexpr int kMaxPolyakPairs = 64;
constexpr int kMaxReplayFields = 32;

template <typename T>
int launch_normal(const int64_t* key, T* out, int64_t numel, void* stream);

template <typename T>
int launch_squashed_gaussian(const T* mean, const T* log_std, const T* noise, T* action, T* log_prob,
                             int64_t B, int64_t A, void* stream);

template <typename T>
int launch_squashed_gaussian_key(const T* mean, const T* log_std, const int64_t* key, T* action, T* log_prob,
                                 T* noise, int64_t B, int64_t A, void* stream);

template <typename T>
int launch_squashed_gaussian_backward(const T* grad_action, const T* grad_log_prob, const T* mean,
                                      const T* log_std, const T* noise, T* grad_mean, T* grad_log_std,
                                      int64_t B, int64_t A, void* stream);

template <typename T>
int launch_polyak_update(const PolyakPair* pairs, int64_t count, double tau, void* stream);

// size and key are read on the device; size is limited to [1, N] there, since the host cannot check it.
int launch_replay_sample(const ReplayField* fields, int64_t count, int64_t N, const int64_t* size,
                         const int64_t* key, int64_t* indices, int64_t B, void* stream);

int launch_replay_insert(const ReplayField* fields, int64_t count, int64_t N, int64_t n, int64_t position,
                         void* stream);

}  // namespace cuda
}  // namespace sacfast
