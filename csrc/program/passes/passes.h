/// Fusion: a short list of passes that move work and never change an operation or its order, so that a fused Program
/// gives the same bits as the unfused one. A value that is used elsewhere, or returned, is never folded away.
#pragma once

#include <span>
#include <string_view>

#include "program/program.h"

namespace sterna {

/// Linears of the same input and activation rule become one node, so that the input is rounded once.
void merge_linears(Program& program);
/// A norm that only one linear or unembed reads becomes its role "norm".
void fold_norm(Program& program);
/// The ropes of q and k, and the norms of each head before them, become roles of the attention that reads them.
void fold_rope(Program& program);
/// The addition of a linear's, the experts' or a norm's result to something else becomes its role "residual".
void fold_residual(Program& program);
/// A glu over the two results of one linear becomes its attribute "glu".
void fold_glu(Program& program);
/// What only the logits need is computed for the rows whose logits are wanted: take_rows below the last attention.
void sink_rows(Program& program);

struct Pass {
  std::string_view name;
  void (*run)(Program&);
};

/// In the order in which fuse() runs them.
std::span<const Pass> all_passes();
/// Runs one pass by name, then validate(). Throws ArgumentError when there is no such pass.
void run_pass(Program& program, std::string_view name);
/// Runs all passes.
void fuse(Program& program);

}  // namespace sterna
