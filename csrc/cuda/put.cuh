// Short arrays from the host into the device's memory.
#pragma once

#include <cstdint>

namespace sacfast::cuda {

// Enqueues to[p][0 .. words[p]) = the next words[p] of `from`, which may be gone when this returns. Throws
// std::invalid_argument for more than sacfast/ops/put.py allows. Returns a cudaError_t.
int launch_put(int64_t pieces, uint32_t* const* to, const int64_t* words, const uint32_t* from, void* stream);

}  // namespace sacfast::cuda
