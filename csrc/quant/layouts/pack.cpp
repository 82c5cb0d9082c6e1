/// Packs decoded blocks into panels, and reads rows back. Written once for all layouts from their LayoutSpec; the byte
/// maps are in quant/layout.h. The common formats take a shorter way to the same bytes (quant/layouts/fast_pack.h).
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <memory>

#include "base/half.h"
#include "quant/layout.h"
#include "quant/layouts/fast_pack.h"

namespace sterna {
namespace {

constexpr int kMaxChunks = 64;  // of a block of 256

/// Codes of one panel block, one byte each: [chunk][row][4].
struct WideCodes {
  alignas(64) std::uint8_t bytes[kMaxChunks * 64];
};

std::array<std::uint8_t, 256> inverse_table(const CodeTable& table) {
  std::array<std::uint8_t, 256> inverse{};
  for (int i = 15; i >= 0; --i) inverse[static_cast<std::uint8_t>(table[i])] = static_cast<std::uint8_t>(i);
  return inverse;
}

const CodeTable& code_table(LayoutId layout) {
  return layout == LayoutId::kTable4 || layout == LayoutId::kTable4Super ? kIq4Table : kE2M1Table;
}

/// The stored code of every value, by the value as a byte.
std::array<std::uint8_t, 256> codes_by_value(const LayoutSpec& spec) {
  const auto inverse = inverse_table(code_table(spec.id));
  std::array<std::uint8_t, 256> codes{};
  for (int value = -128; value < 128; ++value) {
    const auto byte = static_cast<std::uint8_t>(value);
    codes[byte] = spec.is_table ? inverse[byte] : static_cast<std::uint8_t>((value + spec.bias) / spec.step);
  }
  return codes;
}

/// Values become stored codes, in place. Where that is an addition, the compiler does 16 and more at once.
void encode(const LayoutSpec& spec, const std::array<std::uint8_t, 256>& codes, std::int8_t* values) {
  auto* bytes = reinterpret_cast<std::uint8_t*>(values);
  if (!spec.is_table && spec.step == 1) {
    const auto bias = static_cast<std::uint8_t>(spec.bias);
    for (int i = 0; i < spec.block; ++i) bytes[i] = static_cast<std::uint8_t>(bytes[i] + bias);
  } else {
    for (int i = 0; i < spec.block; ++i) bytes[i] = codes[bytes[i]];
  }
}

/// One plane of `bits` bits of a unit's codes, from bit `shift` up.
template <int bits>
void pack_plane(const std::uint8_t* wide, int shift, std::uint8_t* out) {
  constexpr int per_byte = 8 / bits;
  constexpr int mask = (1 << bits) - 1;
  for (int c = 0; c < 8; c += per_byte, out += 64) {
    for (int b = 0; b < 64; ++b) {
      unsigned byte = 0;
      for (int i = 0; i < per_byte; ++i) byte |= ((wide[(c + i) * 64 + b] >> shift) & mask) << (i * bits);
      out[b] = static_cast<std::uint8_t>(byte);
    }
  }
}

void pack_plane(int bits, const std::uint8_t* wide, int shift, std::uint8_t* out) {
  switch (bits) {
    case 1:
      pack_plane<1>(wide, shift, out);
      break;
    case 2:
      pack_plane<2>(wide, shift, out);
      break;
    case 4:
      pack_plane<4>(wide, shift, out);
      break;
    default:
      pack_plane<8>(wide, shift, out);
      break;
  }
}

int unpack_code(const LayoutSpec& spec, const std::uint8_t* codes, int chunk, int byte) {
  if (spec.low_bits == 0) {
    unsigned t = codes[chunk / 5 * 64 + byte];
    for (int i = 0; i < chunk % 5; ++i) t = (3 * t) & 0xFFu;
    return static_cast<int>((3 * t) >> 8);
  }
  const std::uint8_t* unit = codes + chunk / 8 * spec.unit_bytes();
  const auto plane = [&](const std::uint8_t* p, int bits) {
    const int per_byte = 8 / bits;
    const int c = chunk % 8;
    return (p[c / per_byte * 64 + byte] >> (c % per_byte * bits)) & ((1 << bits) - 1);
  };
  int code = plane(unit, spec.low_bits);
  if (spec.high_bits != 0) code |= plane(unit + 64 * spec.low_bits, spec.high_bits) << spec.low_bits;
  return code;
}

/// The stored bits of a scale that came from the same kind of store, so that nothing is lost.
std::uint8_t scale_to_e8m0(float scale) {  // scale is 2^(e - 128)
  const auto bits = std::bit_cast<std::uint32_t>(scale);
  if (bits < 0x00400000u) return 0;
  if (bits < 0x00800000u) return 1;
  return static_cast<std::uint8_t>((bits >> 23) + 1);
}
std::uint8_t scale_to_ue4m3(float scale) {  // scale is half the UE4M3 value
  return static_cast<std::uint8_t>(std::bit_cast<std::uint32_t>(scale * 0x1p-119f) >> 20);
}
float e8m0_to_scale(std::uint8_t e) {
  if (e < 2) return std::bit_cast<float>(0x00200000u << e);
  return std::bit_cast<float>(static_cast<std::uint32_t>(e - 1) << 23);
}
float ue4m3_to_scale(std::uint8_t b) { return std::bit_cast<float>(static_cast<std::uint32_t>(b) << 20) * 0x1p119f; }

void put_half(std::uint8_t* p, int index, float value) {
  const std::uint16_t half = float_to_half(value);
  std::memcpy(p + 2 * index, &half, 2);
}
float get_half(const std::uint8_t* p, int index) {
  std::uint16_t half;
  std::memcpy(&half, p + 2 * index, 2);
  return half_to_float(half);
}

void put_scale(const LayoutSpec& spec, std::uint8_t* p, int index, float scale) {
  switch (spec.scale_store) {
    case ScaleStore::kHalf:
      put_half(p, index, scale);
      break;
    case ScaleStore::kE8M0:
      p[index] = scale_to_e8m0(scale);
      break;
    case ScaleStore::kUE4M3:
      p[index] = scale_to_ue4m3(scale);
      break;
    case ScaleStore::kFloat:  // kUnpacked only, which is not packed here
    case ScaleStore::kNone:
      break;
  }
}
float get_scale(const LayoutSpec& spec, const std::uint8_t* p, int index) {
  switch (spec.scale_store) {
    case ScaleStore::kHalf:
      return get_half(p, index);
    case ScaleStore::kE8M0:
      return e8m0_to_scale(p[index]);
    case ScaleStore::kUE4M3:
      return ue4m3_to_scale(p[index]);
    default:
      return 0.0f;
  }
}

/// Whether a scale and all values under it are finite: with an exponent of its own (MXFP4) it can be too large for its
/// codes.
bool is_finite_scale(float scale) { return std::isfinite(scale * 128.0f); }

/// Scales of one row of a block. Returns whether all are finite.
bool put_scales(const PackedMatrix& matrix, const LayoutSpec& spec, const DecodedBlock& block, int row,
                std::uint8_t* out) {
  bool finite = true;
  for (int s = 0; s < spec.scale_count(); ++s) {
    finite = finite && is_finite_scale(block.scale[s]);
    put_scale(spec, out + spec.scale_offset(), s * kPanelRows + row, matrix.block_scale * block.scale[s]);
  }
  if (spec.has_min) {
    finite = finite && std::isfinite(block.min[0]);
    put_half(out + spec.min_offset(), row, block.min[0]);
  }
  if (spec.scales != ScaleKind::kSuper || spec.group_store == GroupStore::kNone) return finite;
  for (int g = 0; g < spec.groups(); ++g) {
    const int at = g * kPanelRows + row;
    if (spec.group_store == GroupStore::kNibbles) {
      out[spec.group_scale_offset() + at] = static_cast<std::uint8_t>(block.group_scale[g] | (block.group_min[g] << 4));
      continue;
    }
    out[spec.group_scale_offset() + at] = static_cast<std::uint8_t>(block.group_scale[g]);
    if (spec.has_min) out[spec.group_min_offset() + at] = static_cast<std::uint8_t>(block.group_min[g]);
  }
  return finite;
}

/// Whether all codes of a block mean something.
bool are_valid_codes(const Format& format, const std::int8_t* codes) {
  if (!format.is_ternary) return true;
  return std::all_of(codes, codes + format.block_size, [](std::int8_t code) { return code <= 1; });
}

/// Rows of plain numbers become [k][16].
bool pack_dense(PackedMatrix& matrix, std::uint8_t* out, std::span<const std::uint8_t> rows, int count) {
  const std::int64_t k = matrix.k;
  bool finite = true;
  if (matrix.layout == LayoutId::kF32) {
    for (int r = 0; r < count; ++r) {
      for (std::int64_t i = 0; i < k; ++i) {
        float value;
        std::memcpy(&value, rows.data() + (r * k + i) * 4, 4);
        finite = finite && std::isfinite(value);
        std::memcpy(out + (i * kPanelRows + r) * 4, &value, 4);
      }
    }
    return finite;
  }
  const std::uint16_t exponent = matrix.layout == LayoutId::kF16 ? 0x7C00 : 0x7F80;
  for (int r = 0; r < count; ++r) {
    for (std::int64_t i = 0; i < k; ++i) {
      std::uint16_t value;
      std::memcpy(&value, rows.data() + (r * k + i) * 2, 2);
      finite = finite && (value & exponent) != exponent;
      std::memcpy(out + (i * kPanelRows + r) * 2, &value, 2);
    }
  }
  return finite;
}

/// The file's own blocks, [block][row].
bool pack_native(PackedMatrix& matrix, std::uint8_t* out, std::span<const std::uint8_t> rows, int count) {
  const std::int64_t blocks = matrix.k / matrix.format->block_size;
  const std::int64_t size = matrix.format->block_bytes;
  bool finite = true;
  DecodedBlock decoded;
  for (int r = 0; r < count; ++r) {
    for (std::int64_t b = 0; b < blocks; ++b) {
      const std::uint8_t* source = rows.data() + (r * blocks + b) * size;
      matrix.format->decode(source, decoded);
      finite = finite && std::isfinite(decoded.scale[0]);
      std::memcpy(out + (b * kPanelRows + r) * size, source, static_cast<std::size_t>(size));
    }
  }
  return finite;
}

bool pack_quantised(PackedMatrix& matrix, std::uint8_t* out, std::span<const std::uint8_t> rows, int count) {
  const LayoutSpec spec = layout_spec(matrix.layout);
  const std::int64_t blocks = matrix.k / spec.block;
  const std::int64_t row_bytes = blocks * matrix.format->block_bytes;
  const int chunks = spec.block / kChunk;
  const std::array<std::uint8_t, 256> codes = codes_by_value(spec);

  const auto wide = std::make_unique<WideCodes>();
  DecodedBlock decoded;
  bool finite = true;
  for (std::int64_t b = 0; b < blocks; ++b, out += spec.block_bytes()) {
    std::memset(wide->bytes, codes[0], static_cast<std::size_t>(chunks) * 64);
    for (int r = 0; r < count; ++r) {
      matrix.format->decode(rows.data() + r * row_bytes + b * matrix.format->block_bytes, decoded);
      finite = put_scales(matrix, spec, decoded, r, out) && are_valid_codes(*matrix.format, decoded.codes) && finite;
      encode(spec, codes, decoded.codes);
      for (int c = 0; c < chunks; ++c)
        std::memcpy(wide->bytes + c * 64 + r * kChunk, decoded.codes + c * kChunk, kChunk);
    }
    if (spec.low_bits == 0) {
      for (int q = 0; q < 13; ++q) {
        for (int byte = 0; byte < 64; ++byte) {
          int number = 0;
          for (int i = 0; i < 5; ++i)
            number = 3 * number + (5 * q + i < chunks ? wide->bytes[(5 * q + i) * 64 + byte] : 1);
          out[q * 64 + byte] = static_cast<std::uint8_t>((number * 256 + 242) / 243);
        }
      }
      continue;
    }
    for (int u = 0; u < spec.units(); ++u) {
      const std::uint8_t* unit = wide->bytes + u * 8 * 64;
      std::uint8_t* to = out + u * spec.unit_bytes();
      pack_plane(spec.low_bits, unit, 0, to);
      if (spec.high_bits != 0) pack_plane(spec.high_bits, unit, spec.low_bits, to + 64 * spec.low_bits);
    }
  }
  return finite;
}

/// The one scale of a tensor, for all blocks of a full panel.
void put_tensor_scale(const PackedMatrix& matrix, std::uint8_t* panel) {
  const LayoutSpec spec = layout_spec(matrix.layout);
  for (std::int64_t b = 0; b < matrix.k / spec.block; ++b, panel += spec.block_bytes()) {
    for (int row = 0; row < kPanelRows; ++row) put_half(panel + spec.scale_offset(), row, matrix.block_scale);
  }
}

}  // namespace

bool pack_panel_by_codes(PackedMatrix& matrix, std::int64_t panel, std::span<const std::uint8_t> rows) {
  std::uint8_t* out = matrix.bytes.data() + panel * matrix.panel_bytes;
  const int count = static_cast<int>(std::min<std::int64_t>(kPanelRows, matrix.n - panel * kPanelRows));
  if (matrix.format->scales == ScaleKind::kNone) return pack_dense(matrix, out, rows, count);
  if (matrix.layout == LayoutId::kNative) return pack_native(matrix, out, rows, count);
  return pack_quantised(matrix, out, rows, count);
}

bool set_tensor_scale(PackedMatrix& matrix, std::span<const std::uint8_t> tail) {
  std::uint32_t bits = 0;
  for (int i = 3; i >= 0; --i) bits = bits << 8 | tail[static_cast<std::size_t>(i)];
  const auto scale = std::bit_cast<float>(bits);
  // Where a half holds it, the matrix is that of any dialect with scales in its blocks.
  const bool fits = half_to_float(float_to_half(scale)) == scale;
  matrix.block_scale = fits ? scale : 1.0f;
  matrix.factor = fits ? 1.0f : scale;
  return std::isfinite(scale);
}

bool pack_panel(PackedMatrix& matrix, std::int64_t panel, std::span<const std::uint8_t> rows) {
  const quant::FastPack fast = quant::fast_pack(*matrix.format, matrix.k);
  if (fast == nullptr || matrix.n - panel * kPanelRows < kPanelRows) return pack_panel_by_codes(matrix, panel, rows);
  const std::int64_t row_bytes = matrix.k / matrix.format->block_size * matrix.format->block_bytes;
  std::uint8_t* out = matrix.bytes.data() + panel * matrix.panel_bytes;
  const bool good = fast(rows.data(), row_bytes, matrix.k, out);
  if (matrix.format->tail_bytes != 0) put_tensor_scale(matrix, out);
  return good;
}

void unpack_native_panel(const PackedMatrix& matrix, std::int64_t panel, std::uint8_t* out) {
  constexpr LayoutSpec spec = layout_spec(LayoutId::kUnpacked);
  const std::int64_t size = matrix.format->block_bytes;
  const int groups = static_cast<int>(matrix.format->block_size / matrix.format->group_size);
  const std::uint8_t* source = matrix.panel(panel);
  DecodedBlock decoded;
  for (std::int64_t b = 0; b < matrix.k / spec.block; ++b, out += spec.block_bytes()) {
    for (int r = 0; r < kPanelRows; ++r, source += size) {
      matrix.format->decode(source, decoded);
      for (int c = 0; c < spec.block / kChunk; ++c) {
        for (int j = 0; j < kChunk; ++j) {
          out[c * 64 + r * kChunk + j] = static_cast<std::uint8_t>(decoded.codes[c * kChunk + j] + spec.bias);
        }
      }
      for (int g = 0; g < spec.groups(); ++g) {
        out[spec.group_scale_offset() + g * kPanelRows + r] =
            static_cast<std::uint8_t>(decoded.group_scale[g * groups / spec.groups()]);
      }
      std::memcpy(out + spec.scale_offset() + 4 * r, &decoded.scale[0], 4);
    }
  }
}

std::string find_fault(const PackedMatrix& matrix, std::int64_t first_row, std::span<const std::uint8_t> rows) {
  const Format& format = *matrix.format;
  const auto place = [&](std::int64_t block, std::int64_t in_block) {
    const std::int64_t per_row = matrix.k / format.block_size;
    std::string text = " in row ";
    text += std::to_string(first_row + block / per_row);
    text += ", column ";
    text += std::to_string(block % per_row * format.block_size + in_block);
    return text;
  };
  float values[256];
  DecodedBlock decoded;
  const auto blocks = static_cast<std::int64_t>(rows.size() / format.block_bytes);
  for (std::int64_t b = 0; b < blocks; ++b) {
    const std::uint8_t* block = rows.data() + b * format.block_bytes;
    if (format.is_ternary) {
      format.decode(block, decoded);
      const std::int8_t* begin = decoded.codes;
      const std::int8_t* end = begin + format.block_size;
      const std::int8_t* found = std::find_if(begin, end, [](std::int8_t code) { return code > 1; });
      if (found != end) return "a ternary code that means nothing, 3," + place(b, found - begin);
    }
    format.dequantize(block, values);
    for (std::uint32_t i = 0; i < format.block_size; ++i) {
      if (!std::isfinite(values[i])) return "a NaN or infinite number" + place(b, i);
    }
  }
  return "a scale that is too large for its codes";
}

void finish_matrix(PackedMatrix& matrix) {
  if (!is_ternary_layout(matrix.layout)) return;
  const LayoutSpec spec = layout_spec(matrix.layout);
  const std::int64_t blocks = matrix.k / spec.block;
  std::uint16_t first;
  std::memcpy(&first, matrix.panel(0) + spec.scale_offset(), 2);
  for (std::int64_t row = 0; row < matrix.n; ++row) {
    const std::uint8_t* block = matrix.panel(row / kPanelRows) + spec.scale_offset() + 2 * (row % kPanelRows);
    for (std::int64_t b = 0; b < blocks; ++b, block += spec.block_bytes()) {
      if (std::memcmp(block, &first, 2) != 0) return;
    }
  }
  matrix.uniform_scale = true;
  matrix.scale = matrix.factor * half_to_float(first);
}

void dequantize_row(const PackedMatrix& matrix, std::int64_t row, float* out) {
  const std::uint8_t* panel = matrix.panel(row / kPanelRows);
  const int r = static_cast<int>(row % kPanelRows);
  if (matrix.format->scales == ScaleKind::kNone) {
    for (std::int64_t i = 0; i < matrix.k; ++i) {
      if (matrix.layout == LayoutId::kF32) {
        std::memcpy(out + i, panel + (i * kPanelRows + r) * 4, 4);
      } else {
        std::uint16_t bits;
        std::memcpy(&bits, panel + (i * kPanelRows + r) * 2, 2);
        out[i] = matrix.layout == LayoutId::kF16 ? half_to_float(bits) : bfloat16_to_float(bits);
      }
    }
    return;
  }
  if (matrix.layout == LayoutId::kNative) {
    const std::int64_t size = matrix.format->block_bytes;
    for (std::int64_t b = 0; b < matrix.k / matrix.format->block_size; ++b) {
      matrix.format->dequantize(panel + (b * kPanelRows + r) * size, out + b * matrix.format->block_size);
    }
    return;
  }
  const LayoutSpec spec = layout_spec(matrix.layout);
  const CodeTable& table = code_table(matrix.layout);
  const std::int64_t blocks = matrix.k / spec.block;
  for (std::int64_t b = 0; b < blocks; ++b, panel += spec.block_bytes(), out += spec.block) {
    const float minimum = spec.has_min ? get_half(panel + spec.min_offset(), r) : 0.0f;
    for (int g = 0; g < spec.groups(); ++g) {
      const int at = g * kPanelRows + r;
      float scale = get_scale(spec, panel + spec.scale_offset(), spec.scales == ScaleKind::kSuper ? r : at);
      float group_minimum = minimum;
      if (spec.scales == ScaleKind::kSuper) {
        const std::uint8_t byte = panel[spec.group_scale_offset() + at];
        switch (spec.group_store) {
          case GroupStore::kSigned8:
            scale *= static_cast<float>(static_cast<std::int8_t>(byte));
            break;
          case GroupStore::kUnsigned8:
            scale *= static_cast<float>(byte);
            break;
          case GroupStore::kNibbles:
            scale *= static_cast<float>(byte & 15);
            break;
          case GroupStore::kNone:
            break;
        }
        if (spec.group_store == GroupStore::kNibbles)
          group_minimum *= static_cast<float>(byte >> 4);
        else if (spec.has_min)
          group_minimum *= static_cast<float>(panel[spec.group_min_offset() + at]);
      }
      for (int i = g * spec.group; i < (g + 1) * spec.group; ++i) {
        const int code = unpack_code(spec, panel, i / kChunk, r * kChunk + i % kChunk);
        const float value = scale * static_cast<float>(spec.is_table ? table[code] : spec.step * code - spec.bias);
        if (!spec.has_min)
          out[i] = matrix.factor * value;
        else
          out[i] = spec.scales == ScaleKind::kSuper ? value - group_minimum : value + minimum;
      }
    }
  }
}

}  // namespace sterna
