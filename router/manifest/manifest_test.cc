#include "router/manifest/manifest.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "router/manifest/testing_manifest.h"

namespace terrace {
namespace {

using ::testing::HasSubstr;

Manifest Failed() {
  Manifest manifest = TestManifest("m", "t");
  manifest.failures = {"classify: 12 lost", "mean KL 0.4 > 0.1"};
  return manifest;
}

TEST(Manifest, IsReadBackAsItWasSigned) {
  const PrivateKey key = PrivateKey::Make();
  for (const Manifest& manifest : {TestManifest("m", "t"), Failed()}) {
    const auto read = ParseManifest(ManifestText(manifest, key));
    ASSERT_TRUE(read.ok()) << read.status();
    EXPECT_EQ(SignedBytes(read->manifest), SignedBytes(manifest));
    EXPECT_EQ(read->manifest.passed(), manifest.passed());
    EXPECT_EQ(read->manifest.candidate.text_digest, "t");
    EXPECT_EQ(read->manifest.report, manifest.report);
    EXPECT_EQ(read->key_id, key.public_key().id());
    EXPECT_EQ(CheckSigner(*read, std::vector{key.public_key()}), Status());
  }
}

// What docs/how-to/certify.md promises to whoever checks a signature with other tools.
TEST(Manifest, WhatIsSignedIsTheCompactTextOfItsMember) {
  const PrivateKey key = PrivateKey::Make();
  const Manifest manifest = Failed();
  const Json document = Json::parse(ManifestText(manifest, key));
  EXPECT_EQ(document["manifest"]["format"], "terrace-manifest-1") << "is signed too";
  EXPECT_EQ(document["manifest"].dump(), SignedBytes(manifest));
  EXPECT_THAT(SignedBytes(manifest),
              ::testing::StartsWith("{\"baseline\":{\"model_digest\":\"digest of large\""));
  EXPECT_EQ(document["signature"], ToBase64(key.Sign(document["manifest"].dump())));
}

TEST(Manifest, NoByteOfItsFileCanChange) {
  const PrivateKey key = PrivateKey::Make();
  const std::vector<PublicKey> keys = {key.public_key()};
  const std::string text = ManifestText(Failed(), key);
  const auto is_accepted = [&](const std::string& changed) {
    const auto read = ParseManifest(changed);
    return read.ok() && CheckSigner(*read, keys).ok();
  };
  ASSERT_TRUE(is_accepted(text));
  for (size_t i = 0; i < text.size(); ++i) {
    for (const char other : {static_cast<char>(text[i] ^ 1), static_cast<char>(text[i] ^ 0x20), ' '}) {
      std::string changed = text;
      changed[i] = other;
      EXPECT_TRUE(changed == text || !is_accepted(changed)) << i << ": " << other;
    }
    std::string shorter = text, longer = text;
    shorter.erase(i, 1);
    longer.insert(i, 1, ' ');
    EXPECT_FALSE(is_accepted(shorter)) << i;
    EXPECT_FALSE(is_accepted(longer)) << i;
  }
  EXPECT_FALSE(is_accepted(text + "\n"));
}

TEST(Manifest, WhatIsNoneSaysWhy) {
  const PrivateKey key = PrivateKey::Make();
  const std::string good = ManifestText(TestManifest("m", "t"), key);
  const struct {
    const char *cut, *paste, *says;
  } cases[] = {
      {"terrace-manifest-1", "terrace-manifest-2", "terrace-manifest-2"},
      {"\"verdict\": \"passed\"", "\"verdict\": \"failed\"", "verdict"},
      {"\"failures\": []", "\"failures\": [7]", "failures"},
      {"\"tool\"", "\"tools\"", "tool"},
      {"\"signature\": \"", "\"signature\": \"AAAA", "signature"},
      {"\"key\": \"", "\"key\": \"0", "hexadecimal"},
      {"\n}", ",\n  \"zeal\": 1\n}", "zeal"},
      {"  \"format\"", "   \"format\"", "written"},
  };
  for (const auto& c : cases) {
    std::string bad = good;
    const size_t at = bad.rfind(c.cut);
    ASSERT_NE(at, std::string::npos) << c.cut;
    bad.replace(at, std::string(c.cut).size(), c.paste);
    const Status status = ParseManifest(bad).status();
    EXPECT_EQ(status.code(), StatusCode::kDataLoss) << c.cut;
    EXPECT_EQ(Reason(status), "manifest_malformed");
    EXPECT_THAT(Message(status), HasSubstr(c.says));
  }
  for (const char* text : {"", "{}", "[]", "x"})
    EXPECT_EQ(Reason(ParseManifest(text).status()), "manifest_malformed") << text;
}

TEST(Manifest, MessagesAreShortAndHoldNoControlCharacters) {
  EXPECT_EQ(Shown("m\xC3\xBCll"), "m\xC3\xBCll");
  EXPECT_EQ(Shown("a\x1b[2J\n\x7f\xC2\x9B!"),
            "a?[2J?"
            "?"
            "?"
            "?!");
  EXPECT_EQ(Shown("m\xC3\xBCll", 2), "m...");
  Manifest manifest = TestManifest("m", "t");
  manifest.candidate.name = std::string(1000, 'n');
  EXPECT_LT(Message(CheckCandidate(manifest, "o", "t")).size(), 200u);
  manifest.failures.assign(20, "worse\x1b");
  EXPECT_THAT(Message(CheckVerdict(manifest)), ::testing::AllOf(::testing::EndsWith("worse?; and 12 more"),
                                                                ::testing::Not(HasSubstr("\x1b"))));
}

TEST(Manifest, EachCheckHasItsOwnReason) {
  const PrivateKey key = PrivateKey::Make(), other = PrivateKey::Make();
  const Manifest manifest = TestManifest("m", "t");
  SignedManifest read = ParseManifest(ManifestText(manifest, key)).value();
  EXPECT_EQ(Reason(CheckSigner(read, {})), "manifest_unknown_key");
  EXPECT_EQ(Reason(CheckSigner(read, std::vector{other.public_key()})), "manifest_unknown_key");
  read.signature = other.Sign(SignedBytes(manifest));
  EXPECT_EQ(Reason(CheckSigner(read, std::vector{other.public_key(), key.public_key()})),
            "manifest_bad_signature");
  EXPECT_EQ(CheckCandidate(manifest, "m", "t"), Status());
  EXPECT_EQ(Reason(CheckCandidate(manifest, "n", "t")), "manifest_other_model");
  EXPECT_EQ(Reason(CheckCandidate(manifest, "m", "u")), "manifest_other_model");
  EXPECT_EQ(CheckBaseline(manifest, ""), Status());
  EXPECT_EQ(CheckBaseline(manifest, "digest of large"), Status());
  EXPECT_EQ(Reason(CheckBaseline(manifest, "x")), "manifest_other_baseline");
  EXPECT_EQ(CheckVerdict(manifest), Status());
  EXPECT_EQ(Reason(CheckVerdict(Failed())), "manifest_failed");
  EXPECT_THAT(Message(CheckVerdict(Failed())), HasSubstr("classify: 12 lost; mean KL"));
  EXPECT_EQ(CheckLimits(manifest, {}), Status());
}

TEST(Manifest, MeasuredAgainstItselfShowsNothing) {
  Manifest manifest = TestManifest("m", "t");
  manifest.baseline = manifest.candidate;
  EXPECT_EQ(Reason(CheckBaseline(manifest, "")), "manifest_other_baseline");
  EXPECT_EQ(Reason(CheckBaseline(manifest, "m")), "manifest_other_baseline");
  manifest.baseline.text_digest = "u";  // another chat template
  EXPECT_EQ(CheckBaseline(manifest, ""), Status());
}

TEST(Manifest, WeakerTermsThanTheLimitsAreRefusedWithBothFigures) {
  const Manifest good = TestManifest("m", "t");
  const struct {
    ManifestLimits limits;
    const char* says;  // nullptr: it is let in
  } cases[] = {
      {{}, nullptr},
      {{.min_rows = 200, .task_set = "digest of tasks"}, nullptr},
      {{.max_margin = 0.02}, "margin is 0.05, limit 0.02"},
      {{.max_level = 0.01}, "level is 0.05, limit 0.01"},
      {{.max_mean_kl = 0.005}, "mean KL divergence is 0.01, limit 0.005"},
      {{.max_flip_rate = 0.01}, "flip rate is 0.02, limit 0.01"},
      {{.min_rows = 201}, "200 rows, at least 201"},
      {{.task_set = "other"}, "task set digest of tasks, not on other"},
  };
  for (const auto& c : cases) {
    const Status status = CheckLimits(good, c.limits);
    EXPECT_EQ(status.ok(), c.says == nullptr) << status;
    if (c.says == nullptr) continue;
    EXPECT_EQ(Reason(status), "manifest_outside_limits");
    EXPECT_THAT(Message(status), HasSubstr(c.says));
  }
}

TEST(Manifest, WhatItDoesNotSayIsNotWithinLimits) {
  Manifest manifest = TestManifest("m", "t");
  manifest.report["comparison"]["divergence"] = Json();  // of certify --no-divergence
  EXPECT_THAT(Message(CheckLimits(manifest, {})), HasSubstr("not compared"));
  EXPECT_EQ(CheckLimits(manifest, {.require_distributions = false}), Status());
  manifest.report["comparison"]["divergence"] = {{"mean_kl", Json()}, {"flip_rate", 0}};  // no number
  EXPECT_THAT(Message(CheckLimits(manifest, {.require_distributions = false})),
              HasSubstr("mean KL divergence"));
  manifest = TestManifest("m", "t");
  manifest.report["comparison"]["tasks"]["few"] = {{"rows", 7}};
  EXPECT_EQ(TermsOf(manifest).least_rows, 7u);
  EXPECT_EQ(TermsOf(manifest).tasks, 2u);
  manifest.report["comparison"]["tasks"] = Json::object();
  EXPECT_THAT(Message(CheckLimits(manifest, {})), HasSubstr("no task"));
  EXPECT_EQ(CheckLimits(manifest, {.min_rows = 0}), Status());
  manifest.report = Json::object();
  EXPECT_EQ(Reason(CheckLimits(manifest, {.min_rows = 0, .require_distributions = false})),
            "manifest_outside_limits");
}

}  // namespace
}  // namespace terrace
