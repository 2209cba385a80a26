#include "tools/cli/launch/yaml_writer.h"

#include "base/config.h"
#include "google/protobuf/util/message_differencer.h"
#include "gtest/gtest.h"
#include "proto/terrace/v1/config.pb.h"

namespace terrace {
namespace {

TEST(YamlWriter, WhatItWritesReadsBackEqual) {
  v1::ClusterFile file;
  file.mutable_router()->mutable_listen()->set_http("");
  file.mutable_router()->set_default_model("a: \"b\" # \\ [c] {d}\n\té");
  v1::TierConfig& tier = *file.mutable_router()->add_tiers();
  tier.add_workers("127.0.0.1:1");
  tier.add_workers("dns:///workers:2");
  tier.set_usd_per_million_prompt_tokens(0.1);
  tier.set_usd_per_million_completion_tokens(1e-9);
  v1::CascadeConfig& cascade = *file.mutable_router()->add_policies()->mutable_cascade();
  cascade.add_steps()->set_min_mean_logprob(-0.01);
  cascade.add_steps()->set_tier("123");  // a string that looks like a number
  file.add_workers()->mutable_kv()->set_pool_bytes(uint64_t{1} << 60);
  file.add_workers();

  v1::ClusterFile read;
  const Status status = ParseYaml(ToYaml(file), "written.yaml", read);
  ASSERT_TRUE(status.ok()) << status << "\n" << ToYaml(file);
  EXPECT_TRUE(google::protobuf::util::MessageDifferencer::Equals(file, read)) << ToYaml(file);
}

}  // namespace
}  // namespace terrace
