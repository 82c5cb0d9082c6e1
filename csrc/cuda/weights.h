/// The weights of a plan in device memory: packed by the core, brought into the device's order there.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "cpu/thread_pool.h"
#include "cuda/arguments.h"
#include "cuda/device.h"
#include "plan/tensor_source.h"
#include "program/program.h"

namespace sterna::cuda {

class Weights {
 public:
  /// A tensor's matrices: one, or one for each expert or head, matrix_bytes apart.
  struct Matrices {
    DeviceMatrix first;
    std::int64_t count;
    ScaleKind scales;  // of the file's format
  };

  /// Reads, packs and copies every weight that the program's values name, one tensor after the other. Throws
  /// UnsupportedModelError naming the tensor, MemoryBudgetError, DeviceError, and what the source throws.
  Weights(const Program& program, const TensorSource& source, cpu::ThreadPool& pool,
          std::shared_ptr<const Device> device);
  /// Shapes and layouts only: enough to lower a program and to plan its memory.
  explicit Weights(const Program& program);

  /// Throws UnsupportedModelError naming tensor, node and device where it cannot multiply by one.
  void check_device(const Program& program, int number, const DeviceInfo& info) const;

  const Matrices& matrices(const std::string& name) const { return matrices_.at(name); }
  /// In device memory; null where there is none.
  const float* vector(const std::string& name) const { return vectors_.at(name).device; }
  /// The same on the host.
  const std::vector<float>& host_vector(const std::string& name) const { return vectors_.at(name).host; }
  std::uint64_t bytes() const { return bytes_; }
  /// Layout names with how many matrices each holds.
  std::map<std::string, int> layouts() const;

 private:
  struct Vector {
    std::vector<float> host;
    const float* device = nullptr;
  };

  std::map<std::string, Matrices> matrices_;
  std::map<std::string, Vector> vectors_;
  std::deque<DeviceMemory> memory_;
  std::uint64_t bytes_ = 0;
};

}  // namespace sterna::cuda
