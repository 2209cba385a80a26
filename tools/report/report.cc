#include "tools/report/report.h"

#include <algorithm>
#include <numeric>
#include <set>

#include "base/strict_fields.h"

namespace terrace {
namespace {

constexpr char kFormat[] = "terrace-report-1";

std::optional<QualityPrice> CheapestOf(const TechniqueReport& report, double accuracy) {
  std::optional<QualityPrice> best;
  for (const TechniqueRow& row : report.rows) {
    const double price = row.price.usd_per_thousand_answers;
    if (row.accuracy().value < accuracy) continue;
    if (!best.has_value() || price < best->usd_per_thousand_answers)
      best = QualityPrice{.name = row.name, .usd_per_thousand_answers = price};
  }
  return best;
}

StatusOr<TechniqueReport> FromJson(const Json& json) {
  StrictFields fields(json, "");
  const std::string format = fields.Text("format");
  if (format != kFormat) return InvalidArgument("format \"", format, "\", this version reads ", kFormat);
  TechniqueReport report;
  report.tool = fields.Text("tool");
  report.created = fields.Text("created");
  report.processor = fields.Text("processor");
  report.cores = fields.SmallCount("cores");
  report.usd_per_hour = fields.Number("usd_per_hour");
  const Json &files = fields.List("task_files"), &rows = fields.List("rows");
  report.task_set_digest = fields.Text("task_set_digest");
  report.limit = fields.SmallCount("limit");
  report.max_tokens = fields.SmallCount("max_tokens");
  report.speed_tokens = fields.SmallCount("speed_tokens");
  report.level = fields.Number("level");
  RETURN_IF_ERROR(fields.Finish());
  for (const Json& file : files) {
    if (!file.is_string()) return InvalidArgument("task_files: not all are strings");
    report.task_files.push_back(file.get<std::string>());
  }
  std::set<std::string> names;
  for (size_t i = 0; i < rows.size(); ++i) {
    ASSIGN_OR_RETURN(report.rows.emplace_back(), RowFromJson(rows[i], Concat("rows[", i, "]")));
    const std::string& name = report.rows.back().name;
    if (!names.insert(name).second) return InvalidArgument("rows[", i, "]: ", name, " is there twice");
  }
  if (report.rows.empty()) return InvalidArgument("rows: there is none");
  return report;
}

}  // namespace

std::vector<size_t> Frontier(std::span<const TechniqueRow> rows) {
  std::vector<size_t> order(rows.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::ranges::stable_sort(order, [&](size_t a, size_t b) {
    const double cheap_a = rows[a].price.usd_per_thousand_answers,
                 cheap_b = rows[b].price.usd_per_thousand_answers;
    return cheap_a != cheap_b ? cheap_a < cheap_b : rows[a].accuracy().value > rows[b].accuracy().value;
  });
  std::vector<size_t> out;
  double best = -1;
  for (const size_t i : order) {
    if (rows[i].accuracy().value <= best) continue;
    best = rows[i].accuracy().value;
    out.push_back(i);
  }
  return out;
}

Json ReportToJson(const TechniqueReport& report) {
  Json json = {{"format", kFormat},
               {"tool", report.tool},
               {"created", report.created},
               {"processor", report.processor},
               {"cores", report.cores},
               {"usd_per_hour", report.usd_per_hour},
               {"task_files", report.task_files},
               {"task_set_digest", report.task_set_digest},
               {"limit", report.limit},
               {"max_tokens", report.max_tokens},
               {"speed_tokens", report.speed_tokens},
               {"level", report.level},
               {"rows", Json::array()}};
  for (const TechniqueRow& row : report.rows) json["rows"].push_back(RowToJson(row));
  return json;
}

StatusOr<TechniqueReport> ParseReport(std::string_view text) {
  const StatusOr<Json> json = ParseJson(text);
  if (!json.ok()) return DataLoss(Message(json.status()));
  StatusOr<TechniqueReport> report = FromJson(*json);
  if (!report.ok()) return DataLoss(Message(report.status()));
  return report;
}

StatusOr<std::vector<PriceHistory>> HistoryOf(std::span<const TechniqueReport> reports,
                                              std::vector<double> levels) {
  CHECK(!reports.empty());
  const TechniqueReport& first = reports.front();
  for (const TechniqueReport& report : reports) {
    if (report.task_set_digest == first.task_set_digest && report.max_tokens == first.max_tokens) continue;
    return InvalidArgument("the report of ", report.created, " is of other tasks than that of ",
                           first.created, ", or of answers of another length");
  }
  if (levels.empty()) {
    for (const size_t row : Frontier(first.rows)) levels.push_back(first.rows[row].accuracy().value);
  }
  std::vector<PriceHistory> out;
  for (const double level : levels) {
    PriceHistory& history = out.emplace_back(PriceHistory{.accuracy = level});
    for (const TechniqueReport& report : reports) history.prices.push_back(CheapestOf(report, level));
  }
  return out;
}

}  // namespace terrace
