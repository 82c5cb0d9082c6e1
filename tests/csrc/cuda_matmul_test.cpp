/// Every layout through repack, prepare and matmul, against products in double with the format's own numbers; the same
/// bits for a row alone, among few and among many, and where the matmul prepares its rows or has several products;
/// gates, biases, residuals, heads and experts.
#include <cstring>
#include <deque>
#include <string>
#include <tuple>

#include "base/half.h"
#include "cuda/kernels/intrinsics.cuh"
#include "cuda_launch.h"
#include "quant/layout.h"
#include "quant/quantize.h"

using namespace sterna;
using namespace sterna::cuda;

namespace {

/// A matrix of random bytes whose scales are ordinary, in the device's order, and its values.
struct Matrix {
  DeviceMatrix device{};
  std::vector<std::uint8_t> panels;
  std::vector<float> values;  // [n][k]

  Matrix(const Format& format, std::int64_t n, std::int64_t k, unsigned seed) {
    PackedMatrix packed = make_matrix(format, n, k);
    const std::vector<std::uint8_t> bytes = some_bytes(format, n, k, seed);
    const std::size_t panel_rows = bytes.size() / static_cast<std::size_t>(n) * kPanelRows;
    for (std::int64_t p = 0; p < packed.panels(); ++p) {
      const std::size_t first = static_cast<std::size_t>(p) * panel_rows;
      if (pack_panel(packed, p, std::span(bytes).subspan(first, std::min(panel_rows, bytes.size() - first)))) continue;
      std::printf("%s: a scale is not finite\n", std::string(format.name).c_str());
      std::exit(1);
    }
    finish_matrix(packed);
    values.resize(static_cast<std::size_t>(n * k));
    for (std::int64_t row = 0; row < n; ++row) dequantize_row(packed, row, values.data() + row * k);
    std::vector<std::uint8_t> unpacked;
    LayoutId layout = packed.layout;
    const std::uint8_t* from = packed.bytes.data();
    if (layout == LayoutId::kNative) {
      layout = LayoutId::kUnpacked;
      const std::int64_t size = device_panel_bytes(layout, k);
      unpacked.resize(static_cast<std::size_t>(packed.panels() * size));
      for (std::int64_t p = 0; p < packed.panels(); ++p) unpack_native_panel(packed, p, unpacked.data() + p * size);
      from = unpacked.data();
    }
    device.layout = device_layout(layout);
    device.n = n;
    device.k = k;
    device.factor = packed.factor;
    device.panel_bytes = device_panel_bytes(device.layout, k);
    device.matrix_bytes = packed.panels() * device.panel_bytes;
    panels.resize(static_cast<std::size_t>(device.matrix_bytes) + 64);
    device.panels = align(panels.data());
    const RepackArguments a = {from, align(panels.data()), packed.panels(), k, layout};
    TestBatch(1).launch(Kernel::kRepack, a);
  }
  Matrix(const Matrix&) = delete;

  static std::uint8_t* align(std::uint8_t* p) {
    return reinterpret_cast<std::uint8_t*>((reinterpret_cast<std::uintptr_t>(p) + 63) / 64 * 64);
  }

  /// Random numbers in the format; of a format that nothing writes, random codes with a small scale.
  static std::vector<std::uint8_t> some_bytes(const Format& format, std::int64_t n, std::int64_t k, unsigned seed) {
    std::vector<std::uint8_t> bytes(static_cast<std::size_t>(n * k / format.block_size * format.block_bytes));
    if (can_quantize(format.id)) {
      quantize(format, random_floats(n * k, seed), static_cast<std::uint64_t>(k), {}, bytes);
      return bytes;
    }
    std::mt19937 random(seed);
    for (std::uint8_t& byte : bytes) byte = static_cast<std::uint8_t>(random());
    for (std::size_t block = 0; block < bytes.size(); block += format.block_bytes) {
      if (format.name == "IQ1_M") {  // the scale is the top bits of four words
        for (std::size_t i = 48; i < 56; i += 2)
          bytes[block + i + 1] = static_cast<std::uint8_t>(bytes[block + i + 1] & 0x1F);
        bytes[block + 55] |= 0x20;
      } else {
        bytes[block] = 0x12;
        bytes[block + 1] = 0x28;
      }
    }
    return bytes;
  }
};

/// Matrices of one shape, one behind the other.
struct Matrices {
  DeviceMatrix device{};
  std::vector<std::uint8_t> panels;
  std::vector<std::vector<float>> values;

  Matrices(const Format& format, unsigned count, std::int64_t n, std::int64_t k, unsigned seed) {
    for (unsigned i = 0; i < count; ++i) {
      const Matrix w(format, n, k, seed + i);
      if (i == 0) panels.resize(count * static_cast<std::size_t>(w.device.matrix_bytes) + 64);
      std::uint8_t* const base = Matrix::align(panels.data());
      std::memcpy(base + i * w.device.matrix_bytes, w.device.panels, static_cast<std::size_t>(w.device.matrix_bytes));
      device = w.device;
      device.panels = base;
      values.push_back(w.values);
    }
  }
  Matrices(const Matrices&) = delete;

  const float* row(std::int64_t matrix, std::int64_t i) const {
    return values[static_cast<std::size_t>(matrix)].data() + i * device.k;
  }
};

/// Rows prepared for a layout.
struct Prepared {
  PreparedRows rows{};
  std::vector<std::uint8_t> memory;

  Prepared(const std::vector<float>& x, std::int64_t num_rows, std::int64_t k, std::int64_t padded_k, PreparedForm form,
           std::int64_t parts = 1) {
    rows.k = padded_k;
    rows.max_rows = num_rows * parts;
    rows.form = form;
    memory.resize(static_cast<std::size_t>(rows.bytes()) + 64);
    rows.base = Matrix::align(memory.data());
    PrepareArguments a{};
    a.x = cuda::rows(x, k * parts);
    a.k = k;
    a.parts = parts;
    a.to = rows;
    TestBatch(static_cast<std::int32_t>(num_rows)).launch(Kernel::kPrepare, a, 0);
  }
};

PreparedForm form_for(LayoutId layout) {
  if (layout == LayoutId::kF32) return PreparedForm::kFloat;
  if (layout == LayoutId::kF16) return PreparedForm::kTwoHalves;
  if (layout == LayoutId::kBF16) return PreparedForm::kTwoBfloats;
  return PreparedForm::kHalf;
}

double tolerance_of(PreparedForm form) {
  if (form == PreparedForm::kHalf) return 6e-4;
  return form == PreparedForm::kTwoBfloats ? 2e-5 : 3e-6;
}

double dot(const float* w, const float* x, std::int64_t k, double& magnitude) {
  double sum = 0;
  magnitude = 0;
  for (std::int64_t i = 0; i < k; ++i) {
    sum += static_cast<double>(w[i]) * x[i];
    magnitude += std::pow(static_cast<double>(w[i]) * x[i], 2);
  }
  magnitude = std::sqrt(magnitude);
  return sum;
}

/// y against bias + w x; the tolerance is relative to the size of the products.
void expect_product(float y, const float* w, const float* x, std::int64_t k, double bias, double tolerance,
                    const char* what) {
  double magnitude = 0;
  const double expected = dot(w, x, k, magnitude) + bias;
  expect_near(y - expected, 0, tolerance * magnitude, what);
}

/// By all kernels; where `most` is 30, by those for fewer rows. Floats also meet rows that nobody has prepared.
void check_format(const Format& format, std::int64_t n, std::int64_t k, std::int32_t most = 70) {
  const Matrix w(format, n, k, 1);
  const std::string name(format.name);
  const std::vector<float> x = random_floats(most * k, 2);
  const PreparedForm form = form_for(w.device.layout);
  const Prepared prepared(x, most, k, device_k(w.device.layout, k), form);
  struct Run {
    std::int32_t num_rows;
    bool is_prepared;
    std::vector<float> y;
  };
  std::vector<Run> runs = {{most, true, {}}, {most / 2 - 5, true, {}}, {5, true, {}}, {1, true, {}}};
  if (form == PreparedForm::kFloat && k % kUnit == 0) {
    runs.push_back({most, false, {}});
    runs.push_back({1, false, {}});
  }
  for (Run& run : runs) {
    run.y.assign(static_cast<std::size_t>(most * n), NAN);
    MatmulArguments a{};
    a.products[0].w = w.device;
    a.x = prepared.rows;
    if (!run.is_prepared) {
      a.x.base = nullptr;
      a.rows = rows(x, k);
    }
    a.products[0].y = rows(run.y, n);
    TestBatch(run.num_rows).launch(Kernel::kMatmul, a, 0);
  }
  for (std::int64_t row = 0; row < most; ++row) {
    for (std::int64_t i = 0; i < n; ++i) {
      double magnitude = 0;
      const double expected = dot(w.values.data() + i * k, x.data() + row * k, k, magnitude);
      const auto at = static_cast<std::size_t>(row * n + i);
      const double tolerance = tolerance_of(form) * 4 * std::max(magnitude, 1e-30);
      expect_near(runs[0].y[at] / tolerance, expected / tolerance, 1.0 / std::max(1.0, std::abs(expected / tolerance)),
                  name.c_str());
      for (const Run& run : runs) {
        if (row < run.num_rows && std::memcmp(&runs[0].y[at], &run.y[at], 4) != 0) {
          expect_near(run.y[at], INFINITY, 0, (name + ": bits of few and many rows").c_str());
        }
      }
    }
  }
}

/// The largest bits of each row's magnitudes.
std::vector<std::uint32_t> maxima_of(const std::vector<float>& x, std::int64_t n) {
  std::vector<std::uint32_t> maxima(x.size() / static_cast<std::size_t>(n));
  for (std::size_t i = 0; i < x.size(); ++i) {
    std::uint32_t& largest = maxima[i / static_cast<std::size_t>(n)];
    largest = std::max(largest, std::bit_cast<std::uint32_t>(x[i]) & 0x7FFFFFFFu);
  }
  return maxima;
}

/// Rows that the matmul prepares from their maxima have the bits of those that another kernel has prepared: rows of
/// zeros, of numbers that binary16 does not have beside the largest, and of what is not finite, too.
void check_own_rows(const Format& format, std::int64_t n, std::int64_t k, PreparedForm form) {
  constexpr std::int64_t kRows = 8;
  const Matrix w(format, n, k, 60);
  std::vector<float> x = random_floats(kRows * k, 61);
  for (std::int64_t i = 0; i < k; ++i) {
    const auto of_row = [&](std::int64_t row) -> float& { return x[static_cast<std::size_t>(row * k + i)]; };
    of_row(1) = 0.0f;
    of_row(2) = std::pow(of_row(2), 31.0f);
    of_row(3) *= 1e-36f;
    if (i == 7) of_row(4) = INFINITY;
    if (i == k - 1) of_row(5) = -NAN;
    of_row(6) *= 1e34f;
    of_row(7) = std::pow(of_row(7), 7.0f);
  }
  const Prepared prepared(x, kRows, k, k, form);
  const std::vector<float> bias = random_floats(n, 62), residual = random_floats(kRows * n, 63);
  std::vector<float> expected(static_cast<std::size_t>(kRows * n)), y(expected.size());
  MatmulArguments a{};
  a.products[0] = {w.device, bias.data(), rows(residual, n), rows(expected, n)};
  a.x = prepared.rows;
  TestBatch(kRows).launch(Kernel::kMatmul, a, 0);
  std::vector<std::uint32_t> maxima = maxima_of(x, k);
  a.products[0].y = rows(y, n);
  a.x.base = nullptr;  // nothing may be read there
  a.rows = rows(x, k);
  a.maxima = {maxima.data(), most_rows_to_prepare(k, max_shared_bytes())};
  for (const std::int32_t count : {1, 2, 5, 8}) {
    if (count > a.maxima.most_rows) break;
    std::fill(y.begin(), y.end(), NAN);
    TestBatch(count).launch(Kernel::kMatmul, a, count < a.maxima.most_rows ? 1 : 0);
    for (std::int64_t i = 0; i < count * n; ++i) {
      const auto at = static_cast<std::size_t>(i);
      expect_same(y[at], expected[at], std::string(format.name).c_str());
    }
  }
}

/// Several products in one launch have the bits of each alone, whatever the layouts and the number of rows.
void check_several(const std::vector<const char*>& names, PreparedForm form) {
  constexpr std::int64_t kK = 512, kRows = 70;
  const std::vector<float> x = random_floats(kRows * kK, 70);
  const Prepared prepared(x, kRows, kK, kK, form);
  MatmulArguments a{};
  a.num_products = 0;
  a.x = prepared.rows;
  std::deque<Matrix> matrices;
  std::deque<std::vector<float>> biases, residuals, together, alone;
  for (const char* name : names) {
    const auto seed = static_cast<unsigned>(71 + a.num_products);
    const std::int64_t n = 16 + 19 * a.num_products;
    const Matrix& w = matrices.emplace_back(*find_format(name), n, kK, seed);
    residuals.push_back(random_floats(kRows * n, seed + 20));
    biases.push_back(random_floats(n, seed + 10));
    together.emplace_back(kRows * n);
    alone.emplace_back(kRows * n);
    const bool is_last = static_cast<std::size_t>(a.num_products) + 1 == names.size();
    a.products[a.num_products++] = {w.device, is_last ? nullptr : biases.back().data(),
                                    is_last ? rows(residuals.back(), n) : Rows{}, rows(together.back(), n)};
  }
  for (const std::int32_t count : {1, 6, 30, 70}) {
    for (std::vector<float>& y : together) std::fill(y.begin(), y.end(), NAN);
    TestBatch(count).launch(Kernel::kMatmul, a, count == 6 ? 2 : 0);
    for (std::size_t i = 0; i < names.size(); ++i) {
      MatmulArguments one{};
      one.products[0] = a.products[i];
      one.products[0].y.data = alone[i].data();
      one.x = a.x;
      TestBatch(count).launch(Kernel::kMatmul, one, 0);
      for (std::int64_t j = 0; j < count * a.products[i].w.n; ++j) {
        expect_same(together[i][static_cast<std::size_t>(j)], alone[i][static_cast<std::size_t>(j)], names[i]);
      }
      const auto beyond = static_cast<std::size_t>(count * a.products[i].w.n);
      if (beyond < together[i].size()) expect_same(together[i][beyond], NAN, "rows that there are not");
    }
  }
}

void check_gates() {
  constexpr std::int64_t kN = 40, kK = 256, kRows = 3;
  const Format& format = *find_format("Q4_K");
  const Matrix gate_w(format, kN, kK, 3), up_w(format, kN, kK, 4);
  const std::vector<float> x = random_floats(kRows * kK, 5), bias = random_floats(kN, 6),
                           up_bias = random_floats(kN, 7), residual = random_floats(kRows * kN, 8);
  const Prepared prepared(x, kRows, kK, kK, PreparedForm::kHalf);
  for (const std::int32_t spare : {0, 80}) {  // few, and the kernel for many
    std::vector<float> y(kRows * kN);
    MatmulArguments a{};
    a.products[0].w = gate_w.device;
    a.up = up_w.device;
    a.products[0].bias = bias.data();
    a.up_bias = up_bias.data();
    a.glu = ActivationKind::kSilu;
    a.x = prepared.rows;
    a.products[0].residual = rows(residual, kN);
    a.products[0].y = rows(y, kN);
    std::vector<std::uint32_t> maxima(8, 0);
    a.y_maxima = {maxima.data(), 8};
    TestBatch(kRows).launch(Kernel::kMatmul, a, spare);
    std::vector<std::uint32_t> wanted(8, 0);
    if (spare == 0) std::ranges::copy(maxima_of(y, kN), wanted.begin());
    if (maxima != wanted) expect_near(1, 0, 0, "maxima of gated rows");
    for (std::int64_t row = 0; row < kRows; ++row) {
      for (std::int64_t i = 0; i < kN; ++i) {
        double g_size = 0, u_size = 0;
        const double g =
            dot(&gate_w.values[static_cast<std::size_t>(i * kK)], &x[static_cast<std::size_t>(row * kK)], kK, g_size) +
            bias[static_cast<std::size_t>(i)];
        const double u =
            dot(&up_w.values[static_cast<std::size_t>(i * kK)], &x[static_cast<std::size_t>(row * kK)], kK, u_size) +
            up_bias[static_cast<std::size_t>(i)];
        const double expected = g / (1 + std::exp(-g)) * u + residual[static_cast<std::size_t>(row * kN + i)];
        expect_near(y[static_cast<std::size_t>(row * kN + i)], expected,
                    4e-3 * (1 + g_size * u_size / std::max(1.0, std::abs(expected))), "gate");
      }
    }
  }
}

void check_heads() {
  constexpr std::int64_t kHeads = 3, kN = 20, kK = 64, kRows = 4;
  const Format& format = *find_format("Q8_0");
  const Matrices w(format, kHeads, kN, kK, 10);
  const std::vector<float> x = random_floats(kRows * kHeads * kK, 20);
  const Prepared prepared(x, kRows, kK, kK, PreparedForm::kHalf, kHeads);
  std::vector<float> y(kRows * kHeads * kN);
  MatmulArguments a{};
  a.kind = MatmulKind::kHeads;
  a.heads = kHeads;
  a.products[0].w = w.device;
  a.x = prepared.rows;
  a.products[0].y = rows(y, kHeads * kN);
  TestBatch(kRows).launch(Kernel::kMatmul, a);
  for (std::int64_t row = 0; row < kRows; ++row) {
    for (std::int64_t h = 0; h < kHeads; ++h) {
      for (std::int64_t i = 0; i < kN; ++i) {
        const std::int64_t part = row * kHeads + h;
        expect_product(y[static_cast<std::size_t>(part * kN + i)], w.row(h, i), x.data() + part * kK, kK, 0, 2e-3,
                       "heads");
      }
    }
  }
}

/// Codes of one scale per row are integers, and so are their products with ternary weights.
void check_int8() {
  constexpr std::int64_t kN = 16, kK = 512, kRows = 2;
  const Format& format = *find_format("TQ2_0");
  const Matrix w(format, kN, kK, 30);
  const std::vector<float> x = random_floats(kRows * kK, 31);
  const Prepared prepared(x, kRows, kK, kK, PreparedForm::kInt8);
  std::vector<float> y(kRows * kN);
  MatmulArguments a{};
  a.products[0].w = w.device;
  a.x = prepared.rows;
  a.products[0].y = rows(y, kN);
  TestBatch(kRows).launch(Kernel::kMatmul, a);
  for (std::int64_t row = 0; row < kRows; ++row) {
    float largest = 0;
    for (std::int64_t i = 0; i < kK; ++i)
      largest = std::max(largest, std::abs(x[static_cast<std::size_t>(row * kK + i)]));
    std::vector<float> rounded(kK);
    for (std::int64_t i = 0; i < kK; ++i) {
      rounded[static_cast<std::size_t>(i)] =
          static_cast<float>(std::nearbyint(x[static_cast<std::size_t>(row * kK + i)] * (127.0f / largest))) *
          (largest / 127.0f);
    }
    for (std::int64_t i = 0; i < kN; ++i) {
      expect_product(y[static_cast<std::size_t>(row * kN + i)], w.values.data() + i * kK, rounded.data(), kK, 0, 3e-6,
                     "int8");
    }
  }
}

void check_experts() {
  constexpr std::int64_t kExperts = 4, kN = 24, kK = 96, kRows = 3, kUsed = 2;
  const Format& format = *find_format("Q5_1");
  const Matrices w(format, kExperts, kN, kK, 40);
  // Rows 0, 1, 2 chose experts (3, 1), (1, 0), (3, 0).
  std::vector<std::int32_t> groups = {3, 0, 0, 2, 1, 2, 2, 3, 4, 2, 0, 0, 0};
  std::vector<std::int32_t> pairs = {3, 5, 1, 2, 0, 4};
  const std::vector<float> x = random_floats(kRows * kK, 50), bias = random_floats(kExperts * kN, 51);
  Prepared prepared(x, kRows, kK, kK, PreparedForm::kHalf, 1);
  prepared.rows.max_rows = kRows * kUsed;
  prepared.memory.assign(static_cast<std::size_t>(prepared.rows.bytes()) + 64, 0);
  prepared.rows.base = Matrix::align(prepared.memory.data());
  PrepareArguments p{};
  p.x = rows(x, kK);
  p.k = kK;
  p.parts = 1;
  p.pairs = pairs.data();
  p.used = kUsed;
  p.to = prepared.rows;
  TestBatch(kRows).launch(Kernel::kPrepare, p, 0);
  std::vector<float> y(kRows * kUsed * kN);
  MatmulArguments a{};
  a.kind = MatmulKind::kExperts;
  a.pairs = {groups.data(), pairs.data(), nullptr, kExperts, kUsed, kRows * kUsed};
  a.products[0].w = w.device;
  a.products[0].bias = bias.data();
  a.x = prepared.rows;
  a.products[0].y = rows(y, kN);
  TestBatch(kRows).launch(Kernel::kMatmul, a);
  const std::int64_t experts[] = {0, 0, 1, 1, 3, 3};
  for (std::size_t place = 0; place < pairs.size(); ++place) {
    for (std::int64_t i = 0; i < kN; ++i) {
      const std::int64_t row = pairs[place] / kUsed, expert = experts[place];
      expect_product(y[place * kN + static_cast<std::size_t>(i)], w.row(expert, i), x.data() + row * kK, kK,
                     bias[static_cast<std::size_t>(expert * kN + i)], 2e-3, "experts");
    }
  }
}

}  // namespace

int main() {
  for (const Format& format : formats()) {
    const bool is_weight =
        format.dequantize != nullptr && format.name != "F64" && static_cast<std::uint32_t>(format.id) < kFirstVariant;
    if (!is_weight || format.tail_bytes != 0) continue;  // with a tail: the layouts of others
    const std::int64_t block = format.block_size;
    check_format(format, 35, block == 1 ? 100 : std::max<std::int64_t>(block, 64) * (block < 256 ? 9 : 2));
  }
  // Parts that are longer than what a warp asks for ahead, with whole pieces and without.
  for (const char* name : {"Q4_0", "Q5_1", "F16"}) check_format(*find_format(name), 16, 5216, 30);
  check_format(*find_format("Q4_K"), 16, 43 * 256, 30);
  struct Shape {
    const char* name;
    std::int64_t n, k;
  };
  for (const auto& [name, n, k] : {Shape{"Q4_0", 16, 5504},
                                   {"Q5_K", 16, 43 * 256},
                                   {"Q4_0", 35, 352},
                                   {"Q5_1", 16, 64},
                                   {"Q4_K", 20, 9 * 256},
                                   {"Q6_K", 20, 2 * 256},
                                   {"IQ4_NL", 17, 288},
                                   {"IQ1_S", 16, 256}}) {
    check_own_rows(*find_format(name), n, k, PreparedForm::kHalf);
  }
  check_own_rows(*find_format("TQ2_0"), 40, 9 * 256, PreparedForm::kInt8);
  check_several({"Q4_K", "Q4_K", "Q6_K"}, PreparedForm::kHalf);
  check_several({"Q8_0", "Q5_0", "IQ4_XS", "Q4_1"}, PreparedForm::kHalf);
  check_several({"TQ1_0", "TQ2_0", "TQ2_0"}, PreparedForm::kInt8);
  check_several({"F16", "F16"}, PreparedForm::kTwoHalves);
  check_several({"BF16", "BF16", "BF16"}, PreparedForm::kTwoBfloats);
  check_several({"F32", "F32", "F32"}, PreparedForm::kFloat);
  check_gates();
  check_heads();
  check_int8();
  check_experts();
  return finish_test();
}
