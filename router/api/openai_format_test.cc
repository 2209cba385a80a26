// The events of a stream, byte by byte, against chunks that are made as JSON here.
#include "router/api/openai_format.h"

#include <functional>
#include <memory>
#include <random>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "router/api/openai_sinks.h"

namespace terrace {
namespace {

using namespace std::string_view_literals;

constexpr auto kModel = "m\x01\\ \"\0\" \xFF text"sv;  // as the client named it: anything

std::vector<CompletionHead> Heads() {
  std::vector<CompletionHead> heads;
  for (int i = 0; i < 16; ++i) {
    heads.push_back({.is_chat = (i & 1) != 0,
                     .id = "chatcmpl-1",
                     .model = std::string(kModel),
                     .created_unix_seconds = 1'700'000'000 + i,
                     .logprobs = (i & 2) != 0,
                     .top_logprobs = (i & 4) != 0 ? 2u : 0u,
                     .include_usage = (i & 8) != 0});
  }
  return heads;
}

// ---- Chunks, as the API's documentation has them.

Json Numbers(const std::string& bytes) {
  Json out = Json::array();
  for (const char c : bytes) out.push_back(static_cast<unsigned char>(c));
  return out;
}

Json ChatLogprobs(const std::vector<AnswerToken>& tokens) {
  Json content = Json::array();
  for (const AnswerToken& token : tokens) {
    if (token.is_control) continue;
    Json top = Json::array();
    for (const RankedToken& ranked : token.top)
      top.push_back({{"token", ranked.bytes}, {"logprob", ranked.logprob}, {"bytes", Numbers(ranked.bytes)}});
    content.push_back({{"token", token.bytes},
                       {"logprob", token.logprob},
                       {"bytes", Numbers(token.bytes)},
                       {"top_logprobs", top}});
  }
  return {{"content", content}, {"refusal", nullptr}};
}

Json CompletionLogprobs(const CompletionHead& head, const std::vector<AnswerToken>& tokens, size_t& offset) {
  Json texts = Json::array(), logprobs = Json::array(), tops = Json::array(), offsets = Json::array();
  for (const AnswerToken& token : tokens) {
    if (token.is_control) continue;
    texts.push_back(TokenText(token.bytes));
    logprobs.push_back(token.logprob);
    Json top = Json::object();
    for (const RankedToken& ranked : token.top) top.emplace(TokenText(ranked.bytes), ranked.logprob);
    top.emplace(TokenText(token.bytes), token.logprob);
    tops.push_back(top);
    offsets.push_back(offset);
    for (const char c : token.bytes) offset += (c & 0xc0) != 0x80 ? 1 : 0;
  }
  return {{"tokens", texts},
          {"token_logprobs", logprobs},
          {"top_logprobs", head.top_logprobs > 0 ? tops : Json()},
          {"text_offset", offsets}};
}

Json Chunk(const CompletionHead& head, const Json& choice) {
  Json out = {{"id", head.id},
              {"object", head.is_chat ? "chat.completion.chunk" : "text_completion"},
              {"created", head.created_unix_seconds},
              {"model", head.model},
              {"choices", Json::array({choice})}};
  if (head.include_usage) out["usage"] = nullptr;
  return out;
}

Json PieceChunk(const CompletionHead& head, const AnswerPiece& piece, size_t& offset) {
  Json choice = {{"index", piece.choice}, {"finish_reason", nullptr}, {"logprobs", nullptr}};
  if (head.is_chat) {
    choice["delta"] = {{"content", piece.text}};
    if (head.logprobs) choice["logprobs"] = ChatLogprobs(piece.tokens);
  } else {
    choice["text"] = piece.text;
    if (head.logprobs) choice["logprobs"] = CompletionLogprobs(head, piece.tokens, offset);
  }
  return Chunk(head, choice);
}

std::string RandomBytes(std::mt19937_64& random) {
  constexpr std::string_view kParts[] = {"a",    " word", "\n",   "\"", "\\",   "\x01", "\x7F", "é",
                                         "中文", "🙂",  "\xE4", "/",  "null", "\t",   "\x1F"};
  std::string out;
  for (size_t count = random() % 6; count > 0; --count) out += kParts[random() % std::size(kParts)];
  if (random() % 16 == 0) out += '\0';
  return out;
}

AnswerPiece RandomPiece(std::mt19937_64& random, uint32_t choice) {
  const auto logprob = [&] { return -static_cast<float>(random() % 10'000) / 777; };
  AnswerPiece piece{.choice = choice, .text = RandomBytes(random)};
  for (size_t count = random() % 4; count > 0; --count) {
    AnswerToken token{
        .id = 1, .logprob = logprob(), .bytes = RandomBytes(random), .is_control = random() % 4 == 0};
    for (size_t rivals = random() % 3; rivals > 0; --rivals)
      token.top.push_back({2, logprob(), RandomBytes(random)});
    piece.tokens.push_back(std::move(token));
  }
  return piece;
}

TEST(PieceEvents, AreTheBytesOfTheChunksJson) {
  for (uint64_t seed = 0; seed < 100; ++seed) {
    for (const CompletionHead& head : Heads()) {
      SCOPED_TRACE(testing::Message() << "seed " << seed << " chat " << head.is_chat << " logprobs "
                                      << head.logprobs << " usage " << head.include_usage);
      std::mt19937_64 random(seed);
      const auto choice = static_cast<uint32_t>(random() % 20);
      PieceEvents events(head, choice);
      size_t offset = 0;
      for (int i = 0; i < 5; ++i) {
        const AnswerPiece piece = RandomPiece(random, choice);
        ASSERT_EQ(events.Next(piece), SseEvent(PieceChunk(head, piece, offset)));
      }
    }
  }
}

// ---- The whole stream.

// Keeps what is written.
class FakeResponder : public HttpResponder {
 public:
  void Send(int, std::string body, std::string_view, const HttpHeaders&) override { written += body; }
  void StartStream(int, std::string_view, const HttpHeaders&) override {}
  bool Write(std::string chunk) override {
    written += chunk;
    return true;
  }
  bool is_full() const override { return false; }
  void OnRoom(std::function<void()>) override {}
  void Finish() override { is_finished = true; }
  void Abort() override {}
  void OnClose(std::function<void()>) override {}
  bool is_too_slow() const override { return false; }

  std::string written;
  bool is_finished = false;
};

// Role, pieces, calls, reason, usage, of two choices whose pieces come mixed.
TEST(EventStream, IsTheBytesOfItsChunksJson) {
  const ToolCall call{.id = "call_1", .name = "add", .arguments = R"({"b": 1})"};
  const AnswerSummary summary{.end = AnswerEnd::kToolCalls,
                              .usage = {.prompt_tokens = 10, .cached_tokens = 4, .completion_tokens = 2},
                              .tier = "base",
                              .attempts = {{.tier = "base", .replica = "b:1", .accepted = true}}};
  for (const CompletionHead& head : Heads()) {
    SCOPED_TRACE(testing::Message() << "chat " << head.is_chat << " logprobs " << head.logprobs);
    std::mt19937_64 random(/*seed=*/3);
    const auto responder = std::make_shared<FakeResponder>();
    const auto sink = MakeEventStreamSink(
        head, [] { return HttpHeaders(); }, responder);
    std::string expected;
    const auto expect = [&](const Json& chunk) {
      expected += Concat("data: ", chunk.dump(-1, ' ', false, Json::error_handler_t::replace), "\n\n");
    };
    size_t offsets[2] = {0, 0};
    bool begun[2] = {false, false};
    const auto begin = [&](uint32_t choice) {
      if (std::exchange(begun[choice], true) || !head.is_chat) return;
      expect(Chunk(head, {{"index", choice},
                          {"delta", {{"role", "assistant"}, {"content", ""}}},
                          {"logprobs", nullptr},
                          {"finish_reason", nullptr}}));
    };
    for (int i = 0; i < 20; ++i) {
      const AnswerPiece piece = RandomPiece(random, static_cast<uint32_t>(random() % 2));
      begin(piece.choice);
      if (!piece.text.empty() || (head.logprobs && !piece.tokens.empty()))
        expect(PieceChunk(head, piece, offsets[piece.choice]));
      sink->OnPiece(piece);
    }
    for (uint32_t choice = 0; choice < 2; ++choice) {
      begin(choice);
      if (head.is_chat) {
        sink->OnPiece({.choice = choice, .tool_calls = {call}});
        const auto expect_delta = [&](const Json& delta) {
          expect(Chunk(head, {{"index", choice},
                              {"delta", {{"tool_calls", Json::array({delta})}}},
                              {"logprobs", nullptr},
                              {"finish_reason", nullptr}}));
        };
        expect_delta({{"index", 0},
                      {"id", "call_1"},
                      {"type", "function"},
                      {"function", {{"name", "add"}, {"arguments", ""}}}});
        expect_delta({{"index", 0}, {"function", {{"arguments", call.arguments}}}});
      }
      sink->OnChoiceEnd(choice, summary);
      Json last = {{"index", choice}, {"logprobs", nullptr}, {"finish_reason", "tool_calls"}};
      last[head.is_chat ? "delta" : "text"] = head.is_chat ? Json::object() : Json("");
      Json chunk = Chunk(head, last);
      chunk["terrace"] = LastChunk(head, choice, summary)["terrace"];
      expect(chunk);
    }
    sink->OnFinish(summary);
    if (head.include_usage) {
      Json chunk = Chunk(head, {});
      chunk["choices"] = Json::array();
      chunk["usage"] = {{"prompt_tokens", 10},
                        {"completion_tokens", 2},
                        {"total_tokens", 12},
                        {"prompt_tokens_details", {{"cached_tokens", 4}}},
                        {"completion_tokens_details",
                         {{"accepted_prediction_tokens", 0}, {"rejected_prediction_tokens", 0}}}};
      expect(chunk);
    }
    expected += "data: [DONE]\n\n";
    EXPECT_EQ(responder->written, expected);
    EXPECT_TRUE(responder->is_finished);
  }
}

}  // namespace
}  // namespace terrace
