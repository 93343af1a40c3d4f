// Argument checks of the bindings. Each failure raises ValueError in Python with the operator, the argument's
// name, what it is and what it should be.
#pragma once

#include <ATen/MemoryOverlap.h>
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <string>
#include <utility>

#include "kernels.h"

namespace sacfast {

inline void check_shape(const char* op, const char* name, const at::Tensor& tensor, at::IntArrayRef shape,
                        const char* like) {
  TORCH_CHECK_VALUE(tensor.sizes() == shape, op, ": ", name, " has shape ", tensor.sizes(), "; expected ",
                    shape, like);
}

// Same device and dtype as `model`.
inline void check_kind(const char* op, const char* name, const at::Tensor& tensor, const char* model_name,
                       const at::Tensor& model) {
  TORCH_CHECK_VALUE(tensor.device() == model.device(), op, ": ", name, " is on ", tensor.device(), " but ",
                    model_name, " is on ", model.device(), "; move one of them");
  TORCH_CHECK_VALUE(tensor.scalar_type() == model.scalar_type(), op, ": ", name, " is ", tensor.scalar_type(),
                    " but ", model_name, " is ", model.scalar_type(), "; convert one of them");
}

inline void check_like(const char* op, const char* name, const at::Tensor& tensor, const char* model_name,
                       const at::Tensor& model) {
  check_kind(op, name, tensor, model_name, model);
  TORCH_CHECK_VALUE(tensor.sizes() == model.sizes(), op, ": ", name, " has shape ", tensor.sizes(),
                    "; expected ", model.sizes(), " like ", model_name);
}

// [B, A] in float32 or float64.
inline void check_matrix(const char* op, const char* name, const at::Tensor& tensor) {
  TORCH_CHECK_VALUE(tensor.dim() == 2 && tensor.size(1) >= 1, op, ": ", name, " has shape ", tensor.sizes(),
                    "; expected [B, A] with A at least 1");
  TORCH_CHECK_VALUE(tensor.scalar_type() == at::kFloat || tensor.scalar_type() == at::kDouble, op, ": ", name,
                    " is ", tensor.scalar_type(), "; the native operator takes float32 or float64");
}

// (seed, stream, step), beside the data so that a CUDA graph can advance it in place.
inline void check_key(const char* op, const at::Tensor& key, at::Device device) {
  TORCH_CHECK_VALUE(
      key.scalar_type() == at::kLong && key.dim() == 1 && key.size(0) == 3 && key.is_contiguous(), op,
      ": key is ", key.scalar_type(), " of shape ", key.sizes(),
      "; expected a contiguous int64 tensor [3] = (seed, stream, step)");
  TORCH_CHECK_VALUE(key.device() == device, op, ": key is on ", key.device(), " but the data is on ", device,
                    "; make the key with random_key(..., device=\"", device, "\")");
}

// The 32-bit block counter covers 2^34 normals (2^33 indices).
inline void check_draw(const char* op, int64_t numel) {
  TORCH_CHECK_VALUE(numel >= 0 && numel <= (int64_t{1} << 33), op, ": cannot draw ", numel,
                    " numbers from one key; expected 0 to 2^33");
}

// Whether each row of `field` [N, ...] is dense, wherever the next one begins.
inline bool has_dense_rows(const at::Tensor& field) {
  int64_t expected = 1;
  for (int64_t d = field.dim() - 1; d >= 1; --d) {
    if (field.size(d) != 1 && field.stride(d) != expected) return false;
    expected *= field.size(d);
  }
  return true;
}

// Storage of a replay buffer: [N, ...] tensors, one device, N >= 1. To be written they are contiguous, to be
// read they may be columns of wider records. Returns N.
inline int64_t check_storage(const char* op, at::TensorList storage, bool written) {
  TORCH_CHECK_VALUE(!storage.empty(), op, ": storage has no fields; expected at least 1");
  TORCH_CHECK_VALUE(!storage[0].is_cuda() || storage.size() <= size_t{cuda::kMaxReplayFields}, op,
                    ": storage has ", storage.size(), " fields; expected at most ", cuda::kMaxReplayFields,
                    " on a GPU");
  for (size_t i = 0; i < storage.size(); ++i) {
    const at::Tensor& field = storage[i];
    TORCH_CHECK_VALUE(
        field.dim() >= 1 && field.size(0) >= 1 && (written ? field.is_contiguous() : has_dense_rows(field)),
        op, ": storage[", i, "] has shape ", field.sizes(), " and strides ", field.strides(), "; expected ",
        written ? "a contiguous tensor" : "contiguous rows", " [N, ...] with N at least 1");
    TORCH_CHECK_VALUE(field.size(0) == storage[0].size(0), op, ": storage[", i, "] holds ", field.size(0),
                      " rows but storage[0] holds ", storage[0].size(0));
    TORCH_CHECK_VALUE(field.device() == storage[0].device(), op, ": storage[", i, "] is on ", field.device(),
                      " but storage[0] is on ", storage[0].device());
  }
  return storage[0].size(0);
}

// rows[i]: [n, ...] like storage[i]. Returns n.
inline int64_t check_rows(const char* op, at::TensorList storage, at::TensorList rows) {
  TORCH_CHECK_VALUE(rows.size() == storage.size(), op, ": rows has ", rows.size(), " fields but storage has ",
                    storage.size());
  for (size_t i = 0; i < rows.size(); ++i) {
    const at::Tensor &row = rows[i], &field = storage[i];
    TORCH_CHECK_VALUE(row.dim() == field.dim() && row.sizes().slice(1) == field.sizes().slice(1), op,
                      ": rows[", i, "] has shape ", row.sizes(), "; expected [n, ...] like storage[", i,
                      "] of shape ", field.sizes());
    TORCH_CHECK_VALUE(row.size(0) == rows[0].size(0), op, ": rows[", i, "] has ", row.size(0),
                      " rows but rows[0] has ", rows[0].size(0));
    TORCH_CHECK_VALUE(row.device() == field.device() && row.scalar_type() == field.scalar_type(), op,
                      ": rows[", i, "] is ", row.scalar_type(), " on ", row.device(), "; expected ",
                      field.scalar_type(), " on ", field.device(), " like storage[", i, "]");
  }
  return rows[0].size(0);
}

// The stretch of memory from a tensor's first element to its last, which is written, or only read.
struct Extent {
  const char* begin;
  const char* end;
  bool written;
};

inline Extent extent_of(const at::Tensor& tensor, bool written) {
  const char* begin = static_cast<const char*>(tensor.const_data_ptr());
  if (tensor.numel() == 0) return {begin, begin, written};
  int64_t last = 0;
  for (int64_t d = 0; d < tensor.dim(); ++d) last += (tensor.size(d) - 1) * tensor.stride(d);
  return {begin, begin + (last + 1) * static_cast<int64_t>(tensor.element_size()), written};
}

// No written extent may meet another one; extents that are only read may.
template <typename Extents>
void check_disjoint(const char* op, Extents& extents, const char* remedy) {
  std::sort(extents.begin(), extents.end(),
            [](const Extent& a, const Extent& b) { return a.begin < b.begin; });
  const char *end_of_any = nullptr, *end_of_written = nullptr;
  for (const Extent& extent : extents) {
    if (extent.begin == extent.end) continue;
    TORCH_CHECK_VALUE(extent.begin >= (extent.written ? end_of_any : end_of_written), op, ": ", remedy);
    end_of_any = std::max(end_of_any, extent.end);
    if (extent.written) end_of_written = std::max(end_of_written, extent.end);
  }
}

}  // namespace sacfast
