// The whole SAC update (arXiv:1812.05905, algorithm 1) on a GPU: the class behind the C interface of
// engine.cu.
#pragma once

#include <memory>
#include <vector>

#include "../engine.h"
#include "launch.cuh"

namespace sacfast::cuda {

enum class Precision : int { kFloat32, kTf32, kBf16 };

constexpr int64_t kMostActions = 1024;

// Throws std::runtime_error with the CUDA runtime's own words unless `error` is cudaSuccess.
void check(int error, const char* what);

class SacUpdate {
 public:
  enum Result { kApplied, kNotFinite };

  // For the current device, on which every call is to be made; precision: "float32", "tf32" or "bf16". Throws
  // std::invalid_argument for what this device lacks, std::runtime_error with the CUDA runtime's own words.
  static std::unique_ptr<SacUpdate> make(const UpdateSpec& spec, const char* precision);
  virtual ~SacUpdate() = default;

  // What `workspace` of run() must hold for batches of this size, aligned to 256 bytes.
  virtual int64_t workspace_bytes(int64_t batch_size) = 0;

  // Enqueues call.updates updates on `stream`, and advances call.state as if they had happened; where it
  // throws, by those that were enqueued. Neither waits nor allocates, but for the graphs that are made for a
  // new combination of pointers, batch size, number of updates and which of them act.
  //
  // kNotFinite: the batch of an update of an earlier call held a NaN or an infinity. It was not applied, nor
  // was any after it; call.state is set back to that update, for which it waits, and nothing of this call is
  // enqueued.
  virtual Result run(UpdateCall& call, void* workspace, void* stream) = 0;

  // The same as kNotFinite above, without updates, once those enqueued so far have ended.
  virtual Result settle(StatePointers& state, void* stream) = 0;

  // As run(), one phase after the other, with the milliseconds of each added to `ms`.
  virtual Result profile(UpdateCall& call, void* workspace, void* stream, double* ms) = 0;
  virtual const std::vector<const char*>& phases() const = 0;
};

template <Precision P>
std::unique_ptr<SacUpdate> make_update(const UpdateSpec& spec);

}  // namespace sacfast::cuda
