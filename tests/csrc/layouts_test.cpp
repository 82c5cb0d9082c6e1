/// Any bytes of any format, packed into exactly the bytes that a layout needs and read back: nothing beyond the file's
/// bytes is read, nothing beyond the panels is written, and no float changes. Meant for the sanitizers.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "quant/layout.h"

namespace {

using namespace sterna;

int failures = 0;

void expect(bool condition, const Format& format, const char* what) {
  if (condition) return;
  std::printf("%s: %s\n", std::string(format.name).c_str(), what);
  ++failures;
}

bool same(float a, float b) {
  return (std::isnan(a) && std::isnan(b)) || std::bit_cast<std::uint32_t>(a) == std::bit_cast<std::uint32_t>(b);
}

/// The value of an element of an unpacked panel, by the numbers of layout_spec(kUnpacked).
float unpacked_value(const std::uint8_t* panel, int row, std::int64_t i) {
  constexpr LayoutSpec spec = layout_spec(LayoutId::kUnpacked);
  const std::uint8_t* block = panel + i / spec.block * spec.block_bytes();
  const int at = static_cast<int>(i % spec.block);
  const int code = block[at / kChunk * 64 + row * kChunk + at % kChunk] - spec.bias;
  const auto group = static_cast<std::int8_t>(block[spec.group_scale_offset() + at / spec.group * kPanelRows + row]);
  float scale;
  std::memcpy(&scale, block + spec.scale_offset() + 4 * row, 4);
  return scale * static_cast<float>(group) * static_cast<float>(code);
}

void check_matrix(const Format& format, std::int64_t n, std::int64_t k, std::mt19937& random) {
  const std::size_t row_bytes = static_cast<std::size_t>(k / format.block_size * format.block_bytes);
  PackedMatrix matrix = make_matrix(format, n, k);
  expect(matrix.bytes.size() == static_cast<std::size_t>(matrix.panels() * matrix.panel_bytes), format, "size");
  bool finite = true;
  std::vector<std::unique_ptr<std::uint8_t[]>> panels;  // each panel's rows alone, so that the next byte is poisoned
  for (std::int64_t p = 0; p < matrix.panels(); ++p) {
    const auto rows = static_cast<std::size_t>(std::min<std::int64_t>(kPanelRows, n - p * kPanelRows));
    auto& bytes = panels.emplace_back(std::make_unique<std::uint8_t[]>(rows * row_bytes));
    for (std::size_t i = 0; i < rows * row_bytes; ++i) bytes[i] = static_cast<std::uint8_t>(random());
    finite = pack_panel(matrix, p, {bytes.get(), rows * row_bytes}) && finite;
  }
  finish_matrix(matrix);
  expect(!matrix.uniform_scale || n * k == format.block_size || !finite, format, "random scales are uniform");

  const auto got = std::make_unique<float[]>(static_cast<std::size_t>(k));
  const auto want = std::make_unique<float[]>(static_cast<std::size_t>(k));
  std::unique_ptr<std::uint8_t[]> unpacked;
  bool all_finite = true;
  for (std::int64_t row = 0; row < n; ++row) {
    const std::uint8_t* source = panels[static_cast<std::size_t>(row / kPanelRows)].get() +
                                 static_cast<std::size_t>(row % kPanelRows) * row_bytes;
    for (std::int64_t b = 0; b < k / format.block_size; ++b) {
      format.dequantize(source + b * format.block_bytes, want.get() + b * format.block_size);
    }
    dequantize_row(matrix, row, got.get());
    if (matrix.layout == LayoutId::kNative && row % kPanelRows == 0) {
      const auto size = static_cast<std::size_t>(k / 256 * layout_spec(LayoutId::kUnpacked).block_bytes());
      unpacked = std::make_unique<std::uint8_t[]>(size);
      unpack_native_panel(matrix, row / kPanelRows, unpacked.get());
    }
    bool equal = true;
    for (std::int64_t i = 0; i < k; ++i) {
      all_finite = all_finite && std::isfinite(want[i]);
      if (!std::isfinite(want[i])) continue;  // a scale that is refused need not come back
      equal = equal && same(got[i], want[i]);
      if (unpacked)
        equal = equal && same(unpacked_value(unpacked.get(), static_cast<int>(row % kPanelRows), i), want[i]);
    }
    expect(equal || !finite, format, "a packed row is not the file's row");
  }
  expect(all_finite || !finite, format, "numbers that are not finite pass as finite");
}

/// pack_panel and its definition write the same bytes, and find the same scales that are not finite.
void check_definition(const Format& format, std::int64_t k, std::mt19937& random) {
  const std::int64_t row_bytes = k / format.block_size * format.block_bytes;
  std::vector<std::uint8_t> bytes(static_cast<std::size_t>(kPanelRows * row_bytes));
  std::vector<float> values(format.block_size);
  for (std::size_t at = 0; at < bytes.size(); at += format.block_bytes) {
    do {
      for (std::size_t i = 0; i < format.block_bytes; ++i) bytes[at + i] = static_cast<std::uint8_t>(random());
      format.dequantize(bytes.data() + at, values.data());
    } while (!std::all_of(values.begin(), values.end(), [](float x) { return std::isfinite(x * 128.0f); }));
  }
  PackedMatrix fast = make_matrix(format, kPanelRows, k), slow = make_matrix(format, kPanelRows, k);
  expect(pack_panel(fast, 0, bytes) == pack_panel_by_codes(slow, 0, bytes), format, "finite by one way only");
  expect(std::memcmp(fast.bytes.data(), slow.bytes.data(), fast.bytes.size()) == 0, format, "the ways differ");
  for (int i = 0; i < 200; ++i) {  // a byte of ones is often the upper half of an exponent
    std::uint8_t& byte = bytes[random() % bytes.size()];
    const std::uint8_t kept = std::exchange(byte, static_cast<std::uint8_t>(i % 2 == 0 ? 0xFF : 0x7C));
    expect(pack_panel(fast, 0, bytes) == pack_panel_by_codes(slow, 0, bytes), format, "refused by one way only");
    byte = kept;
  }
}

void check_uniform(const Format& format, std::mt19937& random) {
  for (const std::int64_t odd_one : {-1, 0, 5, 20}) {  // a row whose last block has another scale
    const std::int64_t n = 21, k = 512;
    const std::size_t row_bytes = static_cast<std::size_t>(k / format.block_size * format.block_bytes);
    PackedMatrix matrix = make_matrix(format, n, k);
    for (std::int64_t p = 0; p < matrix.panels(); ++p) {
      const auto rows = static_cast<std::size_t>(std::min<std::int64_t>(kPanelRows, n - p * kPanelRows));
      std::vector<std::uint8_t> bytes(rows * row_bytes);
      for (std::uint8_t& byte : bytes) byte = static_cast<std::uint8_t>(random());
      for (std::size_t row = 0; row < rows; ++row) {
        for (std::size_t end = format.block_bytes; end <= row_bytes; end += format.block_bytes) {
          const bool odd = p * kPanelRows + static_cast<std::int64_t>(row) == odd_one && end == row_bytes;
          bytes[row * row_bytes + end - 2] = odd ? 1 : 0;
          bytes[row * row_bytes + end - 1] = 0x38;  // 0.5
        }
      }
      expect(pack_panel(matrix, p, bytes), format, "0.5 is not finite");
    }
    finish_matrix(matrix);
    expect(matrix.uniform_scale == (odd_one < 0), format, "one scale everywhere is not seen, or seen where it is not");
    expect(odd_one >= 0 || matrix.scale == 0.5f, format, "the one scale");
  }
}

}  // namespace

int main() {
  constexpr unsigned kSeed = 20241109;
  std::printf("seed %u\n", kSeed);
  std::mt19937 random(kSeed);
  int checked = 0;
  for (const Format& format : formats()) {
    try {
      layout_for(format);
    } catch (const UnsupportedModelError&) {
      continue;
    }
    ++checked;
    const std::int64_t block = format.block_size == 1 ? 24 : format.block_size;
    for (const std::int64_t n : {1, 15, 16, 17, 33}) {
      for (const std::int64_t blocks : {1, 3}) check_matrix(format, n, blocks * block, random);
    }
    for (const std::int64_t blocks : {1, 2, 5}) check_definition(format, blocks * block, random);
    if (format.id == FormatId::kTQ1_0 || format.id == FormatId::kTQ2_0) check_uniform(format, random);
    for (const auto& [n, k] : {std::pair<std::int64_t, std::int64_t>{0, block}, {16, 0}, {-1, block}, {16, -block}}) {
      try {
        make_matrix(format, n, k);
        expect(false, format, "an impossible shape is accepted");
      } catch (const ArgumentError&) {
      }
    }
  }
  std::printf("%d formats, %d failures\n", checked, failures);
  return failures == 0 && checked == 36 ? 0 : 1;
}
