#include "tools/cli/launch/cluster_plan.h"

#include <filesystem>
#include <fstream>
#include <set>

#include "base/exit_code.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

namespace fs = std::filesystem;

class ClusterPlanTest : public testing::Test {
 protected:
  std::string Write(const std::string& yaml) {
    const fs::path file = fs::path(testing::TempDir()) / "cluster.yaml";
    std::ofstream(file) << yaml;
    return file;
  }
};

TEST_F(ClusterPlanTest, ModelPathsAreRelativeToTheFile) {
  const StatusOr<ClusterPlan> plan =
      PlanFromFile(Write("router: {tiers: [{name: a, workers: ['127.0.0.1:8101']}]}\n"
                         "workers: [{model: ../x/y.gguf}, {model: /z}]\n"));
  ASSERT_TRUE(plan.ok()) << plan.status();
  const fs::path folder = fs::absolute(testing::TempDir());
  EXPECT_EQ(plan->workers[0].config.model(), (folder / "../x/y.gguf").lexically_normal());
  EXPECT_EQ(plan->workers[1].config.model(), "/z");
}

TEST_F(ClusterPlanTest, SoAreTheFilesOfAWorkersDrafter) {
  const StatusOr<ClusterPlan> plan = PlanFromFile(Write(
      "router: {tiers: [{name: a}]}\n"
      "workers: [{model: m, engine: {speculation: {drafter: model, model: d}}},\n"
      "          {model: m, engine: {speculation: {drafter: remote, remote: {address: '127.0.0.1:8101',\n"
      "            tls: {ca_file: a.pem, certificate_file: c.pem, key_file: /k.pem}}}}}]\n"));
  ASSERT_TRUE(plan.ok()) << plan.status();
  const fs::path folder = fs::absolute(testing::TempDir());
  EXPECT_EQ(plan->workers[0].config.engine().speculation().model(), (folder / "d").lexically_normal());
  const v1::ClientTlsConfig& tls = plan->workers[1].config.engine().speculation().remote().tls();
  EXPECT_EQ(tls.ca_file(), (folder / "a.pem").lexically_normal());
  EXPECT_EQ(tls.certificate_file(), (folder / "c.pem").lexically_normal());
  EXPECT_EQ(tls.key_file(), "/k.pem");
}

TEST_F(ClusterPlanTest, SoAreTheFilesThatRanksMeetWithWhichAllOfThemHave) {
  const StatusOr<ClusterPlan> plan = PlanFromFile(
      Write("router: {tiers: [{name: a}]}\n"
            "workers: [{model: m, tls: {certificate_file: c.pem, key_file: k.pem}, group: {ranks: 2, tls: "
            "{ca_file: a.pem}}}]\n"));
  ASSERT_TRUE(plan.ok()) << plan.status();
  const std::string ca = (fs::absolute(testing::TempDir()) / "a.pem").lexically_normal();
  EXPECT_EQ(plan->workers[0].config.group().tls().ca_file(), ca);
  const std::vector<WorkerPlan> followers = FollowersOf(plan->workers[0]);
  ASSERT_EQ(followers.size(), 1u);
  EXPECT_EQ(followers[0].config.group().tls().ca_file(), ca);
  EXPECT_FALSE(followers[0].config.has_tls()) << "it listens for nobody";
}

TEST_F(ClusterPlanTest, ManifestsAndTheirKeysAreRelativeToTheFile) {
  const StatusOr<ClusterPlan> plan = PlanFromFile(
      Write("router: {tiers: [{name: a, manifests: [m.json, /n.json], manifest_keys: [k.pem]}]}\n"
            "workers: [{model: m}]\n"));
  ASSERT_TRUE(plan.ok()) << plan.status();
  const fs::path folder = fs::absolute(testing::TempDir());
  const v1::TierConfig& tier = plan->router.tiers(0);
  EXPECT_THAT(tier.manifests(), testing::ElementsAre((folder / "m.json").string(), "/n.json"));
  EXPECT_THAT(tier.manifest_keys(), testing::ElementsAre((folder / "k.pem").string()));
}

TEST_F(ClusterPlanTest, EveryAddressIsExplicitAndNamedByItsKey) {
  const StatusOr<ClusterPlan> plan =
      PlanFromFile(Write("router: {listen: {http: ''}, tiers: [{name: a}]}\n"
                         "workers: [{model: m}, {model: m, grpc: '127.0.0.1:7'}, {model: m}]\n"));
  ASSERT_TRUE(plan.ok()) << plan.status();
  std::vector<std::string> ports;
  for (const PortUse& use : plan->ports()) ports.push_back(use.key + "=" + use.address);
  EXPECT_THAT(ports, testing::ElementsAre(  // HTTP is turned off
                         "router.listen.grpc=127.0.0.1:8081", "router.listen.ops=127.0.0.1:9090",
                         "workers[0].grpc=127.0.0.1:8101", "workers[0].ops=127.0.0.1:9091",
                         "workers[1].grpc=127.0.0.1:7", "workers[1].ops=127.0.0.1:9092",
                         "workers[2].grpc=127.0.0.1:8103", "workers[2].ops=127.0.0.1:9093"));
}

TEST_F(ClusterPlanTest, WorkersAreNamedAfterTheirTiers) {
  const StatusOr<ClusterPlan> plan =
      PlanFromFile(Write("router: {tiers: [{name: a, workers: ['127.0.0.1:8101', '127.0.0.1:8102']}]}\n"
                         "workers: [{model: m}, {model: m}, {model: m}]\n"));
  ASSERT_TRUE(plan.ok()) << plan.status();
  std::vector<std::string> names;
  for (const WorkerPlan& worker : plan->workers) names.push_back(worker.name);
  EXPECT_THAT(names, testing::ElementsAre("worker-a", "worker-a-2", "worker-8103"));
}

TEST_F(ClusterPlanTest, WorkersWithoutThreadsShareTheCores) {
  const auto threads = [&](const std::string& workers, uint32_t cores) {
    StatusOr<ClusterPlan> plan =
        PlanFromFile(Write(Concat("router: {tiers: [{name: a}]}\nworkers: [", workers, "]\n")));
    EXPECT_TRUE(plan.ok()) << plan.status();
    ShareCores(*plan, cores);
    std::vector<uint32_t> out;
    for (const WorkerPlan& worker : plan->workers) out.push_back(worker.config.engine().threads());
    return out;
  };
  using testing::ElementsAre;
  EXPECT_THAT(threads("{model: m}", 8), ElementsAre(8));
  EXPECT_THAT(threads("{model: m}, {model: m}", 8), ElementsAre(4, 4));
  EXPECT_THAT(threads("{model: m}, {model: m}, {model: m}", 2), ElementsAre(1, 1, 1));
  EXPECT_THAT(threads("{model: m}, {model: m, engine: {threads: 3}}, {model: m}", 8), ElementsAre(2, 3, 2));
  EXPECT_THAT(threads("{model: m}, {model: m, engine: {threads: 99}}", 8), ElementsAre(1, 99));
  // As many processes as there are ranks.
  EXPECT_THAT(threads("{model: m}, {model: m, group: {ranks: 2}}", 9), ElementsAre(3, 3));
  EXPECT_THAT(threads("{model: m}, {model: m, group: {pipeline_parallel: 2}}", 9), ElementsAre(3, 3));
  EXPECT_THAT(threads("{model: m}, {model: m, group: {ranks: 2}, engine: {threads: 3}}", 8),
              ElementsAre(2, 3));
}

TEST_F(ClusterPlanTest, AGroupsOtherRanksAreItsLeaderButForRankAndListeners) {
  const StatusOr<ClusterPlan> plan =
      PlanFromFile(Write("router: {tiers: [{name: a, workers: ['127.0.0.1:8102']}]}\n"
                         "workers: [{model: m}, {model: m, group: {ranks: 4}, engine: {threads: 2, "
                         "speculation: {drafter: ngram}}}]\n"));
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_TRUE(FollowersOf(plan->workers[0]).empty());
  const WorkerPlan& leader = plan->workers[1];
  EXPECT_EQ(leader.ranks(), 4u);
  EXPECT_TRUE(leader.config.engine().has_speculation());
  EXPECT_EQ(leader.config.group().rank(), 0u);
  EXPECT_EQ(leader.config.group().leader(), "127.0.0.1:8202");
  EXPECT_EQ(plan->ports().back().key, "workers[1].group.leader");
  const std::vector<WorkerPlan> followers = FollowersOf(leader);
  ASSERT_EQ(followers.size(), 3u);
  for (uint32_t i = 0; i < 3; ++i) {
    const WorkerPlan& follower = followers[i];
    EXPECT_EQ(follower.name, Concat("worker-a-rank-", i + 1));
    EXPECT_EQ(follower.tier, "");
    EXPECT_FALSE(follower.config.has_grpc() || follower.config.has_ops());
    EXPECT_EQ(follower.config.group().rank(), i + 1);
    EXPECT_EQ(follower.config.group().ranks(), 4u);
    EXPECT_EQ(follower.config.group().leader(), "127.0.0.1:8202");
    EXPECT_EQ(follower.config.model(), leader.config.model());
    EXPECT_EQ(follower.config.engine().threads(), 2u);
    EXPECT_FALSE(follower.config.engine().has_speculation()) << "only the leader drafts";
  }
}

TEST_F(ClusterPlanTest, TheDegreesOfAGroupSayHowManyRanksThereAre) {
  const StatusOr<ClusterPlan> plan =
      PlanFromFile(Write("router: {tiers: [{name: a}]}\n"
                         "workers: [{model: m, group: {tensor_parallel: 2, pipeline_parallel: 3}}]\n"));
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->workers[0].ranks(), 6u);
  const std::vector<WorkerPlan> followers = FollowersOf(plan->workers[0]);
  ASSERT_EQ(followers.size(), 5u);
  for (const WorkerPlan& follower : followers) {
    EXPECT_EQ(follower.config.group().ranks(), 6u);
    EXPECT_EQ(follower.config.group().tensor_parallel(), 2u);
    EXPECT_EQ(follower.config.group().pipeline_parallel(), 3u);
  }
}

TEST_F(ClusterPlanTest, RefusesFilesThatCannotStart) {
  const struct {
    const char* yaml;
    const char* names;
  } cases[] = {
      {"workers: [{model: m}]", "router.tiers"},
      {"router: {tiers: [{name: a}]}", "workers"},
      {"router: {tiers: [{name: a}]}\nworkers: [{served_name: m}]", "workers[0].model"},
      {"router: {tiers: [{name: a}]}\nworkers: [{model: m, ops: ''}]", "workers[0].ops"},
      {"router: {tiers: [{name: a}], listen: {ops: ''}}\nworkers: [{model: m}]", "router.listen.ops"},
      {"router: {teirs: []}", "teirs"},
      {"router: {tiers: [{name: a}]}\nworkers: [{model: m, group: {ranks: 2, rank: 1}}]", "workers[0].group"},
      {"router: {tiers: [{name: a}]}\nworkers: [{model: m, group: {environment: lws}}]", "workers[0].group"},
      {"router: {tiers: [{name: a}]}\nworkers: [{model: m, group: {ranks: 65}}]",
       "workers[0].group.ranks is 65, not in [1, 64]"},
      {"router: {tiers: [{name: a}]}\nworkers: [{model: m, group: {tensor_parallel: 16, pipeline_parallel: "
       "5}}]",
       "workers[0].group: tensor_parallel 16 x pipeline_parallel 5 is 80, not in [1, 64]"},
      {"router: {tiers: [{name: a}]}\nworkers: [{model: m, group: {tensor_parallel: 0}}]",
       "workers[0].group.tensor_parallel is 0, not a power of two"},
      {"router: {tiers: [{name: a}]}\nworkers: [{model: m, group: {tensor_parallel: 3}}]",
       "workers[0].group.tensor_parallel is 3, not a power of two"},
      {"router: {tiers: [{name: a}]}\nworkers: [{model: m, group: {pipeline_parallel: 0}}]",
       "workers[0].group.pipeline_parallel is 0, not at least 1"},
  };
  for (const auto& c : cases) {
    const Status status = PlanFromFile(Write(c.yaml)).status();
    EXPECT_EQ(ExitCodeFor(status), kExitConfig) << c.yaml;
    EXPECT_THAT(Message(status),
                testing::AllOf(testing::HasSubstr("cluster.yaml"), testing::HasSubstr(c.names)));
  }
  EXPECT_EQ(ExitCodeFor(PlanFromFile("/nowhere/cluster.yaml").status()), kExitNoInput);
}

TEST_F(ClusterPlanTest, TheDemoFileNamesModelsThatExistAndPortsThatDoNotClash) {
  const StatusOr<ClusterPlan> plan = PlanFromFile("deploy/demo/cluster.yaml");
  ASSERT_TRUE(plan.ok()) << plan.status();
  ASSERT_EQ(plan->workers.size(), 3u);
  for (const WorkerPlan& worker : plan->workers) {
    EXPECT_TRUE(fs::exists(worker.config.model())) << worker.config.model();
    EXPECT_FALSE(worker.tier.empty()) << worker.name;
  }
  std::set<std::string> addresses;
  for (const PortUse& use : plan->ports()) EXPECT_TRUE(addresses.insert(use.address).second) << use.address;
}

TEST_F(ClusterPlanTest, ASingleModelBecomesOneTierOfItsName) {
  const fs::path model = fs::path(testing::TempDir()) / "My Model.Q8.gguf";
  std::ofstream(model) << "x";
  const StatusOr<ClusterPlan> plan = PlanForModel(model);
  ASSERT_TRUE(plan.ok()) << plan.status();
  ASSERT_EQ(plan->router.tiers_size(), 1);
  EXPECT_EQ(plan->router.tiers(0).name(), "my-model.q8");
  ASSERT_EQ(plan->workers.size(), 1u);
  EXPECT_EQ(plan->router.tiers(0).workers(0), plan->workers[0].config.grpc());
  EXPECT_EQ(plan->workers[0].config.model(), fs::canonical(model));
  EXPECT_EQ(ExitCodeFor(PlanForModel("/nowhere/model").status()), kExitNoInput);
}

}  // namespace
}  // namespace terrace
