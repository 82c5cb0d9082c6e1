#include "cuda/weights.h"

#include <algorithm>

#include "base/error.h"
#include "base/float_mode.h"
#include "cpu/tensor_packing.h"
#include "plan/node_kinds.h"

namespace sterna::cuda {
namespace {

std::uint64_t aligned(std::uint64_t bytes) { return (bytes + 255) / 256 * 256; }

/// The layout in which the core hands a matrix over: formats that it keeps as they are come unpacked.
LayoutId handed_layout(LayoutId layout) { return layout == LayoutId::kNative ? LayoutId::kUnpacked : layout; }

Weights::Matrices describe(const Value& value, std::uint64_t& bytes) {
  const std::vector<PackedMatrix> packed = cpu::describe_matrices(value);
  const PackedMatrix& first = packed.front();
  Weights::Matrices matrices{};
  matrices.count = static_cast<std::int64_t>(packed.size());
  matrices.scales = first.format->scales;
  DeviceMatrix& w = matrices.first;
  w.layout = device_layout(handed_layout(first.layout));
  w.n = first.n;
  w.k = first.k;
  w.factor = 1.0f;
  w.panel_bytes = device_panel_bytes(w.layout, w.k);
  w.matrix_bytes = static_cast<std::int64_t>(aligned(static_cast<std::uint64_t>(first.panels() * w.panel_bytes)));
  bytes += static_cast<std::uint64_t>(matrices.count * w.matrix_bytes);
  return matrices;
}

/// Carries packed matrices to the device through two pieces of memory there and one here.
class Upload {
 public:
  explicit Upload(std::shared_ptr<const Device> device) : device_(std::move(device)) {}

  void matrix(const PackedMatrix& packed, const DeviceMatrix& w, std::uint8_t* to) {
    const bool is_native = packed.layout == LayoutId::kNative;
    const LayoutId layout = handed_layout(packed.layout);
    const std::int64_t panel_bytes = is_native ? device_panel_bytes(layout, packed.k) : packed.panel_bytes;
    const std::int64_t at_once = std::max<std::int64_t>(1, kPieceBytes / panel_bytes);
    for (std::int64_t first = 0; first < packed.panels(); first += at_once) {
      const std::int64_t count = std::min(at_once, packed.panels() - first);
      const auto bytes = static_cast<std::uint64_t>(count * panel_bytes);
      if (staged_.size() < bytes) {
        device_->synchronize();  // the one that is there may be in use
        staged_ = DeviceMemory(device_, bytes);
      }
      const std::uint8_t* from = packed.panel(first);
      if (is_native) {
        device_->synchronize();  // the copy before reads it
        unpacked_.resize(bytes);
        for (std::int64_t i = 0; i < count; ++i) {
          unpack_native_panel(packed, first + i, unpacked_.data() + i * panel_bytes);
        }
        from = unpacked_.data();
      }
      device_->copy(staged_.data(), from, bytes);
      const RepackArguments a = {staged_.data(), to + first * w.panel_bytes, count, packed.k, layout};
      device_->launch(Kernel::kRepack, &a, {device_->stream(), nullptr, 0, 0, 0});
    }
  }

 private:
  static constexpr std::int64_t kPieceBytes = std::int64_t{64} << 20;

  std::shared_ptr<const Device> device_;
  DeviceMemory staged_;
  std::vector<std::uint8_t> unpacked_;
};

}  // namespace

Weights::Weights(const Program& program, const TensorSource& source, cpu::ThreadPool& pool,
                 std::shared_ptr<const Device> device)
    : Weights(program) {
  check_device(program, device->number(), device->info());
  const FloatMode mode;
  const cpu::WeightUses uses(program);
  std::map<std::string, bool> is_done;
  Upload upload(device);
  for (std::size_t id = 0; id < program.values.size(); ++id) {
    const Value& value = program.values[id];
    if (uses.floats[id]) {
      Vector& vector = vectors_.at(value.name);
      vector.host = cpu::read_floats(value, uses.columns[id], source);
      const DeviceMemory& memory = memory_.emplace_back(device, vector.host.size() * sizeof(float));
      device->copy(memory.data(), vector.host.data(), vector.host.size() * sizeof(float));
      vector.device = memory.as<float>();
    }
    if (!uses.matrices[id] || is_done[value.name]) continue;
    is_done[value.name] = true;
    Matrices& matrices = matrices_.at(value.name);
    std::vector<PackedMatrix> packed = cpu::describe_matrices(value);
    std::size_t bytes = 0;
    for (const PackedMatrix& matrix : packed) bytes += cpu::aligned_bytes(matrix);
    Buffer host(bytes);
    std::span<std::uint8_t> left = host.span();
    for (PackedMatrix& matrix : packed) {
      matrix.bytes = left.first(static_cast<std::size_t>(matrix.panels() * matrix.panel_bytes));
      left = left.subspan(cpu::aligned_bytes(matrix));
    }
    cpu::read_tensor_scale(value.name, packed, source);
    std::vector<cpu::PackJob> jobs;
    cpu::add_jobs(value.name, packed, jobs);
    cpu::pack_all(jobs, source, pool);
    matrices.first.factor = packed.front().factor;
    const DeviceMemory& memory =
        memory_.emplace_back(device, static_cast<std::uint64_t>(matrices.count * matrices.first.matrix_bytes));
    matrices.first.panels = memory.data();
    for (std::size_t i = 0; i < packed.size(); ++i) {
      upload.matrix(packed[i], matrices.first,
                    memory.data() + static_cast<std::int64_t>(i) * matrices.first.matrix_bytes);
    }
    device->synchronize();  // the host's memory goes
  }
  device->synchronize();
}

Weights::Weights(const Program& program) {
  const cpu::WeightUses uses(program);
  cpu::check_room(program, uses);
  for (std::size_t id = 0; id < program.values.size(); ++id) {
    const Value& value = program.values[id];
    if (uses.floats[id] && !vectors_.contains(value.name)) {
      vectors_[value.name].host.assign(cpu::element_count(value), 1.0f);
      bytes_ += aligned(cpu::element_count(value) * sizeof(float));
    }
    if (uses.matrices[id] && !matrices_.contains(value.name)) matrices_[value.name] = describe(value, bytes_);
  }
}

void Weights::check_device(const Program& program, int number, const DeviceInfo& info) const {
  constexpr int kFirstMajorWithBfloats = 8;
  constexpr std::string_view kMultiplying[] = {"linear", "head_linear", "unembed", "expert_glu"};
  if (info.major >= kFirstMajorWithBfloats) return;
  for (const Function& function : program.functions) {
    for (const Node& node : function.nodes) {
      if (std::ranges::find(kMultiplying, node.op) == std::ranges::end(kMultiplying)) continue;
      for (const Operand& operand : node.inputs) {
        const std::string& name = program.value(operand.value).name;
        const auto found = matrices_.find(name);
        if (found == matrices_.end() || found->second.first.layout != LayoutId::kBF16) continue;
        unsupported(node, "tensor " + name + " holds bfloat16 numbers, which " + device_title(number, info) +
                              " cannot multiply");
      }
    }
  }
}

std::map<std::string, int> Weights::layouts() const {
  std::map<std::string, int> counts;
  for (const auto& [name, matrices] : matrices_) {
    counts[std::string(layout_name(matrices.first.layout))] += static_cast<int>(matrices.count);
  }
  return counts;
}

}  // namespace sterna::cuda
