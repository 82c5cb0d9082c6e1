#include "quant/layout.h"

#include <string>

#include "base/error.h"

namespace sterna {

LayoutId layout_for(const Format& format) {
  switch (format.id) {
    case FormatId::kF32:
      return LayoutId::kF32;
    case FormatId::kF16:
      return LayoutId::kF16;
    case FormatId::kBF16:
      return LayoutId::kBF16;
    case FormatId::kQ8_0:
      return LayoutId::kInt8;
    case FormatId::kQ4_0:
      return LayoutId::kInt4;
    case FormatId::kQ4_1:
      return LayoutId::kInt4Min;
    case FormatId::kQ5_0:
      return LayoutId::kInt5;
    case FormatId::kQ5_1:
      return LayoutId::kInt5Min;
    case FormatId::kIQ4_NL:
      return LayoutId::kTable4;
    case FormatId::kMXFP4:
      return LayoutId::kTable4E8M0;
    case FormatId::kNVFP4:
      return LayoutId::kTable4UE4M3;
    case FormatId::kQ1_0:
      return LayoutId::kInt1;
    case FormatId::kQ2_0:
      return LayoutId::kInt2;
    case FormatId::kQ2_0_G128:
    case FormatId::kI2_S:
    case FormatId::kI2_S_ARM:
      return LayoutId::kInt2Wide;
    case FormatId::kQ2_K:
      return LayoutId::kInt2Super;
    case FormatId::kQ3_K:
      return LayoutId::kInt3Super;
    case FormatId::kQ4_K:
      return LayoutId::kInt4Super;
    case FormatId::kQ5_K:
      return LayoutId::kInt5Super;
    case FormatId::kQ6_K:
      return LayoutId::kInt6Super;
    case FormatId::kIQ4_XS:
      return LayoutId::kTable4Super;
    case FormatId::kTQ2_0:
    case FormatId::kI2_S_Ternary:
    case FormatId::kI2_S_ARM_Ternary:
    case FormatId::kQ2_0_Ternary:
    case FormatId::kQ2_0_G128_Ternary:
      return LayoutId::kTernary2;
    case FormatId::kQ1_0_Ternary:
      return LayoutId::kBinary;
    case FormatId::kTQ1_0:
      return LayoutId::kTernary1_6;
    case FormatId::kIQ1_S:
    case FormatId::kIQ1_M:
    case FormatId::kIQ2_XXS:
    case FormatId::kIQ2_XS:
    case FormatId::kIQ2_S:
    case FormatId::kIQ3_XXS:
    case FormatId::kIQ3_S:
      return LayoutId::kNative;
    default:
      throw UnsupportedModelError("weights of format " + std::string(format.name) + " cannot be multiplied");
  }
}

std::string_view layout_name(LayoutId id) {
  switch (id) {
    case LayoutId::kF32:
      return "f32";
    case LayoutId::kF16:
      return "f16";
    case LayoutId::kBF16:
      return "bf16";
    case LayoutId::kNative:
      return "native";
    default:
      return layout_spec(id).name;
  }
}

std::int64_t panel_bytes(LayoutId layout, const Format& format, std::int64_t k) {
  if (format.scales == ScaleKind::kNone || layout == LayoutId::kNative) {
    return k / format.block_size * format.block_bytes * kPanelRows;
  }
  const LayoutSpec spec = layout_spec(layout);
  return k / spec.block * spec.block_bytes();
}

PackedMatrix describe_matrix(const Format& format, std::int64_t n, std::int64_t k) {
  if (n <= 0 || k <= 0 || k % format.block_size != 0) {
    throw ArgumentError("a " + std::string(format.name) + " matrix cannot have shape [" + std::to_string(n) + ", " +
                        std::to_string(k) + "]");
  }
  PackedMatrix matrix;
  matrix.layout = layout_for(format);
  matrix.format = &format;
  matrix.n = n;
  matrix.k = k;
  matrix.panel_bytes = panel_bytes(matrix.layout, format, k);
  return matrix;
}

PackedMatrix make_matrix(const Format& format, std::int64_t n, std::int64_t k) {
  PackedMatrix matrix = describe_matrix(format, n, k);
  matrix.storage = Buffer(static_cast<std::size_t>(matrix.panels() * matrix.panel_bytes));
  matrix.bytes = matrix.storage.span();
  return matrix;
}

}  // namespace sterna
