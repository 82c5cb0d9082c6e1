#include "cuda/architectures.h"

#include <charconv>

namespace sterna::cuda {
namespace {

/// Whether one entry of the list is code for the device.
bool is_code_for(std::string_view entry, int device) {
  int architecture = 0;
  const auto [rest, error] = std::from_chars(entry.data(), entry.data() + entry.size(), architecture);
  if (error != std::errc()) return true;
  std::string_view kind(rest, static_cast<std::size_t>(entry.data() + entry.size() - rest));
  const char suffix = !kind.empty() && kind[0] != '-' ? kind[0] : '\0';
  if (suffix != '\0') kind.remove_prefix(1);
  if (suffix == 'a') return device == architecture;
  const bool same_major = device / 10 == architecture / 10;
  const bool has_ptx = kind != "-real" && suffix != 'f';
  return device >= architecture && (same_major || has_ptx);
}

}  // namespace

bool has_code(std::string_view compiled, int major, int minor) {
  bool is_list = false;
  while (!compiled.empty()) {
    const std::size_t end = compiled.find(' ');
    const std::string_view entry = compiled.substr(0, end);
    compiled.remove_prefix(end == std::string_view::npos ? compiled.size() : end + 1);
    if (entry.empty()) continue;
    if (is_code_for(entry, 10 * major + minor)) return true;
    is_list = true;
  }
  return !is_list;
}

}  // namespace sterna::cuda
