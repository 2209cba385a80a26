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
    json["rope_scaling"] = {{"factor", 8.0}, {key, "llama3"}};
    EXPECT_THAT(Message(ParseConfigJson(json.dump(), "config.json").status()),
                testing::HasSubstr("kind \"llama3\" is not supported; supported are null and \"default\""));
  }
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
