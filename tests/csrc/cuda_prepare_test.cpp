/// Prepared rows, against their definition in double.
#include "base/half.h"
#include "cuda_launch.h"

using namespace sterna;
using namespace sterna::cuda;

namespace {

/// Short rows, rows that a block holds at once and longer ones, with and without a norm: values times scale, and the
/// sums of each 16.
void check_prepared() {
  constexpr float kEps = 1e-5f;
  for (const std::int64_t k : {31, 100, 1024, 1030, 4096, 16384, 17001}) {
    for (const bool has_norm : {false, true}) {
      std::vector<float> x = random_floats(2 * k, 5);
      const std::vector<float> norm = random_floats(k, 6);
      PreparedRows rows{};
      rows.k = (k + 31) / 32 * 32;
      rows.max_rows = 3;
      rows.form = PreparedForm::kHalf;
      std::vector<std::uint8_t> memory(static_cast<std::size_t>(rows.bytes()) + 64, 0xA5);
      rows.base = reinterpret_cast<std::uint8_t*>((reinterpret_cast<std::uintptr_t>(memory.data()) + 63) / 64 * 64);
      PrepareArguments a{};
      a.x = cuda::rows(x, k);
      a.norm = has_norm ? norm.data() : nullptr;
      a.eps = kEps;
      a.k = k;
      a.parts = 1;
      a.to = rows;
      TestBatch(2).launch(Kernel::kPrepare, a, 1);
      for (std::int64_t row = 0; row < 2; ++row) {
        const float* const from = x.data() + row * k;
        double squares = 0.0;
        for (std::int64_t i = 0; i < k; ++i) squares += static_cast<double>(from[i]) * from[i];
        const double inverse = 1.0 / std::sqrt(squares / static_cast<double>(k) + kEps);
        const auto* const values = reinterpret_cast<const std::uint16_t*>(rows.base + row * rows.row_bytes());
        const double scale = reinterpret_cast<const float*>(rows.base + rows.scale_offset())[row];
        const auto* const sums =
            reinterpret_cast<const float*>(rows.base + rows.sum_offset()) + row * rows.sum_stride();
        double sum = 0.0;
        for (std::int64_t i = 0; i < rows.k; ++i) {
          const double plain = i < k ? from[i] : 0.0;
          const double expected = has_norm && i < k ? plain * inverse * norm[static_cast<std::size_t>(i)] : plain;
          const double value = half_to_float(values[i]);
          expect_near(value * scale, expected, 6e-4, "prepared");
          sum += value;
          if (i % 16 != 15) continue;
          expect_near(sums[i / 16] * scale, sum * scale, 1e-6, "sum of 16");
          sum = 0.0;
        }
      }
    }
  }
}

}  // namespace

int main() {
  check_prepared();
  return finish_test();
}
