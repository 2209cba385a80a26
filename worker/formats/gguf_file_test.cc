#include "worker/formats/gguf_file.h"

#include <cstring>

#include "base/rng.h"
#include "gtest/gtest.h"
#include "worker/formats/gguf_config.h"
#include "worker/formats/gguf_tokenizer.h"
#include "worker/formats/testing_files.h"

namespace terrace {
namespace {

// A copy on the heap of exactly that size, so that a sanitizer sees any read past its end.
std::vector<std::byte> Exactly(std::string_view bytes) {
  std::vector<std::byte> copy(bytes.size());
  if (!bytes.empty()) std::memcpy(copy.data(), bytes.data(), bytes.size());
  return copy;
}

TEST(ParseGguf, ReadsEveryTypeOfValue) {
  GgufParts parts;
  const auto scalar = [&](std::string_view name, GgufType type, auto value) {
    parts.Set(name, {type, Packed(value)});
  };
  scalar("u8", GgufType::kUint8, uint8_t{255});
  scalar("i8", GgufType::kInt8, int8_t{-1});
  scalar("u16", GgufType::kUint16, uint16_t{65535});
  scalar("i16", GgufType::kInt16, int16_t{-2});
  scalar("u32", GgufType::kUint32, ~uint32_t{0});
  scalar("i32", GgufType::kInt32, int32_t{-3});
  scalar("u64", GgufType::kUint64, uint64_t{1} << 40);
  scalar("i64", GgufType::kInt64, int64_t{-4});
  scalar("f32", GgufType::kFloat32, 0.5f);
  scalar("f64", GgufType::kFloat64, 0.25);
  parts.Set("yes", GgufBool(true));
  parts.Set("no", GgufBool(false));
  parts.Set("text", GgufString("h\xc3\xa9"));
  parts.Set("empty", GgufString(""));
  parts.Set("texts", GgufStrings({"a", "", "ccc"}));
  parts.Set("ints", GgufInts({1, -1}));
  const auto bytes = Exactly(parts.Bytes());
  const auto contents = ParseGguf(bytes);
  ASSERT_TRUE(contents.ok()) << contents.status();
  const GgufMetadata& metadata = contents->metadata;
  const std::pair<const char*, int64_t> integers[] = {{"u8", 255},
                                                      {"i8", -1},
                                                      {"u16", 65535},
                                                      {"i16", -2},
                                                      {"u32", 4294967295},
                                                      {"i32", -3},
                                                      {"u64", int64_t{1} << 40},
                                                      {"i64", -4}};
  for (const auto& [key, value] : integers) EXPECT_EQ(*metadata.Integer(key), value) << key;
  EXPECT_EQ(*metadata.Float("f32"), 0.5);
  EXPECT_EQ(*metadata.Float("f64"), 0.25);
  EXPECT_TRUE(*metadata.Bool("yes"));
  EXPECT_FALSE(*metadata.Bool("no"));
  EXPECT_EQ(*metadata.String("text"), "h\xc3\xa9");
  EXPECT_EQ(*metadata.String("empty"), "");
  EXPECT_EQ(*metadata.Strings("texts"), (std::vector<std::string_view>{"a", "", "ccc"}));
  EXPECT_EQ(*metadata.Integers("ints"), (std::vector<int64_t>{1, -1}));
}

TEST(ParseGguf, RefusesToReadAValueAsAnotherType) {
  GgufParts parts;
  parts.Set("number", GgufU32(7));
  parts.Set("text", GgufString("7"));
  parts.Set("float", GgufF32(7));
  parts.Set("floats", {GgufType::kArray, Packed(uint32_t{6}) + Packed(uint64_t{1}) + Packed(7.0f)});
  const auto bytes = Exactly(parts.Bytes());
  const auto contents = ParseGguf(bytes);
  ASSERT_TRUE(contents.ok()) << contents.status();
  const GgufMetadata& metadata = contents->metadata;
  for (const Status& status : {metadata.Float("number").status(), metadata.Bool("number").status(),
                               metadata.String("number").status(), metadata.Integers("number").status(),
                               metadata.Integer("text").status(), metadata.Integer("float").status(),
                               metadata.Integer("floats").status(), metadata.Integers("floats").status(),
                               metadata.Strings("floats").status()}) {
    EXPECT_EQ(status.code(), StatusCode::kDataLoss);
    EXPECT_EQ(Reason(status), "type_mismatch") << status;
  }
  EXPECT_EQ(Reason(metadata.Integer("absent").status()), "missing_key");
}

TEST(ParseGguf, GivesTensorsOutermostDimensionFirstInFileOrder) {
  for (const uint32_t version : {2, 3}) {
    for (const uint32_t alignment : {8, 32, 4096}) {
      GgufParts parts;
      parts.version = version;
      parts.alignment = alignment;
      parts.Set("general.alignment", GgufU32(alignment));
      parts.tensors = {{"b", {3, 2}, 0, std::string(24, 'b'), {}},
                       {"a", {32, 1, 5}, 8, std::string(34 * 5, 'a'), {}},
                       {"c", {1}, 30, "cc", {}}};
      const auto bytes = Exactly(parts.Bytes());
      const auto contents = ParseGguf(bytes);
      ASSERT_TRUE(contents.ok()) << contents.status();
      ASSERT_EQ(contents->entries.size(), 3u);
      const std::pair<DType, Shape> expected[] = {
          {DType::kF32, Shape({2, 3})}, {DType::kQ8_0, Shape({5, 1, 32})}, {DType::kBF16, Shape({1})}};
      for (size_t i = 0; i < 3; ++i) {
        const auto& [name, tensor, offset, file] = contents->entries[i];
        EXPECT_EQ(file, "");
        EXPECT_EQ(name, parts.tensors[i].name);
        EXPECT_EQ(tensor.dtype, expected[i].first);
        EXPECT_EQ(tensor.shape, expected[i].second);
        EXPECT_EQ(tensor.data, bytes.data() + offset);
        EXPECT_EQ(std::string(reinterpret_cast<const char*>(tensor.data), tensor.bytes),
                  parts.tensors[i].data);
      }
    }
  }
}

TEST(ParseGguf, NamesTheByteWhereTheFileIsWrong) {
  GgufParts parts = TinyGguf();
  const size_t where =
      parts.Header().find("general.name") + std::strlen("general.name");  // of the value's type
  std::string bytes = parts.Bytes();
  bytes.replace(where, 4, Packed(uint32_t{77}));
  const auto contents = ParseGguf(Exactly(bytes));
  ASSERT_FALSE(contents.ok());
  EXPECT_EQ(Message(contents.status()),
            Concat("key \"general.name\": unknown value type 77 at byte ", where));
}

TEST(ParseGguf, CallsEveryCutOfTheHeaderTruncated) {
  const GgufParts parts = TinyGguf();
  const std::string header = parts.Header();
  for (size_t size = 0; size <= header.size(); ++size) {  // the whole header lacks its data
    const auto bytes = Exactly(std::string_view(header).substr(0, size));
    const auto contents = ParseGguf(bytes);
    ASSERT_FALSE(contents.ok()) << size;
    EXPECT_EQ(contents.status().code(), StatusCode::kDataLoss);
    EXPECT_EQ(Reason(contents.status()), "truncated") << size << ": " << contents.status();
  }
}

TEST(ParseGguf, SurvivesRandomChangesOfTheHeader) {
  const GgufParts parts = TinyGguf();
  const size_t header_bytes = parts.Header().size();
  const std::string valid = parts.Bytes();
  int accepted = 0;
  for (uint64_t seed = 0; seed < 3000; ++seed) {
    SCOPED_TRACE(Concat("seed ", seed));
    std::string changed = valid;
    const uint64_t changes = 1 + RandomBits(seed, 0) % 4;
    for (uint64_t i = 0; i < changes; ++i) {
      // Half of them among the counts and the first keys, where a byte decides most.
      const uint64_t range = RandomBits(seed, 3 * i + 1) % 2 == 0 ? 512 : header_bytes;
      changed[RandomBits(seed, 3 * i + 2) % range] = static_cast<char>(RandomBits(seed, 3 * i + 3));
    }
    const auto bytes = Exactly(changed);
    auto contents = ParseGguf(bytes);
    if (!contents.ok()) {
      EXPECT_EQ(contents.status().code(), StatusCode::kDataLoss);
      EXPECT_NE(Reason(contents.status()), "");
      continue;
    }
    ++accepted;
    const GgufFile file = {
        .weights = std::make_unique<MappedWeights>("memory", std::vector<std::unique_ptr<MappedFile>>(),
                                                   std::move(contents->entries)),
        .metadata = std::move(contents->metadata)};
    for (const Status& status :
         {ParseGgufConfig(file, "memory").status(), LoadGgufText(file.metadata, "memory").status()}) {
      if (status.ok()) continue;
      EXPECT_EQ(status.code(), StatusCode::kDataLoss) << status;
      EXPECT_NE(Reason(status), "") << status;
    }
  }
  EXPECT_GT(accepted, 0);  // the changes reach what comes after the header's checks, too
}

}  // namespace
}  // namespace terrace
