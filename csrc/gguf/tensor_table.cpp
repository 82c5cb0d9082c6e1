#include "gguf/tensor_table.h"

#include <algorithm>
#include <numeric>
#include <optional>
#include <span>
#include <string_view>

#include "base/checked.h"
#include "base/error.h"
#include "gguf/text.h"

namespace sterna {
namespace {

constexpr std::uint64_t kMostNameBytes = 256;
constexpr std::uint32_t kMostDims = 4;

std::string quoted(const TensorInfo& tensor) {
  std::string text = "\"";
  text += printable(tensor.name);
  text += '"';
  return text;
}

// Where the members of an entry stand in the file.
std::uint64_t shape_member_at(const TensorInfo& tensor) { return tensor.entry_offset + 8 + tensor.name.size() + 4; }
std::uint64_t type_member_at(const TensorInfo& tensor) { return shape_member_at(tensor) + 8 * tensor.shape.size(); }
std::uint64_t offset_member_at(const TensorInfo& tensor) { return type_member_at(tensor) + 4; }

/// Nothing when they pass 2^64.
std::optional<std::uint64_t> count_elements(const TensorInfo& tensor) {
  std::optional<std::uint64_t> elements = 1;
  for (const std::uint64_t size : tensor.shape) elements = elements ? checked_mul(*elements, size) : elements;
  return elements;
}

/// The bytes of a tensor: rows of whole blocks, and what is behind them. Nothing when they pass 2^64.
std::optional<std::uint64_t> tensor_bytes(const TensorInfo& tensor) {
  const auto elements = count_elements(tensor);
  if (!elements) return std::nullopt;
  const auto bytes = checked_mul(*elements / tensor.format->block_size, tensor.format->block_bytes);
  return bytes ? checked_add(*bytes, tensor.format->tail_bytes) : bytes;
}

/// One entry and its type; `offset` is still relative to the data, format and bytes are not known yet.
TensorInfo parse_entry(Reader& reader, std::uint64_t index, std::uint32_t file, std::vector<std::uint8_t>& scratch,
                       std::uint32_t& type) {
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
  tensor.shape.resize(dims);
  for (std::uint32_t i = 0; i < dims; ++i) {
    const Field shape_field{"tensor", index, {}, "shape", i};
    const std::uint64_t at = reader.position();
    const std::uint64_t size = reader.u64(shape_field);
    if (size == 0) reader.fail(shape_field, at, quoted(tensor) + " has a dimension of 0");
    tensor.shape[dims - 1 - i] = size;
  }

  type = reader.u32(field("type"));
  tensor.offset = reader.u64(field("offset"));
  return tensor;
}

/// What the ambiguous types of the table mean.
std::vector<TypeMeaning> choose_ambiguous(const Reader& reader, std::uint64_t data, std::uint32_t alignment,
                                          const Writer& writer, std::span<const TensorInfo> tensors,
                                          std::span<const std::uint32_t> types) {
  std::vector<std::uint64_t> offsets;
  offsets.reserve(tensors.size());
  for (const TensorInfo& tensor : tensors) offsets.push_back(tensor.offset);
  std::sort(offsets.begin(), offsets.end());
  const std::uint64_t end = reader.file().size() - data;
  std::vector<TensorExtent> extents;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    if (!is_ambiguous_type(types[i])) continue;
    const TensorInfo& tensor = tensors[i];
    const auto next = std::upper_bound(offsets.begin(), offsets.end(), tensor.offset);
    const std::uint64_t limit = next == offsets.end() ? end : std::min(*next, end);
    const std::uint64_t room = limit > tensor.offset ? limit - tensor.offset : 0;
    extents.push_back({types[i], count_elements(tensor).value_or(0), tensor.shape.back(), room});
  }
  return choose_formats(extents, alignment, writer);
}

/// Gives a tensor the format that its type stands for, and its size.
void set_format(const Reader& reader, std::size_t index, std::uint32_t type, const TypeMeaning& meaning,
                TensorInfo& tensor) {
  const auto field = [&](const char* member) { return Field{"tensor", index, {}, member}; };
  if (!count_elements(tensor)) {
    reader.fail(field("shape"), shape_member_at(tensor), "the size of " + quoted(tensor) + " overflows 64 bits");
  }
  if (meaning.format == nullptr) {
    const std::string problem = quoted(tensor) + " has type " + std::to_string(type) + ", " + meaning.problem;
    if (meaning.is_foreign) throw UnsupportedModelError(reader.file().name() + ": " + problem);
    reader.fail(field("type"), type_member_at(tensor), problem);
  }
  tensor.format = meaning.format;
  const std::uint32_t block = tensor.format->block_size;
  if (tensor.shape.back() % block != 0) {
    reader.fail({"tensor", index, {}, "shape", 0}, shape_member_at(tensor),
                quoted(tensor) + " has rows of " + std::to_string(tensor.shape.back()) +
                    " elements, no multiple of the " + std::to_string(block) + " in a block of " +
                    std::string(tensor.format->name));
  }
  const auto bytes = tensor_bytes(tensor);
  if (!bytes) {
    reader.fail(field("shape"), shape_member_at(tensor), "the size of " + quoted(tensor) + " overflows 64 bits");
  }
  tensor.bytes = *bytes;
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
                                 const Writer& writer, std::vector<TensorInfo>& tensors) {
  const std::size_t first = tensors.size();
  std::vector<std::uint8_t> scratch;
  std::vector<std::uint32_t> types;
  std::uint32_t type = 0;
  for (std::uint64_t i = 0; i < count; ++i) {
    tensors.push_back(parse_entry(reader, i, file, scratch, type));
    types.push_back(type);
  }
  const std::uint64_t data = skip_padding(reader, alignment, count > 0);
  const std::span<TensorInfo> own = std::span(tensors).subspan(first);
  const std::vector<TypeMeaning> ambiguous = choose_ambiguous(reader, data, alignment, writer, own, types);
  auto next = ambiguous.begin();
  for (std::size_t i = 0; i < own.size(); ++i) {
    set_format(reader, i, types[i], is_ambiguous_type(types[i]) ? *next++ : meaning_of(types[i]), own[i]);
  }
  place(reader, data, alignment, own);
  return data;
}

}  // namespace sterna
