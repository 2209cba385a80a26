// Quality against price as an SVG, readable on light and dark pages. Pure.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "tools/report/technique_row.h"

namespace terrace {

// A point for each row with its 95% interval, models and cascades in two colours, the rows of the frontier
// (in its order, cheapest first) joined by a band. `rows` has one at least, with prices that are finite and 0
// or more (CHECK).
std::string QualityPlot(const std::string& title, std::span<const TechniqueRow> rows,
                        std::span<const size_t> frontier);

}  // namespace terrace
