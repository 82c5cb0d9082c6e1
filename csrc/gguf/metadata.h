/// The key-value pairs of a GGUF file: kept compactly, read through typed getters only.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "gguf/name_index.h"
#include "gguf/reader.h"

namespace sterna {

/// Type ids of values, as written in the file (gguf.h, enum gguf_type).
enum class ValueType : std::uint8_t {
  kUint8 = 0,
  kInt8 = 1,
  kUint16 = 2,
  kInt16 = 3,
  kUint32 = 4,
  kInt32 = 5,
  kFloat32 = 6,
  kBool = 7,
  kString = 8,
  kArray = 9,
  kUint64 = 10,
  kInt64 = 11,
  kFloat64 = 12,
};

/// "uint8", "float32", "bool", "string", "array".
std::string_view value_type_name(ValueType type);

/// The strings of an array, one blob and offsets; valid as long as the Metadata it came from.
class StringArray {
 public:
  StringArray(std::string_view text, std::span<const std::uint32_t> ends) : text_(text), ends_(ends) {}

  std::size_t size() const { return ends_.size(); }
  std::string_view operator[](std::size_t i) const {
    const std::uint32_t begin = i == 0 ? 0 : ends_[i - 1];
    return text_.substr(begin, ends_[i] - begin);
  }

 private:
  std::string_view text_;
  std::span<const std::uint32_t> ends_;  // of each string, in text_
};

/// The numbers of an array as the file stores them: little endian, `size(type)` bytes each.
struct NumberArray {
  ValueType type;
  std::uint64_t count;
  std::span<const std::uint8_t> bytes;
};

/// Getters convert among integer types when the value fits. What is of another type, out of range or not finite throws
/// ModelFormatError with the key and its byte offset. `find_` gives nothing for a missing key, where `get_` throws.
/// Strings are bytes: usually UTF-8, but a file may hold anything.
class Metadata {
 public:
  /// Reads `count` pairs. Throws ModelFormatError.
  static Metadata parse(Reader& reader, std::uint64_t count);

  /// Number of keys; key(i) in the order of the file.
  std::size_t size() const { return entries_.size(); }
  std::string_view key(std::size_t i) const { return key_of(entries_[i]); }

  bool contains(std::string_view key) const { return lookup(key) != nullptr; }
  std::optional<ValueType> type_of(std::string_view key) const;
  /// Of an array.
  std::optional<ValueType> element_type_of(std::string_view key) const;
  /// Of an array; throws ModelFormatError when `key` is missing or no array.
  std::uint64_t array_length(std::string_view key) const;
  /// Where the value stands in the file; of a missing key, where the pairs begin.
  std::uint64_t offset_of(std::string_view key) const;

  std::optional<std::uint32_t> find_u32(std::string_view key) const;
  std::optional<std::uint64_t> find_u64(std::string_view key) const;
  std::optional<std::int64_t> find_i64(std::string_view key) const;
  std::optional<float> find_f32(std::string_view key) const;
  /// NaN and infinity too: for showing a value, not for computing with it.
  std::optional<double> find_any_float(std::string_view key) const;
  std::optional<bool> find_bool(std::string_view key) const;
  std::optional<std::string_view> find_string(std::string_view key) const;

  std::uint32_t get_u32(std::string_view key) const { return required(key, find_u32(key)); }
  std::uint64_t get_u64(std::string_view key) const { return required(key, find_u64(key)); }
  std::int64_t get_i64(std::string_view key) const { return required(key, find_i64(key)); }
  float get_f32(std::string_view key) const { return required(key, find_f32(key)); }
  bool get_bool(std::string_view key) const { return required(key, find_bool(key)); }
  std::string_view get_string(std::string_view key) const { return required(key, find_string(key)); }

  /// Arrays: a length other than `length`, where one is given, throws too.
  using Length = std::optional<std::uint64_t>;
  std::optional<std::vector<std::uint32_t>> find_u32_array(std::string_view key, Length length = std::nullopt) const;
  std::optional<std::vector<std::int32_t>> find_i32_array(std::string_view key, Length length = std::nullopt) const;
  std::optional<std::vector<float>> find_f32_array(std::string_view key, Length length = std::nullopt) const;
  std::optional<std::vector<bool>> find_bool_array(std::string_view key, Length length = std::nullopt) const;
  std::optional<StringArray> find_strings(std::string_view key, Length length = std::nullopt) const;
  /// Any array of numbers or bools, unconverted.
  std::optional<NumberArray> find_numbers(std::string_view key, Length length = std::nullopt) const;

  std::vector<std::uint32_t> get_u32_array(std::string_view key, Length length = std::nullopt) const {
    return required(key, find_u32_array(key, length));
  }
  std::vector<std::int32_t> get_i32_array(std::string_view key, Length length = std::nullopt) const {
    return required(key, find_i32_array(key, length));
  }
  std::vector<float> get_f32_array(std::string_view key, Length length = std::nullopt) const {
    return required(key, find_f32_array(key, length));
  }
  StringArray get_strings(std::string_view key, Length length = std::nullopt) const {
    return required(key, find_strings(key, length));
  }

  /// Throws ModelFormatError about the value of `key`, for checks that know more than its type.
  [[noreturn]] void fail(std::string_view key, const std::string& problem) const;

  /// True when both hold `key` with the same type and bytes.
  static bool same_value(const Metadata& a, const Metadata& b, std::string_view key);

 private:
  struct Entry {
    std::uint64_t offset;   // of the value, in the file
    std::uint64_t payload;  // number: its bits; string: begin in bytes_ and length << 32; array: its place in arrays_
    std::uint32_t key_begin;
    std::uint16_t key_length;
    ValueType type;
  };
  struct Array {
    std::uint64_t count;
    std::uint32_t begin;         // in bytes_
    std::uint32_t bytes;         // there
    std::uint32_t first_string;  // in string_ends_
    ValueType type;
  };

  void parse_value(Reader& reader, Field field, Entry& entry);
  void parse_array(Reader& reader, Field field, Array& array);

  std::string_view key_of(const Entry& entry) const {
    return std::string_view(keys_).substr(entry.key_begin, entry.key_length);
  }
  const Entry* lookup(std::string_view key) const;
  const Array* lookup_array(std::string_view key, Length length) const;
  std::span<const std::uint8_t> array_bytes(const Array& array) const {
    return std::span(bytes_).subspan(array.begin, array.bytes);
  }
  std::string_view string_of(const Entry& entry) const;
  StringArray strings_of(const Array& array) const;

  template <class T>
  T required(std::string_view key, std::optional<T> value) const {
    if (!value) fail(key, "is missing");
    return *std::move(value);
  }
  template <class T, class Convert>
  std::optional<T> find_number(std::string_view key, const char* wanted, Convert convert) const;
  template <class T, class Convert>
  std::optional<std::vector<T>> find_array(std::string_view key, Length length, const char* wanted,
                                           Convert convert) const;

  std::string file_;
  std::uint64_t begin_ = 0;  // of the pairs, in the file
  std::string keys_;
  std::vector<Entry> entries_;
  std::vector<Array> arrays_;
  std::vector<std::uint8_t> bytes_;         // strings, and the elements of arrays
  std::vector<std::uint32_t> string_ends_;  // relative to the begin of their array
  NameIndex index_;
};

}  // namespace sterna
