// The whole report: every technique that was measured of one model family on one machine. Values, their JSON,
// and what follows from them. Pure.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/json_fwd.h"
#include "base/status.h"
#include "tools/report/technique_row.h"

namespace terrace {

struct TechniqueReport {
  std::string tool = {}, created = {};  // "terrace 0.1.0"; UTC, as 2026-11-27T15:00:00Z
  std::string processor = {};
  uint32_t cores = 0;       // that models were run with
  double usd_per_hour = 0;  // of the machine
  std::vector<std::string> task_files = {};
  std::string task_set_digest = {};     // reports of the same one can be compared
  uint32_t limit = 0, max_tokens = 0;   // rows of each file, 0: all; of an answer
  uint32_t speed_tokens = 0;            // that each sequence of a speed measurement generates
  double level = 0;                     // of the intervals against the baseline
  std::vector<TechniqueRow> rows = {};  // the baseline first, names all different
};

// Rows, by index, that no other row beats: none is cheaper and as good, or as cheap and better. The cheapest
// first; of equals the first one.
std::vector<size_t> Frontier(std::span<const TechniqueRow> rows);

Json ReportToJson(const TechniqueReport& report);
// DATA_LOSS for what ReportToJson has not written.
StatusOr<TechniqueReport> ParseReport(std::string_view text);

// The least price at which a report has answers so good.
struct QualityPrice {
  std::string name = {};  // of the row
  double usd_per_thousand_answers = 0;
};

// A level of quality through time.
struct PriceHistory {
  double accuracy = 0;                                   // at least
  std::vector<std::optional<QualityPrice>> prices = {};  // [reports]; absent: no row is so good
};

// `reports` by the time they were made, the earliest first. Without `levels` those of the first one's
// frontier. INVALID_ARGUMENT for reports of other tasks, or with other lengths of answers, than the first.
StatusOr<std::vector<PriceHistory>> HistoryOf(std::span<const TechniqueReport> reports,
                                              std::vector<double> levels);

}  // namespace terrace
