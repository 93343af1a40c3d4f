// u = mean + exp(log_std) * noise,  a = tanh(u),
// log pi = sum_i [-noise_i^2 / 2 - log_std_i - log(2 pi) / 2 - log(1 - a_i^2)]
// (SAC, arXiv:1801.01290, eq. 21)
//
// Parallel over rows (the caller's threads). Within a range of rows the elements are taken flat, a tile at a
// time: one vectorised loop of fixed length computes actions and terms, then the terms are added to their
// rows in order. The last tile is padded, so that an element's bytes do not depend on where a range begins or
// ends.
#include <algorithm>

#include "kernels.h"

namespace sacfast::cpu {
namespace {

constexpr int64_t kTile = 256;

template <typename T>
struct Tile {
  alignas(64) T values[kTile];

  // The tile's elements of `data`: in place where there are enough of them, else padded with zeros.
  const T* load(const T* data, int64_t n) {
    if (n == kTile) return data;
    std::copy_n(data, n, values);
    std::fill(values + n, values + kTile, T(0));
    return values;
  }

  T* output(T* data, int64_t n) { return n == kTile ? data : values; }

  void store(T* data, int64_t n) const {
    if (n != kTile) std::copy_n(values, n, data);
  }
};

template <typename T>
void draw_tile(const PhiloxKey& key, uint32_t block, T* __restrict out) {
  for (int64_t b = 0; b < kTile / 4; ++b) draw_normals(key, block + static_cast<uint32_t>(b), out + 4 * b);
}

template <typename T>
void forward_tile(const T* __restrict mean, const T* __restrict log_std, const T* __restrict noise,
                  T* __restrict action, T* __restrict term) {
  for (int64_t i = 0; i < kTile; ++i) {
    const Pair<T> result = squashed_gaussian_element(mean[i], log_std[i], noise[i]);
    action[i] = result.first;
    term[i] = result.second;
  }
}

template <typename T>
void backward_tile(const T* __restrict grad_action, const T* __restrict grad_log_prob,
                   const T* __restrict mean, const T* __restrict log_std, const T* __restrict noise,
                   T* __restrict grad_mean, T* __restrict grad_log_std) {
  for (int64_t i = 0; i < kTile; ++i) {
    const Pair<T> result =
        squashed_gaussian_element_gradient(grad_action[i], grad_log_prob[i], mean[i], log_std[i], noise[i]);
    grad_mean[i] = result.first;
    grad_log_std[i] = result.second;
  }
}

// Adds terms to the rows they belong to, carrying an unfinished row from tile to tile.
template <typename T>
struct RowSum {
  T* log_prob;
  int64_t A, column = 0;
  T sum = 0;

  void add(const T* term, int64_t n) {
    const T* const end = term + n;
    while (end - term >= A - column) {
      T total = sum;
      for (const T* stop = term + (A - column); term < stop; ++term) total += *term;
      *log_prob++ = total;
      sum = 0;
      column = 0;
    }
    column += end - term;
    for (; term < end; ++term) sum += *term;
  }
};

}  // namespace

template <typename T>
void normal(const int64_t* key, T* out, int64_t begin, int64_t end) {
  const PhiloxKey philox = philox_key(key);
  Tile<T> tile;
  for (int64_t i = begin; i < end; i += kTile) {
    const int64_t n = std::min(kTile, end - i);
    draw_tile(philox, static_cast<uint32_t>(i / 4), tile.output(out + i, n));
    tile.store(out + i, n);
  }
}

template <typename T>
void squashed_gaussian(const T* mean, const T* log_std, const T* noise, T* action, T* log_prob, int64_t A,
                       int64_t begin, int64_t end) {
  Tile<T> mean_tile, log_std_tile, noise_tile, action_tile, terms;
  RowSum<T> rows{log_prob + begin, A};
  for (int64_t i = begin * A; i < end * A; i += kTile) {
    const int64_t n = std::min(kTile, end * A - i);
    forward_tile(mean_tile.load(mean + i, n), log_std_tile.load(log_std + i, n),
                 noise_tile.load(noise + i, n), action_tile.output(action + i, n), terms.values);
    action_tile.store(action + i, n);
    rows.add(terms.values, n);
  }
}

template <typename T>
void squashed_gaussian_key(const T* mean, const T* log_std, const int64_t* key, T* action, T* log_prob,
                           T* noise, int64_t A, int64_t begin, int64_t end) {
  const PhiloxKey philox = philox_key(key);
  Tile<T> mean_tile, log_std_tile, noise_tile, action_tile, terms;
  RowSum<T> rows{log_prob + begin, A};
  for (int64_t i = begin * A; i < end * A; i += kTile) {
    const int64_t n = std::min(kTile, end * A - i);
    T* drawn = noise_tile.output(noise + i, n);
    draw_tile(philox, static_cast<uint32_t>(i / 4), drawn);
    forward_tile(mean_tile.load(mean + i, n), log_std_tile.load(log_std + i, n), static_cast<const T*>(drawn),
                 action_tile.output(action + i, n), terms.values);
    noise_tile.store(noise + i, n);
    action_tile.store(action + i, n);
    rows.add(terms.values, n);
  }
}

template <typename T>
void squashed_gaussian_backward(const T* grad_action, const T* grad_log_prob, const T* mean, const T* log_std,
                                const T* noise, T* grad_mean, T* grad_log_std, int64_t A, int64_t begin,
                                int64_t end) {
  Tile<T> grad_tile, spread, mean_tile, log_std_tile, noise_tile, grad_mean_tile, grad_log_std_tile;
  int64_t row = begin, column = 0;
  for (int64_t i = begin * A; i < end * A; i += kTile) {
    const int64_t n = std::min(kTile, end * A - i);
    for (int64_t j = 0; j < n;) {  // each row's grad_log_prob, once per element
      const int64_t stop = std::min(n, j + A - column);
      column += stop - j;
      for (; j < stop; ++j) spread.values[j] = grad_log_prob[row];
      if (column == A) {
        ++row;
        column = 0;
      }
    }
    std::fill(spread.values + n, spread.values + kTile, T(0));
    backward_tile(grad_tile.load(grad_action + i, n), static_cast<const T*>(spread.values),
                  mean_tile.load(mean + i, n), log_std_tile.load(log_std + i, n),
                  noise_tile.load(noise + i, n), grad_mean_tile.output(grad_mean + i, n),
                  grad_log_std_tile.output(grad_log_std + i, n));
    grad_mean_tile.store(grad_mean + i, n);
    grad_log_std_tile.store(grad_log_std + i, n);
  }
}

#define SACFAST_INSTANTIATE(T)                                                                             \
  template void normal<T>(const int64_t*, T*, int64_t, int64_t);                                           \
  template void squashed_gaussian<T>(const T*, const T*, const T*, T*, T*, int64_t, int64_t, int64_t);     \
  template void squashed_gaussian_key<T>(const T*, const T*, const int64_t*, T*, T*, T*, int64_t, int64_t, \
                                         int64_t);                                                         \
  template void squashed_gaussian_backward<T>(const T*, const T*, const T*, const T*, const T*, T*, T*,    \
                                              int64_t, int64_t, int64_t);
SACFAST_INSTANTIATE(float)
SACFAST_INSTANTIATE(double)
#undef SACFAST_INSTANTIATE

}  // namespace sacfast::cpu
