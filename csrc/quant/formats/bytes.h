/// Reading fields of blocks: little-endian on every host, at any alignment.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "base/half.h"
#include "quant/format.h"

namespace sterna::quant {

/// A copy of the block. A copy, because a reference into the bytes might alias the codes being written, and then no
/// loop over them vectorises.
template <class Block>
Block load_block(const std::uint8_t* bytes) {
  static_assert(alignof(Block) == 1 && std::is_trivially_copyable_v<Block>);
  Block block;
  std::memcpy(&block, bytes, sizeof(Block));
  return block;
}

inline std::uint16_t load_u16(const std::uint8_t* bytes) {
  return static_cast<std::uint16_t>(bytes[0] | (bytes[1] << 8));
}

inline std::uint32_t load_u32(const std::uint8_t* bytes) {
  return load_u16(bytes) | (static_cast<std::uint32_t>(load_u16(bytes + 2)) << 16);
}

inline float load_half(const std::uint8_t* bytes) { return half_to_float(load_u16(bytes)); }

/// Nibble `index` of the bytes, the low one of a byte first.
inline std::uint32_t load_nibble(const std::uint8_t* bytes, int index) {
  return (bytes[index >> 1] >> (4 * (index & 1))) & 15u;
}

/// The scales of a kBlock format with one group.
inline void set_block_scale(DecodedBlock& out, float scale, float min = 0.0f) {
  out.scale[0] = scale;
  out.min[0] = min;
}

/// The float scales of a kSuper format, which sets group_scale itself; group_min starts at zero.
inline void set_super_scale(DecodedBlock& out, float scale, float min = 0.0f) {
  out.scale[0] = scale;
  out.min[0] = min;
  std::memset(out.group_min, 0, sizeof(out.group_min));
}

}  // namespace sterna::quant
