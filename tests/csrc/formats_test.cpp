/// Any bytes in any format: no byte outside the block is read, nothing outside the output is written, and both ways to
/// a float agree. Meant for the sanitizers; the values themselves are checked against gguf.quants in tests/quant.
#include <bit>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <random>
#include <string>

#include "quant/format.h"

namespace {

using sterna::DecodedBlock;
using sterna::Format;
using sterna::ScaleKind;

int failures = 0;

void expect(bool condition, const Format& format, const char* what) {
  if (condition) return;
  std::printf("%s: %s\n", std::string(format.name).c_str(), what);
  ++failures;
}

/// The float that format.h says a code stands for.
float value(const Format& format, const DecodedBlock& decoded, std::uint32_t i) {
  const std::uint32_t g = i / format.group_size;
  const auto code = static_cast<float>(decoded.codes[i]);
  if (format.scales == ScaleKind::kBlock) {
    const float product = decoded.scale[g] * code;
    return format.has_min ? product + decoded.min[g] : product;
  }
  const float product = (decoded.scale[0] * static_cast<float>(decoded.group_scale[g])) * code;
  return format.has_min ? product - decoded.min[0] * static_cast<float>(decoded.group_min[g]) : product;
}

bool same(float a, float b) {
  return (std::isnan(a) && std::isnan(b)) || std::bit_cast<std::uint32_t>(a) == std::bit_cast<std::uint32_t>(b);
}

void check_block(const Format& format, const std::uint8_t* block) {
  const auto floats = std::make_unique<float[]>(format.block_size);
  if (format.dequantize != nullptr) format.dequantize(block, floats.get());
  if (format.decode == nullptr) return;
  const auto decoded = std::make_unique<DecodedBlock>();
  std::memset(decoded.get(), 0xA5, sizeof(DecodedBlock));
  format.decode(block, *decoded);
  for (std::uint32_t i = 0; i < format.block_size; ++i) {
    if (!same(value(format, *decoded, i), floats[i])) {
      expect(false, format, "decode and dequantize differ");
      return;
    }
  }
  for (std::uint32_t i = format.block_size; i < 256; ++i) {
    expect(static_cast<std::uint8_t>(decoded->codes[i]) == 0xA5, format, "decode wrote beyond its codes");
  }
}

void check_format(const Format& format, std::mt19937& random) {
  expect(sterna::find_format(static_cast<std::uint32_t>(format.id)) == &format, format, "not found by id");
  expect(sterna::find_format(format.name) == &format, format, "not found by name");
  std::string lower(format.name);
  for (char& c : lower) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  expect(sterna::find_format(std::string_view(lower)) == &format, format, "not found by its name in lower case");
  expect(format.block_size % format.group_size == 0 && format.block_size <= 256, format, "block or group size");
  expect(format.block_size / format.group_size <= 16, format, "more groups than DecodedBlock holds");
  expect((format.scales == ScaleKind::kNone) == (format.decode == nullptr), format, "decode is there or not");

  // Exactly as many bytes as a block has, so that the next one is poisoned.
  const auto block = std::make_unique<std::uint8_t[]>(format.block_bytes);
  for (const int byte : {0x00, 0xFF, 0x80, 0x7F}) {
    std::memset(block.get(), byte, format.block_bytes);
    check_block(format, block.get());
  }
  for (int round = 0; round < 500; ++round) {
    for (std::uint32_t i = 0; i < format.block_bytes; ++i) block[i] = static_cast<std::uint8_t>(random());
    check_block(format, block.get());
  }
}

}  // namespace

int main() {
  constexpr unsigned kSeed = 20240917;
  std::printf("seed %u\n", kSeed);
  std::mt19937 random(kSeed);
  for (const Format& format : sterna::formats()) check_format(format, random);
  for (const std::uint32_t id : {4u, 5u, 9u, 15u, 31u, 37u, 43u, 0x10008u, 0xFFFFFFFFu}) {
    if (sterna::find_format(id) != nullptr) {
      std::printf("id %u is in the table\n", id);
      ++failures;
    }
  }
  for (const char* name : {"", "Q4", "Q4_0_4_4", "Q8_K", "Q8_1"}) {
    if (sterna::find_format(std::string_view(name)) != nullptr) {
      std::printf("\"%s\" is in the table\n", name);
      ++failures;
    }
  }
  std::printf("%zu formats, %d failures\n", sterna::formats().size(), failures);
  return failures == 0 ? 0 : 1;
}
