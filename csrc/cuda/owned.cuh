// What an engine has of its device beside the caller's workspace, and making that device the current one.
#pragma once

#include "rows.cuh"
#include "sac_update.cuh"

namespace sacfast::cuda {

// Makes `device` the current one for as long as this lives. Where it is so already, nothing is set: that
// alone may take memory of a device that the process does not use.
class OnDevice {
 public:
  explicit OnDevice(int device) : before_(device), device_(device) {
    cudaGetDevice(&before_);
    if (before_ != device_) cudaSetDevice(device_);
  }
  ~OnDevice() {
    if (before_ != device_) cudaSetDevice(before_);
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  int before_, device_;
};

struct Owned {
  int device = 0;
  Call* call = nullptr;
  int64_t* refused = nullptr;
  volatile int64_t* host_refused = nullptr;
  cudaStream_t capture = nullptr;
  cudaEvent_t done = nullptr;  // recorded behind the last update

  Owned() {
    try {
      acquire();
    } catch (...) {
      release();
      throw;
    }
  }
  ~Owned() {
    const OnDevice on(device);
    release();
  }
  Owned(const Owned&) = delete;
  Owned& operator=(const Owned&) = delete;

  void acquire() {
    check(cudaGetDevice(&device), "cudaGetDevice");
    check(cudaMalloc(reinterpret_cast<void**>(&call), sizeof(Call)), "memory for a call");
    check(cudaMalloc(reinterpret_cast<void**>(&refused), sizeof(int64_t)), "memory for a call");
    check(cudaMemset(refused, 0xFF, sizeof(int64_t)), "cudaMemset");
    check(cudaStreamSynchronize(nullptr), "cudaMemset");  // of which other streams know nothing
    void* mapped;
    check(cudaHostAlloc(&mapped, sizeof(int64_t), cudaHostAllocMapped), "pinned memory");
    host_refused = static_cast<int64_t*>(mapped);
    *host_refused = -1;
    check(cudaStreamCreateWithFlags(&capture, cudaStreamNonBlocking), "a stream");
    check(cudaEventCreateWithFlags(&done, cudaEventDisableTiming), "an event");
  }

  void release() {
    cudaFree(call);
    cudaFree(refused);
    cudaFreeHost(const_cast<int64_t*>(host_refused));
    if (capture != nullptr) cudaStreamDestroy(capture);
    if (done != nullptr) cudaEventDestroy(done);
  }
};

}  // namespace sacfast::cuda
