/// Single elements of a matrix in device memory, for what gathers rows.
#pragma once

#include "cuda/kernels/fragments.cuh"

namespace sterna::cuda {

/// A code of a unit.
template <LayoutId id>
__device__ inline int unit_code(const std::uint8_t* unit, int row, int k) {
  constexpr LayoutSpec kSpec = layout_spec(id);
  const CodePlace place = code_place(row, k);
  const auto field = [&](const std::uint8_t* plane, int bits) {
    const int bit = code_bit(place, bits);
    return plane[bit / 8] >> bit % 8 & ((1 << bits) - 1);
  };
  int code = field(unit, kSpec.low_bits);
  if constexpr (kSpec.high_bits != 0) code |= field(unit + 64 * kSpec.low_bits, kSpec.high_bits) << kSpec.low_bits;
  return code;
}

__device__ inline int table_value(bool is_iq4, int code) {
  constexpr std::int8_t kIq4[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
  constexpr std::int8_t kE2M1[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
  return is_iq4 ? kIq4[code] : kE2M1[code];
}

template <LayoutId id>
__device__ inline float element_of(const std::uint8_t* panel, int row, std::int64_t k) {
  using C = Codes<id>;
  const std::uint8_t* block = panel + k / C::kSpec.block * C::kSpec.block_bytes();
  const int in_block = static_cast<int>(k % C::kSpec.block);
  const int code = unit_code<id>(block + in_block / kUnit * C::kUnitBytes, row, in_block % kUnit);
  const int group = in_block / C::kSpec.group;
  constexpr bool kIsIq4 = id == LayoutId::kTable4 || id == LayoutId::kTable4Super;
  const int value = C::kSpec.is_table ? table_value(kIsIq4, code) : C::kSpec.step * code - C::kSpec.bias;
  return C::scale(block, group, row) * static_cast<float>(value) + C::minimum(block, group, row);
}

/// Row n, column k.
__device__ inline float element(const DeviceMatrix& w, std::int64_t n, std::int64_t k) {
  const std::uint8_t* panel = w.panels + n / kPanelRows * w.panel_bytes;
  const int row = static_cast<int>(n % kPanelRows);
  const auto bits = [&] {
    const CodePlace place = code_place(row, static_cast<int>(k % kUnit));
    const std::int64_t at =
        k / kUnit * kUnit * kPanelRows + place.lane * 16 + place.step * 8 + place.word * 2 + place.half;
    return reinterpret_cast<const std::uint16_t*>(panel)[at];
  };
  float value = 0.0f;
  switch (w.layout) {
    case LayoutId::kF32:
      return reinterpret_cast<const float*>(panel)[k * kPanelRows + row];
    case LayoutId::kF16:
      return half_to_float(bits());
    case LayoutId::kBF16:
      return bfloat_to_float(bits());
    case LayoutId::kUnpacked:
      value = element_of<LayoutId::kUnpacked>(panel, row, k);
      break;
    case LayoutId::kInt8:
      value = element_of<LayoutId::kInt8>(panel, row, k);
      break;
    case LayoutId::kInt4:
      value = element_of<LayoutId::kInt4>(panel, row, k);
      break;
    case LayoutId::kInt4Min:
      value = element_of<LayoutId::kInt4Min>(panel, row, k);
      break;
    case LayoutId::kInt5:
      value = element_of<LayoutId::kInt5>(panel, row, k);
      break;
    case LayoutId::kInt5Min:
      value = element_of<LayoutId::kInt5Min>(panel, row, k);
      break;
    case LayoutId::kTable4:
      value = element_of<LayoutId::kTable4>(panel, row, k);
      break;
    case LayoutId::kTable4E8M0:
      value = element_of<LayoutId::kTable4E8M0>(panel, row, k);
      break;
    case LayoutId::kTable4UE4M3:
      value = element_of<LayoutId::kTable4UE4M3>(panel, row, k);
      break;
    case LayoutId::kTable4Super:
      value = element_of<LayoutId::kTable4Super>(panel, row, k);
      break;
    case LayoutId::kInt2Super:
      value = element_of<LayoutId::kInt2Super>(panel, row, k);
      break;
    case LayoutId::kInt3Super:
      value = element_of<LayoutId::kInt3Super>(panel, row, k);
      break;
    case LayoutId::kInt4Super:
      value = element_of<LayoutId::kInt4Super>(panel, row, k);
      break;
    case LayoutId::kInt5Super:
      value = element_of<LayoutId::kInt5Super>(panel, row, k);
      break;
    case LayoutId::kInt6Super:
      value = element_of<LayoutId::kInt6Super>(panel, row, k);
      break;
    case LayoutId::kInt1:
      value = element_of<LayoutId::kInt1>(panel, row, k);
      break;
    case LayoutId::kInt2:
      value = element_of<LayoutId::kInt2>(panel, row, k);
      break;
    case LayoutId::kInt2Wide:
      value = element_of<LayoutId::kInt2Wide>(panel, row, k);
      break;
    case LayoutId::kTernary2:
      value = element_of<LayoutId::kTernary2>(panel, row, k);
      break;
    case LayoutId::kBinary:
      value = element_of<LayoutId::kBinary>(panel, row, k);
      break;
    default:
      break;
  }
  return value * w.factor;
}

}  // namespace sterna::cuda
