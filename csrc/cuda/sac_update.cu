// The choice of a precision; each is a unit of its own, so that they compile side by side.
#include <stdexcept>
#include <string>

#include "sac_update.cuh"

namespace sacfast::cuda {

void check(int error, const char* what) {
  if (error != 0) {
    cudaGetLastError();  // it was reported: left behind, PyTorch's next kernel would be blamed for it
    throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(static_cast<cudaError_t>(error)));
  }
}

std::unique_ptr<SacUpdate> SacUpdate::make(const UpdateSpec& spec, const char* precision) {
  const std::string name = precision;
  if (spec.action_dim > kMostActions) {
    throw std::invalid_argument("the CUDA engine takes up to " + std::to_string(kMostActions) + " actions");
  }
  if (name == "float32") return make_update<Precision::kFloat32>(spec);
  int device, major;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "the GPU's attributes");
  if (major < 8)
    throw std::invalid_argument("precision " + name + " needs a GPU of architecture 8.0 or newer");
  if (name == "tf32") return make_update<Precision::kTf32>(spec);
  if (name == "bf16") return make_update<Precision::kBf16>(spec);
  throw std::invalid_argument("precision " + name +
                              " does not exist on CUDA, which has float32, tf32 and bf16");
}

}  // namespace sacfast::cuda
