/// What the parts of the self test share: inputs, and what was found about one family of kernels.
#pragma once

#include <cmath>
#include <cstring>
#include <random>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "cpu/self_test.h"

namespace sterna::cpu {

using Floats = std::vector<float>;

/// Inputs, and what was found about one family.
class Checker {
 public:
  Checker(std::string_view family, std::uint64_t seed) : generator_(seed) { result_.family = family; }

  KernelCheck result() && { return std::move(result_); }
  std::uint64_t bits() { return generator_(); }
  float number() { return normal_(generator_); }
  Floats numbers(std::int64_t count) {
    Floats values(static_cast<std::size_t>(count));
    for (float& value : values) value = number();
    return values;
  }

  /// A case: the same bits, any NaN being as good as another.
  template <class T>
  void expect_same(const std::string& what, std::span<const T> got, std::span<const T> wanted) {
    ++result_.cases;
    if (!result_.mismatch.empty()) return;
    for (std::size_t i = 0; i < wanted.size(); ++i) {
      if constexpr (std::is_same_v<T, float>) {
        if (std::isnan(got[i]) && std::isnan(wanted[i])) continue;
      }
      if (std::memcmp(&got[i], &wanted[i], sizeof(T)) == 0) continue;
      result_.mismatch = what + ": element " + std::to_string(i) + " is " + std::to_string(got[i]) + ", not " +
                         std::to_string(wanted[i]);
      return;
    }
  }
  void expect_same(const std::string& what, const Floats& got, const Floats& wanted) {
    expect_same(what, std::span<const float>(got), std::span<const float>(wanted));
  }

 private:
  std::mt19937_64 generator_;
  std::normal_distribution<float> normal_;
  KernelCheck result_;
};

/// Kernels of recurrent layers.
KernelCheck check_recurrent(const KernelTable& level, const KernelTable& definition, std::uint64_t seed);

}  // namespace sterna::cpu
