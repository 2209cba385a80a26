#include "text/testing_text.h"

#include <filesystem>
#include <fstream>
#include <set>

#include "base/json.h"
#include "base/mapped_file.h"
#include "gtest/gtest.h"
#include "text/byte_alphabet.h"

namespace terrace {

BpeData ByteData(std::string_view pre) {
  BpeData data;
  data.pre = pre;
  for (int byte = 0; byte < 256; ++byte) {
    data.tokens.push_back(ToByteAlphabet(std::string(1, static_cast<char>(byte))));
  }
  return data;
}

BpeData RandomData(uint64_t seed, int count) {
  std::mt19937_64 random(seed);
  BpeData data = ByteData();
  std::vector<std::string> pool = {"a", "b", "c", "Ġ", "Ã", "©"};
  std::set<std::pair<std::string, std::string>> seen;
  while (static_cast<int>(seen.size()) < count) {
    const std::pair<std::string, std::string> pair = {pool[random() % pool.size()],
                                                      pool[random() % pool.size()]};
    if (!seen.insert(pair).second) continue;
    data.merges.push_back(pair);
    const std::string merged = pair.first + pair.second;
    if (std::find(data.tokens.begin(), data.tokens.end(), merged) != data.tokens.end()) continue;
    data.tokens.push_back(merged);
    pool.push_back(merged);
  }
  return data;
}

std::string RandomText(std::mt19937_64& random, size_t pieces, bool broken) {
  constexpr std::string_view kPieces[] = {
      "a", "b", "c",  "abc", " ",  "  ", "\n",       "\r\n",         "\t",           "'s",      "'LL",
      "'", "1", "42", "é",   "ß",  "я",  "中",       "한",           "🙂",         "½",       "٣",
      "Ⅷ", "!", "?!", "_",   "<|", "|>", "\xC2\xA0", "\xE3\x80\x80", "\xE2\x80\xA8", "\xC5\xBF"};
  constexpr std::string_view kBroken[] = {"\x80",     "\xFF",         "\xC3",    "\xE4\xB8",
                                          "\xF0\x9F", "\xED\xA0\x80", "\xC0\xAF"};
  std::string text;
  for (size_t i = 0; i < pieces; ++i) {
    const bool is_broken = broken && random() % 8 == 0;
    text += is_broken ? kBroken[random() % std::size(kBroken)] : kPieces[random() % std::size(kPieces)];
  }
  return text;
}

std::string Mutate(std::string text, std::mt19937_64& random) {
  for (size_t edits = 1 + random() % 4; edits > 0 && !text.empty(); --edits) {
    const size_t at = random() % text.size();
    const size_t length = std::min<size_t>(1 + random() % 24, text.size() - at);
    switch (random() % 5) {
      case 0:
        text[at] = static_cast<char>(random());
        break;
      case 1:
        text.erase(at, length);
        break;
      case 2:
        text.insert(at, text.substr(at, length));
        break;
      case 3:
        text.insert(at, text.substr(random() % text.size(), 1 + random() % 12));
        break;
      default:
        text[at] = "{}[]()\"'%|-,:0 \n"[random() % 16];
    }
  }
  return text;
}

void ExpectATokenizerOrAnError(const std::string& serialized) {
  for (uint64_t seed = 0; seed < 1500; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937_64 random(seed);
    const auto tokenizer = ParseTokenizer(Mutate(serialized, random));
    if (tokenizer.ok()) {
      (*tokenizer)->Decode((*tokenizer)->Encode(RandomText(random, 10, /*broken=*/true)));
    } else {
      ASSERT_EQ(tokenizer.status().code(), StatusCode::kDataLoss);
      ASSERT_NE(Reason(tokenizer.status()), "");
    }
  }
}

std::string ReadTestFile(const std::string& path) {
  auto text = ReadFile(path);
  EXPECT_TRUE(text.ok()) << text.status();
  return text.value_or("");
}

Json ReadTestJson(const std::string& path) {
  auto json = ParseJson(ReadTestFile(path));
  EXPECT_TRUE(json.ok()) << path << ": " << json.status();
  return json.value_or(Json());
}

ModelFolder::ModelFolder() {
  std::string pattern = ::testing::TempDir() + "/model-XXXXXX";
  CHECK(::mkdtemp(pattern.data()) != nullptr, "no temporary folder");
  path_ = pattern;
  for (const char* name : {"tokenizer.json", "tokenizer_config.json", "generation_config.json"}) {
    Write(name, ReadTestFile(std::string("models/terrace-demo-nano/") + name));
  }
}

ModelFolder::~ModelFolder() { std::filesystem::remove_all(path_); }

void ModelFolder::Write(const std::string& name, std::string_view text) const {
  std::ofstream(path_ + "/" + name, std::ios::binary) << text;
}

void ModelFolder::Remove(const std::string& name) const { std::filesystem::remove(path_ + "/" + name); }

void ModelFolder::Edit(const std::string& name, const std::function<void(Json&)>& change) const {
  Json json = ReadTestJson(path_ + "/" + name);
  change(json);
  Write(name, json.dump());
}

}  // namespace terrace
