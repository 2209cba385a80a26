#include "router/dispatch/answer_text.h"

#include <random>
#include <set>

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

RequestPtr RequestWithTools(std::vector<std::string> stop = {}, bool parallel = true) {
  return *Request::Make({.request_id = "r",
                         .input = std::vector<ChatMessage>{{"user", "x"}},
                         .stop = std::move(stop),
                         .tools = {{.name = "now"}},
                         .parallel_tool_calls = parallel});
}

// All pieces of an answer of these bytes; token 257 stands for \x01.
AnswerPiece PushAll(AnswerText& text, const std::string& bytes) {
  AnswerPiece all;
  for (const char c : bytes) {
    all.Append(text.Push(c == '\x01' ? WorkerToken{ByteTokenizer::kCall, -1, {}} : Byte(c)));
    if (text.is_stopped()) return all;
  }
  all.Append(text.Finish());
  return all;
}

TEST(AnswerText, CallsOfTheRequestsToolsAreTakenOut) {
  for (const std::string mark : {"<tool_call>", "\x01"}) {
    const std::string call = mark + R"({"name": "now"}</tool_call>)";
    AnswerText text(ByteTextWithTools(), RequestWithTools());
    const AnswerPiece all = PushAll(text, "a " + call + "\n" + call);
    EXPECT_EQ(all.text, "a");
    ASSERT_EQ(all.tool_calls.size(), 2u) << "also where a control token marks them";
    EXPECT_EQ(all.tool_calls[0].name, "now");
    EXPECT_TRUE(text.has_tool_calls());
    EXPECT_EQ(all.tokens.size(), text.signals().tokens) << "no token is lost with the text";
  }
}

TEST(AnswerText, IdsOfCallsAreDifferentAndTheSameForEveryAttempt) {
  const std::string bytes = R"(<tool_call>{"name":"now"}</tool_call><tool_call>{"name":"now"}</tool_call>)";
  std::vector<std::string> ids;
  for (const uint32_t draw : {0, 0, 1}) {
    AnswerText text(ByteTextWithTools(), RequestWithTools(), draw);
    for (const ToolCall& call : PushAll(text, bytes).tool_calls) ids.push_back(call.id);
  }
  ASSERT_EQ(ids.size(), 6u);
  EXPECT_EQ(ids[0], ids[2]);
  EXPECT_EQ(ids[1], ids[3]);
  EXPECT_EQ(std::set<std::string>(ids.begin(), ids.end()).size(), 4u);
  for (const std::string& id : ids) EXPECT_TRUE(id.starts_with("call_") && id.size() == 29) << id;
}

TEST(AnswerText, TextThatIsHeldBackForACallComesWithTheEnd) {
  AnswerText text(ByteTextWithTools(), RequestWithTools());
  EXPECT_EQ(PushAll(text, "a\x01{\"name\"").text, "a<tool_call>{\"name\"");
  EXPECT_FALSE(text.has_tool_calls());
  AnswerText stopped(ByteTextWithTools(), RequestWithTools({"END"}));
  EXPECT_EQ(PushAll(stopped, "a <tooEND").text, "a <too") << "also at a stop string";
  AnswerText without(ByteTextWithTools(), RequestWith({}));
  EXPECT_EQ(PushAll(without, "a\x01{} <").text, "a{} <") << "no tools, no calls";
}

TEST(AnswerText, OneCallEndsAnAnswerThatMayHaveNoMore) {
  AnswerText text(ByteTextWithTools(), RequestWithTools({}, /*parallel=*/false));
  const AnswerPiece all = PushAll(text, "a\x01{\"name\":\"now\"}</tool_call>b\x01{\"name\":\"now\"}");
  EXPECT_EQ(all.text, "a");
  EXPECT_EQ(all.tool_calls.size(), 1u);
  EXPECT_TRUE(text.is_stopped());
  EXPECT_EQ(text.stop(), "");
  EXPECT_EQ(text.signals().tokens, 16u) << "none after it";
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
