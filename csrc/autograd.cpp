// Gradients of squashed_gaussian: to mean and log_std, by one call of squashed_gaussian_backward. In C++
// because the same registration from Python costs 10 to 25 us in each direction, several times the kernels'
// own time at B = 256.
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <initializer_list>
#include <tuple>

namespace sacfast {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

template <typename Signature>
c10::TypedOperatorHandle<Signature> find_operator(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

using TwoTensors = std::tuple<at::Tensor, at::Tensor>;
using ThreeTensors = std::tuple<at::Tensor, at::Tensor, at::Tensor>;
using In = const at::Tensor&;

TwoTensors call_forward(In mean, In log_std, In noise) {
  static const auto op = find_operator<TwoTensors(In, In, In)>("sacfast::squashed_gaussian");
  const at::AutoDispatchBelowADInplaceOrView below;
  return op.call(mean, log_std, noise);
}

ThreeTensors call_forward_key(In mean, In log_std, In key) {
  static const auto op = find_operator<ThreeTensors(In, In, In)>("sacfast::squashed_gaussian_key");
  const at::AutoDispatchBelowADInplaceOrView below;
  return op.call(mean, log_std, key);
}

TwoTensors call_backward(In grad_action, In grad_log_prob, In mean, In log_std, In noise) {
  static const auto op = find_operator<TwoTensors(In, In, In, In, In)>("sacfast::squashed_gaussian_backward");
  return op.call(grad_action, grad_log_prob, mean, log_std, noise);
}

// Both forward operators save (mean, log_std, noise) and share this: gradients of mean, log_std and the third
// argument.
variable_list gaussian_backward(AutogradContext* context, const variable_list& gradients) {
  const variable_list saved = context->get_saved_variables();
  auto [mean, log_std] = call_backward(gradients[0], gradients[1], saved[0], saved[1], saved[2]);
  return {mean, log_std, at::Tensor()};
}

// Whether a graph node is wanted. Function::apply would find out too, after a microsecond and a half of
// preparation; and it is what complains about forward-mode derivatives, which these operators do not have.
bool needs_graph(std::initializer_list<const at::Tensor*> inputs) {
  for (const at::Tensor* input : inputs) {
    if ((input->requires_grad() && at::GradMode::is_enabled()) || input->_fw_grad(0).defined()) return true;
  }
  return false;
}

struct SquashedGaussian : torch::autograd::Function<SquashedGaussian> {
  static variable_list forward(AutogradContext* context, In mean, In log_std, In noise) {
    auto [action, log_prob] = call_forward(mean, log_std, noise);
    context->save_for_backward({mean, log_std, noise});
    return {action, log_prob};
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    return gaussian_backward(context, gradients);
  }
};

struct SquashedGaussianKey : torch::autograd::Function<SquashedGaussianKey> {
  static variable_list forward(AutogradContext* context, In mean, In log_std, In key) {
    auto [action, log_prob, noise] = call_forward_key(mean, log_std, key);
    context->mark_non_differentiable({noise});
    context->save_for_backward({mean, log_std, noise});
    return {action, log_prob, noise};
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    return gaussian_backward(context, gradients);
  }
};

struct SquashedGaussianBackward : torch::autograd::Function<SquashedGaussianBackward> {
  static variable_list forward(AutogradContext*, In grad_action, In grad_log_prob, In mean, In log_std,
                               In noise) {
    const at::AutoDispatchBelowADInplaceOrView below;
    auto [grad_mean, grad_log_std] = call_backward(grad_action, grad_log_prob, mean, log_std, noise);
    return {grad_mean, grad_log_std};
  }

  static variable_list backward(AutogradContext*, const variable_list&) {
    TORCH_CHECK_NOT_IMPLEMENTED(false, "squashed_gaussian has no second derivative; differentiate ",
                                "squashed_gaussian_reference twice instead");
  }
};

TwoTensors squashed_gaussian_autograd(In mean, In log_std, In noise) {
  if (!needs_graph({&mean, &log_std, &noise})) return call_forward(mean, log_std, noise);
  const variable_list out = SquashedGaussian::apply(mean, log_std, noise);
  return {out[0], out[1]};
}

ThreeTensors squashed_gaussian_key_autograd(In mean, In log_std, In key) {
  if (!needs_graph({&mean, &log_std})) return call_forward_key(mean, log_std, key);
  const variable_list out = SquashedGaussianKey::apply(mean, log_std, key);
  return {out[0], out[1], out[2]};
}

TwoTensors squashed_gaussian_backward_autograd(In grad_action, In grad_log_prob, In mean, In log_std,
                                               In noise) {
  if (!needs_graph({&grad_action, &grad_log_prob, &mean, &log_std, &noise})) {
    const at::AutoDispatchBelowADInplaceOrView below;
    return call_backward(grad_action, grad_log_prob, mean, log_std, noise);
  }
  const variable_list out = SquashedGaussianBackward::apply(grad_action, grad_log_prob, mean, log_std, noise);
  return {out[0], out[1]};
}

}  // namespace
}  // namespace sacfast

TORCH_LIBRARY_IMPL(sacfast, Autograd, m) {
  m.impl("squashed_gaussian", &sacfast::squashed_gaussian_autograd);
  m.impl("squashed_gaussian_key", &sacfast::squashed_gaussian_key_autograd);
  m.impl("squashed_gaussian_backward", &sacfast::squashed_gaussian_backward_autograd);
  // Not differentiable: with gradients on or off they run as they are, also on leaves that require gradients.
  for (const char* name :
       {"normal", "polyak_update_", "replay_sample", "replay_sample.int", "replay_insert_"}) {
    m.impl(name, torch::CppFunction::makeFallthrough());
  }
}
