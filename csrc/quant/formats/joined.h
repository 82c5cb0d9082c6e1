/// Blocks of 256 made of smaller ones that share a scale: tensors with one scale look alike in every ternary dialect.
#pragma once

#include <cstdint>
#include <cstring>

#include "quant/formats/bytes.h"

namespace sterna::quant {

/// 256 / kBlockSize blocks in a row, with the scale of the first.
template <auto kDecode, std::uint32_t kBlockSize, std::uint32_t kBlockBytes>
void decode_joined(const std::uint8_t* block, DecodedBlock& out) {
  DecodedBlock part;
  for (std::uint32_t i = 0; i < 256 / kBlockSize; ++i) {
    kDecode(block + i * kBlockBytes, part);
    std::memcpy(out.codes + i * kBlockSize, part.codes, kBlockSize);
    if (i == 0) set_super_scale(out, part.scale[0]);
  }
  out.group_scale[0] = 1;
}

}  // namespace sterna::quant
