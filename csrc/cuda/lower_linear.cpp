/// Lowers what multiplies by matrices: one step that prepares the rows for all weights of a form, one for each weight.
#include <algorithm>

#include "cuda/lowering.h"
#include "plan/node_kinds.h"

namespace sterna::cuda {
namespace {

struct Prepared {
  PreparedRows rows;
  int buffer;
};

/// Rows of x, or their `parts`, for weights of a form.
Prepared prepare(Lowering& lowering, const Node& node, const Place& x, std::int64_t k, std::int64_t parts,
                 PreparedForm form) {
  auto& a = lowering.make<PrepareArguments>();
  a.norm = lowering.vector(node, "norm");
  a.eps = a.norm == nullptr ? 0.0f : static_cast<float>(node.number("eps"));
  a.k = k;
  a.parts = parts;
  a.to.k = (k + kUnit - 1) / kUnit * kUnit;
  a.to.max_rows = lowering.max_rows(x.outputs) * parts;
  a.to.form = form;
  const int buffer = lowering.temporary(a.to.bytes());
  lowering.bind(a.x, x);
  lowering.bind(a.to.base, buffer);
  lowering.add(Kernel::kPrepare, &a);
  return {a.to, buffer};
}

/// One matmul of prepared rows into `y`; w and up, which may be null, have one layout.
void multiply(Lowering& lowering, const Prepared& x, const DeviceMatrix& w, const DeviceMatrix* up,
              const float* const (&biases)[2], const Node& node, ValueId residual, const Place& y) {
  auto& a = lowering.make<MatmulArguments>();
  a.kind = MatmulKind::kPlain;
  a.w = w;
  a.bias = biases[0];
  if (up != nullptr) {
    a.up = *up;
    a.up_bias = biases[1];
    a.glu = activation_kind(node, "glu");
  }
  a.x = x.rows;
  lowering.bind(a.x.base, x.buffer);
  if (residual != kNoValue) lowering.bind(a.residual, residual);
  lowering.bind(a.y, y);
  lowering.add(Kernel::kMatmul, &a);
}

/// Multiplies the rows at x by the node's weights.
void lower_matmul(Lowering& lowering, const Node& node, const Place& x) {
  const std::vector<ValueId> weights = node.input_list("w");
  const std::vector<ValueId> biases = node.input_list("bias");
  const ValueId residual = node.input("residual");
  const std::int64_t k = lowering.row_size(node.input("x"));
  const auto bias = [&](std::size_t i) { return biases.empty() ? nullptr : lowering.vector(biases[i]); };

  std::vector<PreparedForm> forms;  // distinct, in order of appearance
  for (const ValueId w : weights) {
    const PreparedForm form = prepared_form(node, lowering.matrices(w));
    if (std::find(forms.begin(), forms.end(), form) == forms.end()) forms.push_back(form);
  }
  if (node.has("glu")) {
    const DeviceMatrix& gate = lowering.matrices(weights[0]).first;
    const DeviceMatrix& up = lowering.matrices(weights[1]).first;
    if (forms.size() == 1 && gate.layout == up.layout) {
      const Prepared rows = prepare(lowering, node, x, k, 1, forms[0]);
      multiply(lowering, rows, gate, &up, {bias(0), bias(1)}, node, residual, lowering.define(node.outputs[0]));
      return;
    }
    // Of two layouts: each alone, then the gate.
    Place parts[2];
    for (std::size_t i = 0; i < 2; ++i) {
      const Weights::Matrices& w = lowering.matrices(weights[i]);
      const Prepared rows = prepare(lowering, node, x, k, 1, prepared_form(node, w));
      parts[i] = lowering.temporary_rows(w.first.n, x.outputs);
      multiply(lowering, rows, w.first, nullptr, {bias(i), nullptr}, node, kNoValue, parts[i]);
    }
    auto& a = lowering.make<GluArguments>();
    a.n = gate.n;
    a.kind = activation_kind(node, "glu");
    lowering.bind(a.gate, parts[0]);
    lowering.bind(a.up, parts[1]);
    const Place y = lowering.define(node.outputs[0]);
    lowering.bind(a.y, y);
    lowering.add(Kernel::kGlu, &a);
    if (residual == kNoValue) return;
    auto& sum = lowering.make<BinaryArguments>();
    sum.n = sum.period = gate.n;
    lowering.bind(sum.a, y);
    lowering.bind(sum.b, residual);
    lowering.bind(sum.y, y);
    lowering.add(Kernel::kBinary, &sum);
    return;
  }
  for (const PreparedForm form : forms) {
    const Prepared rows = prepare(lowering, node, x, k, 1, form);
    for (std::size_t i = 0; i < weights.size(); ++i) {
      const Weights::Matrices& w = lowering.matrices(weights[i]);
      if (prepared_form(node, w) != form) continue;
      const bool is_last = i + 1 == weights.size();
      lowering.touch(x);  // while results are written, for those that prepare after this
      multiply(lowering, rows, w.first, nullptr, {bias(i), nullptr}, node, is_last ? residual : kNoValue,
               lowering.define(node.outputs[i]));
    }
  }
}

}  // namespace

PreparedForm prepared_form(const Node& node, const Weights::Matrices& w) {
  switch (w.first.layout) {
    case LayoutId::kF32:
      return PreparedForm::kFloat;
    case LayoutId::kF16:
      return PreparedForm::kTwoHalves;
    case LayoutId::kBF16:
      return PreparedForm::kTwoBfloats;
    default:
      return node.text("activation") == "int8_per_token" ? PreparedForm::kInt8 : PreparedForm::kHalf;
  }
}

void lower_linear(Lowering& lowering, const Node& node) {
  lower_matmul(lowering, node, lowering.place_of(node.input("x")));
}

void lower_head_linear(Lowering& lowering, const Node& node) {
  const ValueId x = node.input("x");
  const Weights::Matrices& w = lowering.matrices(node.input("w"));
  const Prepared rows = prepare(lowering, node, lowering.place_of(x), w.first.k, w.count, prepared_form(node, w));
  auto& a = lowering.make<MatmulArguments>();
  a.kind = MatmulKind::kHeads;
  a.heads = w.count;
  a.w = w.first;
  a.x = rows.rows;
  lowering.bind(a.x.base, rows.buffer);
  lowering.bind(a.y, lowering.define(node.outputs[0]));
  lowering.add(Kernel::kMatmul, &a);
}

/// Only the wanted rows are multiplied: the rest of [T, k] is left out here where no pass has done it before.
void lower_unembed(Lowering& lowering, const Node& node) {
  const Place x = lowering.place_of(node.input("x"));
  if (x.outputs) {
    lower_matmul(lowering, node, x);
    return;
  }
  auto& a = lowering.make<CopyArguments>();
  a.n = lowering.row_size(node.input("x"));
  const Place rows = lowering.temporary_rows(a.n, true);
  lowering.bind(a.x, x);
  lowering.bind(a.y, rows);
  lowering.add(Kernel::kTakeRows, &a);
  lower_matmul(lowering, node, rows);
}

}  // namespace sterna::cuda
