/// Panels in the core's order become panels in the device's (fragments.cuh), once, when a model is loaded: a warp for
/// each unit of 32 k.
#include "cuda/kernels/fragments.cuh"
#include "cuda/kernels/launchers.h"

namespace sterna::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;

/// A code of a block as the core packs it (quant/layout.h): `k` counts from the block's beginning.
__device__ int core_code(const std::uint8_t* block, const LayoutSpec& spec, int row, int k) {
  const int chunk = k / kChunk;
  const int byte = kChunk * row + k % kChunk;
  if (spec.low_bits == 0) {  // five ternary digits a byte
    std::uint32_t fraction = block[chunk / 5 * 64 + byte];
    for (int i = 0; i < chunk % 5; ++i) fraction = fraction * 3 & 0xFFu;
    return static_cast<int>(fraction * 3 >> 8);
  }
  const std::uint8_t* unit = block + k / kUnit * spec.unit_bytes();
  const auto field = [&](const std::uint8_t* plane, int bits) {
    const int in_unit = chunk % 8;
    const int per_byte = 8 / bits;
    return plane[in_unit / per_byte * 64 + byte] >> in_unit % per_byte * bits & ((1 << bits) - 1);
  };
  int code = field(unit, spec.low_bits);
  if (spec.high_bits != 0) code |= field(unit + 64 * spec.low_bits, spec.high_bits) << spec.low_bits;
  return code;
}

/// The lane's codes of a plane of `bits` bits, put together byte by byte.
template <class Code>
__device__ void write_plane(std::uint8_t* plane, int lane, int bits, Code code) {
  std::uint8_t bytes[16] = {};
  for (int i = 0; i < 16; ++i) {
    const int s = i / 8, j = i / 2 % 4, h = i % 2;
    const int row = lane / 4 + 8 * (j & 1);
    const int k = 16 * s + 4 * (lane % 4) + 2 * (j >> 1) + h;
    const int bit = code_bit({lane, s, j, h}, bits) - lane * 16 * bits;
    bytes[bit / 8] = static_cast<std::uint8_t>(bytes[bit / 8] | code(row, k) << bit % 8);
  }
  for (int i = 0; i < 2 * bits; ++i) plane[lane * 2 * bits + i] = bytes[i];
}

__global__ void __launch_bounds__(kThreads) repack(RepackArguments a, LayoutSpec from, LayoutSpec to) {
  wait_for_previous();
  let_next_begin();
  const std::int64_t units = a.k / kUnit;
  const std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * kWarps + warp_id();
  if (index >= a.panels * units) return;
  const int lane = lane_id();
  const std::int64_t block = index / from.units();
  const int unit = static_cast<int>(index % from.units());
  const std::uint8_t* source = a.from + block * from.block_bytes();
  std::uint8_t* target = a.to + block * to.block_bytes();
  const auto code = [&](int row, int k) { return core_code(source, from, row, unit * kUnit + k); };
  std::uint8_t* const planes = target + unit * to.unit_bytes();
  write_plane(planes, lane, to.low_bits, [&](int row, int k) { return code(row, k) & ((1 << to.low_bits) - 1); });
  if (to.high_bits != 0) {
    write_plane(planes + 64 * to.low_bits, lane, to.high_bits,
                [&](int row, int k) { return code(row, k) >> to.low_bits; });
  }
  if (unit != 0) return;
  const int bytes = from.block_bytes() - from.code_bytes();
  for (int i = lane; i < bytes; i += kWarp) target[to.code_bytes() + i] = source[from.code_bytes() + i];
}

/// Elements of `size` bytes, [k][16] in each panel; k is padded to units.
__global__ void __launch_bounds__(kThreads) repack_dense(RepackArguments a, int size) {
  wait_for_previous();
  let_next_begin();
  const std::int64_t padded_k = device_k(a.layout, a.k);
  const std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (index >= a.panels * padded_k * kPanelRows) return;
  const int row = static_cast<int>(index % kPanelRows);
  const std::int64_t k = index / kPanelRows % padded_k;
  const std::int64_t panel = index / (kPanelRows * padded_k);
  const std::int64_t from = (panel * a.k + k) * kPanelRows + row;
  const bool is_there = k < a.k;
  if (size == 4) {
    reinterpret_cast<std::uint32_t*>(a.to)[index] = is_there ? reinterpret_cast<const std::uint32_t*>(a.from)[from] : 0;
    return;
  }
  const CodePlace place = code_place(row, static_cast<int>(k % kUnit));
  const std::int64_t unit = panel * (padded_k / kUnit) + k / kUnit;
  const std::int64_t to = unit * kUnit * kPanelRows + place.lane * 16 + place.step * 8 + place.word * 2 + place.half;
  reinterpret_cast<std::uint16_t*>(a.to)[to] =
      is_there ? reinterpret_cast<const std::uint16_t*>(a.from)[from] : std::uint16_t{0};
}

}  // namespace

Status launch_repack(const void* arguments, const Launch& launch) {
  const auto& a = *static_cast<const RepackArguments*>(arguments);
  if (is_dense(a.layout)) {
    const std::int64_t elements = a.panels * device_k(a.layout, a.k) * kPanelRows;
    return cuda::launch(repack_dense, static_cast<unsigned>((elements + kThreads - 1) / kThreads), kThreads, 0,
                        launch.stream, a, a.layout == LayoutId::kF32 ? 4 : 2);
  }
  const std::int64_t units = a.panels * (a.k / kUnit);
  return cuda::launch(repack, static_cast<unsigned>((units + kWarps - 1) / kWarps), kThreads, 0, launch.stream, a,
                      layout_spec(a.layout), layout_spec(device_layout(a.layout)));
}

}  // namespace sterna::cuda
