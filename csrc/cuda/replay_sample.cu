// index_i = floor(r_i * size / 2^64), with r_i the i-th 64 bits of the key's Philox stream
// out[f][i] = storage[f][index_i];   for insertion storage[f][(position + i) mod N] = rows[f][i]
//
// One warp per row of the batch: every lane computes the index (ten multiplications, cheaper than an
// exchange), then the lanes copy the row of each field in words of the largest size that fits rows and
// addresses. The fields' table travels by value in the kernel's parameters; key and size are read on the
// device, so that a captured graph sees their changes.
#include <cstdint>

#include "../kernels.h"
#include "launch.cuh"

namespace sacfast::cuda {
namespace {

struct Table {
  ReplayField fields[kMaxReplayFields];
  int word_bytes[kMaxReplayFields];
  int count;
};

// Fills the table with each field's word size: 16, 8, 4 or 1 bytes.
Table make_table(const ReplayField* fields, int64_t count) {
  Table table = {};
  table.count = static_cast<int>(count);
  for (int f = 0; f < table.count; ++f) {
    const ReplayField& field = table.fields[f] = fields[f];
    const uintptr_t bits = reinterpret_cast<uintptr_t>(field.storage) |
                           reinterpret_cast<uintptr_t>(field.rows) | static_cast<uintptr_t>(field.row_bytes) |
                           static_cast<uintptr_t>(field.stride_bytes);
    table.word_bytes[f] = bits % 16 == 0 ? 16 : bits % 8 == 0 ? 8 : bits % 4 == 0 ? 4 : 1;
  }
  return table;
}

template <typename Word>
__device__ __forceinline__ void copy_words(char* out, const char* in, int64_t bytes, int lane) {
  const int64_t words = bytes / static_cast<int64_t>(sizeof(Word));
  for (int64_t i = lane; i < words; i += kWarp)
    reinterpret_cast<Word*>(out)[i] = reinterpret_cast<const Word*>(in)[i];
}

__device__ __forceinline__ void copy_row(char* out, const char* in, int64_t bytes, int word_bytes, int lane) {
  switch (word_bytes) {
    case 16:
      return copy_words<uint4>(out, in, bytes, lane);
    case 8:
      return copy_words<uint2>(out, in, bytes, lane);
    case 4:
      return copy_words<uint32_t>(out, in, bytes, lane);
    default:
      return copy_words<char>(out, in, bytes, lane);
  }
}

__global__ void replay_sample_kernel(const __grid_constant__ Table table, int64_t N,
                                     const int64_t* __restrict__ size, const int64_t* __restrict__ key,
                                     int64_t* __restrict__ indices, int64_t B) {
  const PhiloxKey philox = philox_key(key);
  const int64_t rows = min(max(*size, int64_t{1}), N);
  const int lane = threadIdx.x % kWarp;
  for (int64_t i = thread_index() / kWarp; i < B; i += thread_count() / kWarp) {
    const PhiloxWords words = philox4x32(philox, static_cast<uint32_t>(i / 2));
    const int64_t index =
        i % 2 ? random_index(words.w2, words.w3, rows) : random_index(words.w0, words.w1, rows);
    if (lane == 0) indices[i] = index;
    for (int f = 0; f < table.count; ++f) {
      const ReplayField& field = table.fields[f];
      copy_row(field.rows + i * field.row_bytes, field.storage + index * field.stride_bytes, field.row_bytes,
               table.word_bytes[f], lane);
    }
  }
}

__global__ void replay_insert_kernel(const __grid_constant__ Table table, int64_t N, int64_t n,
                                     int64_t position) {
  const int lane = threadIdx.x % kWarp;
  for (int64_t i = thread_index() / kWarp; i < n; i += thread_count() / kWarp) {
    const int64_t row = (position + i) % N;
    for (int f = 0; f < table.count; ++f) {
      const ReplayField& field = table.fields[f];
      copy_row(field.storage + row * field.stride_bytes, field.rows + i * field.row_bytes, field.row_bytes,
               table.word_bytes[f], lane);
    }
  }
}

}  // namespace

int launch_replay_sample(const ReplayField* fields, int64_t count, int64_t N, const int64_t* size,
                         const int64_t* key, int64_t* indices, int64_t B, void* stream) {
  if (B == 0) return 0;
  return launch(replay_sample_kernel, blocks_for(B * kWarp), kThreads, 0, stream, make_table(fields, count),
                N, size, key, indices, B);
}

int launch_replay_insert(const ReplayField* fields, int64_t count, int64_t N, int64_t n, int64_t position,
                         void* stream) {
  if (n == 0) return 0;
  return launch(replay_insert_kernel, blocks_for(n * kWarp), kThreads, 0, stream, make_table(fields, count),
                N, n, position);
}

}  // namespace sacfast::cuda
