/// The self-test of the kernels: it finds nothing on the levels of this CPU, and it finds a kernel that is wrong in one
/// bit, in each family.
#include "cpu/self_test.h"

#include <cstdio>
#include <cstring>
#include <set>
#include <string>

#include "cpu/isa.h"

namespace {

using namespace sterna::cpu;

int failures = 0;

void expect(bool condition, const std::string& what) {
  if (condition) return;
  std::printf("%s\n", what.c_str());
  ++failures;
}

const KernelTable& scalar() { return kernel_table("scalar"); }

void flip_lowest_bit(float& value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  bits ^= 1;
  std::memcpy(&value, &bits, sizeof(bits));
}

/// The family that a table of scalar kernels with one wrong one is caught by.
std::string caught(const KernelTable& wrong) {
  std::set<std::string> families;
  for (const KernelCheck& check : check_kernels(wrong, scalar(), 7)) {
    if (!check.mismatch.empty()) families.emplace(check.family);
  }
  return families.size() == 1 ? *families.begin() : std::to_string(families.size()) + " families";
}

void check_wrong_kernels() {
  constexpr int kLayout = static_cast<int>(sterna::LayoutId::kInt6Super);
  KernelTable table = scalar();
  table.panel[kLayout][1] = [](const std::uint8_t* panel, std::int64_t k, const ActivationTile& tile, float* out) {
    scalar().panel[kLayout][1](panel, k, tile, out);
    flip_lowest_bit(out[31]);
  };
  expect(caught(table) == "matmuls of few rows", "a wrong panel kernel");

  table = scalar();
  constexpr int kSumLayout = static_cast<int>(sterna::LayoutId::kTernary1_6);
  table.panel_sum[kSumLayout][0] = [](const std::uint8_t* panel, std::int64_t k, const ActivationTile& tile,
                                      float* out) {
    scalar().panel_sum[kSumLayout][0](panel, k, tile, out);
    out[0] += 1.0f;
  };
  expect(caught(table) == "matmuls of few rows", "a wrong ternary sum");

  table = scalar();
  table.glu[1] = [](const float* gate, const float* up, float* y, std::int64_t n) {
    scalar().glu[1](gate, up, y, n);
    flip_lowest_bit(y[n - 1]);
  };
  expect(caught(table) == "row-wise floats", "a wrong glu");

  table = scalar();
  table.finish_glu[2] = [](const FinishArgs& args) {
    scalar().finish_glu[2](args);
    flip_lowest_bit(args.y[args.y_stride]);
  };
  expect(caught(table) == "row-wise floats", "a wrong finish");

  table = scalar();
  table.rope = [](float* x, int heads, int head_dim, int rotary, bool interleaved, const float* cosines,
                  const float* sines) {
    scalar().rope(x, heads, head_dim, rotary, interleaved, cosines, sines);
    if (interleaved) flip_lowest_bit(x[1]);
  };
  expect(caught(table) == "rope", "a wrong rope");

  table = scalar();
  table.attend_f16 = [](const AttendArgs& args) {
    scalar().attend_f16(args);
    flip_lowest_bit(args.outputs[args.rows * args.heads - 1][args.value_dim - 1]);
  };
  expect(caught(table) == "attention", "a wrong attention");
}

}  // namespace

int main() {
  int levels = 0;
  for (const std::string_view name : compiled_levels()) {
    if (!is_supported(name)) continue;
    ++levels;
    for (const KernelCheck& check : check_kernels(kernel_table(name), scalar(), 1)) {
      std::printf("%s, %s: %d cases\n", std::string(name).c_str(), std::string(check.family).c_str(), check.cases);
      expect(check.cases > 0, "no case");
      expect(check.mismatch.empty(), check.mismatch);
    }
  }
  check_wrong_kernels();
  std::printf("%d levels, %d failures\n", levels, failures);
  return failures == 0 ? 0 : 1;
}
