// What the bindings hand to the kernels, the same for every device: arguments that have been checked and made
// contiguous, and outputs that have been allocated.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/util/SmallVector.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "checks.h"
#include "kernels.h"

namespace sacfast {

using at::Tensor;

inline Tensor empty(at::IntArrayRef shape, const Tensor& like) { return at::empty(shape, like.options()); }

struct GaussianArguments {
  Tensor mean, log_std, noise, action, log_prob;
  int64_t B, A;
};

// Without `noise` the result's noise is new memory for the kernel to fill.
inline GaussianArguments gaussian_arguments(const char* op, const Tensor& mean, const Tensor& log_std,
                                            const Tensor* noise) {
  check_matrix(op, "mean", mean);
  check_like(op, "log_std", log_std, "mean", mean);
  if (noise) check_like(op, "noise", *noise, "mean", mean);
  return {mean.contiguous(),
          log_std.contiguous(),
          noise ? noise->contiguous() : empty(mean.sizes(), mean),
          empty(mean.sizes(), mean),
          empty({mean.size(0)}, mean),
          mean.size(0),
          mean.size(1)};
}

struct GaussianGradients {
  Tensor grad_action, grad_log_prob, mean, log_std, noise, grad_mean, grad_log_std;
  int64_t B, A;
};

inline GaussianGradients gaussian_gradients(const Tensor& grad_action, const Tensor& grad_log_prob,
                                            const Tensor& mean, const Tensor& log_std, const Tensor& noise) {
  const char* op = "squashed_gaussian_backward";
  check_matrix(op, "mean", mean);
  check_like(op, "log_std", log_std, "mean", mean);
  check_like(op, "noise", noise, "mean", mean);
  check_like(op, "grad_action", grad_action, "mean", mean);
  check_kind(op, "grad_log_prob", grad_log_prob, "mean", mean);
  check_shape(op, "grad_log_prob", grad_log_prob, {mean.size(0)}, " = [B]");
  return {grad_action.contiguous(),
          grad_log_prob.contiguous(),
          mean.contiguous(),
          log_std.contiguous(),
          noise.contiguous(),
          empty(mean.sizes(), mean),
          empty(mean.sizes(), mean),
          mean.size(0),
          mean.size(1)};
}

inline Tensor normal_output(at::IntArrayRef shape, const Tensor& key, at::ScalarType dtype) {
  check_key("normal", key, key.device());
  TORCH_CHECK_VALUE(dtype == at::kFloat || dtype == at::kDouble, "normal: dtype is ", dtype,
                    "; the native operator draws float32 or float64");
  Tensor out = at::empty(shape, key.options().dtype(dtype));
  check_draw("normal", out.numel());
  return out;
}

// The pairs as flat memory. A pair whose memory is not dense in the same order on both sides goes through
// contiguous copies, which `finish` copies back.
struct PolyakArguments {
  c10::SmallVector<PolyakPair, 16> pairs;
  std::vector<std::pair<Tensor, Tensor>> copies;  // (contiguous target, original target)
  std::vector<Tensor> sources;
  int64_t numel = 0;

  void finish() const {
    for (const auto& [copy, original] : copies) original.copy_(copy);
  }
};

inline void check_polyak(at::TensorList target, at::TensorList source) {
  const char* op = "polyak_update_";
  TORCH_CHECK_VALUE(target.size() == source.size(), op, ": target has ", target.size(),
                    " tensors but source has ", source.size());
  c10::SmallVector<Extent, 32> extents;
  for (size_t i = 0; i < target.size(); ++i) {
    const Tensor &to = target[i], &from = source[i];
    const at::ScalarType dtype = target[0].scalar_type();
    TORCH_CHECK_VALUE(dtype == at::kFloat || dtype == at::kDouble || dtype == at::kBFloat16, op,
                      ": target is ", dtype, "; the native operator takes float32, float64 or bfloat16");
    TORCH_CHECK_VALUE(to.sizes() == from.sizes(), op, ": target[", i, "] has shape ", to.sizes(),
                      " but source[", i, "] has shape ", from.sizes());
    for (const Tensor* tensor : {&to, &from}) {
      TORCH_CHECK_VALUE(tensor->scalar_type() == dtype && tensor->device() == target[0].device(), op, ": ",
                        tensor == &to ? "target[" : "source[", i, "] is ", tensor->scalar_type(), " on ",
                        tensor->device(), "; expected ", dtype, " on ", target[0].device(),
                        " like target[0]");
      extents.push_back(extent_of(*tensor, tensor == &to));
    }
    TORCH_CHECK_VALUE(at::has_internal_overlap(to) != at::MemOverlap::Yes, op, ": target[", i,
                      "] overlaps itself; pass tensors with memory of their own");
  }
  check_disjoint(op, extents,
                 "a target's memory interleaves or overlaps with a source's or another target's; pass "
                 "tensors with memory of their own");
}

inline PolyakArguments polyak_arguments(at::TensorList target, at::TensorList source) {
  check_polyak(target, source);
  PolyakArguments arguments;
  for (size_t i = 0; i < target.size(); ++i) {
    Tensor to = target[i], from = source[i];
    if (!to.is_non_overlapping_and_dense() || to.strides() != from.strides()) {
      to = to.contiguous();
      from = from.contiguous();
      arguments.sources.push_back(from);
      if (!to.is_same(target[i])) arguments.copies.emplace_back(to, target[i]);
    }
    target[i].unsafeGetTensorImpl()->bump_version();
    arguments.pairs.push_back({to.mutable_data_ptr(), from.const_data_ptr(), to.numel()});
    arguments.numel += to.numel();
  }
  return arguments;
}

struct SampleArguments {
  c10::SmallVector<ReplayField, 8> fields;
  std::vector<Tensor> outputs;  // the fields' rows, then the indices
  int64_t N, bytes = 0;         // bytes of one sample
};

inline SampleArguments sample_arguments(at::TensorList storage, int64_t B, const Tensor& key) {
  const char* op = "replay_sample";
  SampleArguments arguments;
  arguments.N = check_storage(op, storage, /*written=*/false);
  check_key(op, key, storage[0].device());
  TORCH_CHECK_VALUE(B >= 0, op, ": batch_size is ", B, "; expected at least 0");
  check_draw(op, B);
  arguments.outputs.reserve(storage.size() + 1);
  for (const Tensor& field : storage) {
    c10::SmallVector<int64_t, 4> shape(field.sizes().begin(), field.sizes().end());
    shape[0] = B;
    arguments.outputs.push_back(empty(shape, field));
    const int64_t row_bytes = static_cast<int64_t>(field.nbytes()) / arguments.N;
    arguments.fields.push_back({static_cast<char*>(const_cast<void*>(field.const_data_ptr())),
                                static_cast<char*>(arguments.outputs.back().mutable_data_ptr()), row_bytes,
                                field.stride(0) * static_cast<int64_t>(field.element_size())});
    arguments.bytes += row_bytes;
  }
  arguments.outputs.push_back(at::empty({B}, key.options()));
  return arguments;
}

struct InsertArguments {
  c10::SmallVector<ReplayField, 8> fields;
  std::vector<Tensor> rows;  // keeps contiguous copies alive
  int64_t N, n, position;
};

// Of more rows than the storage holds, only the last N are left to insert.
inline InsertArguments insert_arguments(at::TensorList storage, at::TensorList rows, int64_t position) {
  const char* op = "replay_insert_";
  InsertArguments arguments;
  const int64_t N = arguments.N = check_storage(op, storage, /*written=*/true);
  const int64_t given = check_rows(op, storage, rows);
  TORCH_CHECK_VALUE(position >= 0 && position < N, op, ": position is ", position, "; expected 0 to ", N - 1);
  const int64_t skipped = std::max<int64_t>(0, given - N);
  arguments.n = given - skipped;
  arguments.position = (position + skipped) % N;
  c10::SmallVector<Extent, 16> extents;
  for (size_t i = 0; i < storage.size(); ++i) {
    arguments.rows.push_back(rows[i].contiguous());
    extents.push_back(extent_of(storage[i], true));
    extents.push_back(extent_of(arguments.rows.back(), false));
    const int64_t row_bytes = static_cast<int64_t>(storage[i].nbytes()) / N;
    char* first = static_cast<char*>(const_cast<void*>(arguments.rows.back().const_data_ptr()));
    arguments.fields.push_back({static_cast<char*>(storage[i].mutable_data_ptr()),
                                first + skipped * row_bytes, row_bytes, row_bytes});
  }
  check_disjoint(op, extents,
                 "a storage tensor's memory interleaves or overlaps with the rows' or another field's; pass "
                 "tensors with memory of their own");
  for (const Tensor& field : storage) field.unsafeGetTensorImpl()->bump_version();
  return arguments;
}

// Fields of a replay memory as views of its records, the table of further observations, and the batch.
struct BatchArguments {
  Transitions from;
  std::vector<Tensor> outputs;  // obs, action, reward, next_obs, terminated
  BatchRows out;
  int64_t O, A;
};

inline BatchArguments batch_arguments(const Tensor& obs, const Tensor& action, const Tensor& reward,
                                      const Tensor& link, const Tensor& side, int64_t size, int64_t B,
                                      const Tensor& key) {
  const char* op = "replay_batch";
  const Tensor fields[] = {obs, action, reward, link};
  const int64_t N = check_storage(op, fields, /*written=*/false);
  TORCH_CHECK_VALUE(obs.dim() == 2 && action.dim() == 2 && reward.dim() == 1 && link.dim() == 1, op,
                    ": expected obs [N, O], action [N, A], reward [N] and link [N]");
  const int64_t O = obs.size(1), A = action.size(1);
  const at::ScalarType type = obs.scalar_type();
  TORCH_CHECK_VALUE(type == at::kFloat || type == at::kHalf || type == at::kBFloat16, op, ": obs is ", type,
                    "; expected float32, float16 or bfloat16");
  TORCH_CHECK_VALUE(side.dim() == 2 && side.size(1) == O && side.scalar_type() == type &&
                        side.device() == obs.device() && has_dense_rows(side),
                    op, ": side is ", side.scalar_type(), " of shape ", side.sizes(),
                    "; expected rows like obs");
  TORCH_CHECK_VALUE(action.scalar_type() == at::kFloat && reward.scalar_type() == at::kFloat &&
                        link.scalar_type() == at::kInt,
                    op, ": expected action and reward as float32 and link as int32");
  TORCH_CHECK_VALUE(size >= 1 && size <= N, op, ": size is ", size, "; expected 1 to ", N,
                    ", the rows that the storage holds");
  TORCH_CHECK_VALUE(B >= 0, op, ": batch_size is ", B, "; expected at least 0");
  check_key(op, key, obs.device());
  check_draw(op, B);
  BatchArguments x{{obs.const_data_ptr(), action.const_data_ptr<float>(), reward.const_data_ptr<float>(),
                    side.const_data_ptr(), nullptr, link.const_data_ptr<int32_t>(), obs.stride(0),
                    action.stride(0), reward.stride(0), side.stride(0), 0, link.stride(0), size, N,
                    type == at::kHalf       ? kFloat16
                    : type == at::kBFloat16 ? kBFloat16
                                            : kFloat32},
                   {empty({B, O}, reward), empty({B, A}, reward), empty({B}, reward), empty({B, O}, reward),
                    empty({B}, reward)},
                   {},
                   O,
                   A};
  float* data[5];
  for (int i = 0; i < 5; ++i) data[i] = x.outputs[i].mutable_data_ptr<float>();
  x.out = {data[0], data[1], data[2], data[3], data[4], O, A, O};
  return x;
}

inline void check_size_tensor(const Tensor& size, const Tensor& field) {
  TORCH_CHECK_VALUE(size.scalar_type() == at::kLong && size.numel() == 1, "replay_sample: size is ",
                    size.scalar_type(), " of shape ", size.sizes(),
                    "; expected an int64 tensor of one element");
  TORCH_CHECK_VALUE(size.device() == field.device(), "replay_sample: size is on ", size.device(),
                    " but storage[0] is on ", field.device());
}

}  // namespace sacfast
