/// A bounds-checked cursor over the head of a GGUF file. Whatever a file declares is checked here against the bytes
/// that are left before anything is allocated for it.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "gguf/file.h"

namespace sterna {

/// A number as the file stores it, little endian.
template <class T>
T load_little_endian(const std::uint8_t* bytes) {
  static_assert(std::is_arithmetic_v<T>);
  std::uint8_t native[sizeof(T)];
  for (std::size_t i = 0; i < sizeof(T); ++i) {
    native[i] = bytes[std::endian::native == std::endian::little ? i : sizeof(T) - 1 - i];
  }
  return std::bit_cast<T>(native);
}

/// Where in the format a value stands; put into words only when an error needs them.
struct Field {
  const char* table;                   // "header", "kv", "tensor", "data"
  std::optional<std::uint64_t> index;  // entry of the table
  std::string_view key = {};           // of a key-value pair, once it is known
  const char* member = nullptr;        // "type", "offset", ...
  std::optional<std::uint64_t> element = std::nullopt;

  /// For example `kv[12] "llama.block_count"` or `tensor[3].offset`.
  std::string text() const;
};

class Reader {
 public:
  /// Reads `file` from its start; going past `budget` bytes is an error.
  Reader(const File& file, std::uint64_t budget);

  const File& file() const { return file_; }
  std::uint64_t position() const { return position_; }
  /// Bytes up to the end of the file.
  std::uint64_t remaining() const { return file_.size() - position_; }

  std::uint8_t u8(const Field& field) { return load_little_endian<std::uint8_t>(take(1, field).data()); }
  std::uint32_t u32(const Field& field) { return load_little_endian<std::uint32_t>(take(4, field).data()); }
  std::uint64_t u64(const Field& field) { return load_little_endian<std::uint64_t>(take(8, field).data()); }

  /// The next `n` bytes, at most kBufferBytes; they stay valid until the next call.
  std::span<const std::uint8_t> take(std::uint64_t n, const Field& field) {
    if (n > end_ - begin_) refill(n, field);
    const std::span<const std::uint8_t> bytes(buffer_.data() + begin_, static_cast<std::size_t>(n));
    begin_ += bytes.size();
    position_ += n;
    return bytes;
  }

  /// Appends the next `n` bytes to `out`, which grows only as fast as the bytes arrive.
  void append(std::uint64_t n, const Field& field, std::vector<std::uint8_t>& out);

  /// The length of a string: at most `most`, and no more than the bytes that are left.
  std::uint64_t length(std::uint64_t most, const Field& field);

  /// A count of things that take `least_bytes` each or more; throws when they cannot fit into what is left.
  std::uint64_t count(std::uint64_t least_bytes, const Field& field);

  /// Throws when fewer than `n` bytes are left, naming `field` at `offset` (where it declares them).
  void require(std::uint64_t n, const Field& field, std::uint64_t offset) const;

  [[noreturn]] void fail(const Field& field, std::uint64_t offset, const std::string& problem) const;

  static constexpr std::size_t kBufferBytes = std::size_t{1} << 18;

 private:
  void refill(std::uint64_t n, const Field& field);

  const File& file_;
  std::uint64_t budget_;
  std::uint64_t position_ = 0;  // in the file, of buffer_[begin_]
  std::vector<std::uint8_t> buffer_;
  std::size_t begin_ = 0;
  std::size_t end_ = 0;
};

}  // namespace sterna
