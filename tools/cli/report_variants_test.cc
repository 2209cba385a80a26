#include "tools/cli/report_variants.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <functional>

#include "base/exit_code.h"
#include "base/hash.h"
#include "base/json.h"
#include "base/version.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tools/cli/test_context.h"
#include "tools/optimize/quantize.h"
#include "worker/formats/model_files.h"

namespace terrace {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

TEST(ParseVariant, ReadsEveryPart) {
  const auto plain = ParseVariant("pruned-50=models/a=b");
  ASSERT_TRUE(plain.ok()) << plain.status();
  EXPECT_EQ(plain->name, "pruned-50");
  EXPECT_EQ(plain->model, "models/a=b") << "a path may have an equals sign";
  EXPECT_EQ(plain->drafter, "none");
  const auto full = ParseVariant("v=m.gguf,kv=int8,draft=nano,compute=f32");
  ASSERT_TRUE(full.ok()) << full.status();
  EXPECT_EQ(full->model, "m.gguf");
  EXPECT_EQ(full->kv_dtype, "int8");
  EXPECT_EQ(full->compute, "f32");
  EXPECT_EQ(full->drafter, "model");
  EXPECT_EQ(full->draft_model, "nano");
  const auto ngram = ParseVariant("v=m,draft=ngram");
  ASSERT_TRUE(ngram.ok());
  EXPECT_EQ(ngram->drafter, "ngram");
  EXPECT_EQ(ngram->draft_model, "");
}

TEST(ParseVariant, SaysWhatIsWrong) {
  const std::pair<const char*, const char*> cases[] = {
      {"m", "NAME=PATH"},
      {"=m", "is no name"},
      {"a/b=m", "a/b"},
      {"a+b=m", "a+b"},
      {"a@1=m", "a@1"},
      {"a=", "no path"},
      {"a=,kv=int8", "no path"},
      {"a=m,int8", "\"int8\" is not KEY=VALUE"},
      {"a=m,kv=", "kv="},
      {"a=m,taste=good", "\"taste\" is none of"},
      {"a=m,kv=f16,kv=f32", "kv is there twice"},
      {"a=m,draft=ngram,draft=n", "draft is there twice"},
  };
  for (const auto& [text, error] : cases) {
    const Status status = ParseVariant(text).status();
    EXPECT_EQ(ExitCodeFor(status), kExitUsage) << text;
    EXPECT_THAT(Message(status), HasSubstr(error)) << text;
  }
}

TEST(ParseCascade, ReadsTiersAndThresholds) {
  const auto cascade = ParseCascade("nano+small+base@-0.05,-1e-3,0");
  ASSERT_TRUE(cascade.ok()) << cascade.status();
  EXPECT_THAT(cascade->tiers, ElementsAre("nano", "small", "base"));
  EXPECT_THAT(cascade->thresholds, ElementsAre(-0.05, -0.001, 0));
  EXPECT_EQ(cascade->RowName(-0.05), "nano+small+base@-0.05");
}

TEST(ParseCascade, SaysWhatIsWrong) {
  const std::pair<std::string, const char*> cases[] = {
      {"a+b", "SMALL+LARGE@T"},
      {"a@-1", "one tier"},
      {"a+@-1", "without a name"},
      {"a+a@-1", "a is there twice"},
      {"a+b@", "the threshold \"\""},
      {"a+b@-1,x", "\"x\" is not a number"},
      {"a+b@0.5", "above 0"},
      {"a+b@nan", "not a number"},
      {"a+b@-inf", "not a number"},
      {"a+b/c@-1", "no name of a row"},
      {std::string(40, 'a') + "+" + std::string(40, 'b') + "@-1", "64 characters"},
  };
  for (const auto& [text, error] : cases) {
    const Status status = ParseCascade(text).status();
    EXPECT_EQ(ExitCodeFor(status), kExitUsage) << text;
    EXPECT_THAT(Message(status), HasSubstr(error)) << text;
  }
}

TEST(CombinationsOf, AreAllThatNoVariantIsAlready) {
  const std::vector<ReportVariant> variants = {
      {.name = "baseline", .model = "m"},
      {.name = "int8", .model = "m8"},
      {.name = "int4", .model = "m4"},
      {.name = "kv-int8", .model = "m", .kv_dtype = "int8"},
      {.name = "ngram", .model = "m", .drafter = "ngram"},
      {.name = "drafted", .model = "m", .drafter = "model", .draft_model = "d"},
      {.name = "own", .model = "m4", .kv_dtype = "fp8", .drafter = "ngram"}};  // is one already
  const std::vector<ReportVariant> combinations = CombinationsOf(variants);
  std::vector<std::string> names;
  for (const ReportVariant& each : combinations) names.push_back(each.name);
  EXPECT_THAT(names, testing::UnorderedElementsAre(
                         "int8.kv-int8", "int8.ngram", "int8.drafted", "int8.kv-int8.ngram",
                         "int8.kv-int8.drafted", "int4.kv-int8", "int4.ngram", "int4.drafted",
                         "int4.kv-int8.ngram", "int4.kv-int8.drafted", "kv-int8.ngram", "kv-int8.drafted"));
  const auto all = std::ranges::find(combinations, "int4.kv-int8.drafted", &ReportVariant::name);
  ASSERT_NE(all, combinations.end());
  EXPECT_EQ(all->model, "m4");
  EXPECT_EQ(all->kv_dtype, "int8");
  EXPECT_EQ(all->drafter, "model");
  EXPECT_EQ(all->draft_model, "d");
  EXPECT_TRUE(CombinationsOf(std::span(variants).first(3)).empty()) << "weights alone";
}

TEST(CheckVariants, SaysWhatIsWrongBeforeAnythingIsMade) {
  const std::string there = testing::TempDir() + "check_variants";
  std::ofstream(there) << "a file";
  const auto check = [](std::vector<std::string> techniques, const ReportVariant& variant,
                        const std::string& calibration) {
    return CheckVariants(techniques, {&variant, 1}, {.path = calibration});
  };
  const ReportVariant good = {
      .name = "a", .model = there, .compute = "fp8", .kv_dtype = "bf16", .draft_model = there};
  EXPECT_EQ(check({"q8_0", "ngram", "int4-gptq"}, good, there), Status());
  const struct {
    Status status;
    const char* error;
    int exit_code;
  } cases[] = {
      {check({"magic"}, good, ""),
       "\"magic\" is none of int8, int4-rtn, int4-gptq, int4-awq, mixed, fp8, q8_0, q6_k, q4_k, q4_0, "
       "kv-int8, "
       "kv-fp8, ngram",
       kExitUsage},
      {check({"mixed"}, good, ""), "mixed: needs calibration text (--calibration)", kExitUsage},
      {check({"int4-gptq"}, good, ""), "int4-gptq: needs calibration text (--calibration)", kExitUsage},
      {check({"int4-gptq"}, good, "/none"), "--calibration: /none", kExitNoInput},
      {check({}, {.name = "a", .model = "/none"}, ""), "a: /none", kExitNoInput},
      {check({}, {.name = "a", .model = there, .draft_model = "/none"}, ""), "a: /none", kExitNoInput},
      {check({}, {.name = "a", .model = there, .compute = "f64"}, ""),
       "a: compute \"f64\" is none of auto, f32, fp8", kExitUsage},
      {check({}, {.name = "a", .model = there, .kv_dtype = "int4"}, ""), "a: kv \"int4\" is none of auto",
       kExitUsage},
  };
  for (const auto& each : cases) {
    EXPECT_EQ(ExitCodeFor(each.status), each.exit_code) << each.status;
    EXPECT_THAT(Message(each.status), HasSubstr(each.error));
  }
}

TEST(ExpandTechniques, AllIsWhatTheModelAndTheTextAllowAndSaysWhatIsLeftOut) {
  const std::string nano = "models/terrace-demo-nano";
  const auto expand = [&](std::vector<std::string> names, const std::string& calibration, uint64_t fit,
                          std::string& notes) {
    auto out = ExpandTechniques(names, nano, {.path = calibration}, fit, notes);
    CHECK(out.ok(), Message(out.status()));
    return *std::move(out);
  };
  std::string notes;
  const auto without_text = expand({"all"}, "", 0, notes);
  EXPECT_THAT(without_text, testing::Contains("int4-rtn"));
  for (const char* name : {"int4-gptq", "int4-awq", "mixed"}) {
    EXPECT_THAT(without_text, testing::Not(testing::Contains(name)));
    EXPECT_THAT(notes, HasSubstr(Concat(name, ": left out: ", name, ": needs calibration text")));
  }
  notes.clear();
  const auto small = expand({"all"}, "models/eval/calibration.jsonl", 1, notes);
  EXPECT_THAT(small, testing::Contains("int4-gptq"));
  EXPECT_THAT(notes, HasSubstr("mixed: left out: --mixed-fit: 1 bytes"));
  notes.clear();
  EXPECT_THAT(expand({"mixed", "q8_0"}, "", 0, notes), testing::ElementsAre("mixed", "q8_0"))
      << "what is named stays, and its error is told";
  EXPECT_EQ(notes, "");
  const std::vector<std::string> all = {"all"};
  EXPECT_EQ(ExpandTechniques(all, nano, {.path = "/none"}, 0, notes).status().code(), StatusCode::kNotFound);
}

TEST(ExpandTechniques, OfModelsWithExpertsOnlyWhatTheirRowsDoNotTakeIsLeftOut) {
  const std::vector<std::string> all = {"all"};
  std::string notes;
  const auto out = ExpandTechniques(all, "tests/families/data/qwen3_moe",
                                    {.path = "models/eval/calibration.jsonl"}, 0, notes);
  ASSERT_TRUE(out.ok()) << out.status();
  EXPECT_THAT(*out, testing::IsSupersetOf({"int8", "fp8"}));
  for (const char* name : {"int4-gptq", "int4-awq", "mixed"})
    EXPECT_THAT(notes, testing::ContainsRegex(Concat(name, ": left out: [^\n]*rows of (32|40) are not")));
}

TEST(MakeVariant, TakesWhatIsThereOnlyIfTheSameRequestMadeIt) {
  const std::string folder = testing::TempDir() + "report_variants", rows = folder + "/rows.jsonl";
  std::filesystem::remove_all(folder);
  std::filesystem::create_directory(folder);
  std::ofstream(rows) << "the rows";
  const MakeOptions options = {.baseline = "/absent",
                               .baseline_digest = "d1",
                               .baseline_text_digest = "t1",
                               .folder = folder,
                               .calibration = {.path = rows, .samples = 8, .seed = 3},
                               .mixed_bytes = 1000};
  const auto output = std::filesystem::absolute("models/terrace-demo-nano.f16.gguf");
  const std::string output_digest = OpenModel(output).value().digest.Hex();
  const Json calibration = {
      {"digest", HashBytes(std::string_view("the rows")).Hex()}, {"samples", 8}, {"seed", 3}, {"tokens", 99}};
  const auto made = [&](const ReportTechnique& technique, const char* name, const Json& of,
                        const std::function<void(Json&)>& change) {
    Json json = {{"version", kVersion},
                 {"model", {{"digest", "d1"}, {"name", "m"}}},
                 {"text_digest", "t1"},
                 {"output", {{"digest", output_digest}}},
                 {"target", std::string(technique.target)},
                 {"method", std::string(technique.method)},
                 {"calibration", of}};
    change(json);
    const std::string path = Concat(folder, "/", name);
    std::filesystem::remove(path);
    std::filesystem::create_symlink(output, path);
    std::ofstream(path + ".quantize.json") << json.dump();
    TestContext test;
    return MakeVariant(technique, options, test.context).status();
  };
  const ReportTechnique gptq = {.name = "int4-gptq", .target = "int4-g32", .method = "gptq"},
                        q8 = {.name = "q8_0", .target = "q8_0", .method = "rtn"},
                        mixed = {.name = "mixed", .target = "int4-g64", .method = "gptq", .is_mixed = true};
  const auto same = [](Json&) {};
  EXPECT_EQ(made(gptq, "int4-gptq", calibration, same), Status());
  EXPECT_EQ(made(q8, "q8_0.gguf", nullptr, same), Status());
  EXPECT_EQ(made(q8, "q8_0.gguf", calibration, same).code(), StatusCode::kFailedPrecondition);
  EXPECT_EQ(made(gptq, "int4-gptq", nullptr, same).code(), StatusCode::kFailedPrecondition);
  const auto of_budget = [&](const ReportTechnique& technique, const Json& budget) {
    return made(technique, std::string(technique.name).c_str(), calibration,
                [&](Json& json) { json["budget"] = budget; });
  };
  const Json budget = {{"bytes", 1000}, {"sensitivity_tokens", QuantizeBudget().tokens}};
  EXPECT_EQ(of_budget(mixed, budget), Status());
  for (const Json& other : {Json{{"bytes", 1001}, {"sensitivity_tokens", QuantizeBudget().tokens}},
                            Json{{"bytes", 1000}, {"sensitivity_tokens", 1}}, Json()})
    EXPECT_EQ(of_budget(mixed, other).code(), StatusCode::kFailedPrecondition) << other;
  EXPECT_EQ(of_budget(gptq, budget).code(), StatusCode::kFailedPrecondition) << "it is no mixture";
  const std::function<void(Json&)> changes[] = {[](Json& json) { json["version"] = "0.0.0"; },
                                                [](Json& json) { json.erase("version"); },
                                                [](Json& json) { json["model"]["digest"] = "d2"; },
                                                [](Json& json) { json["model"] = "d1"; },
                                                [](Json& json) { json["text_digest"] = "t2"; },
                                                [](Json& json) { json.erase("text_digest"); },
                                                [](Json& json) { json["output"]["digest"] = "d2"; },
                                                [](Json& json) { json.erase("output"); },
                                                [](Json& json) { json["target"] = "int8"; },
                                                [](Json& json) { json["method"] = "awq"; },
                                                [](Json& json) { json["calibration"]["digest"] = "d1"; },
                                                [](Json& json) { json["calibration"]["samples"] = 0; },
                                                [](Json& json) { json["calibration"]["seed"] = 4; },
                                                [](Json& json) { json = Json::array(); }};
  for (const auto& change : changes) {
    const Status status = made(gptq, "int4-gptq", calibration, change);
    EXPECT_EQ(ExitCodeFor(status), kExitConfig) << status;
    EXPECT_THAT(Message(status), HasSubstr("name another --work"));
  }
}

}  // namespace
}  // namespace terrace
