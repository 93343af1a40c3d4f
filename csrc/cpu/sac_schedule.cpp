// How the phases of SacUpdate are cut into pieces and follow each other.
//
// A phase is cut into pieces: chunks of rows, of (critic, row) where it is about the critics, so that two
// threads have a critic each and its weights stay in their caches; panels of outputs for weight gradients,
// which need no reduction. No piece adds to what another has written and sums run in a fixed order, so it
// does not matter who does which piece: the same seed gives the same bytes on any number of threads.
#include <algorithm>
#include <cstdint>
#include <numeric>
#include <utility>
#include <vector>

#include "sac_update.h"

namespace sacfast::cpu {
namespace {

// Rows of a piece: few enough for others to take over what a thread that is late leaves, enough for its
// weights to be read from cache once for many.
constexpr int64_t kPieceRows = 64;
static_assert(kPieceRows <= kChunkRows);

// The part of [0, total) that belongs to `thread` of `threads`.
struct Range {
  int64_t begin, end;
};

Range share(int64_t total, int64_t thread, int64_t threads) {
  return {total * thread / threads, total * (thread + 1) / threads};
}

void add_tasks(std::vector<Task>& tasks, int64_t network, int64_t layer, int64_t outputs, int64_t inputs) {
  for (int64_t begin = 0; begin < outputs; begin += kPanel) {
    const int64_t end = std::min(begin + kPanel, outputs);
    tasks.push_back({network, layer, begin, end, (end - begin) * inputs});
  }
}

}  // namespace

SacUpdate::SacUpdate(const UpdateSpec& spec, const Arithmetic& arithmetic)
    : spec_(spec),
      math_(arithmetic),
      pool_(static_cast<int>(spec.threads)),
      networks_(spec, arithmetic),
      seconds_(spec.threads * kPhases) {
  const int64_t L = spec.hidden_layers;
  for (int64_t c = 0; c < 2; ++c) {
    for (int64_t l = 0; l < L; ++l) {
      add_tasks(critic_tasks_, c, l, spec.critic[c][l].outputs, spec.critic[c][l].inputs);
    }
    const int64_t width = spec.critic[c][L].inputs;
    critic_tasks_.push_back({c, L, 0, width, width});
  }
  for (int64_t l = 0; l < L; ++l) {
    add_tasks(actor_tasks_, 0, l, spec.actor[l].outputs, spec.actor[l].inputs);
  }
  add_tasks(actor_tasks_, 0, L, 2 * spec.action_dim, spec.actor[L].inputs);
}

void SacUpdate::start(UpdateCall& call) {
  if (!workspace_ || workspace_->B != call.batch_size) make_room(call.batch_size);
  call_ = &call;
  step_ = (call.repack ? 0 : kUpdate) - 1;
  updates_ = 0;
  finite_ = true;
  begin_ = std::chrono::steady_clock::now();
  try {
    pool_.start(*this);
  } catch (...) {
    call_ = nullptr;
    throw;
  }
}

SacUpdate::Result SacUpdate::finish() {
  if (call_ == nullptr) return kApplied;
  pool_.finish();
  const std::chrono::duration<double> passed = std::chrono::steady_clock::now() - begin_;
  if (profiling_) all_seconds_ += static_cast<double>(spec_.threads) * passed.count();
  call_ = nullptr;
  return finite_ ? kApplied : kNotFinite;
}

void SacUpdate::take_profile(double* seconds) {
  std::fill_n(seconds, kPhases, 0.0);
  for (size_t i = 0; i < seconds_.size(); ++i) seconds[i % kPhases] += std::exchange(seconds_[i], 0.0);
  const double working = std::accumulate(seconds, seconds + kPhases, 0.0);
  seconds[kWaiting] = std::max(0.0, std::exchange(all_seconds_, 0.0) - working);
}

bool SacUpdate::next(int64_t* counts) noexcept {
  ++step_;
  if (step_ == kUpdate + 1 && !finite_.load(std::memory_order_relaxed)) return false;
  if (step_ == kEnd || (step_ == kActor && !actor_turn())) {
    end_update(updates_ + 1 == call_->updates);
    if (++updates_ == call_->updates) return false;
    step_ = kUpdate;
  }
  const Cut cut = kSteps[step_].cut;
  if (cut == kChosenRows) choose_rows();
  for (int64_t t = 0; t < spec_.threads; ++t) counts[t] = static_cast<int64_t>(pieces_[cut][t].size());
  return true;
}

void SacUpdate::piece(int thread, int owner, int64_t index) noexcept {
  Lap lap(profiling_ ? &seconds_[thread * kPhases] : nullptr);
  const Step& step = kSteps[step_];
  (this->*step.run)(pieces_[step.cut][owner][index], workspace_->threads[thread], lap);
}

void SacUpdate::make_room(int64_t batch_size) {
  workspace_.reset();
  auto workspace = std::make_unique<Workspace>(spec_, math_, batch_size);
  const int64_t rows = workspace->rows;
  for (auto& cut : pieces_) cut.resize(spec_.threads);
  cut_rows(kRows, {rows, 0});
  cut_rows(kCriticRows, {rows, rows});
  cut_rows(kChosenRows, {rows, rows});  // more than there ever are, so that choosing them allocates nothing:
  for (auto& pieces : pieces_[kChosenRows]) pieces.reserve(pieces.size() + 1);  // a share may have two parts
  cut_tasks(kCriticTasks, critic_tasks_);
  cut_tasks(kActorTasks, actor_tasks_);
  workspace_ = std::move(workspace);
}

// Each thread's share of rows[0] rows of the first critic and rows[1] of the second, by chunks.
void SacUpdate::cut_rows(Cut cut, const int64_t (&rows)[2]) {
  const int64_t unit = math_.row_unit, units[] = {rows[0] / unit, rows[1] / unit};
  for (int64_t t = 0; t < spec_.threads; ++t) {
    std::vector<Piece>& pieces = pieces_[cut][t];
    pieces.clear();
    const Range mine = share(units[0] + units[1], t, spec_.threads);
    for (int64_t c = 0; c < 2; ++c) {
      const int64_t before = c == 0 ? 0 : units[0];
      const int64_t end = std::min(mine.end - before, units[c]) * unit;
      for (int64_t row = std::max(mine.begin - before, int64_t{0}) * unit; row < end; row += kPieceRows) {
        pieces.push_back({c, {row, std::min(kPieceRows, end - row)}, nullptr});
      }
    }
  }
}

// A task is of the thread in whose share of the total cost its middle lies.
void SacUpdate::cut_tasks(Cut cut, const std::vector<Task>& tasks) {
  int64_t total = 0, before = 0;
  for (const Task& task : tasks) total += task.cost;
  for (auto& pieces : pieces_[cut]) pieces.clear();
  for (const Task& task : tasks) {
    const int64_t thread = (2 * before + task.cost) * spec_.threads / (2 * total);
    pieces_[cut][thread].push_back({task.network, {}, &task});
    before += task.cost;
  }
}

// Lists the rows where each critic is the least (second_is_least), each list padded to
// whole units, the second behind the first; then cuts them.
void SacUpdate::choose_rows() {
  Workspace& w = *workspace_;
  const int64_t unit = math_.row_unit;
  int64_t padded[2];
  for (int c = 0; c < 2; ++c) {
    w.chosen[c] = c == 0 ? w.chosen_rows : w.chosen[0] + padded[0];
    int64_t n = 0;
    for (int64_t i = 0; i < w.B; ++i) {
      w.chosen[c][n] = static_cast<int32_t>(i);
      n += second_is_least(w.q_policy[0][i], w.q_policy[1][i]) == (c == 1);
    }
    w.chosen_count[c] = n;
    padded[c] = (n + unit - 1) / unit * unit;
    std::fill(w.chosen[c] + n, w.chosen[c] + padded[c], 0);
  }
  cut_rows(kChosenRows, padded);
}

}  // namespace sacfast::cpu
