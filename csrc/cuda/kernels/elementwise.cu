/// What is done to each float of a row alone, copies of rows, and pools of a sequence's rows; all with the CPU's bits.
///
/// Memory bounds these kernels. A block takes kThreads * kEach neighbouring floats of one row, each thread floats that
/// lie kThreads apart: warps read whole lines wherever rows begin, and kEach loads a thread keep memory busy.
#include "cuda/kernels/activations.cuh"
#include "cuda/kernels/device.cuh"
#include "cuda/kernels/launchers.h"

namespace sterna::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kEach = 4;

struct Operands {
  float a, b;
};

/// store(row, i, load(batch, row, i)) of an Op for i below n, fewer than 2^31, of every row: all loads first.
template <class Op>
__global__ void __launch_bounds__(kThreads)
    each_float(Op op, DeviceBatch batch, bool outputs, std::int32_t n, std::int32_t parts) {
  wait_for_previous();
  let_next_begin();
  const std::int32_t row = static_cast<std::int32_t>(blockIdx.x) / parts;
  if (row >= num_rows(batch, outputs)) return;
  const std::int32_t first = static_cast<std::int32_t>(blockIdx.x) % parts * (kThreads * kEach);
  Operands operands[kEach];
#pragma unroll
  for (int j = 0; j < kEach; ++j) {
    const std::int32_t i = first + j * kThreads + static_cast<std::int32_t>(threadIdx.x);
    if (i < n) operands[j] = op.load(batch, row, i);
  }
#pragma unroll
  for (int j = 0; j < kEach; ++j) {
    const std::int32_t i = first + j * kThreads + static_cast<std::int32_t>(threadIdx.x);
    if (i < n) op.store(row, i, operands[j]);
  }
}

template <class Op>
Status launch_each(const Op& op, bool outputs, std::int64_t n, const Launch& launch) {
  const std::int64_t parts = (n + kThreads * kEach - 1) / (kThreads * kEach);
  const auto blocks = static_cast<unsigned>(max_rows(launch, outputs) * parts);
  return cuda::launch(each_float<Op>, blocks, kThreads, 0, launch.stream, op, *launch.batch, outputs,
                      static_cast<std::int32_t>(n), static_cast<std::int32_t>(parts));
}

struct Binary {
  BinaryArguments a;

  __device__ Operands load(const DeviceBatch&, std::int32_t row, std::int32_t i) const {
    const float* b = a.weight != nullptr ? a.weight : row_of(a.b, row);
    const auto at = static_cast<std::uint32_t>(i);
    return {row_of(a.a, row)[i], b[a.period == a.n ? at : at % static_cast<std::uint32_t>(a.period)]};
  }
  __device__ void store(std::int32_t row, std::int32_t i, Operands x) const {
    row_of(a.y, row)[i] = a.multiplies ? x.a * x.b : x.a + x.b;
  }
};

struct Scale {
  ScaleArguments a;

  __device__ Operands load(const DeviceBatch&, std::int32_t row, std::int32_t i) const {
    return {row_of(a.x, row)[i], 0.0f};
  }
  __device__ void store(std::int32_t row, std::int32_t i, Operands x) const { row_of(a.y, row)[i] = x.a * a.operand; }
};

struct Clamp {
  ScaleArguments a;

  __device__ Operands load(const DeviceBatch&, std::int32_t row, std::int32_t i) const {
    return {row_of(a.x, row)[i], 0.0f};
  }
  __device__ void store(std::int32_t row, std::int32_t i, Operands x) const {
    const float below = a.operand < x.a ? a.operand : x.a;  // a NaN stays one
    row_of(a.y, row)[i] = -a.operand > below ? -a.operand : below;
  }
};

struct Activation {
  ActivationArguments a;

  __device__ Operands load(const DeviceBatch&, std::int32_t row, std::int32_t i) const {
    return {row_of(a.x, row)[i], 0.0f};
  }
  __device__ void store(std::int32_t row, std::int32_t i, Operands x) const {
    row_of(a.y, row)[i] = activate(a.kind, x.a);
  }
};

struct Glu {
  GluArguments a;

  __device__ Operands load(const DeviceBatch&, std::int32_t row, std::int32_t i) const {
    return {row_of(a.gate, row)[i], row_of(a.up, row)[i]};
  }
  __device__ void store(std::int32_t row, std::int32_t i, Operands x) const {
    row_of(a.y, row)[i] = gate(a.kind, x.a, x.b);
  }
};

struct Copy {
  CopyArguments a;

  /// Float i of all heads' is one of head i / n.
  __device__ std::int64_t head_of(std::int32_t i) const {
    return a.heads == 1 ? 0 : static_cast<std::uint32_t>(i) / static_cast<std::uint32_t>(a.n);
  }
  __device__ Operands load(const DeviceBatch&, std::int32_t row, std::int32_t i) const {
    const std::int64_t head = head_of(i);
    return {row_of(a.x, row)[head * a.x_apart + (i - head * a.n)], 0.0f};
  }
  __device__ void store(std::int32_t row, std::int32_t i, Operands x) const {
    const std::int64_t head = head_of(i);
    row_of(a.y, row)[head * a.y_apart + (i - head * a.n)] = x.a;
  }
};

struct TakeRows {
  CopyArguments a;

  __device__ Operands load(const DeviceBatch& batch, std::int32_t row, std::int32_t i) const {
    return {row_of(a.x, batch.output_rows[row])[i], 0.0f};
  }
  __device__ void store(std::int32_t row, std::int32_t i, Operands x) const { row_of(a.y, row)[i] = x.a; }
};

struct Receive {
  ReceiveArguments a;

  __device__ Operands load(const DeviceBatch& batch, std::int32_t row, std::int32_t i) const {
    return {batch.received[row * a.row_floats + a.first + i], 0.0f};
  }
  __device__ void store(std::int32_t row, std::int32_t i, Operands x) const { row_of(a.y, row)[i] = x.a; }
};

/// A thread for each float of the result: rows are added in order, so many of them read ahead.
__global__ void __launch_bounds__(kThreads) pool(PoolArguments a, DeviceBatch batch, std::int32_t parts) {
  constexpr int kAhead = 16;
  wait_for_previous();
  let_next_begin();
  const std::int32_t row = static_cast<std::int32_t>(blockIdx.x) / parts;
  if (row >= num_outputs(batch)) return;
  const std::int32_t i =
      static_cast<std::int32_t>(blockIdx.x) % parts * kThreads + static_cast<std::int32_t>(threadIdx.x);
  if (i >= a.n) return;
  const std::int32_t last = batch.output_rows[row];
  const std::int32_t first = a.kind == PoolKind::kLast ? last : batch.first_rows[batch.sequences[last]];
  float value = row_of(a.x, first)[i];
  if (a.kind == PoolKind::kMean) {
    for (std::int32_t begin = first + 1; begin <= last; begin += kAhead) {
      float next[kAhead];
#pragma unroll
      for (int j = 0; j < kAhead; ++j) next[j] = row_of(a.x, begin + j < last ? begin + j : last)[i];
#pragma unroll
      for (int j = 0; j < kAhead; ++j) {
        if (begin + j <= last) value = value + next[j];
      }
    }
    value = value * (1.0f / static_cast<float>(last - first + 1));
  }
  row_of(a.y, row)[i] = value;
}

}  // namespace

Status launch_binary(const void* arguments, const Launch& launch) {
  const auto& a = *static_cast<const BinaryArguments*>(arguments);
  return launch_each(Binary{a}, a.a.outputs, a.n, launch);
}

Status launch_scale(const void* arguments, const Launch& launch) {
  const auto& a = *static_cast<const ScaleArguments*>(arguments);
  return launch_each(Scale{a}, a.x.outputs, a.n, launch);
}

Status launch_clamp(const void* arguments, const Launch& launch) {
  const auto& a = *static_cast<const ScaleArguments*>(arguments);
  return launch_each(Clamp{a}, a.x.outputs, a.n, launch);
}

Status launch_activation(const void* arguments, const Launch& launch) {
  const auto& a = *static_cast<const ActivationArguments*>(arguments);
  return launch_each(Activation{a}, a.x.outputs, a.n, launch);
}

Status launch_glu(const void* arguments, const Launch& launch) {
  const auto& a = *static_cast<const GluArguments*>(arguments);
  return launch_each(Glu{a}, a.gate.outputs, a.n, launch);
}

Status launch_copy(const void* arguments, const Launch& launch) {
  const auto& a = *static_cast<const CopyArguments*>(arguments);
  return launch_each(Copy{a}, a.x.outputs, a.heads * a.n, launch);
}

Status launch_take_rows(const void* arguments, const Launch& launch) {
  const auto& a = *static_cast<const CopyArguments*>(arguments);
  return launch_each(TakeRows{a}, true, a.n, launch);
}

Status launch_receive(const void* arguments, const Launch& launch) {
  const auto& a = *static_cast<const ReceiveArguments*>(arguments);
  return launch_each(Receive{a}, false, a.n, launch);
}

Status launch_pool(const void* arguments, const Launch& launch) {
  const auto& a = *static_cast<const PoolArguments*>(arguments);
  const std::int64_t parts = (a.n + kThreads - 1) / kThreads;
  return cuda::launch(pool, static_cast<unsigned>(launch.num_outputs * parts), kThreads, 0, launch.stream, a,
                      *launch.batch, static_cast<std::int32_t>(parts));
}

}  // namespace sterna::cuda
