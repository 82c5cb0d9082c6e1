/// Where a plan reads its weights from, by name: a GGUF file, or arrays in memory in tests.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

namespace sterna {

class TensorSource {
 public:
  virtual ~TensorSource() = default;

  /// Bytes [offset, offset + out.size()) of the tensor as the file stores it, rows first. Called from several threads.
  /// Throws FileError or ModelFormatError.
  virtual void read(std::string_view tensor, std::uint64_t offset, std::span<std::uint8_t> out) const = 0;
};

}  // namespace sterna
