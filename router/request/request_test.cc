#include "router/request/request.h"

#include <cmath>
#include <functional>
#include <limits>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "router/request/param.h"
#include "router/request/tools.h"

namespace terrace {
namespace {

RequestFields ValidFields() {
  RequestFields fields;
  fields.request_id = "r-1";
  fields.model = "small";
  fields.input = std::string("hello");
  return fields;
}

TEST(Request, AbsentFieldsHaveTheirDefaults) {
  const auto request = Request::Make(ValidFields());
  ASSERT_TRUE(request.ok()) << request.status();
  const Sampling& sampling = (*request)->sampling();
  EXPECT_EQ(sampling.temperature, 1);
  EXPECT_EQ(sampling.top_k, 0);
  EXPECT_EQ(sampling.top_p, 1);
  EXPECT_EQ(sampling.min_p, 0);
  EXPECT_EQ(sampling.repetition_penalty, 1);
  EXPECT_FALSE(sampling.seed.has_value());
  EXPECT_EQ((*request)->max_tokens(), 0u);
}

TEST(Request, ValuesOnTheirBoundsAreTaken) {
  RequestFields fields = ValidFields();
  fields.temperature = 2;
  fields.top_p = 1;
  fields.min_p = 1;
  fields.repetition_penalty = 10;
  fields.presence_penalty = -2;
  fields.frequency_penalty = 2;
  fields.top_k = 0;
  fields.max_tokens = 1;
  fields.stop = std::vector<std::string>(16, std::string(256, 'x'));
  fields.stop_tokens = std::vector<int32_t>(64, 7);
  fields.logprobs = true;
  fields.top_logprobs = 20;
  fields.logit_bias = {{3, -100.0}, {4, 100.0}};
  fields.choices = 16;
  fields.best_of = 16;
  fields.prompt_logprobs = 20;
  fields.priority = -100;
  fields.cache_salt = std::string(256, 's');
  const auto request = Request::Make(fields);
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_EQ((*request)->sampling().logit_bias.at(4), 100.0f);
}

TEST(Request, ValuesOutOfRangeNameTheirParameter) {
  constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
  using Change = std::function<void(RequestFields&)>;
  const struct {
    const char* param;
    Change change;
  } cases[] = {
      {"model", [](auto& f) { f.model = std::string(10240, 'm'); }},
      {"request_id", [](auto& f) { f.request_id = "two words"; }},
      {"request_id", [](auto& f) { f.request_id = std::string(129, 'r'); }},
      {"prompt", [](auto& f) { f.input = std::string(); }},
      {"prompt_tokens", [](auto& f) { f.input = std::vector<TokenId>(); }},
      {"prompt_tokens[1]",
       [](auto& f) {
         f.input = std::vector<TokenId>{1, -1};
       }},
      {"messages", [](auto& f) { f.input = std::vector<ChatMessage>(); }},
      {"messages",
       [](auto& f) {
         f.input = std::vector<ChatMessage>(2049, {"user", "x"});
       }},
      {"messages[1].role",
       [](auto& f) {
         f.input = std::vector<ChatMessage>{{"user", "x"}, {"robot", "y"}};
       }},
      {"max_tokens", [](auto& f) { f.max_tokens = 0; }},
      {"max_tokens", [](auto& f) { f.max_tokens = -1; }},
      {"max_tokens", [](auto& f) { f.max_tokens = INT64_MAX; }},
      {"temperature", [](auto& f) { f.temperature = -0.1; }},
      {"temperature", [](auto& f) { f.temperature = 2.1; }},
      {"temperature", [=](auto& f) { f.temperature = kNan; }},
      {"top_p", [](auto& f) { f.top_p = 0; }},
      {"top_p", [](auto& f) { f.top_p = 1.01; }},
      {"top_p", [](auto& f) { f.top_p = 1e-60; }},
      {"top_k", [](auto& f) { f.top_k = -5; }},
      {"min_p", [](auto& f) { f.min_p = -0.5; }},
      {"repetition_penalty", [](auto& f) { f.repetition_penalty = 0; }},
      {"presence_penalty", [](auto& f) { f.presence_penalty = 2.5; }},
      {"frequency_penalty", [](auto& f) { f.frequency_penalty = -2.5; }},
      {"stop", [](auto& f) { f.stop = {""}; }},
      {"stop", [](auto& f) { f.stop = {std::string(257, 's')}; }},
      {"stop", [](auto& f) { f.stop = std::vector<std::string>(17, "s"); }},
      {"stop_tokens", [](auto& f) { f.stop_tokens = std::vector<int32_t>(65, 1); }},
      {"stop_tokens", [](auto& f) { f.stop_tokens = {-3}; }},
      {"top_logprobs", [](auto& f) { f.top_logprobs = 1; }},
      {"top_logprobs", [](auto& f) { f.logprobs = true, f.top_logprobs = 21; }},
      {"logit_bias",
       [](auto& f) {
         f.logit_bias = {{-1, 0.0}};
       }},
      {"logit_bias",
       [](auto& f) {
         f.logit_bias = {{1, 1e9}};
       }},
      {"logit_bias",
       [=](auto& f) {
         f.logit_bias = {{1, kNan}};
       }},
      {"n", [](auto& f) { f.choices = 0; }},
      {"n", [](auto& f) { f.choices = 17; }},
      {"best_of", [](auto& f) { f.choices = 3, f.best_of = 2; }},
      {"best_of", [](auto& f) { f.best_of = 17; }},
      {"prompt_logprobs", [](auto& f) { f.prompt_logprobs = -1; }},
      {"prompt_logprobs", [](auto& f) { f.prompt_logprobs = 21; }},
      {"priority", [](auto& f) { f.priority = 101; }},
      {"priority", [](auto& f) { f.priority = INT64_MIN; }},
      {"cache_salt", [](auto& f) { f.cache_salt = std::string(257, 's'); }},
      {"logit_bias",
       [](auto& f) {
         f.logit_bias.assign(1025, {1, 0.0});
       }},
  };
  for (const auto& c : cases) {
    RequestFields fields = ValidFields();
    c.change(fields);
    const auto request = Request::Make(fields);
    ASSERT_FALSE(request.ok()) << c.param;
    EXPECT_EQ(request.status().code(), StatusCode::kInvalidArgument) << request.status();
    EXPECT_EQ(Reason(request.status()), "invalid_value") << request.status();
    EXPECT_EQ(Param(request.status()), c.param) << request.status();
    EXPECT_LT(Message(request.status()).size(), 200u) << "a message echoes no long input";
  }
}

RequestFields ChatFields(std::vector<ChatMessage> messages = {{"user", "x"}}) {
  RequestFields fields = ValidFields();
  fields.input = std::move(messages);
  return fields;
}

TEST(Request, ToolsOnTheirBoundsAreTaken) {
  RequestFields fields =
      ChatFields({{"assistant", "", {{"call_1", "add", "{}"}}}, {"tool", "", {}, "call_1"}});
  for (int i = 0; i < 128; ++i) fields.tools.push_back({.name = Concat("tool-", i, "_")});
  fields.tools[0] = {.name = std::string(64, 'n'), .parameters = R"({"type": "object"})"};
  fields.tools[1].description = std::string(200'000, 'd');
  const auto request = Request::Make(fields);
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_EQ((*request)->tools().size(), 128u);
  EXPECT_EQ((*request)->max_tool_calls(), SIZE_MAX);
  fields.parallel_tool_calls = false;
  EXPECT_EQ((*Request::Make(fields))->max_tool_calls(), 1u);
  fields.may_call_tools = false;
  EXPECT_TRUE((*Request::Make(fields))->tools().empty());
}

TEST(Request, ToolsOutOfTheirBoundsNameTheirParameter) {
  std::string deep = "{}";
  for (int i = 0; i < 40; ++i) deep = "{\"a\":" + deep + "}";
  std::string wide = "{\"a\":[0";
  for (int i = 0; i < 5000; ++i) wide += ",0";
  wide += "]}";
  using Change = std::function<void(RequestFields&)>;
  const struct {
    const char* param;
    Change change;
  } cases[] = {
      {"tools", [](auto& f) { f.tools.resize(129); }},
      {"tools", [](auto& f) { f.tools = {{.name = "a", .description = std::string(300'000, 'd')}}; }},
      {"tools", [](auto& f) { f.input = std::string("text"), f.tools = {{.name = "a"}}; }},
      {"tools[0].function.name", [](auto& f) { f.tools = {{}}; }},
      {"tools[0].function.name", [](auto& f) { f.tools = {{.name = "two words"}}; }},
      {"tools[0].function.name", [](auto& f) { f.tools = {{.name = std::string(65, 'n')}}; }},
      {"tools[1].function.name",
       [](auto& f) {
         f.tools = {{.name = "a"}, {.name = "a"}};
         f.may_call_tools = false;
       }},
      {"tools[0].function.parameters", [](auto& f) { f.tools = {{.name = "a", .parameters = "[]"}}; }},
      {"tools[0].function.parameters", [](auto& f) { f.tools = {{.name = "a", .parameters = "{"}}; }},
      {"tools[0].function.parameters", [&](auto& f) { f.tools = {{.name = "a", .parameters = deep}}; }},
      {"tools[0].function.parameters", [&](auto& f) { f.tools = {{.name = "a", .parameters = wide}}; }},
      {"messages[0].tool_call_id",
       [](auto& f) {
         f.input = std::vector<ChatMessage>{{"tool", "x"}};
       }},
      {"messages[0].tool_call_id",
       [](auto& f) {
         f.input = std::vector<ChatMessage>{{"user", "x", {}, "id"}};
       }},
      {"messages[0].tool_call_id",
       [](auto& f) {
         f.input = std::vector<ChatMessage>{{"tool", "x", {}, std::string(257, 'i')}};
       }},
      {"messages[0].tool_calls",
       [](auto& f) {
         f.input = std::vector<ChatMessage>{{"user", "x", {{"i", "a", "{}"}}}};
       }},
      {"messages",
       [](auto& f) {
         const std::string half = "{\"a\":\"" + std::string(kMaxArgumentsBytes / 2, 'a') + "\"}";
         f.input = std::vector<ChatMessage>(2, {"assistant", "", {{"i", "a", half}}});
       }},
      {"messages[0].tool_calls[0].id",
       [](auto& f) {
         f.input = std::vector<ChatMessage>{{"assistant", "", {{"", "a", "{}"}}}};
       }},
      {"messages[0].tool_calls[0].function.name",
       [](auto& f) {
         f.input = std::vector<ChatMessage>{{"assistant", "", {{"i", "", "{}"}}}};
       }},
      {"messages[0].tool_calls[0].function.arguments",
       [](auto& f) {
         f.input = std::vector<ChatMessage>{{"assistant", "", {{"i", "a", "5"}}}};
       }},
  };
  for (const auto& c : cases) {
    RequestFields fields = ChatFields();
    c.change(fields);
    const auto request = Request::Make(fields);
    ASSERT_FALSE(request.ok()) << c.param;
    EXPECT_EQ(Reason(request.status()), "invalid_value") << request.status();
    EXPECT_EQ(Param(request.status()), c.param) << request.status();
  }
}

TEST(Request, WhatChoosesATierHasTheNameThatItsApiHasForIt) {
  const struct {
    ApiKind api;
    const char *tier, *max_usd, *max_seconds;
  } cases[] = {{ApiKind::kGenerate, "tier", "max_usd", "max_seconds"},
               {ApiKind::kOpenAiChat, "x-terrace-tier", "x-terrace-max-usd", "x-terrace-max-seconds"},
               {ApiKind::kOpenAiCompletion, "x-terrace-tier", "x-terrace-max-usd", "x-terrace-max-seconds"}};
  for (const auto& c : cases) {
    RequestFields fields = ValidFields();
    fields.api = c.api;
    fields.tier = std::string(257, 'x');
    EXPECT_EQ(Param(Request::Make(fields).status()), c.tier);
    fields.tier = "small";
    EXPECT_EQ((*Request::Make(fields))->tier(), "small");
    const struct {
      std::optional<double> RequestFields::*field;
      const std::optional<double>& (Request::*get)() const;
      const char* param;
      double most;
    } limits[] = {{&RequestFields::max_usd, &Request::max_usd, c.max_usd, 1e6},
                  {&RequestFields::max_seconds, &Request::max_seconds, c.max_seconds, 86'400}};
    for (const auto& limit : limits) {
      RequestFields limited = fields;
      for (const double bad : {-1e-9, limit.most + 1, std::nan(""), HUGE_VAL}) {
        limited.*limit.field = bad;
        EXPECT_EQ(Param(Request::Make(limited).status()), limit.param) << bad;
      }
      for (const double good : {0.0, limit.most}) {
        limited.*limit.field = good;
        const auto request = Request::Make(limited);
        ASSERT_TRUE(request.ok()) << request.status();
        EXPECT_EQ((**request.*limit.get)(), good);
        EXPECT_TRUE((*request)->has_limits());
      }
    }
  }
  EXPECT_FALSE((*Request::Make(ValidFields()))->has_limits());
}

TEST(Request, DraftsAreLimitedUnderTheNameThatTheApiHasForIt) {
  const struct {
    ApiKind api;
    const char* param;
  } cases[] = {{ApiKind::kGenerate, "speculation_max_tokens"},
               {ApiKind::kOpenAiChat, "x-terrace-speculation-max-tokens"},
               {ApiKind::kOpenAiCompletion, "x-terrace-speculation-max-tokens"}};
  for (const auto& c : cases) {
    RequestFields fields = ValidFields();
    fields.api = c.api;
    for (const int64_t bad : {int64_t{-1}, int64_t{65}, int64_t{1} << 40}) {
      fields.speculation_max_tokens = bad;
      const Status status = Request::Make(fields).status();
      EXPECT_EQ(Reason(status), "invalid_value") << bad;
      EXPECT_EQ(Param(status), c.param) << bad;
    }
    for (const int64_t good : {0, 64}) {
      fields.speculation_max_tokens = good;
      const auto request = Request::Make(fields);
      ASSERT_TRUE(request.ok()) << request.status();
      EXPECT_EQ((*request)->speculation_max_tokens(), static_cast<uint32_t>(good));
    }
  }
  EXPECT_FALSE((*Request::Make(ValidFields()))->speculation_max_tokens().has_value());
}

TEST(Request, NoTokenIsDrawnOnlyWhereOnePromptIsScored) {
  RequestFields fields = ValidFields();
  fields.max_tokens = 0;
  fields.prompt_logprobs = 0;
  const auto request = Request::Make(fields);
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_TRUE((*request)->is_prompt_only());
  fields.choices = 2;
  EXPECT_EQ(Param(Request::Make(fields).status()), "max_tokens");
  EXPECT_FALSE((*Request::Make(ValidFields()))->is_prompt_only());
}

TEST(Request, AsManyAnswersAreDrawnAsSentUnlessTheBestOfMoreAreAskedFor) {
  const struct {
    std::optional<int64_t> choices, best_of;
    uint32_t want_choices, want_draws;
    bool want_ranked;
  } cases[] = {{{}, {}, 1, 1, false},
               {3, {}, 3, 3, false},
               {3, 3, 3, 3, false},
               {{}, 4, 1, 4, true},
               {2, 5, 2, 5, true}};
  for (const auto& c : cases) {
    RequestFields fields = ValidFields();
    fields.choices = c.choices;
    fields.best_of = c.best_of;
    const auto request = Request::Make(fields);
    ASSERT_TRUE(request.ok()) << request.status();
    EXPECT_EQ((*request)->choices(), c.want_choices);
    EXPECT_EQ((*request)->draws(), c.want_draws);
    EXPECT_EQ((*request)->is_ranked(), c.want_ranked);
  }
}

TEST(Request, ReasonAndParameterAreIndependentLabels) {
  const Status status = WithParam(WithReason(InvalidArgument("x"), "why"), "where");
  EXPECT_EQ(Reason(status), "why");
  EXPECT_EQ(Param(status), "where");
  EXPECT_EQ(Param(WithParam(Status(), "where")), "");
}

}  // namespace
}  // namespace terrace
