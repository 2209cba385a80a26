#include "base/config.h"

#include <fstream>

#include "base/exit_code.h"
#include "gmock/gmock.h"
#include "google/protobuf/struct.pb.h"
#include "google/protobuf/type.pb.h"
#include "google/protobuf/util/message_differencer.h"
#include "google/protobuf/wrappers.pb.h"
#include "gtest/gtest.h"
#include "proto/terrace/v1/config.pb.h"

namespace terrace {
namespace {

using google::protobuf::util::MessageDifferencer;
using testing::HasSubstr;
using testing::StartsWith;

std::string ErrorOf(const Status& status) {
  EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition) << status;
  EXPECT_EQ(ExitCodeFor(status), kExitConfig);
  return Message(status);
}

template <typename T>
std::string ErrorOf(std::string_view yaml) {
  T message;
  return ErrorOf(ParseYaml(yaml, "c.yaml", message));
}

std::string RouterError(std::string_view yaml) { return ErrorOf<v1::RouterConfig>(yaml); }

TEST(ParseYaml, FillsEveryKindOfField) {
  v1::RouterConfig config;
  ASSERT_EQ(ParseYaml(R"(
# The demo.
listen: {http: "", grpc: 127.0.0.1:8081}
tiers:
  - name: nano
    workers: ["a:1", b:2]
    usd_per_million_prompt_tokens: 1
  - {name: "5", usd_per_million_prompt_tokens: 0.25}
admission:
  max_in_flight: 4294967295
policies:
- name: auto
  cascade:
    steps:
    - tier: nano
      min_mean_logprob: -1.5e-1
    - tier: "5"
)",
                      "c.yaml", config),
            absl::OkStatus());
  EXPECT_TRUE(config.listen().has_http());
  EXPECT_EQ(config.listen().http(), "");
  EXPECT_EQ(config.listen().grpc(), "127.0.0.1:8081");
  EXPECT_FALSE(config.listen().has_ops());
  ASSERT_EQ(config.tiers_size(), 2);
  EXPECT_THAT(config.tiers(0).workers(), testing::ElementsAre("a:1", "b:2"));
  EXPECT_EQ(config.tiers(0).usd_per_million_prompt_tokens(), 1.0);
  EXPECT_EQ(config.tiers(1).name(), "5");
  EXPECT_EQ(config.admission().max_in_flight(), 4294967295u);
  EXPECT_EQ(config.policies(0).cascade().steps(0).min_mean_logprob(), -0.15);
  EXPECT_FALSE(config.policies(0).cascade().steps(1).has_min_mean_logprob());
}

TEST(ParseYaml, FillsEnumsBooleansAndMaps) {
  google::protobuf::Field field;
  ASSERT_TRUE(ParseYaml("{kind: TYPE_INT32, packed: true, number: -7}", "c.yaml", field).ok());
  EXPECT_EQ(field.kind(), google::protobuf::Field::TYPE_INT32);
  EXPECT_TRUE(field.packed());
  EXPECT_EQ(field.number(), -7);
  google::protobuf::Struct map;
  ASSERT_TRUE(ParseYaml("fields: {a: {number_value: 2}, b: {string_value: x}}", "c.yaml", map).ok());
  EXPECT_EQ(map.fields().at("a").number_value(), 2);
  EXPECT_EQ(map.fields().at("b").string_value(), "x");
}

TEST(ParseYaml, ReachesTheEndsOfEveryIntegerType) {
  google::protobuf::Int64Value int64;
  ASSERT_TRUE(ParseYaml("value: -9223372036854775808", "c.yaml", int64).ok());
  EXPECT_EQ(int64.value(), std::numeric_limits<int64_t>::min());
  google::protobuf::UInt64Value uint64;
  ASSERT_TRUE(ParseYaml("value: 18446744073709551615", "c.yaml", uint64).ok());
  EXPECT_EQ(uint64.value(), std::numeric_limits<uint64_t>::max());
  EXPECT_EQ(ErrorOf<google::protobuf::UInt64Value>("value: 18446744073709551616"),
            "c.yaml:1:8: value: 18446744073709551616 is out of range, 0 to 18446744073709551615");
  EXPECT_EQ(ErrorOf<google::protobuf::UInt32Value>("value: -1"),
            "c.yaml:1:8: value: -1 is out of range, 0 to 4294967295");
  EXPECT_EQ(ErrorOf<google::protobuf::Int32Value>("value: 2147483648"),
            "c.yaml:1:8: value: 2147483648 is out of range, -2147483648 to 2147483647");
}

TEST(ParseYaml, AFileOfCommentsChangesNothing) {
  v1::RouterConfig config;
  for (const char* yaml : {"", "# nothing\n", "---\n", "{}"})
    EXPECT_TRUE(ParseYaml(yaml, "c.yaml", config).ok()) << yaml;
  EXPECT_TRUE(MessageDifferencer::Equals(config, v1::RouterConfig()));
}

TEST(ParseYaml, MergesMessagesReplacesListsAndLeavesAllAloneOnAnError) {
  v1::RouterConfig config;
  ASSERT_TRUE(ParseYaml("{listen: {http: a:1}, tiers: [{name: x}, {name: y}]}", "c.yaml", config).ok());
  ASSERT_TRUE(ParseYaml("{listen: {grpc: b:2}, tiers: [{name: z}]}", "c.yaml", config).ok());
  EXPECT_EQ(config.listen().http(), "a:1");
  EXPECT_EQ(config.listen().grpc(), "b:2");
  ASSERT_EQ(config.tiers_size(), 1);
  const v1::RouterConfig before = config;
  EXPECT_FALSE(ParseYaml("{default_model: q, listen: {http: c:3}, tiers: 7}", "c.yaml", config).ok());
  EXPECT_TRUE(MessageDifferencer::Equals(config, before));
}

TEST(ParseYaml, UnknownKeysAreErrorsWithTheirPlaceAndAHint) {
  EXPECT_EQ(RouterError("listen:\n  htp: a:1\n"),
            "c.yaml:2:3: listen.htp: unknown key, did you mean \"http\"?");
  EXPECT_EQ(RouterError("tiers:\n- name: x\n- name: y\n  wrokers: []\n"),
            "c.yaml:4:3: tiers[1].wrokers: unknown key, did you mean \"workers\"?");
  EXPECT_EQ(RouterError("log: {colour: red}"), "c.yaml:1:7: log.colour: unknown key, known: level, format");
}

TEST(ParseYaml, ErrorsOfAFileOfSecretsSayNothingThatItHasButDeclaredKeys) {
  const struct {
    const char* yaml;
    const char* error;
  } cases[] = {
      {"tenants: [{sk-live-abc: acme}]", "c.yaml:1:12: tenants[0].***: unknown key, known: name, "},
      {"sk-live-abc: acme", "c.yaml:1:1: ***: unknown key, known: tenants"},
      {"tenants: [{nmae: sk-live-abc}]", "c.yaml:1:12: tenants[0].***: unknown key, did you mean \"name\"?"},
      {"tenants: [{name: a, max_priority: sk-live-abc}]", "c.yaml:1:35: tenants[0].max_priority: expected"},
      {"tenants: [{name: a, max_priority: 77777777777777}]",
       "c.yaml:1:35: tenants[0].max_priority: *** is out of range"},
      {"tenants: [{name: a, weight: 1e777}]", "c.yaml:1:29: tenants[0].weight: *** is not a finite number"},
      {"tenants: [{name: a, name: sk-live-abc}]", "c.yaml:1:21: tenants[0].***: given twice"},
      {"tenants: !sk-live-abc []", "c.yaml:1:"},
      {"tenants: *sk-live-abc", "c.yaml:1:"},
      {"tenants: &sk-live-abc []", "c.yaml:1:"},
      {"tenants: [\"sk-live-abc", "c.yaml:1:"},
  };
  for (const auto& c : cases) {
    v1::TenantsFile file;
    const std::string error = ErrorOf(ParseYaml(c.yaml, "c.yaml", file, ConfigValues::kSecret));
    EXPECT_THAT(error, StartsWith(c.error)) << c.yaml;
    EXPECT_THAT(error, testing::Not(HasSubstr("live"))) << c.yaml;
    EXPECT_THAT(error, testing::Not(HasSubstr("777"))) << c.yaml;
  }
  google::protobuf::Struct map;
  const std::string error =
      ErrorOf(ParseYaml("fields: {sk-live-abc: {number_value: x}}", "c.yaml", map, ConfigValues::kSecret));
  EXPECT_THAT(error, StartsWith("c.yaml:1:38: fields.***.number_value: expected a number"));
}

TEST(ParseYaml, TypesAreStrict) {
  const struct {
    const char* yaml;
    const char* error;
  } cases[] = {
      {"admission: {max_in_flight: \"5\"}",
       "c.yaml:1:28: admission.max_in_flight: expected a whole number, found the string \"5\""},
      {"admission: {max_in_flight: 5.0}",
       "c.yaml:1:28: admission.max_in_flight: expected a whole number, found 5.0"},
      {"admission: {max_in_flight: 010}",
       "c.yaml:1:28: admission.max_in_flight: expected a whole number, found 010"},
      {"admission: {max_in_flight: true}",
       "c.yaml:1:28: admission.max_in_flight: expected a whole number, found true"},
      {"admission: {max_in_flight: [5]}",
       "c.yaml:1:28: admission.max_in_flight: expected a whole number, found a list"},
      {"admission: {max_in_flight: }",
       "c.yaml:1:13: admission.max_in_flight: expected a whole number, found nothing"},
      {"admission: {default_timeout_seconds: fast}",
       "c.yaml:1:38: admission.default_timeout_seconds: expected a number, found the string \"fast\""},
      {"admission: {default_timeout_seconds: .inf}",
       "c.yaml:1:38: admission.default_timeout_seconds: .inf is not a finite number"},
      {"admission: {default_timeout_seconds: .nan}",
       "c.yaml:1:38: admission.default_timeout_seconds: .nan is not a finite number"},
      {"admission: {default_timeout_seconds: 1e999}",
       "c.yaml:1:38: admission.default_timeout_seconds: 1e999 is not a finite number"},
      {"default_model: 5", "c.yaml:1:16: default_model: expected a string (write \"5\"), found 5"},
      {"default_model: true", "c.yaml:1:16: default_model: expected a string (write \"true\"), found true"},
      {"default_model:\nlog: {}",
       "c.yaml:1:1: default_model: expected a string (\"\" for an empty one), found nothing"},
      {"listen: a:1", "c.yaml:1:9: listen: expected a mapping, found the string \"a:1\""},
      {"tiers: {name: x}", "c.yaml:1:8: tiers: expected a list, found a mapping"},
      {"tiers: [x]", "c.yaml:1:9: tiers[0]: expected a mapping, found the string \"x\""},
      {"- a", "c.yaml:1:1: expected a mapping, found a list"},
      {"? [a]\n: b", "c.yaml:1:3: expected a key, found a list"},
  };
  for (const auto& c : cases) EXPECT_EQ(RouterError(c.yaml), c.error) << c.yaml;
  EXPECT_EQ(ErrorOf<google::protobuf::Field>("packed: 1"),
            "c.yaml:1:9: packed: expected true or false, found 1");
  EXPECT_EQ(ErrorOf<google::protobuf::Field>("packed: yes"),
            "c.yaml:1:9: packed: expected true or false, found the string \"yes\"");
  EXPECT_EQ(ErrorOf<google::protobuf::Field>("kind: TYPE_INT33"),
            "c.yaml:1:7: kind: unknown name \"TYPE_INT33\", did you mean \"TYPE_INT32\"?");
  EXPECT_EQ(ErrorOf<google::protobuf::FloatValue>("value: 1e39"),
            "c.yaml:1:8: value: 1e39 is not a finite number");
}

TEST(ParseYaml, WhatTheSubsetLeavesOutIsAnError) {
  EXPECT_EQ(RouterError("default_model: a\nlog: {}\ndefault_model: b"),
            "c.yaml:3:1: default_model: given twice");
  EXPECT_EQ(RouterError("listen: &x {http: a:1}"), "c.yaml:1:9: anchors (&name) are not supported");
  EXPECT_THAT(RouterError("a: &x 1\nb: *x"), HasSubstr("anchors"));
  EXPECT_EQ(RouterError("listen:\n  <<: {http: a:1}"), "c.yaml:2:3: merge keys (<<) are not supported");
  EXPECT_EQ(RouterError("log: {}\n---\nlog: {}"), "c.yaml:2:1: a second document; one is allowed");
  EXPECT_THAT(RouterError("default_model: !!str 5"), HasSubstr("tags"));
  EXPECT_THAT(RouterError(std::string(40, '[') + std::string(40, ']')),
              HasSubstr("nested more than 32 deep"));
  EXPECT_THAT(RouterError(std::string(100'000, '[')), StartsWith("c.yaml:1:"));
  EXPECT_EQ(RouterError(std::string((1 << 20) + 1, ' ')), "c.yaml: 1048577 bytes, limit 1048576");
}

TEST(ParseYaml, BrokenYamlIsAnErrorWithItsPlace) {
  EXPECT_EQ(RouterError("log: {level: info"), "c.yaml:1:1: end of map flow not found");
  EXPECT_THAT(RouterError("log:\n  level: info\n format: json\n"), StartsWith("c.yaml:3:"));
  EXPECT_THAT(RouterError("log: \"abc"), StartsWith("c.yaml:1:"));
  EXPECT_THAT(RouterError("a: *nowhere"), StartsWith("c.yaml:1:"));
}

TEST(LoadYamlFile, NamesTheFileInErrors) {
  const std::string path = testing::TempDir() + "/config_test.yaml";
  std::ofstream(path) << "log:\n  levle: info\n";
  v1::RouterConfig config;
  EXPECT_EQ(ErrorOf(LoadYamlFile(path, config)),
            path + ":2:3: log.levle: unknown key, did you mean \"level\"?");
  EXPECT_EQ(LoadYamlFile(path + ".absent", config).code(), StatusCode::kNotFound);
  std::ofstream(path) << std::string((1 << 20) + 1, '#');
  EXPECT_EQ(LoadYamlFile(path, config).code(), StatusCode::kFailedPrecondition) << "it is there";
}

TEST(ApplyOverride, SetsOneFieldByItsPath) {
  v1::RouterConfig config;
  ASSERT_TRUE(ParseYaml("tiers: [{name: x}, {name: y, workers: [a:1]}]", "c.yaml", config).ok());
  for (const char* assignment : {"admission.max_in_flight=2", "tiers[1].workers=[\"b:2\", c:3]",
                                 "listen.http=\"\"", "default_model=a=b", "log={level: debug}"}) {
    EXPECT_EQ(ApplyOverride(assignment, config), absl::OkStatus());
  }
  EXPECT_EQ(config.admission().max_in_flight(), 2u);
  EXPECT_THAT(config.tiers(1).workers(), testing::ElementsAre("b:2", "c:3"));
  EXPECT_TRUE(config.listen().has_http());
  EXPECT_EQ(config.default_model(), "a=b");
  EXPECT_EQ(config.log().level(), "debug");
}

TEST(ApplyOverride, SaysWhatIsWrong) {
  v1::RouterConfig config;
  config.add_tiers();
  const struct {
    const char* assignment;
    const char* error;
  } cases[] = {
      {"default_model", "expected name=value"},
      {"=5",
       ": unknown key, known: listen, tiers, policies, default_model, admission, log, cluster, balance, "
       "auth, drain_seconds"},
      {"lisen.http=a", "lisen: unknown key, did you mean \"listen\"?"},
      {"listen.htp=a", "listen.htp: unknown key, did you mean \"http\"?"},
      {"listen.http.x=a", "listen.http: has no fields to step into"},
      {"listen[0].http=a", "listen[0]: is not a list"},
      {"tiers.name=a", "tiers: is a list, name an element: [0]"},
      {"tiers[1].name=a", "tiers[1]: no such element, the list has 1"},
      {"tiers[-1].name=a", "tiers[-1]: no such element, the list has 1"},
      {"tiers[0x].name=a", "tiers[0x]: no such element, the list has 1"},
      {"tiers[.name=a", "tiers[: no such element, the list has 1"},
      {"tiers[0]={}", "tiers[0]: set a field of the element, or the whole list"},
      {"admission.max_in_flight=many",
       "admission.max_in_flight: expected a whole number, found the string \"many\""},
      {"log={levle: info}", "log.levle: unknown key, did you mean \"level\"?"},
      {"log={level: info", "end of map flow not found"},
  };
  for (const auto& c : cases) {
    EXPECT_EQ(ErrorOf(ApplyOverride(c.assignment, config)), Concat("--set ", c.assignment, ": ", c.error));
  }
}

}  // namespace
}  // namespace terrace
