#include "program/passes/passes.h"

#include <algorithm>

#include "base/error.h"
#include "program/passes/rewrite.h"
#include "program/validate.h"

namespace sterna {

namespace {

// merge_linears comes first: it makes one reader out of three, which fold_norm needs. fold_glu needs merged gate and
// up.
constexpr Pass kPasses[] = {
    {"merge_linears", merge_linears}, {"fold_norm", fold_norm}, {"fold_rope", fold_rope},
    {"fold_residual", fold_residual}, {"fold_glu", fold_glu},   {"sink_rows", sink_rows},
};

void run(Program& program, const Pass& pass) {
  pass.run(program);
  drop_unused_results(program);
  validate(program);
}

}  // namespace

std::span<const Pass> all_passes() { return kPasses; }

void run_pass(Program& program, std::string_view name) {
  const auto pass = std::ranges::find(kPasses, name, &Pass::name);
  if (pass == std::end(kPasses)) throw ArgumentError("program: no pass " + std::string(name));
  run(program, *pass);
}

void fuse(Program& program) {
  for (const Pass& pass : kPasses) run(program, pass);
}

}  // namespace sterna
