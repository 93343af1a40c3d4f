// Every operator that Python sees: its schema and, for each device, the call of its kernel. Gradients are in
// autograd.cpp, fake registrations in sacfast/ops. Compiling torch's headers is most of the build's time, so
// these are the only two files that include them, and they compile side by side.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include <string>
#include <tuple>
#include <vector>

#include "arguments.h"
#include "kernels.h"

#ifdef SACFAST_WITH_CUDA
// Part of torch's C interface for compiled models. Its header declares it under torch's own build options
// only, and c10/cuda/CUDAStream.h would need the CUDA toolkit's headers here.
extern "C" int32_t aoti_torch_get_current_cuda_stream(int32_t device_index, void** stream);
#endif

namespace sacfast {
namespace {

// Elements below which one thread is faster than waking a second one.
constexpr int64_t kGrainNormals = 1 << 15;
constexpr int64_t kGrainPolyakBytes = 1 << 18;
constexpr int64_t kGrainSampleBytes = 1 << 17;

// Calls f with a value of the C++ type of `dtype`, which has been checked.
template <typename F>
void with_float_type(at::ScalarType dtype, const F& f) {
  if (dtype == at::kDouble) {
    f(double{});
  } else {
    f(float{});
  }
}

// Divides rows of `width` elements between threads, in multiples of four rows because a Philox block is four
// elements.
template <typename F>
void parallel_rows(int64_t rows, int64_t width, const F& f) {
  const int64_t grain = std::max<int64_t>(1, kGrainNormals / std::max<int64_t>(1, 4 * width));
  at::parallel_for(0, (rows + 3) / 4, grain,
                   [&](int64_t begin, int64_t end) { f(4 * begin, std::min(4 * end, rows)); });
}

// -------------------------------------------------------------------------------------------------------------------
// CPU

Tensor normal_cpu(at::IntArrayRef shape, const Tensor& key, at::ScalarType dtype) {
  Tensor out = normal_output(shape, key, dtype);
  with_float_type(dtype, [&](auto zero) {
    using T = decltype(zero);
    parallel_rows(out.numel(), 1, [&](int64_t begin, int64_t end) {
      cpu::normal(key.const_data_ptr<int64_t>(), out.mutable_data_ptr<T>(), begin, end);
    });
  });
  return out;
}

std::tuple<Tensor, Tensor> squashed_gaussian_cpu(const Tensor& mean, const Tensor& log_std,
                                                 const Tensor& noise) {
  const GaussianArguments x = gaussian_arguments("squashed_gaussian", mean, log_std, &noise);
  with_float_type(mean.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    parallel_rows(x.B, x.A, [&](int64_t begin, int64_t end) {
      cpu::squashed_gaussian(x.mean.const_data_ptr<T>(), x.log_std.const_data_ptr<T>(),
                             x.noise.const_data_ptr<T>(), x.action.mutable_data_ptr<T>(),
                             x.log_prob.mutable_data_ptr<T>(), x.A, begin, end);
    });
  });
  return {x.action, x.log_prob};
}

std::tuple<Tensor, Tensor, Tensor> squashed_gaussian_key_cpu(const Tensor& mean, const Tensor& log_std,
                                                             const Tensor& key) {
  const GaussianArguments x = gaussian_arguments("squashed_gaussian", mean, log_std, nullptr);
  check_key("squashed_gaussian", key, mean.device());
  check_draw("squashed_gaussian", mean.numel());
  with_float_type(mean.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    parallel_rows(x.B, x.A, [&](int64_t begin, int64_t end) {
      cpu::squashed_gaussian_key(x.mean.const_data_ptr<T>(), x.log_std.const_data_ptr<T>(),
                                 key.const_data_ptr<int64_t>(), x.action.mutable_data_ptr<T>(),
                                 x.log_prob.mutable_data_ptr<T>(), x.noise.mutable_data_ptr<T>(), x.A, begin,
                                 end);
    });
  });
  return {x.action, x.log_prob, x.noise};
}

std::tuple<Tensor, Tensor> squashed_gaussian_backward_cpu(const Tensor& grad_action,
                                                          const Tensor& grad_log_prob, const Tensor& mean,
                                                          const Tensor& log_std, const Tensor& noise) {
  const GaussianGradients x = gaussian_gradients(grad_action, grad_log_prob, mean, log_std, noise);
  with_float_type(mean.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    parallel_rows(x.B, x.A, [&](int64_t begin, int64_t end) {
      cpu::squashed_gaussian_backward(x.grad_action.const_data_ptr<T>(), x.grad_log_prob.const_data_ptr<T>(),
                                      x.mean.const_data_ptr<T>(), x.log_std.const_data_ptr<T>(),
                                      x.noise.const_data_ptr<T>(), x.grad_mean.mutable_data_ptr<T>(),
                                      x.grad_log_std.mutable_data_ptr<T>(), x.A, begin, end);
    });
  });
  return {x.grad_mean, x.grad_log_std};
}

void polyak_update_cpu(at::TensorList target, at::TensorList source, double tau) {
  if (target.empty() && source.empty()) return;
  const at::AutoDispatchBelowADInplaceOrView below;
  const PolyakArguments x = polyak_arguments(target, source);
  const at::ScalarType dtype = target[0].scalar_type();
  const int64_t grain = kGrainPolyakBytes / static_cast<int64_t>(target[0].element_size());
  at::parallel_for(0, x.numel, grain, [&](int64_t begin, int64_t end) {
    const auto count = static_cast<int64_t>(x.pairs.size());
    if (dtype == at::kBFloat16) {
      cpu::polyak_update<BFloat16>(x.pairs.data(), count, tau, begin, end);
    } else {
      with_float_type(dtype, [&](auto zero) {
        cpu::polyak_update<decltype(zero)>(x.pairs.data(), count, tau, begin, end);
      });
    }
  });
  x.finish();
}

std::vector<Tensor> replay_sample_int_cpu(at::TensorList storage, int64_t size, int64_t B,
                                          const Tensor& key) {
  SampleArguments x = sample_arguments(storage, B, key);
  TORCH_CHECK_VALUE(size >= 1 && size <= x.N, "replay_sample: size is ", size, "; expected 1 to ", x.N,
                    ", the rows that the storage holds");
  const int64_t grain = std::max<int64_t>(64, kGrainSampleBytes / (2 * std::max<int64_t>(1, x.bytes)));
  at::parallel_for(0, (B + 1) / 2, grain, [&](int64_t begin, int64_t end) {
    cpu::replay_sample(x.fields.data(), static_cast<int64_t>(x.fields.size()), size,
                       key.const_data_ptr<int64_t>(), x.outputs.back().mutable_data_ptr<int64_t>(), 2 * begin,
                       std::min(2 * end, B));
  });
  return std::move(x.outputs);
}

std::vector<Tensor> replay_sample_cpu(at::TensorList storage, const Tensor& size, int64_t B,
                                      const Tensor& key) {
  check_storage("replay_sample", storage, /*written=*/false);
  check_size_tensor(size, storage[0]);
  return replay_sample_int_cpu(storage, *size.const_data_ptr<int64_t>(), B, key);
}

std::vector<Tensor> replay_batch_cpu(const Tensor& obs, const Tensor& action, const Tensor& reward,
                                     const Tensor& link, const Tensor& side, int64_t size, int64_t B,
                                     const Tensor& key) {
  BatchArguments x = batch_arguments(obs, action, reward, link, side, size, B, key);
  const int64_t bytes = static_cast<int64_t>(sizeof(float)) * (2 * x.O + x.A + 2);
  const int64_t grain = std::max<int64_t>(64, kGrainSampleBytes / (2 * bytes));
  at::parallel_for(0, (B + 1) / 2, grain, [&](int64_t begin, int64_t end) {
    cpu::replay_batch(x.from, x.O, x.A, key.const_data_ptr<int64_t>(), x.out, 2 * begin,
                      std::min(2 * end, B));
  });
  return std::move(x.outputs);
}

void replay_insert_cpu(at::TensorList storage, at::TensorList rows, int64_t position) {
  const InsertArguments x = insert_arguments(storage, rows, position);
  cpu::replay_insert(x.fields.data(), static_cast<int64_t>(x.fields.size()), x.N, x.n, x.position);
}

std::string cpu_features() {
#if defined(__AVX512F__)
  return "avx512";
#elif defined(__AVX2__)
  return "avx2";
#elif defined(__ARM_NEON)
  return "neon";
#else
  return "generic";
#endif
}

// ------------------------------------------------------------------------------------------------------------------
// CUDA

#ifdef SACFAST_WITH_CUDA

// PyTorch's current stream of the device; taken with the device guard held.
void* current_stream(const at::Device& device) {
  void* stream = nullptr;
  TORCH_CHECK(aoti_torch_get_current_cuda_stream(device.index(), &stream) == 0,
              "cannot get the current CUDA stream of ", device);
  return stream;
}

void check_launch(const char* op, int error) {
  TORCH_CHECK(error == 0, op, ": CUDA error ", error, " at launch");
}

Tensor normal_cuda(at::IntArrayRef shape, const Tensor& key, at::ScalarType dtype) {
  const c10::DeviceGuard guard(key.device());
  Tensor out = normal_output(shape, key, dtype);
  with_float_type(dtype, [&](auto zero) {
    using T = decltype(zero);
    check_launch("normal", cuda::launch_normal(key.const_data_ptr<int64_t>(), out.mutable_data_ptr<T>(),
                                               out.numel(), current_stream(key.device())));
  });
  return out;
}

std::tuple<Tensor, Tensor> squashed_gaussian_cuda(const Tensor& mean, const Tensor& log_std,
                                                  const Tensor& noise) {
  const c10::DeviceGuard guard(mean.device());
  const GaussianArguments x = gaussian_arguments("squashed_gaussian", mean, log_std, &noise);
  with_float_type(mean.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    check_launch("squashed_gaussian",
                 cuda::launch_squashed_gaussian(x.mean.const_data_ptr<T>(), x.log_std.const_data_ptr<T>(),
                                                x.noise.const_data_ptr<T>(), x.action.mutable_data_ptr<T>(),
                                                x.log_prob.mutable_data_ptr<T>(), x.B, x.A,
                                                current_stream(mean.device())));
  });
  return {x.action, x.log_prob};
}

std::tuple<Tensor, Tensor, Tensor> squashed_gaussian_key_cuda(const Tensor& mean, const Tensor& log_std,
                                                              const Tensor& key) {
  const c10::DeviceGuard guard(mean.device());
  const GaussianArguments x = gaussian_arguments("squashed_gaussian", mean, log_std, nullptr);
  check_key("squashed_gaussian", key, mean.device());
  check_draw("squashed_gaussian", mean.numel());
  with_float_type(mean.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    check_launch("squashed_gaussian",
                 cuda::launch_squashed_gaussian_key(
                     x.mean.const_data_ptr<T>(), x.log_std.const_data_ptr<T>(), key.const_data_ptr<int64_t>(),
                     x.action.mutable_data_ptr<T>(), x.log_prob.mutable_data_ptr<T>(),
                     x.noise.mutable_data_ptr<T>(), x.B, x.A, current_stream(mean.device())));
  });
  return {x.action, x.log_prob, x.noise};
}

std::tuple<Tensor, Tensor> squashed_gaussian_backward_cuda(const Tensor& grad_action,
                                                           const Tensor& grad_log_prob, const Tensor& mean,
                                                           const Tensor& log_std, const Tensor& noise) {
  const c10::DeviceGuard guard(mean.device());
  const GaussianGradients x = gaussian_gradients(grad_action, grad_log_prob, mean, log_std, noise);
  with_float_type(mean.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    check_launch("squashed_gaussian_backward",
                 cuda::launch_squashed_gaussian_backward(
                     x.grad_action.const_data_ptr<T>(), x.grad_log_prob.const_data_ptr<T>(),
                     x.mean.const_data_ptr<T>(), x.log_std.const_data_ptr<T>(), x.noise.const_data_ptr<T>(),
                     x.grad_mean.mutable_data_ptr<T>(), x.grad_log_std.mutable_data_ptr<T>(), x.B, x.A,
                     current_stream(mean.device())));
  });
  return {x.grad_mean, x.grad_log_std};
}

void polyak_update_cuda(at::TensorList target, at::TensorList source, double tau) {
  if (target.empty() && source.empty()) return;
  const at::AutoDispatchBelowADInplaceOrView below;
  // The dispatcher comes here if either list holds a CUDA tensor: only after the checks is there a target[0].
  const PolyakArguments x = polyak_arguments(target, source);
  const c10::DeviceGuard guard(target[0].device());
  const auto count = static_cast<int64_t>(x.pairs.size());
  void* stream = current_stream(target[0].device());
  if (target[0].scalar_type() == at::kBFloat16) {
    check_launch("polyak_update_", cuda::launch_polyak_update<BFloat16>(x.pairs.data(), count, tau, stream));
  } else {
    with_float_type(target[0].scalar_type(), [&](auto zero) {
      check_launch("polyak_update_",
                   cuda::launch_polyak_update<decltype(zero)>(x.pairs.data(), count, tau, stream));
    });
  }
  x.finish();
}

std::vector<Tensor> replay_sample_cuda(at::TensorList storage, const Tensor& size, int64_t B,
                                       const Tensor& key) {
  const c10::DeviceGuard guard(key.device());
  SampleArguments x = sample_arguments(storage, B, key);
  check_size_tensor(size, storage[0]);
  check_launch("replay_sample",
               cuda::launch_replay_sample(x.fields.data(), static_cast<int64_t>(x.fields.size()), x.N,
                                          size.const_data_ptr<int64_t>(), key.const_data_ptr<int64_t>(),
                                          x.outputs.back().mutable_data_ptr<int64_t>(), B,
                                          current_stream(key.device())));
  return std::move(x.outputs);
}

void replay_insert_cuda(at::TensorList storage, at::TensorList rows, int64_t position) {
  const InsertArguments x = insert_arguments(storage, rows, position);
  const c10::DeviceGuard guard(storage[0].device());  // after the checks: storage may be empty
  check_launch("replay_insert_",
               cuda::launch_replay_insert(x.fields.data(), static_cast<int64_t>(x.fields.size()), x.N, x.n,
                                          x.position, current_stream(storage[0].device())));
}

#endif  // SACFAST_WITH_CUDA

}  // namespace
}  // namespace sacfast

TORCH_LIBRARY(sacfast, m) {
  m.def("normal(SymInt[] shape, Tensor key, ScalarType dtype) -> Tensor");
  m.def("squashed_gaussian(Tensor mean, Tensor log_std, Tensor noise) -> (Tensor action, Tensor log_prob)");
  m.def(
      "squashed_gaussian_key(Tensor mean, Tensor log_std, Tensor key)"
      " -> (Tensor action, Tensor log_prob, Tensor noise)");
  m.def(
      "squashed_gaussian_backward(Tensor grad_action, Tensor grad_log_prob, Tensor mean, Tensor log_std, "
      "Tensor noise)"
      " -> (Tensor grad_mean, Tensor grad_log_std)");
  m.def("polyak_update_(Tensor(a!)[] target, Tensor[] source, float tau) -> ()");
  m.def("replay_sample(Tensor[] storage, Tensor size, SymInt batch_size, Tensor key) -> Tensor[]");
  m.def("replay_sample.int(Tensor[] storage, SymInt size, SymInt batch_size, Tensor key) -> Tensor[]");
  m.def("replay_insert_(Tensor(a!)[] storage, Tensor[] rows, SymInt position) -> ()");
  m.def(
      "replay_batch(Tensor obs, Tensor action, Tensor reward, Tensor link, Tensor side, SymInt size, "
      "SymInt batch_size, Tensor key) -> Tensor[]");
  m.def("cpu_features() -> str", &sacfast::cpu_features);
}

TORCH_LIBRARY_IMPL(sacfast, CPU, m) {
  m.impl("normal", &sacfast::normal_cpu);
  m.impl("squashed_gaussian", &sacfast::squashed_gaussian_cpu);
  m.impl("squashed_gaussian_key", &sacfast::squashed_gaussian_key_cpu);
  m.impl("squashed_gaussian_backward", &sacfast::squashed_gaussian_backward_cpu);
  m.impl("polyak_update_", &sacfast::polyak_update_cpu);
  m.impl("replay_sample", &sacfast::replay_sample_cpu);
  m.impl("replay_sample.int", &sacfast::replay_sample_int_cpu);
  m.impl("replay_insert_", &sacfast::replay_insert_cpu);
  m.impl("replay_batch", &sacfast::replay_batch_cpu);
}

#ifdef SACFAST_WITH_CUDA
TORCH_LIBRARY_IMPL(sacfast, CUDA, m) {
  m.impl("normal", &sacfast::normal_cuda);
  m.impl("squashed_gaussian", &sacfast::squashed_gaussian_cuda);
  m.impl("squashed_gaussian_key", &sacfast::squashed_gaussian_key_cuda);
  m.impl("squashed_gaussian_backward", &sacfast::squashed_gaussian_backward_cuda);
  m.impl("polyak_update_", &sacfast::polyak_update_cuda);
  m.impl("replay_sample", &sacfast::replay_sample_cuda);
  m.impl("replay_insert_", &sacfast::replay_insert_cuda);
}
#endif
