// Rows of a table that lie anywhere in memory: copying them, and asking for them early. The time goes into
// waiting for cache lines, so each is prefetched many rows ahead, and into L2, because L1 can wait for only a
// third to a half as many lines at once.
#pragma once

#include <cstdint>
#include <cstring>

namespace sacfast::cpu {

constexpr int64_t kLineBytes = 64;

inline void prefetch_row(const char* row, int64_t bytes) {
  for (int64_t offset = 0; offset < bytes; offset += kLineBytes) __builtin_prefetch(row + offset, 0, 2);
  __builtin_prefetch(row + bytes - 1, 0, 2);
}

// Copies Bytes at the beginning and Bytes at the end, which may overlap: any length from Bytes to 2 Bytes.
template <int64_t Bytes>
inline void copy_ends(char* out, const char* row, int64_t bytes) {
  char first[Bytes], last[Bytes];
  memcpy(first, row, Bytes);
  memcpy(last, row + bytes - Bytes, Bytes);
  memcpy(out, first, Bytes);
  memcpy(out + bytes - Bytes, last, Bytes);
}

// memcpy with the small sizes inline: a call for each of five fields would be half of the time in cache.
inline void copy_row(char* out, const char* row, int64_t bytes) {
  if (bytes > 256) {
    memcpy(out, row, bytes);
  } else if (bytes >= 32) {
    for (int64_t offset = 0; offset + 32 < bytes; offset += 32) memcpy(out + offset, row + offset, 32);
    memcpy(out + bytes - 32, row + bytes - 32, 32);
  } else if (bytes >= 16) {
    copy_ends<16>(out, row, bytes);
  } else if (bytes >= 8) {
    copy_ends<8>(out, row, bytes);
  } else if (bytes >= 4) {
    copy_ends<4>(out, row, bytes);
  } else {
    for (int64_t i = 0; i < bytes; ++i) out[i] = row[i];
  }
}

}  // namespace sacfast::cpu
