// A row of weights as FP8 E4M3 with a scale. Pure.
#pragma once

#include <cstdint>
#include <span>

namespace terrace {

// Codes of a row at which its largest magnitude is 448; returns its scale.
float QuantizeE4M3(std::span<const float> row, uint8_t* codes);

}  // namespace terrace
