/// KvPages, KvCache and Scheduler in Python, over sequences known by number: for property tests of the engine's own
/// code.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "base/error.h"
#include "bindings/bind_engine_parts.h"
#include "bindings/engine_arguments.h"
#include "engine/scheduler.h"

namespace py = pybind11;
using namespace pybind11::literals;

namespace sterna::bindings {
namespace {

/// What a test sees of one sequence's rows in a batch.
struct NumberedRows {
  int id;
  std::int32_t first;
  std::int32_t count;
  std::int32_t num_outputs;
  std::vector<std::vector<std::int32_t>> pages;
};

class NumberedScheduler {
 public:
  NumberedScheduler(SchedulerLimits limits, const std::vector<std::int32_t>& windows,
                    const std::vector<std::int32_t>& page_limits)
      : cache_(windows, page_limits), scheduler_(limits, cache_) {
    if (windows.empty() || windows.size() != page_limits.size()) throw ArgumentError("a window and a limit per pool");
  }

  KvCache& cache() { return cache_; }
  const Scheduler& scheduler() const { return scheduler_; }

  int add(std::vector<std::int32_t> tokens, std::optional<std::int32_t> output_from, bool background,
          std::string context_key) {
    if (tokens.empty()) throw ArgumentError("there are no tokens");
    auto sequence = std::make_unique<Sequence>();
    sequence->output_from = output_from.value_or(static_cast<std::int32_t>(tokens.size()) - 1);
    sequence->tokens = std::move(tokens);
    sequence->priority = background ? Priority::kBackground : Priority::kInteractive;
    sequence->context_key = std::move(context_key);
    scheduler_.add(*sequence);
    sequences_.emplace(next_, std::move(sequence));
    return next_++;
  }

  std::vector<NumberedRows> pick() {
    std::vector<NumberedRows> rows;
    for (const ScheduledRows& r : scheduler_.pick()) {
      rows.push_back({id_of(r.sequence), r.first, r.count, r.num_outputs, r.sequence->pages});
    }
    return rows;
  }

  std::vector<int> stuck() const {
    return scheduler_.stuck() ? std::vector<int>{id_of(scheduler_.stuck())} : std::vector<int>{};
  }
  std::vector<std::tuple<std::size_t, std::int32_t, std::int32_t>> copies() const {
    std::vector<std::tuple<std::size_t, std::int32_t, std::int32_t>> all;
    for (const PageCopy& copy : scheduler_.copies()) all.emplace_back(copy.pool, copy.from, copy.to);
    return all;
  }
  /// `accepted` by id: how many tokens of its draft were right.
  void advance(const std::map<int, std::int32_t>& accepted) {
    std::vector<std::int32_t> counts;
    for (const ScheduledRows& rows : scheduler_.picked()) {
      Sequence& sequence = *rows.sequence;
      const std::int32_t drafted = std::max(0, rows.first + rows.count - sequence.num_tokens());
      const auto found = accepted.find(id_of(&sequence));
      const std::int32_t right = found == accepted.end() ? 0 : std::min(found->second, drafted);
      sequence.tokens.insert(sequence.tokens.end(), sequence.draft.begin(), sequence.draft.begin() + right);
      counts.push_back(rows.count - drafted + right);
    }
    scheduler_.advance(counts);
  }
  void abandon(bool copied) { scheduler_.abandon(copied); }
  void draft(int id, std::vector<std::int32_t> tokens) { get(id).draft = std::move(tokens); }
  void append(int id, std::int32_t token) {
    Sequence& sequence = get(id);
    sequence.tokens.push_back(token);
    sequence.output_from = sequence.num_tokens() - 1;
  }
  void retire(int id) {
    scheduler_.retire(get(id));
    sequences_.erase(id);
  }
  void remove(int id) {
    scheduler_.remove(get(id));
    sequences_.erase(id);
  }
  Sequence& get(int id) const {
    const auto found = sequences_.find(id);
    if (found == sequences_.end()) throw ArgumentError("there is no sequence " + std::to_string(id));
    return *found->second;
  }

 private:
  int id_of(const Sequence* sequence) const {
    for (const auto& [id, s] : sequences_) {
      if (s.get() == sequence) return id;
    }
    return -1;
  }

  KvCache cache_;
  Scheduler scheduler_;
  std::map<int, std::unique_ptr<Sequence>> sequences_;
  int next_ = 0;
};

}  // namespace

void bind_scheduler(py::module_& m) {
  py::class_<KvPages>(m, "KvPages")
      .def(py::init<std::int32_t>(), "limit"_a)
      .def_property("limit", &KvPages::limit, &KvPages::set_limit)
      .def_property_readonly("num_free", &KvPages::num_free)
      .def_property_readonly("num_in_use", &KvPages::num_in_use)
      .def_property_readonly("high_water", &KvPages::high_water)
      .def("allocate", &KvPages::allocate)
      .def_property_readonly("num_idle", &KvPages::num_idle)
      .def("share", &KvPages::share, "page"_a)
      .def("release", &KvPages::release, "page"_a)
      .def("keep", &KvPages::keep, "page"_a)
      .def("let_go", &KvPages::let_go, "page"_a)
      .def("references", &KvPages::references, "page"_a);

  py::class_<NumberedRows>(m, "ScheduledRows")
      .def_readonly("id", &NumberedRows::id)
      .def_readonly("first", &NumberedRows::first)
      .def_readonly("count", &NumberedRows::count)
      .def_readonly("num_outputs", &NumberedRows::num_outputs)
      .def_readonly("pages", &NumberedRows::pages);

  py::class_<NumberedScheduler>(m, "Scheduler")
      .def(py::init([](std::int32_t max_tokens, std::int32_t max_outputs, std::int32_t max_sequences,
                       const std::vector<std::int32_t>& page_limits, const std::vector<std::int32_t>& windows) {
             return std::make_unique<NumberedScheduler>(SchedulerLimits{max_tokens, max_outputs, max_sequences},
                                                        windows, page_limits);
           }),
           py::kw_only(), "max_tokens"_a, "max_outputs"_a, "max_sequences"_a, "page_limits"_a,
           "windows"_a = std::vector<std::int32_t>{0})
      .def(
          "pages", [](NumberedScheduler& s, std::size_t pool) -> KvPages& { return s.cache().pages(pool); },
          "pool"_a = 0, py::return_value_policy::reference_internal)
      .def_property_readonly("num_indexed", [](NumberedScheduler& s) { return s.cache().index().num_nodes(); })
      .def_property_readonly("num_running", [](const NumberedScheduler& s) { return s.scheduler().num_running(); })
      .def_property_readonly("num_waiting", [](const NumberedScheduler& s) { return s.scheduler().num_waiting(); })
      .def(
          "add",
          [](NumberedScheduler& s, const py::object& tokens, std::optional<std::int32_t> output_from, bool background,
             const std::string& context_key) {
            return s.add(to_tokens(tokens, "tokens"), output_from, background, context_key);
          },
          "tokens"_a, py::kw_only(), "output_from"_a = py::none(), "background"_a = false,
          "context_key"_a = py::bytes())
      .def("pick", &NumberedScheduler::pick)
      .def("stuck", &NumberedScheduler::stuck)
      .def("copies", &NumberedScheduler::copies)
      .def("advance", &NumberedScheduler::advance, "accepted"_a = std::map<int, std::int32_t>())
      .def("abandon", &NumberedScheduler::abandon, "copied"_a = true)
      .def("draft", &NumberedScheduler::draft, "id"_a, "tokens"_a)
      .def("append", &NumberedScheduler::append, "id"_a, "token"_a)
      .def("retire", &NumberedScheduler::retire, "id"_a)
      .def("remove", &NumberedScheduler::remove, "id"_a)
      .def(
          "num_computed", [](const NumberedScheduler& s, int id) { return s.get(id).num_computed; }, "id"_a)
      .def(
          "num_reused", [](const NumberedScheduler& s, int id) { return s.get(id).num_reused; }, "id"_a)
      .def("page_tables", [](const NumberedScheduler& s, int id) { return s.get(id).pages; }, "id"_a);
}

}  // namespace sterna::bindings
