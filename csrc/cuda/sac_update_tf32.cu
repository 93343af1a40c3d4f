#include "sac_update_engine.cuh"

namespace sacfast::cuda {

template <>
std::unique_ptr<SacUpdate> make_update<Precision::kTf32>(const UpdateSpec& spec) {
  return std::make_unique<Engine<Precision::kTf32>>(spec);
}

}  // namespace sacfast::cuda
