#include "cpu/tensor_packing.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <exception>
#include <mutex>

#include "base/buffer.h"
#include "base/error.h"
#include "program/op_table.h"

namespace sterna::cpu {
namespace {

/// Bytes that a worker reads from the file at once: packing finds them in the second-level cache.
constexpr std::int64_t kReadBytes = std::int64_t{256} << 10;

std::int64_t row_bytes(const PackedMatrix& matrix) {
  return matrix.k / matrix.format->block_size * matrix.format->block_bytes;
}

[[noreturn]] void fault(std::string_view name, const std::string& what) {
  throw UnsupportedModelError("tensor " + std::string(name) + " holds " + what);
}

/// `bytes` holds the rows of one job or more.
void pack(const PackJob& job, const TensorSource& source, std::span<std::uint8_t> bytes) {
  PackedMatrix& matrix = *job.matrix;
  const std::int64_t first_row = job.first_panel * kPanelRows;
  const std::int64_t last_row = std::min(job.last_panel * kPanelRows, matrix.n);
  const auto panel_size = static_cast<std::size_t>(kPanelRows * row_bytes(matrix));
  bytes = bytes.first(static_cast<std::size_t>((last_row - first_row) * row_bytes(matrix)));
  source.read(job.name, static_cast<std::uint64_t>(job.offset + first_row * row_bytes(matrix)), bytes);
  for (std::int64_t panel = job.first_panel; panel < job.last_panel; ++panel) {
    const std::span<std::uint8_t> rows = bytes.first(std::min(bytes.size(), panel_size));
    bytes = bytes.subspan(rows.size());
    if (!pack_panel(matrix, panel, rows)) fault(job.name, find_fault(matrix, panel * kPanelRows, rows));
  }
}

std::vector<float> transposed(const std::vector<float>& matrix, const Shape& shape) {
  const auto rows = static_cast<std::size_t>(shape[0].size);
  const auto columns = static_cast<std::size_t>(shape[1].size);
  std::vector<float> result(matrix.size());
  for (std::size_t i = 0; i < rows; ++i) {
    for (std::size_t j = 0; j < columns; ++j) result[j * rows + i] = matrix[i * columns + j];
  }
  return result;
}

}  // namespace

WeightUses::WeightUses(const Program& program)
    : matrices(program.values.size()), floats(program.values.size()), columns(program.values.size()) {
  std::vector<bool> rows(program.values.size());
  const auto has_rows = [&](std::size_t id) { return program.values[id].shape.size() > 1; };
  for (const Function& function : program.functions) {
    for (const Node& node : function.nodes) {
      const std::vector<RoleSpec>& roles = find_op(node.op)->roles;
      for (const Operand& operand : node.inputs) {
        const auto id = static_cast<std::size_t>(operand.value);
        if (program.values[id].kind != ValueKind::kWeight) continue;
        const auto role = std::ranges::find(roles, operand.role, &RoleSpec::name);
        const bool plain = role->kind == RoleKind::kFloats || role->kind == RoleKind::kFloatColumns;
        (!plain && has_rows(id) ? matrices : floats)[id] = true;
        if (!plain) continue;
        const bool by_columns = role->kind == RoleKind::kFloatColumns;
        (by_columns ? columns : rows)[id] = true;
        if (columns[id] && rows[id]) {
          throw UnsupportedModelError(node.op + " " + node.name + ": weight " + program.values[id].name +
                                      " is read by rows and by columns (" + node.source + ")");
        }
      }
    }
  }
  for (std::size_t id = 0; id < matrices.size(); ++id) {  // those that no node reads
    if (program.values[id].kind != ValueKind::kWeight || matrices[id] || floats[id]) continue;
    (has_rows(id) ? matrices : floats)[id] = true;
  }
}

std::size_t element_count(const Value& value) {
  std::size_t count = 1;
  for (const Dim& dim : value.shape) count *= static_cast<std::size_t>(dim.size);
  return count;
}

void check_room(const Program& program, const WeightUses& uses) {
  std::size_t bytes = 0;
  for (std::size_t id = 0; id < program.values.size(); ++id) {
    if (uses.floats[id]) bytes += element_count(program.values[id]) * sizeof(float);
  }
  if (bytes > physical_memory()) {
    throw MemoryBudgetError("weights that are read as floats take " + std::to_string(bytes) +
                            " bytes, more than the memory of this machine");
  }
}

std::vector<float> read_floats(const Value& value, bool by_columns, const TensorSource& source) {
  const Format& format = *find_format(static_cast<std::uint32_t>(value.format));
  const auto count = static_cast<std::int64_t>(element_count(value));
  if (format.dequantize == nullptr || format.tail_bytes != 0 || count % format.block_size != 0) {
    throw UnsupportedModelError("tensor " + value.name + " has format " + std::string(format.name) +
                                ", which holds no vector of floats");
  }
  std::vector<std::uint8_t> bytes(static_cast<std::size_t>(count / format.block_size * format.block_bytes));
  source.read(value.name, 0, bytes);
  std::vector<float> vector(static_cast<std::size_t>(count));
  for (std::int64_t b = 0; b < count / format.block_size; ++b) {
    format.dequantize(bytes.data() + b * format.block_bytes, vector.data() + b * format.block_size);
  }
  if (!std::all_of(vector.begin(), vector.end(), [](float x) { return std::isfinite(x); })) {
    fault(value.name, "a NaN or infinite number");
  }
  return by_columns ? transposed(vector, value.shape) : vector;
}

std::vector<PackedMatrix> describe_matrices(const Value& value) {
  const Format& format = *find_format(static_cast<std::uint32_t>(value.format));
  const std::size_t rank = value.shape.size();
  const std::int64_t count = rank == 2 ? 1 : value.shape[0].size;
  std::vector<PackedMatrix> matrices;
  for (std::int64_t i = 0; i < count; ++i) {
    matrices.push_back(describe_matrix(format, value.shape[rank - 2].size, value.shape[rank - 1].size));
  }
  return matrices;
}

std::size_t aligned_bytes(const PackedMatrix& matrix) {
  const auto bytes = static_cast<std::size_t>(matrix.panels() * matrix.panel_bytes);
  return (bytes + Buffer::kAlignment - 1) / Buffer::kAlignment * Buffer::kAlignment;
}

void read_tensor_scale(const std::string& name, std::span<PackedMatrix> matrices, const TensorSource& source) {
  const std::uint32_t tail_bytes = matrices[0].format->tail_bytes;
  if (tail_bytes == 0) return;
  std::int64_t offset = 0;
  for (const PackedMatrix& matrix : matrices) offset += matrix.n * row_bytes(matrix);
  std::vector<std::uint8_t> tail(tail_bytes);
  source.read(name, static_cast<std::uint64_t>(offset), tail);
  for (PackedMatrix& matrix : matrices) {
    if (!set_tensor_scale(matrix, tail)) fault(name, "a scale behind its codes that is NaN or infinite");
  }
}

void add_jobs(std::string_view name, std::span<PackedMatrix> matrices, std::vector<PackJob>& jobs) {
  std::int64_t offset = 0;
  for (PackedMatrix& matrix : matrices) {
    const std::int64_t step = std::max<std::int64_t>(1, kReadBytes / (kPanelRows * row_bytes(matrix)));
    for (std::int64_t panel = 0; panel < matrix.panels(); panel += step) {
      jobs.push_back({name, &matrix, offset, panel, std::min(panel + step, matrix.panels())});
    }
    offset += matrix.n * row_bytes(matrix);
  }
}

void pack_all(std::span<const PackJob> jobs, const TensorSource& source, ThreadPool& pool) {
  std::int64_t most = 0;
  for (const PackJob& job : jobs)
    most = std::max(most, (job.last_panel - job.first_panel) * kPanelRows * row_bytes(*job.matrix));
  std::atomic<std::size_t> next{0};
  std::mutex failure_mutex;
  std::exception_ptr failure;
  pool.run([&](int) {
    try {
      Buffer bytes(static_cast<std::size_t>(most));
      for (std::size_t i = next.fetch_add(1); i < jobs.size(); i = next.fetch_add(1))
        pack(jobs[i], source, bytes.span());
    } catch (...) {
      next.store(jobs.size());
      const std::lock_guard lock(failure_mutex);
      if (!failure) failure = std::current_exception();
    }
  });
  if (failure) std::rethrow_exception(failure);
}

}  // namespace sterna::cpu
