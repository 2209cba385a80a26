#include "worker/formats/stored_ranges.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/formats/byte_reader.h"
#include "worker/formats/testing_files.h"

namespace terrace {
namespace {

using testing::ElementsAre;

std::vector<std::unique_ptr<MappedFile>> Files(const std::vector<std::string>& contents) {
  std::vector<std::unique_ptr<MappedFile>> files;
  for (const std::string& content : contents) {
    const std::string path = Concat(testing::TempDir(), "/ranges-", files.size());
    WriteFile(path, content);
    files.push_back(*MappedFile::Open(path));
  }
  return files;
}

// Where the data of a safetensors file begins.
uint64_t DataStart(const MappedFile& file) { return 8 + ByteReader::Load<uint64_t>(file.bytes()); }

TEST(RangesOf, HasAllHeadersAndTheRowsThatAreAskedFor) {
  SafetensorsParts first, second;
  first.Add("model.norm.weight", "F32", {2}, std::string(8, 'n'));
  first.Add("a.weight", "F16", {4, 3}, std::string(24, 'a'));
  second.Add("b.weight", "F16", {2, 2}, std::string(8, 'b'));
  const auto files = Files({first.Bytes(), second.Bytes()});
  const uint64_t of_first = DataStart(*files[0]), of_second = DataStart(*files[1]);
  const auto ranges = RangesOf(
      files,
      std::vector<TensorRows>{{"a.weight", 4, 1, 3}, {"model.norm.weight", 1, 0, 1}, {"b.weight", 2, 0, 2}});
  ASSERT_TRUE(ranges.ok()) << ranges.status();
  EXPECT_THAT(*ranges,
              ElementsAre(FileRange{0, 0, of_first}, FileRange{1, 0, of_second},
                          FileRange{0, of_first + 8 + 6, of_first + 8 + 18},
                          FileRange{0, of_first, of_first + 8}, FileRange{1, of_second, of_second + 8}));
  EXPECT_THAT(*RangesOf(files, {}), ElementsAre(FileRange{0, 0, of_first}, FileRange{1, 0, of_second}));
}

// Codes and scales have the matrix's rows; zero points are packed along them, the shape has none.
TEST(RangesOf, OfAMatrixInPartsTheRowsOfEachAndAllOfTheOthers) {
  SafetensorsParts parts;
  parts.Add("q.weight_packed", "I32", {16, 4}, std::string(256, 'c'));
  parts.Add("q.weight_zero_point", "I32", {2, 1}, std::string(8, 'z'));
  parts.Add("q.weight_scale", "F16", {16, 1}, std::string(32, 's'));
  parts.Add("q.weight_shape", "I32", {2}, std::string(8, 'h'));
  parts.Add("q_norm.weight", "F32", {2}, std::string(8, 'n'));  // begins alike, and is another
  const auto files = Files({parts.Bytes()});
  const uint64_t data = DataStart(*files[0]);
  EXPECT_THAT(*RangesOf(files, std::vector<TensorRows>{{"q.weight", 16, 8, 16}}),
              ElementsAre(FileRange{0, 0, data}, FileRange{0, data + 128, data + 256},  // codes
                          FileRange{0, data + 264 + 16, data + 264 + 32},               // scales
                          FileRange{0, data + 296, data + 304},                         // shape
                          FileRange{0, data + 256, data + 264}));                       // zero points
}

TEST(RangesOf, KnowsGgufFiles) {
  const GgufParts parts = TinyGguf();
  const auto files = Files({parts.Bytes()});
  const auto ranges = RangesOf(files, std::vector<TensorRows>{{"blk.0.attn_q.weight", 32, 0, 16}});
  ASSERT_TRUE(ranges.ok()) << ranges.status();
  ASSERT_EQ(ranges->size(), 2u);
  const uint64_t header = (parts.Header().size() + 31) / 32 * 32;
  EXPECT_EQ((*ranges)[0], (FileRange{0, 0, header}));
  EXPECT_GT((*ranges)[1].begin, header);
  EXPECT_EQ((*ranges)[1].end - (*ranges)[1].begin, 16u * 32 * 2);
}

}  // namespace
}  // namespace terrace
