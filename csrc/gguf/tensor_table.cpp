#include "gguf/tensor_table.h"

#include <algorithm>
#include <numeric>
#include <optional>
#include <span>
#include <string_view>

#include "base/checked.h"
#include "gguf/text.h"

namespace sterna {
namespace {

constexpr std::uint64_t kMostNameBytes = 256;
constexpr std::uint32_t kMostDims = 4;

/// Why ggml.h has an id that no table entry may carry.
const char* retired_type(std::uint32_t id) {
  switch (id) {
    case 4:
      return "Q4_2, which was removed from GGUF";
    case 5:
      return "Q4_3, which was removed from GGUF";
    case 9:
      return "Q8_1, which is for activations and never stored";
    case 15:
      return "Q8_K, which is for activations and never stored";
    case 31:
      return "Q4_0_4_4, which was removed from GGUF (repack from Q4_0)";
    case 32:
      return "Q4_0_4_8, which was removed from GGUF (repack from Q4_0)";
    case 33:
      return "Q4_0_8_8, which was removed from GGUF (repack from Q4_0)";
    case 36:
      return "IQ4_NL_4_4, which was removed from GGUF (repack from IQ4_NL)";
    case 37:
      return "IQ4_NL_4_8, which was removed from GGUF (repack from IQ4_NL)";
    case 38:
      return "IQ4_NL_8_8, which was removed from GGUF (repack from IQ4_NL)";
    default:
      return nullptr;
  }
}

std::string quoted(const TensorInfo& tensor) { return "\"" + printable(tensor.name) + "\""; }

/// Where the last member of an entry, its offset into the data, stands in the file.
std::uint64_t offset_member_at(const TensorInfo& tensor) {
  return tensor.entry_offset + 8 + tensor.name.size() + 4 + 8 * tensor.shape.size() + 4;
}

/// The bytes of a tensor: rows of whole blocks. Nothing when they pass 2^64.
std::optional<std::uint64_t> tensor_bytes(const TensorInfo& tensor) {
  std::optional<std::uint64_t> elements = 1;
  std::optional<std::uint64_t> bytes = tensor.format->block_bytes;
  for (std::size_t i = 0; i < tensor.shape.size(); ++i) {
    const bool is_row = i + 1 == tensor.shape.size();
    bytes = checked_mul(*bytes, is_row ? tensor.shape[i] / tensor.format->block_size : tensor.shape[i]);
    elements = checked_mul(*elements, tensor.shape[i]);
    if (!bytes || !elements) return std::nullopt;
  }
  return bytes;
}

/// One entry; `offset` is still relative to the data.
TensorInfo parse_entry(Reader& reader, std::uint64_t index, std::uint32_t file, std::vector<std::uint8_t>& scratch) {
  const auto field = [&](const char* member) { return Field{"tensor", index, {}, member}; };
  TensorInfo tensor{};
  tensor.file = file;
  tensor.entry_offset = reader.position();

  const std::uint64_t length = reader.length(kMostNameBytes, field("name"));
  scratch.clear();
  reader.append(length, field("name"), scratch);
  tensor.name.assign(scratch.begin(), scratch.end());
  if (const char* fault = name_fault(tensor.name)) {
    reader.fail(field("name"), tensor.entry_offset, "the name " + quoted(tensor) + " " + fault);
  }

  const std::uint64_t dims_at = reader.position();
  const std::uint32_t dims = reader.u32(field("n_dims"));
  if (dims < 1 || dims > kMostDims) {
    reader.fail(field("n_dims"), dims_at,
                quoted(tensor) + " has " + std::to_string(dims) + " dimensions; 1 to 4 are possible");
  }
  const std::uint64_t shape_at = reader.position();
  tensor.shape.resize(dims);
  for (std::uint32_t i = 0; i < dims; ++i) {
    const Field shape_field{"tensor", index, {}, "shape", i};
    const std::uint64_t at = reader.position();
    const std::uint64_t size = reader.u64(shape_field);
    if (size == 0) reader.fail(shape_field, at, quoted(tensor) + " has a dimension of 0");
    tensor.shape[dims - 1 - i] = size;
  }

  const std::uint64_t type_at = reader.position();
  const std::uint32_t type = reader.u32(field("type"));
  tensor.format = find_format(type);
  if (tensor.format == nullptr) {
    const char* retired = retired_type(type);
    reader.fail(field("type"), type_at,
                quoted(tensor) + " has type " + std::to_string(type) + ", " +
                    (retired != nullptr ? retired : "which is unknown"));
  }
  const std::uint32_t block = tensor.format->block_size;
  if (tensor.shape.back() % block != 0) {
    reader.fail({"tensor", index, {}, "shape", 0}, shape_at,
                quoted(tensor) + " has rows of " + std::to_string(tensor.shape.back()) +
                    " elements, no multiple of the " + std::to_string(block) + " in a block of " +
                    std::string(tensor.format->name));
  }
  const auto bytes = tensor_bytes(tensor);
  if (!bytes) reader.fail(field("shape"), shape_at, "the size of " + quoted(tensor) + " overflows 64 bits");
  tensor.bytes = *bytes;
  tensor.offset = reader.u64(field("offset"));
  return tensor;
}

/// Pads to the data. The padding is zero by definition; other bytes there mean that the table is longer than its count,
/// or the alignment another than declared, and that every weight would be read from the wrong place.
std::uint64_t skip_padding(Reader& reader, std::uint32_t alignment, bool has_data) {
  const Field field{"data", std::nullopt, {}, "padding"};
  const std::uint64_t padding = (alignment - reader.position() % alignment) % alignment;
  if (padding > reader.remaining()) {
    if (has_data) reader.fail(field, reader.position(), "the file ends before the tensors' data (truncated?)");
    return reader.position();
  }
  for (std::uint64_t i = 0; i < padding; ++i) {
    const std::uint64_t at = reader.position();
    if (reader.u8(field) != 0) {
      reader.fail(field, at,
                  "the padding before the tensors' data is not zero: wrong general.alignment or tensor_count?");
    }
  }
  return reader.position();
}

/// Turns relative offsets into absolute ones, after checking them.
void place(const Reader& reader, std::uint64_t data, std::uint32_t alignment, std::span<TensorInfo> tensors) {
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    TensorInfo& tensor = tensors[i];
    const Field field{"tensor", i, {}, "offset"};
    if (tensor.offset % alignment != 0) {
      reader.fail(field, offset_member_at(tensor),
                  "the offset of " + quoted(tensor) + ", " + std::to_string(tensor.offset) +
                      ", is no multiple of the alignment " + std::to_string(alignment));
    }
    const auto begin = checked_add(data, tensor.offset);
    const auto end = begin ? checked_add(*begin, tensor.bytes) : std::nullopt;
    if (!end || *end > reader.file().size()) {
      reader.fail(field, offset_member_at(tensor),
                  "the data of " + quoted(tensor) + ", " + std::to_string(tensor.bytes) + " bytes at " +
                      std::to_string(tensor.offset) + ", pass the end of the file (truncated?)");
    }
    tensor.offset = *begin;
  }

  std::vector<std::uint32_t> order(tensors.size());
  std::iota(order.begin(), order.end(), 0u);
  std::sort(order.begin(), order.end(), [&](std::uint32_t a, std::uint32_t b) {
    return tensors[a].offset != tensors[b].offset ? tensors[a].offset < tensors[b].offset : a < b;
  });
  for (std::size_t i = 1; i < order.size(); ++i) {
    const TensorInfo& before = tensors[order[i - 1]];
    const TensorInfo& after = tensors[order[i]];
    if (before.offset + before.bytes > after.offset) {
      reader.fail({"tensor", order[i], {}, "offset"}, offset_member_at(after),
                  "the data of " + quoted(after) + " overlap those of " + quoted(before));
    }
  }
}

}  // namespace

std::uint64_t parse_tensor_table(Reader& reader, std::uint64_t count, std::uint32_t alignment, std::uint32_t file,
                                 std::vector<TensorInfo>& tensors) {
  const std::size_t first = tensors.size();
  std::vector<std::uint8_t> scratch;
  for (std::uint64_t i = 0; i < count; ++i) tensors.push_back(parse_entry(reader, i, file, scratch));
  const std::uint64_t data = skip_padding(reader, alignment, count > 0);
  place(reader, data, alignment, std::span(tensors).subspan(first));
  return data;
}

}  // namespace sterna
