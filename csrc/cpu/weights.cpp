#include "cpu/weights.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <exception>
#include <mutex>

#include "base/error.h"
#include "base/float_mode.h"

namespace sterna::cpu {
namespace {

/// Bytes that a worker reads from the file at once.
constexpr std::int64_t kReadBytes = std::int64_t{1} << 20;

/// A run of panels of one matrix: what a worker takes at a time.
struct PackJob {
  std::string_view name;
  PackedMatrix* matrix;
  std::int64_t first_panel;
  std::int64_t last_panel;  // excluded
};

[[noreturn]] void not_finite(std::string_view name) {
  throw UnsupportedModelError("tensor " + std::string(name) + " holds a NaN or infinite number");
}

void pack(const PackJob& job, const TensorSource& source, std::vector<std::uint8_t>& bytes) {
  PackedMatrix& matrix = *job.matrix;
  const std::int64_t row_bytes = matrix.k / matrix.format->block_size * matrix.format->block_bytes;
  const std::int64_t first_row = job.first_panel * kPanelRows;
  const std::int64_t last_row = std::min(job.last_panel * kPanelRows, matrix.n);
  bytes.resize(static_cast<std::size_t>((last_row - first_row) * row_bytes));
  source.read(job.name, static_cast<std::uint64_t>(first_row * row_bytes), bytes);
  for (std::int64_t panel = job.first_panel; panel < job.last_panel; ++panel) {
    const auto begin = static_cast<std::size_t>((panel * kPanelRows - first_row) * row_bytes);
    const auto end = std::min(bytes.size(), begin + static_cast<std::size_t>(kPanelRows * row_bytes));
    if (!pack_panel(matrix, panel, std::span(bytes).subspan(begin, end - begin))) not_finite(job.name);
  }
}

std::size_t element_count(const Value& value) {
  std::size_t count = 1;
  for (const Dim& dim : value.shape) count *= static_cast<std::size_t>(dim.size);
  return count;
}

std::vector<float> read_vector(const Value& value, const TensorSource& source) {
  const Format& format = *find_format(static_cast<std::uint32_t>(value.format));
  const auto count = static_cast<std::int64_t>(element_count(value));
  if (format.dequantize == nullptr || count % format.block_size != 0) {
    throw UnsupportedModelError("tensor " + value.name + " has format " + std::string(format.name) +
                                ", which holds no vector of floats");
  }
  std::vector<std::uint8_t> bytes(static_cast<std::size_t>(count / format.block_size * format.block_bytes));
  source.read(value.name, 0, bytes);
  std::vector<float> vector(static_cast<std::size_t>(count));
  for (std::int64_t b = 0; b < count / format.block_size; ++b) {
    format.dequantize(bytes.data() + b * format.block_bytes, vector.data() + b * format.block_size);
  }
  if (!std::all_of(vector.begin(), vector.end(), [](float x) { return std::isfinite(x); })) not_finite(value.name);
  return vector;
}

}  // namespace

Weights::Weights(const Program& program, const TensorSource& source, ThreadPool& pool) {
  const FloatMode mode;
  std::vector<PackJob> jobs;
  for (const Value& value : program.values) {
    if (value.kind != ValueKind::kWeight) continue;
    if (value.shape.size() != 2) {
      vectors_.emplace(value.name, read_vector(value, source));
      continue;
    }
    const Format& format = *find_format(static_cast<std::uint32_t>(value.format));
    auto [entry, added] = matrices_.emplace(value.name, make_matrix(format, value.shape[0].size, value.shape[1].size));
    PackedMatrix& matrix = entry->second;
    const std::int64_t source_panel = matrix.k / format.block_size * format.block_bytes * kPanelRows;
    const std::int64_t step = std::max<std::int64_t>(1, kReadBytes / source_panel);
    for (std::int64_t panel = 0; panel < matrix.panels(); panel += step) {
      jobs.push_back({entry->first, &matrix, panel, std::min(panel + step, matrix.panels())});
    }
  }

  std::atomic<std::size_t> next{0};
  std::mutex failure_mutex;
  std::exception_ptr failure;
  pool.run([&](int) {
    try {
      std::vector<std::uint8_t> bytes;
      for (std::size_t i = next.fetch_add(1); i < jobs.size(); i = next.fetch_add(1)) pack(jobs[i], source, bytes);
    } catch (...) {
      next.store(jobs.size());
      const std::lock_guard lock(failure_mutex);
      if (!failure) failure = std::current_exception();
    }
  });
  if (failure) std::rethrow_exception(failure);
  for (auto& [name, matrix] : matrices_) finish_matrix(matrix);
}

Weights::Weights(const Program& program) {
  for (const Value& value : program.values) {
    if (value.kind != ValueKind::kWeight) continue;
    if (value.shape.size() == 2) {
      const Format& format = *find_format(static_cast<std::uint32_t>(value.format));
      matrices_.emplace(value.name, describe_matrix(format, value.shape[0].size, value.shape[1].size));
    } else {
      vectors_.emplace(value.name, std::vector<float>(element_count(value), 1.0f));
    }
  }
}

std::uint64_t Weights::bytes() const {
  std::uint64_t total = 0;
  for (const auto& [name, matrix] : matrices_)
    total += static_cast<std::uint64_t>(matrix.panels() * matrix.panel_bytes);
  for (const auto& [name, vector] : vectors_) total += vector.size() * sizeof(float);
  return total;
}

std::map<std::string, int> Weights::layouts() const {
  std::map<std::string, int> counts;
  for (const auto& [name, matrix] : matrices_) ++counts[std::string(layout_name(matrix.layout))];
  return counts;
}

}  // namespace sterna::cpu
