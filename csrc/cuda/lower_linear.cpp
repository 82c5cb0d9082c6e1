/// Lowers what multiplies by matrices: one step that prepares the rows for all weights of a form, and one that
/// multiplies by several of them.
#include <algorithm>

#include "cuda/lowering.h"
#include "plan/node_kinds.h"

namespace sterna::cuda {
namespace {

struct Prepared {
  PreparedRows rows;
  int buffer;    // below 0: none, the matmul takes the floats as they are
  Place floats;  // where they are, if so
};

/// Whether rows of `x` are prepared already: floats, without a norm, whose k needs no padding.
bool is_prepared(const Node& node, const Place& x, std::int64_t k, PreparedForm form) {
  return form == PreparedForm::kFloat && node.input("norm") == kNoValue && k % kUnit == 0 && x.offset % 4 == 0 &&
         x.stride % 4 == 0;
}

/// Rows of x, or their `parts`, for weights of a form. Up to `most_rows_without` of them the matmul prepares itself.
Prepared prepare(Lowering& lowering, const Node& node, const Place& x, std::int64_t k, std::int64_t parts,
                 PreparedForm form, std::int32_t most_rows_without = 0) {
  PreparedRows to{};
  to.k = (k + kUnit - 1) / kUnit * kUnit;
  to.max_rows = lowering.max_rows(x.outputs) * parts;
  to.form = form;
  if (parts == 1 && is_prepared(node, x, k, form)) return {to, -1, x};
  auto& a = lowering.make<PrepareArguments>();
  a.norm = lowering.vector(node, "norm");
  a.eps = a.norm == nullptr ? 0.0f : static_cast<float>(node.number("eps"));
  a.k = k;
  a.parts = parts;
  a.to = to;
  const int buffer = lowering.temporary(a.to.bytes());
  lowering.bind(a.x, x);
  lowering.bind(a.to.base, buffer);
  lowering.add({Kernel::kPrepare, &a, most_rows_without, x.outputs});
  return {a.to, buffer, {}};
}

/// A matmul of prepared rows; its products are to be added.
MatmulArguments& matmul(Lowering& lowering, const Prepared& x) {
  auto& a = lowering.make<MatmulArguments>();
  a.kind = MatmulKind::kPlain;
  a.num_products = 0;
  a.x = x.rows;
  if (x.buffer < 0) {
    lowering.bind(a.rows, x.floats);
  } else {
    lowering.bind(a.x.base, x.buffer);
  }
  return a;
}

void add_product(Lowering& lowering, MatmulArguments& a, const DeviceMatrix& w, const float* bias, ValueId residual,
                 const Place& y) {
  Product& product = a.products[a.num_products++];
  product.w = w;
  product.bias = bias;
  if (residual != kNoValue) lowering.bind(product.residual, residual);
  lowering.bind(product.y, y);
}

/// y of one product of prepared rows.
void multiply(Lowering& lowering, const Prepared& x, const DeviceMatrix& w, const float* bias, ValueId residual,
              const Place& y) {
  MatmulArguments& a = matmul(lowering, x);
  add_product(lowering, a, w, bias, residual, y);
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
      MatmulArguments& a = matmul(lowering, rows);
      add_product(lowering, a, gate, bias(0), residual, lowering.define(node.outputs[0]));
      a.up = up;
      a.up_bias = bias(1);
      a.glu = activation_kind(node, "glu");
      if (gate.layout != LayoutId::kF32) lowering.leave_maxima(node.outputs[0], a.y_maxima);
      lowering.add(Kernel::kMatmul, &a);
      return;
    }
    // Of two layouts: each alone, then the gate.
    Place parts[2];
    for (std::size_t i = 0; i < 2; ++i) {
      const Weights::Matrices& w = lowering.matrices(weights[i]);
      const Prepared rows = prepare(lowering, node, x, k, 1, prepared_form(node, w));
      parts[i] = lowering.temporary_rows(w.first.n, x.outputs);
      multiply(lowering, rows, w.first, bias(i), kNoValue, parts[i]);
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
    const std::int32_t prepares = can_prepare(lowering, node) ? lowering.rows_with_maxima(node.input("x")) : 0;
    const Prepared rows = prepare(lowering, node, x, k, 1, form, prepares);
    MatmulArguments* a = nullptr;
    const auto add = [&] {
      if (a == nullptr) return;
      lowering.touch(x);  // while results are written, for those that prepare after this
      lowering.add(Kernel::kMatmul, a);
      a = nullptr;
    };
    for (std::size_t i = 0; i < weights.size(); ++i) {
      const Weights::Matrices& w = lowering.matrices(weights[i]);
      if (prepared_form(node, w) != form) continue;
      if (a == nullptr) a = &matmul(lowering, rows);
      const bool is_last = i + 1 == weights.size();
      add_product(lowering, *a, w.first, bias(i), is_last ? residual : kNoValue, lowering.define(node.outputs[i]));
      if (prepares > 0) {
        lowering.bind_maxima(node.input("x"), a->maxima);
        lowering.bind(a->rows, x);
      }
      if (a->num_products == kMaxProducts) add();
    }
    add();
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

bool can_prepare(const Lowering& lowering, const Node& node) {
  if (node.op != "linear" || node.input("norm") != kNoValue) return false;
  const std::vector<ValueId> weights = node.input_list("w");
  if (weights.size() != 1) return false;
  const PreparedForm form = prepared_form(node, lowering.matrices(weights[0]));
  return form == PreparedForm::kHalf || form == PreparedForm::kInt8;
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
  a.products[0].w = w.first;
  a.x = rows.rows;
  lowering.bind(a.x.base, rows.buffer);
  lowering.bind(a.products[0].y, lowering.define(node.outputs[0]));
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
