// The dense layers of an update, forward and backward, and the step of Adam that ends it: each phase is one
// launch over the tiles of all its products, with what follows a product done on its sums in registers.
//
//   hidden            y = relu(x W^T + b)
//   hidden gradient   dx = dy W where h > 0, else 0
//   weight gradient   dW = dy^T x;  columns: db[j] = sum_r dy[r][j],  dw[j] = sum_r dq[r] h[r][j]
//
// A weight's gradient is followed at once by Adam and, for critics, by the Polyak average of the target,
// since nothing of the same launch reads the weights. Where the batch is large, the rows are divided over
// `splits` blocks per tile, whose partial gradients adam_kernel adds up in order: no atomics, the same bytes
// every time.
#pragma once

#include "../adam.h"
#include "tiles.cuh"

namespace sacfast::cuda {

constexpr int kMostJobs = 4 * (kMaxHidden + 2);

// A matrix of rows in memory.
template <typename T>
struct Rows {
  T* data;
  int64_t stride;
};

// Several products in one launch: job n has the tiles from first[n] up to first[n + 1].
template <typename Job>
struct Jobs {
  Job job[kMostJobs];
  int first[kMostJobs + 1];
  int count;
};

// The job of this block, and the number of its tile.
template <typename Job>
__device__ __forceinline__ const Job& find_job(const Jobs<Job>& jobs, int& tile) {
  int n = 0;
  while (n + 1 < jobs.count && static_cast<int>(blockIdx.x) >= jobs.first[n + 1]) ++n;
  tile = static_cast<int>(blockIdx.x) - jobs.first[n];
  return jobs.job[n];
}

constexpr int tiles_of(int64_t extent, int size) { return static_cast<int>((extent + size - 1) / size); }

// -------------------------------------------------------------------------------------------- hidden layers

template <typename T>
struct HiddenJob {
  Rows<const T> x;             // [rows][inputs]
  const float *weight, *bias;  // [outputs][inputs], [outputs]
  Rows<T> y;                   // [rows][outputs]
  int rows, outputs, inputs;

  int tiles(int size) const { return tiles_of(rows, size) * tiles_of(outputs, size); }
};

template <Precision P, typename Size>
__global__ void __launch_bounds__(Size::kBlock)
    hidden_kernel(const __grid_constant__ Jobs<HiddenJob<Stored<P>>> jobs) {
  using T = Stored<P>;
  int tile;
  const HiddenJob<T>& job = find_job(jobs, tile);
  const int across = tiles_of(job.outputs, Size::kExtent);
  const Factor<T, true> x(job.x.data, job.x.stride, job.rows, job.inputs);
  const Factor<float, true> w(job.weight, job.inputs, job.outputs, job.inputs);
  tile_product<P, Size>(x, w, tile / across * Size::kExtent, tile % across * Size::kExtent, 0,
                        [&](int row, int output, float value, float next) {
                          if (row >= job.rows) return;
                          T* const to = job.y.data + row * job.y.stride + output;
                          if (output < job.outputs) put(to, rectified(value + job.bias[output]));
                          if (output + 1 < job.outputs) put(to + 1, rectified(next + job.bias[output + 1]));
                        });
}

template <typename T>
struct GradientJob {
  Rows<const T> dy;     // [rows][outputs]
  const float* weight;  // [outputs][inputs]
  Rows<const T> h;      // [rows][inputs]
  Rows<T> dx;           // [rows][inputs]
  int rows, outputs, inputs;

  int tiles(int size) const { return tiles_of(rows, size) * tiles_of(inputs, size); }
};

template <Precision P, typename Size>
__global__ void __launch_bounds__(Size::kBlock)
    hidden_gradient_kernel(const __grid_constant__ Jobs<GradientJob<Stored<P>>> jobs) {
  using T = Stored<P>;
  int tile;
  const GradientJob<T>& job = find_job(jobs, tile);
  const int across = tiles_of(job.inputs, Size::kExtent);
  const Factor<T, true> dy(job.dy.data, job.dy.stride, job.rows, job.outputs);
  const Factor<float, false> w(job.weight, job.inputs, job.inputs, job.outputs);
  tile_product<P, Size>(dy, w, tile / across * Size::kExtent, tile % across * Size::kExtent, 0,
                        [&](int row, int input, float value, float next) {
                          if (row >= job.rows) return;
                          const T* const h = job.h.data + row * job.h.stride + input;
                          T* const to = job.dx.data + row * job.dx.stride + input;
                          if (input < job.inputs) put(to, as_float(h[0]) > 0.0f ? value : 0.0f);
                          if (input + 1 < job.inputs) put(to + 1, as_float(h[1]) > 0.0f ? next : 0.0f);
                        });
}

// ------------------------------------------------------------------------------------ gradients of weights

// The parameters of a network with what a step changes beside them, flat; a target's may be null. With
// `partial`, [splits][size], gradients go there instead.
struct Trained {
  float *p, *m, *v, *target, *partial;
  int64_t size;
  float tau;

  __device__ __forceinline__ void step(int64_t index, float gradient, const AdamStep& adam) const {
    float mean = m[index], square = v[index];
    const float value = adam_element(p[index], mean, square, gradient, adam);
    p[index] = value, m[index] = mean, v[index] = square;
    if (target != nullptr) target[index] = interpolate(target[index], value, tau);
  }

  __device__ __forceinline__ void take(int64_t index, float gradient, const AdamStep& adam) const {
    if (partial != nullptr) {
      partial[blockIdx.y * size + index] = gradient;
    } else {
      step(index, gradient, adam);
    }
  }
};

// dW [outputs][inputs] = dy^T x, or without x the columns' sums, of `factor` times dy if there is one:
// [outputs]. The results are the parameters from `offset` on.
template <typename T>
struct WeightJob {
  Rows<const T> dy, x;  // [rows][outputs], [rows][inputs]
  const float* factor;  // [rows]
  int64_t offset;
  int rows, outputs, inputs;

  int tiles(int size) const {
    return tiles_of(outputs, size) * (x.data != nullptr ? tiles_of(inputs, size) : 1);
  }
};

// Sums over rows [begin, end) of up to kExtent columns from `first` on: threads take every so many rows of a
// column, and their sums are added in order.
template <typename T, typename Size, typename F>
__device__ __forceinline__ void column_sums(const WeightJob<T>& job, int first, int begin, int end, F use) {
  constexpr int kColumns = 32, kParts = Size::kBlock / kColumns;
  __shared__ float sums[kParts][kColumns];
  const int lane = static_cast<int>(threadIdx.x) % kColumns, part = static_cast<int>(threadIdx.x) / kColumns;
  for (int column = first; column < min(first + Size::kExtent, job.outputs); column += kColumns) {
    float sum = 0.0f;
    if (column + lane < job.outputs) {
      for (int row = begin + part; row < end; row += kParts) {
        const float number =
            job.dy.data == nullptr ? 1.0f : as_float(job.dy.data[row * job.dy.stride + column + lane]);
        sum += (job.factor == nullptr ? 1.0f : job.factor[row]) * number;
      }
    }
    sums[part][lane] = sum;
    __syncthreads();
    if (part == 0 && column + lane < job.outputs) {
      for (int other = 1; other < kParts; ++other) sum += sums[other][lane];
      use(column + lane, sum);
    }
    __syncthreads();
  }
}

// The gradients of `job`'s weights over this block's share of the rows, and the step that they are for.
template <Precision P, typename Size>
__device__ __forceinline__ void weight_gradient(const WeightJob<Stored<P>>& job, int tile,
                                                const Trained& trained, const AdamStep& adam) {
  using T = Stored<P>;
  const int slabs = tiles_of(job.rows, kSlabDepth<P>), splits = static_cast<int>(gridDim.y);
  const int each = tiles_of(slabs, splits) * kSlabDepth<P>;
  const int begin = static_cast<int>(blockIdx.y) * each, end = max(begin, min(begin + each, job.rows));
  if (job.x.data == nullptr) {
    return column_sums<T, Size>(job, tile * Size::kExtent, begin, end,
                                [&](int column, float sum) { trained.take(job.offset + column, sum, adam); });
  }
  const int across = tiles_of(job.inputs, Size::kExtent);
  const Factor<T, false> dy(job.dy.data, job.dy.stride, job.outputs, end);
  const Factor<T, false> x(job.x.data, job.x.stride, job.inputs, end);
  tile_product<P, Size>(dy, x, tile / across * Size::kExtent, tile % across * Size::kExtent, begin,
                        [&](int output, int input, float value, float next) {
                          if (output >= job.outputs) return;
                          const int64_t index =
                              job.offset + static_cast<int64_t>(output) * job.inputs + input;
                          if (input < job.inputs) trained.take(index, value, adam);
                          if (input + 1 < job.inputs) trained.take(index + 1, next, adam);
                        });
}

}  // namespace sacfast::cuda
