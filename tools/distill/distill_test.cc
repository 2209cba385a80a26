#include "tools/distill/distill.h"

#include <cmath>
#include <filesystem>
#include <fstream>
#include <map>

#include "base/exit_code.h"
#include "base/json.h"
#include "base/mapped_file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tools/optimize/synthesize.h"
#include "tools/optimize/synthetic_text.h"
#include "worker/formats/model_files.h"

namespace terrace {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

constexpr char kNano[] = "models/terrace-demo-nano", kSmall[] = "models/terrace-demo-small",
               kBase[] = "models/terrace-demo-base";

class DistillTest : public testing::Test {
 protected:
  DistillTest() {
    fs::remove_all(folder_);
    fs::create_directory(folder_);
    std::ofstream(Path("rows.jsonl")) << FirstLines("models/eval/calibration.jsonl", 60);
  }
  static std::string FirstLines(const std::string& path, size_t count) {
    const std::string text = ReadFile(path).value();
    size_t end = 0;
    for (size_t i = 0; i < count; ++i) end = text.find('\n', end) + 1;
    return text.substr(0, end);
  }
  std::string Path(const std::string& name) const { return folder_ / name; }
  // A layer of nano that learns from all of it, in some ten steps.
  DistillRequest Request(const std::string& out) const {
    DistillRequest request;
    request.teacher = kNano;
    request.layers = 1;
    request.out = Path(out);
    request.data = {Path("rows.jsonl")};
    request.validation = "models/eval/validation.jsonl";
    request.validation_rows = 6;
    request.tokens = 4'000;
    request.batch_tokens = 300;
    request.memory_tokens = 300;
    request.checkpoint_steps = 3;
    request.trainer.threads = 2;
    return request;
  }
  // The bytes of the output and its report, by their names behind `out`.
  static std::map<std::string, std::string> FilesOf(const std::string& out) {
    std::map<std::string, std::string> files = {{"report", ReadFile(out + ".distill.json").value()}};
    for (const auto& entry : fs::directory_iterator(out))
      files[entry.path().filename()] = ReadFile(entry.path()).value();
    return files;
  }
  const fs::path folder_ = fs::path(testing::TempDir()) / "distill";
};

DistillReport Distilled(const DistillRequest& request) {
  const auto report = Distill(request);
  CHECK(report.ok(), Message(report.status()));
  return *report;
}

TEST_F(DistillTest, TheStudentComesCloserToTheTeacherAndLoadsAsAModel) {
  DistillRequest request = Request("out");
  uint64_t steps = 0;
  request.on_step = [&](const StepReport& report) {
    EXPECT_EQ(report.step, ++steps);
    EXPECT_GT(report.losses.loss, 0);
    return Status();
  };
  const DistillReport report = Distilled(request);
  EXPECT_EQ(report.steps, steps);
  EXPECT_GE(report.tokens, request.tokens);
  EXPECT_LT(report.after.loss, report.before.loss);
  EXPECT_LT(report.after.kl, report.before.kl);
  EXPECT_GT(report.after.agreement, report.before.agreement);
  EXPECT_EQ(report.after.positions, report.before.positions);

  const auto model = OpenModel(request.out);
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ(model->digest, report.digest);
  EXPECT_EQ(model->config.layers, 1u);
  EXPECT_EQ(report.path, request.out + ".distill.json");
  const Json json = ParseJson(ReadFile(report.path).value()).value();
  EXPECT_EQ(json["output"]["digest"], report.digest.Hex());
  EXPECT_EQ(json["teacher"], OpenModel(kNano)->digest.Hex());
  EXPECT_EQ(json["validation"]["after"]["kl"], report.after.kl);
  EXPECT_EQ(json["rows"]["count"], report.rows);
  EXPECT_FALSE(fs::exists(request.out + ".work"));
}

TEST_F(DistillTest, AnInterruptedRunGoesOnToTheSameBytes) {
  for (const bool is_hidden : {false, true}) {
    const std::string name = is_hidden ? "hidden" : "logits";
    DistillRequest undisturbed = Request(name + "-whole"), disturbed = Request(name + "-parts");
    undisturbed.trainer.loss.hidden_weight = disturbed.trainer.loss.hidden_weight = is_hidden ? 0.5 : 0;
    Distilled(undisturbed);
    // Killed behind the checkpoint of step 3; stopped by Ctrl-C, which makes one; killed before any step.
    const struct {
      uint64_t step;
      Status status;
      uint64_t resumed_from;
    } ends[] = {{5, Aborted("killed"), 0}, {7, Cancelled("stopped"), 3}, {8, Aborted("killed"), 7}};
    for (const auto& end : ends) {
      uint64_t first = 0;
      disturbed.on_step = [&](const StepReport& report) {
        if (first == 0) first = report.step;
        return report.step == end.step ? end.status : Status();
      };
      EXPECT_EQ(Distill(disturbed).status().code(), end.status.code());
      EXPECT_EQ(first, end.resumed_from + 1);
      EXPECT_FALSE(fs::exists(disturbed.out));
    }
    disturbed.on_step = [](const StepReport&) { return Status(); };
    EXPECT_EQ(Distilled(disturbed).resumed_from, 7u);
    EXPECT_EQ(FilesOf(undisturbed.out), FilesOf(disturbed.out));
  }
}

TEST_F(DistillTest, MeasuringIsInterruptedTooAndGoneOnWith) {
  DistillRequest request = Request("measured");
  bool is_trained = false;
  request.on_step = [&](const StepReport& report) {
    is_trained = report.step == report.steps;
    return Status();
  };
  request.is_cancelled = [] { return true; };
  EXPECT_EQ(Distill(request).status().code(), StatusCode::kCancelled) << "before the first step";
  EXPECT_FALSE(is_trained);
  request.is_cancelled = [&] { return is_trained; };
  EXPECT_EQ(Distill(request).status().code(), StatusCode::kCancelled) << "after the last one";
  EXPECT_TRUE(is_trained);
  EXPECT_FALSE(fs::exists(request.out));
  request.is_cancelled = nullptr;
  const DistillReport report = Distilled(request);
  EXPECT_EQ(report.resumed_from, report.steps);
}

TEST_F(DistillTest, ARunIsNotGoneOnWithUnderOtherSettingsWhichAreNamed) {
  DistillRequest request = Request("out");
  request.on_step = [](const StepReport&) { return Cancelled("stopped"); };
  ASSERT_EQ(Distill(request).status().code(), StatusCode::kCancelled);
  DistillRequest temperature = request, threads = request, rows = request, teacher = request,
                 student = request;
  temperature.trainer.loss.temperature = 2;
  threads.trainer.threads = 1;
  rows.data = {"models/eval/validation.jsonl"};
  teacher.teacher = kSmall;
  teacher.layers = 0;
  teacher.student = kNano;
  student.layers = 2;
  const std::pair<DistillRequest, const char*> cases[] = {
      {temperature, "temperature (1.0 there, 2.0 here)"},
      {threads, "threads (2 there, 1 here)"},
      {rows, "rows.digest"},
      {teacher, "teacher"},
      {student, "student.layers_of_teacher (1 there, 2 here)"}};
  for (const auto& [other, mention] : cases) {
    const Status status = Distill(other).status();
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << status;
    EXPECT_THAT(Message(status), HasSubstr(mention));
  }
}

TEST_F(DistillTest, ACacheOfTheWholeVocabularyTeachesWhatTheTeacherDoes) {
  DistillRequest online = Request("online"), cached = Request("cached"), again = Request("again"),
                 few = Request("few");
  cached.teacher_cache = again.teacher_cache = Path("cache");
  cached.top_k = again.top_k = 1024;
  few.teacher_cache = Path("few-cache");
  few.top_k = 16;
  int asked = 0;
  cached.on_cache = [&](uint64_t done, uint64_t total) {
    EXPECT_LE(done, total);
    ++asked;
    return Status();
  };
  again.on_cache = [](uint64_t, uint64_t) { return Internal("the cache is there"); };
  const Measurement with_teacher = Distilled(online).after, with_cache = Distilled(cached).after;
  EXPECT_GT(asked, 0);
  EXPECT_NEAR(with_cache.loss, with_teacher.loss, 2e-3 * with_teacher.loss);
  EXPECT_NEAR(with_cache.kl, with_teacher.kl, 5e-3 * with_teacher.kl);
  const DistillReport of_again = Distilled(again);
  EXPECT_EQ(of_again.after.loss, with_cache.loss);
  const DistillReport of_few = Distilled(few);  // of most of the probability
  EXPECT_LT(of_few.after.kl, of_few.before.kl);
  EXPECT_LT(fs::file_size(few.teacher_cache), fs::file_size(cached.teacher_cache) / 20);
}

TEST_F(DistillTest, WithoutKlTheTeacherChangesNothing) {
  DistillRequest of_small = Request("small"), of_base = Request("base");
  for (DistillRequest* const request : {&of_small, &of_base}) {
    request->layers = 0;
    request->student = kNano;
    request->trainer.loss.kl_weight = 0;
  }
  of_small.teacher = kSmall;
  of_base.teacher = kBase;
  EXPECT_EQ(Distilled(of_small).digest, Distilled(of_base).digest);
}

TEST_F(DistillTest, ADraftIsMeasuredByWhatTheTeacherWouldAccept) {
  DistillRequest request = Request("draft");
  request.layers = 0;
  request.is_draft = true;
  request.tokens = 1'000;
  const DistillReport report = Distilled(request);
  ASSERT_TRUE(report.acceptance.has_value());
  EXPECT_EQ(report.acceptance->answers, 6u);
  EXPECT_GT(report.acceptance->tokens, 0u);
  EXPECT_GE(report.acceptance->tokens_per_pass(), 1);
  EXPECT_LE(report.acceptance->tokens_per_pass(), 1 + kDraftTokens);
  EXPECT_LT(report.parameters, 262'592u);
}

TEST_F(DistillTest, ATokenizerThatIsNotTheTeachersIsRefusedBeforeAnything) {
  const ModelFiles nano = OpenModel(kNano).value();
  ModelToSynthesize other;
  other.path = Path("other");
  other.format = ModelFormat::kSafetensors;
  other.config = nano.config;
  other.text = PadVocabulary(ByteLevelText(), nano.config.vocab_size).value();
  ASSERT_TRUE(Synthesize(other).ok());
  DistillRequest request = Request("out");
  request.layers = 0;
  request.student = other.path;
  request.data = {"absent"};
  const Status status = Distill(request).status();
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << status;
  EXPECT_EQ(Reason(status), "tokenizer_mismatch");
}

// Of what TorchLlama does not compute: the teacher, the student, and a fresh student's shape.
TEST_F(DistillTest, OtherFamiliesAreRefusedBeforeAnything) {
  const std::string gemma = "tests/families/data/gemma2";
  std::vector<DistillRequest> requests(3, Request("out"));
  for (DistillRequest& request : requests) {
    request.layers = 0;
    request.data = {"absent"};
  }
  requests[0].teacher = requests[1].student = gemma;
  requests[0].layers = 1;
  requests[2].config = gemma + "/config.json";
  for (const DistillRequest& request : requests) {
    const Status status = Distill(request).status();
    EXPECT_EQ(Reason(status), "unsupported_architecture") << status;
    EXPECT_THAT(Message(status), HasSubstr(gemma));
  }
}

TEST_F(DistillTest, ALossThatIsNotFiniteIsAnErrorAndChangesNothing) {
  const ModelFiles nano = OpenModel(kNano).value();
  ThreadPool pool(1);
  const ModelWeights teacher = LoadWeights(nano, pool).value();
  ModelWeights student = teacher;
  for (float& value : student.tensors.back()) value = 1e30f;  // the last norm
  const std::vector<TrainingRow> rows = {{.tokens = {0, 2, 16, 20}}};
  const auto trainer = Trainer::Create(student, &teacher, nullptr, rows, {});
  ASSERT_TRUE(trainer.ok()) << trainer.status();
  const auto losses = (*trainer)->Step({.batches = {{0}}, .tokens = 4}, 1e-3);
  EXPECT_EQ(Reason(losses.status()), "numeric_error") << losses.status();
  EXPECT_EQ((*trainer)->weights().tensors, student.tensors);
}

TEST_F(DistillTest, RequestsThatMakeNoSenseAreToldWithTheirFlag) {
  const auto changed = [&](const std::function<void(DistillRequest&)>& change) {
    DistillRequest request = Request("out");
    change(request);
    return request;
  };
  const std::pair<const char*, std::function<void(DistillRequest&)>> cases[] = {
      {"--kl-weight", [](auto& request) { request.trainer.loss.kl_weight = 1.5; }},
      {"--temperature", [](auto& request) { request.trainer.loss.temperature = 0; }},
      {"--temperature", [](auto& request) { request.trainer.loss.temperature = NAN; }},
      {"--learning-rate", [](auto& request) { request.learning_rate = 0; }},
      {"--batch-tokens", [](auto& request) { request.batch_tokens = 0; }},
      {"--checkpoint-steps", [](auto& request) { request.checkpoint_steps = 0; }},
      {"--student", [](auto& request) { request.student = kNano; }},
      {"--student", [](auto& request) { request.layers = 0; }},
      {"--layers", [](auto& request) { request.layers = 9; }},
      {"--data", [](auto& request) { request.data.clear(); }},
      {"--top-k",
       [this](auto& request) {
         request.teacher_cache = Path("cache");
         request.top_k = 5000;
       }},
      {"--hidden-weight", [this](auto& request) {
         request.teacher_cache = Path("cache");
         request.trainer.loss.hidden_weight = 1;
       }}};
  for (const auto& [flag, change] : cases) {
    const Status status = Distill(changed(change)).status();
    EXPECT_EQ(ExitCodeFor(status), kExitUsage) << flag << ": " << status;
    EXPECT_THAT(Message(status), HasSubstr(flag));
  }
  EXPECT_EQ(std::distance(fs::directory_iterator(folder_), fs::directory_iterator()), 1) << "the rows";
}

}  // namespace
}  // namespace terrace
