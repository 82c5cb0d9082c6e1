#include "cpu/rope_table.h"

#include <cstddef>

#include "base/sine.h"

namespace sterna::cpu {

void rope_angles(std::int32_t position, std::span<const float> frequencies, float factor, float* cosines,
                 float* sines) {
  for (std::size_t i = 0; i < frequencies.size(); ++i) {
    const auto [sine, cosine] = sine_cosine(static_cast<float>(position) * frequencies[i]);
    cosines[i] = static_cast<float>(cosine) * factor;
    sines[i] = static_cast<float>(sine) * factor;
  }
}

}  // namespace sterna::cpu
