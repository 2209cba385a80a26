#include <filesystem>

#include "base/mapped_file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/layers/layer_table.h"

namespace terrace {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr char kDocument[] = "docs/architecture.md";

// The checkout: where the document that Bazel linked into this test's folder really is.
fs::path Root() { return fs::canonical(kDocument).parent_path().parent_path(); }

bool IsSource(const fs::path& path) {
  const std::string extension = path.extension();
  return extension == ".h" || extension == ".cc" || extension == ".cu" || extension == ".cuh";
}

TEST(Layers, EveryIncludeFollowsTheTableOfTheArchitecture) {
  const auto table = LayerTable::Parse(ReadFile(kDocument).value());
  ASSERT_TRUE(table.ok()) << table.status();
  size_t files = 0;
  for (const std::string& folder : table->top_folders()) {
    ASSERT_TRUE(fs::is_directory(Root() / folder)) << "the table names " << folder << ", which is not there";
    for (const auto& entry : fs::recursive_directory_iterator(Root() / folder)) {
      if (!entry.is_regular_file() || !IsSource(entry.path())) continue;
      const std::string path = fs::relative(entry.path(), Root());
      for (const std::string& problem : table->Check(path, ReadFile(entry.path()).value()))
        ADD_FAILURE() << problem;
      ++files;
    }
  }
  EXPECT_GT(files, 20u) << "where are the sources?";
}

constexpr char kTable[] = R"(
<!-- layers:begin -->
```
base                (nothing)
base/odd_test.cc    proto
proto               (nothing)
worker/{kv,model}   base worker/tensor
worker/tensor       base
router/server       base router/*
router/tier         base
```
<!-- layers:end -->
<!-- bans:begin -->
```
#include "proto/    router/server base/odd_test.cc
std::thread         base/pool
```
<!-- bans:end -->
)";

std::vector<std::string> Check(const std::string& path, std::string_view source) {
  return LayerTable::Parse(kTable)->Check(path, source);
}

TEST(LayerTable, AllowsOwnFolderAllowedFoldersAndLibraries) {
  EXPECT_THAT(Check("worker/kv/a.cc",
                    "#include \"worker/kv/a.h\"\n#include \"base/x.h\"\n#include \"worker/tensor/y.h\"\n"
                    "#include <worker/model/z.h>\n#include \"gtest/gtest.h\"\n"),
              IsEmpty());
  EXPECT_THAT(Check("router/server/main.cc", "#include \"router/tier/a.h\"\n#include \"router/server/b.h\""),
              IsEmpty());
  EXPECT_THAT(Check("base/odd_test.cc", "#include \"proto/a.pb.h\"\n#include \"base/b.h\""), IsEmpty());
}

TEST(LayerTable, NamesFileLineEdgeAndWhatIsAllowed) {
  EXPECT_THAT(
      Check("worker/kv/a.cc", "\n#include \"worker/model/b.h\"\n"),
      ElementsAre(
          "worker/kv/a.cc:2: includes \"worker/model/b.h\", but worker/kv may include: base worker/tensor"));
  EXPECT_THAT(Check("base/a.h", "#include \"router/tier/b.h\""),
              ElementsAre("base/a.h:1: includes \"router/tier/b.h\", but base may include: (nothing)"));
  EXPECT_THAT(Check("worker/tensor/a.h", "  #include \"worker/kv/b.h\""),
              ElementsAre(HasSubstr("worker/kv/b.h")));
  EXPECT_THAT(Check("worker/tensor/a.h", "#include \"b.h\"\n#include \"../kv/b.h\""),
              ElementsAre(HasSubstr("from the root"), HasSubstr("from the root")));
  EXPECT_THAT(Check("worker/new/a.h", ""),
              ElementsAre("worker/new/a.h: no row of the layer table covers this file"));
}

TEST(LayerTable, BansTextOutsideTheNamedFiles) {
  EXPECT_THAT(
      Check("router/tier/a.cc", "std::thread t;  // std::thread\n// std::thread\nstd::thread::id i;\n"),
      ElementsAre("router/tier/a.cc:1: holds std::thread, which only these may: base/pool"));
  for (const char* path : {"base/pool.cc", "base/pool.h", "base/pool_test.cc", "router/tier/a_test.cc"}) {
    EXPECT_THAT(Check(path, "std::thread t;"), IsEmpty()) << path;
  }
  EXPECT_THAT(Check("base/poolside.cc", "std::thread t;"), ElementsAre(HasSubstr("std::thread")));
  EXPECT_THAT(Check("base/a_test.cc", "#include \"proto/a.pb.h\""),
              ElementsAre(HasSubstr("may include"), HasSubstr("which only these may")));
}

TEST(LayerTable, ADocumentWithoutTheTablesIsAnError) {
  EXPECT_FALSE(LayerTable::Parse("# Nothing").ok());
  EXPECT_FALSE(LayerTable::Parse("<!-- layers:begin -->\nbase\n<!-- layers:end -->").ok());
}

}  // namespace
}  // namespace terrace
