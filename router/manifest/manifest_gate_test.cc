#include "router/manifest/manifest_gate.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "router/manifest/testing_manifest.h"

namespace terrace {
namespace {

using ::testing::HasSubstr;

class ManifestGateTest : public ::testing::Test {
 protected:
  std::string Path(const std::string& name) const { return ::testing::TempDir() + "/gate_" + name; }
  std::string Write(const std::string& name, const Manifest& manifest, const PrivateKey& key) const {
    WriteTestFile(Path(name), ManifestText(manifest, key));
    return Path(name);
  }
  std::shared_ptr<const ManifestGate> Load(const std::vector<std::string>& files,
                                           const std::string& baseline = "") const {
    auto gate = ManifestGate::Load({.files = files, .key_files = {signer_.file}, .baseline = baseline});
    CHECK(gate.ok(), Message(gate.status()));
    return *std::move(gate);
  }
  Manifest Failed(const std::string& model_digest) const {
    Manifest manifest = TestManifest(model_digest, "t");
    manifest.failures = {"it is worse"};
    return manifest;
  }

  const TestSigner signer_{::testing::TempDir(), "gate_signer"},
      stranger_{::testing::TempDir(), "gate_stranger"};
};

TEST_F(ManifestGateTest, LetsTheModelInThatAPassingManifestIsOf) {
  const auto gate = Load({Write("a", TestManifest("m", "t"), signer_.key)});
  EXPECT_EQ(gate->Check("m", "t"), Status());
  EXPECT_EQ(gate->CheckAny(), Status());
}

TEST_F(ManifestGateTest, EachRefusalHasItsReasonAndNamesTheFile) {
  std::string changed = ManifestText(TestManifest("m", "t"), signer_.key);
  changed.replace(changed.find("digest of tasks"), 15, "digest of tales");
  WriteTestFile(Path("changed"), changed);
  WriteTestFile(Path("text"), "no manifest");
  Write("failed", Failed("m"), signer_.key);
  Write("stranger", TestManifest("m", "t"), stranger_.key);
  Write("other", TestManifest("n", "t"), signer_.key);
  Write("text of other", TestManifest("m", "u"), signer_.key);
  const std::pair<const char*, const char*> cases[] = {
      {"absent", "manifest_unreadable"},    {"text", "manifest_malformed"},
      {"stranger", "manifest_unknown_key"}, {"changed", "manifest_bad_signature"},
      {"other", "manifest_other_model"},    {"text of other", "manifest_other_model"},
      {"failed", "manifest_failed"},
  };
  for (const auto& [name, reason] : cases) {
    const Status refused = Load({Path(name)})->Check("m", "t");
    EXPECT_EQ(Reason(refused), reason) << name;
    EXPECT_THAT(Message(refused), HasSubstr(Path(name)));
    EXPECT_EQ(Load({Path(name)})->HasUnreadable(), std::string_view(reason) == "manifest_unreadable");
  }
}

TEST_F(ManifestGateTest, AWorkerThatRoundsMoreThanWasMeasuredIsRefused) {
  const struct {
    const char *compute, *kv_dtype;  // measured
    Arithmetic served;
    bool is_let_in;
  } cases[] = {{"auto", "f32", {"auto", "f32"}, true},   {"auto", "f32", {"auto", "bf16"}, true},
               {"auto", "f32", {"f32", "f32"}, true},    {"auto", "f32", {"auto", "int8"}, false},
               {"auto", "f32", {"auto", "fp8"}, false},  {"auto", "int8", {"auto", "int8"}, true},
               {"auto", "int8", {"auto", "fp8"}, false}, {"auto", "int8", {"auto", "f16"}, true},
               {"f32", "f32", {"auto", "f32"}, false},   {"f32", "f32", {"f32", "f32"}, true},
               {"auto", "f32", {"fp8", "f32"}, false},   {"fp8", "bf16", {"fp8", "bf16"}, true},
               {"fp8", "bf16", {"auto", "bf16"}, true},  {"fp8", "bf16", {"f32", "f32"}, true}};
  for (const auto& c : cases) {
    SCOPED_TRACE(Concat(c.compute, " ", c.kv_dtype, " for ", c.served.compute, " ", c.served.kv_dtype));
    Manifest manifest = TestManifest("m", "t");
    manifest.report["candidate"]["in_process"] = {{"compute", c.compute}, {"kv_dtype", c.kv_dtype}};
    const Status verdict = Load({Write("arithmetic", manifest, signer_.key)})->Check("m", "t", c.served);
    EXPECT_EQ(verdict.ok(), c.is_let_in) << verdict;
    EXPECT_EQ(Reason(verdict), c.is_let_in ? "" : "manifest_other_arithmetic");
  }
  Manifest both = TestManifest("m", "t");
  both.report["candidate"]["in_process"] = {{"compute", "f32"}, {"kv_dtype", "f32"}};
  EXPECT_THAT(Message(Load({Write("both", both, signer_.key)})->Check("m", "t", {"auto", "int8"})),
              HasSubstr("compute f32, the worker has auto; with keys and values in f32, the worker has them"))
      << "all that has to be measured anew, at once";
  Manifest silent = TestManifest("m", "t");
  silent.report.erase("candidate");
  const auto gate = Load({Write("silent", silent, signer_.key)});
  EXPECT_EQ(Reason(gate->Check("m", "t", {"auto", "int8"})), "manifest_other_arithmetic");
  EXPECT_EQ(gate->Check("m", "t", {"auto", "f32"}), Status());
}

TEST_F(ManifestGateTest, AskedForABaselineItTakesNoOther) {
  const std::string file = Write("a", TestManifest("m", "t"), signer_.key);
  EXPECT_EQ(Load({file}, "digest of large")->Check("m", "t"), Status());
  const auto gate = Load({file}, "0123");
  EXPECT_EQ(Reason(gate->Check("m", "t")), "manifest_other_baseline");
  EXPECT_EQ(Reason(gate->CheckAny()), "manifest_other_baseline");
}

TEST_F(ManifestGateTest, APassingManifestOfWeakTermsIsRefused) {
  Manifest weak = TestManifest("m", "t");
  weak.report["thresholds"]["margin"] = 0.9;
  const std::string file = Write("weak", weak, signer_.key);
  for (const Status& refused : {Load({file})->Check("m", "t"), Load({file})->CheckAny()}) {
    EXPECT_EQ(Reason(refused), "manifest_outside_limits");
    EXPECT_THAT(Message(refused), HasSubstr("margin is 0.9, limit 0.05"));
  }
  v1::TierConfig tier;
  tier.add_manifests(file);
  tier.add_manifest_keys(signer_.file);
  tier.mutable_manifest_limits()->set_max_margin(0.9);
  EXPECT_EQ(ManifestGate::Load(GateOptionsOf(tier)).value()->Check("m", "t"), Status());
  EXPECT_EQ(GateOptionsOf(v1::TierConfig()).limits, ManifestLimits());
}

TEST_F(ManifestGateTest, OfSeveralManifestsOneThatPassesIsEnoughAndTheClosestTellsWhyNot) {
  const std::string absent = Path("absent"), failed = Write("failed", Failed("m"), signer_.key),
                    other = Write("other", TestManifest("n", "t"), signer_.key);
  const auto gate = Load({failed, other, absent});
  EXPECT_EQ(gate->Check("n", "t"), Status());
  EXPECT_EQ(Reason(gate->Check("m", "t")), "manifest_failed");
  EXPECT_EQ(Reason(gate->Check("o", "t")), "manifest_other_model");
  EXPECT_EQ(gate->CheckAny(), Status());
  EXPECT_EQ(Reason(Load({absent, failed})->CheckAny()), "manifest_failed");
}

TEST_F(ManifestGateTest, AFileThatIsReplacedLaterCountsForNothing) {
  const std::string file = Write("a", TestManifest("m", "t"), signer_.key);
  const auto gate = Load({file});
  Write("a", Failed("m"), signer_.key);
  EXPECT_EQ(gate->Check("m", "t"), Status());
  EXPECT_EQ(Reason(Load({file})->Check("m", "t")), "manifest_failed");
}

TEST_F(ManifestGateTest, AKeyThatCannotBeUsedIsAnError) {
  WriteTestFile(Path("key"), stranger_.key.Pem());  // the private half
  for (const std::string& file : {Path("absent"), Path("key")}) {
    const Status status = ManifestGate::Load({.files = {}, .key_files = {file}}).status();
    EXPECT_EQ(status.code(),
              file == Path("absent") ? StatusCode::kNotFound : StatusCode::kFailedPrecondition);
    EXPECT_THAT(Message(status), HasSubstr(file));
  }
}

}  // namespace
}  // namespace terrace
