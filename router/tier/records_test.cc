#include "router/tier/records.h"

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "base/json.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "router/tier/testing_records.h"

namespace terrace {
namespace {

using testing::AllOf;
using testing::HasSubstr;

std::string ErrorOf(const std::string& text) {
  const Status status = ParseRecords(text).status();
  EXPECT_EQ(status.code(), StatusCode::kDataLoss) << text;
  return Message(status);
}

TEST(Records, ComeBackFromTheirTextTheSame) {
  const std::string text = RecordsText(DrawRecords(20, /*seed=*/1));
  const auto parsed = ParseRecords(text);
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(parsed->rows.size(), 20u);
  EXPECT_EQ(RecordsText(*parsed), text);
  EXPECT_TRUE(ParseRecords(text.substr(0, text.size() - 1)).ok()) << "the last line need not end";
}

TEST(Records, CostIsParametersTimesTokens) {
  const Records records = DrawRecords(1, /*seed=*/2);
  for (size_t tier = 0; tier < records.tiers.size(); ++tier) {
    const RecordedAnswer& answer = records.rows[0].answers[tier];
    EXPECT_EQ(
        records.Cost(records.rows[0], tier),
        static_cast<double>(records.tiers[tier].parameters * (answer.prompt_tokens + answer.signals.tokens)));
  }
}

TEST(Records, AMemberThatIsAbsentOrUnknownIsNamedWithItsLine) {
  const std::string text = RecordsText(DrawRecords(1, /*seed=*/3));
  const size_t end_of_head = text.find('\n');
  const Json lines[] = {Json::parse(text.substr(0, end_of_head)), Json::parse(text.substr(end_of_head))};
  for (const int broken : {0, 1}) {
    const Json flat = lines[broken].flatten();
    for (auto leaf = flat.begin(); leaf != flat.end(); ++leaf) {
      const Json::json_pointer path(leaf.key());
      for (const bool is_absent : {true, false}) {
        Json changed[] = {lines[0], lines[1]};
        Json& parent = changed[broken][path.parent_pointer()];
        if (is_absent) {
          parent.erase(path.back());
        } else {
          parent["surplus"] = 1;
        }
        EXPECT_THAT(ErrorOf(changed[0].dump() + "\n" + changed[1].dump() + "\n"),
                    AllOf(HasSubstr(broken == 0 ? "line 1: " : "line 2: "),
                          HasSubstr("\"" + (is_absent ? path.back() : "surplus") + "\"")))
            << leaf.key();
      }
    }
  }
}

TEST(Records, WhatMakesNoSenseIsRefused) {
  const std::string good = RecordsText(DrawRecords(2, /*seed=*/4));
  const struct {
    const char* cut;
    const char* paste;
    const char* names;
  } cases[] = {{"terrace-records-1", "terrace-records-9", "terrace-records-9"},
               {"\"small\"", "\"nano\"", "twice"},
               {"\"parameters\":3000", "\"parameters\":-3000", "parameters"},
               {"\"prompt_tokens\":40", "\"prompt_tokens\":40.5", "prompt_tokens"},
               {"\"prompt_tokens\":40", "\"prompt_tokens\":4294967296", "prompt_tokens"},
               {"\"bytes\":100", "\"bytes\":\"100\"", "bytes"},
               {"\n{", "\n\n{", "line 2"},
               {"\n{", "\n[", "line 2"}};
  for (const auto& c : cases) {
    std::string bad = good;
    bad.replace(bad.find(c.cut), std::string(c.cut).size(), c.paste);
    EXPECT_THAT(ErrorOf(bad), HasSubstr(c.names));
  }
  ErrorOf("");
  ErrorOf(good.substr(0, good.find('\n') + 1));  // no rows
  Records one_tier = DrawRecords(1, /*seed=*/5), other_tiers = one_tier;
  one_tier.tiers.resize(1);
  one_tier.rows[0].answers.resize(1);
  EXPECT_THAT(ErrorOf(RecordsText(one_tier)), HasSubstr("2 or more"));
  other_tiers.rows[0].answers.resize(2);
  EXPECT_THAT(ErrorOf(RecordsText(other_tiers)), HasSubstr("one a tier"));
  Records silent = DrawRecords(1, /*seed=*/6);
  silent.rows[0].answers[1].signals.tokens = 0;
  EXPECT_THAT(ErrorOf(RecordsText(silent)), HasSubstr("answers[1]"));
}

TEST(AgreementWith, IsTheShareOfTheDraftThatIsTheBeginningOfTheAnswer) {
  for (const size_t draft_size : {1u, 4u, 9u}) {
    for (size_t common = 0; common <= draft_size; ++common) {
      for (const size_t more : {0u, 3u}) {
        std::vector<int32_t> draft(draft_size, 7), answer(common, 7);
        answer.resize(common + more, 8);
        EXPECT_EQ(AgreementWith(draft, answer),
                  static_cast<double>(common) / static_cast<double>(draft_size));
      }
    }
  }
  EXPECT_EQ(AgreementWith({}, {1, 2}), 0) << "no draft";
}

TEST(RecordedAnswer, WhatNoFileCanHaveIsNotRecordable) {
  const RecordedAnswer good = DrawRecords(1, /*seed=*/7).rows[0].answers[0];
  EXPECT_TRUE(good.is_recordable());
  for (double AnswerSignals::*const signal : {&AnswerSignals::mean_logprob, &AnswerSignals::min_margin,
                                              &AnswerSignals::mean_margin, &AnswerSignals::first_entropy}) {
    for (const double value : {std::numeric_limits<double>::infinity(), std::nan("")}) {
      RecordedAnswer bad = good;
      bad.signals.*signal = value;
      EXPECT_FALSE(bad.is_recordable());
    }
  }
  RecordedAnswer silent = good;
  silent.signals.tokens = 0;
  EXPECT_FALSE(silent.is_recordable());
}

}  // namespace
}  // namespace terrace
