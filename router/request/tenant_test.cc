#include "router/request/tenant.h"

#include "gtest/gtest.h"
#include "router/request/param.h"

namespace terrace {
namespace {

TEST(Tenant, WithoutASecretTheCallersSaltIsUsedAsItIs) {
  EXPECT_EQ(DefaultTenant()->CacheSalt(""), "");
  EXPECT_EQ(DefaultTenant()->CacheSalt("mine"), "mine");
}

TEST(Tenant, NoTwoTenantsShareASaltWhateverTheyAskFor) {
  const Tenant a{.name = "a", .cache_key = "key of a"}, b{.name = "b", .cache_key = "key of b"};
  EXPECT_NE(a.CacheSalt(""), b.CacheSalt(""));
  EXPECT_NE(a.CacheSalt("x"), b.CacheSalt("x"));
  EXPECT_NE(a.CacheSalt("x"), a.CacheSalt(""));
  EXPECT_EQ(a.CacheSalt("x"), a.CacheSalt("x"));
  EXPECT_NE(b.CacheSalt(a.CacheSalt("")), a.CacheSalt(""));  // also when it has seen the other's
}

TEST(Tenant, MayUseTheModelsOfItsListAndAllWithoutOne) {
  EXPECT_TRUE(Tenant().MayUse("base"));
  const Tenant some{.models = {"nano"}};
  EXPECT_TRUE(some.MayUse("nano"));
  EXPECT_FALSE(some.MayUse("base"));
  EXPECT_EQ(Reason(ModelNotAllowed("base")), "model_not_allowed");
}

}  // namespace
}  // namespace terrace
