// Gradients of squashed_gaussian: to mean and log_std, by one call of squashed_gaussian_backward. In C++
// because the same registration from Python costs 10 to 25 us in each direction, several times the kernels'
// own time at B = 256. The graph's nodes are written out because torch::autograd::Function, with all that it
// offers, takes twice as long to compile as everything else here.
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <c10/util/intrusive_ptr.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/dynamo/compiled_autograd.h>
#include <torch/library.h>

#include <algorithm>
#include <initializer_list>
#include <memory>
#include <mutex>
#include <tuple>
#include <type_traits>
#include <utility>

namespace sacfast {
namespace {

using torch::autograd::Node;
using torch::autograd::SavedVariable;
using torch::autograd::variable_list;
using torch::dynamo::autograd::CompiledNodeArgs;
using torch::dynamo::autograd::SwapSavedVariables;

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

// Whether a graph node is wanted.
bool needs_graph(std::initializer_list<const at::Tensor*> inputs) {
  if (!at::GradMode::is_enabled()) return false;
  return std::any_of(inputs.begin(), inputs.end(), [](auto* input) { return input->requires_grad(); });
}

void refuse_forward_mode(std::initializer_list<const at::Tensor*> inputs) {
  for (const at::Tensor* input : inputs) {
    TORCH_CHECK(!input->_fw_grad(0).defined(),
                "squashed_gaussian: jvp is not implemented; take forward-mode derivatives of ",
                "squashed_gaussian_reference instead");
  }
}

// Both forward operators make this node: (grad_action, grad_log_prob) to gradients of mean and log_std, whose
// edges are its only ones.
struct SquashedGaussianBackward : Node {
  SquashedGaussianBackward(In mean, In log_std, In noise)
      : Node(torch::autograd::collect_next_edges(mean, log_std)),
        mean(mean, /*is_output=*/false),
        log_std(log_std, /*is_output=*/false),
        noise(noise, /*is_output=*/false) {}

  variable_list apply(variable_list&& gradients) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (uint32_t i = 0; i < 2; ++i) {  // one that nobody asked for is undefined
      if (!gradients[i].defined()) gradients[i] = input_metadata(i).zeros_like();
    }
    auto [grad_mean, grad_log_std] =
        call_backward(gradients[0], gradients[1], mean.unpack(), log_std.unpack(), noise.unpack());
    return {std::move(grad_mean), std::move(grad_log_std)};
  }

  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (SavedVariable* saved : {&mean, &log_std, &noise}) saved->reset_data();
  }

  // torch's compiled autograd traces `apply` with other tensors in place of the saved ones.
  void compiled_args(CompiledNodeArgs& args) const override {
    for (const SavedVariable* saved : {&mean, &log_std, &noise}) args.collect(*saved, /*is_output=*/false);
  }

  variable_list apply_with_saved(const variable_list& gradients, SwapSavedVariables& swap) override {
    for (SavedVariable* saved : {&mean, &log_std, &noise}) swap.before(*saved);
    variable_list result = apply(variable_list(gradients));
    for (SavedVariable* saved : {&mean, &log_std, &noise}) swap.after(*saved);
    return result;
  }

  SavedVariable mean, log_std, noise;
};

struct NoSecondDerivative : Node {
  using Node::Node;

  variable_list apply(variable_list&&) override {
    TORCH_CHECK_NOT_IMPLEMENTED(false, "squashed_gaussian has no second derivative; differentiate ",
                                "squashed_gaussian_reference twice instead");
  }
};

// Makes a T the function that `outputs` come from. torch counts nodes by shared_ptr or, newer ones,
// intrusively.
template <typename T, typename... Arguments>
void set_history(std::initializer_list<at::Tensor*> outputs, Arguments&&... arguments) {
  using Pointer = decltype(torch::autograd::Edge::function);
  Pointer node;
  if constexpr (std::is_same_v<Pointer, std::shared_ptr<Node>>) {
    // torch's own deleter, found by its argument: destroying a long chain of nodes must not recurse.
    node = Pointer(new T(std::forward<Arguments>(arguments)...), [](T* unused) { deleteNode(unused); });
  } else {
    node = c10::make_intrusive<T>(std::forward<Arguments>(arguments)...);
  }
  for (at::Tensor* output : outputs) torch::autograd::create_gradient_edge(*output, node);
}

TwoTensors squashed_gaussian_autograd(In mean, In log_std, In noise) {
  refuse_forward_mode({&mean, &log_std, &noise});
  auto [action, log_prob] = call_forward(mean, log_std, noise);
  if (needs_graph({&mean, &log_std}))
    set_history<SquashedGaussianBackward>({&action, &log_prob}, mean, log_std, noise);
  return {std::move(action), std::move(log_prob)};
}

ThreeTensors squashed_gaussian_key_autograd(In mean, In log_std, In key) {
  refuse_forward_mode({&mean, &log_std});
  auto [action, log_prob, noise] = call_forward_key(mean, log_std, key);
  if (needs_graph({&mean, &log_std}))
    set_history<SquashedGaussianBackward>({&action, &log_prob}, mean, log_std, noise);
  return {std::move(action), std::move(log_prob), std::move(noise)};
}

TwoTensors squashed_gaussian_backward_autograd(In grad_action, In grad_log_prob, In mean, In log_std,
                                               In noise) {
  refuse_forward_mode({&grad_action, &grad_log_prob, &mean, &log_std, &noise});
  auto [grad_mean, grad_log_std] = [&] {
    const at::AutoDispatchBelowADInplaceOrView below;
    return call_backward(grad_action, grad_log_prob, mean, log_std, noise);
  }();
  if (needs_graph({&grad_action, &grad_log_prob, &mean, &log_std, &noise})) {
    set_history<NoSecondDerivative>(
        {&grad_mean, &grad_log_std},
        torch::autograd::collect_next_edges(grad_action, grad_log_prob, mean, log_std, noise));
  }
  return {std::move(grad_mean), std::move(grad_log_std)};
}

}  // namespace
}  // namespace sacfast

TORCH_LIBRARY_IMPL(sacfast, Autograd, m) {
  m.impl("squashed_gaussian", &sacfast::squashed_gaussian_autograd);
  m.impl("squashed_gaussian_key", &sacfast::squashed_gaussian_key_autograd);
  m.impl("squashed_gaussian_backward", &sacfast::squashed_gaussian_backward_autograd);
  // Not differentiable: with gradients on or off they run as they are, also on leaves that require gradients.
  for (const char* name :
       {"normal", "polyak_update_", "replay_sample", "replay_sample.int", "replay_batch", "replay_insert_"}) {
    m.impl(name, torch::CppFunction::makeFallthrough());
  }
}
