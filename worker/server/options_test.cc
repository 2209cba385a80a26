#include "worker/server/options.h"

#include "base/config.h"
#include "base/testing_tls.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

StatusOr<WorkerOptions> Make(std::string_view yaml) {
  v1::WorkerConfig config;
  RETURN_IF_ERROR(ParseYaml(yaml, "worker.yaml", config));
  return MakeWorkerOptions(config);
}

TEST(MakeWorkerOptions, FillsInTheDefaultsOfTheSchema) {
  const auto options = Make("model: m");
  ASSERT_TRUE(options.ok()) << options.status();
  const WorkerServerOptions& server = options->server;
  EXPECT_EQ(server.grpc, "127.0.0.1:8101");
  EXPECT_EQ(server.ops, "127.0.0.1:9091");
  EXPECT_EQ(server.served_name, "");
  EXPECT_EQ(server.engine.model, "m");
  EXPECT_EQ(server.engine.threads, 0u);
  EXPECT_EQ(server.engine.max_sequences, 0u);  // as the device has it
  EXPECT_EQ(server.engine.max_step_tokens, 0u);
  EXPECT_EQ(server.engine.inbox, 256u);
  EXPECT_EQ(server.engine.block_tokens, 16u);
  EXPECT_EQ(server.engine.kv_pool_bytes, 0u);
  EXPECT_EQ(server.engine.kv_dtype, "auto");
  EXPECT_TRUE(server.engine.prefix_cache);
  EXPECT_EQ(server.engine.host_swap_bytes, 0u);
  EXPECT_EQ(server.engine.max_prefill_wait_seconds, 5);
  EXPECT_EQ(server.engine.drain_seconds, 1);
  EXPECT_EQ(server.engine.kernels, "auto");
  EXPECT_EQ(server.engine.compute, "auto");
  EXPECT_FALSE(server.engine.pin_threads);
  EXPECT_EQ(server.engine.device, "auto");
  EXPECT_EQ(server.engine.numerics, "auto");
  EXPECT_EQ(server.engine.tuning.folder, "");
  EXPECT_EQ(server.engine.virtual_shards, 1u);
  EXPECT_EQ(server.engine.speculation.drafter, "none");
  EXPECT_EQ(server.engine.speculation.model, "");
  EXPECT_EQ(server.engine.speculation.device, "auto");
  EXPECT_EQ(server.engine.speculation.max_tokens, 8u);
  EXPECT_EQ(server.engine.speculation.max_branch_tokens, 0u);
  EXPECT_EQ(server.engine.speculation.min_match, 3u);
  EXPECT_EQ(server.engine.speculation.kv_pool_bytes, 0u);
  EXPECT_EQ(options->log.level, LogLevel::kInfo);
  EXPECT_TRUE(options->log.as_json);
}

TEST(MakeWorkerOptions, TakesEverySetting) {
  const auto options = Make(
      "model: m\nserved_name: s\ngrpc: '[::1]:0'\nops: ''\n"
      "engine: {threads: 3, max_sequences: 4, max_step_tokens: 5, inbox: 6, kernels: reference, compute: "
      "f32, pin_threads: true,\n"
      "         max_prefill_wait_seconds: 0.5, device: cpu, numerics: invariant, virtual_shards: 4,\n"
      "         tuning_folder: t,\n"
      "         speculation: {drafter: model, model: d, device: cpu, max_tokens: 4,\n"
      "                       max_branch_tokens: 3, kv_pool_bytes: 3000}}\n"
      "kv: {block_tokens: 8, pool_bytes: 1000, dtype: bf16, prefix_cache: false, host_swap_bytes: 2000}\n"
      "log: {level: debug, format: text}\n"
      "drain_seconds: 2.5\n");
  ASSERT_TRUE(options.ok()) << options.status();
  const WorkerServerOptions& server = options->server;
  EXPECT_EQ(server.grpc, "[::1]:0");
  EXPECT_EQ(server.ops, "");
  EXPECT_EQ(server.served_name, "s");
  EXPECT_EQ(server.engine.threads, 3u);
  EXPECT_EQ(server.engine.max_sequences, 4u);
  EXPECT_EQ(server.engine.max_step_tokens, 5u);
  EXPECT_EQ(server.engine.inbox, 6u);
  EXPECT_EQ(server.engine.block_tokens, 8u);
  EXPECT_EQ(server.engine.kv_pool_bytes, 1000u);
  EXPECT_EQ(server.engine.kv_dtype, "bf16");
  EXPECT_FALSE(server.engine.prefix_cache);
  EXPECT_EQ(server.engine.host_swap_bytes, 2000u);
  EXPECT_EQ(server.engine.max_prefill_wait_seconds, 0.5);
  EXPECT_EQ(server.engine.drain_seconds, 2.5);
  EXPECT_EQ(server.engine.kernels, "reference");
  EXPECT_EQ(server.engine.compute, "f32");
  EXPECT_TRUE(server.engine.pin_threads);
  EXPECT_EQ(server.engine.device, "cpu");
  EXPECT_EQ(server.engine.numerics, "invariant");
  EXPECT_EQ(server.engine.tuning.folder, "t");
  EXPECT_EQ(server.engine.virtual_shards, 4u);
  EXPECT_EQ(server.engine.speculation.drafter, "model");
  EXPECT_EQ(server.engine.speculation.model, "d");
  EXPECT_EQ(server.engine.speculation.device, "cpu");
  EXPECT_EQ(server.engine.speculation.max_tokens, 4u);
  EXPECT_EQ(server.engine.speculation.max_branch_tokens, 3u);
  EXPECT_EQ(server.engine.speculation.kv_pool_bytes, 3000u);
  EXPECT_EQ(options->log.level, LogLevel::kDebug);
  EXPECT_FALSE(options->log.as_json);
}

TEST(MakeWorkerOptions, WhatADeviceDoesNotDoIsAnErrorOnlyWhereItIsAskedForByName) {
  EXPECT_TRUE(
      Make("{model: m, engine: {device: cuda, compute: fp8}, kv: {dtype: int8, block_tokens: 64}}").ok());
  EXPECT_TRUE(Make("{model: m, engine: {device: cuda, speculation: {drafter: model, model: d}}}").ok());
  const auto ngram = Make("{model: m, engine: {speculation: {drafter: ngram, min_match: 2}}}");
  ASSERT_TRUE(ngram.ok()) << ngram.status();
  EXPECT_EQ(ngram->server.engine.speculation.min_match, 2u);
  EXPECT_TRUE(
      Make("{model: m, engine: {compute: f32, kernels: cpu}, kv: {dtype: f32, block_tokens: 5}}").ok());
  for (const char* device : {"auto", "cpu", "cuda"})
    EXPECT_TRUE(Make(Concat("{model: m, engine: {device: ", device, "}, kv: {dtype: fp8}}")).ok()) << device;
}

TEST(MakeWorkerOptions, AStepHasRoomForEveryDecodeWhichOnlyIsCheckedWhereBothAreSet) {
  EXPECT_TRUE(Make("{model: m, engine: {max_step_tokens: 7}}").ok());
  EXPECT_TRUE(Make("{model: m, engine: {max_sequences: 1000}}").ok());
  EXPECT_FALSE(Make("{model: m, engine: {max_sequences: 1000, max_step_tokens: 999}}").ok());
}

TEST(MakeWorkerOptions, TlsIsOnWhenItIsConfigured) {
  EXPECT_FALSE(Make("model: m")->server.tls.has_value());
  const auto options =
      Make("{model: m, tls: {certificate_file: c.pem, key_file: k.pem, client_ca_file: a.pem}}");
  ASSERT_TRUE(options.ok()) << options.status();
  ASSERT_TRUE(options->server.tls.has_value());
  EXPECT_EQ(options->server.tls->certificate, "c.pem");
  EXPECT_EQ(options->server.tls->key, "k.pem");
  EXPECT_EQ(options->server.tls->ca, "a.pem");
}

TEST(MakeWorkerOptions, ARemoteDrafterHasAnAddressAndPerhapsTls) {
  EXPECT_FALSE(Make("model: m")->server.remote_drafter.has_value());
  const auto plain = Make("{model: m, engine: {speculation: {drafter: remote, remote: {address: 'd:1'}}}}");
  ASSERT_TRUE(plain.ok()) << plain.status();
  EXPECT_EQ(plain->server.engine.speculation.drafter, "remote");
  EXPECT_EQ(plain->server.remote_drafter->address, "d:1");
  EXPECT_FALSE(plain->server.remote_drafter->tls.has_value());
  const auto options = Make(
      "{model: m, engine: {device: cuda, speculation: {drafter: remote, remote: {address: 'd:1',\n"
      "  tls: {ca_file: a.pem, certificate_file: c.pem, key_file: k.pem, server_name: s}}}}}");
  ASSERT_TRUE(options.ok()) << options.status();
  const DrafterEndpoint& remote = *options->server.remote_drafter;
  EXPECT_EQ(remote.tls->ca, "a.pem");
  EXPECT_EQ(remote.tls->certificate, "c.pem");
  EXPECT_EQ(remote.tls->key, "k.pem");
  EXPECT_EQ(remote.server_name, "s");
}

TEST(MakeWorkerOptions, AGroupHasALeaderAndAsManyVirtualShardsAsRanksUnlessTheyAreSet) {
  const auto alone = Make("{model: m, group: {ranks: 1}}");
  ASSERT_TRUE(alone.ok()) << alone.status();
  EXPECT_EQ(alone->server.engine.group.ranks, 1u);
  const auto options = Make("{model: m, group: {ranks: 4, rank: 3, leader: '127.0.0.1:7'}}");
  ASSERT_TRUE(options.ok()) << options.status();
  EXPECT_EQ(options->server.engine.group.rank, 3u);
  EXPECT_EQ(options->server.engine.group.ranks, 4u);
  EXPECT_TRUE(options->server.engine.group.shares_machine);
  EXPECT_EQ(options->server.engine.virtual_shards, 4u);
  EXPECT_EQ(options->server.group.leader, "127.0.0.1:7");
  EXPECT_EQ(options->server.group.host, "");
  EXPECT_EQ(Seconds(options->server.group.timeout), 5);
  EXPECT_EQ(options->server.group.transport, Transport::kTcp);
  const auto more = Make(
      "{model: m, engine: {virtual_shards: 8}, group: {ranks: 2, leader: 'a:7', insecure: true, host: h,\n"
      "  timeout_seconds: 7.5, transport: gloo}}");
  ASSERT_TRUE(more.ok()) << more.status();
  EXPECT_EQ(more->server.engine.group.rank, 0u);
  EXPECT_FALSE(more->server.engine.group.shares_machine);
  EXPECT_EQ(more->server.engine.virtual_shards, 8u);
  EXPECT_EQ(more->server.group.host, "h");
  EXPECT_EQ(Seconds(more->server.group.timeout), 7.5);
  EXPECT_EQ(more->server.group.transport, Transport::kGloo);
  const auto on_gpus = Make("{model: m, engine: {device: cuda}, group: {ranks: 2, leader: '127.0.0.1:7'}}");
  ASSERT_TRUE(on_gpus.ok()) << on_gpus.status();
  EXPECT_EQ(on_gpus->server.engine.virtual_shards, 2u);
}

TEST(MakeWorkerOptions, TheDegreesOfAGroupMakeItsRanksOrTheRanksTheDegreeThatIsNotSet) {
  const struct {
    const char* degrees;
    uint32_t ranks, stages, virtual_shards;
  } cases[] = {{"pipeline_parallel: 3", 3, 3, 1},
               {"tensor_parallel: 4", 4, 1, 4},
               {"tensor_parallel: 2, pipeline_parallel: 3", 6, 3, 2},
               {"ranks: 6, tensor_parallel: 2, pipeline_parallel: 3", 6, 3, 2},
               {"ranks: 8, pipeline_parallel: 2", 8, 2, 4},
               {"ranks: 8, tensor_parallel: 8", 8, 1, 8}};
  for (const auto& each : cases) {
    const auto options = Make(Concat("{model: m, group: {leader: '127.0.0.1:7', ", each.degrees, "}}"));
    ASSERT_TRUE(options.ok()) << each.degrees << ": " << options.status();
    const OpenEngineOptions& engine = options->server.engine;
    EXPECT_EQ(engine.group.ranks, each.ranks) << each.degrees;
    EXPECT_EQ(engine.group.stages, each.stages) << each.degrees;
    EXPECT_EQ(engine.virtual_shards, each.virtual_shards) << each.degrees;
  }
}

TEST(MakeWorkerOptions, TheLeaderOfAGroupListensAsAWorkerDoesAndOtherRanksAreItsClients) {
  const auto group = [](uint32_t rank) {
    return Make(
        Concat("{model: m, tls: {certificate_file: c, key_file: k, client_ca_file: a}, group: {ranks: 2, ",
               "rank: ", rank, ", leader: '127.0.0.1:7', tls: {ca_file: b, certificate_file: d, ",
               "key_file: e, server_name: s}}}"));
  };
  const auto leader = group(0), other = group(1);
  ASSERT_TRUE(leader.ok()) << leader.status();
  ASSERT_TRUE(other.ok()) << other.status();
  EXPECT_EQ(leader->server.group.tls, (TlsFiles{.certificate = "c", .key = "k", .ca = "a"}));
  EXPECT_EQ(other->server.group.tls, (TlsFiles{.certificate = "d", .key = "e", .ca = "b"}));
  EXPECT_EQ(other->server.group.server_name, "s");
  const auto plain =
      Make("{model: m, tls: {certificate_file: c, key_file: k}, group: {ranks: 2, leader: '127.0.0.1:7'}}");
  ASSERT_TRUE(plain.ok()) << plain.status();
  EXPECT_FALSE(plain->server.group.tls.has_value()) << "that was not asked for";
}

TEST(ApplyGroupEnvironment, ALeaderWorkerSetTellsRankRanksAndLeader) {
  v1::WorkerConfig config;
  config.mutable_group()->set_environment("lws");
  const GroupEnvironment environment{.leader_address = "base-0.base.models",
                                     .group_size = "4",
                                     .worker_index = "2",
                                     .host_name = "base-0-2"};
  ASSERT_EQ(ApplyGroupEnvironment(environment, config), Status());
  EXPECT_EQ(config.group().ranks(), 4u);
  EXPECT_EQ(config.group().rank(), 2u);
  EXPECT_EQ(config.group().leader(), "base-0.base.models:8201");
  v1::WorkerConfig other;
  other.mutable_group()->set_environment("lws");
  other.mutable_group()->set_leader("elsewhere:1");
  ASSERT_EQ(ApplyGroupEnvironment(environment, other), Status());
  EXPECT_EQ(other.group().leader(), "elsewhere:1");
  v1::WorkerConfig alone;
  alone.set_model("m");
  alone.mutable_group()->set_environment("lws");
  const GroupEnvironment one{
      .leader_address = "base-0.base.models", .group_size = "1", .worker_index = "0", .host_name = "base-0"};
  ASSERT_EQ(ApplyGroupEnvironment(one, alone), Status());
  EXPECT_FALSE(alone.group().has_leader());
  EXPECT_EQ(MakeWorkerOptions(alone).status(), Status());
  v1::WorkerConfig of_any_size = other;
  of_any_size.set_model("m");
  of_any_size.mutable_group()->clear_rank();
  of_any_size.mutable_group()->clear_ranks();
  of_any_size.mutable_group()->mutable_tls()->set_ca_file("ca");
  ASSERT_EQ(ApplyGroupEnvironment(one, of_any_size), Status());
  EXPECT_EQ(MakeWorkerOptions(of_any_size).status(), Status()) << "leader and tls are for more pods";
}

TEST(MakeWorkerOptions, ARankThatDoesNotLeadListensForProbesWhereItIsTold) {
  const auto ops = [](uint32_t rank, const char* more) {
    const auto options =
        Make(Concat("{model: m, ops: '127.0.0.1:1', ", more, "group: {ranks: 2, rank: ", rank,
                    ", leader: '127.0.0.1:7', follower_ops: '0.0.0.0:2'}}"));
    return options.ok() ? options->server.ops : Message(options.status());
  };
  EXPECT_EQ(ops(0, "insecure: true, "), "127.0.0.1:1");
  EXPECT_EQ(ops(1, "insecure: true, "), "0.0.0.0:2");
  for (const uint32_t rank : {0u, 1u})
    EXPECT_THAT(ops(rank, ""),
                ::testing::HasSubstr("group.follower_ops: 0.0.0.0:2 can be reached by other machines"));
  const auto none = Make("{model: m, group: {ranks: 2, rank: 1, leader: '127.0.0.1:7'}}");
  ASSERT_TRUE(none.ok()) << none.status();
  EXPECT_EQ(none->server.ops, "");
}

TEST(MakeWorkerOptions, OnlyARankThatServesMayNotDraftForItself) {
  const auto drafts = [](uint32_t rank) {
    return Make(Concat("{model: m, group: {ranks: 2, rank: ", rank,
                       ", leader: '127.0.0.1:7'}, engine: {speculation: {drafter: remote, remote: {address: "
                       "'127.0.0.1:8101'}}}}"))
        .status();
  };
  EXPECT_THAT(Message(drafts(0)), ::testing::HasSubstr("is this worker's own grpc"));
  EXPECT_EQ(drafts(1), Status());
}

TEST(ApplyGroupEnvironment, AStatefulSetTellsTheRank) {
  v1::WorkerConfig config;
  config.mutable_group()->set_environment("statefulset");
  ASSERT_EQ(ApplyGroupEnvironment({.host_name = "worker-base-3"}, config), Status());
  EXPECT_EQ(config.group().rank(), 3u);
  EXPECT_FALSE(config.group().has_ranks());
}

TEST(ApplyGroupEnvironment, WhatNobodyAskedForIsNotTaken) {
  v1::WorkerConfig config;
  const GroupEnvironment environment{
      .leader_address = "a", .group_size = "2", .worker_index = "1", .host_name = "h"};
  ASSERT_EQ(ApplyGroupEnvironment(environment, config), Status());
  EXPECT_FALSE(config.has_group());
}

TEST(ApplyGroupEnvironment, WhatIsMissingMalformedOrSetTooIsAnError) {
  const struct {
    const char* yaml;
    GroupEnvironment environment;
    const char* names;
  } cases[] = {
      {"{environment: slurm}", {}, "\"slurm\", not one of none, lws, statefulset"},
      {"{environment: lws}", {}, "there is no LWS_LEADER_ADDRESS"},
      {"{environment: lws}",
       {.leader_address = "a", .group_size = "two", .worker_index = "1", .host_name = ""},
       "LWS_GROUP_SIZE is \"two\""},
      {"{environment: lws}",
       {.leader_address = "a", .group_size = "2", .worker_index = "-1", .host_name = ""},
       "LWS_WORKER_INDEX is \"-1\""},
      {"{environment: lws, ranks: 2}",
       {.leader_address = "a", .group_size = "2", .worker_index = "1", .host_name = ""},
       "leave group.rank and group.ranks out"},
      {"{environment: statefulset, ranks: 2}", {.host_name = "laptop"}, "does not end with -NUMBER"},
      {"{environment: statefulset, ranks: 2}", {.host_name = "a-b"}, "the end of the host's name is \"b\""},
      {"{environment: statefulset, rank: 2}", {.host_name = "a-2"}, "leave group.rank out"},
  };
  for (const auto& each : cases) {
    v1::WorkerConfig config;
    ASSERT_EQ(ParseYaml(Concat("group: ", each.yaml), "worker.yaml", config), Status());
    const Status status = ApplyGroupEnvironment(each.environment, config);
    EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition) << each.names;
    EXPECT_THAT(Message(status), ::testing::StartsWith("group.environment: "));
    EXPECT_THAT(Message(status), ::testing::HasSubstr(each.names));
  }
}

TEST(MakeWorkerOptions, WhatOtherMachinesReachNeedsTlsOrToBeCalledInsecure) {
  for (const char* yaml : {"{model: m, grpc: 'localhost:1', ops: '127.0.0.2:1'}",
                           "{model: m, grpc: '0.0.0.0:1', tls: {certificate_file: c, key_file: k}}",
                           "{model: m, grpc: '0.0.0.0:1', ops: '0.0.0.0:2', insecure: true}"}) {
    EXPECT_TRUE(Make(yaml).ok()) << yaml;
  }
  EXPECT_EQ(Message(Make("{model: m, grpc: '[::]:1'}").status()),
            "grpc: [::]:1 can be reached by other machines: needs tls, or insecure: true");
  EXPECT_EQ(
      Message(Make("{model: m, ops: '10.0.0.1:1', tls: {certificate_file: c, key_file: k}}").status()),
      "ops: 10.0.0.1:1 can be reached by other machines: needs insecure: true, as it asks nobody for a key");
}

TEST(CheckFiles, WhatIsNamedHasToBeThere) {
  const std::string here = ::testing::TempDir();
  const struct {
    std::string yaml;
    const char* names;  // "": nothing is missing
  } cases[] = {
      {"model: " + here, ""},
      {"model: /absent", "model: no model folder or file /absent"},
      {"{model: " + here + ", engine: {speculation: {drafter: model, model: /absent}}}",
       "engine.speculation.model: no model folder or file /absent"},
      {"{model: " + here + ", tls: {certificate_file: /absent.pem, key_file: /absent.pem}}",
       "tls: /absent.pem cannot be read"},
      {"{model: " + here +
           ", engine: {speculation: {drafter: remote, remote: {address: 'd:1', tls: {ca_file: "
           "/absent.pem}}}}}",
       "engine.speculation.remote.tls: /absent.pem cannot be read"},
  };
  for (const auto& c : cases) {
    const auto options = Make(c.yaml);
    ASSERT_TRUE(options.ok()) << options.status();
    const Status status = CheckFiles(options->server);
    EXPECT_EQ(status.code(), *c.names == '\0' ? StatusCode::kOk : StatusCode::kNotFound) << c.yaml;
    EXPECT_THAT(Message(status), ::testing::StartsWith(c.names));
  }
}

TEST(CheckFiles, ADraftModelHasTheTokensOfTheOneItDraftsForAndAPoolForABlock) {
  const auto check = [](const std::string& more) {
    const auto options =
        Make(Concat("{model: models/terrace-demo-base, engine: {device: cpu, speculation: "
                    "{drafter: model, model: models/terrace-demo-nano",
                    more, "}}}"));
    EXPECT_TRUE(options.ok()) << options.status();
    return CheckFiles(options->server);
  };
  EXPECT_EQ(check(""), Status());
  EXPECT_EQ(check(", kv_pool_bytes: 100000000"), Status());
  const Status refused = check(", kv_pool_bytes: 100");
  EXPECT_EQ(Reason(refused), "kv_pool_too_small");
  EXPECT_THAT(Message(refused),
              ::testing::StartsWith("engine.speculation.kv_pool_bytes is 100; a block of "));
}

TEST(CheckFiles, WhatARankMeetsItsLeaderWithHasToBeThere) {
  const TestAuthority authority(::testing::TempDir(), "ranks");
  const TlsFiles leader = authority.Issue("ranks-leader");
  const auto options =
      Make(Concat("{model: models/terrace-demo-nano, tls: {certificate_file: ", leader.certificate,
                  ", key_file: ", leader.key,
                  "}, group: {ranks: 2, rank: 1, leader: 'localhost:1', tls: {ca_file: /absent.pem}}}"));
  ASSERT_TRUE(options.ok()) << options.status();
  EXPECT_THAT(Message(CheckFiles(options->server)),
              ::testing::StartsWith("group.tls: /absent.pem cannot be read"));
}

TEST(CheckFiles, AGroupHasToSuitTheModel) {
  const struct {
    const char *model, *settings;
    const char* refusal;  // "": none
  } cases[] = {
      {"terrace-demo-nano", "group: {ranks: 2, leader: '127.0.0.1:1'}", ""},
      {"terrace-demo-nano", "group: {ranks: 64, rank: 3, leader: '127.0.0.1:1'}",
       "2 attention heads are not a multiple of 64 ranks"},
      {"terrace-demo-nano.f16.gguf", "group: {ranks: 4, leader: '127.0.0.1:1'}",
       "2 attention heads are not a multiple of 4 ranks"},
      {"terrace-demo-nano", "engine: {virtual_shards: 8}", ""},
      {"terrace-demo-nano", "group: {pipeline_parallel: 3, leader: '127.0.0.1:1'}", ""},
      {"terrace-demo-nano", "group: {pipeline_parallel: 4, rank: 3, leader: '127.0.0.1:1'}",
       "group.pipeline_parallel is 4, and the model has 3 layers"},
      {"terrace-demo-nano", "group: {tensor_parallel: 4, pipeline_parallel: 2, leader: '127.0.0.1:1'}",
       "each of 2 pipeline stages: 2 attention heads are not a multiple of 4 ranks"},
  };
  for (const auto& c : cases) {
    SCOPED_TRACE(Concat(c.model, " ", c.settings));
    const auto options = Make(Concat("{model: models/", c.model, ", ", c.settings, "}"));
    ASSERT_TRUE(options.ok()) << options.status();
    const Status status = CheckFiles(options->server);
    EXPECT_EQ(status.code(), *c.refusal == '\0' ? StatusCode::kOk : StatusCode::kFailedPrecondition)
        << status;
    EXPECT_EQ(Message(status), c.refusal);
  }
}

TEST(MakeWorkerOptions, NoWorkerDraftsForItself) {
  const struct {
    const char *grpc, *drafter;
    bool is_own;
  } cases[] = {{"127.0.0.1:8101", "127.0.0.1:8101", true},  {"localhost:8101", "127.0.0.1:8101", true},
               {"0.0.0.0:8101", "localhost:8101", true},    {"'[::]:8101'", "'[::1]:8101'", true},
               {"10.0.0.9:8101", "10.0.0.9:8101", true},    {"127.0.0.1:8101", "127.0.0.1:8102", false},
               {"127.0.0.1:8101", "127.0.0.2:8101", false}, {"0.0.0.0:8101", "10.0.0.9:8101", false}};
  for (const auto& c : cases) {
    SCOPED_TRACE(Concat(c.grpc, " drafted for by ", c.drafter));
    const Status status =
        Make(Concat("{model: m, insecure: true, grpc: ", c.grpc,
                    ", engine: {speculation: {drafter: remote, remote: {address: ", c.drafter, "}}}}"))
            .status();
    EXPECT_EQ(status.code(), c.is_own ? StatusCode::kFailedPrecondition : StatusCode::kOk) << status;
    EXPECT_THAT(Message(status),
                ::testing::StartsWith(c.is_own ? "engine.speculation.remote.address: " : ""));
  }
}

TEST(MakeWorkerOptions, NamesTheFirstValueThatCannotBeUsed) {
  const struct {
    const char *yaml, *names;
  } cases[] = {
      {"{model: m, grpc: ''}", "grpc: "},
      {"{model: m, grpc: nowhere}", "grpc: "},
      {"{model: m, ops: '127.0.0.1:99999'}", "ops: "},
      {"{model: m, group: {ranks: 2, leader: '127.0.0.1:7', follower_ops: nowhere}}", "group.follower_ops: "},
      {"{model: m, group: {follower_ops: '127.0.0.1:7'}}", "group.follower_ops: is for several ranks"},
      {"{model: m, tls: {}}", "tls.certificate_file: is needed"},
      {"{model: m, tls: {certificate_file: c.pem}}", "tls.key_file: is needed"},
      {"{model: m, engine: {threads: 0}}", "engine.threads: must be at least 1"},
      {"{model: m, engine: {threads: 5000}}", "engine.threads is 5000, not in [1, 1024]"},
      {"{model: m, engine: {max_sequences: 8, max_step_tokens: 7}}",
       "engine.max_step_tokens is 7, not in [8, 65536]"},
      {"{model: m, engine: {inbox: 0}}", "engine.inbox: "},
      {"{model: m, engine: {kernels: abacus}}", "engine.kernels: \"abacus\""},
      {"{model: m, engine: {compute: f64}}", "engine.compute: \"f64\", not one of auto, f32, fp8"},
      {"{model: m, engine: {device: tpu}}", "engine.device: \"tpu\", not one of auto, cpu, cuda"},
      {"{model: m, engine: {numerics: exact}}", "engine.numerics: \"exact\", not one of auto, invariant"},
      {"{model: m, engine: {virtual_shards: 0}}", "engine.virtual_shards: must be at least 1"},
      {"{model: m, engine: {virtual_shards: 6}}", "engine.virtual_shards is 6, not a power of two up to 64"},
      {"{model: m, engine: {virtual_shards: 128}}", "engine.virtual_shards is 128, not a power"},
      {"{model: m, engine: {virtual_shards: 2, device: cuda}}",
       "engine.virtual_shards: 2 is for CPUs only; CUDA has 1"},
      {"{model: m, engine: {compute: fp8}}", "engine.compute: fp8 needs engine.device: cuda"},
      {"{model: m, engine: {compute: fp8, device: cpu}}", "engine.compute: fp8 needs engine.device: cuda"},
      {"{model: m, engine: {compute: f32, device: cuda}}", "engine.compute: f32 is for CPUs only"},
      {"{model: m, engine: {kernels: cpu, device: cuda}}", "engine.kernels: cpu is for CPUs only"},
      {"{model: m, engine: {device: cuda}, kv: {dtype: f32}}",
       "kv.dtype: f32 is for CPUs only; CUDA has auto, bf16, f16, int8, fp8"},
      {"{model: m, engine: {device: cuda}, kv: {block_tokens: 8}}",
       "kv.block_tokens is 8; CUDA takes powers"},
      {"{model: m, engine: {device: cuda}, kv: {block_tokens: 48}}",
       "kv.block_tokens is 48; CUDA takes powers"},
      {"{model: m, engine: {max_prefill_wait_seconds: 0}}",
       "engine.max_prefill_wait_seconds is 0, not in (0"},
      {"{model: m, engine: {speculation: {drafter: oracle}}}",
       "engine.speculation.drafter: \"oracle\", not one of none, ngram, model, remote"},
      {"{model: m, engine: {speculation: {max_tokens: 0}}}",
       "engine.speculation.max_tokens: must be at least 1"},
      {"{model: m, engine: {speculation: {max_tokens: 65}}}",
       "engine.speculation.max_tokens is 65, not in [1, 64]"},
      {"{model: m, engine: {speculation: {drafter: ngram, max_branch_tokens: 65}}}",
       "engine.speculation.max_branch_tokens is 65, not in [0, 64]"},
      {"{model: m, engine: {speculation: {drafter: remote, max_branch_tokens: 1, remote: {address: 'd:1'}}}}",
       "engine.speculation.max_branch_tokens is 1; drafter: remote has no second guesses"},
      {"{model: m, engine: {speculation: {min_match: 17}}}",
       "engine.speculation.min_match is 17, not in [1, 16]"},
      {"{model: m, engine: {speculation: {kv_pool_bytes: 0}}}",
       "engine.speculation.kv_pool_bytes: must be at least 1"},
      {"{model: m, engine: {speculation: {max_tokens: 4}}}",
       "engine.speculation.max_tokens: is for drafter: ngram, model or remote, not none"},
      {"{model: m, engine: {speculation: {drafter: none, max_branch_tokens: 0}}}",
       "engine.speculation.max_branch_tokens: is for drafter: ngram or model, not none"},
      {"{model: m, engine: {speculation: {min_match: 3}}}",
       "engine.speculation.min_match: is for drafter: ngram, not none"},
      {"{model: m, engine: {speculation: {drafter: model, model: d, min_match: 2}}}",
       "engine.speculation.min_match: is for drafter: ngram, not model"},
      {"{model: m, engine: {speculation: {kv_pool_bytes: 100}}}",
       "engine.speculation.kv_pool_bytes: is for drafter: model, not none"},
      {"{model: m, engine: {speculation: {drafter: ngram, kv_pool_bytes: 100}}}",
       "engine.speculation.kv_pool_bytes: is for drafter: model, not ngram"},
      {"{model: m, engine: {speculation: {drafter: model}}}",
       "engine.speculation.model: is needed with drafter: model"},
      {"{model: m, engine: {speculation: {drafter: ngram, model: d}}}",
       "engine.speculation.model: is for drafter: model, not ngram"},
      {"{model: m, engine: {speculation: {drafter: model, model: d, device: tpu}}}",
       "engine.speculation.device: \"tpu\", not one of auto, cpu, cuda"},
      {"{model: m, engine: {speculation: {drafter: ngram, device: cpu}}}",
       "engine.speculation.device: is for drafter: model, not ngram"},
      {"{model: m, engine: {device: cpu, speculation: {drafter: model, model: d, device: cuda}}}",
       "engine.speculation.device: cuda is for engine.device: auto or cuda, not cpu"},
      {"{model: m, engine: {speculation: {drafter: remote}}}",
       "engine.speculation.remote.address: is needed with drafter: remote"},
      {"{model: m, engine: {speculation: {drafter: remote, remote: {address: d}}}}",
       "engine.speculation.remote.address: \"d\" is not host:port"},
      {"{model: m, engine: {speculation: {drafter: remote, remote: {address: 'd:0'}}}}",
       "engine.speculation.remote.address: port 0"},
      {"{model: m, engine: {speculation: {drafter: ngram, remote: {address: 'd:1'}}}}",
       "engine.speculation.remote: is for drafter: remote, not ngram"},
      {"{model: m, engine: {speculation: {drafter: remote, model: d, remote: {address: 'd:1'}}}}",
       "engine.speculation.model: is for drafter: model, not remote"},
      {"{model: m, engine: {speculation: {drafter: remote, remote: {address: 'd:1', tls: {key_file: k}}}}}",
       "engine.speculation.remote.tls: certificate_file and key_file are needed together"},
      {"{model: m, group: {ranks: 0}}", "group.ranks: must be at least 1"},
      {"{model: m, group: {ranks: 3, leader: '127.0.0.1:1'}}",
       "group.ranks is 3: 3 for each of 1 pipeline stages, not a power of two"},
      {"{model: m, group: {ranks: 128, leader: '127.0.0.1:1'}}", "group.ranks is 128, not in [1, 64]"},
      {"{model: m, group: {tensor_parallel: 0}}", "group.tensor_parallel: must be at least 1"},
      {"{model: m, group: {pipeline_parallel: 0}}", "group.pipeline_parallel: must be at least 1"},
      {"{model: m, group: {ranks: 4, tensor_parallel: 2, pipeline_parallel: 3, leader: '127.0.0.1:1'}}",
       "group.ranks: 4 is not group.tensor_parallel, 2, times group.pipeline_parallel, 3"},
      {"{model: m, group: {ranks: 1, pipeline_parallel: 2}}",
       "group.ranks is 1, not a multiple of group.pipeline_parallel, 2"},
      {"{model: m, group: {ranks: 4, pipeline_parallel: 3, leader: '127.0.0.1:1'}}",
       "group.ranks is 4, not a multiple of group.pipeline_parallel, 3"},
      {"{model: m, group: {ranks: 6, pipeline_parallel: 2, leader: '127.0.0.1:1'}}",
       "group.ranks is 6: 3 for each of 2 pipeline stages, not a power of two"},
      {"{model: m, group: {tensor_parallel: 2147483648, pipeline_parallel: 4294967295, leader: "
       "'127.0.0.1:1'}}",
       "group: tensor_parallel 2147483648 x pipeline_parallel 4294967295 is 9223372034707292160, not in"},
      {"{model: m, group: {tensor_parallel: 3, leader: '127.0.0.1:1'}}",
       "group.tensor_parallel: 3 is not a power of two"},
      {"{model: m, group: {pipeline_parallel: 65, leader: '127.0.0.1:1'}}",
       "group: tensor_parallel 1 x pipeline_parallel 65 is 65, not in [1, 64]"},
      {"{model: m, group: {ranks: 2, rank: 2, leader: '127.0.0.1:1'}}", "group.rank is 2, group.ranks 2"},
      {"{model: m, group: {rank: 1}}", "group.rank is 1, group.ranks 1"},
      {"{model: m, group: {leader: '127.0.0.1:1'}}", "group.leader: is for several ranks"},
      {"{model: m, group: {ranks: 1, tls: {ca_file: ca}}}", "group.tls: is for several ranks"},
      {"{model: m, group: {ranks: 2}}", "group.leader: is needed with several ranks"},
      {"{model: m, group: {ranks: 2, leader: a}}", "group.leader: \"a\" is not host:port"},
      {"{model: m, group: {ranks: 2, leader: '127.0.0.1:0'}}", "group.leader: port 0"},
      {"{model: m, group: {ranks: 2, leader: 'a:1'}}",
       "group.leader: a:1 can be reached by other machines, and steps go between ranks in plain text: needs "
       "group.insecure: true"},
      {"{model: m, tls: {certificate_file: c, key_file: k}, group: {ranks: 2, leader: 'a:1', tls: {}}}",
       "group.leader: a:1 can be reached by other machines, and steps go between ranks in plain text, which "
       "group.tls does not change: needs group.insecure: true"},
      {"{model: m, group: {ranks: 2, leader: '127.0.0.1:1', tls: {ca_file: a}}}", "group.tls: needs tls"},
      {"{model: m, tls: {certificate_file: c, key_file: k}, group: {ranks: 2, leader: '127.0.0.1:1', tls: "
       "{key_file: k}}}",
       "group.tls: certificate_file and key_file are needed together"},
      {"{model: m, tls: {certificate_file: c, key_file: k, client_ca_file: a}, group: {ranks: 2, leader: "
       "'127.0.0.1:1', tls: {ca_file: a}}}",
       "group.tls.certificate_file: is needed, as tls.client_ca_file has the leader ask for one"},
      {"{model: m, group: {ranks: 2, rank: 1, leader: '0.0.0.0:1', insecure: true}}",
       "group.leader: 0.0.0.0:1 is no address that a rank could connect to"},
      {"{model: m, group: {ranks: 2, leader: '[::]:1', insecure: true}}",
       "group.host: is needed where group.leader is [::]:1"},
      {"{model: m, group: {ranks: 2, leader: '127.0.0.1:1', host: '0.0.0.0'}}",
       "group.host: 0.0.0.0 is no address that a rank could connect to"},
      {"{model: m, group: {ranks: 2, leader: '127.0.0.1:1', timeout_seconds: 0}}",
       "group.timeout_seconds: 0 is not in [5, 60]"},
      {"{model: m, group: {ranks: 2, leader: '127.0.0.1:1', transport: rdma}}",
       "group.transport: \"rdma\", not one of tcp, gloo"},
      {"{model: m, engine: {virtual_shards: 2}, group: {ranks: 4, leader: '127.0.0.1:1'}}",
       "engine.virtual_shards is 2, not a multiple of group.tensor_parallel, 4"},
      {"{model: m, engine: {device: cuda}, group: {ranks: 32, leader: '127.0.0.1:1'}}",
       "group.ranks: 32 is for CPUs only; CUDA has up to 16"},
      {"{model: m, engine: {device: cuda}, group: {ranks: 4, pipeline_parallel: 2, leader: '127.0.0.1:1'}}",
       "group.pipeline_parallel: 2 is for CPUs only; CUDA has 1"},
      {"{model: m, engine: {device: cuda, virtual_shards: 4}, group: {ranks: 2, leader: '127.0.0.1:1'}}",
       "engine.virtual_shards: 4 is for CPUs only; CUDA has 2, as many as ranks"},
      {"{model: m, engine: {device: cuda, speculation: {drafter: model, model: d, device: cuda}},\n"
       "  group: {ranks: 2, leader: '127.0.0.1:1'}}",
       "engine.speculation.device: cuda is for one GPU; with group.ranks: 2 a model drafts on the CPUs"},
      {"{model: m, drain_seconds: -1}", "drain_seconds is -1, not in [0"},
      {"{model: m, kv: {dtype: f8}}", "kv.dtype: "},
      {"{model: m, kv: {block_tokens: 0}}", "kv.block_tokens: "},
      {"{model: m, kv: {pool_bytes: 0}}", "kv.pool_bytes: must be at least 1"},
      {"{model: m, kv: {block_tokens: 5000}}", "kv.block_tokens is 5000, not in [1, 1024]"},
      {"{model: m, log: {level: loud}}", "log.level: "},
      {"{model: m, log: {format: xml}}", "log.format: "},
  };
  for (const auto& c : cases) {
    const Status status = Make(c.yaml).status();
    EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition) << c.yaml;
    EXPECT_THAT(Message(status), ::testing::StartsWith(c.names));
  }
  EXPECT_EQ(Make("grpc: 127.0.0.1:0").status().code(), StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace terrace
