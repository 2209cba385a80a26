#include "tools/cli/plan_report.h"

#include <algorithm>

namespace terrace {
namespace {

// In which two rows are not the same engine; "": they are.
std::string DifferenceOf(const TechniqueRow& row, const TechniqueRow& engine) {
  const auto is_of = [](const char* what, const std::string& reported, const std::string& planned) {
    return Concat(what, " ", reported, " in the report, here ", planned);
  };
  if (row.model_digest != engine.model_digest)
    return is_of("model digest", row.model_digest, engine.model_digest);
  if (row.text_digest != engine.text_digest) return is_of("text digest", row.text_digest, engine.text_digest);
  if (row.compute != engine.compute) return is_of("compute", row.compute, engine.compute);
  if (row.kv_dtype != engine.kv_dtype) return is_of("KV type", row.kv_dtype, engine.kv_dtype);
  return "";
}

const TechniqueRow* Find(std::span<const TechniqueRow> rows, const auto& is_wanted) {
  const auto found = std::ranges::find_if(rows, is_wanted);
  return found == rows.end() ? nullptr : &*found;
}

}  // namespace

const TechniqueRow* RowOfEngine(std::span<const TechniqueRow> rows, const TechniqueRow& engine) {
  return Find(rows, [&](const auto& row) { return !row.is_cascade && DifferenceOf(row, engine).empty(); });
}

ReportedAcceptance AcceptanceOf(std::span<const TechniqueRow> rows, const TechniqueRow& engine,
                                const std::string& drafter, const std::string& draft_model_digest) {
  ReportedAcceptance out;
  for (const TechniqueRow& row : rows) {
    const bool is_measured = !row.is_cascade && row.drafter == drafter && !row.speeds.empty() &&
                             row.speeds.back().acceptance.has_value() && DifferenceOf(row, engine).empty();
    if (!is_measured) continue;
    if (row.draft_model_digest == draft_model_digest) return {.share = row.speeds.back().acceptance};
    out.note = Concat("; the report's ", row.name,
                      row.draft_model_digest.empty()
                          ? " does not say by its digest which model drafted: measure it again"
                          : Concat(" has another model that drafts, digest ", row.draft_model_digest));
  }
  return out;
}

StatusOr<const TechniqueRow*> RowOfCascade(std::span<const TechniqueRow> rows, const std::string& name,
                                           std::span<const CascadeTier> tiers) {
  const TechniqueRow* const cascade =
      Find(rows, [&](const auto& row) { return row.is_cascade && row.name == name; });
  if (cascade == nullptr) return NotFound("no --report has it");
  for (const CascadeTier& tier : tiers) {
    if (tier.engine == nullptr) return NotFound("its tier ", tier.name, " is left out");
    const TechniqueRow* const row =
        Find(rows, [&](const auto& each) { return !each.is_cascade && each.name == tier.name; });
    if (row == nullptr) return NotFound("the report has no row of its tier ", tier.name);
    if (const std::string difference = DifferenceOf(*row, *tier.engine); !difference.empty())
      return FailedPrecondition("the report has it of another ", tier.name, ": ", difference);
  }
  return cascade;
}

}  // namespace terrace
