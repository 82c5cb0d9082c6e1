/// A regular file, opened for reading at any offset. Nothing is ever mapped: a file that shrinks later gives an error.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <utility>

namespace sterna {

/// Owns the descriptor. Move-only; read_at() may be called from several threads at once.
class File {
 public:
  /// Throws FileError when `path` cannot be opened, or is no regular file. Never blocks, not even on a FIFO.
  static File open(const std::string& path);

  ~File();
  File(File&& other) noexcept
      : path_(std::move(other.path_)),
        name_(std::move(other.name_)),
        descriptor_(std::exchange(other.descriptor_, -1)),
        size_(other.size_) {}
  File& operator=(File&& other) noexcept {
    std::swap(path_, other.path_);
    std::swap(name_, other.name_);
    std::swap(descriptor_, other.descriptor_);
    std::swap(size_, other.size_);
    return *this;
  }

  const std::string& path() const { return path_; }
  /// The path as messages show it.
  const std::string& name() const { return name_; }
  /// Bytes at the time of opening.
  std::uint64_t size() const { return size_; }

  /// Fills `out` with the bytes from `offset` on; throws FileError when they cannot be read, or are no longer there.
  void read_at(std::uint64_t offset, std::span<std::uint8_t> out) const;

 private:
  File(std::string path, std::string name, int descriptor, std::uint64_t size)
      : path_(std::move(path)), name_(std::move(name)), descriptor_(descriptor), size_(size) {}

  std::string path_;
  std::string name_;
  int descriptor_;
  std::uint64_t size_;
};

}  // namespace sterna
