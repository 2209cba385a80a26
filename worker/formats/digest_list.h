// What the weight files of a model hold, in hashes of their pieces: the second level of a model's digest. A
// file of them beside the model lets a rank of a group hash the pieces that it uses and no others
// (docs/adr/0014-digest-lists.md). Such a list is a claim: whoever opens a model with one verifies each piece
// that has a byte it uses (VerifyPieces) before it uses that. Values only.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/hash.h"
#include "base/mapped_file.h"
#include "base/status.h"

namespace terrace {

inline constexpr uint64_t kDigestPieceBytes = uint64_t{16} << 20;  // another number is another digest
// Of a weight file that is not what a list says.
inline constexpr std::string_view kDigestDiffersReason = "digest_differs";

struct DigestList {
  struct File {
    std::string name;  // without its folder
    uint64_t bytes = 0;
    std::vector<Hash128> pieces;  // of kDigestPieceBytes each, the last one of what is left
    friend bool operator==(const File&, const File&) = default;
  };
  std::vector<File> files;  // in the order in which the digest has them

  // Of the sizes and bytes of all files, in order.
  Hash128 Digest() const;
  uint64_t bytes() const;  // of all files
  friend bool operator==(const DigestList&, const DigestList&) = default;
};

using MappedFiles = std::span<const std::unique_ptr<MappedFile>>;

// Reads all bytes of `files`, on several threads. CANCELLED when `is_cancelled`, which may be null, says so;
// this thread asks it now and then.
StatusOr<DigestList> MakeDigestList(MappedFiles files, const std::function<bool()>& is_cancelled = nullptr);

// Where the list of a model is: in its folder, or beside its .gguf file.
std::string DigestListPath(const std::string& model);

// JSON, and back. DATA_LOSS with the reasons of ParseJson and bad_digest_list.
std::string DigestListText(const DigestList& list);
StatusOr<DigestList> ParseDigestList(std::string_view text);
// Also NOT_FOUND where there is none; errors name the file.
StatusOr<DigestList> ReadDigestList(const std::string& path);

// The weight files of a model, and the list that says what they hold.
struct ListedFiles {
  const DigestList& list;
  const std::string& list_path;
  MappedFiles files;
};

// Bytes [begin, end) of the file `file`.
struct FileRange {
  size_t file = 0;
  uint64_t begin = 0, end = 0;
  friend bool operator==(const FileRange&, const FileRange&) = default;
};

// Whether the files have the names and sizes of the list. DATA_LOSS, reason digest_differs, says which has
// not, and how the list is made anew.
Status CheckNamesAndSizes(const ListedFiles& listed);

// Hashes each piece that has a byte of `ranges`, once, and compares it with the list's, of files that
// CheckNamesAndSizes took; the number of bytes that were hashed. DATA_LOSS, reason digest_differs, with the
// file and the bytes of the first piece that differs; CANCELLED as of MakeDigestList.
StatusOr<uint64_t> VerifyPieces(const ListedFiles& listed, std::span<const FileRange> ranges,
                                const std::function<bool()>& is_cancelled = nullptr);

// All bytes of `files`.
std::vector<FileRange> WholeFiles(MappedFiles files);

}  // namespace terrace
