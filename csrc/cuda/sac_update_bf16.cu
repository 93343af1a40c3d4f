#include "sac_update_engine.cuh"

namespace sacfast::cuda {

template <>
std::unique_ptr<SacUpdate> make_update<Precision::kBf16>(const UpdateSpec& spec) {
  return std::make_unique<Engine<Precision::kBf16>>(spec);
}

}  // namespace sacfast::cuda
