/// KvPages and Scheduler in Python, over sequences known by number: for property tests of the engine's own code.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <memory>
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
  std::vector<std::int32_t> pages;
};

class NumberedScheduler {
 public:
  NumberedScheduler(SchedulerLimits limits, std::int32_t page_limit) : pages_(page_limit), scheduler_(limits, pages_) {}

  KvPages& pages() { return pages_; }
  const Scheduler& scheduler() const { return scheduler_; }

  int add(std::vector<std::int32_t> tokens, std::optional<std::int32_t> output_from, std::optional<int> source) {
    if (tokens.empty()) throw ArgumentError("there are no tokens");
    auto sequence = std::make_unique<Sequence>();
    const auto last = static_cast<std::int32_t>(tokens.size()) - 1;
    if (source) {
      *sequence = fork_sequence(get(*source), pages_);
      truncate_cache(*sequence, std::min(common_prefix(sequence->tokens, tokens), last), pages_);
    }
    sequence->tokens = std::move(tokens);
    sequence->output_from = output_from.value_or(last);
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
  void advance() { scheduler_.advance(); }
  void abandon() { scheduler_.abandon(); }
  void append(int id, std::int32_t token) {
    Sequence& sequence = get(id);
    sequence.tokens.push_back(token);
    sequence.output_from = sequence.num_tokens() - 1;
  }
  void park(int id) { scheduler_.park(get(id)); }
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

  KvPages pages_;
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
      .def("share", &KvPages::share, "page"_a)
      .def("release", &KvPages::release, "page"_a)
      .def("references", &KvPages::references, "page"_a);

  py::class_<NumberedRows>(m, "ScheduledRows")
      .def_readonly("id", &NumberedRows::id)
      .def_readonly("first", &NumberedRows::first)
      .def_readonly("count", &NumberedRows::count)
      .def_readonly("num_outputs", &NumberedRows::num_outputs)
      .def_readonly("pages", &NumberedRows::pages);

  py::class_<NumberedScheduler>(m, "Scheduler")
      .def(py::init([](std::int32_t max_tokens, std::int32_t max_outputs, std::int32_t max_sequences,
                       std::int32_t page_limit) {
             return std::make_unique<NumberedScheduler>(SchedulerLimits{max_tokens, max_outputs, max_sequences},
                                                        page_limit);
           }),
           py::kw_only(), "max_tokens"_a, "max_outputs"_a, "max_sequences"_a, "page_limit"_a)
      .def_property_readonly("pages", &NumberedScheduler::pages, py::return_value_policy::reference_internal)
      .def_property_readonly("num_running", [](const NumberedScheduler& s) { return s.scheduler().num_running(); })
      .def_property_readonly("num_waiting", [](const NumberedScheduler& s) { return s.scheduler().num_waiting(); })
      .def(
          "add",
          [](NumberedScheduler& s, const py::object& tokens, std::optional<std::int32_t> output_from,
             std::optional<int> source) { return s.add(to_tokens(tokens, "tokens"), output_from, source); },
          "tokens"_a, py::kw_only(), "output_from"_a = py::none(), "source"_a = py::none())
      .def("pick", &NumberedScheduler::pick)
      .def("stuck", &NumberedScheduler::stuck)
      .def("advance", &NumberedScheduler::advance)
      .def("abandon", &NumberedScheduler::abandon)
      .def("append", &NumberedScheduler::append, "id"_a, "token"_a)
      .def("park", &NumberedScheduler::park, "id"_a)
      .def("remove", &NumberedScheduler::remove, "id"_a)
      .def(
          "num_computed", [](const NumberedScheduler& s, int id) { return s.get(id).num_computed; }, "id"_a)
      .def("page_table", [](const NumberedScheduler& s, int id) { return s.get(id).pages; }, "id"_a);
}

}  // namespace sterna::bindings
