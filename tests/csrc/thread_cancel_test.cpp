/// Runs of a plan that are cancelled at any moment: all workers stop after the same step, and the next run is as if
/// nothing had been. A worker left at the barrier would hang the program. Meant for the thread sanitizer as well.
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "cpu/cpu_plan.h"
#include "program/text.h"

namespace {

using namespace sterna;

constexpr int kVocab = 21;
constexpr int kSteps = 60;

/// Numbers made from the name and the place, the same at every read.
class Numbers final : public TensorSource {
 public:
  void read(std::string_view tensor, std::uint64_t offset, std::span<std::uint8_t> out) const override {
    std::mt19937 random(static_cast<unsigned>(tensor.size()));
    random.discard(offset / 4);
    for (std::size_t i = 0; i + 4 <= out.size(); i += 4) {
      const float value = static_cast<float>(random() % 2001) / 1000.0f - 1.0f;
      std::memcpy(out.data() + i, &value, 4);
    }
  }
};

/// A long chain of small steps: the more barriers, the more moments to be cancelled at.
Program chain() {
  std::string text =
      "program 1\ninput %tokens [T]\nweight @table [21, 32] F32\nweight @matrix [32, 32] F32\n"
      "weight @output [21, 32] F32\nfunction logits\n  %v0 [T, 32] = embed(tokens=%tokens, w=@table)\n";
  for (int i = 1; i <= kSteps; ++i) {
    const std::string x = "%v" + std::to_string(i - 1), y = "  %v" + std::to_string(i) + " [T, 32] = ";
    text += i % 2 == 0 ? y + "linear(x=" + x + ", w=@matrix)\n" : y + "rms_norm(x=" + x + ") {eps=1e-05}\n";
  }
  text += "  %logits [L, 21] = unembed(x=%v" + std::to_string(kSteps) + ", w=@output)\n  return %logits\n";
  return parse_program(text);
}

int total_stopped = 0;

int check(int threads, int rounds) {
  cpu::CpuPlanOptions options;
  options.threads = threads;
  cpu::CpuPlan plan(chain(), Numbers(), options);
  plan.reserve_pages(0, 1);
  const std::vector<std::int32_t> tokens{3, 1, 4, 1, 5, 9, 2, 6, 5, 20}, sequences(tokens.size(), 0), pages{0},
      rows{0, 9};
  std::vector<std::int32_t> positions(tokens.size());
  for (std::size_t i = 0; i < positions.size(); ++i) positions[i] = static_cast<std::int32_t>(i);
  const std::vector<std::span<const std::int32_t>> tables{pages};
  const Batch batch{tokens, positions, sequences, tables, rows};

  if (!plan.run(batch, nullptr)) return 1;
  const std::vector<float> want(plan.logits().begin(), plan.logits().end());
  const auto begin = std::chrono::steady_clock::now();
  plan.run(batch, nullptr);
  const auto once = std::chrono::steady_clock::now() - begin;

  Interrupt interrupt;
  std::atomic<bool>& cancelled = interrupt.asked;
  std::atomic<bool> ended{false};
  std::atomic<int> round{0};
  std::thread canceller([&] {
    for (int seen = 0; !ended.load();) {
      const int now = round.load();
      if (now == seen) {
        std::this_thread::yield();
        continue;
      }
      seen = now;
      // From the first step to behind the last.
      const auto until = std::chrono::steady_clock::now() + once * (now % 37) / 30;
      while (std::chrono::steady_clock::now() < until) {
      }
      cancelled.store(true);
    }
  });
  int stopped = 0, wrong = 0;
  for (int i = 1; i <= rounds; ++i) {
    cancelled.store(false);
    round.store(i);
    const bool complete = plan.run(batch, &interrupt);
    while (!cancelled.load()) std::this_thread::yield();
    if (!complete) {
      ++stopped;
      if (i % 5 != 0) continue;
      plan.run(batch, nullptr);
    }
    wrong += std::memcmp(plan.logits().data(), want.data(), want.size() * sizeof(float)) != 0 ? 1 : 0;
  }
  ended.store(true);
  canceller.join();

  cancelled.store(true);  // from the start: nothing but the first step is computed
  if (plan.run(batch, &interrupt)) ++wrong;
  std::printf("%d threads: %d of %d runs stopped, %d wrong\n", threads, stopped, rounds, wrong);
  total_stopped += stopped;
  return wrong;
}

}  // namespace

int main() {
  int failures = 0;
  for (const int threads : {1, 2, 3}) failures += check(threads, threads > 2 ? 50 : 400);
  return failures == 0 && total_stopped > 0 ? 0 : 1;
}
