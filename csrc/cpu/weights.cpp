#include "cpu/weights.h"

#include <algorithm>

#include "base/float_mode.h"
#include "cpu/tensor_packing.h"

namespace sterna::cpu {

Weights::Weights(const Program& program, const TensorSource& source, ThreadPool& pool) : Weights(program) {
  const FloatMode mode;
  slab_ = Buffer(slab_bytes());
  std::span<std::uint8_t> left = slab_.span();
  std::vector<PackJob> jobs;
  const WeightUses uses(program);
  // In the order of the program, which is about that of the file and of a run.
  for (std::size_t id = 0; id < program.values.size(); ++id) {
    const Value& value = program.values[id];
    if (uses.floats[id]) vectors_[value.name] = read_floats(value, uses.columns[id], source);
    if (!uses.matrices[id]) continue;
    auto& [name, matrices] = *matrices_.find(value.name);
    if (!matrices[0].bytes.empty()) continue;
    read_tensor_scale(name, matrices, source);
    for (PackedMatrix& matrix : matrices) {
      matrix.bytes = left.first(static_cast<std::size_t>(matrix.panels() * matrix.panel_bytes));
      left = left.subspan(aligned_bytes(matrix));
    }
    add_jobs(name, matrices, jobs);
  }
  pack_all(jobs, source, pool);
  for (auto& [name, matrices] : matrices_) std::ranges::for_each(matrices, finish_matrix);
}

Weights::Weights(const Program& program) {
  const WeightUses uses(program);
  check_room(program, uses);
  for (std::size_t id = 0; id < program.values.size(); ++id) {
    const Value& value = program.values[id];
    if (uses.floats[id]) vectors_.emplace(value.name, std::vector<float>(element_count(value), 1.0f));
    if (uses.matrices[id]) matrices_.try_emplace(value.name, describe_matrices(value));
  }
}

std::size_t Weights::slab_bytes() const {
  std::size_t total = 0;
  for (const auto& [name, matrices] : matrices_) {
    for (const PackedMatrix& matrix : matrices) total += aligned_bytes(matrix);
  }
  return total;
}

std::uint64_t Weights::bytes() const {
  std::uint64_t total = slab_bytes();
  for (const auto& [name, vector] : vectors_) total += vector.size() * sizeof(float);
  return total;
}

std::map<std::string, int> Weights::layouts() const {
  std::map<std::string, int> counts;
  for (const auto& [name, matrices] : matrices_) {
    for (const PackedMatrix& matrix : matrices) ++counts[std::string(layout_name(matrix.layout))];
  }
  return counts;
}

}  // namespace sterna::cpu
