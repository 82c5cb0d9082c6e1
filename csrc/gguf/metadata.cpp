#include "gguf/metadata.h"

#include <array>
#include <charconv>
#include <cmath>
#include <iterator>
#include <limits>
#include <utility>

#include "base/checked.h"
#include "base/error.h"
#include "gguf/text.h"

namespace sterna {
namespace {

struct TypeInfo {
  std::string_view name;
  std::uint32_t bytes;  // 0 for strings and arrays
};
constexpr std::array<TypeInfo, 13> kTypes = {{{"uint8", 1},
                                              {"int8", 1},
                                              {"uint16", 2},
                                              {"int16", 2},
                                              {"uint32", 4},
                                              {"int32", 4},
                                              {"float32", 4},
                                              {"bool", 1},
                                              {"string", 0},
                                              {"array", 0},
                                              {"uint64", 8},
                                              {"int64", 8},
                                              {"float64", 8}}};

const TypeInfo& info(ValueType type) { return kTypes[static_cast<std::size_t>(type)]; }

constexpr std::uint64_t kMostKeyBytes = 1 << 10;
constexpr std::uint64_t kMostStringBytes = 64 << 20;
constexpr std::uint64_t kLeastStringBytes = 8;  // an empty one is its length

template <class To, class From>
std::optional<To> fit(From value) {
  if (!std::in_range<To>(value)) return std::nullopt;
  return static_cast<To>(value);
}

/// The number at `bytes` as a T, or nothing when it is no integer or does not fit.
template <class T>
std::optional<T> to_integer(ValueType type, const std::uint8_t* bytes) {
  switch (type) {
    case ValueType::kUint8:
      return fit<T>(load_little_endian<std::uint8_t>(bytes));
    case ValueType::kInt8:
      return fit<T>(load_little_endian<std::int8_t>(bytes));
    case ValueType::kUint16:
      return fit<T>(load_little_endian<std::uint16_t>(bytes));
    case ValueType::kInt16:
      return fit<T>(load_little_endian<std::int16_t>(bytes));
    case ValueType::kUint32:
      return fit<T>(load_little_endian<std::uint32_t>(bytes));
    case ValueType::kInt32:
      return fit<T>(load_little_endian<std::int32_t>(bytes));
    case ValueType::kUint64:
      return fit<T>(load_little_endian<std::uint64_t>(bytes));
    case ValueType::kInt64:
      return fit<T>(load_little_endian<std::int64_t>(bytes));
    default:
      return std::nullopt;
  }
}

std::optional<double> to_any_float(ValueType type, const std::uint8_t* bytes) {
  if (type == ValueType::kFloat32) return load_little_endian<float>(bytes);
  if (type == ValueType::kFloat64) return load_little_endian<double>(bytes);
  return std::nullopt;
}

/// The number at `bytes` as a float, or nothing when it is no float, not finite, or too large.
std::optional<float> to_f32(ValueType type, const std::uint8_t* bytes) {
  const auto value = to_any_float(type, bytes);
  if (!value || !(std::abs(*value) <= static_cast<double>(std::numeric_limits<float>::max()))) return std::nullopt;
  return static_cast<float>(*value);
}

std::optional<bool> to_bool(ValueType type, const std::uint8_t* bytes) {
  if (type != ValueType::kBool) return std::nullopt;
  return *bytes != 0;
}

/// A number for a message.
std::string describe(ValueType type, const std::uint8_t* bytes) {
  const std::string name(value_type_name(type));
  if (type == ValueType::kBool) return *bytes != 0 ? "true" : "false";
  if (const auto value = to_integer<std::uint64_t>(type, bytes)) return name + " " + std::to_string(*value);
  if (const auto value = to_integer<std::int64_t>(type, bytes)) return name + " " + std::to_string(*value);
  char digits[32];
  const auto end = type == ValueType::kFloat32
                       ? std::to_chars(std::begin(digits), std::end(digits), load_little_endian<float>(bytes)).ptr
                       : std::to_chars(std::begin(digits), std::end(digits), load_little_endian<double>(bytes)).ptr;
  return name + " " + std::string(digits, end);
}

bool is_number(ValueType type) { return info(type).bytes != 0; }

ValueType parse_type(Reader& reader, const Field& field) {
  const std::uint64_t at = reader.position();
  const std::uint32_t id = reader.u32(field);
  if (id >= kTypes.size()) reader.fail(field, at, "there is no value type " + std::to_string(id));
  return static_cast<ValueType>(id);
}

Field member(Field field, const char* name) {
  field.member = name;
  return field;
}

}  // namespace

std::string_view value_type_name(ValueType type) { return info(type).name; }

Metadata Metadata::parse(Reader& reader, std::uint64_t count) {
  Metadata m;
  m.file_ = reader.file().name();
  m.begin_ = reader.position();
  std::vector<std::uint8_t> key;
  for (std::uint64_t i = 0; i < count; ++i) {
    Field field{"kv", i};
    const Field key_field = member(field, "key");
    const std::uint64_t at = reader.position();
    const std::uint64_t length = reader.length(kMostKeyBytes, key_field);
    key.clear();
    reader.append(length, key_field, key);
    const std::string_view text(reinterpret_cast<const char*>(key.data()), key.size());
    if (const char* fault = name_fault(text))
      reader.fail(key_field, at, "the key \"" + printable(text) + "\" " + fault);

    Entry entry{};
    // The metadata are below 256 MiB, so 32 bits hold every place in them.
    entry.key_begin = static_cast<std::uint32_t>(m.keys_.size());
    entry.key_length = static_cast<std::uint16_t>(length);
    m.keys_ += text;
    field.key = text;
    entry.type = parse_type(reader, member(field, "type"));
    entry.offset = reader.position();
    m.parse_value(reader, field, entry);
    m.entries_.push_back(entry);
  }
  const auto name_of = [&](std::uint32_t i) { return m.key(i); };
  if (const auto duplicate = m.index_.build(static_cast<std::uint32_t>(m.entries_.size()), name_of)) {
    reader.fail({"kv", *duplicate, m.key(*duplicate)}, m.entries_[*duplicate].offset, "the key occurs twice");
  }
  return m;
}

void Metadata::parse_value(Reader& reader, Field field, Entry& entry) {
  if (entry.type == ValueType::kString) {
    const std::uint64_t length = reader.length(kMostStringBytes, field);
    entry.payload = bytes_.size() | (length << 32);
    reader.append(length, field, bytes_);
  } else if (entry.type == ValueType::kArray) {
    entry.payload = arrays_.size();
    Array array{};
    parse_array(reader, field, array);
    arrays_.push_back(array);
  } else {
    const auto bytes = reader.take(info(entry.type).bytes, field);
    if (entry.type == ValueType::kBool && bytes[0] > 1) {
      reader.fail(field, entry.offset, "a bool is 0 or 1, not " + std::to_string(bytes[0]));
    }
    std::memcpy(&entry.payload, bytes.data(), bytes.size());
  }
}

void Metadata::parse_array(Reader& reader, Field field, Array& array) {
  const Field type_field = member(field, "element_type");
  const std::uint64_t type_at = reader.position();
  array.type = parse_type(reader, type_field);
  if (array.type == ValueType::kArray) reader.fail(type_field, type_at, "arrays of arrays are not supported");
  const std::uint32_t element_bytes = info(array.type).bytes;
  array.count = reader.count(element_bytes != 0 ? element_bytes : kLeastStringBytes, member(field, "count"));
  array.begin = static_cast<std::uint32_t>(bytes_.size());
  array.first_string = static_cast<std::uint32_t>(string_ends_.size());
  if (array.type == ValueType::kString) {
    for (std::uint64_t i = 0; i < array.count; ++i) {
      field.element = i;
      reader.append(reader.length(kMostStringBytes, field), field, bytes_);
      string_ends_.push_back(static_cast<std::uint32_t>(bytes_.size() - array.begin));
    }
  } else {
    const std::uint64_t at = reader.position();
    const auto bytes = checked_mul(array.count, element_bytes);  // fits: count() has compared it with the file
    reader.append(bytes.value(), field, bytes_);
    if (array.type == ValueType::kBool) {
      for (std::uint64_t i = 0; i < array.count; ++i) {
        const std::uint8_t value = bytes_[array.begin + static_cast<std::size_t>(i)];
        if (value <= 1) continue;
        field.element = i;
        reader.fail(field, at + i, "a bool is 0 or 1, not " + std::to_string(value));
      }
    }
  }
  array.bytes = static_cast<std::uint32_t>(bytes_.size() - array.begin);
}

const Metadata::Entry* Metadata::lookup(std::string_view key) const {
  const auto found = index_.find(key, [&](std::uint32_t i) { return this->key(i); });
  return found ? &entries_[*found] : nullptr;
}

void Metadata::fail(std::string_view key, const std::string& problem) const {
  const Entry* entry = lookup(key);
  Field field{"kv", std::nullopt, key};
  if (entry != nullptr) field.index = static_cast<std::uint64_t>(entry - entries_.data());
  throw ModelFormatError(file_, field.text(), offset_of(key), problem);
}

std::uint64_t Metadata::offset_of(std::string_view key) const {
  const Entry* entry = lookup(key);
  return entry != nullptr ? entry->offset : begin_;
}

std::optional<ValueType> Metadata::type_of(std::string_view key) const {
  const Entry* entry = lookup(key);
  return entry != nullptr ? std::optional(entry->type) : std::nullopt;
}

std::optional<ValueType> Metadata::element_type_of(std::string_view key) const {
  const Array* array = lookup_array(key, std::nullopt);
  return array != nullptr ? std::optional(array->type) : std::nullopt;
}

std::uint64_t Metadata::array_length(std::string_view key) const {
  const Array* array = lookup_array(key, std::nullopt);
  if (array == nullptr) fail(key, "is missing");
  return array->count;
}

const Metadata::Array* Metadata::lookup_array(std::string_view key, Length length) const {
  const Entry* entry = lookup(key);
  if (entry == nullptr) return nullptr;
  if (entry->type != ValueType::kArray) {
    fail(key, "an array is needed here, not " + std::string(value_type_name(entry->type)));
  }
  const Array& array = arrays_[static_cast<std::size_t>(entry->payload)];
  if (length && array.count != *length) {
    fail(key, "has " + std::to_string(array.count) + " elements where " + std::to_string(*length) + " are needed");
  }
  return &array;
}

template <class T, class Convert>
std::optional<T> Metadata::find_number(std::string_view key, const char* wanted, Convert convert) const {
  const Entry* entry = lookup(key);
  if (entry == nullptr) return std::nullopt;
  std::uint8_t bytes[sizeof(entry->payload)];
  std::memcpy(bytes, &entry->payload, sizeof(bytes));
  if (is_number(entry->type)) {
    if (const std::optional<T> value = convert(entry->type, bytes)) return value;
  }
  const std::string found =
      is_number(entry->type) ? describe(entry->type, bytes) : std::string(value_type_name(entry->type));
  fail(key, std::string(wanted) + " is needed here, not " + found);
}

template <class T, class Convert>
std::optional<std::vector<T>> Metadata::find_array(std::string_view key, Length length, const char* wanted,
                                                   Convert convert) const {
  const auto numbers = find_numbers(key, length);
  if (!numbers) return std::nullopt;
  const std::size_t size = info(numbers->type).bytes;
  std::vector<T> values;
  values.reserve(static_cast<std::size_t>(numbers->count));
  for (std::size_t i = 0; i < numbers->count; ++i) {
    const std::uint8_t* bytes = numbers->bytes.data() + i * size;
    const std::optional<T> value = convert(numbers->type, bytes);
    if (!value) {
      fail(key,
           "element " + std::to_string(i) + ": " + wanted + " is needed here, not " + describe(numbers->type, bytes));
    }
    values.push_back(*value);
  }
  return values;
}

std::optional<std::uint32_t> Metadata::find_u32(std::string_view key) const {
  return find_number<std::uint32_t>(key, "an integer of 0 to 2^32-1", to_integer<std::uint32_t>);
}

std::optional<std::uint64_t> Metadata::find_u64(std::string_view key) const {
  return find_number<std::uint64_t>(key, "an integer of 0 or more", to_integer<std::uint64_t>);
}

std::optional<std::int64_t> Metadata::find_i64(std::string_view key) const {
  return find_number<std::int64_t>(key, "an integer below 2^63", to_integer<std::int64_t>);
}

std::optional<float> Metadata::find_f32(std::string_view key) const {
  return find_number<float>(key, "a finite float32", to_f32);
}

std::optional<double> Metadata::find_any_float(std::string_view key) const {
  return find_number<double>(key, "a float", to_any_float);
}

std::optional<bool> Metadata::find_bool(std::string_view key) const {
  return find_number<bool>(key, "a bool", to_bool);
}

std::optional<std::string_view> Metadata::find_string(std::string_view key) const {
  const Entry* entry = lookup(key);
  if (entry == nullptr) return std::nullopt;
  if (entry->type != ValueType::kString) {
    fail(key, "a string is needed here, not " + std::string(value_type_name(entry->type)));
  }
  return string_of(*entry);
}

std::optional<std::vector<std::uint32_t>> Metadata::find_u32_array(std::string_view key, Length length) const {
  return find_array<std::uint32_t>(key, length, "an integer of 0 to 2^32-1", to_integer<std::uint32_t>);
}

std::optional<std::vector<std::int32_t>> Metadata::find_i32_array(std::string_view key, Length length) const {
  return find_array<std::int32_t>(key, length, "an integer that int32 holds", to_integer<std::int32_t>);
}

std::optional<std::vector<float>> Metadata::find_f32_array(std::string_view key, Length length) const {
  return find_array<float>(key, length, "a finite float32", to_f32);
}

std::optional<std::vector<bool>> Metadata::find_bool_array(std::string_view key, Length length) const {
  return find_array<bool>(key, length, "a bool", to_bool);
}

std::optional<StringArray> Metadata::find_strings(std::string_view key, Length length) const {
  const Array* array = lookup_array(key, length);
  if (array == nullptr) return std::nullopt;
  if (array->type != ValueType::kString) {
    fail(key, "an array of strings is needed here, not of " + std::string(value_type_name(array->type)));
  }
  return strings_of(*array);
}

std::optional<NumberArray> Metadata::find_numbers(std::string_view key, Length length) const {
  const Array* array = lookup_array(key, length);
  if (array == nullptr) return std::nullopt;
  if (array->type == ValueType::kString) fail(key, "an array of numbers is needed here, not of strings");
  return NumberArray{array->type, array->count, array_bytes(*array)};
}

std::string_view Metadata::string_of(const Entry& entry) const {
  const std::string_view text(reinterpret_cast<const char*>(bytes_.data()), bytes_.size());
  return text.substr(entry.payload & 0xFFFFFFFFu, entry.payload >> 32);
}

StringArray Metadata::strings_of(const Array& array) const {
  const auto bytes = array_bytes(array);
  return {std::string_view(reinterpret_cast<const char*>(bytes.data()), bytes.size()),
          std::span(string_ends_).subspan(array.first_string, static_cast<std::size_t>(array.count))};
}

bool Metadata::same_value(const Metadata& a, const Metadata& b, std::string_view key) {
  const Entry* x = a.lookup(key);
  const Entry* y = b.lookup(key);
  if (x == nullptr || y == nullptr || x->type != y->type) return false;
  if (x->type == ValueType::kString) return a.string_of(*x) == b.string_of(*y);
  if (x->type != ValueType::kArray) return x->payload == y->payload;
  const Array& p = a.arrays_[static_cast<std::size_t>(x->payload)];
  const Array& q = b.arrays_[static_cast<std::size_t>(y->payload)];
  if (p.type != q.type || p.count != q.count) return false;
  if (p.type != ValueType::kString) {
    const auto left = a.array_bytes(p);
    const auto right = b.array_bytes(q);
    return std::equal(left.begin(), left.end(), right.begin(), right.end());
  }
  const StringArray left = a.strings_of(p);
  const StringArray right = b.strings_of(q);
  for (std::size_t i = 0; i < left.size(); ++i) {
    if (left[i] != right[i]) return false;
  }
  return true;
}

}  // namespace sterna
