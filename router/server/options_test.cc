#include "router/server/options.h"

#include <fstream>

#include "base/config.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::EndsWith;
using ::testing::StartsWith;

constexpr char kDemo[] = R"(
tiers:
  - name: nano
    workers: ["127.0.0.1:8101"]
    usd_per_million_prompt_tokens: 0.02
    usd_per_million_completion_tokens: 0.05
    aliases: [gpt-tiny]
  - name: base
    workers: ["127.0.0.1:8102", "dns:///workers:8101"]
policies:
  - name: auto
    cascade:
      steps:
        - {tier: nano, min_mean_logprob: -0.1}
        - {tier: base}
)";

StatusOr<RouterOptions> Parse(const std::string& yaml, const std::string& override_text = "") {
  v1::RouterConfig config;
  RETURN_IF_ERROR(ParseYaml(yaml, "test.yaml", config));
  if (!override_text.empty()) RETURN_IF_ERROR(ApplyOverride(override_text, config));
  return MakeRouterOptions(config);
}

TEST(RouterOptions, AbsentSettingsHaveTheirDefaults) {
  const auto options = Parse(kDemo);
  ASSERT_TRUE(options.ok()) << options.status();
  EXPECT_EQ(options->http, "127.0.0.1:8080");
  EXPECT_EQ(options->grpc, "127.0.0.1:8081");
  EXPECT_EQ(options->ops, "127.0.0.1:9090");
  EXPECT_EQ(options->max_in_flight, 16384u);
  EXPECT_EQ(options->default_timeout_seconds, 600);
  EXPECT_EQ(options->watch_timeout_seconds, 3);
  EXPECT_EQ(options->balance, BalancePolicy::kPrefix);
  EXPECT_EQ(options->ejection.consecutive_failures, 3u);
  EXPECT_EQ(options->ejection.first_time, std::chrono::seconds(10));
  EXPECT_EQ(options->ejection.longest, std::chrono::seconds(120));
  EXPECT_EQ(options->ejection.max_share, 0.5);
  EXPECT_EQ(options->ejection.window_failures, 5u);
  EXPECT_EQ(options->ejection.window_calls, 20u);
  EXPECT_EQ(options->slow_start_seconds, 30);
  EXPECT_EQ(options->drain_seconds, 30);
  EXPECT_EQ(options->retries.ratio, 0.1);
  EXPECT_EQ(options->retries.max_attempts, 3u);
  EXPECT_EQ(options->retries.resume_patience, std::chrono::seconds(10));
  ASSERT_EQ(options->tiers.size(), 2u);
  EXPECT_EQ(options->tiers[0].price.usd_per_million_prompt_tokens, 0.02);
  EXPECT_THAT(options->workers[1], ElementsAre("127.0.0.1:8102", "dns:///workers:8101"));
  ASSERT_EQ(options->policies.size(), 1u);
  ASSERT_EQ(options->policies[0].steps.size(), 2u);
  EXPECT_EQ(options->policies[0].steps[0].gate.threshold(), -0.1);
  EXPECT_FALSE(options->policies[0].steps[0].verifies) << "there is nothing before it";
  EXPECT_TRUE(options->policies[0].steps[1].gate.is_open());
  EXPECT_TRUE(options->policies[0].steps[1].verifies);
  EXPECT_TRUE(options->log.as_json);
}

TEST(RouterOptions, AnEmptyAddressTurnsAListenerOff) {
  EXPECT_EQ(Parse(kDemo, "listen.http=\"\"")->http, "");
}

TEST(RouterOptions, ReflectionIsOnWhereOtherMachinesDoNotReachIt) {
  EXPECT_TRUE(Parse(kDemo)->grpc_reflection);
  EXPECT_FALSE(Parse(kDemo, "listen.grpc_reflection=false")->grpc_reflection);
  EXPECT_FALSE(Parse(kDemo, "listen={grpc: '0.0.0.0:1', insecure: true}")->grpc_reflection);
  EXPECT_TRUE(
      Parse(kDemo, "listen={grpc: '0.0.0.0:1', insecure: true, grpc_reflection: true}")->grpc_reflection);
}

TEST(RouterOptions, TlsIsOnWhereItIsConfigured) {
  const auto plain = Parse(kDemo);
  EXPECT_FALSE(plain->tls.has_value() || plain->worker_tls.has_value());
  const auto options =
      Parse(std::string(kDemo) +
            "listen: {tls: {certificate_file: c.pem, key_file: k.pem, client_ca_file: a.pem}}\n"
            "cluster: {tls: {server_name: worker.internal}}\n");
  ASSERT_TRUE(options.ok()) << options.status();
  ASSERT_TRUE(options->tls.has_value() && options->worker_tls.has_value());
  EXPECT_EQ(options->tls->certificate, "c.pem");
  EXPECT_EQ(options->tls->key, "k.pem");
  EXPECT_EQ(options->tls->ca, "a.pem");
  EXPECT_EQ(options->worker_tls->ca, "") << "the system's";
  EXPECT_EQ(options->worker_server_name, "worker.internal");
}

TEST(RouterOptions, EveryHttpLimitIsTaken) {
  const auto defaults = Parse(kDemo);
  EXPECT_EQ(defaults->http_limits.max_connections, 16384u);
  EXPECT_EQ(defaults->http_limits.stream_buffer_bytes, 262144u);
  EXPECT_EQ(defaults->http_limits.slow_reader_seconds, 60);
  EXPECT_EQ(defaults->http_limits.max_buffered_body_bytes, 1u << 30);
  const auto options =
      Parse(std::string(kDemo) +
            "listen: {http_limits: {max_connections: 1, max_header_bytes: 2, max_headers: 3, "
            "header_timeout_seconds: 4, min_body_bytes_per_second: 5, idle_timeout_seconds: 6, "
            "stream_buffer_bytes: 7, slow_reader_seconds: 8, max_buffered_body_bytes: 8388608}}\n");
  ASSERT_TRUE(options.ok()) << options.status();
  const HttpLimits& limits = options->http_limits;
  EXPECT_EQ(limits.max_connections, 1u);
  EXPECT_EQ(limits.max_header_bytes, 2u);
  EXPECT_EQ(limits.max_headers, 3u);
  EXPECT_EQ(limits.header_timeout_seconds, 4);
  EXPECT_EQ(limits.min_body_bytes_per_second, 5u);
  EXPECT_EQ(limits.idle_timeout_seconds, 6);
  EXPECT_EQ(limits.stream_buffer_bytes, 7u);
  EXPECT_EQ(limits.slow_reader_seconds, 8);
  EXPECT_EQ(limits.max_buffered_body_bytes, 8388608u);
}

TEST(RouterOptions, EveryGrpcLimitIsTaken) {
  const auto defaults = Parse(kDemo);
  EXPECT_EQ(defaults->grpc_limits.max_streams, 1024u);
  EXPECT_EQ(defaults->grpc_limits.max_memory_bytes, 1u << 30);
  EXPECT_EQ(defaults->grpc_limits.max_resets, 200u);
  const auto options =
      Parse(std::string(kDemo) +
            "listen: {grpc_limits: {max_streams: 1, max_memory_bytes: 16777216, max_resets: 0}}\n");
  ASSERT_TRUE(options.ok()) << options.status();
  EXPECT_EQ(options->grpc_limits,
            (GrpcLimits{.max_streams = 1, .max_memory_bytes = 16777216, .max_resets = 0}));
}

TEST(RouterOptions, TheHashTellsConfigurationsApart) {
  EXPECT_EQ(Parse(kDemo)->config_hash, Parse(std::string(kDemo) + "# a comment\n")->config_hash);
  EXPECT_NE(Parse(kDemo)->config_hash, Parse(kDemo, "admission.max_queued=7")->config_hash);
  EXPECT_LT(Parse(kDemo)->config_hash, uint64_t{1} << 48);
}

TEST(RouterOptions, ABodyOfTheLargestSizeFitsIntoTheMemoryOfAll) {
  const auto options = Parse(kDemo, "admission.max_body_bytes=2000000000");
  ASSERT_TRUE(options.ok()) << options.status();
  EXPECT_EQ(options->http_limits.max_buffered_body_bytes, 2000000000u) << "the default is raised";
}

TEST(RouterOptions, WhatOtherMachinesReachNeedsTlsAndKeysOrToBeCalledInsecure) {
  const std::string tls = "tls: {certificate_file: c, key_file: k}",
                    keys = "auth: {keys_file: f, cluster_secret_file: s}\n";
  const std::string mutual = "tls: {certificate_file: c, key_file: k, client_ca_file: a}";
  const struct {
    std::string listen, rest;
    const char* error;  // begins and ends like this; null: none
    const char* remedy;
  } cases[] = {
      {"http: '127.0.0.2:1', grpc: 'localhost:1', ops: '[::1]:1'", "", nullptr, nullptr},
      {"http: '0.0.0.0:1'", "", "listen.http: 0.0.0.0:1", "needs listen.tls, or listen.insecure: true"},
      {"http: '0.0.0.0:1'", keys, "listen.http: ", "needs listen.tls, or listen.insecure: true"},
      {"http: '0.0.0.0:1', " + tls, "",
       "listen.http: ", "needs auth.keys_file or listen.tls.client_ca_file, or listen.insecure: true"},
      {"http: '0.0.0.0:1', " + tls, keys, nullptr, nullptr},
      {"http: '0.0.0.0:1', " + mutual, "", nullptr, nullptr},
      {"http: '', grpc: '[::]:1'", "", "listen.grpc: [::]:1", "needs listen.tls, or listen.insecure: true"},
      {"grpc: 'router.internal:1', " + tls, keys, nullptr, nullptr},
      {"ops: '10.0.0.1:1', " + mutual, keys,
       "listen.ops: ", "needs listen.ops_insecure: true, as it asks nobody for a key"},
      {"ops: '0.0.0.0:3', ops_insecure: true", "", nullptr, nullptr},
      {"http: '0.0.0.0:1', ops: '0.0.0.0:3', ops_insecure: true", "", "listen.http: 0.0.0.0:1",
       "needs listen.tls, or listen.insecure: true"},
      {"http: '0.0.0.0:1', grpc: '0.0.0.0:2', ops: '0.0.0.0:3', insecure: true", "", nullptr, nullptr},
  };
  for (const auto& c : cases) {
    SCOPED_TRACE(c.listen + "; " + c.rest);
    const auto options = Parse(std::string(kDemo) + "listen: {" + c.listen + "}\n" + c.rest);
    EXPECT_EQ(options.ok(), c.error == nullptr) << options.status();
    if (c.error == nullptr || options.ok()) continue;
    EXPECT_EQ(options.status().code(), StatusCode::kFailedPrecondition);
    EXPECT_THAT(Message(options.status()), AllOf(StartsWith(c.error), EndsWith(c.remedy)));
  }
}

TEST(RouterOptions, HealthIsSetAsWritten) {
  const auto options = Parse(kDemo,
                             "cluster={ejection: {consecutive_failures: 0, seconds: 0.5, max_seconds: 2, "
                             "max_share: 1, window_failures: 7, window_calls: 64}, slow_start_seconds: 0, "
                             "retry_ratio: 0, max_attempts: 1, "
                             "resume_patience_seconds: 0.5}");
  ASSERT_TRUE(options.ok()) << options.status();
  EXPECT_EQ(options->ejection.consecutive_failures, 0u);
  EXPECT_EQ(options->ejection.first_time, std::chrono::milliseconds(500));
  EXPECT_EQ(options->ejection.longest, std::chrono::seconds(2));
  EXPECT_EQ(options->ejection.max_share, 1);
  EXPECT_EQ(options->ejection.window_failures, 7u);
  EXPECT_EQ(options->ejection.window_calls, 64u);
  EXPECT_EQ(options->slow_start_seconds, 0);
  EXPECT_EQ(options->retries.ratio, 0);
  EXPECT_EQ(options->retries.max_attempts, 1u);
  EXPECT_EQ(options->retries.resume_patience, std::chrono::milliseconds(500));
}

TEST(RouterOptions, TheTokenCacheIsSetAsWrittenAndMayBeOff) {
  EXPECT_EQ(Parse(kDemo)->token_cache_bytes, 67108864u);
  EXPECT_EQ(Parse(kDemo, "cluster.token_cache_bytes=1048576")->token_cache_bytes, 1048576u);
  EXPECT_EQ(Parse(kDemo, "cluster.token_cache_bytes=0")->token_cache_bytes, 0u);
}

TEST(RouterOptions, ATierMayRequireManifestsWhichAreWatched) {
  const auto none = Parse(kDemo);
  for (const auto& tier : none->manifests) EXPECT_FALSE(tier.has_value());
  const auto set = Parse(kDemo,
                         "tiers=[{name: nano, workers: ['a:1']}, {name: base, workers: ['b:1'], "
                         "require_manifest: true, manifests: [a.json, b.json], manifest_keys: [k.pem], "
                         "manifest_baseline: 0123456789abcdef0123456789abcdef, "
                         "manifest_limits: {max_margin: 0.02, min_rows: 100}}]");
  ASSERT_TRUE(set.ok()) << set.status();
  ASSERT_EQ(set->manifests.size(), 2u);
  EXPECT_FALSE(set->manifests[0].has_value());
  EXPECT_EQ(set->manifests[1], (ManifestGateOptions{.files = {"a.json", "b.json"},
                                                    .key_files = {"k.pem"},
                                                    .baseline = "0123456789abcdef0123456789abcdef",
                                                    .limits = {.max_margin = 0.02, .min_rows = 100}}));
  EXPECT_THAT(set->manifest_files(), ElementsAre("a.json", "b.json", "k.pem"));
}

TEST(RouterOptions, ACascadesStepsMayVerifyAndMayBeJudgedEarly) {
  const auto options =
      Parse(kDemo,
            "policies[0].cascade={verify: false, steps: [{tier: nano, min_mean_logprob: -0.1, "
            "hold: {tokens: 8, seconds: 0.25, accept_above: -0.05, reject_below: -1}}, {tier: base}]}");
  ASSERT_TRUE(options.ok()) << options.status();
  const auto& steps = options->policies[0].steps;
  EXPECT_FALSE(steps[1].verifies);
  const AnswerSignals sure = {8, -0.01}, unsure = {8, -2};
  EXPECT_EQ(steps[0].gate.JudgeEarly(sure, Duration(0)), Verdict::kAccepted);
  EXPECT_EQ(steps[0].gate.JudgeEarly(unsure, Duration(0)), Verdict::kRejected);
  EXPECT_EQ(steps[0].gate.JudgeEarly({7, -2}, Duration(0)), Verdict::kUndecided);
  EXPECT_EQ(steps[0].gate.JudgeEarly({7, -2}, std::chrono::milliseconds(250)), Verdict::kRejected);
}

TEST(RouterOptions, AVerifyPolicyDraftsOnOneTierAndAnswersOnAnother) {
  const auto options = Parse(kDemo, "policies=[{name: auto, verify: {draft: nano, tier: base}}]");
  ASSERT_TRUE(options.ok()) << options.status();
  const auto& steps = options->policies[0].steps;
  ASSERT_EQ(steps.size(), 2u);
  EXPECT_EQ(steps[0].tier, 0u);
  EXPECT_FALSE(steps[0].gate.Accepts({9, 0})) << "its answer is never given";
  EXPECT_EQ(steps[1].tier, 1u);
  EXPECT_TRUE(steps[1].gate.is_open());
  EXPECT_TRUE(steps[1].verifies);
}

TEST(RouterOptions, ABudgetHasCandidatesAndBounds) {
  const auto options = Parse(kDemo,
                             "policies=[{name: auto, budget: {max_usd: 0.01, max_seconds: 2.5, "
                             "expected_answer_tokens: 64, "
                             "when_nothing_fits: refuse, candidates: [{tier: base, expected_quality: 0.9}, "
                             "{tier: nano, expected_quality: 0}]}}]");
  ASSERT_TRUE(options.ok()) << options.status();
  ASSERT_TRUE(options->policies[0].budget.has_value());
  const BudgetOptions& budget = *options->policies[0].budget;
  ASSERT_EQ(budget.candidates.size(), 2u);
  EXPECT_EQ(budget.candidates[0].tier, 1u);
  EXPECT_EQ(budget.candidates[0].expected_quality, 0.9);
  EXPECT_EQ(budget.max_usd, 0.01);
  EXPECT_EQ(budget.max_seconds, 2.5);
  EXPECT_EQ(budget.expected_answer_tokens, 64u);
  EXPECT_TRUE(budget.refuses);
  const auto defaults =
      Parse(kDemo, "policies=[{name: auto, budget: {candidates: [{tier: base, expected_quality: 1}]}}]");
  ASSERT_TRUE(defaults.ok()) << defaults.status();
  EXPECT_FALSE(defaults->policies[0].budget->max_usd.has_value());
  EXPECT_FALSE(defaults->policies[0].budget->max_seconds.has_value());
  EXPECT_EQ(defaults->policies[0].budget->expected_answer_tokens, 256u);
  EXPECT_FALSE(defaults->policies[0].budget->refuses);
}

// A file of a calibration of nano and base.
std::string WriteCalibration(CalibrationKind kind) {
  const Calibration calibration = {
      .kind = kind,
      .policy = "auto",
      .steps = {{.tier = "nano", .gate = CalibratedGate{.threshold = 0.5}}, {.tier = "base"}},
      .evidence = {.epsilon = 0.03}};
  const std::string file = testing::TempDir() + "options_test_" + CalibrationKindName(kind) + ".json";
  std::ofstream(file) << CalibrationText(calibration);
  return file;
}

TEST(RouterOptions, ACalibrationMayBeShadowedAndOutweighedByTheCache) {
  const std::string file = WriteCalibration(CalibrationKind::kClassifier);
  const auto options =
      Parse(kDemo, "policies=[{name: auto, calibration: " + file +
                       ", cache_affinity: true, shadow: {share: 0.5, max_in_flight: 2, "
                       "min_agreement: 0.25, max_disagreement: 0, window: 50, delta: 0.01}}]");
  ASSERT_TRUE(options.ok()) << options.status();
  const CatalogPolicy& policy = options->policies[0];
  EXPECT_TRUE(policy.cache_affinity);
  EXPECT_EQ(policy.calibration_file, file);
  ASSERT_TRUE(policy.shadow.has_value());
  EXPECT_EQ(policy.shadow->share, 0.5);
  EXPECT_EQ(policy.shadow->max_in_flight, 2u);
  EXPECT_EQ(policy.shadow->min_agreement, 0.25);
  EXPECT_EQ(policy.shadow->max_disagreement, 0);
  EXPECT_EQ(policy.shadow->window, 50u);
  EXPECT_EQ(policy.shadow->delta, 0.01);
  const auto defaults =
      Parse(kDemo, "policies=[{name: auto, calibration: " + file + ", shadow: {max_disagreement: 0.1}}]");
  ASSERT_TRUE(defaults.ok()) << defaults.status();
  EXPECT_FALSE(defaults->policies[0].cache_affinity);
  EXPECT_EQ(defaults->policies[0].shadow->share, 0.01);
  EXPECT_EQ(defaults->policies[0].shadow->max_disagreement, 0.1);
  const auto none = Parse(kDemo, "policies=[{name: auto, calibration: " + file + "}]");
  EXPECT_FALSE(none->policies[0].shadow.has_value());
}

TEST(RouterOptions, AHandSetCascadeMayBeShadowedAndAnyPolicyOfSeveralTiersRecorded) {
  const std::string cascade = "cascade: {steps: [{tier: nano, min_mean_logprob: -0.1}, {tier: base}]}";
  const std::string verify = "verify: {draft: nano, tier: base}";
  const std::string calibration = "calibration: " + WriteCalibration(CalibrationKind::kCascade);
  const auto shadow = [](const std::string& policy, const std::string& settings) -> ShadowOptions {
    const auto options = Parse(kDemo, "policies=[{name: auto, " + policy + ", shadow: {" + settings + "}}]");
    EXPECT_TRUE(options.ok()) << options.status();
    return options.ok() ? options->policies[0].shadow.value() : ShadowOptions();
  };
  EXPECT_EQ(shadow(cascade, "max_disagreement: 0.1").max_disagreement, 0.1);
  EXPECT_TRUE(shadow(cascade, "max_disagreement: 0.1").records_file.empty());
  for (const std::string& policy : {cascade, verify, calibration}) {
    const ShadowOptions alone = shadow(policy, "records_file: r.jsonl");
    EXPECT_EQ(alone.records_file, "r.jsonl");
    EXPECT_EQ(alone.max_records, 10'000u);
    EXPECT_FALSE(alone.judges_drift()) << "none was asked for";
    EXPECT_EQ(shadow(policy, "records_file: r.jsonl, max_records: 100000").max_records, 100'000u);
  }
  for (const std::string& policy : {cascade, calibration})
    EXPECT_TRUE(shadow(policy, "records_file: r.jsonl, max_disagreement: 0").judges_drift());
}

TEST(RouterOptions, AShadowThatCannotBeIsAnErrorOfItsSetting) {
  const std::string cascade = "cascade: {steps: [{tier: nano, min_mean_logprob: -0.1}, {tier: base}]}";
  const struct {
    std::string policies;
    const char* path;
  } cases[] = {
      {"{name: p, cascade: {steps: [{tier: base}]}, shadow: {max_disagreement: 0.1}}", "policies[0].shadow:"},
      {"{name: p, cascade: {steps: [{tier: nano, min_mean_logprob: -1}, {tier: nano, min_mean_logprob: -2}, "
       "{tier: base}]}, shadow: {records_file: r}}",
       "policies[0].shadow:"},
      {"{name: p, budget: {candidates: [{tier: base, expected_quality: 1}, {tier: nano, expected_quality: "
       "0}]}, shadow: {records_file: r}}",
       "policies[0].shadow:"},
      {"{name: p, verify: {draft: nano, tier: base}, shadow: {}}", "policies[0].shadow.records_file:"},
      {"{name: p, verify: {draft: nano, tier: base}, shadow: {records_file: r, max_disagreement: 0.1}}",
       "policies[0].shadow.max_disagreement:"},
      {"{name: p, " + cascade + ", shadow: {}}", "policies[0].shadow.max_disagreement:"},
      {"{name: p, " + cascade + ", shadow: {records_file: r, max_records: 0}}",
       "policies[0].shadow.max_records:"},
      {"{name: p, " + cascade + ", shadow: {records_file: r, max_records: 100001}}",
       "policies[0].shadow.max_records:"},
      {"{name: p, " + cascade + ", shadow: {max_disagreement: 0.1, max_records: 1}}",
       "policies[0].shadow.max_records:"},
      {"{name: p, " + cascade + ", shadow: {records_file: r}}, {name: q, " + cascade +
           ", shadow: {records_file: ./r}}",
       "policies[1].shadow.records_file:"},
      {"{name: p, " + cascade + ", shadow: {records_file: r, delta: 0.1}}", "policies[0].shadow.delta:"},
  };
  for (const auto& c : cases) {
    const auto options = Parse(kDemo, "policies=[" + c.policies + "]");
    ASSERT_FALSE(options.ok()) << c.policies;
    EXPECT_EQ(options.status().code(), StatusCode::kFailedPrecondition) << c.policies;
    EXPECT_THAT(Message(options.status()), StartsWith(c.path)) << c.policies;
  }
}

TEST(RouterOptions, ACalibratedCascadeMayJudgeEarlyByItsScorersProbabilities) {
  const auto options =
      Parse(kDemo, "policies=[{name: auto, calibration: " + WriteCalibration(CalibrationKind::kCascade) +
                       ", cache_affinity: true, holds: [{tier: nano, hold: {tokens: 8, seconds: 0.25, "
                       "accept_above: 0.5, reject_below: 0.125}}]}]");
  ASSERT_TRUE(options.ok()) << options.status();
  const CatalogPolicy& policy = options->policies[0];
  EXPECT_TRUE(policy.cache_affinity);
  ASSERT_EQ(policy.holds.size(), 1u);
  const HoldBudget& hold = policy.holds.at("nano");
  EXPECT_EQ(hold.tokens, 8u);
  EXPECT_EQ(hold.time, std::chrono::milliseconds(250));
  EXPECT_EQ(hold.accept_above, 0.5) << "the gate's own threshold is the least";
  EXPECT_EQ(hold.reject_below, 0.125);
  EXPECT_FALSE(hold.is_final);
}

TEST(RouterOptions, WhatACalibrationCannotDoIsAnErrorOfItsSetting) {
  const std::string classifier = WriteCalibration(CalibrationKind::kClassifier),
                    cascade = WriteCalibration(CalibrationKind::kCascade);
  const struct {
    std::string policy;
    const char* path;
  } cases[] = {
      {"calibration: " + classifier + ", holds: [{tier: nano, hold: {tokens: 1, reject_below: 0.1}}]",
       "policies[0].holds:"},
      {"calibration: " + cascade + ", holds: [{tier: base, hold: {tokens: 1, reject_below: 0.1}}]",
       "policies[0].holds[0].tier:"},
      {"calibration: " + cascade + ", holds: [{tier: absent, hold: {tokens: 1, reject_below: 0.1}}]",
       "policies[0].holds[0].tier:"},
      {"calibration: " + cascade + ", holds: [{tier: nano}]", "policies[0].holds[0].hold:"},
      {"calibration: " + cascade + ", holds: [{tier: nano, hold: {tokens: 1, reject_below: -0.1}}]",
       "policies[0].holds[0].hold.reject_below:"},
      {"calibration: " + cascade + ", holds: [{tier: nano, hold: {tokens: 1, accept_above: 1.1}}]",
       "policies[0].holds[0].hold.accept_above:"},
      {"calibration: " + cascade + ", holds: [{tier: nano, hold: {tokens: 1, accept_above: 0.49}}]",
       "policies[0].holds[0].hold.accept_above:"},
      {"calibration: " + cascade +
           ", holds: [{tier: nano, hold: {tokens: 1, accept_above: 0.9}}, {tier: nano, hold: {tokens: 2, "
           "reject_below: 0.1}}]",
       "policies[0].holds[1].tier:"},
      {"calibration: " + cascade + ", shadow: {share: 0}", "policies[0].shadow.share:"},
      {"calibration: " + cascade + ", shadow: {max_in_flight: 0}", "policies[0].shadow.max_in_flight:"},
      {"calibration: " + cascade + ", shadow: {min_agreement: 1.5}", "policies[0].shadow.min_agreement:"},
      {"calibration: " + cascade + ", shadow: {max_disagreement: 1}", "policies[0].shadow.max_disagreement:"},
      {"calibration: " + cascade + ", shadow: {}", "policies[0].shadow.max_disagreement:"},
      {"calibration: " + cascade + ", shadow: {max_disagreement: 0.1, window: 10001}",
       "policies[0].shadow.window:"},
      {"calibration: " + cascade + ", shadow: {max_disagreement: 0.1, delta: 1}",
       "policies[0].shadow.delta:"},
      {"calibration: absent.json", "policies[0].calibration:"},
      {"budget: {candidates: [{tier: base, expected_quality: 1}], calibration: " + cascade + "}",
       "policies[0].budget:"},
      {"budget: {candidates: [{tier: base, expected_quality: 1}], calibration: absent.json}",
       "policies[0].budget.calibration:"},
      {"budget: {candidates: [{tier: base, expected_quality: 1}]}, calibration: " + classifier,
       "policies[0]:"},
  };
  for (const auto& c : cases) {
    const auto options = Parse(kDemo, "policies=[{name: auto, " + c.policy + "}]");
    ASSERT_FALSE(options.ok()) << c.policy;
    const bool is_absent = c.policy.find("absent.json") != std::string::npos;
    EXPECT_EQ(options.status().code(), is_absent ? StatusCode::kNotFound : StatusCode::kFailedPrecondition)
        << c.policy;
    EXPECT_THAT(Message(options.status()), StartsWith(c.path)) << c.policy;
  }
}

TEST(RouterOptions, ADrainMayTakeNoTimeOrAnHour) {
  EXPECT_EQ(Parse(kDemo, "drain_seconds=0")->drain_seconds, 0);
  EXPECT_EQ(Parse(kDemo, "drain_seconds=3600")->drain_seconds, 3600);
}

TEST(RouterOptions, AHoldMayAcceptByTheBoundOfTheEnd) {
  EXPECT_TRUE(Parse(kDemo, "policies[0].cascade.steps[0].hold={tokens: 1, accept_above: -0.1}").ok());
}

TEST(RouterOptions, AnEjectionLongerThanTheDefaultLimitRaisesIt) {
  EXPECT_EQ(Parse(kDemo, "cluster.ejection.seconds=300")->ejection.longest, std::chrono::seconds(300));
}

// A change to a tier that requires a manifest with one limit of its own.
std::string WithLimit(const std::string& limit) {
  return "tiers=[{name: a, workers: ['b:1'], require_manifest: true, manifests: [c], manifest_keys: [d], "
         "manifest_limits: {" +
         limit + "}}]";
}

TEST(RouterOptions, EveryErrorNamesThePathOfItsSetting) {
  const struct {
    std::string change;
    const char* path;
  } cases[] = {
      {"tiers=[]", "tiers:"},
      {"tiers[1].name=nano", "tiers[1].name:"},
      {"tiers[1].name=Base", "tiers[1].name:"},
      {"tiers[1].name=\"\"", "tiers[1].name:"},
      {"tiers[0].aliases=[auto]", "policies[0].name:"},
      {"tiers[0].aliases=[base]", "tiers[1].name:"},
      {"tiers[0].workers=[]", "tiers[0].workers:"},
      {"tiers[0].workers=[\"nohost\"]", "tiers[0].workers:"},
      {"tiers[0].usd_per_million_prompt_tokens=-1", "tiers[0].usd_per_million_prompt_tokens:"},
      {"tiers[0].manifests=[a.json]", "tiers[0].require_manifest:"},
      {"tiers[0].manifest_baseline=x", "tiers[0].require_manifest:"},
      {"tiers[0].require_manifest=true", "tiers[0].manifests:"},
      {"tiers=[{name: a, workers: ['b:1'], require_manifest: true, manifests: [c]}]",
       "tiers[0].manifest_keys:"},
      {"tiers=[{name: a, workers: ['b:1'], require_manifest: true, manifests: [''], manifest_keys: [d]}]",
       "tiers[0].manifests:"},
      {"tiers=[{name: a, workers: ['b:1'], require_manifest: true, manifests: [c], manifest_keys: [d], "
       "manifest_baseline: ABC}]",
       "tiers[0].manifest_baseline:"},
      {"tiers[0].manifest_limits={min_rows: 9}", "tiers[0].require_manifest:"},
      {WithLimit("max_margin: 1"), "tiers[0].manifest_limits.max_margin:"},
      {WithLimit("max_level: 0.5"), "tiers[0].manifest_limits.max_level:"},
      {WithLimit("max_mean_kl: -1"), "tiers[0].manifest_limits.max_mean_kl:"},
      {WithLimit("max_flip_rate: 1.5"), "tiers[0].manifest_limits.max_flip_rate:"},
      {WithLimit("task_set: ABC"), "tiers[0].manifest_limits.task_set:"},
      {"policies[0].cascade.steps=[]", "policies[0].cascade.steps:"},
      {"policies[0].cascade.steps[0].tier=absent", "policies[0].cascade.steps[0].tier:"},
      {"policies[0].cascade.steps[0].min_mean_logprob=0.5", "policies[0].cascade.steps[0].min_mean_logprob:"},
      {"policies[0].cascade.steps[1].min_mean_logprob=-1", "policies[0].cascade.steps[1].min_mean_logprob:"},
      {"policies[0].cascade.steps=[{tier: nano},{tier: base}]",
       "policies[0].cascade.steps[0].min_mean_logprob:"},
      {"policies[0].cascade.steps[0].hold={accept_above: -1}", "policies[0].cascade.steps[0].hold:"},
      {"policies[0].cascade.steps[0].hold={tokens: 1}", "policies[0].cascade.steps[0].hold:"},
      {"policies[0].cascade.steps[0].hold={tokens: 0, reject_below: -1}",
       "policies[0].cascade.steps[0].hold.tokens:"},
      {"policies[0].cascade.steps[0].hold={seconds: 0, reject_below: -1}",
       "policies[0].cascade.steps[0].hold.seconds:"},
      {"policies[0].cascade.steps[0].hold={tokens: 1, accept_above: 1}",
       "policies[0].cascade.steps[0].hold.accept_above:"},
      {"policies[0].cascade.steps[0].hold={tokens: 1, accept_above: -0.11}",
       "policies[0].cascade.steps[0].hold.accept_above:"},
      {"policies[0].cascade.steps[0].hold={tokens: 1, accept_above: -2, reject_below: -1}",
       "policies[0].cascade.steps[0].hold.reject_below:"},
      {"policies[0].cascade.steps[1].hold={tokens: 1, accept_above: -1}",
       "policies[0].cascade.steps[1].hold:"},
      {"policies[0].verify={draft: nano, tier: base}", "policies[0]:"},
      {"policies=[{name: p, verify: {draft: nano, tier: absent}}]", "policies[0].verify.tier:"},
      {"policies=[{name: p, verify: {draft: absent, tier: base}}]", "policies[0].verify.draft:"},
      {"policies=[{name: p, verify: {draft: base, tier: base}}]", "policies[0].verify.draft:"},
      {"policies=[{name: p, verify: {draft: base, tier: nano}}]", "policies[0].verify.draft:"},
      {"policies[0].shadow={}", "policies[0].shadow.max_disagreement:"},
      {"policies[0].cache_affinity=true", "policies[0].cache_affinity:"},
      {"policies[0].holds=[{tier: nano}]", "policies[0].holds:"},
      {"policies=[{name: p, budget: {}}]", "policies[0].budget.candidates:"},
      {"policies=[{name: p, budget: {candidates: [{tier: base}]}}]",
       "policies[0].budget.candidates[0].expected_quality:"},
      {"policies=[{name: p, budget: {candidates: [{tier: base, expected_quality: 1.5}]}}]",
       "policies[0].budget.candidates[0].expected_quality:"},
      {"policies=[{name: p, budget: {candidates: [{tier: absent, expected_quality: 1}]}}]",
       "policies[0].budget.candidates[0].tier:"},
      {"policies=[{name: p, budget: {candidates: [{tier: base, expected_quality: 1}, {tier: base, "
       "expected_quality: 0}]}}]",
       "policies[0].budget.candidates[1].tier:"},
      {"policies=[{name: p, budget: {max_usd: -1, candidates: [{tier: base, expected_quality: 1}]}}]",
       "policies[0].budget.max_usd:"},
      {"policies=[{name: p, budget: {max_seconds: 0, candidates: [{tier: base, expected_quality: 1}]}}]",
       "policies[0].budget.max_seconds:"},
      {"policies=[{name: p, budget: {max_seconds: 1e9, candidates: [{tier: base, expected_quality: 1}]}}]",
       "policies[0].budget.max_seconds:"},
      {"policies=[{name: p, budget: {when_nothing_fits: shrug, candidates: [{tier: base, expected_quality: "
       "1}]}}]",
       "policies[0].budget.when_nothing_fits:"},
      {"policies=[{name: p, budget: {expected_answer_tokens: 0, candidates: [{tier: base, expected_quality: "
       "1}]}}]",
       "policies[0].budget.expected_answer_tokens:"},
      {"default_model=absent", "default_model:"},
      {"listen.http=nonsense", "listen.http:"},
      {"listen.http_limits.max_connections=0", "listen.http_limits.max_connections:"},
      {"listen.grpc_limits.max_streams=0", "listen.grpc_limits.max_streams:"},
      {"listen.grpc_limits.max_memory_bytes=1000", "listen.grpc_limits.max_memory_bytes:"},
      {"listen.http_limits.min_body_bytes_per_second=0", "listen.http_limits.min_body_bytes_per_second:"},
      {"listen.http_limits.slow_reader_seconds=0", "listen.http_limits.slow_reader_seconds:"},
      {"listen.http_limits.max_buffered_body_bytes=8388607", "listen.http_limits.max_buffered_body_bytes:"},
      {"listen.tls={}", "listen.tls.certificate_file:"},
      {"listen.tls.certificate_file=a.pem", "listen.tls.key_file:"},
      {"cluster.tls.key_file=a.pem", "cluster.tls.certificate_file:"},
      {"admission.max_in_flight=0", "admission.max_in_flight:"},
      {"admission.default_timeout_seconds=0", "admission.default_timeout_seconds:"},
      {"cluster.watch_timeout_seconds=0.1", "cluster.watch_timeout_seconds:"},
      {"cluster.ejection.seconds=0", "cluster.ejection.seconds:"},
      {"cluster.ejection.max_seconds=9", "cluster.ejection.max_seconds:"},
      {"cluster.ejection.max_share=0", "cluster.ejection.max_share:"},
      {"cluster.ejection.max_share=1.1", "cluster.ejection.max_share:"},
      {"cluster.ejection.window_calls=0", "cluster.ejection.window_calls:"},
      {"cluster.ejection.window_calls=65", "cluster.ejection.window_calls: must be at most 64, got 65"},
      {"cluster.ejection.window_failures=21",
       "cluster.ejection.window_failures: must be at most window_calls, 20, got 21"},
      {"cluster.slow_start_seconds=-1", "cluster.slow_start_seconds:"},
      {"cluster.retry_ratio=1.5", "cluster.retry_ratio:"},
      {"cluster.max_attempts=0", "cluster.max_attempts:"},
      {"cluster.max_attempts=65", "cluster.max_attempts: must be at most 64, got 65"},
      {"cluster.resume_patience_seconds=-1", "cluster.resume_patience_seconds:"},
      {"cluster.token_cache_bytes=1000", "cluster.token_cache_bytes:"},
      {"balance.policy=best", "balance.policy:"},
      {"admission.max_queued=0", "admission.max_queued:"},
      {"admission.max_first_token_seconds=0", "admission.max_first_token_seconds:"},
      {"auth.keys_file=keys.yaml", "auth.cluster_secret_file:"},
      {"auth.cluster_secret_file=secret", "auth.keys_file:"},
      {"drain_seconds=-1", "drain_seconds:"},
      {"drain_seconds=3601", "drain_seconds:"},
      {"log.level=loud", "log.level:"},
      {"log.format=xml", "log.format:"},
  };
  for (const auto& c : cases) {
    const auto options = Parse(kDemo, c.change);
    ASSERT_FALSE(options.ok()) << c.change;
    EXPECT_EQ(options.status().code(), StatusCode::kFailedPrecondition) << c.change;
    EXPECT_THAT(Message(options.status()), StartsWith(c.path)) << c.change;
  }
}

}  // namespace
}  // namespace terrace
