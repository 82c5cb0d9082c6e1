#include "gguf/gguf.h"

#include <algorithm>
#include <optional>

#include "base/checked.h"
#include "base/error.h"
#include "gguf/sniff.h"
#include "gguf/text.h"

namespace sterna {
namespace {

constexpr std::uint64_t kMostMetadataBytes = std::uint64_t{256} << 20;  // of all parts together
constexpr std::uint64_t kLeastPairBytes = 8 + 1 + 4 + 1;
constexpr std::uint32_t kDefaultAlignment = 32;
constexpr std::uint32_t kMostAlignment = 65536;
constexpr std::uint32_t kMostParts = 65535;

constexpr std::uint32_t byte_swapped(std::uint32_t v) {
  return (v >> 24) | ((v >> 8) & 0xFF00u) | ((v << 8) & 0xFF0000u) | (v << 24);
}

/// Magic and version.
std::uint32_t parse_version(Reader& reader) {
  const Field magic_field{"header", std::nullopt, {}, "magic"};
  std::uint8_t head[64] = {};
  const auto head_bytes =
      std::span(head).first(static_cast<std::size_t>(std::min<std::uint64_t>(sizeof head, reader.remaining())));
  reader.file().read_at(0, head_bytes);
  if (head_bytes.size() < 4 || std::memcmp(head, "GGUF", 4) != 0) {
    reader.fail(magic_field, 0, "this " + describe_foreign_file(head_bytes, reader.file().size()));
  }
  reader.take(4, magic_field);

  const Field version_field{"header", std::nullopt, {}, "version"};
  const std::uint32_t version = reader.u32(version_field);
  if (version == 2 || version == 3) return version;
  if (byte_swapped(version) >= 1 && byte_swapped(version) <= 3) {
    reader.fail(version_field, 4, "this is a GGUF file of a big-endian machine; convert it anew as little endian");
  }
  reader.fail(version_field, 4, "GGUF version " + std::to_string(version) + "; versions 2 and 3 can be read");
}

std::uint32_t read_alignment(const Metadata& metadata) {
  constexpr std::string_view kKey = "general.alignment";
  const std::uint32_t alignment = metadata.find_u32(kKey).value_or(kDefaultAlignment);
  if (alignment == 0 || (alignment & (alignment - 1)) != 0 || alignment > kMostAlignment) {
    metadata.fail(kKey, std::to_string(alignment) + " is no power of two of 1 to " + std::to_string(kMostAlignment));
  }
  return alignment;
}

/// Whether the architecture is one of BitNet's: "bitnet", "bitnet-25", "bitnet-b1.58".
bool is_bitnet(const Metadata& metadata) {
  constexpr std::string_view kKey = "general.architecture";
  return metadata.type_of(kKey) == ValueType::kString && metadata.get_string(kKey).starts_with("bitnet");
}

/// "-00001-of-00003.gguf"; parts count from 1 in file names.
std::string part_suffix(std::uint32_t part, std::uint32_t count) {
  const auto five = [](std::uint32_t n) {
    const std::string digits = std::to_string(n);
    return std::string(5 - digits.size(), '0') + digits;
  };
  return "-" + five(part) + "-of-" + five(count) + ".gguf";
}

/// What stands before the part's suffix in `path`, or nothing when it is not named as part `part` of `count`.
std::optional<std::string> part_prefix(const std::string& path, std::uint32_t part, std::uint32_t count) {
  const std::string suffix = part_suffix(part, count);
  if (!path.ends_with(suffix)) return std::nullopt;
  return path.substr(0, path.size() - suffix.size());
}

struct Split {
  std::uint32_t part;  // from 0
  std::uint32_t count;
};

Split read_split(const Metadata& metadata) {
  const std::uint32_t part = metadata.find_u32("split.no").value_or(0);
  // Merging a split model leaves a count of 0.
  const std::uint32_t count = std::max(metadata.find_u32("split.count").value_or(1), 1u);
  if (count > kMostParts) metadata.fail("split.count", std::to_string(count) + " parts; at most 65535 are possible");
  if (part >= count) {
    metadata.fail("split.no",
                  "part " + std::to_string(part) + " of " + std::to_string(count) + " (counted from 0) cannot be");
  }
  return {part, count};
}

}  // namespace

GgufModel GgufModel::open(const std::string& path, I2sOrder order) {
  GgufModel model;
  model.order_ = order;
  const std::uint64_t used = model.add_part(path, kMostMetadataBytes, model.metadata_);
  model.open_rest(path, kMostMetadataBytes - used);
  model.index_tensors();
  return model;
}

/// Reads the head of one file. Returns the bytes of its metadata and table.
std::uint64_t GgufModel::add_part(const std::string& path, std::uint64_t budget, Metadata& metadata) {
  const auto part = static_cast<std::uint32_t>(files_.size());
  files_.push_back(File::open(path));
  Reader reader(files_.back(), budget);
  const std::uint32_t version = parse_version(reader);
  if (part == 0) {
    version_ = version;
  } else if (version != version_) {
    reader.fail(
        {"header", std::nullopt, {}, "version"}, 4,
        "GGUF version " + std::to_string(version) + ", but the first part has version " + std::to_string(version_));
  }
  const std::uint64_t num_tensors = reader.count(kLeastTensorEntryBytes, {"header", std::nullopt, {}, "tensor_count"});
  const std::uint64_t num_pairs = reader.count(kLeastPairBytes, {"header", std::nullopt, {}, "kv_count"});
  metadata = Metadata::parse(reader, num_pairs);
  const std::uint32_t alignment = read_alignment(metadata);
  if (part == 0) alignment_ = alignment;
  return parse_tensor_table(reader, num_tensors, alignment, part, {is_bitnet(metadata_), order_}, tensors_);
}

void GgufModel::open_rest(const std::string& path, std::uint64_t budget) {
  const Split split = read_split(metadata_);
  if (split.count == 1) return;
  const auto prefix = part_prefix(path, split.part + 1, split.count);
  const std::string part_of =
      "part " + std::to_string(split.part + 1) + " of " + std::to_string(split.count) + " of a split model";
  if (!prefix) {
    metadata_.fail("split.no", "this is " + part_of + ", but its name does not end in \"" +
                                   part_suffix(split.part + 1, split.count) + "\", so that the others cannot be found");
  }
  if (split.part != 0) {
    metadata_.fail("split.no",
                   "this is " + part_of + "; open the first: " + printable_path(*prefix + part_suffix(1, split.count)));
  }

  for (std::uint32_t part = 1; part < split.count; ++part) {
    Metadata metadata;
    budget -= add_part(*prefix + part_suffix(part + 1, split.count), budget, metadata);
    const Split own = read_split(metadata);
    if (own.count != split.count || own.part != part) {
      metadata.fail("split.no", "part " + std::to_string(own.part + 1) + " of " + std::to_string(own.count) +
                                    " is named part " + std::to_string(part + 1) + " of " +
                                    std::to_string(split.count));
    }
    for (std::size_t i = 0; i < metadata.size(); ++i) {
      const std::string_view key = metadata.key(i);
      if (key == "split.no" || !metadata_.contains(key) || Metadata::same_value(metadata, metadata_, key)) continue;
      metadata.fail(key, "differs from the first part: parts of different models?");
    }
  }

  if (const auto count = metadata_.find_u64("split.tensors.count"); count && *count != tensors_.size()) {
    metadata_.fail("split.tensors.count", "says " + std::to_string(*count) + ", but the parts hold " +
                                              std::to_string(tensors_.size()) + " tensors");
  }
}

void GgufModel::index_tensors() {
  const auto name_of = [&](std::uint32_t i) { return std::string_view(tensors_[i].name); };
  const auto duplicate = index_.build(static_cast<std::uint32_t>(tensors_.size()), name_of);
  if (!duplicate) return;
  const TensorInfo& tensor = tensors_[*duplicate];
  const auto first_of_part = std::find_if(tensors_.begin(), tensors_.end(),
                                          [&](const TensorInfo& other) { return other.file == tensor.file; });
  const auto index = static_cast<std::uint64_t>(&tensor - &*first_of_part);
  throw ModelFormatError(files_[tensor.file].name(), Field{"tensor", index, {}, "name"}.text(), tensor.entry_offset,
                         "the name \"" + printable(tensor.name) + "\" occurs twice");
}

std::uint64_t GgufModel::file_bytes() const {
  std::uint64_t total = 0;
  for (const File& file : files_) total = checked_add(total, file.size()).value_or(UINT64_MAX);  // sparse files lie
  return total;
}

const TensorInfo* GgufModel::find(std::string_view name) const {
  const auto found = index_.find(name, [&](std::uint32_t i) { return std::string_view(tensors_[i].name); });
  return found ? &tensors_[*found] : nullptr;
}

const TensorInfo& GgufModel::require(std::string_view name) const {
  if (const TensorInfo* tensor = find(name)) return *tensor;
  throw UnsupportedModelError(files_.front().name() + ": has no tensor \"" + printable(name) + "\"");
}

void GgufModel::read(const TensorInfo& tensor, std::uint64_t offset, std::span<std::uint8_t> out) const {
  const auto end = checked_add(offset, out.size());
  if (!end || *end > tensor.bytes) {
    throw ArgumentError("bytes " + std::to_string(offset) + " to " + std::to_string(offset + out.size()) + " of \"" +
                        printable(tensor.name) + "\", which has " + std::to_string(tensor.bytes));
  }
  if (tensor.file >= files_.size()) throw ArgumentError("\"" + printable(tensor.name) + "\" belongs to another model");
  files_[tensor.file].read_at(tensor.offset + offset, out);
}

}  // namespace sterna
