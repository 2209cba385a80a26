#include "router/server/tenants.h"

#include <fstream>

#include "base/config.h"
#include "base/crypto.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

constexpr char kSecret[] = "0123456789abcdef0123456789abcdef";

std::string DigestOf(const std::string& key) { return ToHex(AsBytes(Sha256(key))); }

class TenantsTest : public ::testing::Test {
 protected:
  StatusOr<std::shared_ptr<const Tenants>> Parse(const std::string& yaml,
                                                 const std::string& secret = kSecret) const {
    v1::TenantsFile file;
    RETURN_IF_ERROR(ParseYaml(yaml, "keys.yaml", file));
    return Tenants::Make(file, *catalog_, secret);
  }
  static std::string Two() {
    return Concat("tenants: [{name: a, key_sha256: [", DigestOf("key of a"), ", ", DigestOf("new key of a"),
                  "], models: [tiny], max_in_flight: 3, weight: 2, tokens_per_minute: 100, max_priority: 5},",
                  "{name: b, key_sha256: [", DigestOf("key of b"), "]}]");
  }

  const std::unique_ptr<ModelCatalog> catalog_ =
      *ModelCatalog::Make({{.name = "nano", .aliases = {"tiny"}}, {.name = "base"}}, {}, "");
};

TEST_F(TenantsTest, AKeyIsItsTenantAndATenantMayHaveSeveral) {
  const auto tenants = Parse(Two());
  ASSERT_TRUE(tenants.ok()) << tenants.status();
  EXPECT_EQ((*tenants)->keys(), 3u);
  const auto a = (*tenants)->Authenticate("Bearer key of a");
  ASSERT_TRUE(a.ok());
  EXPECT_EQ((*a)->name, "a");
  EXPECT_EQ((*a)->max_in_flight, 3u);
  EXPECT_EQ((*a)->weight, 2);
  EXPECT_EQ((*a)->tokens_per_minute, 100);
  EXPECT_EQ((*a)->max_priority, 5);
  EXPECT_EQ((*tenants)->Authenticate("bearer new key of a").value(), *a);
  EXPECT_EQ((*tenants)->Authenticate("BEARER key of b").value()->name, "b");
}

TEST_F(TenantsTest, AnAliasOfAModelMeansTheModel) {
  const auto tenants = Parse(Two());
  const auto a = (*tenants)->Authenticate("Bearer key of a").value();
  EXPECT_TRUE(a->MayUse("nano"));
  EXPECT_FALSE(a->MayUse("base"));
  EXPECT_TRUE((*tenants)->Authenticate("Bearer key of b").value()->MayUse("base"));
}

TEST_F(TenantsTest, WhatIsNoKeyIsRefusedWithoutBeingRepeated) {
  const auto tenants = Parse(Two());
  for (const std::string& bad :
       {std::string(), std::string("Bearer"), std::string("Bearer "), std::string("key of a"),
        std::string("Basic key of a"), std::string("Bearer key of c"), std::string("Bearer  key of a"),
        std::string("Bearer key of a, Bearer key of a"), "Bearer " + DigestOf("key of a"),
        "Bearer " + std::string(100'000, 'x')}) {
    const auto refused = (*tenants)->Authenticate(bad);
    ASSERT_FALSE(refused.ok()) << bad;
    EXPECT_EQ(refused.status().code(), StatusCode::kUnauthenticated);
    EXPECT_EQ(Reason(refused.status()), "invalid_api_key");
    EXPECT_THAT(Message(refused.status()), Not(HasSubstr("key of c")));
  }
}

TEST_F(TenantsTest, CachedPrefixesAreKeptApartByTheSecret) {
  const auto first = Parse(Two()), same = Parse(Two()), other = Parse(Two(), std::string(32, 'x'));
  const auto salt = [](const auto& tenants, const char* key) {
    return (*tenants)->Authenticate(key).value()->CacheSalt("");
  };
  EXPECT_NE(salt(first, "Bearer key of a"), salt(first, "Bearer key of b"));
  EXPECT_EQ(salt(first, "Bearer key of a"), salt(same, "Bearer key of a"));  // on every router
  EXPECT_NE(salt(first, "Bearer key of a"), salt(other, "Bearer key of a"));
}

TEST_F(TenantsTest, EveryErrorNamesThePathOfItsSetting) {
  const std::string digest = DigestOf("k");
  const std::pair<std::string, std::string> wrong[] = {
      {"tenants: []", "tenants: "},
      {"tenants: [{name: A}]", "tenants[0].name: "},
      {"tenants: [{name: a}, {name: a}]", "tenants[1].name: "},
      {"tenants: [{name: a, key_sha256: [abc]}]", "tenants[0].key_sha256[0]: "},
      {"tenants: [{name: a, key_sha256: [" + digest + "]}, {name: b, key_sha256: [" + digest + "]}]",
       "tenants[1].key_sha256[0]: "},
      {"tenants: [{name: a, models: [nano, huge]}]", "tenants[0].models[1]: "},
      {"tenants: [{name: a, models: [\"\"]}]", "tenants[0].models[0]: "},
      {"tenants: [{name: a, weight: 0}]", "tenants[0].weight: "},
      {"tenants: [{name: a, weight: 1001}]", "tenants[0].weight: "},
      {"tenants: [{name: a, requests_per_minute: -1}]", "tenants[0].requests_per_minute: "},
      {"tenants: [{name: a, tokens_per_minute: 0}]", "tenants[0].tokens_per_minute: "},
      {"tenants: [{name: a, max_in_flight: 0}]", "tenants[0].max_in_flight: "},
      {"tenants: [{name: a, max_priority: 101}]", "tenants[0].max_priority: "},
      {"tenants: [{name: a, max_priority: -1}]", "tenants[0].max_priority: "},
      {"tenants: [{name: a, weight: 0.0001}]", "tenants[0].weight: "},
  };
  for (const auto& [yaml, path] : wrong) {
    const auto tenants = Parse(yaml);
    ASSERT_FALSE(tenants.ok()) << yaml;
    EXPECT_EQ(tenants.status().code(), StatusCode::kFailedPrecondition);
    EXPECT_THAT(Message(tenants.status()), StartsWith(path)) << yaml;
  }
}

TEST_F(TenantsTest, FilesAreNamedAndTheirSecretsAreNot) {
  const std::string keys = ::testing::TempDir() + "/keys.yaml", secret = ::testing::TempDir() + "/secret";
  std::ofstream(keys) << Two();
  std::ofstream(secret) << "too short\n";
  EXPECT_THAT(Message(Tenants::Load(keys, secret, *catalog_).status()),
              AllOf(StartsWith(secret), Not(HasSubstr("too short"))));
  EXPECT_THAT(Message(Tenants::Load(keys, secret + ".none", *catalog_).status()), StartsWith(secret));
  EXPECT_THAT(Message(Tenants::Load(keys + ".none", secret, *catalog_).status()), StartsWith(keys));
  EXPECT_THAT(Message(Tenants::Load(keys, ::testing::TempDir(), *catalog_).status()),
              StartsWith(::testing::TempDir()));
  for (const auto& [one, other] : {std::pair(keys + ".none", secret), std::pair(keys, secret + ".none")}) {
    EXPECT_EQ(Tenants::Load(one, other, *catalog_).status().code(), StatusCode::kNotFound);
  }
  std::ofstream(secret) << kSecret << "\n";
  EXPECT_TRUE(Tenants::Load(keys, secret, *catalog_).ok());
  std::ofstream(keys) << "tenants: [{name: A}]";
  EXPECT_THAT(Message(Tenants::Load(keys, secret, *catalog_).status()),
              StartsWith(keys + ": tenants[0].name"));
}

TEST_F(TenantsTest, AKeyAtTheWrongPlaceOfTheFileIsNotRepeated) {
  const std::string keys = ::testing::TempDir() + "/keys.yaml", secret = ::testing::TempDir() + "/secret";
  std::ofstream(secret) << kSecret << "\n";
  for (const char* yaml :
       {"tenants: [{name: a, key_sha256: sk-terrace-1234}]", "tenants: [sk-terrace-1234]",
        "tenants: sk-terrace-1234", "sk-terrace-1234", "tenants: [{name: a, key_sha256: [123412341234]}]",
        "tenants: [{name: a, weight: sk-terrace-1234}]", "tenants: [{sk-terrace-1234: a}]",
        "tenants: [{name: SK-terrace-1234}]", "tenants: [{name: a, models: [sk-terrace-1234]}]",
        "sk-terrace-1234: a", "sk-terrace-1234: {name: a}"}) {
    std::ofstream(keys) << yaml;
    const Status error = Tenants::Load(keys, secret, *catalog_).status();
    EXPECT_EQ(error.code(), StatusCode::kFailedPrecondition) << yaml;
    EXPECT_THAT(Message(error), Not(HasSubstr("1234"))) << yaml;
  }
}

}  // namespace
}  // namespace terrace
