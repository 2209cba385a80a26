#include "worker/formats/digest_list.h"

#include <algorithm>
#include <filesystem>

#include "base/json.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/formats/model_files.h"
#include "worker/formats/testing_files.h"

namespace terrace {
namespace {

using testing::AllOf;
using testing::HasSubstr;

std::vector<std::unique_ptr<MappedFile>> Files(const std::vector<std::string>& contents) {
  std::vector<std::unique_ptr<MappedFile>> files;
  for (const std::string& content : contents) {
    const std::string path = Concat(testing::TempDir(), "/digest-", files.size());
    WriteFile(path, content);
    files.push_back(*MappedFile::Open(path));
  }
  return files;
}

DigestList ListOf(const std::vector<std::string>& contents) { return *MakeDigestList(Files(contents)); }
Hash128 DigestOf(const std::vector<std::string>& contents) { return ListOf(contents).Digest(); }

// Files are hashed in pieces, by several threads.
TEST(DigestList, TheDigestIsOfEveryByteAndOfTheirOrder) {
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

// Manifests, calibrations and other workers know models by it.
TEST(DigestList, TheDigestStaysWhatItWas) {
  const std::string large(kDigestPieceBytes + 3, 'a');
  EXPECT_EQ(DigestOf({large, "b", ""}).Hex(), "58c521fa87464dd78fdcf4f18020ebe0");
  EXPECT_EQ(OpenModel("models/terrace-demo-nano.f16.gguf")->digest.Hex(), "48857404957c04efb6a050080c7753ea");
  EXPECT_EQ(OpenModel("models/terrace-demo-nano")->digest.Hex(), "1ef34a780dae6bc144d33f374d44809e");
  Hasher hasher;
  for (const uint64_t bytes : {kDigestPieceBytes + 3, uint64_t{1}, uint64_t{0}}) hasher.Add(bytes);
  const std::string_view all = large;
  for (const Hash128& hash : {HashBytes(all.substr(0, kDigestPieceBytes)),
                              HashBytes(all.substr(kDigestPieceBytes)), HashBytes("b")})
    hasher.Add(hash.high).Add(hash.low);
  EXPECT_EQ(DigestOf({large, "b", ""}), hasher.Finish());
}

TEST(DigestList, AListIsReadAsItWasWritten) {
  const DigestList list = ListOf({std::string(kDigestPieceBytes + 1, 'a'), "", "b"});
  ASSERT_EQ(list.files.size(), 3u);
  EXPECT_EQ(list.files[0].name, "digest-0");
  EXPECT_EQ(list.files[0].pieces.size(), 2u);
  EXPECT_EQ(list.files[1].pieces.size(), 0u);
  EXPECT_EQ(list.bytes(), kDigestPieceBytes + 2);
  const auto read = ParseDigestList(DigestListText(list));
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(*read, list);
  EXPECT_EQ(read->Digest(), list.Digest());
}

TEST(DigestList, IsInTheFolderOfAModelOrBesideItsFile) {
  EXPECT_EQ(DigestListPath("models/terrace-demo-nano"), "models/terrace-demo-nano/weights.digests.json");
  EXPECT_EQ(DigestListPath("models/terrace-demo-nano/"), "models/terrace-demo-nano/weights.digests.json");
  EXPECT_EQ(DigestListPath("models/a.gguf"), "models/a.gguf.digests.json");
}

TEST(DigestList, MalformedListsAreRefusedWithTheCause) {
  const Json good = *ParseJson(DigestListText(ListOf({"abc", "d"})));
  const auto with = [&good](const char* pointer, const Json& value) {
    Json changed = good;
    changed[Json::json_pointer(pointer)] = value;
    return ToJsonText(changed);
  };
  Json without = good;
  without["files"][0].erase("bytes");
  const std::string hash = good["files"][0]["pieces"][0];
  const std::string upper = "A" + hash.substr(1), signed_hash = "-" + hash.substr(1);
  const struct {
    const char* name;
    std::string text, reason, message;
  } cases[] = {
      {"no JSON", "{", "invalid_json", ""},
      {"twice", R"({"format":"a","format":"a"})", "duplicate_key", ""},
      {"a list", "[]", "bad_digest_list", "is no list of digests"},
      {"another file", "{}", "bad_digest_list", "is no list of digests"},
      {"format", with("/format", "terrace"), "bad_digest_list", "format is not"},
      {"version", with("/version", 2), "bad_digest_list", "version 2 is not supported"},
      {"version's type", with("/version", "1"), "bad_digest_list", "version \"1\" is not supported"},
      {"piece", with("/piece_bytes", 1024), "bad_digest_list", "piece_bytes 1024 is not supported"},
      {"more", with("/more", 1), "bad_digest_list", "of exactly format, version, piece_bytes, files"},
      {"no files", with("/files", Json::array()), "bad_digest_list", "files is not a list"},
      {"file", with("/files/0", 1), "bad_digest_list", "of exactly name, bytes, pieces"},
      {"no bytes", ToJsonText(without), "bad_digest_list", "of exactly name, bytes, pieces"},
      {"no name", with("/files/0/name", ""), "bad_digest_list", "a file's name"},
      {"a name's type", with("/files/0/name", 7), "bad_digest_list", "a file's name, 7,"},
      {"negative", with("/files/0/bytes", -1), "bad_digest_list", "bytes, -1, is no whole number"},
      {"no pieces", with("/files/0/pieces", Json::array()), "bad_digest_list",
       "list of 1 hashes that 3 bytes"},
      {"too many bytes", with("/files/0/bytes", UINT64_MAX), "bad_digest_list", "1099511627776 hashes"},
      {"no bytes, a piece", with("/files/0/bytes", 0), "bad_digest_list", "list of 0 hashes that 0 bytes"},
      {"short", with("/files/0/pieces/0", "ab"), "bad_digest_list", "hash 0, \"ab\", is not 32 digits"},
      {"upper case", with("/files/0/pieces/0", upper), "bad_digest_list", "is not 32 digits"},
      {"a sign", with("/files/0/pieces/0", signed_hash), "bad_digest_list", "is not 32 digits"},
      {"a number", with("/files/0/pieces/0", 5), "bad_digest_list", "hash 0, 5, is not 32 digits"},
  };
  for (const auto& c : cases) {
    const Status status = ParseDigestList(c.text).status();
    EXPECT_EQ(status.code(), StatusCode::kDataLoss) << c.name;
    EXPECT_EQ(Reason(status), c.reason) << c.name;
    EXPECT_THAT(Message(status), HasSubstr(c.message)) << c.name;
  }
  const std::string path = testing::TempDir() + "/bad.digests.json";
  EXPECT_EQ(ReadDigestList(path).status().code(), StatusCode::kNotFound);
  WriteFile(path, "{");
  EXPECT_THAT(Message(ReadDigestList(path).status()), HasSubstr(path));
}

// Two files, of three pieces and of one.
class VerifyPiecesTest : public testing::Test {
 protected:
  static constexpr uint64_t kPiece = kDigestPieceBytes;

  StatusOr<uint64_t> Verify(const std::vector<FileRange>& ranges) {
    files_ = Files({first_, second_});
    return VerifyPieces({.list = list_, .list_path = path_, .files = files_}, ranges);
  }
  Status CheckNames() {
    files_ = Files({first_, second_});
    return CheckNamesAndSizes({.list = list_, .list_path = path_, .files = files_});
  }

  std::string first_ = std::string(2 * kPiece + 7, 'a'), second_ = "bcd";
  DigestList list_ = ListOf({first_, second_});
  const std::string path_ = "/models/m/weights.digests.json";
  std::vector<std::unique_ptr<MappedFile>> files_;
};

TEST_F(VerifyPiecesTest, HashesThePiecesOfTheRangesOnce) {
  const struct {
    std::vector<FileRange> ranges;
    uint64_t hashed;
  } cases[] = {
      {{}, 0},
      {{{0, 5, 5}}, 0},
      {{{1, 0, 1}, {1, 2, 3}}, 3},
      {{{0, 0, 1}}, kPiece},
      {{{0, kPiece - 1, kPiece}}, kPiece},
      {{{0, kPiece - 1, kPiece + 1}}, 2 * kPiece},
      {{{0, kPiece, kPiece + 1}, {0, kPiece + 9, 2 * kPiece}}, kPiece},
      {{{0, 2 * kPiece, 2 * kPiece + 7}, {1, 0, 3}}, 10},
      {{{0, 0, 2 * kPiece + 7}, {1, 0, 3}}, 2 * kPiece + 10},
  };
  for (const auto& c : cases) {
    const auto hashed = Verify(c.ranges);
    ASSERT_TRUE(hashed.ok()) << hashed.status();
    EXPECT_EQ(*hashed, c.hashed);
  }
  EXPECT_EQ(*Verify(WholeFiles(files_)), list_.bytes());
}

TEST_F(VerifyPiecesTest, AChangedByteIsFoundInAPieceThatIsUsedAndInNoOther) {
  first_[kPiece + 5] ^= 1;
  EXPECT_EQ(*Verify({{0, 0, kPiece}, {0, 2 * kPiece, 2 * kPiece + 1}, {1, 0, 3}}), kPiece + 7 + 3);
  const Status status = Verify({{0, 0, 1}, {0, 2 * kPiece - 1, 2 * kPiece}}).status();
  EXPECT_EQ(status.code(), StatusCode::kDataLoss);
  EXPECT_EQ(Reason(status), "digest_differs");
  EXPECT_THAT(Message(status),
              AllOf(HasSubstr("digest-0: its bytes from 16777216 up to 33554432 have the hash "),
                    HasSubstr(path_), HasSubstr("`terrace digest --model /models/m` makes it anew")));
}

TEST_F(VerifyPiecesTest, OtherNamesAndSizesAreRefused) {
  EXPECT_EQ(CheckNames(), Status());
  second_ += "e";
  EXPECT_EQ(Reason(CheckNames()), "digest_differs");
  EXPECT_THAT(Message(CheckNames()), HasSubstr("digest-1: has 4 bytes, not 3"));
  second_.pop_back();
  list_.files[0].name = "other";
  EXPECT_EQ(Reason(CheckNames()), "digest_differs");
  EXPECT_THAT(Message(CheckNames()), HasSubstr("digest-0: is not called \"other\""));
  list_.files.erase(list_.files.begin());
  EXPECT_EQ(Reason(CheckNames()), "digest_differs");
  EXPECT_THAT(Message(CheckNames()), HasSubstr("the model has 2 weight files, not 1"));
}

TEST_F(VerifyPiecesTest, EndsWhenAskedTo) {
  files_ = Files({first_, second_});
  int asked = 0;
  const auto is_cancelled = [&asked] { return ++asked == 1; };
  EXPECT_EQ(MakeDigestList(files_, is_cancelled).status().code(), StatusCode::kCancelled);
  asked = 0;
  EXPECT_EQ(
      VerifyPieces({.list = list_, .list_path = path_, .files = files_}, WholeFiles(files_), is_cancelled)
          .status()
          .code(),
      StatusCode::kCancelled);
}

// Of a model in each format.
TEST(OpenModel, TakesTheDigestOfAListOnlyWhereAskedTo) {
  const std::string folder = testing::TempDir() + "/listed", file = testing::TempDir() + "/listed.gguf";
  TinyFolder().Write(folder);
  WriteFile(file, TinyGguf().Bytes());
  for (const std::string& path : {folder, file}) {
    SCOPED_TRACE(path);
    const std::string list_path = DigestListPath(path);
    std::filesystem::remove(list_path);
    const auto plain = OpenModel(path);
    ASSERT_TRUE(plain.ok()) << plain.status();
    EXPECT_EQ(plain->digest_list_path, "");
    const auto without = OpenModel(path, {.use_digest_list = true});
    ASSERT_TRUE(without.ok()) << without.status();
    EXPECT_EQ(without->digest_list_path, "") << "there is none: all was read";
    EXPECT_EQ(without->digest, plain->digest);

    WriteFile(list_path, DigestListText(plain->digest_list));
    const auto listed = OpenModel(path, {.use_digest_list = true});
    ASSERT_TRUE(listed.ok()) << listed.status();
    EXPECT_EQ(listed->digest_list_path, list_path);
    EXPECT_EQ(listed->digest, plain->digest);
    EXPECT_EQ(OpenModel(path)->digest_list_path, "");

    DigestList other = plain->digest_list;
    other.files[0].pieces[0].low ^= 1;
    WriteFile(list_path, DigestListText(other));
    EXPECT_EQ(OpenModel(path)->digest, plain->digest) << "lists are for who verifies them";
    EXPECT_NE(OpenModel(path, {.use_digest_list = true})->digest, plain->digest)
        << "another model, to the others";
    ++other.files[0].bytes;
    WriteFile(list_path, DigestListText(other));
    EXPECT_EQ(Reason(OpenModel(path, {.use_digest_list = true}).status()), "digest_differs");
    WriteFile(list_path, "{}");
    EXPECT_EQ(Reason(OpenModel(path, {.use_digest_list = true}).status()), "bad_digest_list");
    EXPECT_EQ(OpenModel(path)->digest, plain->digest);
  }
}

TEST(OpenModel, EndsWhenAskedTo) {
  EXPECT_EQ(OpenModel("models/terrace-demo-nano", {.is_cancelled = [] { return true; }}).status().code(),
            StatusCode::kCancelled);
}

}  // namespace
}  // namespace terrace
