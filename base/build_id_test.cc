#include "base/build_id.h"

#include <dlfcn.h>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

TEST(BuildId, ThisProgramHasOneOfSha1) {
  EXPECT_THAT(OwnBuildId(), testing::MatchesRegex("[0-9a-f]+"));
  EXPECT_EQ(OwnBuildId().size(), 40u);
  EXPECT_EQ(BuildIdAt(reinterpret_cast<const void*>(&OwnBuildId)), OwnBuildId());
}

TEST(BuildId, ALibraryHasItsOwn) {
  const void* const in_libc = dlsym(RTLD_DEFAULT, "gnu_get_libc_version");
  ASSERT_NE(in_libc, nullptr);
  EXPECT_NE(BuildIdAt(in_libc), OwnBuildId());
}

TEST(BuildId, WhatBelongsToNobodyHasNone) {
  const int local = 0;
  EXPECT_EQ(BuildIdAt(&local), "");
  EXPECT_EQ(BuildIdAt(nullptr), "");
}

}  // namespace
}  // namespace terrace
