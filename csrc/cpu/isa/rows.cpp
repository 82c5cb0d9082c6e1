#include "cpu/kernels/rows.h"

#include "cpu/isa/level.h"

namespace sterna::cpu::STERNA_LEVEL {
namespace {

template <class Kind>
void fill_gate(KernelTable& table, ActivationKind kind) {
  table.glu[static_cast<int>(kind)] = glu<Kind>;
  table.finish_glu[static_cast<int>(kind)] = finish<Kind>;
}

template <class Kind>
void fill_kind(KernelTable& table, ActivationKind kind) {
  table.activation[static_cast<int>(kind)] = activation<Kind>;
  fill_gate<Kind>(table, kind);
}

}  // namespace

void fill_rows(KernelTable& table) {
  table.isa = Level::kName;
  table.tile_rows = Level::kTileRows;
  table.few_rows = Level::kFewRows;
  table.rms_norm = cpu::rms_norm;
  table.layer_norm = cpu::layer_norm;
  table.quantize = cpu::quantize<false>;
  table.quantize_gemm = cpu::quantize<true>;
  table.add = cpu::add;
  table.mul = cpu::mul;
  table.scale = cpu::scale;
  table.clamp = cpu::clamp;
  table.lora_down = cpu::lora_down;
  table.lora_up = cpu::lora_up;
  table.finish = finish<NoActivation>;
  table.rope = cpu::rope;
  table.to_half = cpu::to_half;
  fill_kind<Silu>(table, ActivationKind::kSilu);
  fill_kind<GeluTanh>(table, ActivationKind::kGeluTanh);
  fill_kind<Gelu>(table, ActivationKind::kGelu);
  fill_kind<Relu>(table, ActivationKind::kRelu);
  fill_kind<Relu2>(table, ActivationKind::kRelu2);
  fill_kind<Sigmoid>(table, ActivationKind::kSigmoid);
  fill_kind<Tanh>(table, ActivationKind::kTanh);
  fill_gate<ClampedSwiglu>(table, ActivationKind::kClampedSwiglu);
  fill_kind<Softplus>(table, ActivationKind::kSoftplus);
}

}  // namespace sterna::cpu::STERNA_LEVEL
