// What a saved report says of engines that are planned: only of the same weights, tokenizer, arithmetic and
// type of keys and values, whatever its rows are named. Pure.
#pragma once

#include <optional>
#include <span>
#include <string>

#include "base/status.h"
#include "tools/report/technique_row.h"

namespace terrace {

// Of any row with the engine, whoever drafts for it: drafts change no answer. Null: there is none.
const TechniqueRow* RowOfEngine(std::span<const TechniqueRow> rows, const TechniqueRow& engine);

struct ReportedAcceptance {
  std::optional<double> share = {};  // of the drafted tokens, at the last batch
  std::string note = {};             // where it is absent: "; " and what the report has instead, or ""
};

// `engine` with the drafter `drafter`, of which `draft_model_digest` is the model's ("": it has none). Where
// the model's file lies does not count.
ReportedAcceptance AcceptanceOf(std::span<const TechniqueRow> rows, const TechniqueRow& engine,
                                const std::string& drafter, const std::string& draft_model_digest);

struct CascadeTier {
  std::string name = {};                 // that the cascade calls it by
  const TechniqueRow* engine = nullptr;  // that is planned, borrowed; null: it is left out
};

// The row of the cascade, which was computed from the answers of its tiers' rows: FAILED_PRECONDITION where
// one of these is of another engine than `tiers` have, NOT_FOUND where a row or an engine is not there.
StatusOr<const TechniqueRow*> RowOfCascade(std::span<const TechniqueRow> rows, const std::string& name,
                                           std::span<const CascadeTier> tiers);

}  // namespace terrace
