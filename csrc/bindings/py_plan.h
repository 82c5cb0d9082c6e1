/// A Plan whose methods are Python's: tests implement the model in numpy and run the real engine over it.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <atomic>
#include <span>
#include <vector>

#include "base/error.h"
#include "plan/plan.h"

namespace sterna::bindings {

/// Python subclasses give run(tokens, positions, sequences, page_tables, output_rows, cancelled) -> logits
/// [num_outputs, vocab_size] or None when cancelled() was true; reserve_pages(n), num_pages(), vocab_size(),
/// max_tokens(), max_outputs().
class PyPlan final : public Plan {
 public:
  bool run(const Batch& batch, const std::atomic<bool>* cancelled) override {
    const pybind11::gil_scoped_acquire gil;
    pybind11::list page_tables;
    for (const auto& table : batch.page_tables) page_tables.append(array(table));
    const auto flag = pybind11::cpp_function([cancelled] { return cancelled != nullptr && cancelled->load(); });
    const pybind11::object result = method("run")(array(batch.tokens), array(batch.positions), array(batch.sequences),
                                                  page_tables, array(batch.output_rows), flag);
    if (result.is_none()) return false;
    const auto logits = result.cast<pybind11::array_t<float, pybind11::array::c_style | pybind11::array::forcecast>>();
    logits_.assign(logits.data(), logits.data() + logits.size());
    const auto expected = static_cast<std::size_t>(batch.num_outputs()) * static_cast<std::size_t>(vocab_size());
    if (logits_.size() != expected) throw ArgumentError("run() gave an array of another size");
    return true;
  }

  std::span<const float> logits() const override { return logits_; }

  void reserve_pages(std::int32_t num_pages) override {
    const pybind11::gil_scoped_acquire gil;
    try {
      method("reserve_pages")(num_pages);
    } catch (const pybind11::error_already_set& e) {
      if (e.matches(PyExc_MemoryError)) throw MemoryBudgetError(e.what());
      throw;
    }
  }
  std::int32_t num_pages() const override { return number("num_pages"); }
  std::int32_t vocab_size() const override { return number("vocab_size"); }
  std::int32_t max_tokens() const override { return number("max_tokens"); }
  std::int32_t max_outputs() const override { return number("max_outputs"); }
  PlanMemory memory() const override { return {}; }

 private:
  static pybind11::array_t<std::int32_t> array(std::span<const std::int32_t> values) {
    return pybind11::array_t<std::int32_t>(static_cast<pybind11::ssize_t>(values.size()), values.data());
  }

  pybind11::function method(const char* name) const {
    pybind11::function found = pybind11::get_override(this, name);
    if (!found) throw ArgumentError(std::string("the plan has no method ") + name);
    return found;
  }

  std::int32_t number(const char* name) const {
    const pybind11::gil_scoped_acquire gil;
    return method(name)().cast<std::int32_t>();
  }

  std::vector<float> logits_;
};

}  // namespace sterna::bindings
