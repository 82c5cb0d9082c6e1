/// The packed weights of a plan.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "base/buffer.h"
#include "cpu/thread_pool.h"
#include "plan/tensor_source.h"
#include "program/program.h"
#include "quant/layout.h"

namespace sterna::cpu {

/// Matrices packed to panels in one allocation, vectors and what nodes read as such as floats; each tensor is held
/// once, however many nodes use it.
class Weights {
 public:
  /// Reads and packs every weight that the program's values name, panels in parallel. Throws UnsupportedModelError when
  /// a scale or a number is NaN or infinite, naming the tensor; MemoryBudgetError; what the source throws.
  Weights(const Program& program, const TensorSource& source, ThreadPool& pool);
  /// Shapes and layouts only, and ones in the place of floats: enough to lower a program and to plan its memory. Throws
  /// MemoryBudgetError where even the floats cannot fit, UnsupportedModelError for one that is read in two ways.
  explicit Weights(const Program& program);

  const PackedMatrix& matrix(const std::string& name) const { return matrices_.at(name).front(); }
  /// The matrices of a tensor [experts, n, k].
  std::span<const PackedMatrix> experts(const std::string& name) const { return matrices_.at(name); }
  const std::vector<float>& vector(const std::string& name) const { return vectors_.at(name); }
  std::uint64_t bytes() const;
  /// Layout names with how many matrices each holds.
  std::map<std::string, int> layouts() const;

 private:
  /// Bytes of all matrices, one behind the other.
  std::size_t slab_bytes() const;

  Buffer slab_;
  std::map<std::string, std::vector<PackedMatrix>> matrices_;  // one each, or one for each expert
  std::map<std::string, std::vector<float>> vectors_;
};

}  // namespace sterna::cpu
