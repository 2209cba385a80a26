#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/formats/model_config.h"
#include "worker/formats/testing_files.h"

namespace terrace {
namespace {

ModelConfig Parsed(const Json& json) {
  const auto config = ParseConfigJson(json.dump(), "config.json");
  EXPECT_TRUE(config.ok()) << config.status();
  return config.value_or(ModelConfig());
}

TEST(ParseConfigJson, ReadsEveryField) {
  const ModelConfig config = Parsed({{"architectures", {"LlamaForCausalLM"}},
                                     {"model_type", "llama"},
                                     {"vocab_size", 128256},
                                     {"max_position_embeddings", 8192},
                                     {"hidden_size", 4096},
                                     {"num_hidden_layers", 32},
                                     {"num_attention_heads", 32},
                                     {"num_key_value_heads", 8},
                                     {"head_dim", 64},
                                     {"intermediate_size", 14336},
                                     {"rms_norm_eps", 1e-5},
                                     {"rope_theta", 500000},
                                     {"tie_word_embeddings", true}});
  EXPECT_EQ(config.family, "llama");
  EXPECT_EQ(config.names, NameScheme::kHuggingFace);
  EXPECT_EQ(config.rope_pairing, RopePairing::kHalves);
  EXPECT_EQ(config.vocab_size, 128256u);
  EXPECT_EQ(config.context_length, 8192u);
  EXPECT_EQ(config.hidden_size, 4096u);
  EXPECT_EQ(config.layers, 32u);
  EXPECT_EQ(config.heads, 32u);
  EXPECT_EQ(config.kv_heads, 8u);
  EXPECT_EQ(config.head_dim, 64u);
  EXPECT_EQ(config.ffn_size, 14336u);
  EXPECT_EQ(config.norm_epsilon, 1e-5f);
  EXPECT_EQ(config.rope_base, 500000.0f);
  EXPECT_TRUE(config.tied_embeddings);
  EXPECT_TRUE(config.warnings.empty());
}

TEST(ParseConfigJson, DerivesWhatMayBeAbsentOrNull) {
  Json json = TinyFolder().config;
  json.erase("architectures");
  json.erase("hidden_act");
  json.erase("num_key_value_heads");
  json["head_dim"] = nullptr;
  json.erase("rms_norm_eps");
  json.erase("rope_theta");
  json.erase("tie_word_embeddings");
  const ModelConfig config = Parsed(json);
  EXPECT_EQ(config.kv_heads, config.heads);
  EXPECT_EQ(config.head_dim, config.hidden_size / config.heads);
  EXPECT_EQ(config.norm_epsilon, 1e-6f);
  EXPECT_EQ(config.rope_base, 10000.0f);
  EXPECT_FALSE(config.tied_embeddings);
}

TEST(ParseConfigJson, AcceptsPlainRopeInEverySpelling) {
  Json json = TinyFolder().config;
  for (const Json& scaling : {Json(nullptr), Json({{"type", "default"}}), Json({{"rope_type", "default"}})}) {
    json["rope_scaling"] = scaling;
    EXPECT_EQ(Parsed(json).rope_base, 10000.0f) << scaling;
  }
  json["rope_scaling"] = nullptr;
  json["rope_parameters"] = {{"rope_type", "default"}, {"rope_theta", 250000.0}};
  EXPECT_EQ(Parsed(json).rope_base, 250000.0f);
}

TEST(ParseConfigJson, NamesTheKindOfRopeThatIsNotSupported) {
  Json json = TinyFolder().config;
  for (const char* key : {"rope_type", "type"}) {
    json["rope_scaling"] = {{"factor", 8.0}, {key, "yarn"}};
    EXPECT_THAT(Message(ParseConfigJson(json.dump(), "config.json").status()),
                testing::HasSubstr(
                    R"(kind "yarn" is not supported; supported are null, "default", "linear" and "llama3")"));
  }
}

TEST(ParseConfigJson, RefusesImpossibleSwitches) {
  const Json plain = TinyFolder().config;
  const auto message = [&](const std::string& family, const std::string& architecture, const Json& more) {
    Json json = plain;
    json["model_type"] = family;
    json["architectures"] = {architecture};
    json.update(more);
    const Status status = ParseConfigJson(json.dump(), "config.json").status();
    EXPECT_EQ(Reason(status), "bad_config") << more;
    return Message(status);
  };
  const auto llama = [&](const Json& rope) {
    return message("llama", "LlamaForCausalLM", {{"rope_scaling", rope}});
  };
  EXPECT_THAT(llama({{"rope_type", "linear"}}), testing::HasSubstr("factor is missing"));
  EXPECT_THAT(llama({{"rope_type", "linear"}, {"factor", 0}}), testing::HasSubstr("factor 0"));
  const Json llama3 = {{"rope_type", "llama3"},
                       {"factor", 8},
                       {"low_freq_factor", 4},
                       {"high_freq_factor", 4},
                       {"original_max_position_embeddings", 8192}};
  EXPECT_THAT(llama(llama3), testing::HasSubstr("are not two rising factors"));
  EXPECT_THAT(message("gemma2", "Gemma2ForCausalLM", {{"hidden_activation", "gelu"}}),
              testing::HasSubstr("gelu_pytorch_tanh"));
  EXPECT_THAT(message("gemma2", "Gemma2ForCausalLM", {{"query_pre_attn_scalar", 0}}),
              testing::HasSubstr("query_pre_attn_scalar"));
  EXPECT_THAT(message("gemma2", "Gemma2ForCausalLM", {{"attn_logit_softcapping", -5}}),
              testing::HasSubstr("attn_logit_softcapping"));
  EXPECT_THAT(message("mistral", "MistralForCausalLM",
                      {{"layer_types", {"sliding_attention", "full_attention", "full_attention"}}}),
              testing::HasSubstr("layer_types"));
  const uint32_t layers = plain["num_hidden_layers"].get<uint32_t>();
  EXPECT_THAT(message("qwen2", "Qwen2ForCausalLM",
                      {{"layer_types", std::vector<std::string>(layers, "sliding_attention")}}),
              testing::HasSubstr("says no size"));
  EXPECT_THAT(
      message("qwen2", "Qwen2ForCausalLM", {{"layer_types", {"chunked_attention", "full_attention"}}}),
      testing::HasSubstr("layer_types"));
  for (const auto& [key, value] : {std::pair<std::string, Json>{"num_local_experts", 0},
                                   {"num_local_experts", 513},
                                   {"num_experts_per_tok", 0},
                                   {"num_experts_per_tok", 9}})
    EXPECT_THAT(message("mixtral", "MixtralForCausalLM", {{key, value}}), testing::HasSubstr(key)) << value;
  EXPECT_THAT(
      message("mixtral", "MixtralForCausalLM", {{"num_hidden_layers", 1024}, {"num_local_experts", 65}}),
      testing::HasSubstr("65 in each of 1024 layers"));
  for (const auto& [key, value] : {std::pair<std::string, Json>{"num_experts", 0},
                                   {"num_experts_per_tok", 17},
                                   {"decoder_sparse_step", 2},
                                   {"mlp_only_layers", {0}},
                                   {"use_sliding_window", true},
                                   {"norm_topk_prob", 1}})
    EXPECT_THAT(message("qwen3_moe", "Qwen3MoeForCausalLM", {{key, value}}), testing::HasSubstr(key))
        << value;
}

// As transformers has them by default.
TEST(ParseConfigJson, FamiliesWithExpertsHaveTheirDefaults) {
  Json json = TinyFolder().config;
  json.update({{"num_attention_heads", 8}, {"hidden_size", 128}, {"head_dim", nullptr}});
  for (const char* key : {"num_key_value_heads", "rms_norm_eps", "rope_theta"}) json.erase(key);
  json["architectures"] = {"MixtralForCausalLM"};
  json["model_type"] = "mixtral";
  const ModelConfig mixtral = Parsed(json);
  EXPECT_EQ(mixtral.experts, 8u);
  EXPECT_EQ(mixtral.experts_per_token, 2u);
  EXPECT_TRUE(mixtral.normalizes_experts);
  EXPECT_EQ(mixtral.kv_heads, 8u);
  EXPECT_EQ(mixtral.norm_epsilon, 1e-5f);
  EXPECT_EQ(mixtral.rope_base, 1e6f);
  EXPECT_EQ(mixtral.ffn_size, json["intermediate_size"]);
  EXPECT_TRUE(mixtral.windows.empty());

  json["architectures"] = {"Qwen3MoeForCausalLM"};
  json["model_type"] = "qwen3_moe";
  const ModelConfig qwen = Parsed(json);
  EXPECT_EQ(qwen.experts, 128u);
  EXPECT_EQ(qwen.experts_per_token, 8u);
  EXPECT_FALSE(qwen.normalizes_experts);
  EXPECT_EQ(qwen.kv_heads, 4u);
  EXPECT_EQ(qwen.head_dim, 16u);
  EXPECT_EQ(qwen.rope_base, 1e4f);
  EXPECT_EQ(qwen.ffn_size, 768u);  // of an expert
}

// What is written says the same scale of scores, also where its square root has no exact inverse: 144 is
// Gemma 2's of 27 billion weights.
TEST(ParseConfigJson, TheScaleOfScoresSurvivesBeingWritten) {
  Json json = TinyFolder().config;
  json["model_type"] = "gemma2";
  json["architectures"] = {"Gemma2ForCausalLM"};
  for (uint32_t scalar = 1; scalar <= 2048; ++scalar) {
    json["query_pre_attn_scalar"] = scalar;
    const Json written = ParseJson(ConfigJsonText(Parsed(json))).value();
    EXPECT_EQ(written["query_pre_attn_scalar"], scalar);
  }
  json["query_pre_attn_scalar"] = 168.25;
  const ModelConfig config = Parsed(json);
  EXPECT_EQ(Parsed(ParseJson(ConfigJsonText(config)).value()).attention_scale, config.attention_scale);
}

TEST(ParseConfigJson, RopeIsOfKindsOfLayersInGemma3Alone) {
  const Json plain = {{"rope_type", "default"}, {"rope_theta", 500.0}};
  const Json kinds = {{"full_attention", plain},
                      {"sliding_attention", {{"rope_type", "default"}, {"rope_theta", 50.0}}}};
  const auto with = [](const char* family, const char* architecture, const Json& rope) {
    Json json = TinyFolder().config;
    json["model_type"] = family;
    json["architectures"] = {architecture};
    json["rope_parameters"] = rope;
    return ParseConfigJson(json.dump(), "config.json");
  };
  const auto gemma3 = with("gemma3_text", "Gemma3ForCausalLM", kinds);
  ASSERT_TRUE(gemma3.ok()) << gemma3.status();
  EXPECT_EQ(gemma3->rope_base, 500);
  EXPECT_EQ(gemma3->window_rope_base, 50);
  EXPECT_EQ(Reason(with("gemma3_text", "Gemma3ForCausalLM", plain).status()), "bad_config");
  EXPECT_EQ(Reason(with("mistral", "MistralForCausalLM", kinds).status()), "bad_config");
  EXPECT_TRUE(with("mistral", "MistralForCausalLM", plain).ok());
  Json partial = plain;
  partial["partial_rotary_factor"] = 0.5;
  EXPECT_EQ(Reason(with("llama", "LlamaForCausalLM", partial).status()), "bad_config");
}

// The divisors that converters make of llama3 are llama3 again; others are a kind of their own.
TEST(AsFolderConfig, KnowsLlama3ByItsDivisors) {
  ModelConfig config = Parsed(TinyFolder().config);
  config.head_dim = 128;
  config.rope_base = 500'000;
  config.rope_scaling.kind = RopeScaling::Kind::kLlama3;
  config.rope_scaling.factor = 32;
  ModelConfig divided = config;
  divided.rope_scaling = {};
  divided.rope_scaling.kind = RopeScaling::Kind::kDivisors;
  divided.rope_scaling.divisors = RopeDivisors(config);
  EXPECT_EQ(AsFolderConfig(divided).rope_scaling, config.rope_scaling);
  divided.rope_scaling.divisors[3] = 2;
  EXPECT_EQ(AsFolderConfig(divided).rope_scaling, divided.rope_scaling);
}

// A null cap is none; an absent one is the family's.
TEST(ParseConfigJson, GemmaHasTheCapsOfItsFamilyUnlessItSaysOtherwise) {
  Json json = TinyFolder().config;
  json["model_type"] = "gemma2";
  json["architectures"] = {"Gemma2ForCausalLM"};
  EXPECT_EQ(Parsed(json).attention_softcap, 50);
  EXPECT_EQ(Parsed(json).logit_softcap, 30);
  json["attn_logit_softcapping"] = json["final_logit_softcapping"] = nullptr;
  EXPECT_EQ(Parsed(json).attention_softcap, 0);
  EXPECT_EQ(Parsed(json).logit_softcap, 0);
}

TEST(ParseConfigJson, LayersMayHaveFeedForwardSizesOfTheirOwn) {
  Json json = TinyFolder().config;
  json["num_hidden_layers"] = 3;
  json["intermediate_size"] = 96;
  json[std::string(kFfnSizesKey)] = {32, 96, 64};
  ModelConfig config = Parsed(json);
  EXPECT_EQ(config.ffn_size, 96u);
  EXPECT_EQ(config.ffn_sizes, (std::vector<uint32_t>{32, 96, 64}));
  EXPECT_EQ(config.FfnSize(2), 64u);
  EXPECT_EQ(Parsed(ParseJson(ConfigJsonText(config)).value()).ffn_sizes, config.ffn_sizes);

  json[std::string(kFfnSizesKey)] = {96, 96, 96};  // equal ones are one size
  config = Parsed(json);
  EXPECT_TRUE(config.ffn_sizes.empty());
  EXPECT_EQ(config.FfnSize(2), 96u);
  EXPECT_EQ(ConfigJsonText(config).find(kFfnSizesKey), std::string::npos);
}

TEST(ParseConfigJson, WarnsThatCodeOfAModelIsNeverRun) {
  Json json = TinyFolder().config;
  json["auto_map"] = {{"AutoModel", "modeling.MyModel"}};
  json["trust_remote_code"] = true;
  const ModelConfig config = Parsed(json);
  ASSERT_EQ(config.warnings.size(), 2u);
  EXPECT_NE(config.warnings[0].find("auto_map"), std::string::npos);
  EXPECT_NE(config.warnings[1].find("trust_remote_code"), std::string::npos);
}

TEST(CheckGenerationConfig, AcceptsTheUsualSettings) {
  EXPECT_TRUE(CheckGenerationConfig("{}", "g").ok());
  EXPECT_TRUE(CheckGenerationConfig(R"({"temperature": 0.6, "top_p": 0.9, "top_k": 50, "max_length": 4096,
                                        "repetition_penalty": 1.1, "do_sample": true, "eos_token_id": [1, 2]})",
                                    "g")
                  .ok());
}

TEST(CheckGenerationConfig, RefusesImpossibleSettings) {
  for (const char* text :
       {R"({"temperature": -0.1})", R"({"temperature": "hot"})", R"({"top_p": 1.5})", R"({"top_k": -1})",
        R"({"top_k": 2.5})", R"({"repetition_penalty": 0})", R"({"max_new_tokens": -5})", "[]"}) {
    const Status status = CheckGenerationConfig(text, "g");
    EXPECT_EQ(status.code(), StatusCode::kDataLoss) << text;
    EXPECT_EQ(Reason(status), "bad_config") << text;
  }
}

}  // namespace
}  // namespace terrace
