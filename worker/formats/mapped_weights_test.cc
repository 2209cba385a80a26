#include "worker/formats/mapped_weights.h"

#include <algorithm>

#include "gtest/gtest.h"
#include "worker/formats/testing_files.h"

namespace terrace {
namespace {

Hash128 DigestOf(const std::vector<std::string>& contents) {
  std::vector<std::unique_ptr<MappedFile>> files;
  for (const std::string& content : contents) {
    const std::string path = Concat(testing::TempDir(), "/digest-", files.size());
    WriteFile(path, content);
    files.push_back(*MappedFile::Open(path));
  }
  return MappedWeights("", std::move(files), {}).Digest();
}

// Files are hashed in pieces, by several threads.
TEST(MappedWeights, TheDigestIsOfEveryByteAndOfTheirOrder) {
  constexpr size_t kPiece = size_t{16} << 20;
  std::string large(2 * kPiece + 5, 'a');
  large[kPiece] = 'b';
  const Hash128 digest = DigestOf({large});
  EXPECT_EQ(DigestOf({large}), digest);
  for (const size_t at : {size_t{0}, kPiece - 1, kPiece, 2 * kPiece - 1, 2 * kPiece + 4}) {
    std::string other = large;
    other[at] ^= 1;
    EXPECT_NE(DigestOf({other}), digest) << "byte " << at;
  }
  std::string swapped = large;
  std::swap_ranges(swapped.begin(), swapped.begin() + kPiece, swapped.begin() + kPiece);
  EXPECT_NE(DigestOf({swapped}), digest);
  // Another cut between files is another model, also at a piece's end.
  EXPECT_NE(DigestOf({large.substr(0, kPiece), large.substr(kPiece)}), digest);
  EXPECT_NE(DigestOf({"ab", "c"}), DigestOf({"a", "bc"}));
  EXPECT_EQ(DigestOf({}), DigestOf({}));
}

}  // namespace
}  // namespace terrace
