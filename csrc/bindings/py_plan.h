/// A Plan whose methods are Python's: tests implement the model in numpy and run the real engine over it.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "plan/plan.h"

namespace sterna::bindings {

/// Python subclasses give run(tokens, positions, sequences, page_tables, output_rows, cancelled) -> logits
/// [num_outputs, vocab_size] or None when cancelled() was true, page_tables being those of the first sequence's pools,
/// then the next one's; reserve_pages(pool, n), num_pages(pool), copy_page(pool, from, to), vocab_size(), max_tokens(),
/// max_outputs(); and where they have them windows() of the pools, read_page(pool, page) -> bytes, write_page(pool,
/// page, bytes), page_bytes(), first_non_finite(row), most_largest(), and largest_logits(wanted) -> a
/// list of (token, logit) for each output of the last run.
class PyPlan final : public Plan {
 public:
  bool run(const Batch& batch, const Interrupt* interrupt) override {
    const pybind11::gil_scoped_acquire gil;
    pybind11::list page_tables;
    for (const auto& table : batch.page_tables) page_tables.append(array(table));
    const auto flag = pybind11::cpp_function([interrupt] { return interrupt != nullptr && interrupt->due(); });
    const pybind11::object result = method("run")(array(batch.tokens), array(batch.positions), array(batch.sequences),
                                                  page_tables, array(batch.output_rows), flag);
    if (result.is_none()) return false;
    const auto logits = result.cast<pybind11::array_t<float, pybind11::array::c_style | pybind11::array::forcecast>>();
    logits_.assign(logits.data(), logits.data() + logits.size());
    const auto expected = static_cast<std::size_t>(batch.num_outputs()) * static_cast<std::size_t>(vocab_size());
    if (logits_.size() != expected) throw ArgumentError("run() gave an array of another size");
    largest_.assign(static_cast<std::size_t>(batch.num_outputs()), {});
    if (most_largest() > 0) {
      const pybind11::list rows = method("largest_logits")(array(batch.largest));
      for (std::size_t i = 0; i < largest_.size(); ++i) {
        for (const pybind11::handle entry : rows[i]) {
          const auto [token, logit] = entry.cast<std::pair<std::int32_t, float>>();
          largest_[i].push_back({token, logit});
        }
      }
    }
    return true;
  }

  std::span<const float> logits() const override { return logits_; }
  std::int32_t most_largest() const override {
    const pybind11::gil_scoped_acquire gil;
    return has("most_largest") ? number("most_largest") : 0;
  }
  std::span<const TokenLogit> largest_logits(std::size_t output) const override { return largest_.at(output); }

  std::span<const KvPoolInfo> kv_pools() const override {
    if (pools_.empty()) {
      const pybind11::gil_scoped_acquire gil;
      const auto bytes = has("page_bytes") ? method("page_bytes")().cast<std::uint64_t>() : 0;
      const auto windows =
          has("windows") ? method("windows")().cast<std::vector<std::int32_t>>() : std::vector<std::int32_t>{0};
      for (const std::int32_t window : windows) pools_.push_back({window, bytes});
    }
    return pools_;
  }

  void reserve_pages(std::size_t pool, std::int32_t num_pages) override {
    const pybind11::gil_scoped_acquire gil;
    try {
      method("reserve_pages")(pool, num_pages);
    } catch (const pybind11::error_already_set& e) {
      if (e.matches(PyExc_MemoryError)) throw MemoryBudgetError(e.what());
      throw;
    }
  }
  std::int32_t num_pages(std::size_t pool) const override {
    const pybind11::gil_scoped_acquire gil;
    return method("num_pages")(pool).cast<std::int32_t>();
  }
  void copy_page(std::size_t pool, std::int32_t from, std::int32_t to) override {
    const pybind11::gil_scoped_acquire gil;
    method("copy_page")(pool, from, to);
  }
  void read_page(std::size_t pool, std::int32_t page, std::span<std::uint8_t> bytes) const override {
    const pybind11::gil_scoped_acquire gil;
    const auto read = method("read_page")(pool, page).cast<std::string>();
    if (read.size() != bytes.size()) throw ArgumentError("read_page() gave another size");
    std::copy(read.begin(), read.end(), bytes.begin());
  }
  void write_page(std::size_t pool, std::int32_t page, std::span<const std::uint8_t> bytes) override {
    const pybind11::gil_scoped_acquire gil;
    method("write_page")(pool, page, pybind11::bytes(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
  }
  std::string kv_layout() const override { return "python"; }
  std::string first_non_finite(const Batch&, std::int32_t row) override {
    const pybind11::gil_scoped_acquire gil;
    return has("first_non_finite") ? method("first_non_finite")(row).cast<std::string>() : std::string();
  }
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

  bool has(const char* name) const { return static_cast<bool>(pybind11::get_override(this, name)); }

  std::int32_t number(const char* name) const {
    const pybind11::gil_scoped_acquire gil;
    return method(name)().cast<std::int32_t>();
  }

  std::vector<float> logits_;
  std::vector<std::vector<TokenLogit>> largest_;  // by output
  mutable std::vector<KvPoolInfo> pools_;
};

}  // namespace sterna::bindings
