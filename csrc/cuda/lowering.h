/// From a Program's nodes to the steps of a CUDA plan. One function per op, in one table; an op without an entry fails
/// at load.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "cuda/arguments.h"
#include "cuda/device.h"
#include "cuda/kv_storage.h"
#include "cuda/weights.h"
#include "plan/buffer_plan.h"
#include "plan/node_kinds.h"
#include "program/program.h"

namespace sterna::cuda {

struct Step {
  Kernel kernel;
  const void* arguments;
  std::int32_t most_rows_without = 0;  // launches of up to so many rows leave it out
  bool outputs = false;                // those are rows of outputs

  bool is_left_out(const Launch& launch) const {
    return most_rows_without > 0 && (outputs ? launch.num_outputs : launch.num_tokens) <= most_rows_without;
  }
};

/// Small tables that steps read, in device memory: those with equal bytes are held once.
class Constants {
 public:
  /// Without a device nothing is copied, and addresses are null.
  explicit Constants(std::shared_ptr<const Device> device) : device_(std::move(device)) {}

  const Device* device() const { return device_.get(); }

  template <class T>
  const T* add(const std::vector<T>& values) {
    return reinterpret_cast<const T*>(add(values.data(), values.size() * sizeof(T)));
  }

 private:
  const std::uint8_t* add(const void* data, std::uint64_t bytes);

  std::shared_ptr<const Device> device_;
  std::map<std::string, DeviceMemory> tables_;
};

class Lowering : public BufferPlan {
 public:
  /// `kv` is null where only memory is planned.
  Lowering(const Program& program, const Weights& weights, const sterna::KvLayout& layout, const KvStorage* kv,
           Constants& constants, const Limits& limits)
      : BufferPlan(program, limits), weights_(weights), layout_(layout), kv_(kv), constants_(constants) {}

  /// Lowers the function's nodes. Throws UnsupportedModelError naming op, node and source line.
  void lower(const Function& function);

  const std::vector<Step>& steps() const { return steps_; }
  /// Keeps the steps' arguments alive; the plan takes them over.
  std::deque<std::shared_ptr<void>> take_arguments() { return std::move(arguments_); }
  /// The buffer that must be zero when a run begins; -1: none.
  int zeroed() const { return zeroed_; }

  // What the per-op functions use.
  const Weights::Matrices& matrices(ValueId weight) const { return weights_.matrices(program().value(weight).name); }
  /// In device memory; null where the node has no such operand.
  const float* vector(const Node& node, std::string_view role) const;
  const float* vector(ValueId weight) const { return weights_.vector(program().value(weight).name); }
  const std::vector<float>& host_vector(ValueId weight) const {
    return weights_.host_vector(program().value(weight).name);
  }
  std::int64_t vector_size(ValueId weight) const { return static_cast<std::int64_t>(host_vector(weight).size()); }
  KvLayer kv_layer(std::int64_t layer) const;
  std::int64_t state_offset(const Node& node) const { return layout_.state_offset(node.integer("layer"), node.op); }
  Constants& constants() { return constants_; }

  /// Arguments of a step to be added; addresses stay fixed.
  template <class T>
  T& make() {
    auto argument = std::make_shared<T>(T{});
    T& reference = *argument;
    arguments_.push_back(std::move(argument));
    return reference;
  }
  void add(const Step& step);
  void add(Kernel kernel, const void* arguments) { add(Step{kernel, arguments}); }
  /// Memory that is zero when a run begins, by a name of what it holds, which all users of the name find as the others
  /// leave it.
  template <class T>
  void bind_zeroed(T*& pointer, const std::string& name, std::int64_t bytes) {
    const std::int64_t offset = zeroed_offset(name, bytes);
    bind(pointer, zeroed_, offset);
  }
  /// The step added next, which writes `value`, is to leave its rows' maxima if a matmul can do something with them.
  void leave_maxima(ValueId value, RowMaxima& maxima);
  /// For so many rows they are left.
  std::int32_t rows_with_maxima(ValueId value) const;
  /// The step added next reads or leaves them.
  void bind_maxima(ValueId value, RowMaxima& maxima);

  /// Cosines and sines for a rope, computed once per run for all nodes that share them.
  void bind_rope(HeadTransform& transform, const Node& node, std::string_view prefix);

 private:
  std::int64_t zeroed_offset(const std::string& name, std::int64_t bytes);

  const Weights& weights_;
  const sterna::KvLayout& layout_;
  const KvStorage* kv_;
  Constants& constants_;
  std::vector<Step> steps_;
  std::deque<std::shared_ptr<void>> arguments_;
  const Function* function_ = nullptr;
  int zeroed_ = -1;
  std::map<std::string, std::int64_t> zeroed_offsets_;  // by name
  std::map<ValueId, std::int32_t> maxima_;              // values whose maxima are left, for so many rows
};

using LowerFunction = void (*)(Lowering& lowering, const Node& node);
/// The op's lowering, or null when the backend has none.
LowerFunction find_lowering(std::string_view op);

void lower_linear(Lowering& lowering, const Node& node);
void lower_head_linear(Lowering& lowering, const Node& node);
void lower_unembed(Lowering& lowering, const Node& node);
void lower_rope(Lowering& lowering, const Node& node);
void lower_store_kv(Lowering& lowering, const Node& node);
void lower_attention(Lowering& lowering, const Node& node);
void lower_short_conv(Lowering& lowering, const Node& node);
void lower_ssm_scan(Lowering& lowering, const Node& node);
void lower_delta_rule(Lowering& lowering, const Node& node);
void lower_route(Lowering& lowering, const Node& node);
void lower_expert_glu(Lowering& lowering, const Node& node);

/// Whether the node is a linear one whose matmul can prepare few rows itself, from their maxima.
bool can_prepare(const Lowering& lowering, const Node& node);

/// The form in which rows meet a matrix's layout under the node's attribute "activation".
PreparedForm prepared_form(const Node& node, const Weights::Matrices& w);

}  // namespace sterna::cuda
