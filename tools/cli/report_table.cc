#include "tools/cli/report_table.h"

#include <functional>
#include <optional>
#include <vector>

#include "tools/cli/format.h"

namespace terrace {
namespace {

using Cells = std::vector<std::string>;

constexpr char kNone[] = "-";

std::string Line(const Cells& cells) {
  std::string line = "|";
  for (const std::string& cell : cells) line += Concat(" ", cell, " |");
  return line + "\n";
}

std::string MarkdownTable(const std::vector<Cells>& rows) {
  std::string out = Line(rows.front());
  out += Line(Cells(rows.front().size(), "---"));
  for (size_t i = 1; i < rows.size(); ++i) out += Line(rows[i]);
  return out;
}

// Three digits that count, of a rate that may be small.
std::string TokensPerSecond(double rate) {
  return rate >= 100 ? FormatCount(static_cast<uint64_t>(rate + 0.5)) : FormatFixed(rate, rate >= 10 ? 1 : 2);
}

std::string Signed(double value, int decimals) {
  return (value > 0 ? "+" : "") + FormatFixed(value, decimals);
}

// A cell with one part for each batch: "900 / 2,400".
std::string OfBatches(const TechniqueRow& row, const std::function<std::string(const BatchSpeed&)>& part) {
  std::string out;
  for (const BatchSpeed& speed : row.speeds) out += Concat(out.empty() ? "" : " / ", part(speed));
  return out.empty() ? kNone : out;
}

std::string Batches(const TechniqueReport& report) {
  return OfBatches(report.rows.front(), [](const BatchSpeed& speed) { return std::to_string(speed.batch); });
}

std::string Acceptance(const TechniqueRow& row) {
  bool has_any = false;
  for (const BatchSpeed& speed : row.speeds) has_any |= speed.acceptance.has_value();
  if (!has_any) return kNone;
  return OfBatches(row, [](const BatchSpeed& speed) {
    return speed.acceptance.has_value() ? FormatFixed(*speed.acceptance, 2) : std::string(kNone);
  });
}

// A column has one unit, whatever its prices are.
std::string Price(double usd) { return Concat("$", FormatSignificant(usd)); }

std::string PriceOrNone(double usd) { return usd > 0 ? Price(usd) : kNone; }

Cells RowCells(const TechniqueRow& row) {
  const EstimatedRate accuracy = row.accuracy();
  Cells cells = {
      row.is_on_frontier ? Concat("**", row.name, "**") : row.name,
      FormatBytes(row.weight_bytes),
      FormatBytes(row.kv_bytes_per_token),
      OfBatches(row, [](const BatchSpeed& each) { return TokensPerSecond(each.prefill_tokens_per_second); }),
      OfBatches(row, [](const BatchSpeed& each) { return TokensPerSecond(each.decode_tokens_per_second); }),
      Acceptance(row),
      PriceOrNone(row.price.tokens.usd_per_million_prompt_tokens),
      PriceOrNone(row.price.tokens.usd_per_million_completion_tokens),
      Price(row.price.usd_per_million_tokens),
      Price(row.price.usd_per_thousand_answers),
      Concat(FormatFixed(accuracy.value, 3), " (", FormatFixed(accuracy.low, 3), " to ",
             FormatFixed(accuracy.high, 3), ")"),
      kNone,
      kNone,
      kNone};
  if (row.against_baseline.has_value()) {
    const PairedQuality& paired = *row.against_baseline;
    cells[11] = Concat(Signed(paired.difference, 3), " (", Signed(paired.low, 3), " to ",
                       Signed(paired.high, 3), ")");
  }
  if (row.shift.has_value()) {
    cells[12] = FormatFixed(row.shift->mean_kl, 5);
    cells[13] = FormatFixed(100 * row.shift->flip_rate, 2) + "%";
  }
  return cells;
}

std::string MainTable(const TechniqueReport& report) {
  const std::string batches = Batches(report);
  const std::string level = FormatFixed(100 * (1 - 2 * report.level), 0);
  std::vector<Cells> rows = {
      {"technique", "weights", "KV a token", Concat("prefill tok/s, batch ", batches),
       Concat("decode tok/s, batch ", batches), "drafts accepted", "a million prompt tokens",
       "completion tokens", "as mixed here", "1,000 answers", "accuracy (95% interval)",
       Concat("less the baseline's (", level, "%)"), "KL mean, nats", "likeliest token differs"}};
  for (const TechniqueRow& row : report.rows) rows.push_back(RowCells(row));
  return MarkdownTable(rows);
}

std::string TaskTable(const TechniqueReport& report) {
  std::vector<Cells> rows = {{"technique"}};
  for (const TaskQuality& task : report.rows.front().tasks)
    rows[0].push_back(Concat(task.name, " (", task.rows, ")"));
  for (const TechniqueRow& row : report.rows) {
    Cells& cells = rows.emplace_back(Cells{row.name});
    for (const TaskQuality& task : row.tasks) {
      const EstimatedRate rate = AccuracyOf(task.right, task.rows);
      cells.push_back(Concat(FormatFixed(rate.value, 3), " (", FormatFixed(rate.low, 2), " to ",
                             FormatFixed(rate.high, 2), ")"));
    }
  }
  return MarkdownTable(rows);
}

std::string RowNotes(const TechniqueReport& report) {
  std::string out;
  for (const TechniqueRow& row : report.rows) {
    if (row.is_cascade) {
      out += Concat("- ", row.name, ": ", FormatFixed(100 * row.first_tier_share, 1),
                    "% of the answers are the first tier's\n");
      continue;
    }
    out += Concat("- ", row.name, ": ", row.model, ", ", row.weight_dtype, " weights, compute ", row.compute,
                  ", KV ", row.kv_dtype, ", ", row.device);
    if (row.drafter != "none")
      out += Concat(", drafter ", row.drafter, row.draft_model.empty() ? "" : " ", row.draft_model);
    out += Concat(", digest ", row.model_digest, "\n");
  }
  return out;
}

std::string Join(const std::vector<std::string>& texts) {
  std::string out;
  for (const std::string& text : texts) out += Concat(out.empty() ? "" : ", ", text);
  return out;
}

}  // namespace

std::string FormatReport(const TechniqueReport& report) {
  const TechniqueRow& baseline = report.rows.front();
  return Concat(
      "# Ways to serve ", baseline.model, "\n\n", report.tool, ", ", report.created, ": ", report.processor,
      ", ", report.cores, report.cores == 1 ? " core, $" : " cores, $", report.usd_per_hour,
      " an hour. Greedy answers to ", baseline.rows(), " rows of ", Join(report.task_files), " (task set ",
      report.task_set_digest, ").\n\n", MainTable(report),
      "\nBold: nothing cheaper is as good. Prices are the machine's hour over the tokens that it reads or "
      "writes in "
      "an hour, at the batch that decodes fastest. Speeds: prompts of the rows, ",
      report.speed_tokens, " tokens generated behind each. Memory counts drafters and all tiers.\n\n",
      "Accuracy by task (rows), with 95% intervals:\n\n", TaskTable(report), "\n", RowNotes(report));
}

std::string FormatHistory(std::span<const TechniqueReport> reports, std::span<const PriceHistory> history) {
  std::vector<Cells> rows = {{"accuracy at least"}};
  for (const TechniqueReport& report : reports)
    rows[0].push_back(Concat(report.created, ", $", report.usd_per_hour, " an hour"));
  for (const PriceHistory& level : history) {
    Cells& cells = rows.emplace_back(Cells{FormatFixed(level.accuracy, 3)});
    for (const std::optional<QualityPrice>& price : level.prices) {
      cells.push_back(
          price.has_value() ? Concat(Price(price->usd_per_thousand_answers), " (", price->name, ")") : kNone);
    }
  }
  return Concat("Least price of 1,000 answers:\n\n", MarkdownTable(rows));
}

}  // namespace terrace
