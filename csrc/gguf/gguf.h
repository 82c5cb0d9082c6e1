/// A model in one GGUF file, or in several that were split: its metadata, its tensor table, and reads of tensor data.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "gguf/file.h"
#include "gguf/metadata.h"
#include "gguf/name_index.h"
#include "gguf/tensor_table.h"

namespace sterna {

/// Versions 2 and 3, little endian. The files stay open and are read with pread(); nothing is mapped.
class GgufModel {
 public:
  /// Opens the file at `path`, and the other parts beside it when it is the first of a split model
  /// ("name-00001-of-0000N.gguf"). `order` is that of I2_S tensors, if there are any. Throws FileError,
  /// ModelFormatError with the field and the byte offset, UnsupportedModelError for a format of another program that
  /// cannot be read.
  static GgufModel open(const std::string& path, I2sOrder order = I2sOrder::kX86);

  const std::string& path() const { return files_.front().path(); }
  /// Of the first part, like version() and alignment().
  const Metadata& metadata() const { return metadata_; }
  std::uint32_t version() const { return version_; }
  std::uint32_t alignment() const { return alignment_; }
  /// The file, or the parts in their order; TensorInfo::file counts in it.
  std::span<const File> files() const { return files_; }
  /// Bytes of all files.
  std::uint64_t file_bytes() const;

  /// In the order of the tables, part after part.
  std::span<const TensorInfo> tensors() const { return tensors_; }
  /// Null when there is no such tensor.
  const TensorInfo* find(std::string_view name) const;
  /// Throws UnsupportedModelError naming what is missing.
  const TensorInfo& require(std::string_view name) const;

  /// Fills `out` with the bytes of `tensor` from `offset` on. Safe from several threads at once. Throws ArgumentError
  /// when that passes its end, FileError when the file cannot be read or has shrunk.
  void read(const TensorInfo& tensor, std::uint64_t offset, std::span<std::uint8_t> out) const;

 private:
  GgufModel() = default;

  std::uint64_t add_part(const std::string& path, std::uint64_t budget, Metadata& metadata);
  void open_rest(const std::string& path, std::uint64_t budget);
  void index_tensors();

  std::vector<File> files_;
  std::uint32_t version_ = 0;
  std::uint32_t alignment_ = 0;
  I2sOrder order_ = I2sOrder::kX86;
  Metadata metadata_;
  std::vector<TensorInfo> tensors_;
  NameIndex index_;
};

}  // namespace sterna
