// to[p][i] = words[first[p] + i]
//
// A few short arrays of the host's into the device's memory by one launch: they travel in the kernel's
// parameter, which the driver copies as it is launched, so that nothing is pinned, awaited or written too
// early.
#include <algorithm>
#include <stdexcept>

#include "launch.cuh"
#include "put.cuh"

namespace sacfast::cuda {
namespace {

constexpr int kMostPieces = 4, kMostWords = 1000;

struct Put {
  uint32_t* to[kMostPieces];
  int first[kMostPieces + 1];
  uint32_t words[kMostWords];
};
static_assert(sizeof(Put) <= 4096, "CUDA before 12.1 passes no more");

__global__ void put_kernel(const __grid_constant__ Put put) {
  for (int p = 0; p < kMostPieces; ++p) {
    const int begin = put.first[p], n = put.first[p + 1] - begin;
    for (int i = static_cast<int>(threadIdx.x); i < n; i += kThreads) put.to[p][i] = put.words[begin + i];
  }
}

}  // namespace

int launch_put(int64_t pieces, uint32_t* const* to, const int64_t* words, const uint32_t* from,
               void* stream) {
  Put put = {};
  for (int64_t p = 0; p < pieces; ++p) {
    if (p == kMostPieces || put.first[p] + words[p] > kMostWords)
      throw std::invalid_argument("more than fits into a kernel's parameter");
    put.to[p] = to[p];
    put.first[p + 1] = put.first[p] + static_cast<int>(words[p]);
  }
  std::fill(put.first + pieces + 1, put.first + kMostPieces + 1, put.first[pieces]);
  std::copy_n(from, put.first[pieces], put.words);
  return launch(put_kernel, 1, kThreads, 0, stream, put);
}

}  // namespace sacfast::cuda
