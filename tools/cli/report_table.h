// Reports for people, as Markdown. Pure.
#pragma once

#include <span>
#include <string>

#include "tools/report/report.h"

namespace terrace {

std::string FormatReport(const TechniqueReport& report);

// `history` of `reports` (HistoryOf).
std::string FormatHistory(std::span<const TechniqueReport> reports, std::span<const PriceHistory> history);

}  // namespace terrace
