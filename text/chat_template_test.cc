#include "text/chat_template.h"

#include <filesystem>

#include "base/json.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "text/testing_text.h"

namespace terrace {
namespace {

using ::testing::HasSubstr;

std::vector<ChatMessage> Messages(const Json& list) {
  std::vector<ChatMessage> messages;
  for (const Json& message : list) messages.push_back({message["role"], message["content"]});
  return messages;
}

StatusOr<MarkedText> Render(const std::string& source, std::vector<ChatMessage> messages = {},
                            bool add_generation_prompt = true) {
  ASSIGN_OR_RETURN(const auto chat_template, ChatTemplate::Parse(source));
  return chat_template->Render({.messages = std::move(messages),
                                .add_generation_prompt = add_generation_prompt,
                                .bos_token = "<s>",
                                .eos_token = "</s>"});
}

std::string RenderText(const std::string& source, std::vector<ChatMessage> messages = {}) {
  const auto text = Render(source, std::move(messages));
  return text.ok() ? text->text : Concat("(", Message(text.status()), ")");
}

// The text that is not control.
std::string Untrusted(const MarkedText& text) {
  std::string out;
  size_t at = 0;
  for (const ByteRange& range : text.control) {
    EXPECT_LE(at, range.begin);
    EXPECT_LT(range.begin, range.end);
    out += text.text.substr(at, range.begin - at);
    at = range.end;
  }
  EXPECT_LE(at, text.text.size());
  return out + text.text.substr(at);
}

// Vectors made with Jinja itself, set up as Hugging Face does.
TEST(ChatTemplate, RendersAsJinjaDoes) {
  for (const Json& c : ReadTestJson("text/testdata/chat_templates.json")) {
    const auto text = Render(c["template"], Messages(c["messages"]), c["add_generation_prompt"]);
    if (c["want"].is_null()) {
      EXPECT_FALSE(text.ok()) << c["template"];
      EXPECT_NE(Reason(text.status()), "");
    } else {
      ASSERT_TRUE(text.ok()) << c["name"] << c["template"] << text.status();
      EXPECT_EQ(text->text, c["want"].get<std::string>()) << c["name"] << c["template"];
    }
  }
}

std::vector<ChatMessage> MessagesWithCalls(const Json& list) {
  std::vector<ChatMessage> messages;
  for (const Json& from : list) {
    ChatMessage& message = messages.emplace_back(ChatMessage{from["role"], from["content"]});
    message.tool_call_id = from.value("tool_call_id", "");
    message.name = from.value("name", "");
    for (const Json& call : from.value("tool_calls", Json::array()))
      message.tool_calls.push_back({call["id"], call["name"], call["arguments"]});
  }
  return messages;
}

std::vector<Tool> Tools(const Json& list) {
  std::vector<Tool> tools;
  for (const Json& tool : list) tools.push_back({tool["name"], tool["description"], tool["parameters"]});
  return tools;
}

// Vectors made with Jinja too, of templates in the manner of three families of models.
TEST(ChatTemplate, RendersToolsAndTheirCallsAsJinjaDoes) {
  const Json data = ReadTestJson("text/testdata/tool_templates.json");
  const auto check = [&](const std::string& source, const Json& messages, bool with_tools, bool is_prompt,
                         const Json& want) {
    const auto chat_template = ChatTemplate::Parse(source);
    ASSERT_TRUE(chat_template.ok()) << chat_template.status();
    const auto text = (*chat_template)
                          ->Render({.messages = MessagesWithCalls(messages),
                                    .add_generation_prompt = is_prompt,
                                    .bos_token = "<s>",
                                    .eos_token = "</s>",
                                    .tools = Tools(with_tools ? data["tools"] : Json::array())});
    EXPECT_EQ(text.ok() ? Json(text->text) : Json(), want) << text.status();
  };
  for (const Json& c : data["cases"]) {
    SCOPED_TRACE(c["template"].get<std::string>() + ": " + c["conversation"].get<std::string>());
    check(data["templates"][c["template"].get<std::string>()],
          data["conversations"][c["conversation"].get<std::string>()], c["with_tools"], true, c["want"]);
  }
  for (const Json& c : data["snippets"])
    check(c["template"], data["conversations"]["one question"], true, false, c["want"]);
}

TEST(ChatTemplate, AMessageMaySayWhoSpeaks) {
  const auto chat_template = ChatTemplate::Parse(
      "{% for m in messages %}{{ m.name | default('nobody') }}: {{ m.content }}\n{% endfor %}");
  ASSERT_TRUE(chat_template.ok()) << chat_template.status();
  ChatMessage named{"user", "hi"};
  named.name = "Ann";
  const auto text = (*chat_template)->Render({.messages = {named, {"user", "ho"}}});
  ASSERT_TRUE(text.ok()) << text.status();
  EXPECT_EQ(text->text, "Ann: hi\nnobody: ho\n");
}

TEST(ChatTemplate, NothingOfToolsAndCallsIsControl) {
  const Json data = ReadTestJson("text/testdata/tool_templates.json");
  for (const auto& [name, source] : data["templates"].items()) {
    const auto chat_template = *ChatTemplate::Parse(source.get<std::string>());
    const std::string mark = "\xEE\x80\x80", quoted = "{\"" + mark + "\": \"" + mark + "\"}";
    const std::string id = mark + "123456" + mark + mark;  // nine characters
    const auto text = chat_template->Render(
        {.messages = {{"user", mark}, {"assistant", "", {{id, mark, quoted}}}, {"tool", mark, {}, id}},
         .tools = {{mark, mark, quoted}}});
    ASSERT_TRUE(text.ok()) << name << text.status();
    size_t trusted = 0;
    for (const ByteRange& range : text->control) {
      const std::string part = text->text.substr(range.begin, range.end - range.begin);
      trusted += part.find('\xEE') == std::string::npos ? 0 : 1;
    }
    EXPECT_EQ(trusted, 0u) << name;
    EXPECT_NE(text->text.find(mark), std::string::npos);
  }
}

TEST(ChatTemplate, TheFormatOfCallsIsKnownOnlyWhereTheTemplateReadsTools) {
  const Json templates = ReadTestJson("text/testdata/tool_templates.json")["templates"];
  const auto format = [&](const char* name) {
    return (*ChatTemplate::Parse(templates[name].get<std::string>()))->tool_call_format();
  };
  EXPECT_EQ(format("tags"), ToolCallFormat::kHermes);
  EXPECT_EQ(format("bare JSON"), ToolCallFormat::kLlama);
  EXPECT_EQ(format("brackets"), ToolCallFormat::kMistral);
  EXPECT_EQ((*ChatTemplate::Parse("{{ '<tool_call>' }}"))->tool_call_format(), ToolCallFormat::kNone);
  EXPECT_EQ((*ChatTemplate::Parse("{{ tools }}"))->tool_call_format(), ToolCallFormat::kNone);
  EXPECT_EQ((*ChatTemplate::Parse("{{ tools }}<tool_call>"))->tool_call_format(), ToolCallFormat::kHermes);
}

TEST(ChatTemplate, ControlIsExactlyWhatIsNotFromMessages) {
  // Letters that no template has: what is made of them comes from a message, the rest does not.
  const auto is_private = [](char c) { return c == '\xEE' || c == '\x80' || c == '\x81'; };
  int rendered = 0;
  for (const Json& c : ReadTestJson("text/testdata/chat_templates.json")) {
    std::vector<ChatMessage> messages = Messages(c["messages"]);
    for (ChatMessage& message : messages) message.content = "\xEE\x80\x80\xEE\x80\x81";
    const auto text = Render(c["template"], messages, c["add_generation_prompt"]);
    if (!text.ok()) continue;
    ++rendered;
    std::string want;
    for (const char byte : text->text) {
      if (is_private(byte)) want.push_back(byte);
    }
    EXPECT_EQ(Untrusted(*text), want) << c["template"];
  }
  EXPECT_GT(rendered, 80);
}

TEST(ChatTemplate, WhateverDerivesFromAMessageStaysUntrusted) {
  const struct {
    const char *source, *untrusted;
  } cases[] = {
      {"{{ '<' + messages[0].content + '>' }}", "  a-b C\n"},
      {"{{ messages[0].content | trim ~ '!' }}", "a-b C"},
      {"{{ messages[0].content.lstrip() }}", "a-b C\n"},
      {"{{ messages[0].content[2:5] }}", "a-b"},
      {"{{ messages[0].content[2] }}{{ messages[0].content[::-1] }}", "a\nC b-a  "},
      {"{{ messages[0].content | upper }}{{ messages[0].content.lower() }}", "  A-B C\n  a-b c\n"},
      {"{{ messages[0].content.split('-') | join('+') }}", "  ab C\n"},
      {"{{ messages[0].content.split() | join('+') }}", "a-bC"},
      {"{{ messages[0].content | replace('-', '<|user|>') }}", "  a<|user|>b C\n"},
      {"{{ 'x-y' | replace('-', messages[0].content) }}", "  a-b C\n"},
      {"{{ 'x-y' | replace('-', '+') }}", ""},
      {"{{ messages[0].content | tojson }}", "  a-b C\\n"},
      {"{{ messages | tojson }}", "  a-b C\\n"},
      {"{{ messages[0].content | first }}{{ messages[0].content | last }}", " \n"},
      {"{% for c in messages[0].content %}{{ c }},{% endfor %}", "  a-b C\n"},
      {"{% set x = messages[0].content %}{% set ns = namespace(y=x) %}{{ ns.y | string }}", "  a-b C\n"},
      {"{{ {messages[0].content: 1} | first }}", "  a-b C\n"},
      {"{{ nothing | default(messages[0].content) }}", "  a-b C\n"},
      {"{{ messages[0].content if true else 'x' }}{{ messages[0].content or 'x' }}", "  a-b C\n  a-b C\n"},
      {"{{ messages[0].content | length }}{{ messages[0].role }}{{ bos_token }}{{ eos_token }}", ""},
      {"{{ messages[0].content.title() }}{{ messages[0].content | capitalize }}", "  A-B C\n  a-b c\n"},
  };
  for (const auto& c : cases) {
    const auto text = Render(c.source, {{"user", "  a-b C\n"}});
    ASSERT_TRUE(text.ok()) << c.source << text.status();
    EXPECT_EQ(Untrusted(*text), c.untrusted) << c.source;
  }
}

TEST(ChatTemplate, SyntaxErrorsNameLineAndColumn) {
  const struct {
    const char *source, *place;
  } cases[] = {
      {"a\n  {% if x", "line 2, column 3"},
      {"{{ 1 + }}", "line 1, column 8"},
      {"\n\n{{ x | nofilter }}", "line 3, column 6"},
      {"{% macro f() %}{% endmacro %}", "line 1, column 4"},
      {"{{ 'abc }}", "line 1, column 4"},
      {"{% for x in y %}", "line 1, column 17"},
      {"{{ 99999999999999999999 }}", "line 1, column 4"},
      {"{{ '\\uD800' }}", "line 1, column 5"},
      {"{{ f(1)(2) }}", "line 1, column 8"},
      {"{% if a %}{% else %}{% elif b %}{% endif %}", "line 1, column"},
      {"x{% endif %}", "line 1, column 2"},
      {"\xFF", "line 1, column 1"},
  };
  for (const auto& c : cases) {
    const auto parsed = ChatTemplate::Parse(c.source);
    ASSERT_EQ(parsed.status().code(), StatusCode::kDataLoss) << c.source;
    EXPECT_EQ(Reason(parsed.status()), "bad_template") << c.source;
    EXPECT_THAT(Message(parsed.status()), HasSubstr(c.place)) << c.source;
  }
}

TEST(ChatTemplate, RaisedExceptionsSpeakForThemselves) {
  const auto text = Render("{{ raise_exception('Roles must alternate') }}");
  EXPECT_EQ(text.status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(Reason(text.status()), "template_error");
  EXPECT_EQ(Message(text.status()), "chat template: Roles must alternate");
}

std::string Repeat(std::string_view text, int count) {
  std::string out;
  for (int i = 0; i < count; ++i) out += text;
  return out;
}

TEST(ChatTemplate, NestingIsLimitedWhereverItOccurs) {
  constexpr int kDeep = 100'000;
  const std::pair<std::string, std::string> nests[] = {
      {"{{ " + Repeat("(", kDeep), "1" + Repeat(")", kDeep) + " }}"},
      {"{{ " + Repeat("[", kDeep), Repeat("]", kDeep) + " }}"},
      {"{{ " + Repeat("{'a':", kDeep), "1" + Repeat("}", kDeep) + " }}"},
      {"{{ " + Repeat("not ", kDeep), "1 }}"},
      {"{{ " + Repeat("- ", kDeep), "1 }}"},
      {"{{ " + Repeat("+ ", kDeep), "1 }}"},
      {"{{ 1", Repeat(" + 1", kDeep) + " }}"},
      {"{{ 1", Repeat(" and 1", kDeep) + " }}"},
      {"{{ a", Repeat(".a", kDeep) + " }}"},
      {"{{ a", Repeat("[0]", kDeep) + " }}"},
      {"{{ a", Repeat("|trim", kDeep) + " }}"},
      {"{{ a", Repeat(" is defined", kDeep) + " }}"},
      {"{{ a" + Repeat(".strip(a", kDeep), Repeat(")", kDeep) + " }}"},
      {"{{ 1", Repeat(" if 1 else 1", kDeep) + " }}"},
      {Repeat("{% if 1 %}", kDeep), Repeat("{% endif %}", kDeep)},
      {Repeat("{% for a in b %}", kDeep), Repeat("{% endfor %}", kDeep)},
      {Repeat("{% generation %}", kDeep), Repeat("{% endgeneration %}", kDeep)},
  };
  for (const auto& [open, close] : nests) {
    if (open.size() + close.size() > size_t{1} << 20) continue;
    const auto parsed = ChatTemplate::Parse(open + close);
    EXPECT_EQ(Reason(parsed.status()), "bad_template") << open.substr(0, 20);
  }
  // Branches and items side by side are no nesting.
  EXPECT_EQ(RenderText("{% if 0 %}" + Repeat("{% elif 0 %}", 5000) + "{% else %}x{% endif %}"), "x");
  EXPECT_EQ(RenderText("{{ [" + Repeat("1,", 5000) + "] | length }}"), "5000");
}

TEST(ChatTemplate, WorkAndMemoryAreLimited) {
  const std::string nested_loops = Repeat("{% for a in range(1000) %}", 4) + "x" + Repeat("{% endfor %}", 4);
  const std::pair<const char*, std::string> cases[] = {
      {"steps", nested_loops},
      {"a huge range", "{% for a in range(9999999999) %}{% endfor %}"},
      {"doubling text",
       "{% set ns = namespace(x='x') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}"},
      {"doubling by concatenation",
       "{% set ns = namespace(x='x') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}"},
      {"doubling by replace",
       "{% set ns = namespace(x='x') %}{% for i in range(60) %}{% set ns.x = ns.x.replace('x', 'xx') %}{% "
       "endfor %}"},
      {"doubling by join",
       "{% set ns = namespace(x='x') %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] | join %}{% endfor "
       "%}"},
      {"doubling a list",
       "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}"},
      {"deep lists",
       "{% set ns = namespace(x=[]) %}{% for i in range(100) %}{% set ns.x = [ns.x] %}{% endfor %}"},
      {"deep dictionaries",
       "{% set ns = namespace(x={}) %}{% for i in range(100) %}{% set ns.x = {'a': ns.x} %}{% endfor %}"},
      {"printing a wide tree",
       "{% set ns = namespace(x=[]) %}{% for i in range(50) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ "
       "ns.x | tojson }}"},
      {"indenting a wide tree",
       "{% set ns = namespace(x=[]) %}{% for i in range(50) %}{% set ns.x = [ns.x, ns.x] %}"
       "{% endfor %}{{ ns.x | tojson(indent=64) }}"},
      {"comparing wide trees",
       "{% set ns = namespace(x=[], y=[]) %}{% for i in range(50) %}{% set ns.x = [ns.x, ns.x] %}"
       "{% set ns.y = [ns.y, ns.y] %}{% endfor %}{{ ns.x == ns.y }}"},
      {"a namespace inside itself", "{% set ns = namespace() %}{% set ns.x = ns %}"},
      {"a namespace in a list", "{% set ns = namespace() %}{% set ns.x = [ns] %}"},
      {"a loop in itself", "{% for a in [1] %}{% set ns = namespace(x=loop) %}{% endfor %}"},
      {"long output", "{% for i in range(100) %}{{ messages[0].content }}{% endfor %}"},
  };
  for (const auto& [name, source] : cases) {
    const auto text = Render(source, {{"user", std::string(200'000, 'x')}});
    EXPECT_EQ(text.status().code(), StatusCode::kInvalidArgument) << name;
    EXPECT_EQ(Reason(text.status()), "template_error") << name;
  }
}

TEST(ChatTemplate, LongConversationsFit) {
  std::vector<ChatMessage> messages;
  for (int i = 0; i < 2000; ++i)
    messages.push_back({i % 2 == 0 ? "user" : "assistant", std::string(2000, 'x')});
  const auto text = Render(
      "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] | trim + '</s>' }}{% endfor %}",
      messages);
  ASSERT_TRUE(text.ok()) << text.status();
  EXPECT_GT(text->text.size(), size_t{4'000'000});
}

// An attribute is data: nothing of the program can be reached through one.
TEST(ChatTemplate, HasNoWayOut) {
  for (const char* source : {"{{ ''.__class__ }}", "{{ messages.__init__ }}", "{{ self }}", "{{ cycler }}",
                             "{{ messages[0].__class__ }}", "{{ bos_token.format }}", "{{ namespace }}"}) {
    EXPECT_EQ(RenderText(source, {{"user", "x"}}), "") << source;
  }
  for (const char* source :
       {"{{ ''.format(1) }}", "{{ lipsum() }}", "{% include 'x' %}", "{% import 'x' as y %}",
        "{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}"}) {
    EXPECT_FALSE(Render(source, {{"user", "x"}}).ok()) << source;
  }
}

TEST(ChatTemplate, AnyTextGivesATemplateOrAnError) {
  std::vector<std::string> sources;
  for (const Json& c : ReadTestJson("text/testdata/chat_templates.json")) sources.push_back(c["template"]);
  const std::vector<ChatMessage> messages = {
      {"system", "s"}, {"user", "  <think>a</think>\n"}, {"assistant", "b\xFF"}};
  for (uint64_t seed = 0; seed < 15'000; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937_64 random(seed);
    const auto text = Render(Mutate(sources[random() % sources.size()], random), messages);
    if (text.ok()) {
      Untrusted(*text);
    } else {
      ASSERT_THAT(Reason(text.status()), ::testing::AnyOf("bad_template", "template_error")) << text.status();
    }
  }
}

TEST(LoadChatTemplate, TheFileOfItsOwnComesFirst) {
  const ModelFolder folder;
  const auto source = [&] {
    const auto loaded = LoadChatTemplate(folder.path());
    return loaded.ok() ? (*loaded)->source() : Reason(loaded.status());
  };
  EXPECT_THAT(source(), HasSubstr("<|end|>"));
  folder.Edit("tokenizer_config.json", [](Json& json) {
    json["chat_template"] = {{{"name", "tools"}, {"template", "t"}},
                             {{"name", "default"}, {"template", "d"}}};
  });
  EXPECT_EQ(source(), "d");
  folder.Write("chat_template.jinja", "{{ bos_token }}");
  EXPECT_EQ(source(), "{{ bos_token }}");
  folder.Write("chat_template.jinja", "{{");
  EXPECT_EQ(source(), "bad_template");
  folder.Remove("chat_template.jinja");
  const std::string file = folder.path() + "/chat_template.jinja";
  std::filesystem::create_symlink(file, file);  // cannot be opened, and is not absent
  EXPECT_EQ(LoadChatTemplate(folder.path()).status().code(), StatusCode::kUnavailable);
  folder.Remove("chat_template.jinja");
  folder.Edit("tokenizer_config.json", [](Json& json) { json.erase("chat_template"); });
  EXPECT_EQ(LoadChatTemplate(folder.path()).status().code(), StatusCode::kNotFound);
}

}  // namespace
}  // namespace terrace
