#include "cpu/isa.h"

#include <array>
#include <cstdlib>
#include <string>

#include "base/error.h"

// The fill functions of each level (cpu/isa/level.h declares them within its own translation units).
#define STERNA_DECLARE_LEVEL(level)             \
  namespace sterna::cpu::level {                \
  void fill_rows(KernelTable& table);           \
  void fill_recurrent(KernelTable& table);      \
  void fill_attention(KernelTable& table);      \
  void fill_attention_q8_0(KernelTable& table); \
  void fill_matmul_block(KernelTable& table);   \
  void fill_matmul_super(KernelTable& table);   \
  void fill_gemm(KernelTable& table);           \
  }
STERNA_DECLARE_LEVEL(scalar)
#if defined(STERNA_X86)
STERNA_DECLARE_LEVEL(avx2)
STERNA_DECLARE_LEVEL(avx512)
#endif
#undef STERNA_DECLARE_LEVEL

namespace sterna::cpu {
namespace {

using Fill = void (*)(KernelTable&);

KernelTable make_table(std::array<Fill, 7> fills) {
  KernelTable table{};
  for (const Fill fill : fills) fill(table);
  return table;
}

struct LevelEntry {
  std::string_view name;
  bool (*supported)();
  const KernelTable& (*table)();
};

// Worst first.
constexpr LevelEntry kLevels[] = {
    {"scalar", [] { return true; },
     []() -> const KernelTable& {
       static const KernelTable table =
           make_table({scalar::fill_rows, scalar::fill_recurrent, scalar::fill_attention, scalar::fill_attention_q8_0,
                       scalar::fill_matmul_block, scalar::fill_matmul_super, scalar::fill_gemm});
       return table;
     }},
#if defined(STERNA_X86)
    {"avx2",
     [] {
       return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c") &&
              __builtin_cpu_supports("bmi2");
     },
     []() -> const KernelTable& {
       static const KernelTable table =
           make_table({avx2::fill_rows, avx2::fill_recurrent, avx2::fill_attention, avx2::fill_attention_q8_0,
                       avx2::fill_matmul_block, avx2::fill_matmul_super, avx2::fill_gemm});
       return table;
     }},
    {"avx512",
     [] {
       return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
              __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
              __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vbmi") &&
              __builtin_cpu_supports("f16c") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
     },
     []() -> const KernelTable& {
       static const KernelTable table =
           make_table({avx512::fill_rows, avx512::fill_recurrent, avx512::fill_attention, avx512::fill_attention_q8_0,
                       avx512::fill_matmul_block, avx512::fill_matmul_super, avx512::fill_gemm});
       return table;
     }},
#endif
};

std::string known_levels() {
  std::string names;
  for (const LevelEntry& level : kLevels) {
    if (!names.empty()) names += ", ";
    names += level.name;
  }
  return names;
}

const LevelEntry& find_level(std::string_view name) {
  for (const LevelEntry& level : kLevels) {
    if (level.name != name) continue;
    if (!level.supported()) throw DeviceError("this CPU cannot run instruction set " + std::string(name));
    return level;
  }
  throw DeviceError("no instruction set \"" + std::string(name) + "\" in this build; it has " + known_levels());
}

}  // namespace

std::span<const std::string_view> compiled_levels() {
  static const auto names = [] {
    std::array<std::string_view, std::size(kLevels)> list;
    for (std::size_t i = 0; i < list.size(); ++i) list[i] = kLevels[i].name;
    return list;
  }();
  return names;
}

bool is_supported(std::string_view level) {
  for (const LevelEntry& entry : kLevels) {
    if (entry.name == level) return entry.supported();
  }
  return false;
}

std::string_view chosen_level() {
  if (const char* forced = std::getenv("STERNA_ISA"); forced != nullptr && *forced != '\0') {
    return find_level(forced).name;
  }
  std::string_view best;
  for (const LevelEntry& level : kLevels) {
    if (level.supported()) best = level.name;
  }
  return best;
}

const KernelTable& kernel_table(std::string_view level) { return find_level(level).table(); }

}  // namespace sterna::cpu
