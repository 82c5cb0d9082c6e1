/// What a tensor's type id means. ggml has given several ids to more than one format over the years, or to formats that
/// its forks had given them to: 36 to 39, and 42. The architecture and the room that a tensor has in its file tell them
/// apart.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "quant/format.h"

namespace sterna {

/// Which way round the codes of I2_S are (quant/formats/i2_s.cpp); files do not say.
enum class I2sOrder { kX86, kArm };

/// What is known about who wrote a file.
struct Writer {
  bool is_bitnet = false;  // the architecture is one of BitNet's
  I2sOrder order = I2sOrder::kX86;
};

/// A tensor whose type may mean several formats.
struct TensorExtent {
  std::uint32_t type;
  std::uint64_t elements;
  std::uint64_t columns;  // of a row
  std::uint64_t room;     // bytes up to the next tensor's data, or to the end of the file
};

/// Whether an id needs choose_formats.
bool is_ambiguous_type(std::uint32_t type);

/// What an id stands for: the format, or why there is none.
struct TypeMeaning {
  const Format* format = nullptr;
  std::string problem = {};  // "is unknown"
  bool is_foreign = false;   // a good file of another program, not a malformed one
};

/// The meaning of an id that has only one.
TypeMeaning meaning_of(std::uint32_t type);

/// The meanings of the ambiguous ids of one file, one for each tensor.
std::vector<TypeMeaning> choose_formats(const std::vector<TensorExtent>& tensors, std::uint32_t alignment,
                                        const Writer& writer);

}  // namespace sterna
