#include "worker/formats/safetensors_file.h"

#include <cstring>
#include <filesystem>

#include "base/rng.h"
#include "gtest/gtest.h"
#include "worker/formats/testing_files.h"

namespace terrace {
namespace {

std::vector<std::byte> Exactly(std::string_view bytes) {
  std::vector<std::byte> copy(bytes.size());
  if (!bytes.empty()) std::memcpy(copy.data(), bytes.data(), bytes.size());
  return copy;
}

std::string BytesOf(std::span<const std::byte> data) {
  return std::string(reinterpret_cast<const char*>(data.data()), data.size());
}
std::string BytesOf(const TensorView& tensor) { return BytesOf(std::span(tensor.data, tensor.bytes)); }

SafetensorsParts ThreeTensors() {
  SafetensorsParts parts;
  parts.Add("c", "F16", {1, 3}, "ccCCcc");
  parts.Add("a", "BF16", {}, "aa");
  parts.Add("b", "F32", {2}, "bbbbBBBB");
  parts.header["__metadata__"] = {{"format", "pt"}};
  return parts;
}

std::string Folder(const std::string& name) { return testing::TempDir() + "safetensors_" + name; }

TEST(ParseSafetensors, GivesTensorsInTheOrderOfTheirData) {
  const auto bytes = Exactly(ThreeTensors().Bytes());
  const auto tensors = ParseSafetensors(bytes, "file");
  ASSERT_TRUE(tensors.ok()) << tensors.status();
  ASSERT_EQ(tensors->size(), 3u);
  const struct {
    const char *name, *dtype;
    Shape shape;
    const char* data;
  } expected[] = {{"c", "F16", Shape({1, 3}), "ccCCcc"},
                  {"a", "BF16", Shape({}), "aa"},
                  {"b", "F32", Shape({2}), "bbbbBBBB"}};
  for (size_t i = 0; i < 3; ++i) {
    const SafetensorsTensor& tensor = (*tensors)[i];
    EXPECT_EQ(tensor.name, expected[i].name);
    EXPECT_EQ(tensor.dtype, expected[i].dtype);
    EXPECT_EQ(tensor.shape, expected[i].shape);
    EXPECT_EQ(BytesOf(tensor.data), expected[i].data);
    EXPECT_EQ(tensor.data.data(), bytes.data() + tensor.offset);
    EXPECT_EQ(tensor.file, "file");
  }
}

TEST(ParseSafetensors, RefusesEveryCut) {
  const std::string whole = ThreeTensors().Bytes();
  for (size_t size = 0; size < whole.size(); ++size) {
    const auto bytes = Exactly(std::string_view(whole).substr(0, size));
    const auto entries = ParseSafetensors(bytes);
    ASSERT_FALSE(entries.ok()) << size;
    EXPECT_EQ(entries.status().code(), StatusCode::kDataLoss);
    EXPECT_NE(Reason(entries.status()), "") << size;
  }
}

TEST(ParseSafetensors, SurvivesRandomChangesOfTheHeader) {
  const std::string valid = ThreeTensors().Bytes();
  const size_t header_bytes = valid.size() - ThreeTensors().data.size();
  for (uint64_t seed = 0; seed < 3000; ++seed) {
    SCOPED_TRACE(Concat("seed ", seed));
    std::string changed = valid;
    const uint64_t changes = 1 + RandomBits(seed, 0) % 3;
    for (uint64_t i = 0; i < changes; ++i)
      changed[RandomBits(seed, 2 * i + 1) % header_bytes] = static_cast<char>(RandomBits(seed, 2 * i + 2));
    const auto bytes = Exactly(changed);
    const auto entries = ParseSafetensors(bytes);
    if (entries.ok()) continue;
    EXPECT_EQ(entries.status().code(), StatusCode::kDataLoss);
    EXPECT_NE(Reason(entries.status()), "");
  }
}

TEST(OpenSafetensors, GivesDataThatIsAlignedForItsDtype) {
  for (size_t padding = 0; padding < 8; ++padding) {
    FolderParts folder = TinyFolder();
    SafetensorsParts parts = ThreeTensors();
    parts.header_text = parts.header.dump() + std::string(padding, ' ');
    folder.files["model.safetensors"] = parts.Bytes();
    folder.Write(Folder("unaligned"));
    const auto weights = OpenSafetensors(Folder("unaligned"));
    ASSERT_TRUE(weights.ok()) << weights.status();
    EXPECT_EQ(reinterpret_cast<uintptr_t>((*weights)->Find("c")->data) % 2, 0u);
    EXPECT_EQ(reinterpret_cast<uintptr_t>((*weights)->Find("b")->data) % 4, 0u);
    EXPECT_EQ(BytesOf(*(*weights)->Find("b")), "bbbbBBBB");
    EXPECT_EQ(BytesOf(*(*weights)->Find("c")), "ccCCcc");
  }
}

TEST(OpenSafetensors, ReadsShardsAsOneModel) {
  FolderParts folder = TinyFolder();
  SafetensorsParts first, second;
  first.Add("a", "F16", {2}, "aaaa");
  second.Add("b", "F32", {1}, "bbbb");
  folder.absent = {"model.safetensors"};
  folder.files["first.safetensors"] = first.Bytes();
  folder.files["second.safetensors"] = second.Bytes();
  folder.files["model.safetensors.index.json"] =
      R"({"metadata": {"total_size": 8}, "weight_map": {"b": "second.safetensors", "a": "first.safetensors"}})";
  folder.Write(Folder("shards"));
  const auto weights = OpenSafetensors(Folder("shards"));
  ASSERT_TRUE(weights.ok()) << weights.status();
  ASSERT_EQ((*weights)->entries().size(), 2u);
  EXPECT_EQ(BytesOf(*(*weights)->Find("a")), "aaaa");
  EXPECT_EQ(BytesOf(*(*weights)->Find("b")), "bbbb");
  EXPECT_EQ((*weights)->entries()[0].file, Folder("shards") + "/first.safetensors");
  EXPECT_EQ((*weights)->entries()[1].file, Folder("shards") + "/second.safetensors");
  const auto absent = (*weights)->Find("c").status();
  EXPECT_EQ(absent.code(), StatusCode::kNotFound);
  EXPECT_EQ(Reason(absent), "missing_tensor");
  EXPECT_NE(Message(absent).find("\"c\""), std::string::npos);
}

TEST(OpenSafetensors, AFileThatCannotBeReadIsNotTakenForAnAbsentOne) {
  FolderParts folder = TinyFolder();
  folder.absent = {"model.safetensors"};
  folder.Write(Folder("circle"));
  const std::string file = Folder("circle") + "/model.safetensors";
  std::filesystem::remove(file);
  std::filesystem::create_symlink(file, file);
  EXPECT_EQ(OpenSafetensors(Folder("circle")).status().code(), StatusCode::kUnavailable);
}

TEST(OpenSafetensors, TakesTheDigestOfAllShards) {
  const auto digest = [](std::string_view data_of_second) {
    FolderParts folder = TinyFolder();
    SafetensorsParts first, second;
    first.Add("a", "F16", {2}, "aaaa");
    second.Add("b", "F32", {1}, data_of_second);
    folder.absent = {"model.safetensors"};
    folder.files["1.safetensors"] = first.Bytes();
    folder.files["2.safetensors"] = second.Bytes();
    folder.files["model.safetensors.index.json"] =
        R"({"weight_map": {"b": "2.safetensors", "a": "1.safetensors"}})";
    folder.Write(Folder("digest"));
    return MakeDigestList((*OpenSafetensors(Folder("digest")))->files())->Digest();
  };
  EXPECT_EQ(digest("bbbb"), digest("bbbb"));
  EXPECT_NE(digest("bbbb"), digest("bbbB"));
}

}  // namespace
}  // namespace terrace
