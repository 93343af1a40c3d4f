// Acting on a GPU: observations in, actions in the environment's units out, in one launch.
#pragma once

#include "../engine.h"

namespace sacfast::cuda {

// Enqueues the actions of `call`, whose pointers the device can read (pinned host memory will do). low and
// high of `spec` are on the device. Returns a cudaError_t.
int launch_policy(const PolicySpec& spec, const PolicyCall& call, void* stream);

}  // namespace sacfast::cuda
