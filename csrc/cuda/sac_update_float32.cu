#include "sac_update_engine.cuh"

namespace sacfast::cuda {

template <>
std::unique_ptr<SacUpdate> make_update<Precision::kFloat32>(const UpdateSpec& spec) {
  return std::make_unique<Engine<Precision::kFloat32>>(spec);
}

}  // namespace sacfast::cuda
