#include "router/api/openai_parse.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "router/request/param.h"

namespace terrace {
namespace {

using ::testing::ElementsAre;
using ::testing::Pair;
using ::testing::VariantWith;

constexpr char kMessages[] = R"("messages":[{"role":"user","content":"hi"}])";

std::string Body(const std::string& more) {
  return Concat("{", kMessages, more.empty() ? "" : ",", more, "}");
}

TEST(OpenAiParse, TakesEveryFieldThatIsServed) {
  const auto chat =
      ParseOpenAiChat(Body(R"("model":"base","max_tokens":5.0,"temperature":0.5,"top_p":0.9,"top_k":4,
      "min_p":0.1,"repetition_penalty":1.1,"presence_penalty":-1,"frequency_penalty":1,"seed":18446744073709551615,
      "stop":["a","b"],"stream":true,"stream_options":{"include_usage":true,"include_obfuscation":false},"logprobs":true,"top_logprobs":2,
      "logit_bias":{"7":-100,"8":1.5},"ignore_eos":true,"n":3,"priority":-5,"cache_salt":"s","echo":false,"user":"u","metadata":{"k":"v"},"unknown":{"x":[1]},
      "safety_identifier":"s","prompt_cache_key":"k","prompt_cache_retention":"in_memory","stop_token_ids":[5.0],
      "add_generation_prompt":false,"use_beam_search":false,"skip_special_tokens":true,"add_special_tokens":false,"regex":null,"parallel_tool_calls":true,"tools":null,"tool_choice":"none","response_format":{"type":"text"},"modalities":["text"],
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
  EXPECT_THAT(fields.stop_tokens, ElementsAre(5));
  EXPECT_FALSE(fields.add_generation_prompt);
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

TEST(OpenAiParse, SeveralPromptsAreOneAndTheOthers) {
  const auto texts = ParseOpenAiCompletion(R"({"prompt":["a","b","c"]})");
  ASSERT_TRUE(texts.ok()) << texts.status();
  EXPECT_THAT(texts->fields.input, VariantWith<std::string>("a"));
  EXPECT_THAT(texts->more_prompts, ElementsAre(VariantWith<std::string>("b"), VariantWith<std::string>("c")));
  const auto tokens = ParseOpenAiCompletion(R"({"prompt":[[1,2],[3]]})");
  ASSERT_TRUE(tokens.ok()) << tokens.status();
  EXPECT_THAT(tokens->more_prompts, ElementsAre(VariantWith<std::vector<TokenId>>(ElementsAre(3))));
  std::string many = R"({"prompt":["p")";
  for (int i = 1; i < 64; ++i) many += R"(,"p")";
  EXPECT_EQ(ParseOpenAiCompletion(many + "]}")->more_prompts.size(), 63u);
  const Status refused = ParseOpenAiCompletion(many + R"(,"p"]})").status();
  EXPECT_EQ(Message(refused), "prompt: 65 prompts, limit 64");
  EXPECT_EQ(Reason(refused), "invalid_value");
}

TEST(OpenAiParse, ACompletionHasAPromptOfTextOrTokens) {
  const auto prompt_of = [](const std::string& prompt) {
    const auto parsed = ParseOpenAiCompletion(Concat(R"({"prompt":)", prompt, "}"));
    EXPECT_TRUE(parsed.ok()) << parsed.status();
    return parsed.ok() ? parsed->fields.input : RequestInput();
  };
  EXPECT_THAT(prompt_of(R"("ab")"), VariantWith<std::string>("ab"));
  EXPECT_THAT(prompt_of(R"(["ab"])"), VariantWith<std::string>("ab"));
  EXPECT_THAT(prompt_of(R"([1,2.0,3])"), VariantWith<std::vector<TokenId>>(ElementsAre(1, 2, 3)));
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

TEST(OpenAiParse, SpecialTokensAreAddedToATextAsTheModelWantsThem) {
  EXPECT_TRUE(ParseOpenAiCompletion(R"({"prompt":"a","add_special_tokens":true})").ok());
  EXPECT_TRUE(ParseOpenAiCompletion(R"({"prompt":[1],"add_special_tokens":false})").ok())
      << "nothing is added";
  EXPECT_EQ(Reason(ParseOpenAiCompletion(R"({"prompt":"a","add_special_tokens":false})").status()),
            "unsupported_parameter");
}

TEST(OpenAiParse, APromptIsScoredWithoutAnAnswer) {
  const auto scored = ParseOpenAiCompletion(R"({"prompt":"a","max_tokens":0,"echo":true,"logprobs":2})");
  ASSERT_TRUE(scored.ok()) << scored.status();
  EXPECT_EQ(scored->fields.max_tokens, 0);
  EXPECT_EQ(scored->fields.prompt_logprobs, 2);
  const auto echoed = ParseOpenAiCompletion(R"({"prompt":"a","max_tokens":0,"echo":true})");
  ASSERT_TRUE(echoed.ok()) << echoed.status();
  EXPECT_FALSE(echoed->fields.logprobs);
  EXPECT_EQ(echoed->fields.prompt_logprobs, 0) << "it is computed all the same";
}

TEST(OpenAiParse, ToolsAndTheirCallsAreRead) {
  const auto chat = ParseOpenAiChat(R"({"messages":[{"role":"user","content":"hi"},
      {"role":"assistant","content":null,"refusal":null,"tool_calls":[
        {"id":"call_1","type":"function","function":{"name":"add","arguments":"{\"b\": 1, \"a\": 2}"}},
        {"id":"call_2","type":"function","function":{"name":"now","arguments":""}}]},
      {"role":"tool","tool_call_id":"call_1","content":"3"}],
      "tools":[{"type":"function","function":{"name":"add","description":"sum","strict":false,
        "parameters":{"type":"object","properties":{"b":{"minimum":1e2},"a":{"const":12345678901234567890}}}}},
        {"type":"function","function":{"name":"now","parameters":null}}],
      "tool_choice":"auto","parallel_tool_calls":false})");
  ASSERT_TRUE(chat.ok()) << chat.status();
  const auto& messages = std::get<std::vector<ChatMessage>>(chat->fields.input);
  ASSERT_EQ(messages.size(), 3u);
  EXPECT_EQ(messages[1].content, "");
  ASSERT_EQ(messages[1].tool_calls.size(), 2u);
  EXPECT_EQ(messages[1].tool_calls[0].arguments, R"({"b": 1, "a": 2})");
  EXPECT_EQ(messages[1].tool_calls[1].arguments, "{}");
  EXPECT_EQ(messages[2].tool_call_id, "call_1");
  const std::vector<Tool>& tools = chat->fields.tools;
  ASSERT_EQ(tools.size(), 2u);
  EXPECT_EQ(tools[0].description, "sum");
  EXPECT_EQ(tools[0].parameters,
            R"({"type":"object","properties":{"b":{"minimum":100.0},"a":{"const":12345678901234567890}}})")
      << "in the order of the client";
  EXPECT_EQ(tools[1].parameters, "");
  EXPECT_TRUE(chat->fields.may_call_tools);
  EXPECT_FALSE(chat->fields.parallel_tool_calls);
  const auto none =
      ParseOpenAiChat(Body(R"("tools":[{"type":"function","function":{"name":"f"}}],"tool_choice":"none")"));
  ASSERT_TRUE(none.ok()) << none.status();
  EXPECT_FALSE(none->fields.may_call_tools);
}

TEST(OpenAiParse, ToolsUnderANameWithEscapesKeepTheirOrderToo) {
  const auto chat = ParseOpenAiChat(Body(
      R"("tool\u0073":[{"type":"function","function":{"name":"f","parameters":{"type":"object","b":1,"a":2}}}])"));
  ASSERT_TRUE(chat.ok()) << chat.status();
  ASSERT_EQ(chat->fields.tools.size(), 1u);
  EXPECT_EQ(chat->fields.tools[0].parameters, R"({"type":"object","b":1,"a":2})");
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
      {R"({"prompt":["a",[1]]})", "invalid_value", "prompt"},
      {R"({"prompt":["a",1]})", "invalid_value", "prompt"},
      {R"({"prompt":[[1],[2.5]]})", "invalid_value", "prompt"},
      {R"({"prompt":"a","suffix":"b"})", "unsupported_parameter", "suffix"},
      {R"({"prompt":"a","messages":[]})", "unsupported_parameter", "messages"},
      {R"({"prompt":"a","logprobs":true})", "invalid_value", "logprobs"},
      {R"({"prompt":"a","logprobs":21})", "invalid_value", "logprobs"},
      {R"({"prompt":"a","logprobs":-1})", "invalid_value", "logprobs"},
      {R"({"prompt":"a","top_logprobs":1})", "unsupported_parameter", "top_logprobs"},
      {R"({"prompt":"a","echo":true,"logprobs":1,"stream":true})", "unsupported_parameter", "logprobs"},
      {R"({"prompt":"a","echo":true,"logprobs":1,"n":2})", "unsupported_parameter", "logprobs"},
      {R"({"prompt":"a","max_tokens":0})", "invalid_value", "max_tokens"},
      {R"({"prompt":"a","max_tokens":0,"echo":true,"stream":true})", "unsupported_parameter", "max_tokens"},
      {R"({"prompt":"a","max_tokens":0,"echo":true,"n":2})", "unsupported_parameter", "max_tokens"},
      {R"({"prompt":"a","tools":[]})", "unsupported_parameter", "tools"},
      {R"({"prompt":"a","service_tier":"flex"})", "unsupported_parameter", "service_tier"},
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
      {R"({"messages":[],"messages":[]})", "duplicate_key", "messages"},
      {R"({"messages":[{"role":"user","content":"x","role":"user"}]})", "duplicate_key", "messages[0].role"},
      {Body(R"("temperature":1e400)"), "invalid_value", "temperature"},
      {Body(R"("temperature":NaN)"), "invalid_json", ""},
      {Body(R"("user":"\ud800")"), "invalid_unicode", ""},
      {Body("\"user\":\"\xff\""), "invalid_unicode", ""},
      {Body(Concat("\"", std::string(1025, 'k'), "\":1")), "json_limit", ""},
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
      {R"({"messages":[{"role":"assistant","content":"x","function_call":{}}]})", "unsupported_parameter",
       "messages[0].function_call"},
      {R"({"messages":[{"role":"assistant","tool_calls":[]}]})", "invalid_value", "messages[0].content"},
      {R"({"messages":[{"role":"assistant","tool_calls":{}}]})", "invalid_value", "messages[0].tool_calls"},
      {R"({"messages":[{"role":"assistant","tool_calls":[{"id":"i","type":"custom"}]}]})",
       "unsupported_parameter", "messages[0].tool_calls[0].type"},
      {R"({"messages":[{"role":"assistant","tool_calls":[{"id":"i","function":{"arguments":{}}}]}]})",
       "invalid_value", "messages[0].tool_calls[0].function.arguments"},
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
      {Body(R"("tools":[])"), "invalid_value", "tools"},
      {Body(R"("tools":{})"), "invalid_value", "tools"},
      {Body(R"("tools":[5])"), "invalid_value", "tools[0]"},
      {Body(R"("tools":[{"function":{"name":"f"}}])"), "invalid_value", "tools[0].type"},
      {Body(R"("tools":[{"type":"custom","custom":{}}])"), "unsupported_parameter", "tools[0].type"},
      {Body(R"("tools":[{"type":"function"}])"), "invalid_value", "tools[0].function"},
      {Body(R"("tools":[{"type":"function","function":{"name":5}}])"), "invalid_value",
       "tools[0].function.name"},
      {Body(R"("tools":[{"type":"function","function":{"name":"f","strict":true}}])"),
       "unsupported_parameter", "tools[0].function.strict"},
      {Body(R"("tool_choice":"required")"), "unsupported_parameter", "tool_choice"},
      {Body(R"("tool_choice":{"type":"function","function":{"name":"f"}})"), "unsupported_parameter",
       "tool_choice"},
      {Body(R"("tool_choice":"sometimes")"), "invalid_value", "tool_choice"},
      {Body(R"("tool_choice":5)"), "invalid_value", "tool_choice"},
      {Body(R"("parallel_tool_calls":"no")"), "invalid_value", "parallel_tool_calls"},
      {Body(R"("metadata":{"k":1})"), "invalid_value", "metadata"},
      {Body(R"("user":5)"), "invalid_value", "user"},
      {Body(R"("prompt_cache_retention":"24h")"), "unsupported_parameter", "prompt_cache_retention"},
      {Body(R"("prediction":{})"), "unsupported_parameter", "prediction"},
      {Body(R"("web_search_options":{})"), "unsupported_parameter", "web_search_options"},
      {Body(R"("reasoning_effort":"low")"), "unsupported_parameter", "reasoning_effort"},
      {Body(R"("chat_template":"{{ x }}")"), "unsupported_parameter", "chat_template"},
      {Body(R"("guided_json":{})"), "unsupported_parameter", "guided_json"},
      {Body(R"("prompt_embeds":"AAAA")"), "unsupported_parameter", "prompt_embeds"},
      {Body(R"("stop_token_ids":[-1])"), "invalid_value", "stop_token_ids"},
      {Body(R"("stream":true,"stream_options":{"include_obfuscation":true})"), "unsupported_parameter",
       "stream_options.include_obfuscation"},
      {Body(R"("stream":true,"stream_options":{"continuous_usage_stats":true})"), "unsupported_parameter",
       "stream_options.continuous_usage_stats"},
      {Body(R"("regex":"a+")"), "unsupported_parameter", "regex"},
      {Body(R"("ebnf":"root ::= a")"), "unsupported_parameter", "ebnf"},
      {Body(R"("add_special_tokens":true)"), "unsupported_parameter", "add_special_tokens"},
      {Body(R"("skip_special_tokens":false)"), "unsupported_parameter", "skip_special_tokens"},
      {Body(R"("spaces_between_special_tokens":false)"), "unsupported_parameter",
       "spaces_between_special_tokens"},
      {Body(R"("functions":[])"), "unsupported_parameter", "functions"},
      {Body(R"("audio":{})"), "unsupported_parameter", "audio"},
      {Body(R"("tool_choice":"auto")"), "invalid_value", "tool_choice"},
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

TEST(OpenAiParse, ALimitInAHeaderIsANumber) {
  EXPECT_EQ(*ParseNumberHeader("x-limit", "0"), 0);
  EXPECT_EQ(*ParseNumberHeader("x-limit", "1e-4"), 1e-4);
  for (const char* bad : {"", "$1", "1 USD", "nan", "inf", " 1", "0x1"})
    EXPECT_EQ(Param(ParseNumberHeader("x-limit", bad).status()), "x-limit") << bad;
}

TEST(OpenAiParse, TheLimitOfDraftsIsAWholeNumber) {
  EXPECT_EQ(*ParseSpeculationHeader("0"), 0);
  EXPECT_EQ(*ParseSpeculationHeader("64"), 64);
  EXPECT_EQ(*ParseSpeculationHeader("-1"), -1) << "its range is checked with the request";
  for (const char* bad : {"", "none", "1.5", "1e1", " 1", "1 ", "+1", "0x1", "99999999999999999999"})
    EXPECT_FALSE(ParseSpeculationHeader(bad).ok()) << bad;
}

// What keeps the order of members is slow with very many: it gets no more than tools may have.
TEST(OpenAiParse, ManyMembersBesideAndInToolsCostNothing) {
  std::string many;
  for (int i = 0; i < 200'000; ++i) many += Concat(i == 0 ? "" : ",", "\"k", i, "\":1");
  const std::string begin =
      R"({"model":"m","messages":[{"role":"user","content":"x"}],"tools":[{"type":"function",)";
  const auto beside = ParseOpenAiChat(
      Concat(begin, R"("function":{"name":"f","parameters":{"b":1,"a":2}}}],"unknown":{)", many, "}}"));
  ASSERT_TRUE(beside.ok()) << beside.status();
  EXPECT_EQ(beside->fields.tools.at(0).parameters, R"({"b":1,"a":2})") << "in the order they were sent";
  const auto inside =
      ParseOpenAiChat(Concat(begin, R"("function":{"name":"f","parameters":{)", many, "}}}]}"));
  EXPECT_EQ(Reason(inside.status()), "invalid_value");
  EXPECT_EQ(Param(inside.status()), "tools");
}

}  // namespace
}  // namespace terrace
