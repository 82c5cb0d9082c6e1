/// Cosines and sines of rotary positions, from our own sine so that no C library decides about a bit.
#pragma once

#include <cstdint>
#include <span>

namespace sterna::cpu {

/// cosines[i] and sines[i] of the angle float(position) * frequencies[i], each times `factor`; accurate for angles up
/// to 1e8.
void rope_angles(std::int32_t position, std::span<const float> frequencies, float factor, float* cosines, float* sines);

}  // namespace sterna::cpu
