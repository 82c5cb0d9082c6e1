/// The machine's limits and the self-test of the kernels in Python.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "base/error.h"
#include "bindings/bindings.h"
#include "cpu/cores.h"
#include "cpu/cpu_plan.h"
#include "cpu/isa.h"
#include "cpu/machine.h"
#include "cpu/self_test.h"

namespace py = pybind11;

namespace sterna::bindings {
namespace {

int at_least_one(int repetitions) {
  if (repetitions < 1) throw ArgumentError("repetitions is " + std::to_string(repetitions) + ", must be at least 1");
  return repetitions;
}

std::unique_ptr<cpu::Machine> make_machine(int threads, const std::string& isa, std::int64_t buffer_bytes) {
  if (threads < 0 || threads > 4096) {
    throw ArgumentError("threads is " + std::to_string(threads) + ", must be 0 to 4096");
  }
  const GilRelease release;
  return std::make_unique<cpu::Machine>(threads == 0 ? cpu::available_cpus() : threads,
                                        isa.empty() ? cpu::chosen_level() : isa, buffer_bytes);
}

std::vector<std::tuple<int, bool, double>> read_speeds(cpu::Machine& machine, int repetitions) {
  std::vector<std::tuple<int, bool, double>> speeds;
  for (const cpu::ReadSpeed& speed : machine.read_speeds(at_least_one(repetitions))) {
    speeds.emplace_back(speed.streams, speed.prefetch, speed.bytes_per_second);
  }
  return speeds;
}

std::vector<std::tuple<std::string, int, std::string>> check_kernels(const std::string& isa, std::uint64_t seed) {
  std::vector<std::tuple<std::string, int, std::string>> found;
  for (cpu::KernelCheck& check : cpu::check_kernels(cpu::kernel_table(isa), cpu::kernel_table("scalar"), seed)) {
    found.emplace_back(check.family, check.cases, std::move(check.mismatch));
  }
  return found;
}

}  // namespace

void bind_machine(py::module_& m) {
  py::class_<cpu::Machine>(m, "Machine")
      .def(py::init(&make_machine), py::kw_only(), py::arg("threads") = 0, py::arg("isa") = "",
           py::arg("buffer_bytes") = std::int64_t{1} << 30)
      .def_property_readonly("threads", &cpu::Machine::threads)
      .def_property_readonly("buffer_bytes", &cpu::Machine::buffer_bytes)
      .def("read_speeds", &read_speeds, py::arg("repetitions") = 5, py::call_guard<GilRelease>(),
           "(streams, prefetch, bytes per second) of each read pattern.")
      .def(
          "macs_per_second",
          [](cpu::Machine& machine, int repetitions) { return machine.macs_per_second(at_least_one(repetitions)); },
          py::arg("repetitions") = 5, py::call_guard<GilRelease>(), "Byte multiply-accumulates per second.");

  m.def("check_kernels", &check_kernels, py::arg("isa"), py::arg("seed") = std::uint64_t{0},
        py::call_guard<GilRelease>(), "(family, cases, first mismatch) of a level's kernels held against scalar's.");
}

}  // namespace sterna::bindings
