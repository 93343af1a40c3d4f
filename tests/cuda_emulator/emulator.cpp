#include "emulator.h"

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

#include "guarded.h"

struct EmulatedGraph {
  std::vector<std::function<void()>> line;
};
struct EmulatedStream {
  EmulatedGraph* capturing = nullptr;
};
struct EmulatedEvent {
  std::chrono::steady_clock::time_point recorded;
};

namespace emulator {
namespace {

constexpr int kWarp = 32;
constexpr size_t kStackBytes = 128 << 10;
constexpr size_t kGuardBytes = 4096;

[[noreturn]] void fail(const char* what) {
  fprintf(stderr, "CUDA emulator: %s (block %u, %u; thread %u)\n", what, blockIdx.x, blockIdx.y, threadIdx.x);
  abort();
}

// A thread of the block: a stack of its own, entered by ucontext once, and then by longjmp, which makes no
// system call.
struct Fiber {
  char* stack = nullptr;
  jmp_buf here;
  bool started = false, done = false;
  Wait waiting = Wait::kNothing;

  Fiber() {
    void* const memory =
        mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) fail("no memory for a thread");
    stack = static_cast<char*>(memory);
  }
};

struct Machine {
  std::mutex one_launch;
  std::vector<std::unique_ptr<Fiber>> fibers;  // kept from launch to launch
  std::vector<Exchange> warps;
  std::vector<char> shared;
  std::function<void()>* thread = nullptr;
  int threads = 0, current = 0, schedule = 0;
  std::mt19937 random{1};
  jmp_buf scheduler;
  ucontext_t entry;

  // The order in which `n` blocks or threads are taken.
  std::vector<int> order(int n) {
    std::vector<int> all(n);
    std::iota(all.begin(), all.end(), 0);
    if (schedule == 1) std::reverse(all.begin(), all.end());
    if (schedule > 1) std::shuffle(all.begin(), all.end(), random);
    return all;
  }
};

Machine machine;

void enter() {
  (*machine.thread)();
  machine.fibers[machine.current]->done = true;
  _longjmp(machine.scheduler, 1);
}

// Continues a fiber until it waits or ends.
void resume(int thread) {
  Fiber& fiber = *machine.fibers[thread];
  machine.current = thread;
  threadIdx = dim3(static_cast<unsigned>(thread), 0, 0);
  if (_setjmp(machine.scheduler) != 0) return;
  if (fiber.started) _longjmp(fiber.here, 1);
  fiber.started = true;
  getcontext(&machine.entry);
  machine.entry.uc_stack.ss_sp = fiber.stack;
  machine.entry.uc_stack.ss_size = kStackBytes;
  machine.entry.uc_link = nullptr;
  makecontext(&machine.entry, enter, 0);
  setcontext(&machine.entry);
}

// Lets the threads [begin, end) go on if all of them wait for the same.
bool release(int begin, int end, bool block) {
  const Wait first = machine.fibers[begin]->waiting;
  if (first == Wait::kNothing || (first == Wait::kBlock) != block) return false;
  for (int t = begin; t < end; ++t) {
    if (machine.fibers[t]->done || machine.fibers[t]->waiting != first) return false;
  }
  for (int t = begin; t < end; ++t) machine.fibers[t]->waiting = Wait::kNothing;
  return true;
}

void run_block(int64_t shared_bytes) {
  machine.shared.assign(static_cast<size_t>(shared_bytes) + 2 * kGuardBytes, '\xFF');
  for (int t = 0; t < machine.threads; ++t) {
    Fiber& fiber = *machine.fibers[t];
    fiber.started = fiber.done = false, fiber.waiting = Wait::kNothing;
  }
  for (bool any = true; any;) {
    any = false;
    bool moved = false;
    for (const int t : machine.order(machine.threads)) {
      Fiber& fiber = *machine.fibers[t];
      if (fiber.done) continue;
      any = true;
      if (fiber.waiting == Wait::kNothing) {
        resume(t);
        moved = true;
      }
    }
    for (int t = 0; t < machine.threads; t += kWarp) {
      if (release(t, std::min(t + kWarp, machine.threads), false)) moved = true;
    }
    if (release(0, machine.threads, true)) moved = true;
    if (any && !moved) fail("threads wait at different places, or for one that has ended");
  }
  const auto untouched = [](const char* from) {
    return std::all_of(from, from + kGuardBytes, [](char byte) { return byte == '\xFF'; });
  };
  const char* const shared = machine.shared.data();
  if (!untouched(shared) || !untouched(shared + kGuardBytes + shared_bytes)) {
    fail("a thread wrote beyond the block's shared memory");
  }
}

void run_grid(std::function<void()>& thread, dim3 grid, int threads, int64_t shared_bytes) {
  const std::lock_guard<std::mutex> lock(machine.one_launch);
  while (static_cast<int>(machine.fibers.size()) < threads)
    machine.fibers.push_back(std::make_unique<Fiber>());
  machine.warps.resize(static_cast<size_t>(threads + kWarp - 1) / kWarp);
  machine.thread = &thread, machine.threads = threads;
  gridDim = grid, blockDim = dim3(static_cast<unsigned>(threads));
  for (const int block : machine.order(static_cast<int>(grid.x * grid.y))) {
    blockIdx = dim3(static_cast<unsigned>(block) % grid.x, static_cast<unsigned>(block) / grid.x);
    run_block(shared_bytes);
  }
}

float number(uint32_t word, int half, bool bf16) {
  const uint32_t bits = !bf16 ? word & 0xFFFFE000u : half == 0 ? word << 16 : word & 0xFFFF0000u;
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

// D of all lanes; the layouts are those of the PTX ISA, as csrc/cuda/tiles.cuh states them.
void multiply(Exchange& x) {
  for (int row = 0; row < 16; ++row) {
    for (int column = 0; column < 8; ++column) {
      float& d = x.d[row % 8 * 4 + column / 2][row / 8 * 2 + column % 2];
      for (int word = 0; word < 8; ++word) {
        const uint32_t a = x.a[row % 8 * 4 + word % 4][word / 4 * 2 + row / 8];
        const uint32_t b = x.b[column * 4 + word % 4][word / 4];
        for (int half = 0; half < (x.bf16 ? 2 : 1); ++half)
          d += number(a, half, x.bf16) * number(b, half, x.bf16);
      }
    }
  }
}

}  // namespace

Exchange& exchange() { return machine.warps[machine.current / kWarp]; }
int lane() { return machine.current % kWarp; }

void wait(Wait for_what) {
  Fiber& fiber = *machine.fibers[machine.current];
  fiber.waiting = for_what;
  if (_setjmp(fiber.here) == 0) _longjmp(machine.scheduler, 1);
}

float* dynamic_shared() { return reinterpret_cast<float*>(machine.shared.data() + kGuardBytes); }

void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], bool bf16) {
  Exchange& all = exchange();
  const int mine = lane();
  std::copy(a, a + 4, all.a[mine]), std::copy(b, b + 2, all.b[mine]), std::copy(d, d + 4, all.d[mine]);
  all.bf16 = bf16;
  wait(Wait::kMultiply);
  if (mine == 0) multiply(all);
  wait(Wait::kWarp);
  std::copy(all.d[mine], all.d[mine] + 4, d);
  wait(Wait::kWarp);  // until everybody has read
}

int enqueue(std::function<void()> thread, dim3 grid, int threads, int64_t shared_bytes, void* stream) {
  if (threads < 1 || threads > 1024 || grid.x < 1 || grid.y < 1 || grid.y > 65535 ||
      shared_bytes > 48 << 10) {
    return 9;  // cudaErrorInvalidConfiguration
  }
  auto run = [=]() mutable { run_grid(thread, grid, threads, shared_bytes); };
  auto* const on = static_cast<EmulatedStream*>(stream);
  if (on != nullptr && on->capturing != nullptr) {
    on->capturing->line.emplace_back(run);
  } else {
    run();
  }
  return 0;
}

}  // namespace emulator

SACFAST_EXPORT void emulator_set_schedule(int schedule) {
  emulator::machine.schedule = schedule;
  emulator::machine.random.seed(static_cast<unsigned>(schedule));
}
SACFAST_EXPORT const char* sacfast_error() { return sacfast::last_error.c_str(); }

// A multiprocessor count that gives these tests' small batches both tile sizes, and weight gradients in
// parts.
static int multiprocessors = 132;
SACFAST_EXPORT void emulator_set_multiprocessors(int count) { multiprocessors = count; }
static int graphs_made = 0;
SACFAST_EXPORT int emulator_graphs_made() { return graphs_made; }
static bool graphs_fail = false;
SACFAST_EXPORT void emulator_let_graphs_fail(int fail) { graphs_fail = fail != 0; }

// As CUDA does, a failure is kept until it is asked for: PyTorch asks after each of its own kernels.
static cudaError_t last_error = 0;
SACFAST_EXPORT int emulator_last_error() { return last_error; }
cudaError_t cudaGetLastError() { return std::exchange(last_error, 0); }

const char* cudaGetErrorString(cudaError_t error) {
  return error == 2 ? "out of memory" : "invalid configuration";
}
cudaError_t cudaGetDevice(int* device) { return *device = 0; }
cudaError_t cudaSetDevice(int) { return 0; }
cudaError_t cudaDeviceGetAttribute(int* value, int attribute, int) {
  *value = attribute == cudaDevAttrMultiProcessorCount ? multiprocessors : 9;
  return 0;
}
cudaError_t cudaDeviceSynchronize() { return 0; }
cudaError_t cudaMalloc(void** memory, size_t bytes) {
  *memory = malloc(bytes);
  return *memory == nullptr ? 2 : cudaMemset(*memory, 0xFF, bytes);
}
cudaError_t cudaFree(void* memory) {
  free(memory);
  return 0;
}
cudaError_t cudaHostAlloc(void** memory, size_t bytes, unsigned) { return cudaMalloc(memory, bytes); }
cudaError_t cudaFreeHost(void* memory) { return cudaFree(memory); }
cudaError_t cudaMemset(void* memory, int value, size_t bytes) {
  memset(memory, value, bytes);
  return 0;
}
cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t) {
  return cudaMemset(memory, value, bytes);
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  *stream = new EmulatedStream;
  return 0;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  delete stream;
  return 0;
}
cudaError_t cudaStreamSynchronize(cudaStream_t) { return 0; }
cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) { return 0; }
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, int) {
  stream->capturing = new EmulatedGraph;
  return 0;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  *graph = stream->capturing;
  stream->capturing = nullptr;
  return 0;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* made, cudaGraph_t graph, unsigned long long) {
  if (graphs_fail) return last_error = 2;
  *made = new EmulatedGraph(*graph);
  ++graphs_made;
  return 0;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t) {
  for (const std::function<void()>& node : graph->line) node();
  return 0;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return 0;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) { return cudaGraphDestroy(graph); }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = new EmulatedEvent;
  return 0;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t) {
  event->recorded = std::chrono::steady_clock::now();
  return 0;
}
cudaError_t cudaEventSynchronize(cudaEvent_t) { return 0; }
cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t from, cudaEvent_t to) {
  *ms = std::chrono::duration<float, std::milli>(to->recorded - from->recorded).count();
  return 0;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return 0;
}
