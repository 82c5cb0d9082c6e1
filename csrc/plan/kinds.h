/// What the steps of all backends tell apart.
#pragma once

#include <cstdint>

namespace sterna {

/// How keys and values are rounded in the cache.
enum class KvType : std::uint8_t { kF16, kF32, kQ8_0 };

/// Elements of a head's key or value row that share a scale in a q8_0 cache.
constexpr int kKvGroup = 32;

/// What an embed step gathers rows by.
enum class EmbeddedIds : std::uint8_t { kTokens, kPositions, kTokenTypes };

enum class PoolKind : std::uint8_t { kMean, kFirst, kLast };

/// Functions of one operand, which gate a second one; the last are gates only.
enum class ActivationKind : std::uint8_t {
  kSilu,
  kGelu,
  kGeluTanh,
  kRelu,
  kRelu2,
  kSigmoid,
  kTanh,
  kSoftplus,
  kClampedSwiglu,
  kCount
};
constexpr int kNumActivations = static_cast<int>(ActivationKind::kClampedSwiglu);
constexpr int kNumGates = static_cast<int>(ActivationKind::kCount);

/// Rows of floats in the arena.
struct Rows {
  float* data = nullptr;
  std::int64_t stride = 0;  // floats from one row to the next
  bool outputs = false;     // one row per output (L) instead of one per token (T)

  float* row(std::int64_t i) const { return data + i * stride; }
};

}  // namespace sterna
