#include "tools/distill/acceptance.h"

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "gtest/gtest.h"

namespace terrace {
namespace {

TEST(DraftAcceptance, APassEndsBehindTheFirstGuessThatIsWrong) {
  // "x" is a token that the draft has, too.
  const struct {
    std::string answer;
    uint64_t passes;
  } cases[] = {{"", 0},
               {".", 1},
               {"x", 1},
               {"xxxx", 1},
               {"xxxxx", 1},  // four guesses and a token
                              // of its own
               {"xxxxxx", 2},
               {"....", 4},
               {".xxxx", 2},
               {"xx.xx.", 2},
               {"x.x.x.", 3},
               {"xxxx.", 1},
               {"xxxx.x", 2},
               {"xxxxxxxxxx", 2}};
  for (const auto& c : cases) {
    const auto agrees = std::make_unique<bool[]>(c.answer.size());
    for (size_t i = 0; i < c.answer.size(); ++i) agrees[i] = c.answer[i] == 'x';
    DraftAcceptance acceptance;
    acceptance.Add(std::span<const bool>(agrees.get(), c.answer.size()), 4);
    EXPECT_EQ(acceptance.passes, c.passes) << c.answer;
    EXPECT_EQ(acceptance.tokens, c.answer.size());
    EXPECT_EQ(acceptance.agreed, static_cast<uint64_t>(std::ranges::count(c.answer, 'x')));
  }
}

std::unique_ptr<ScoringModel> Opened(const std::string& name) {
  auto model = ScoringModel::Open({.model = "models/terrace-demo-" + name, .threads = 1, .compute = "f32"});
  CHECK(model.ok(), Message(model.status()));
  return *std::move(model);
}

std::vector<std::vector<TokenId>> Prompts(const ScoringModel& model) {
  std::vector<std::vector<TokenId>> prompts;
  for (const char* question :
       {"Sort these words: Keiko, Jonas, Jack", "One lamp is $3. What is the price of 6?"})
    prompts.push_back(model.files().text->EncodeChat({{"user", question}}).value());
  return prompts;
}

TEST(DraftAcceptance, AModelAgreesWithItselfAndAnotherOneLess) {
  const auto base = Opened("base"), again = Opened("base"), nano = Opened("nano");
  const auto own = MeasureAcceptance(*base, *again, Prompts(*base));
  ASSERT_TRUE(own.ok()) << own.status();
  EXPECT_EQ(own->answers, 2u);
  EXPECT_GT(own->tokens, 4u);
  EXPECT_EQ(own->agreed, own->tokens);
  const auto of_nano = MeasureAcceptance(*base, *nano, Prompts(*base));
  ASSERT_TRUE(of_nano.ok()) << of_nano.status();
  EXPECT_EQ(of_nano->tokens, own->tokens);
  EXPECT_LE(of_nano->agreed, own->agreed);
  EXPECT_GE(of_nano->passes, own->passes);
}

TEST(DraftAcceptance, EndsWhenItIsCancelled) {
  const auto model = Opened("nano"), draft = Opened("nano");
  const auto ended = MeasureAcceptance(*model, *draft, Prompts(*model), [] { return true; });
  EXPECT_EQ(ended.status().code(), StatusCode::kCancelled) << ended.status();
}

TEST(DraftAcceptance, PromptsThatLeaveNoRoomAreLeftOut) {
  const auto model = Opened("nano"), draft = Opened("nano");
  const std::vector<std::vector<TokenId>> prompts = {{}, std::vector<TokenId>(model->max_tokens(), 7)};
  const auto none = MeasureAcceptance(*model, *draft, prompts);
  ASSERT_TRUE(none.ok()) << none.status();
  EXPECT_EQ(none->answers, 0u);
  EXPECT_EQ(none->tokens_per_pass(), 0);
}

}  // namespace
}  // namespace terrace
