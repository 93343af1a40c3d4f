// A hidden layer's nonlinearity, for every float32 path; the AMX path has its own form of it in amx_layout.h.
// Its derivative is had from the layer's output, which is all that the backward pass keeps.
#pragma once

#include "lanes.h"

namespace sacfast::cpu {
namespace {

// A NaN stays one.
struct Relu {
  static SACFAST_INLINE V value(V x) { return x < V{} ? V{} : x; }

  // The gradient with respect to x, from that with respect to h = value(x).
  static SACFAST_INLINE V gradient(V h, V dh) { return h > V{} ? dh : V{}; }
};

}  // namespace
}  // namespace sacfast::cpu
