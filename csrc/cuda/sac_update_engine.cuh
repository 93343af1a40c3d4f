// One SAC update (arXiv:1812.05905, algorithm 1; sacfast/engines/reference.py is the readable version) as a
// line of phases, each one launch that uses the whole GPU (Adam's steps have one more where large batches are
// split):
//
//   gather             batch -> (s, a), (s', .), (s, .)
//   forward            hidden layers of pi(s'), pi(s), Q_1(s, a), Q_2(s, a): one launch per layer
//   policy             heads, a' ~ pi(s'), a ~ pi(s)
//   target             hidden layers of Qbar_1, Qbar_2 at (s', a')
//   TD error           values, y, dJ/dQ_i, and back one layer
//   critic backward    through the hidden layers but the first
//   critic step        all weights' gradients, Adam, Polyak
//   policy's critics   hidden layers of Q_1, Q_2 at (s, a), with the new weights
//   policy's value     min_i Q_i, and back one layer
//   action gradient    back to the critics' first layers; to the action; through tanh and the Gaussian
//   actor backward     through the hidden layers but the first
//   actor step         all weights' gradients, Adam; the temperature; metrics
//
// An update that leaves the actor as it is computes no pi(s), and has no launches from the policy's critics
// to the actor's backward pass. The weights are the float32 masters themselves: there is no packed copy to go
// stale. Up to 32 updates are one CUDA graph. What differs from launch to launch (counters, Adam's
// corrections, where the transitions are) comes in the parameters of the kernel before it.
#include <array>
#include <map>
#include <stdexcept>
#include <string>
#include <utility>

#include "owned.cuh"
#include "sac_update.cuh"
#include "steps.cuh"
#include "workspace.cuh"

namespace sacfast::cuda {

template <typename T>
Rows<const T> constant(const Rows<T>& rows) {
  return {rows.data, rows.stride};
}

inline int count_multiprocessors() {
  int device, count;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device), "the GPU's attributes");
  return count;
}

template <Precision P>
class Engine final : public SacUpdate {
  using T = Stored<P>;

 public:
  explicit Engine(const UpdateSpec& spec) : spec_(spec) {
    for (int64_t l = 1; l < spec.hidden_layers; ++l) backward_layers_.push_back(spec.hidden_layers - l);
    name_phases();
  }

  // Work in flight on any stream uses the engine's memory.
  ~Engine() override {
    const OnDevice on(owned_.device);
    if (cudaDeviceSynchronize() != 0) {  // not while another thread captures a graph
      cudaGetLastError();
      cudaEventSynchronize(owned_.done);
    }
    forget_graphs();
  }

  int64_t workspace_bytes(int64_t batch_size) override { return memory_.bytes(batch_size); }

  Result run(UpdateCall& call, void* workspace, void* stream) override {
    if (*owned_.host_refused >= 0) return set_back_to_refused(call.state, stream);
    prepare(call, workspace, stream);
    while (call.updates > 0) {
      const int n = static_cast<int>(std::min<int64_t>(call.updates, kMostUpdates));
      advance(call, n, stream, [&](uint32_t acting) {
        check(cudaGraphLaunch(graph(n, acting), static_cast<cudaStream_t>(stream)), "the update's graph");
      });
    }
    return kApplied;
  }

  Result settle(StatePointers& state, void* stream) override {
    check(cudaEventSynchronize(owned_.done), "the updates");
    return *owned_.host_refused < 0 ? kApplied : set_back_to_refused(state, stream);
  }

  Result profile(UpdateCall& call, void* workspace, void* stream, double* ms) override {
    if (*owned_.host_refused >= 0) return set_back_to_refused(call.state, stream);
    const auto on = static_cast<cudaStream_t>(stream);
    prepare(call, workspace, stream);
    std::vector<cudaEvent_t> marks(phases_.size() + 1);
    for (cudaEvent_t& mark : marks) check(cudaEventCreateWithFlags(&mark, cudaEventDefault), "an event");
    while (call.updates > 0) {
      advance(call, 1, stream, [&](uint32_t acting) {
        check(cudaEventRecord(marks[0], on), "cudaEventRecord");
        size_t phase = 0;
        enqueue(stream, 0, acting != 0,
                [&] { check(cudaEventRecord(marks[++phase], on), "cudaEventRecord"); });
      });
      check(cudaStreamSynchronize(on), "the update");
      for (size_t i = 0; i < phases_.size(); ++i) {
        float elapsed = 0.0f;
        check(cudaEventElapsedTime(&elapsed, marks[i], marks[i + 1]), "cudaEventElapsedTime");
        ms[i] += elapsed;
      }
    }
    for (cudaEvent_t mark : marks) cudaEventDestroy(mark);
    return kApplied;
  }

  const std::vector<const char*>& phases() const override { return phases_; }

 private:
  // What the kernels are given, for one set of pointers. Graphs made for another one are of no use any more.
  void prepare(const UpdateCall& call, void* workspace, void* stream) {
    check(cudaStreamWaitEvent(static_cast<cudaStream_t>(stream), owned_.done, 0), "cudaStreamWaitEvent");
    const Key key = {workspace,
                     call.metrics,
                     call.state.actor,
                     call.state.critic,
                     call.state.critic_target,
                     call.state.log_alpha,
                     call.state.actor_m,
                     call.state.actor_v,
                     call.state.critic_m,
                     call.state.critic_v,
                     call.state.alpha_m,
                     call.state.alpha_v};
    if (key == key_ && call.batch_size == x_.B) return;
    forget_graphs();  // which may be running: CUDA ends them after that
    memory_.prepare(call, workspace);
    x_.call = owned_.call, x_.refused = owned_.refused;
    x_.host_refused = const_cast<int64_t*>(owned_.host_refused);
    key_ = key;
  }

  // ----------------------------------------------------------------------------------------------------
  // calls

  // The counters of updates step, ..., step + n - 1, and where their transitions are, for the kernels of one
  // graph. Returns in bit u whether update number u is of the actor too.
  uint32_t begin(UpdateCall& call, int n, void* stream) {
    uint32_t acting = 0;
    Call next = {};
    StatePointers& state = call.state;
    next.seed = state.seed, next.step = state.step;
    next.transitions = call.transitions, next.statistics = call.statistics;
    next.next_noise = call.next_noise, next.noise = call.noise;
    for (int u = 0; u < n; ++u) {
      const bool acts = state.step % spec_.actor_update_period == 0;
      next.turn[u] = {adam_step(spec_, spec_.lr.critic, ++state.critic_adam_step), {}, {}, acts};
      if (acts) {
        next.turn[u].actor = adam_step(spec_, spec_.lr.actor, ++state.actor_adam_step);
        if (spec_.learn_alpha) next.turn[u].alpha = adam_step(spec_, spec_.lr.alpha, ++state.alpha_adam_step);
        acting |= 1u << u;
      }
      ++state.step;
    }
    check(launch(begin_kernel, 1, 256, 0, stream, next, owned_.call), "begin");
    return acting;
  }

  // The next n updates of `call`, which launch_all(acting) enqueues; where that fails, the counters are as
  // before.
  template <typename F>
  void advance(UpdateCall& call, int n, void* stream, F launch_all) {
    const int64_t first = call.state.step;
    try {
      launch_all(begin(call, n, stream));
      check(cudaEventRecord(owned_.done, static_cast<cudaStream_t>(stream)), "cudaEventRecord");
    } catch (...) {
      set_back(call.state, first);
      throw;
    }
    call.updates -= n;
  }

  // For the caller's counters, once the GPU has said which update it refused.
  Result set_back_to_refused(StatePointers& state, void* stream) {
    check(cudaEventSynchronize(owned_.done), "the updates");  // on whichever stream: they look at `refused`
    set_back(state, *owned_.host_refused);
    const auto on = static_cast<cudaStream_t>(stream);
    check(cudaMemsetAsync(owned_.refused, 0xFF, sizeof(int64_t), on), "cudaMemset");
    check(cudaStreamSynchronize(on), "cudaStreamSynchronize");
    *owned_.host_refused = -1;
    return kNotFinite;
  }

  // The counters as they were before update `step`.
  void set_back(StatePointers& state, int64_t step) const {
    while (state.step > step) {
      --state.step, --state.critic_adam_step;
      if (state.step % spec_.actor_update_period == 0) {
        --state.actor_adam_step;
        if (spec_.learn_alpha) --state.alpha_adam_step;
      }
    }
  }

  cudaGraphExec_t graph(int n, uint32_t acting) {
    const std::pair<int, uint32_t> which = {n, acting};
    if (const auto found = graphs_.find(which); found != graphs_.end()) return found->second;
    check(cudaStreamBeginCapture(owned_.capture, cudaStreamCaptureModeThreadLocal), "capturing the update");
    cudaGraph_t line = nullptr;
    try {
      for (int u = 0; u < n; ++u) enqueue(owned_.capture, u, (acting >> u & 1) != 0, [] {});
    } catch (...) {
      cudaStreamEndCapture(owned_.capture, &line);
      cudaGetLastError();  // which that has set, and which PyTorch would take for its own
      if (line != nullptr) cudaGraphDestroy(line);
      throw;
    }
    cudaGraphExec_t made = nullptr;
    int error = cudaStreamEndCapture(owned_.capture, &line);
    if (error == 0) error = cudaGraphInstantiate(&made, line, 0);
    if (line != nullptr) cudaGraphDestroy(line);
    check(error, "the update's graph");
    graphs_[which] = made;
    return made;
  }

  void forget_graphs() {
    for (auto& [which, made] : graphs_) cudaGraphExecDestroy(made);
    graphs_.clear();
  }

  // ---------------------------------------------------------------------------------------------------
  // phases

  // All launches of update number u of a graph, in order; after_phase() behind each of `phases_`, done or
  // left out.
  template <typename F>
  void enqueue(void* stream, int u, bool acts, F after_phase) {
    const int64_t L = spec_.hidden_layers;
    const unsigned row_blocks = static_cast<unsigned>(tiles_of(x_.B, kRowWarps));
    const auto phase = [&](int error, const char* name) {
      check(error, name);
      after_phase();
    };
    phase(launch(gather_kernel<T>, row_blocks, kRowBlock, 0, stream, x_, u), "gather");
    for (int64_t l = 0; l < L; ++l) phase(forward(l, stream, acts), "forward");
    phase(policy(stream, u, acts), "policy");
    for (int64_t l = 0; l < L; ++l)
      phase(critics_forward(l, critic_.target, hidden_.target, x_.next_pair, stream), "target");
    phase(launch(target_kernel<T>, row_blocks, kRowBlock, 0, stream, x_), "TD error");
    for (const int64_t l : backward_layers_) phase(critics_backward(l, stream), "critic backward");
    phase(critic_step(stream, u), "critic step");
    if (acts) {
      for (int64_t l = 0; l < L; ++l)
        phase(critics_forward(l, critic_.p, hidden_.critic, x_.policy_pair, stream), "policy's critics");
      phase(launch(policy_value_kernel<T>, row_blocks, kRowBlock, 0, stream, x_), "policy's value");
      for (const int64_t l : backward_layers_) phase(critics_backward(l, stream), "action gradient");
      phase(action_gradient(stream), "action gradient");
      for (const int64_t l : backward_layers_) phase(actor_backward(l, stream), "actor backward");
    } else {
      for (int64_t left_out = 0; left_out < 3 * L; ++left_out) after_phase();
    }
    phase(actor_step(stream, u, acts), "actor step");
  }

  void name_phases() {
    const size_t L = static_cast<size_t>(spec_.hidden_layers);
    const std::pair<const char*, size_t> counts[] = {{"gather", 1},
                                                     {"forward", L},
                                                     {"policy", 1},
                                                     {"target", L},
                                                     {"TD error", 1},
                                                     {"critic backward", L - 1},
                                                     {"critic step", 1},
                                                     {"policy's critics", L},
                                                     {"policy's value", 1},
                                                     {"action gradient", L},
                                                     {"actor backward", L - 1},
                                                     {"actor step", 1}};
    for (const auto& [name, count] : counts) phases_.insert(phases_.end(), count, name);
  }

  // Fills in where each job's tiles begin, and launches small or large ones.
  template <typename Job, typename... Parameters, typename... Arguments>
  int run_jobs(Jobs<Job>& jobs, void (*small_tiles)(Jobs<Job>, Parameters...),
               void (*large_tiles)(Jobs<Job>, Parameters...), int extra, int splits, void* stream,
               const Arguments&... arguments) {
    const bool big = memory_.large(x_.B);
    const int size = big ? Large::kExtent : Small::kExtent;
    int tiles = 0;
    for (int n = 0; n < jobs.count; ++n) {
      jobs.first[n] = tiles;
      tiles += jobs.job[n].tiles(size);
    }
    jobs.first[jobs.count] = tiles;
    const dim3 grid(static_cast<unsigned>(tiles + extra), static_cast<unsigned>(splits));
    return big ? launch(large_tiles, grid, Large::kBlock, 0, stream, jobs, arguments...)
               : launch(small_tiles, grid, Small::kBlock, 0, stream, jobs, arguments...);
  }

  HiddenJob<T> hidden_job(const Rows<T>& x, const float* params, const Layer& layer, const Rows<T>& y) const {
    return {constant(x), params + layer.weight,           params + layer.bias,           y,
            x_.B,        static_cast<int>(layer.outputs), static_cast<int>(layer.inputs)};
  }

  int run_hidden(Jobs<HiddenJob<T>>& jobs, void* stream) {
    return run_jobs(jobs, hidden_kernel<P, Small>, hidden_kernel<P, Large>, 0, 1, stream);
  }

  int forward(int64_t l, void* stream, bool acts) {
    Jobs<HiddenJob<T>> jobs = {};
    const Layer& layer = spec_.actor[l];
    jobs.job[jobs.count++] =
        hidden_job(l == 0 ? x_.next_pair : hidden_.next[l - 1], actor_.p, layer, hidden_.next[l]);
    if (acts)
      jobs.job[jobs.count++] =
          hidden_job(l == 0 ? x_.pair : hidden_.actor[l - 1], actor_.p, layer, hidden_.actor[l]);
    for (int c = 0; c < 2; ++c) {
      jobs.job[jobs.count++] = hidden_job(l == 0 ? x_.pair : hidden_.critic[c][l - 1], critic_.p,
                                          spec_.critic[c][l], hidden_.critic[c][l]);
    }
    return run_hidden(jobs, stream);
  }

  int critics_forward(int64_t l, const float* params, Rows<T> (&hidden)[2][kMaxHidden], const Rows<T>& input,
                      void* stream) {
    Jobs<HiddenJob<T>> jobs = {};
    for (int c = 0; c < 2; ++c) {
      jobs.job[jobs.count++] =
          hidden_job(l == 0 ? input : hidden[c][l - 1], params, spec_.critic[c][l], hidden[c][l]);
    }
    return run_hidden(jobs, stream);
  }

  // a' ~ pi(s'), and where the actor is to learn a ~ pi(s).
  int policy(void* stream, int u, bool acts) {
    const int rows = acts ? 2 * x_.B : x_.B;
    const int64_t heads = 2 * spec_.action_dim * kRowWarps * static_cast<int64_t>(sizeof(float));
    const bool several = rows >= kRowsToShare && kEach * heads <= kSharedBytes;
    const int each = several ? kEach : 1;
    const unsigned blocks = static_cast<unsigned>(tiles_of(rows, each * kRowWarps));
    return launch(several ? policy_kernel<T, kEach> : policy_kernel<T, 1>, blocks, kRowBlock, each * heads,
                  stream, x_, rows, u);
  }

  int run_backward(Jobs<GradientJob<T>>& jobs, void* stream) {
    return run_jobs(jobs, hidden_gradient_kernel<P, Small>, hidden_gradient_kernel<P, Large>, 0, 1, stream);
  }

  GradientJob<T> gradient_job(const Rows<T>& dy, const float* params, const Layer& layer, const Rows<T>& h,
                              const Rows<T>& dx) const {
    return {constant(dy),
            params + layer.weight,
            constant(h),
            dx,
            x_.B,
            static_cast<int>(layer.outputs),
            static_cast<int>(layer.inputs)};
  }

  // From layer l's output to that of the layer below it.
  int critics_backward(int64_t l, void* stream) {
    Jobs<GradientJob<T>> jobs = {};
    for (int c = 0; c < 2; ++c) {
      jobs.job[jobs.count++] = gradient_job(hidden_.critic_gradient[c][l], critic_.p, spec_.critic[c][l],
                                            hidden_.critic[c][l - 1], hidden_.critic_gradient[c][l - 1]);
    }
    return run_backward(jobs, stream);
  }

  int actor_backward(int64_t l, void* stream) {
    Jobs<GradientJob<T>> jobs = {};
    jobs.job[jobs.count++] = gradient_job(hidden_.actor_gradient[l], actor_.p, spec_.actor[l],
                                          hidden_.actor[l - 1], hidden_.actor_gradient[l - 1]);
    return run_backward(jobs, stream);
  }

  int action_gradient(void* stream) {
    const int64_t heads = 2 * spec_.action_dim * kRowWarps, columns = 2 * spec_.action_dim * x_.first_width;
    const int64_t float_bytes = sizeof(float);
    const bool cached = (heads + columns) * float_bytes <= kSharedBytes;
    const int blocks = std::min(tiles_of(x_.B, kRowWarps), kBlocksPerMultiprocessor * multiprocessors_);
    return launch(action_gradient_kernel<T>, static_cast<unsigned>(blocks), kRowBlock,
                  (heads + (cached ? columns : 0)) * float_bytes, stream, x_, cached);
  }

  void add_layer(Jobs<WeightJob<T>>& jobs, const Rows<T>& dy, const Rows<T>& x, const Layer& layer) const {
    jobs.job[jobs.count++] = {constant(dy),
                              constant(x),
                              nullptr,
                              layer.weight,
                              x_.B,
                              static_cast<int>(layer.outputs),
                              static_cast<int>(layer.inputs)};
    jobs.job[jobs.count++] = {
        constant(dy), {}, nullptr, layer.bias, x_.B, static_cast<int>(layer.outputs), 1};
  }

  int finish_step(const Trained& trained, int splits, void* stream, int u, bool actor) {
    if (splits == 1) return 0;
    const unsigned blocks = std::min(blocks_for(trained.size), static_cast<unsigned>(8 * multiprocessors_));
    return launch(adam_kernel, blocks, kThreads, 0, stream, trained, splits, owned_.call, owned_.refused, u,
                  actor);
  }

  int critic_step(void* stream, int u) {
    Jobs<WeightJob<T>> jobs = {};
    const int64_t L = spec_.hidden_layers;
    for (int c = 0; c < 2; ++c) {
      const Layer& value = spec_.critic[c][L];
      for (int64_t l = L; l-- > 0;) {
        add_layer(jobs, hidden_.critic_gradient[c][l], l == 0 ? x_.pair : hidden_.critic[c][l - 1],
                  spec_.critic[c][l]);
      }
      jobs.job[jobs.count++] = {
          constant(hidden_.critic[c][L - 1]), {}, x_.q_gradient[c], value.weight, x_.B, x_.H, 1};
      jobs.job[jobs.count++] = {{}, {}, x_.q_gradient[c], value.bias, x_.B, 1, 1};
    }
    const int error = run_jobs(jobs, critic_step_kernel<P, Small>, critic_step_kernel<P, Large>, 0,
                               memory_.critic_splits, stream, critic_, owned_.call, owned_.refused, u);
    return error != 0 ? error : finish_step(critic_, memory_.critic_splits, stream, u, false);
  }

  int actor_step(void* stream, int u, bool acts) {
    Jobs<WeightJob<T>> jobs = {};
    const int64_t L = spec_.hidden_layers;
    for (int64_t l = acts ? L : 0; l-- > 0;) {
      add_layer(jobs, hidden_.actor_gradient[l], l == 0 ? x_.pair : hidden_.actor[l - 1], spec_.actor[l]);
    }
    if (acts) {
      const Rows<T> log_std_gradient = {x_.head_gradient.data + x_.A, x_.head_gradient.stride};
      add_layer(jobs, x_.head_gradient, hidden_.actor[L - 1], spec_.actor[L]);
      add_layer(jobs, log_std_gradient, hidden_.actor[L - 1], spec_.actor[L + 1]);
    }
    const int splits = acts ? memory_.actor_splits : 1;
    const int error = run_jobs(jobs, actor_step_kernel<P, Small>, actor_step_kernel<P, Large>, 1, splits,
                               stream, actor_, x_, u);
    return error != 0 ? error : finish_step(actor_, splits, stream, u, true);
  }

  static constexpr int kEach = 4,
                       kRowsToShare = 4096;           // rows per warp of the policy's head, and from when on
  static constexpr int64_t kSharedBytes = 48 * 1024;  // what a block may have without asking
  static constexpr int kBlocksPerMultiprocessor = 4;
  using Key = std::array<const void*, 12>;

  const UpdateSpec spec_;
  const int multiprocessors_ = count_multiprocessors();
  Workspace<P> memory_{spec_, multiprocessors_};
  Update<T>& x_ = memory_.x;
  typename Workspace<P>::Hidden& hidden_ = memory_.hidden;
  Trained &critic_ = memory_.critic, &actor_ = memory_.actor;
  std::vector<int64_t> backward_layers_;  // hidden layers that have one below, from the last
  std::vector<const char*> phases_;
  Key key_ = {};
  std::map<std::pair<int, uint32_t>, cudaGraphExec_t> graphs_;  // by number of updates, and which act
  Owned owned_;
};

}  // namespace sacfast::cuda
