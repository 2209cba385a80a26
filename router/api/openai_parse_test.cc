#include "router/api/openai_parse.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "router/request/param.h"

namespace terrace {
namespace {

using ::testing::ElementsAre;
using ::testing::Pair;

constexpr char kMessages[] = R"("messages":[{"role":"user","content":"hi"}])";

std::string Body(const std::string& more) {
  return Concat("{", kMessages, more.empty() ? "" : ",", more, "}");
}

TEST(OpenAiParse, TakesEveryFieldThatIsServed) {
  const auto chat =
      ParseOpenAiChat(Body(R"("model":"base","max_tokens":5.0,"temperature":0.5,"top_p":0.9,"top_k":4,
      "min_p":0.1,"repetition_penalty":1.1,"presence_penalty":-1,"frequency_penalty":1,"seed":18446744073709551615,
      "stop":["a","b"],"stream":true,"stream_options":{"include_usage":true},"logprobs":true,"top_logprobs":2,
      "logit_bias":{"7":-100,"8":1.5},"ignore_eos":true,"n":3,"priority":-5,"cache_salt":"s","echo":false,"user":"u","metadata":{"k":"v"},"unknown":{"x":[1]},
      "tools":null,"tool_choice":"none","response_format":{"type":"text"},"modalities":["text"],
      "store":false,"service_tier":"auto","verbosity":null)"));
  ASSERT_TRUE(chat.ok()) << chat.status();
  const RequestFields& fields = chat->fields;
  EXPECT_EQ(fields.model, "base");
  EXPECT_EQ(fields.max_tokens, 5);
  EXPECT_EQ(fields.temperature, 0.5);
  EXPECT_EQ(fields.top_k, 4);
  EXPECT_EQ(fields.seed, UINT64_MAX);
  EXPECT_THAT(fields.stop, ElementsAre("a", "b"));
  EXPECT_THAT(fields.logit_bias, ElementsAre(Pair(7, -100), Pair(8, 1.5)));
  EXPECT_TRUE(fields.logprobs && fields.ignore_eos && fields.is_streamed && chat->include_usage);
  EXPECT_EQ(fields.top_logprobs, 2);
  EXPECT_EQ(fields.choices, 3);
  EXPECT_EQ(fields.priority, -5);
  EXPECT_EQ(fields.cache_salt, "s");
  EXPECT_FALSE(fields.prompt_logprobs.has_value());
  EXPECT_EQ(ParseOpenAiChat(Body(R"("prompt_logprobs":2)"))->fields.prompt_logprobs, 2);
}

TEST(OpenAiParse, AbsentAndNullFieldsAreTheSame) {
  const auto chat =
      ParseOpenAiChat(Body(R"("max_tokens":null,"stop":null,"seed":null,"stream":null,"n":null,"store":null,
      "service_tier":null)"));
  ASSERT_TRUE(chat.ok()) << chat.status();
  EXPECT_FALSE(chat->fields.max_tokens.has_value());
  EXPECT_FALSE(chat->fields.seed.has_value());
  EXPECT_FALSE(chat->fields.is_streamed);
  EXPECT_EQ(chat->fields.model, "");
}

TEST(OpenAiParse, ContentIsTextOrPartsOfText) {
  const auto chat = ParseOpenAiChat(
      R"({"messages":[{"role":"developer","content":"be"},{"role":"user","content":[{"type":"text","text":"a"},
          {"type":"text","text":"b"}]},{"role":"assistant","content":""}]})");
  ASSERT_TRUE(chat.ok()) << chat.status();
  const auto& messages = std::get<std::vector<ChatMessage>>(chat->fields.input);
  ASSERT_EQ(messages.size(), 3u);
  EXPECT_EQ(messages[0].role, "system");
  EXPECT_EQ(messages[1].content, "ab");
  EXPECT_EQ(messages[2].content, "");
}

TEST(OpenAiParse, BothNamesOfMaxTokensMustAgree) {
  EXPECT_EQ(ParseOpenAiChat(Body(R"("max_completion_tokens":7)"))->fields.max_tokens, 7);
  EXPECT_EQ(ParseOpenAiChat(Body(R"("max_tokens":7,"max_completion_tokens":7)"))->fields.max_tokens, 7);
  EXPECT_FALSE(ParseOpenAiChat(Body(R"("max_tokens":6,"max_completion_tokens":7)")).ok());
}

TEST(OpenAiParse, ACompletionHasAPromptOfTextOrTokens) {
  const auto prompt_of = [](const std::string& prompt) {
    const auto parsed = ParseOpenAiCompletion(Concat(R"({"prompt":)", prompt, "}"));
    EXPECT_TRUE(parsed.ok()) << parsed.status();
    return parsed.ok() ? parsed->fields.input : RequestInput();
  };
  using ::testing::VariantWith;
  EXPECT_THAT(prompt_of(R"("ab")"), VariantWith<std::string>("ab"));
  EXPECT_THAT(prompt_of(R"(["ab"])"), VariantWith<std::string>("ab"));
  EXPECT_THAT(prompt_of(R"([1,2,3])"), VariantWith<std::vector<TokenId>>(ElementsAre(1, 2, 3)));
  EXPECT_THAT(prompt_of(R"([[1,2]])"), VariantWith<std::vector<TokenId>>(ElementsAre(1, 2)));
}

TEST(OpenAiParse, ACompletionsOwnFields) {
  const auto parsed = ParseOpenAiCompletion(
      R"({"prompt":"a","model":"m","best_of":3,"n":1,"echo":true,"logprobs":4,"suffix":null,"stop":"x"})");
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  const RequestFields& fields = parsed->fields;
  EXPECT_EQ(fields.api, ApiKind::kOpenAiCompletion);
  EXPECT_EQ(fields.model, "m");
  EXPECT_EQ(fields.best_of, 3);
  EXPECT_EQ(fields.choices, 1);
  EXPECT_TRUE(fields.echo && fields.logprobs);
  EXPECT_EQ(fields.top_logprobs, 4);
  EXPECT_EQ(fields.prompt_logprobs, 4) << "the echo has them too";
  EXPECT_EQ(fields.max_tokens, 16) << "as OpenAI's";
  const auto plain = ParseOpenAiCompletion(R"({"prompt":"a","logprobs":0,"max_tokens":5,"stream":true})");
  ASSERT_TRUE(plain.ok()) << plain.status();
  EXPECT_TRUE(plain->fields.logprobs) << "of the chosen tokens";
  EXPECT_FALSE(plain->fields.prompt_logprobs.has_value());
  EXPECT_EQ(plain->fields.max_tokens, 5);
}

TEST(OpenAiParse, WhatACompletionCannotHave) {
  const struct {
    const char* body;
    const char* reason;
    const char* param;
  } cases[] = {
      {R"({})", "invalid_value", "prompt"},
      {R"({"prompt":5})", "invalid_value", "prompt"},
      {R"({"prompt":[1,"a"]})", "invalid_value", "prompt"},
      {R"({"prompt":[1.5]})", "invalid_value", "prompt"},
      {R"({"prompt":[-1]})", "invalid_value", "prompt"},
      {R"({"prompt":[4294967296]})", "invalid_value", "prompt"},
      {R"({"prompt":[{}]})", "invalid_value", "prompt"},
      {R"({"prompt":["a","b"]})", "unsupported_parameter", "prompt"},
      {R"({"prompt":"a","suffix":"b"})", "unsupported_parameter", "suffix"},
      {R"({"prompt":"a","messages":[]})", "unsupported_parameter", "messages"},
      {R"({"prompt":"a","logprobs":true})", "invalid_value", "logprobs"},
      {R"({"prompt":"a","logprobs":21})", "invalid_value", "logprobs"},
      {R"({"prompt":"a","logprobs":-1})", "invalid_value", "logprobs"},
      {R"({"prompt":"a","top_logprobs":1})", "unsupported_parameter", "top_logprobs"},
      {R"({"prompt":"a","echo":true,"logprobs":1,"stream":true})", "unsupported_parameter", "logprobs"},
      {R"({"prompt":"a","echo":true,"logprobs":1,"n":2})", "unsupported_parameter", "logprobs"},
      {R"({"prompt":"a","response_format":{"type":"json_object"}})", "unsupported_parameter",
       "response_format"},
  };
  for (const auto& c : cases) {
    const auto parsed = ParseOpenAiCompletion(c.body);
    ASSERT_FALSE(parsed.ok()) << c.body;
    EXPECT_EQ(Reason(parsed.status()), c.reason) << c.body << " " << parsed.status();
    EXPECT_EQ(Param(parsed.status()), c.param) << c.body;
  }
}

TEST(OpenAiParse, EveryErrorHasItsReasonAndParameter) {
  const struct {
    std::string body;
    const char* reason;
    const char* param;
  } cases[] = {
      {"", "invalid_json", ""},
      {"{", "invalid_json", ""},
      {"[]", "invalid_json", ""},
      {R"({"messages":[],"messages":[]})", "duplicate_key", ""},
      {std::string(100, '['), "json_limit", ""},
      {"{}", "invalid_value", "messages"},
      {R"({"messages":"hi"})", "invalid_value", "messages"},
      {R"({"messages":["hi"]})", "invalid_value", "messages[0]"},
      {R"({"messages":[{"role":1,"content":"x"}]})", "invalid_value", "messages[0].role"},
      {R"({"messages":[{"role":"user"}]})", "invalid_value", "messages[0].content"},
      {R"({"messages":[{"role":"user","content":null}]})", "invalid_value", "messages[0].content"},
      {R"({"messages":[{"role":"user","content":5}]})", "invalid_value", "messages[0].content"},
      {R"({"messages":[{"role":"user","content":[]}]})", "invalid_value", "messages[0].content"},
      {R"({"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"http://x"}}]}]})",
       "unsupported_content", "messages[0].content[0]"},
      {R"({"messages":[{"role":"user","content":[{"type":"text"}]}]})", "invalid_value",
       "messages[0].content[0].text"},
      {R"({"messages":[{"role":"assistant","content":"x","tool_calls":[]}]})", "unsupported_parameter",
       "messages[0].tool_calls"},
      {Body(R"("model":5)"), "invalid_value", "model"},
      {Body(R"("max_tokens":"5")"), "invalid_value", "max_tokens"},
      {Body(R"("max_tokens":5.5)"), "invalid_value", "max_tokens"},
      {Body(R"("max_tokens":1e30)"), "invalid_value", "max_tokens"},
      {Body(R"("max_tokens":9223372036854775808)"), "invalid_value", "max_tokens"},
      {Body(R"("n":1.5)"), "invalid_value", "n"},
      {Body(R"("best_of":2)"), "unsupported_parameter", "best_of"},
      {Body(R"("echo":true)"), "unsupported_parameter", "echo"},
      {Body(R"("stream":true,"prompt_logprobs":0)"), "unsupported_parameter", "prompt_logprobs"},
      {Body(R"("prompt_logprobs":true)"), "invalid_value", "prompt_logprobs"},
      {Body(R"("priority":"high")"), "invalid_value", "priority"},
      {Body(R"("cache_salt":5)"), "invalid_value", "cache_salt"},
      {Body(R"("tools":[{"type":"function"}])"), "unsupported_parameter", "tools"},
      {Body(R"("functions":[])"), "unsupported_parameter", "functions"},
      {Body(R"("audio":{})"), "unsupported_parameter", "audio"},
      {Body(R"("tool_choice":"auto")"), "unsupported_parameter", "tool_choice"},
      {Body(R"("response_format":{"type":"json_object"})"), "unsupported_parameter", "response_format"},
      {Body(R"("modalities":["audio"])"), "unsupported_parameter", "modalities"},
      {Body(R"("verbosity":"low")"), "unsupported_parameter", "verbosity"},
      {Body(R"("store":true)"), "unsupported_parameter", "store"},
      {Body(R"("service_tier":"flex")"), "unsupported_parameter", "service_tier"},
      {Body(R"("temperature":"1")"), "invalid_value", "temperature"},
      {Body(R"("stop":[1])"), "invalid_value", "stop"},
      {Body(R"("stop":5)"), "invalid_value", "stop"},
      {Body(R"("seed":-1)"), "invalid_value", "seed"},
      {Body(R"("seed":18446744073709551616)"), "invalid_value", "seed"},
      {Body(R"("stream":"yes")"), "invalid_value", "stream"},
      {Body(R"("stream_options":{"include_usage":true})"), "invalid_value", "stream_options"},
      {Body(R"("stream":true,"stream_options":{"include_usage":1})"), "invalid_value",
       "stream_options.include_usage"},
      {Body(R"("logit_bias":[1])"), "invalid_value", "logit_bias"},
      {Body(R"("logit_bias":{"x":1})"), "invalid_value", "logit_bias"},
      {Body(R"("logit_bias":{"1":"x"})"), "invalid_value", "logit_bias"},
      {Body(R"("logprobs":3)"), "invalid_value", "logprobs"},
  };
  for (const auto& c : cases) {
    const auto chat = ParseOpenAiChat(c.body);
    ASSERT_FALSE(chat.ok()) << c.body;
    EXPECT_EQ(chat.status().code(), StatusCode::kInvalidArgument) << c.body;
    EXPECT_EQ(Reason(chat.status()), c.reason) << c.body << " " << chat.status();
    EXPECT_EQ(Param(chat.status()), c.param) << c.body;
  }
}

TEST(OpenAiParse, TheTimeoutIsANumberAboveZero) {
  EXPECT_EQ(*ParseTimeoutHeader("2.5"), 2.5);
  for (const char* bad : {"", "0", "-1", "1s", "nan", "inf", " 1"})
    EXPECT_FALSE(ParseTimeoutHeader(bad).ok()) << bad;
}

}  // namespace
}  // namespace terrace
