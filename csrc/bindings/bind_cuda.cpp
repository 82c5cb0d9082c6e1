/// CUDA devices, and programs compiled for one.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <span>

#include "bindings/bindings.h"
#include "bindings/plan_arguments.h"
#include "cuda/cuda_plan.h"
#include "cuda/device.h"

namespace py = pybind11;

namespace sterna::bindings {
namespace {

py::list devices() {
  std::span<const cuda::FoundDevice> found;
  {
    const GilRelease release;
    found = cuda::found_devices();
  }
  py::list list;
  for (const auto& [info, problem] : found) {
    py::dict device;
    device["number"] = list.size();
    device["name"] = std::string(info.name);
    device["compute_capability"] = std::to_string(info.major) + "." + std::to_string(info.minor);
    device["multiprocessors"] = info.multiprocessors;
    device["total_bytes"] = info.total_bytes;
    device["problem"] = problem;
    list.append(device);
  }
  return list;
}

cuda::CudaPlanOptions options_from(const std::string& kv_dtype, std::int32_t max_tokens, std::int32_t max_outputs) {
  cuda::CudaPlanOptions options;
  options.kv_type = kv_type_from(kv_dtype);
  options.max_tokens = max_tokens;
  options.max_outputs = max_outputs;
  return options;
}

}  // namespace

void bind_cuda(py::module_& m) {
  m.def(
      "cuda_problem",
      [] {
        const GilRelease release;
        return cuda::device_problem();
      },
      "Why no CUDA device can be used, in a sentence; empty when one can.");
  m.def("cuda_devices", &devices,
        "number, name, compute_capability, multiprocessors and total_bytes of each CUDA device, and why it cannot be "
        "used, or \"\".");
  m.def(
      "cuda_free_bytes",
      [](int device) {
        const GilRelease release;
        return cuda::free_bytes(device);
      },
      py::arg("device"), "Bytes that a CUDA device has free; starts it. DeviceError.");

  py::class_<cuda::CudaPlan, ProgramPlan, std::shared_ptr<cuda::CudaPlan>>(m, "CudaPlan")
      .def_property_readonly("device", &cuda::CudaPlan::device, "Number and name: \"cuda:0 (NVIDIA H200)\".")
      .def(
          "time_kernels",
          [](cuda::CudaPlan& plan, int repetitions) {
            std::vector<cuda::KernelTime> times;
            {
              const GilRelease release;
              times = plan.time_kernels(repetitions);
            }
            py::dict seconds;
            for (const auto& [name, steps, own] : times) seconds[name.c_str()] = py::make_tuple(steps, own);
            return seconds;
          },
          py::arg("repetitions") = 20,
          "By kernel, and for \"all\": how many steps of the last run, and the seconds that they add to it.");

  m.def(
      "plan_memory_cuda",
      [](const Program& program, const std::optional<int> device, const std::string& kv_dtype, std::int32_t max_tokens,
         std::int32_t max_outputs) {
        cuda::CudaPlanOptions options = options_from(kv_dtype, max_tokens, max_outputs);
        options.device = device.value_or(-1);
        const PlanMemory memory = cuda::plan_memory(program, options);
        return py::make_tuple(memory.weights, memory.scratch, pools_of(memory));
      },
      py::arg("program"), py::kw_only(), py::arg("device") = py::none(), py::arg("kv_dtype") = "f16",
      py::arg("max_tokens") = 512, py::arg("max_outputs") = 64,
      "Bytes of weights and scratch that compile_cuda with these arguments will hold on its device, and (window, bytes "
      "of a page) of each pool of the KV cache; needs no device, and starts none.");

  m.def(
      "compile_cuda",
      [](const Program& program, const py::object& source, int device, const std::string& kv_dtype,
         std::int32_t max_tokens, std::int32_t max_outputs, bool keep_values,
         const std::vector<std::shared_ptr<GgufModel>>& adapters, int threads) {
        cuda::CudaPlanOptions options = options_from(kv_dtype, max_tokens, max_outputs);
        options.device = device;
        options.threads = threads;
        options.keep_values = keep_values;
        const std::unique_ptr<TensorSource> tensors = tensor_source(source, adapters);
        const GilRelease release;
        return cuda::CudaPlan::make(program, *tensors, options);
      },
      py::arg("program"), py::arg("source"), py::kw_only(), py::arg("device") = 0, py::arg("kv_dtype") = "f16",
      py::arg("max_tokens") = 512, py::arg("max_outputs") = 64, py::arg("keep_values") = false,
      py::arg("adapters") = std::vector<std::shared_ptr<GgufModel>>(), py::arg("threads") = 0,
      "Compiles a program for a CUDA device, `threads` packing its weights; otherwise as compile_cpu. DeviceError.");
}

}  // namespace sterna::bindings
