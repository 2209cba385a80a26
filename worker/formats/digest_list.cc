#include "worker/formats/digest_list.h"

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <optional>

#include "base/json.h"
#include "base/machine.h"
#include "base/parallel_for.h"
#include "worker/formats/byte_reader.h"

namespace terrace {
namespace {

constexpr std::string_view kFormat = "terrace-digests";
constexpr uint64_t kVersion = 1;
constexpr std::string_view kFolderList = "weights.digests.json", kFileList = ".digests.json";
constexpr JsonLimits kListLimits = {.bytes = size_t{64} << 20, .depth = 8, .nodes = 2'000'000};
constexpr size_t kMaxFiles = 4096, kMaxNameBytes = 512, kHexDigits = 32;
constexpr size_t kPiecesOfAThread = 4;  // between two questions whether to go on

// In half-open intervals of bytes: of piece i of a file of `bytes`.
uint64_t PieceBegin(uint64_t piece) { return piece * kDigestPieceBytes; }
uint64_t PieceEnd(uint64_t piece, uint64_t bytes) {
  return std::min(bytes, PieceBegin(piece) + kDigestPieceBytes);
}
uint64_t PieceCount(uint64_t bytes) {
  return bytes / kDigestPieceBytes + (bytes % kDigestPieceBytes != 0 ? 1 : 0);
}

struct Piece {
  size_t file = 0;
  uint64_t index = 0;  // in its file
  friend auto operator<=>(const Piece&, const Piece&) = default;
};

StatusOr<std::vector<Hash128>> HashPieces(MappedFiles files, std::span<const Piece> pieces,
                                          const std::function<bool()>& is_cancelled) {
  std::vector<Hash128> hashes(pieces.size());
  ThreadPool pool(std::clamp<size_t>(pieces.size(), 1, OpeningThreads()));
  const size_t round = pool.threads() * kPiecesOfAThread;
  for (size_t at = 0; at < pieces.size(); at += round) {
    if (is_cancelled && is_cancelled()) return Cancelled("interrupted");
    pool.ParallelFor(std::min(round, pieces.size() - at), 1, [&](size_t begin, size_t end) {
      for (size_t i = at + begin; i < at + end; ++i) {
        const std::span<const std::byte> bytes = files[pieces[i].file]->bytes();
        const uint64_t from = PieceBegin(pieces[i].index);
        hashes[i] = HashBytes(AsText(bytes.subspan(from, PieceEnd(pieces[i].index, bytes.size()) - from)));
      }
    });
  }
  return hashes;
}

std::string NameOf(const MappedFile& file) { return std::filesystem::path(file.path()).filename().string(); }

std::optional<Hash128> ParseHash(std::string_view hex) {
  const auto is_digit = [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); };
  if (hex.size() != kHexDigits || !std::ranges::all_of(hex, is_digit)) return std::nullopt;
  Hash128 hash;
  std::from_chars(hex.data(), hex.data() + kHexDigits / 2, hash.high, 16);
  std::from_chars(hex.data() + kHexDigits / 2, hex.data() + kHexDigits, hash.low, 16);
  return hash;
}

template <typename... Text>
Status Bad(const Text&... text) {
  return Malformed("bad_digest_list", text...);
}

std::string Shown(const Json& value) { return ToJsonText(value).substr(0, 100); }

// Exactly these members.
Status CheckMembers(const Json& object, std::string_view what, std::initializer_list<const char*> keys) {
  const bool has_all =
      object.is_object() && std::ranges::all_of(keys, [&](const char* key) { return object.contains(key); });
  if (has_all && object.size() == keys.size()) return {};
  std::string wanted;
  for (const char* key : keys) wanted += Concat(wanted.empty() ? "" : ", ", key);
  return Bad(what, " is not an object of exactly ", wanted);
}

StatusOr<DigestList::File> ParseFile(const Json& json) {
  RETURN_IF_ERROR(CheckMembers(json, "a file", {"name", "bytes", "pieces"}));
  const Json &name = json["name"], &bytes = json["bytes"], &pieces = json["pieces"];
  if (!name.is_string() || name.get_ref<const std::string&>().empty() ||
      name.get_ref<const std::string&>().size() > kMaxNameBytes)
    return Bad("a file's name, ", Shown(name), ", is not text of 1 to ", kMaxNameBytes, " bytes");
  DigestList::File file;
  file.name = name.get<std::string>();
  if (!bytes.is_number_unsigned()) return Bad(Shown(name), ": bytes, ", Shown(bytes), ", is no whole number");
  file.bytes = bytes.get<uint64_t>();
  const uint64_t wanted = PieceCount(file.bytes);
  if (!pieces.is_array() || pieces.size() != wanted)
    return Bad(Shown(name), ": pieces is not the list of ", wanted, " hashes that ", file.bytes,
               " bytes have");
  for (const Json& piece : pieces) {
    const auto hash = piece.is_string() ? ParseHash(piece.get_ref<const std::string&>()) : std::nullopt;
    if (!hash)
      return Bad(Shown(name), ": hash ", file.pieces.size(), ", ", Shown(piece), ", is not ", kHexDigits,
                 " digits of 0 to 9 and a to f");
    file.pieces.push_back(*hash);
  }
  return file;
}

// "terrace digest --model M", of the list at `path`.
std::string CommandFor(std::string_view path) {
  const bool is_of_folder = path.ends_with(kFolderList);
  path.remove_suffix((is_of_folder ? kFolderList : kFileList).size());
  if (is_of_folder && path.size() > 1) path.remove_suffix(1);  // the slash
  return Concat("terrace digest --model ", path.empty() ? "." : path);
}

template <typename... Text>
Status Differs(const ListedFiles& listed, const Text&... text) {
  return Malformed(kDigestDiffersReason, text..., ", as ", listed.list_path,
                   " has it: the files are damaged or ",
                   "others than it was made of; where they are the right ones, `",
                   CommandFor(listed.list_path), "` makes it anew");
}

}  // namespace

Hash128 DigestList::Digest() const {
  Hasher hasher;
  for (const File& file : files) hasher.Add(file.bytes);
  for (const File& file : files) {
    for (const Hash128& hash : file.pieces) hasher.Add(hash.high).Add(hash.low);
  }
  return hasher.Finish();
}

uint64_t DigestList::bytes() const {
  uint64_t sum = 0;
  for (const File& file : files) sum += file.bytes;
  return sum;
}

StatusOr<DigestList> MakeDigestList(MappedFiles files, const std::function<bool()>& is_cancelled) {
  DigestList list;
  std::vector<Piece> pieces;
  for (const auto& file : files) {
    const uint64_t bytes = file->bytes().size();
    for (uint64_t i = 0; i < PieceCount(bytes); ++i)
      pieces.push_back({.file = list.files.size(), .index = i});
    list.files.push_back({.name = NameOf(*file), .bytes = bytes, .pieces = {}});
  }
  ASSIGN_OR_RETURN(const std::vector<Hash128> hashes, HashPieces(files, pieces, is_cancelled));
  for (size_t i = 0; i < pieces.size(); ++i) list.files[pieces[i].file].pieces.push_back(hashes[i]);
  return list;
}

std::string DigestListPath(const std::string& model) {
  std::error_code error;
  if (std::filesystem::is_directory(model, error))
    return Concat(model, model.ends_with('/') ? "" : "/", kFolderList);
  return Concat(model, kFileList);
}

std::string DigestListText(const DigestList& list) {
  Json files = Json::array();
  for (const DigestList::File& file : list.files) {
    Json pieces = Json::array();
    for (const Hash128& hash : file.pieces) pieces.push_back(hash.Hex());
    files.push_back({{"name", file.name}, {"bytes", file.bytes}, {"pieces", std::move(pieces)}});
  }
  return ToJsonText({{"format", kFormat},
                     {"version", kVersion},
                     {"piece_bytes", kDigestPieceBytes},
                     {"files", std::move(files)}}) +
         "\n";
}

StatusOr<DigestList> ParseDigestList(std::string_view text) {
  const auto json = ParseJson(text, kListLimits);
  if (!json.ok()) return AsDataLoss(json.status());
  if (!json->is_object() || json->value("format", Json()) != kFormat)
    return Bad("is no list of digests: format is not \"", kFormat, "\"");
  const Json version = json->value("version", Json()), piece = json->value("piece_bytes", Json());
  if (version != kVersion)
    return Bad("version ", Shown(version), " is not supported; supported is ", kVersion);
  if (piece != kDigestPieceBytes)
    return Bad("piece_bytes ", Shown(piece), " is not supported; supported is ", kDigestPieceBytes);
  RETURN_IF_ERROR(CheckMembers(*json, "the list", {"format", "version", "piece_bytes", "files"}));
  const Json& files = (*json)["files"];
  if (!files.is_array() || files.empty() || files.size() > kMaxFiles)
    return Bad("files is not a list of 1 to ", kMaxFiles);
  DigestList list;
  for (const Json& each : files) {
    ASSIGN_OR_RETURN(DigestList::File file, ParseFile(each));
    list.files.push_back(std::move(file));
  }
  return list;
}

StatusOr<DigestList> ReadDigestList(const std::string& path) {
  const auto text = ReadFile(path, kListLimits.bytes);
  if (text.status().code() == StatusCode::kResourceExhausted)
    return Malformed("json_limit", Message(text.status()));
  RETURN_IF_ERROR(text.status());
  auto list = ParseDigestList(*text);
  if (!list.ok()) return Annotate(list.status(), path);
  return list;
}

Status CheckNamesAndSizes(const ListedFiles& listed) {
  const auto& [list, path, files] = listed;
  if (files.size() != list.files.size())
    return Differs(listed, "the model has ", files.size(), " weight files, not ", list.files.size());
  for (size_t i = 0; i < files.size(); ++i) {
    const DigestList::File& claimed = list.files[i];
    if (NameOf(*files[i]) != claimed.name)
      return Differs(listed, files[i]->path(), ": is not called ", Shown(claimed.name));
    if (files[i]->bytes().size() != claimed.bytes)
      return Differs(listed, files[i]->path(), ": has ", files[i]->bytes().size(), " bytes, not ",
                     claimed.bytes);
  }
  return {};
}

StatusOr<uint64_t> VerifyPieces(const ListedFiles& listed, std::span<const FileRange> ranges,
                                const std::function<bool()>& is_cancelled) {
  std::vector<Piece> pieces;
  for (const FileRange& range : ranges) {
    if (range.begin == range.end) continue;
    for (uint64_t i = range.begin / kDigestPieceBytes; i < PieceCount(range.end); ++i)
      pieces.push_back({.file = range.file, .index = i});
  }
  std::ranges::sort(pieces);
  pieces.erase(std::ranges::unique(pieces).begin(), pieces.end());
  ASSIGN_OR_RETURN(const std::vector<Hash128> hashes, HashPieces(listed.files, pieces, is_cancelled));
  uint64_t hashed = 0;
  for (size_t i = 0; i < pieces.size(); ++i) {
    const auto [file, index] = pieces[i];
    const DigestList::File& claimed = listed.list.files[file];
    const uint64_t begin = PieceBegin(index), end = PieceEnd(index, claimed.bytes);
    hashed += end - begin;
    if (hashes[i] != claimed.pieces[index])
      return Differs(listed, listed.files[file]->path(), ": its bytes from ", begin, " up to ", end,
                     " have the hash ", hashes[i].Hex(), ", not ", claimed.pieces[index].Hex());
  }
  return hashed;
}

std::vector<FileRange> WholeFiles(MappedFiles files) {
  std::vector<FileRange> ranges;
  for (const auto& file : files)
    ranges.push_back({.file = ranges.size(), .begin = 0, .end = file->bytes().size()});
  return ranges;
}

}  // namespace terrace
