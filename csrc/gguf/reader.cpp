#include "gguf/reader.h"

#include <algorithm>

#include "base/checked.h"
#include "base/error.h"
#include "gguf/text.h"

namespace sterna {

std::string Field::text() const {
  std::string out = table;
  if (index) out += "[" + std::to_string(*index) + "]";
  if (!key.empty()) out += " \"" + printable(key) + "\"";
  if (member != nullptr) out += std::string(".") + member;
  if (element) out += "[" + std::to_string(*element) + "]";
  return out;
}

Reader::Reader(const File& file, std::uint64_t budget)
    : file_(file),
      budget_(budget),
      buffer_(static_cast<std::size_t>(std::min<std::uint64_t>(file.size(), kBufferBytes))) {}

void Reader::fail(const Field& field, std::uint64_t offset, const std::string& problem) const {
  throw ModelFormatError(file_.name(), field.text(), offset, problem);
}

void Reader::require(std::uint64_t n, const Field& field, std::uint64_t offset) const {
  if (n > remaining()) {
    fail(field, offset,
         "needs " + std::to_string(n) + " bytes, but the file ends " + std::to_string(remaining()) +
             " bytes further on (truncated?)");
  }
  if (n > budget_ - position_) fail(field, offset, "the metadata are larger than any model's (256 MiB)");
}

void Reader::refill(std::uint64_t n, const Field& field) {
  require(n, field, position_);
  std::copy(buffer_.begin() + static_cast<std::ptrdiff_t>(begin_), buffer_.begin() + static_cast<std::ptrdiff_t>(end_),
            buffer_.begin());
  end_ -= begin_;
  begin_ = 0;
  const std::uint64_t readable = std::min(remaining(), budget_ - position_);
  const std::uint64_t more = std::min<std::uint64_t>(buffer_.size() - end_, readable - end_);
  file_.read_at(position_ + end_, std::span(buffer_).subspan(end_, static_cast<std::size_t>(more)));
  end_ += static_cast<std::size_t>(more);
}

void Reader::append(std::uint64_t n, const Field& field, std::vector<std::uint8_t>& out) {
  require(n, field, position_);
  while (n > 0) {
    const auto bytes = take(std::min<std::uint64_t>(n, kBufferBytes), field);
    out.insert(out.end(), bytes.begin(), bytes.end());
    n -= bytes.size();
  }
}

std::uint64_t Reader::length(std::uint64_t most, const Field& field) {
  const std::uint64_t at = position_;
  const std::uint64_t n = u64(field);
  if (n > remaining()) {
    fail(field, at,
         "a string of " + std::to_string(n) + " bytes, but " + std::to_string(remaining()) + " are left in the file");
  }
  if (n > most)
    fail(field, at, "a string of " + std::to_string(n) + " bytes; at most " + std::to_string(most) + " are allowed");
  return n;
}

std::uint64_t Reader::count(std::uint64_t least_bytes, const Field& field) {
  const std::uint64_t at = position_;
  const std::uint64_t n = u64(field);
  const auto bytes = checked_mul(n, least_bytes);
  if (!bytes || *bytes > remaining()) {
    fail(field, at,
         "declares " + std::to_string(n) + " entries of at least " + std::to_string(least_bytes) + " bytes, but " +
             std::to_string(remaining()) + " bytes are left in the file");
  }
  return n;
}

}  // namespace sterna
