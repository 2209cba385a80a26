#include "tools/cli/plan_report.h"

#include <functional>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

using testing::HasSubstr;

TechniqueRow Engine(const std::string& name) {
  return {.name = name,
          .model_digest = name + "-digest",
          .text_digest = "text",
          .compute = "auto",
          .kv_dtype = "f32",
          .drafter = "none"};
}

TechniqueRow Drafted(const std::string& name, const std::string& drafter, const std::string& draft_digest,
                     double acceptance) {
  TechniqueRow row = Engine("large");
  row.name = name;
  row.drafter = drafter;
  row.draft_model = "models/draft";
  row.draft_model_digest = draft_digest;
  row.speeds = {{.batch = 1, .acceptance = 0.99}, {.batch = 16, .acceptance = acceptance}};
  return row;
}

std::vector<TechniqueRow> Rows() {
  TechniqueRow cascade{.name = "small+large@-0.5", .is_cascade = true};
  cascade.first_tier_share = 0.75;
  return {cascade, Engine("small"), Engine("large")};
}

TEST(RowOfEngine, IsFoundByWhatItIsNotByItsName) {
  const std::vector<TechniqueRow> rows = Rows();
  TechniqueRow engine = Engine("small");
  engine.name = "another name";
  engine.drafter = "ngram";
  EXPECT_EQ(RowOfEngine(rows, engine), &rows[1]);
  const std::function<void(TechniqueRow&)> changes[] = {[](TechniqueRow& row) { row.model_digest = "other"; },
                                                        [](TechniqueRow& row) { row.text_digest = "other"; },
                                                        [](TechniqueRow& row) { row.compute = "f32"; },
                                                        [](TechniqueRow& row) { row.kv_dtype = "int8"; }};
  for (const auto& change : changes) {
    TechniqueRow other = Engine("small");
    change(other);
    EXPECT_EQ(RowOfEngine(rows, other), nullptr);
  }
}

TEST(AcceptanceOf, IsOfTheSameWeightsWhereverTheDraftersModelLies) {
  const std::vector<TechniqueRow> rows = {Drafted("ngrams", "ngram", "", 0.25),
                                          Drafted("a", "model", "digest-a", 0.5),
                                          Drafted("b", "model", "digest-b", 0.75)};
  const TechniqueRow engine = Engine("large");
  EXPECT_EQ(AcceptanceOf(rows, engine, "ngram", "").share, 0.25);
  EXPECT_EQ(AcceptanceOf(rows, engine, "model", "digest-b").share, 0.75) << "both are of one path";
  const ReportedAcceptance replaced = AcceptanceOf(rows, engine, "model", "digest-c");
  EXPECT_EQ(replaced.share, std::nullopt);
  EXPECT_THAT(replaced.note, HasSubstr("the report's b has another model that drafts, digest digest-b"));
  const ReportedAcceptance other = AcceptanceOf(rows, Engine("small"), "model", "digest-b");
  EXPECT_EQ(other.share, std::nullopt) << "of another model that answers";
  EXPECT_EQ(other.note, "");
}

TEST(AcceptanceOf, IsNotKnownOfAReportWithoutTheDigest) {
  const std::vector<TechniqueRow> rows = {Drafted("old", "model", "", 0.5)};
  const ReportedAcceptance old = AcceptanceOf(rows, Engine("large"), "model", "digest-a");
  EXPECT_EQ(old.share, std::nullopt);
  EXPECT_THAT(old.note, HasSubstr("the report's old does not say by its digest which model drafted"));
}

TEST(RowOfCascade, IsOfTheEnginesThatItWasComputedFrom) {
  const TechniqueRow small = Engine("small"), large = Engine("large");
  const struct {
    const char* what;
    std::function<void(std::vector<TechniqueRow>&)> change;
    const char* error;
  } cases[] = {
      {"a tier's model", [](auto& rows) { rows[1].model_digest = "new"; },
       "of another small: model digest new in the report, here small-digest"},
      {"its text", [](auto& rows) { rows[1].text_digest = "new"; }, "of another small: text digest new"},
      {"its arithmetic", [](auto& rows) { rows[2].compute = "f32"; }, "of another large: compute f32"},
      {"its keys and values", [](auto& rows) { rows[2].kv_dtype = "int8"; }, "of another large: KV type"},
      {"no row of a tier", [](auto& rows) { rows.pop_back(); }, "no row of its tier large"},
      {"no row of the cascade", [](auto& rows) { rows[0].name = "small+large@-1"; }, "no --report has it"},
      {"a model that is named so", [](auto& rows) { rows[0].is_cascade = false; }, "no --report has it"},
  };
  const CascadeTier tiers[] = {{"small", &small}, {"large", &large}};
  const std::vector<TechniqueRow> rows = Rows();
  const auto found = RowOfCascade(rows, "small+large@-0.5", tiers);
  ASSERT_TRUE(found.ok()) << found.status();
  EXPECT_EQ((*found)->first_tier_share, 0.75);
  for (const auto& each : cases) {
    std::vector<TechniqueRow> changed = Rows();
    each.change(changed);
    const Status status = RowOfCascade(changed, "small+large@-0.5", tiers).status();
    EXPECT_FALSE(status.ok()) << each.what;
    EXPECT_THAT(Message(status), HasSubstr(each.error)) << each.what;
  }
  const CascadeTier without[] = {{"small", &small}, {"large", nullptr}};
  EXPECT_THAT(Message(RowOfCascade(rows, "small+large@-0.5", without).status()),
              HasSubstr("its tier large is left out"));
}

}  // namespace
}  // namespace terrace
