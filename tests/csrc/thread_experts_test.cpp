/// A mixture of experts in plans that are no larger than the batch: rows get the same bits in any company, and nothing
/// is read or written beside its place. Meant for the thread sanitizer as well.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "cpu/cpu_plan.h"
#include "program/text.h"

namespace {

using namespace sterna;

constexpr int kVocab = 53;

/// Numbers made from the name and the place, the same at every read: floats, or Q8_0 for names that begin with "q".
class Numbers final : public TensorSource {
 public:
  void read(std::string_view tensor, std::uint64_t offset, std::span<std::uint8_t> out) const override {
    for (std::size_t i = 0; i < out.size(); ++i) out[i] = byte(tensor, offset + i);
  }

 private:
  static std::uint32_t mix(std::string_view tensor, std::uint64_t at) {
    std::uint64_t x = at + 1;
    for (const char c : tensor) x = (x ^ static_cast<std::uint64_t>(c)) * 0x9E3779B97F4A7C15u;
    return static_cast<std::uint32_t>((x ^ (x >> 29)) * 0xBF58476D1CE4E5B9u >> 33);
  }

  static std::uint8_t byte(std::string_view tensor, std::uint64_t at) {
    if (tensor.starts_with("q")) {
      constexpr std::uint8_t kScale[] = {0x00, 0x18};  // 2^-9
      return at % 34 < 2 ? kScale[at % 34] : static_cast<std::uint8_t>(mix(tensor, at));
    }
    const float value = static_cast<float>(mix(tensor, at / 4) % 2001) / 1000.0f - 1.0f;
    std::uint8_t bytes[4];
    std::memcpy(bytes, &value, 4);
    return bytes[at % 4];
  }
};

/// Two layers of seven experts, the best three: floats, then Q8_0 behind a residual.
Program mixture() {
  return parse_program(
      "program 1\ninput %tokens [T]\nweight @table [53, 64] F32\nweight @router [7, 64] F32\n"
      "weight @gate [7, 24, 64] F32\nweight @up [7, 24, 64] F32\nweight @down [7, 64, 24] F32\n"
      "weight @q.gate [7, 40, 64] Q8_0\nweight @q.up [7, 40, 64] Q8_0\nweight @down2 [7, 64, 40] F32\n"
      "function logits\n"
      "  %x [T, 64] = embed(tokens=%tokens, w=@table)\n"
      "  %scores [T, 7] = linear(x=%x, w=@router)\n"
      "  %ids [T, 3], %weights [T, 3] = route(x=%scores) {used=3}\n"
      "  %y [T, 64] = expert_glu(x=%x, experts=%ids, weights=%weights, gate=@gate, up=@up, down=@down)\n"
      "  %scores2 [T, 7] = linear(x=%y, w=@router)\n"
      "  %ids2 [T, 3], %weights2 [T, 3] = route(x=%scores2) {used=3, normalize=false}\n"
      "  %z [T, 64] = expert_glu(x=%y, experts=%ids2, weights=%weights2, gate=@q.gate, up=@q.up, down=@down2, "
      "residual=%x)\n"
      "  %logits [L, 53] = unembed(x=%z, w=@table)\n  return %logits\n");
}

std::vector<float> run(cpu::CpuPlan& plan, const std::vector<std::int32_t>& tokens) {
  const std::vector<std::int32_t> sequences(tokens.size(), 0), pages{0, 1};
  std::vector<std::int32_t> positions(tokens.size());
  for (std::size_t i = 0; i < positions.size(); ++i) positions[i] = static_cast<std::int32_t>(i);
  const std::vector<std::span<const std::int32_t>> tables{pages};
  plan.run({tokens, positions, sequences, tables, positions}, nullptr);
  return {plan.logits().begin(), plan.logits().end()};
}

cpu::CpuPlan compiled(std::int32_t tokens, int threads, const char* isa = "") {
  cpu::CpuPlanOptions options;
  options.threads = threads;
  options.isa = isa;
  options.max_tokens = options.max_outputs = tokens;
  return cpu::CpuPlan(mixture(), Numbers(), options);
}

}  // namespace

int main() {
  // Token by token on the definition: what all others must give.
  std::vector<float> want;
  cpu::CpuPlan one = compiled(1, 1, "scalar");
  one.reserve_pages(0, 2);
  for (std::int32_t token = 0; token < kVocab; ++token) {
    const std::vector<float> row = run(one, {token});
    want.insert(want.end(), row.begin(), row.end());
  }
  int failures = 0;
  for (const float value : want) failures += std::isfinite(value) ? 0 : 1;

  std::mt19937 random(17);
  for (const std::int32_t count : {1, 2, 5, 19, 70, 128}) {
    for (int threads = 1; threads <= 3; ++threads) {
      cpu::CpuPlan plan = compiled(count, threads);
      plan.reserve_pages(0, 2);
      for (int round = 0; round < 3; ++round) {
        std::vector<std::int32_t> tokens(static_cast<std::size_t>(count));
        // In the last round all rows want the same experts.
        for (std::int32_t& token : tokens) token = round == 2 ? 5 : static_cast<std::int32_t>(random() % kVocab);
        const std::vector<float> got = run(plan, tokens);
        for (std::size_t row = 0; row < tokens.size(); ++row) {
          const float* expected = want.data() + tokens[row] * kVocab;
          if (std::memcmp(got.data() + row * kVocab, expected, kVocab * sizeof(float)) == 0) continue;
          std::printf("row %zu of %d differs, %d threads, round %d\n", row, count, threads, round);
          ++failures;
        }
      }
    }
  }
  std::printf("%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
