/// The tensor table of one GGUF file, checked so that every tensor's bytes are known to lie in the file.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "gguf/dialects.h"
#include "gguf/reader.h"
#include "quant/format.h"

namespace sterna {

struct TensorInfo {
  std::string name;
  std::vector<std::uint64_t> shape;  // rows first, as numpy sees it; the last is GGUF's ne0, contiguous in memory
  const Format* format;
  std::uint64_t bytes;
  std::uint64_t offset;        // absolute, in its file
  std::uint32_t file;          // which part of a split model
  std::uint64_t entry_offset;  // where its entry in the tensor table stands
};

/// Bytes that an entry of the table takes at least: name of one byte, one dimension.
constexpr std::uint64_t kLeastTensorEntryBytes = 8 + 1 + 4 + 8 + 4 + 8;

/// Reads `count` entries and appends them to `tensors`, then checks that the data which follow the table at `alignment`
/// hold them: aligned, within the file, disjoint. Returns where the data begin. Throws ModelFormatError;
/// UnsupportedModelError for a format that cannot be read.
std::uint64_t parse_tensor_table(Reader& reader, std::uint64_t count, std::uint32_t alignment, std::uint32_t file,
                                 const Writer& writer, std::vector<TensorInfo>& tensors);

}  // namespace sterna
