// A row of a report that tests fill.
#pragma once

#include <string>

#include "tools/report/technique_row.h"

namespace terrace {

// Of one task with 100 rows.
inline TechniqueRow RowOf(const std::string& name, double usd_per_thousand_answers, uint64_t right) {
  TechniqueRow row{.name = name, .model = "models/" + name};
  row.tasks = {{.name = "task", .rows = 100, .right = right}};
  row.price.usd_per_thousand_answers = usd_per_thousand_answers;
  return row;
}

}  // namespace terrace
