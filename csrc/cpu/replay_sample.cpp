// index_i = floor(r_i * size / 2^64), with r_i the i-th 64 bits of the key's Philox stream
// out[f][i] = storage[f][index_i]
//
// Parallel over samples (the caller's threads). A chunk of indices is drawn into a small buffer, then each
// field is gathered as bytes, each row prefetched 64 rows ahead.
#include <algorithm>
#include <cstring>

#include "kernels.h"
#include "rows.h"

namespace sacfast::cpu {
namespace {

constexpr int64_t kChunk = 256;
constexpr int64_t kAhead = 64;

void gather(const ReplayField& field, const int64_t* indices, char* out, int64_t n) {
  const int64_t bytes = field.row_bytes, stride = field.stride_bytes;
  if (bytes == 0) return;
  for (int64_t i = 0; i < std::min(kAhead, n); ++i) prefetch_row(field.storage + indices[i] * stride, bytes);
  for (int64_t i = 0; i < n; ++i) {
    if (i + kAhead < n) prefetch_row(field.storage + indices[i + kAhead] * stride, bytes);
    copy_row(out + i * bytes, field.storage + indices[i] * stride, bytes);
  }
}

}  // namespace

void replay_sample(const ReplayField* fields, int64_t count, int64_t size, const int64_t* key,
                   int64_t* indices, int64_t begin, int64_t end) {
  const PhiloxKey philox = philox_key(key);
  for (int64_t i = begin; i < end; i += kChunk) {
    int64_t drawn[kChunk];
    draw_indices(philox, i, i + kChunk, size, drawn);
    const int64_t n = std::min(kChunk, end - i);
    memcpy(indices + i, drawn, n * sizeof(int64_t));
    for (int64_t f = 0; f < count; ++f) gather(fields[f], drawn, fields[f].rows + i * fields[f].row_bytes, n);
  }
}

void replay_insert(const ReplayField* fields, int64_t count, int64_t N, int64_t n, int64_t position) {
  const int64_t before_end = std::min(n, N - position);
  for (int64_t f = 0; f < count; ++f) {
    const int64_t bytes = fields[f].row_bytes;
    memcpy(fields[f].storage + position * bytes, fields[f].rows, before_end * bytes);
    memcpy(fields[f].storage, fields[f].rows + before_end * bytes, (n - before_end) * bytes);
  }
}

}  // namespace sacfast::cpu
