#include "gguf/ternary_scan.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "base/error.h"
#include "base/half.h"
#include "gguf/reader.h"

namespace sterna {
namespace {

constexpr std::uint64_t kReadBytes = std::uint64_t{1} << 20;

/// Where codes and scale stand in a block.
struct BlockMap {
  int codes_at;
  int code_bytes;
  int scale_at;  // -1: none
};

std::optional<BlockMap> block_map(const Format& format) {
  const int bytes = static_cast<int>(format.block_bytes);
  switch (format.id) {
    case FormatId::kTQ1_0:
    case FormatId::kTQ2_0:
      return BlockMap{0, bytes - 2, bytes - 2};
    case FormatId::kI2_S:
    case FormatId::kI2_S_ARM:
      return BlockMap{0, bytes, -1};
    case FormatId::kQ1_0:
    case FormatId::kQ2_0:
    case FormatId::kQ2_0_G128:
      return BlockMap{2, bytes - 2, 0};
    default:
      return std::nullopt;
  }
}

/// The format with blocks of 256 that reads the same bytes, where all blocks have one scale.
std::optional<FormatId> joined_format(FormatId id) {
  switch (id) {
    case FormatId::kI2_S:
      return FormatId::kI2_S_Ternary;
    case FormatId::kI2_S_ARM:
      return FormatId::kI2_S_ARM_Ternary;
    case FormatId::kQ1_0:
      return FormatId::kQ1_0_Ternary;
    case FormatId::kQ2_0:
      return FormatId::kQ2_0_Ternary;
    case FormatId::kQ2_0_G128:
      return FormatId::kQ2_0_G128_Ternary;
    default:
      return std::nullopt;
  }
}

/// The code 3 in any pair of bits.
bool has_fourth_code(std::uint8_t byte) { return (byte & (byte >> 1) & 0x55u) != 0; }

/// Whether one of TQ1_0's bytes is ceil(256 / 243 * number) of some number below 243.
bool is_written(std::uint8_t byte) {
  const int number = byte * 243 / 256;
  return (number * 256 + 242) / 243 == byte;
}

std::uint16_t scale_bits(const std::uint8_t* bytes) { return static_cast<std::uint16_t>(bytes[0] | (bytes[1] << 8)); }

/// Calls visit(first block, bytes of some blocks) until it returns false.
template <class Visit>
void read_blocks(const GgufModel& model, const TensorInfo& tensor, std::uint64_t first_read, Visit visit) {
  const std::uint64_t block_bytes = tensor.format->block_bytes;
  const std::uint64_t total = (tensor.bytes - tensor.format->tail_bytes) / block_bytes;
  std::vector<std::uint8_t> buffer;
  std::uint64_t at_once = first_read;
  for (std::uint64_t block = 0; block < total;) {
    const std::uint64_t count = std::min(at_once, total - block);
    buffer.resize(static_cast<std::size_t>(count * block_bytes));
    model.read(tensor, block * block_bytes, buffer);
    if (!visit(block, std::span<const std::uint8_t>(buffer))) return;
    block += count;
    at_once = std::max<std::uint64_t>(1, kReadBytes / block_bytes);
  }
}

void add_scale(TernaryScan& scan, float scale, std::uint64_t block) {
  if (!std::isfinite(scale)) {
    ++scan.bad_scales;
    if (!scan.first_bad_block) scan.first_bad_block = block;
    return;
  }
  scan.least_scale = std::min(scan.least_scale, scale);
  scan.largest_scale = std::max(scan.largest_scale, scale);
}

/// What the bytes of codes say, each `count` times.
void count_codes(const Format& format, const std::array<std::uint64_t, 256>& bytes, TernaryScan& scan) {
  for (int byte = 0; byte < 256; ++byte) {
    const std::uint64_t count = bytes[static_cast<std::size_t>(byte)];
    if (count == 0) continue;
    if (format.id == FormatId::kTQ1_0) {
      if (!is_written(static_cast<std::uint8_t>(byte))) scan.unused_bytes += count;
    } else if (format.id == FormatId::kQ1_0) {
      const auto ones = static_cast<std::uint64_t>(__builtin_popcount(static_cast<unsigned>(byte)));
      scan.codes[2] += ones * count;
      scan.codes[0] += (8 - ones) * count;
    } else {
      for (int shift = 0; shift < 8; shift += 2) scan.codes[static_cast<std::size_t>((byte >> shift) & 3)] += count;
    }
  }
}

/// Decodes block by block: TQ1_0, whose last bytes have four digits instead of five.
void count_digits(const Format& format, std::span<const std::uint8_t> blocks, TernaryScan& scan) {
  DecodedBlock decoded;
  for (std::size_t at = 0; at < blocks.size(); at += format.block_bytes) {
    format.decode(blocks.data() + at, decoded);
    for (std::uint32_t i = 0; i < format.block_size; ++i) ++scan.codes[static_cast<std::size_t>(decoded.codes[i] + 1)];
  }
}

/// The place of the first weight with the fourth code among some blocks, which have one.
std::uint64_t find_fourth(const Format& format, std::span<const std::uint8_t> blocks) {
  DecodedBlock decoded;
  std::uint64_t element = 0;
  for (std::size_t at = 0; at < blocks.size(); at += format.block_bytes, element += format.block_size) {
    format.decode(blocks.data() + at, decoded);
    for (std::uint32_t i = 0; i < format.block_size; ++i) {
      if (decoded.codes[i] > 1) return element + i;
    }
  }
  return element;
}

float tail_scale(const GgufModel& model, const TensorInfo& tensor) {
  std::uint8_t bytes[4];
  model.read(tensor, tensor.bytes - tensor.format->tail_bytes, bytes);
  return load_little_endian<float>(bytes);
}

/// Whether all blocks have the first one's scale, a number, and no code is the fourth.
bool is_one_ternary(const GgufModel& model, const TensorInfo& tensor, const BlockMap& map) {
  const bool two_bits = tensor.format->id != FormatId::kQ1_0;
  std::optional<std::uint16_t> scale;
  bool result = true;
  read_blocks(model, tensor, 16, [&](std::uint64_t, std::span<const std::uint8_t> blocks) {
    for (const std::uint8_t* block = blocks.data(); block != blocks.data() + blocks.size();
         block += tensor.format->block_bytes) {
      const std::uint16_t bits = scale_bits(block + map.scale_at);
      if (!scale) scale = bits;
      std::uint8_t fourth = 0;
      for (int i = 0; i < map.code_bytes; ++i) {
        const std::uint8_t byte = block[map.codes_at + i];
        fourth |= static_cast<std::uint8_t>(byte & (byte >> 1) & 0x55u);
      }
      result = bits == *scale && (fourth == 0 || !two_bits) && std::isfinite(half_to_float(bits));
      if (!result) return false;
    }
    return true;
  });
  return result;
}

}  // namespace

bool is_scannable(const Format& format) { return block_map(format).has_value(); }

TernaryScan scan_ternary(const GgufModel& model, const TensorInfo& tensor) {
  const Format& format = *tensor.format;
  const std::optional<BlockMap> map = block_map(format);
  if (!map) throw ArgumentError(std::string(format.name) + " is not ternary");
  TernaryScan scan;
  std::array<std::uint64_t, 256> bytes{};
  std::optional<std::uint16_t> scale;
  const bool two_bits = format.id != FormatId::kQ1_0 && format.id != FormatId::kTQ1_0;
  read_blocks(model, tensor, 1, [&](std::uint64_t first, std::span<const std::uint8_t> blocks) {
    bool fourth = false;
    std::uint64_t index = first;
    for (std::size_t at = 0; at < blocks.size(); at += format.block_bytes, ++index) {
      const std::uint8_t* codes = blocks.data() + at + map->codes_at;
      for (int i = 0; i < map->code_bytes; ++i) {
        ++bytes[codes[i]];
        fourth = fourth || (two_bits && has_fourth_code(codes[i]));
      }
      if (map->scale_at < 0) continue;
      const std::uint16_t bits = scale_bits(blocks.data() + at + map->scale_at);
      if (!scale) scale = bits;
      scan.one_scale = scan.one_scale && bits == *scale;
      add_scale(scan, half_to_float(bits), index);
    }
    if (format.id == FormatId::kTQ1_0) count_digits(format, blocks, scan);
    if (fourth && !scan.first_fourth) scan.first_fourth = first * format.block_size + find_fourth(format, blocks);
    return true;
  });
  count_codes(format, bytes, scan);
  if (format.tail_bytes != 0) add_scale(scan, tail_scale(model, tensor), 0);
  return scan;
}

const Format& weight_format(const GgufModel& model, const TensorInfo& tensor) {
  const Format& format = *tensor.format;
  const std::optional<FormatId> joined = joined_format(format.id);
  if (!joined || tensor.shape.size() < 2 || tensor.shape.back() % 256 != 0) return format;
  // A scale behind the blocks is one by definition.
  if (format.tail_bytes == 0 && !is_one_ternary(model, tensor, *block_map(format))) return format;
  return *find_format(static_cast<std::uint32_t>(*joined));
}

}  // namespace sterna
