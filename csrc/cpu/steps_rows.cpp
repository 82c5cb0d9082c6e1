/// Row-wise steps.
#include <algorithm>
#include <cstring>

#include "cpu/rope_table.h"
#include "cpu/steps.h"

namespace sterna::cpu {
namespace {

/// Calls fn(row) for every row of the batch, shared out.
template <class Fn>
void each_row(const StepContext& context, bool outputs, Fn fn) {
  const std::int64_t count = context.rows(outputs);
  context.share(count, context.row_piece(count), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) fn(row);
  });
}

}  // namespace

void run_embed(const void* arguments, const StepContext& context) {
  const auto& step = *static_cast<const EmbedStep*>(arguments);
  const Batch& batch = *context.batch;
  each_row(context, false, [&](std::int64_t row) {
    const auto at = static_cast<std::size_t>(row);
    std::int32_t id = batch.tokens[at];
    if (step.ids == EmbeddedIds::kPositions) id = batch.positions[at];
    if (step.ids == EmbeddedIds::kTokenTypes) id = 0;  // every text is one segment
    if (id >= 0 || !step.is_first) {
      dequantize_row(*step.w, std::max(id, 0), step.y.row(row));
    } else {
      const SequenceContext& given = *batch.context(batch.sequences[at]);
      std::copy_n(given.embeddings.data() + (-1 - std::int64_t{id}) * step.w->k, step.w->k, step.y.row(row));
    }
  });
}

void run_norm(const void* arguments, const StepContext& context) {
  const auto& step = *static_cast<const NormStep*>(arguments);
  each_row(context, step.x.outputs, [&](std::int64_t row) {
    float* y = step.y.row(row);
    for (std::int64_t h = 0; h < step.heads; ++h) {
      context.kernels->rms_norm(step.x.row(row) + h * step.n, step.weight, y + h * step.n, step.n, step.eps);
    }
    if (step.residual.data != nullptr) context.kernels->add(y, step.residual.row(row), y, step.heads * step.n);
  });
}

void run_layer_norm(const void* arguments, const StepContext& context) {
  const auto& step = *static_cast<const LayerNormStep*>(arguments);
  each_row(context, step.x.outputs, [&](std::int64_t row) {
    for (std::int64_t h = 0; h < step.heads; ++h) {
      const float* weight = step.weight == nullptr ? nullptr : step.weight + h * step.head_step;
      const float* bias = step.bias == nullptr ? nullptr : step.bias + h * step.head_step;
      context.kernels->layer_norm(step.x.row(row) + h * step.n, weight, bias, step.y.row(row) + h * step.n, step.n,
                                  step.eps);
    }
  });
}

void run_binary(const void* arguments, const StepContext& context) {
  const auto& step = *static_cast<const BinaryStep*>(arguments);
  const auto apply = step.kind == BinaryKind::kAdd ? context.kernels->add : context.kernels->mul;
  each_row(context, step.a.outputs, [&](std::int64_t row) {
    const float* a = step.a.row(row);
    float* y = step.y.row(row);
    if (step.weight == nullptr) {
      if (step.period == step.n) {
        apply(a, step.b.row(row), y, step.n);
      } else {
        context.kernels->scale(a, *step.b.row(row), y, step.n);
      }
    } else if (step.period == 1) {
      for (std::int64_t i = 0; i < step.n; ++i)
        y[i] = step.kind == BinaryKind::kAdd ? a[i] + *step.weight : a[i] * *step.weight;
    } else {
      for (std::int64_t i = 0; i < step.n; i += step.period) apply(a + i, step.weight, y + i, step.period);
    }
  });
}

void run_lora(const void* arguments, const StepContext& context) {
  const auto& step = *static_cast<const LoraStep*>(arguments);
  const Batch& batch = *context.batch;
  if (batch.contexts.empty()) return;
  // Of few rows, the results are shared out: each part computes the few products of the first matrix for itself.
  const std::int64_t count = context.rows(step.y.outputs);
  const std::int64_t parts = count >= context.num_workers ? 1 : context.num_workers;
  const std::int64_t width = (step.n / parts + 15) / 16 * 16;
  float* t = reinterpret_cast<float*>(context.scratch->floats.data());
  context.share(count * parts, context.row_piece(count * parts), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t row = i / parts;
      const auto at = static_cast<std::size_t>(row);
      const std::int32_t token_row = step.y.outputs ? batch.output_rows[at] : static_cast<std::int32_t>(row);
      const SequenceContext* wanted = batch.context(batch.sequences[static_cast<std::size_t>(token_row)]);
      const std::int64_t first = i % parts * width;
      if (wanted == nullptr || wanted->adapter != step.adapter || first >= step.n) continue;
      const std::int64_t last = i % parts == parts - 1 ? step.n : std::min(first + width, step.n);
      context.kernels->lora_down(step.x.row(row), step.a, step.k, step.rank, wanted->adapter_scale * step.factor, t);
      context.kernels->lora_up(t, step.rank, step.b + first, step.n, step.y.row(row) + first, last - first);
    }
  });
}

void run_scale(const void* arguments, const StepContext& context) {
  const auto& step = *static_cast<const ScaleStep*>(arguments);
  each_row(context, step.x.outputs,
           [&](std::int64_t row) { context.kernels->scale(step.x.row(row), step.operand, step.y.row(row), step.n); });
}

void run_clamp(const void* arguments, const StepContext& context) {
  const auto& step = *static_cast<const ScaleStep*>(arguments);
  each_row(context, step.x.outputs,
           [&](std::int64_t row) { context.kernels->clamp(step.x.row(row), step.operand, step.y.row(row), step.n); });
}

void run_activation(const void* arguments, const StepContext& context) {
  const auto& step = *static_cast<const ActivationStep*>(arguments);
  const auto apply = context.kernels->activation[static_cast<int>(step.kind)];
  each_row(context, step.x.outputs, [&](std::int64_t row) { apply(step.x.row(row), step.y.row(row), step.n); });
}

void run_glu(const void* arguments, const StepContext& context) {
  const auto& step = *static_cast<const GluStep*>(arguments);
  const auto apply = context.kernels->glu[static_cast<int>(step.kind)];
  each_row(context, step.gate.outputs,
           [&](std::int64_t row) { apply(step.gate.row(row), step.up.row(row), step.y.row(row), step.n); });
}

void run_copy(const void* arguments, const StepContext& context) {
  const auto& step = *static_cast<const CopyStep*>(arguments);
  each_row(context, step.x.outputs, [&](std::int64_t row) {
    for (std::int64_t h = 0; h < step.heads; ++h) {
      std::memcpy(step.y.row(row) + h * step.y_apart, step.x.row(row) + h * step.x_apart,
                  static_cast<std::size_t>(step.n) * sizeof(float));
    }
  });
}

void run_take_rows(const void* arguments, const StepContext& context) {
  const auto& step = *static_cast<const CopyStep*>(arguments);
  each_row(context, true, [&](std::int64_t row) {
    const float* x = step.x.row(context.batch->output_rows[static_cast<std::size_t>(row)]);
    std::memcpy(step.y.row(row), x, static_cast<std::size_t>(step.n) * sizeof(float));
  });
}

void run_receive(const void* arguments, const StepContext& context) {
  const auto& step = *static_cast<const ReceiveStep*>(arguments);
  each_row(context, false, [&](std::int64_t row) {
    const float* x = context.batch->received.data() + row * step.row_floats + step.first;
    std::memcpy(step.y.row(row), x, static_cast<std::size_t>(step.n) * sizeof(float));
  });
}

void run_pool(const void* arguments, const StepContext& context) {
  const auto& step = *static_cast<const PoolStep*>(arguments);
  const Batch& batch = *context.batch;
  each_row(context, true, [&](std::int64_t row) {
    const std::int64_t last = batch.output_rows[static_cast<std::size_t>(row)];
    std::int64_t first = last;
    const auto sequence = [&](std::int64_t r) { return batch.sequences[static_cast<std::size_t>(r)]; };
    while (step.kind != PoolKind::kLast && first > 0 && sequence(first - 1) == sequence(last)) --first;
    float* y = step.y.row(row);
    std::memcpy(y, step.x.row(first), static_cast<std::size_t>(step.n) * sizeof(float));
    if (step.kind != PoolKind::kMean) return;
    for (std::int64_t r = first + 1; r <= last; ++r) context.kernels->add(y, step.x.row(r), y, step.n);
    context.kernels->scale(y, 1.0f / static_cast<float>(last - first + 1), y, step.n);
  });
}

void run_rope_table(const void* arguments, const StepContext& context) {
  const auto& step = *static_cast<const RopeTableStep*>(arguments);
  each_row(context, false, [&](std::int64_t row) {
    const auto t = static_cast<std::size_t>(row);
    const bool is_long = !step.long_frequencies.empty() && context.batch->is_long(context.batch->sequences[t]);
    rope_angles(context.batch->positions[t], is_long ? step.long_frequencies : step.frequencies, step.factor,
                step.cosines.row(row), step.sines.row(row));
  });
}

}  // namespace sterna::cpu
