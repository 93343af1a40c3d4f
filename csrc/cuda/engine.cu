// The C interface of the CUDA engine, called through ctypes (sacfast/engines/cuda.py). Calls are made with
// the state's device current; errors are left in sacfast_error(), as those of engine.cpp are.
#include "../guarded.h"
#include "launch.cuh"
#include "policy.cuh"
#include "put.cuh"
#include "sac_update.cuh"

using sacfast::guarded;
using sacfast::cuda::SacUpdate;

SACFAST_EXPORT SacUpdate* sacfast_cuda_update_new(const sacfast::UpdateSpec* spec, const char* precision) {
  return guarded<SacUpdate*>(nullptr, [&] { return SacUpdate::make(*spec, precision).release(); });
}
SACFAST_EXPORT void sacfast_cuda_update_delete(SacUpdate* update) { delete update; }
SACFAST_EXPORT int64_t sacfast_cuda_update_workspace_bytes(SacUpdate* update, int64_t batch_size) {
  return update->workspace_bytes(batch_size);
}

// SacUpdate::Result, or -1.
SACFAST_EXPORT int sacfast_cuda_update_run(SacUpdate* update, sacfast::UpdateCall* call, void* workspace,
                                           void* stream) {
  return guarded(-1, [&] { return static_cast<int>(update->run(*call, workspace, stream)); });
}
SACFAST_EXPORT int sacfast_cuda_update_settle(SacUpdate* update, sacfast::StatePointers* state,
                                              void* stream) {
  return guarded(-1, [&] { return static_cast<int>(update->settle(*state, stream)); });
}

// As run; `ms` and the names are by phase, and a name can occur several times.
SACFAST_EXPORT int sacfast_cuda_update_profile(SacUpdate* update, sacfast::UpdateCall* call, void* workspace,
                                               void* stream, double* ms) {
  return guarded(-1, [&] { return static_cast<int>(update->profile(*call, workspace, stream, ms)); });
}
SACFAST_EXPORT int64_t sacfast_cuda_update_phases(SacUpdate* update) {
  return static_cast<int64_t>(update->phases().size());
}
SACFAST_EXPORT const char* sacfast_cuda_update_phase(SacUpdate* update, int64_t phase) {
  return update->phases()[phase];
}

// Actions for observations that the device can read, in memory that it can write, where they are when this
// returns. 0, or -1.
SACFAST_EXPORT int sacfast_cuda_policy_act(const sacfast::PolicySpec* spec, const sacfast::PolicyCall* call,
                                           void* stream) {
  return guarded(-1, [&] {
    sacfast::cuda::check(sacfast::cuda::launch_policy(*spec, *call, stream), "the policy");
    sacfast::cuda::check(cudaStreamSynchronize(static_cast<cudaStream_t>(stream)), "the policy");
    return 0;
  });
}

// Short arrays of the host's, words of 4 bytes one after the other in `from`, to the device's addresses `to`.
// 0, or -1.
SACFAST_EXPORT int sacfast_cuda_put(int64_t pieces, uint32_t* const* to, const int64_t* words,
                                    const uint32_t* from, void* stream) {
  return guarded(-1, [&] {
    sacfast::cuda::check(sacfast::cuda::launch_put(pieces, to, words, from, stream), "writing to the GPU");
    return 0;
  });
}
