#include "router/dispatch/answer_text.h"

#include <random>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "router/cluster/fake_cluster.h"

namespace terrace {
namespace {

RequestPtr RequestWith(std::vector<std::string> stop, std::vector<TokenId> stop_tokens = {}) {
  return *Request::Make({.request_id = "r",
                         .input = std::string("x"),
                         .stop = std::move(stop),
                         .stop_tokens = std::move(stop_tokens)});
}

std::shared_ptr<const TextAssets> ByteText() {
  auto text = std::make_shared<TextAssets>();
  text->tokenizer = std::make_shared<ByteTokenizer>();
  return text;
}

struct Joined {
  std::string text;
  std::vector<TokenId> tokens;
  void Add(const AnswerPiece& piece) {
    text += piece.text;
    for (const AnswerToken& token : piece.tokens) tokens.push_back(token.id);
  }
};

WorkerToken Byte(char c, float logprob = -1) { return {static_cast<unsigned char>(c), logprob, {}}; }

TEST(AnswerText, JoinedPiecesAreTheTextAndTheTokens) {
  AnswerText text(ByteText(), RequestWith({"<end>"}));
  Joined joined;
  std::vector<TokenId> sent;
  for (const char c : std::string("a <e b <en")) {
    sent.push_back(static_cast<unsigned char>(c));
    joined.Add(text.Push(Byte(c)));
  }
  joined.Add(text.Finish());
  EXPECT_EQ(joined.text, "a <e b <en") << "what a stop string held back comes at the end";
  EXPECT_EQ(joined.tokens, sent);
}

TEST(AnswerText, ATokenComesWithThePieceInWhichItsTextEnds) {
  AnswerText text(ByteText(), RequestWith({"xyz"}));
  EXPECT_EQ(text.Push(Byte('a')).tokens.size(), 1u);
  EXPECT_TRUE(text.Push(Byte('x')).empty()) << "may be the start of the stop string";
  EXPECT_TRUE(text.Push(Byte('y')).empty());
  const AnswerPiece piece = text.Push(Byte('b'));
  EXPECT_EQ(piece.text, "xyb");
  EXPECT_EQ(piece.tokens.size(), 3u);
}

TEST(AnswerText, AStopStringAcrossTokensCutsTextAndTokensButNotTheCount) {
  AnswerText text(ByteText(), RequestWith({"END"}));
  Joined joined;
  for (const char c : std::string("okENDmore")) joined.Add(text.Push(Byte(c)));
  EXPECT_TRUE(text.is_stopped());
  EXPECT_EQ(text.stop(), "END");
  EXPECT_EQ(joined.text, "ok");
  EXPECT_EQ(joined.tokens, (std::vector<TokenId>{'o', 'k'}));
  EXPECT_TRUE(text.Finish().empty());
  EXPECT_EQ(text.signals().tokens, 9u);
}

TEST(AnswerText, NeverShowsAPartOfACharacter) {
  AnswerText text(ByteText(), RequestWith({}));
  EXPECT_EQ(text.Push(Byte('\xE2')).text, "");
  EXPECT_EQ(text.Push(Byte('\x82')).text, "");
  EXPECT_EQ(text.Push(Byte('\xAC')).text, "\u20AC");
  EXPECT_EQ(text.Push(Byte('\xC3')).text, "");
  EXPECT_EQ(text.Finish().text, "\uFFFD") << "a character that is never completed";
}

TEST(AnswerText, EndAndStopTokensHaveNoTextButCount) {
  AnswerText text(ByteText(), RequestWith({}, {'!'}));
  Joined joined;
  joined.Add(text.Push(Byte('a', -1)));
  const AnswerPiece stop = text.Push(Byte('!', -3));
  ASSERT_EQ(stop.tokens.size(), 1u);
  EXPECT_TRUE(stop.tokens[0].is_control);
  const AnswerPiece end = text.Push({ByteTokenizer::kEnd, -2, {}});
  ASSERT_EQ(end.tokens.size(), 1u);
  EXPECT_TRUE(end.tokens[0].is_control);
  EXPECT_EQ(joined.text + stop.text + end.text, "a");
  EXPECT_EQ(text.signals().tokens, 3u);
  EXPECT_DOUBLE_EQ(text.signals().mean_logprob, -2) << "the end token is part of the mean";
}

TEST(AnswerText, TextIsTheSentTextUpToTheFirstStopStringWhateverTheBytes) {
  const uint32_t seed = 20240607;
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  for (int round = 0; round < 500; ++round) {
    std::string sent;
    for (size_t i = random() % 30; i > 0; --i) sent.push_back("ab"[random() % 2]);
    AnswerText text(ByteText(), RequestWith({"aab", "bbb"}));
    Joined joined;
    for (const char c : sent) joined.Add(text.Push(Byte(c)));
    joined.Add(text.Finish());
    const size_t cut = std::min(sent.find("aab"), sent.find("bbb"));
    EXPECT_EQ(joined.text, sent.substr(0, cut)) << sent;
    EXPECT_EQ(std::string(joined.tokens.begin(), joined.tokens.end()), joined.text) << sent;
  }
}

TEST(AnswerText, ATokenOutsideTheVocabularyIsTheWorkersError) {
  EXPECT_TRUE(CheckToken({0, 0, {{257, 0}}}, 258).ok());
  for (const WorkerToken& bad :
       {WorkerToken{-1, 0, {}}, WorkerToken{258, 0, {}}, WorkerToken{1, 0, {{258, 0}}}}) {
    EXPECT_EQ(Reason(CheckToken(bad, 258)), "worker_protocol");
  }
}

}  // namespace
}  // namespace terrace
