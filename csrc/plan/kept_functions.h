/// Functions compiled a second time, with the values kept that batches ask for.
#pragma once

#include <algorithm>
#include <span>
#include <string>
#include <vector>

#include "engine/batch.h"
#include "plan/program_plan.h"

namespace sterna {

/// `Compiled` holds functions of a program and finds them by name; it is empty when it is new.
template <class Compiled>
class KeptFunctions {
 public:
  /// What runs the batch: `plain`, or its function as `compile` makes it of the function's name, with the values of
  /// batch.kept kept. That one stays for as long as batches ask for the same values; then it goes, before there is
  /// another. What compile throws leaves none.
  template <class Compile>
  Compiled& choose(Compiled& plain, const Batch& batch, const Compile& compile) {
    const std::string name(function_of(batch));
    if (!std::ranges::equal(batch.kept, names_) || (!names_.empty() && compiled_.find(name) == nullptr)) {
      compiled_ = {};
      names_.clear();
      if (!batch.kept.empty()) {
        compiled_ = compile(name);
        names_.assign(batch.kept.begin(), batch.kept.end());
      }
    }
    return names_.empty() ? plain : compiled_;
  }

 private:
  Compiled compiled_;
  std::vector<std::string> names_;  // of the values that it keeps
};

}  // namespace sterna
