#include "tools/cli/local_model.h"

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <functional>

#include "base/exit_code.h"
#include "base/json.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tools/cli/generate.h"
#include "tools/cli/model_target.h"
#include "tools/cli/test_context.h"

namespace terrace {
namespace {

constexpr char kNano[] = "models/terrace-demo-nano";
constexpr size_t kGoldenRows = 12;  // more would only repeat the engine's own tests

std::vector<Json> GoldenRows(const std::string& model) {
  std::ifstream file("models/eval/golden.jsonl");
  std::vector<Json> rows;
  for (std::string line; std::getline(file, line) && rows.size() < kGoldenRows;) {
    Json row = Json::parse(line);
    if (row["model"] == model) rows.push_back(std::move(row));
  }
  return rows;
}

v1::GenerateRequest RequestFor(const Json& row) {
  v1::GenerateRequest request;
  if (row["kind"] == "chat") {
    for (const Json& message : row["messages"]) {
      v1::ChatMessage& to = *request.mutable_chat()->add_messages();
      to.set_role(message["role"]);
      to.set_content(message["content"]);
    }
  } else {
    request.set_prompt(row["text"].get<std::string>());
  }
  request.set_max_tokens(static_cast<uint32_t>(row["greedy_tokens"].size()));
  request.mutable_sampling()->set_temperature(0);
  return request;
}

class LocalModelTest : public testing::TestWithParam<const char*> {
 protected:
  static std::unique_ptr<LocalModel> Open(const std::string& path) {
    OpenEngineOptions options;
    options.model = path;
    options.threads = 1;
    options.compute = "f32";  // as the golden rows were made
    StatusOr<std::unique_ptr<LocalModel>> model = LocalModel::Open(options);
    CHECK(model.ok(), Message(model.status()));
    return *std::move(model);
  }
};

TEST_P(LocalModelTest, GreedyAnswersAreTheGoldenOnes) {
  const std::unique_ptr<LocalModel> model = Open(GetParam());
  ShutdownSignal shutdown;
  const std::vector<Json> rows = GoldenRows("terrace-demo-nano");
  ASSERT_EQ(rows.size(), kGoldenRows);
  for (const Json& row : rows) {
    std::string streamed;
    AskOptions options;
    options.on_piece = [&](const v1::GenerateResponse& piece) { streamed += piece.text(); };
    const StatusOr<Answer> answer = Ask(*model, RequestFor(row), shutdown, options);
    ASSERT_TRUE(answer.ok()) << answer.status();
    std::vector<int32_t> tokens;
    for (const v1::OutputToken& token : answer->tokens) tokens.push_back(token.id());
    EXPECT_EQ(tokens, row["greedy_tokens"].get<std::vector<int32_t>>());
    EXPECT_EQ(answer->text, row["text_out"].get<std::string>());
    EXPECT_EQ(streamed, answer->text);
    EXPECT_EQ(answer->finished.usage().prompt_tokens(), row["prompt_tokens"].size());
    EXPECT_EQ(answer->finished.usage().completion_tokens(), tokens.size());
  }
}

INSTANTIATE_TEST_SUITE_P(Formats, LocalModelTest,
                         testing::Values(kNano, "models/terrace-demo-nano.f16.gguf"));

TEST_F(LocalModelTest, AStopTextEndsTheAnswerBeforeIt) {
  const std::unique_ptr<LocalModel> model = Open(kNano);
  ShutdownSignal shutdown;
  v1::GenerateRequest request = RequestFor(GoldenRows("terrace-demo-nano")[0]);
  request.add_stop("_req");
  const StatusOr<Answer> answer = Ask(*model, request, shutdown);
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_EQ(answer->text, "refund");
  EXPECT_EQ(answer->finished.stop(), "_req");
  EXPECT_EQ(answer->finished.reason(), v1::FINISH_REASON_STOP);
}

TEST_F(LocalModelTest, ASeedRepeatsItsAnswer) {
  const std::unique_ptr<LocalModel> model = Open(kNano);
  ShutdownSignal shutdown;
  v1::GenerateRequest request;
  request.set_prompt("Once upon a time");
  request.set_max_tokens(30);
  request.mutable_sampling()->set_temperature(1);
  request.mutable_sampling()->set_seed(11);
  const std::string first = Ask(*model, request, shutdown).value().text;
  EXPECT_EQ(Ask(*model, request, shutdown).value().text, first);
  request.mutable_sampling()->set_seed(12);
  EXPECT_NE(Ask(*model, request, shutdown).value().text, first);
}

v1::GenerateRequest StoryRequest() {
  v1::GenerateRequest request;
  request.set_prompt("Once upon a time");
  request.set_max_tokens(20);
  request.mutable_sampling()->set_temperature(1);
  request.mutable_sampling()->set_seed(11);
  return request;
}

double MeanLogprob(const Answer& answer) {
  return answer.finished.attempts(answer.finished.attempts_size() - 1).mean_logprob();
}

TEST_F(LocalModelTest, SeveralAnswersDifferAndTheFirstIsTheOnlyAnswer) {
  const std::unique_ptr<LocalModel> model = Open(kNano);
  ShutdownSignal shutdown;
  v1::GenerateRequest request = StoryRequest();
  const Answer alone = Ask(*model, request, shutdown).value();
  request.set_n(3);
  const std::vector<Answer> answers = AskSeveral(*model, request, shutdown).value();
  ASSERT_EQ(answers.size(), 3u);
  EXPECT_EQ(answers[0].text, alone.text);
  EXPECT_NE(answers[1].text, alone.text);
  EXPECT_NE(answers[2].text, answers[1].text);
  const v1::Usage usage = TotalOf(answers).usage();
  EXPECT_EQ(usage.prompt_tokens(), alone.finished.usage().prompt_tokens());
  EXPECT_EQ(usage.completion_tokens(),
            answers[0].tokens.size() + answers[1].tokens.size() + answers[2].tokens.size());
  request.mutable_sampling()->set_temperature(0);
  const std::vector<Answer> greedy = AskSeveral(*model, request, shutdown).value();
  for (const Answer& answer : greedy) {
    EXPECT_EQ(answer.text, Ask(*model, request, shutdown).value().text);
  }
}

TEST_F(LocalModelTest, TheBestAreTheLikeliestOfThoseDrawn) {
  const std::unique_ptr<LocalModel> model = Open(kNano);
  ShutdownSignal shutdown;
  v1::GenerateRequest request = StoryRequest();
  request.set_n(5);
  std::vector<Answer> drawn = AskSeveral(*model, request, shutdown).value();
  std::ranges::stable_sort(drawn, std::greater(), MeanLogprob);
  request.set_n(2);
  request.set_best_of(5);
  request.set_prompt_logprobs(true);
  const std::vector<Answer> best = AskSeveral(*model, request, shutdown).value();
  ASSERT_EQ(best.size(), 2u);
  for (size_t i = 0; i < best.size(); ++i) EXPECT_EQ(best[i].text, drawn[i].text) << i;
  EXPECT_EQ(best[0].prompt_tokens.size(), best[0].finished.usage().prompt_tokens());
  EXPECT_EQ(best[0].finished.attempts_size(), 4) << "its own, behind the three that are not shown";
  EXPECT_EQ(TotalOf(best).usage().completion_tokens(), TotalOf(drawn).usage().completion_tokens());
}

TEST_F(LocalModelTest, TheUsageTellsOfDraftsAndARequestMayHaveNone) {
  EXPECT_FALSE(Open(kNano)->Speculation().has_value()) << "it has no drafter";
  OpenEngineOptions options;
  options.model = kNano;
  options.threads = 1;
  options.speculation = {.drafter = "model", .model = kNano};  // right, and free until it was measured
  const auto model = LocalModel::Open(options);
  ASSERT_TRUE(model.ok()) << model.status();
  ShutdownSignal shutdown;
  v1::GenerateRequest request = StoryRequest();
  request.set_ignore_eos(true);
  request.set_speculation_max_tokens(0);
  const Answer plain = Ask(**model, request, shutdown).value();
  EXPECT_EQ(plain.finished.usage().speculated_tokens(), 0u);
  request.clear_speculation_max_tokens();
  const Answer drafted = Ask(**model, request, shutdown).value();
  EXPECT_EQ(drafted.text, plain.text);
  const v1::Usage& usage = drafted.finished.usage();
  EXPECT_GT(usage.accepted_speculated_tokens(), 0u);
  EXPECT_LE(usage.accepted_speculated_tokens(), usage.speculated_tokens());
  EXPECT_EQ(drafted.finished.attempts(0).usage().speculated_tokens(), usage.speculated_tokens());
  const auto stats = (*model)->Speculation();
  ASSERT_TRUE(stats.has_value());
  EXPECT_EQ(stats->drafter, "model");
  EXPECT_GT(SpeculationStats::Sum(stats->verified), 0u);
}

TEST_F(LocalModelTest, AnEchoPutsThePromptBeforeEveryAnswer) {
  const std::unique_ptr<LocalModel> model = Open(kNano);
  ShutdownSignal shutdown;
  v1::GenerateRequest request = StoryRequest();
  const std::string text = Ask(*model, request, shutdown).value().text;
  request.set_echo(true);
  EXPECT_EQ(Ask(*model, request, shutdown).value().text, "Once upon a time" + text);
  request.mutable_chat()->add_messages()->set_role("user");
  request.mutable_chat()->mutable_messages(0)->set_content("hello");
  request.set_n(2);
  const std::vector<Answer> both = AskSeveral(*model, request, shutdown).value();
  for (const Answer& answer : both) {
    EXPECT_THAT(answer.text, testing::StartsWith("<|")) << "control tokens as the template writes them";
    EXPECT_THAT(answer.text, testing::HasSubstr("hello"));
  }
}

TEST_F(LocalModelTest, ThePromptsScoresAreThoseOfAnAnswerThatSaysTheSame) {
  const std::unique_ptr<LocalModel> model = Open(kNano);
  ShutdownSignal shutdown;
  v1::GenerateRequest request = StoryRequest();
  request.mutable_sampling()->set_temperature(0);
  request.set_top_logprobs(2);
  const Answer said = Ask(*model, request, shutdown).value();
  // The prompt again, with what was answered behind it.
  request.set_prompt(request.prompt() + said.text);
  request.set_prompt_logprobs(true);
  request.set_max_tokens(0);
  const Answer scored = Ask(*model, request, shutdown).value();
  ASSERT_EQ(scored.prompt_tokens.size(), scored.finished.usage().prompt_tokens());
  EXPECT_GT(scored.tokens.size(), 1u) << "no limit is none, not no token";
  EXPECT_EQ(scored.prompt_tokens[0].logprob(), 0);
  const size_t behind = said.finished.usage().prompt_tokens();
  ASSERT_GT(scored.prompt_tokens.size(), behind);
  for (size_t i = behind; i < scored.prompt_tokens.size(); ++i) {
    const v1::OutputToken& token = said.tokens[i - behind];
    if (scored.prompt_tokens[i].id() != token.id()) break;  // text need not be cut as it was written
    EXPECT_NEAR(scored.prompt_tokens[i].logprob(), token.logprob(), 1e-4);
    EXPECT_EQ(scored.prompt_tokens[i].top_size(), 2);
  }
}

TEST_F(LocalModelTest, RequestsThatCannotRunAreErrors) {
  const std::unique_ptr<LocalModel> model = Open(kNano);
  ShutdownSignal shutdown;
  v1::GenerateRequest no_input, bad_token, too_long, too_many = StoryRequest(), too_few = StoryRequest();
  too_many.set_n(17);
  too_few.set_n(3);
  too_few.set_best_of(2);
  bad_token.mutable_prompt_tokens()->add_ids(1 << 30);
  too_long.mutable_prompt_tokens()->mutable_ids()->Resize(5000, 16);
  for (const v1::GenerateRequest& request : {no_input, bad_token, too_long, too_many, too_few}) {
    EXPECT_EQ(ExitCodeFor(Ask(*model, request, shutdown).status()), kExitUsage)
        << request.ShortDebugString().substr(0, 99);
  }
}

TEST(Generate, PrintsOneJsonObject) {
  TestContext test;
  GenerateOptions options;
  options.target.model = kNano;
  options.target.threads = 1;
  const Json row = GoldenRows("terrace-demo-nano")[0];
  options.prompt_tokens = row["prompt_tokens"].get<std::vector<int32_t>>();
  options.logprobs = 2;
  options.json = true;
  ASSERT_EQ(RunGenerate(options, test.context), Status());
  const Json answer = Json::parse(test.out.str());
  EXPECT_EQ(answer["text"], row["text_out"]);
  EXPECT_EQ(answer["finish_reason"], "stop");
  EXPECT_EQ(answer["tokens"].size(), row["greedy_tokens"].size());
  for (size_t i = 0; i < answer["tokens"].size(); ++i)
    EXPECT_EQ(answer["tokens"][i]["id"], row["greedy_tokens"][i]);
  const Json& first = answer["tokens"][0];
  EXPECT_NEAR(first["logprob"].get<double>(), row["first_step_top5_logprobs"][0][1].get<double>(), 1e-3);
  EXPECT_EQ(first["top"].size(), 2u);
  EXPECT_EQ(answer["usage"]["completion_tokens"], row["greedy_tokens"].size());
  EXPECT_EQ(answer["tier"], "terrace-demo-nano");
}

GenerateOptions Continue(const std::string& prompt) {
  GenerateOptions options;
  options.target.model = kNano;
  options.target.threads = 1;
  options.prompt = prompt;
  return options;
}

TEST(Generate, SeveralAnswersHaveAHeadingEachAndAreAListInJson) {
  GenerateOptions options = Continue("Once upon a time");
  options.request.max_tokens = 5;
  options.answers = 2;
  TestContext shown;
  ASSERT_EQ(RunGenerate(options, shown.context), Status());
  options.json = true;
  options.prompt_logprobs = true;
  TestContext test;
  ASSERT_EQ(RunGenerate(options, test.context), Status());
  const Json json = Json::parse(test.out.str());
  ASSERT_EQ(json["answers"].size(), 2u);
  const std::string text = json["answers"][0]["text"];
  EXPECT_EQ(shown.out.str(), "answer 1 of 2\n" + text + "\nanswer 2 of 2\n" + text + "\n") << "greedy";
  EXPECT_EQ(json["usage"]["completion_tokens"], 10);
  const Json& prompt = json["answers"][0]["prompt_tokens"];
  EXPECT_EQ(prompt.size(), json["usage"]["prompt_tokens"]);
  EXPECT_TRUE(prompt[0]["logprob"].is_null());
  EXPECT_LT(prompt[1]["logprob"], 0);
  EXPECT_FALSE(json["answers"][1].contains("prompt_tokens"));
}

TEST(Generate, TheFirstTokenOfAPromptIsShownWithoutALogProbability) {
  GenerateOptions options = Continue("Once upon");
  options.request.max_tokens = 1;
  options.prompt_logprobs = true;
  TestContext test;
  ASSERT_EQ(RunGenerate(options, test.context), Status());
  EXPECT_THAT(test.out.str(), testing::ContainsRegex("\nprompt\t[0-9]+\t-\nprompt\t[0-9]+\t-[0-9.]+\n"));
}

TEST(Generate, AnAnswerWithoutTextIsALineAndAnErrorIsNone) {
  GenerateOptions options = Continue("Once upon");
  options.request.stop = {" "};
  TestContext empty;
  ASSERT_EQ(RunGenerate(options, empty.context), Status());
  EXPECT_EQ(empty.out.str(), "\n");
  options.request.max_tokens = 1'000'000;
  TestContext refused;
  EXPECT_EQ(Reason(RunGenerate(options, refused.context)), "context_length_exceeded");
  EXPECT_EQ(refused.out.str(), "");
}

TEST(Generate, AMalformedMessagesFileIsExitCode65) {
  const std::string file = testing::TempDir() + "/messages.json";
  std::ofstream(file) << R"([{"role": "user"}])";
  TestContext test;
  GenerateOptions options;
  options.messages_file = file;
  options.target.model = kNano;
  const Status status = RunGenerate(options, test.context);
  EXPECT_EQ(ExitCodeFor(status), kExitData);
  EXPECT_THAT(Message(status), testing::HasSubstr("message 0"));
}

TEST(OpenTarget, SaysWhyAModelIsOnTheCpusWhereDevicesAreExpected) {
  ModelTarget target;
  target.model = kNano;
  target.threads = 1;
  TestContext plain, named;
  ASSERT_TRUE(OpenTarget(target, plain.context).ok());
  EXPECT_EQ(plain.err.str(), "");
  setenv("TERRACE_CUDA_PLUGIN", "/nowhere", /*overwrite=*/1);
  EXPECT_TRUE(OpenTarget(target, named.context).ok());
  EXPECT_EQ(named.err.str(), "on the CPUs: TERRACE_CUDA_PLUGIN: there is no /nowhere\n");
  target.device = "cpu";
  EXPECT_TRUE(OpenTarget(target, plain.context).ok());
  EXPECT_EQ(plain.err.str(), "") << "it was asked for";
  unsetenv("TERRACE_CUDA_PLUGIN");
}

}  // namespace
}  // namespace terrace
