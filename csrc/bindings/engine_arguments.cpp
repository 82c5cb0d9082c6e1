#include "bindings/engine_arguments.h"

#include <algorithm>
#include <limits>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"

namespace py = pybind11;

namespace sterna::bindings {

namespace {

/// A list of int alone, taken without numpy, whose import takes longer than computing the first token.
std::optional<std::vector<std::int32_t>> from_list(const py::object& tokens) {
  if (!PyList_CheckExact(tokens.ptr())) return std::nullopt;
  std::vector<std::int32_t> out;
  out.reserve(static_cast<std::size_t>(PyList_GET_SIZE(tokens.ptr())));
  for (const py::handle item : py::reinterpret_borrow<py::list>(tokens)) {
    if (!PyLong_CheckExact(item.ptr())) return std::nullopt;
    int overflow = 0;
    const long long value = PyLong_AsLongLongAndOverflow(item.ptr(), &overflow);
    if (overflow != 0 || value != static_cast<std::int32_t>(value)) return std::nullopt;
    out.push_back(static_cast<std::int32_t>(value));
  }
  return out;
}

}  // namespace

std::vector<std::int32_t> to_tokens(const py::object& tokens, const char* name) {
  if (auto list = from_list(tokens)) return *std::move(list);
  const py::array array = py::array::ensure(tokens);
  if (!array || array.ndim() != 1) {
    PyErr_Clear();
    throw ArgumentError(std::string(name) + " must be a list of integers");
  }
  if (array.size() == 0) return {};
  const char kind = array.dtype().kind();
  if (kind != 'i' && kind != 'u') throw ArgumentError(std::string(name) + " must be integers");
  const auto wide = py::array_t<std::int64_t, py::array::c_style | py::array::forcecast>::ensure(array);
  std::vector<std::int32_t> out;
  out.reserve(static_cast<std::size_t>(wide.size()));
  for (py::ssize_t i = 0; i < wide.size(); ++i) {
    const std::int64_t value = wide.data()[i];
    // An unsigned 64-bit number that does not fit turns negative: refused as well, as no token is negative.
    if (value < std::numeric_limits<std::int32_t>::min() || value > std::numeric_limits<std::int32_t>::max()) {
      throw ArgumentError(std::string(name) + ": " + std::to_string(value) + " is no token");
    }
    out.push_back(static_cast<std::int32_t>(value));
  }
  return out;
}

Mask to_mask(const py::object& mask) {
  if (mask.is_none()) return nullptr;
  if (!PyCallable_Check(mask.ptr())) {
    const auto words = py::array_t<std::uint64_t, py::array::c_style>::ensure(mask);
    if (!words) throw py::error_already_set();
    std::vector<std::uint64_t> fixed(words.data(), words.data() + words.size());
    return [fixed = std::move(fixed)](std::span<const std::int32_t>, std::span<std::uint64_t> allowed) {
      if (fixed.size() != allowed.size()) {
        throw ArgumentError("the mask has " + std::to_string(fixed.size()) + " words; " +
                            std::to_string(allowed.size()) + " are needed");
      }
      std::transform(fixed.begin(), fixed.end(), allowed.begin(), allowed.begin(), std::bit_and<>());
      return true;
    };
  }
  return [callable = shared_object(mask)](std::span<const std::int32_t> generated, std::span<std::uint64_t> allowed) {
    const py::gil_scoped_acquire gil;
    py::list tokens;
    for (const std::int32_t token : generated) tokens.append(token);
    // The callable gets its own words: it may keep them.
    py::array_t<std::uint64_t> words(static_cast<py::ssize_t>(allowed.size()), allowed.data());
    (*callable)(tokens, words);
    std::copy_n(words.data(), allowed.size(), allowed.begin());
    return true;
  };
}

std::span<const float> to_row(const Floats& row, std::int32_t vocab_size) {
  if (row.ndim() != 1 || row.size() != vocab_size) {
    throw ArgumentError("logits must be float32 [" + std::to_string(vocab_size) + "]");
  }
  return {row.data(), static_cast<std::size_t>(row.size())};
}

}  // namespace sterna::bindings
