// Small tokenizers, random text and test data for the tests of this folder. For tests only.
#pragma once

#include <cstdint>
#include <functional>
#include <random>
#include <string>
#include <string_view>

#include "base/json_fwd.h"
#include "text/tokenizer.h"

namespace terrace {

// The 256 byte tokens (token id = byte), no merges.
BpeData ByteData(std::string_view pre = "gpt2");
// ByteData with `count` random merges of what is there, over few letters so that they apply often.
BpeData RandomData(uint64_t seed, int count);

// Text of letters, digits, spaces, punctuation, multi-byte characters and, if `broken`, bytes that are not
// UTF-8.
std::string RandomText(std::mt19937_64& random, size_t pieces, bool broken);
// `text` with a few bytes, or a span of them, changed, dropped, doubled or inserted.
std::string Mutate(std::string text, std::mt19937_64& random);
// What becomes of `serialized` by that is a tokenizer, which takes any text, or DATA_LOSS with a reason.
void ExpectATokenizerOrAnError(const std::string& serialized);

// A file of the repository, by its path from the root.
std::string ReadTestFile(const std::string& path);
Json ReadTestJson(const std::string& path);

// A folder of its own, removed at the end, with the files of the demo model that the text library reads.
class ModelFolder {
 public:
  ModelFolder();
  ~ModelFolder();
  ModelFolder(const ModelFolder&) = delete;
  ModelFolder& operator=(const ModelFolder&) = delete;

  const std::string& path() const { return path_; }
  void Write(const std::string& name, std::string_view text) const;
  void Remove(const std::string& name) const;
  // Changes one of the JSON files.
  void Edit(const std::string& name, const std::function<void(Json&)>& change) const;

 private:
  std::string path_;
};

}  // namespace terrace
