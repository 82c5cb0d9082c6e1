/// From tensors of a file to packed matrices and vectors of floats.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "cpu/thread_pool.h"
#include "plan/tensor_source.h"
#include "program/program.h"
#include "quant/layout.h"

namespace sterna::cpu {

/// Which of a program's values are weights that nodes multiply by ([n, k] or [experts, n, k]), and which are read as
/// floats, some of them with their columns as rows.
struct WeightUses {
  std::vector<bool> matrices, floats, columns;

  /// Throws UnsupportedModelError for a weight that is read by rows and by columns.
  explicit WeightUses(const Program& program);
};

std::size_t element_count(const Value& value);
/// Before anything is allocated: what is read as floats may be as large as a program says. Throws MemoryBudgetError.
void check_room(const Program& program, const WeightUses& uses);
/// The numbers of a tensor, with its columns as rows where `by_columns`. Throws UnsupportedModelError when one is not
/// finite or the format holds no vectors, and what the source throws.
std::vector<float> read_floats(const Value& value, bool by_columns, const TensorSource& source);

/// The matrices of a tensor [n, k] or [experts, n, k], without their bytes.
std::vector<PackedMatrix> describe_matrices(const Value& value);
/// Bytes of a packed matrix, rounded up to what buffers are aligned to.
std::size_t aligned_bytes(const PackedMatrix& matrix);
/// Tells all matrices of a tensor the scale behind its blocks, if it has one. Throws UnsupportedModelError.
void read_tensor_scale(const std::string& name, std::span<PackedMatrix> matrices, const TensorSource& source);

/// A run of panels of one matrix: what a worker takes at a time.
struct PackJob {
  std::string_view name;
  PackedMatrix* matrix;
  std::int64_t offset;  // of the matrix in its tensor
  std::int64_t first_panel;
  std::int64_t last_panel;  // excluded
};

/// Those of all matrices of a tensor, whose bytes are there.
void add_jobs(std::string_view name, std::span<PackedMatrix> matrices, std::vector<PackJob>& jobs);
/// Reads and packs all panels, in parallel: the worker that packs a panel is the first to touch its memory. Throws
/// UnsupportedModelError naming tensor and place of a scale or number that is not finite, and what the source throws.
void pack_all(std::span<const PackJob> jobs, const TensorSource& source, ThreadPool& pool);

}  // namespace sterna::cpu
