#include "worker/formats/model_files.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <tuple>

#include "base/mapped_file.h"
#include "gtest/gtest.h"
#include "worker/formats/tensor_names.h"
#include "worker/formats/testing_files.h"

namespace terrace {
namespace {

std::string Path(const std::string& name) { return testing::TempDir() + "model_files_" + name; }

ModelFiles Opened(const std::string& path) {
  auto model = OpenModel(path);
  CHECK(model.ok(), Message(model.status()));
  return *std::move(model);
}

float F16ToFloat(uint16_t half) {
  const int exponent = half >> 10 & 31, fraction = half & 1023;
  const float magnitude = exponent == 0 ? std::ldexp(static_cast<float>(fraction), -24)
                                        : std::ldexp(static_cast<float>(fraction + 1024), exponent - 25);
  return half >> 15 != 0 ? -magnitude : magnitude;
}

std::vector<float> Values(const TensorView& tensor) {
  std::vector<float> values(*ElementCount(tensor.shape));
  for (size_t i = 0; i < values.size(); ++i) {
    if (tensor.dtype == DType::kF32) {
      std::memcpy(&values[i], tensor.data + 4 * i, 4);
    } else {
      CHECK(tensor.dtype == DType::kF16, Info(tensor.dtype).name);
      uint16_t half;
      std::memcpy(&half, tensor.data + 2 * i, 2);
      values[i] = F16ToFloat(half);
    }
  }
  return values;
}

// Rows of Q or K in the order of RopePairing::kHalves put into that of kNeighbours: in each head, row i of
// the first half goes to 2i, row i of the second half to 2i + 1.
std::vector<float> WithNeighbours(const std::vector<float>& halves, uint64_t head_dim, uint64_t columns) {
  std::vector<float> out(halves.size());
  for (uint64_t row = 0; row < halves.size() / columns; ++row) {
    const uint64_t head = row / head_dim * head_dim, i = row % head_dim;
    const uint64_t to = head + (i < head_dim / 2 ? 2 * i : 2 * (i - head_dim / 2) + 1);
    std::copy_n(halves.begin() + row * columns, columns, out.begin() + to * columns);
  }
  return out;
}

class EveryDemoModel : public testing::TestWithParam<const char*> {
 protected:
  EveryDemoModel()
      : folder_(Opened(Concat("models/terrace-demo-", GetParam()))),
        gguf_(Opened(Concat("models/terrace-demo-", GetParam(), ".f16.gguf"))) {}
  const ModelFiles folder_, gguf_;
};
INSTANTIATE_TEST_SUITE_P(Demo, EveryDemoModel, testing::Values("nano", "small", "base"));

TEST_P(EveryDemoModel, HasTheSameConfigurationInBothFormats) {
  EXPECT_EQ(folder_.format, "safetensors");
  EXPECT_EQ(gguf_.format, "gguf");
  EXPECT_EQ(folder_.config.names, NameScheme::kHuggingFace);
  EXPECT_EQ(gguf_.config.names, NameScheme::kGguf);
  EXPECT_EQ(folder_.config.rope_pairing, RopePairing::kHalves);
  EXPECT_EQ(gguf_.config.rope_pairing, RopePairing::kNeighbours);
  const auto fields = [](const ModelConfig& c) {
    return std::tuple(c.family, c.name, c.vocab_size, c.context_length, c.hidden_size, c.layers, c.heads,
                      c.kv_heads, c.head_dim, c.ffn_size, c.norm_epsilon, c.rope_base, c.tied_embeddings,
                      c.warnings);
  };
  EXPECT_EQ(fields(folder_.config), fields(gguf_.config));
  EXPECT_EQ(folder_.config.name, Concat("terrace-demo-", GetParam()));
}

TEST_P(EveryDemoModel, HasTheSameWeightsInBothFormats) {
  const auto in_folder = RequiredTensors(folder_.config), in_gguf = RequiredTensors(gguf_.config);
  ASSERT_EQ(in_folder.size(), in_gguf.size());
  EXPECT_EQ(folder_.weights->entries().size(), in_folder.size());  // there are no others
  for (size_t i = 0; i < in_folder.size(); ++i) {
    SCOPED_TRACE(in_folder[i].name);
    std::vector<float> expected = Values(*folder_.weights->Find(in_folder[i].name));
    if (in_folder[i].kind == TensorKind::kQuery || in_folder[i].kind == TensorKind::kKey)
      expected = WithNeighbours(expected, folder_.config.head_dim, folder_.config.hidden_size);
    EXPECT_EQ(Values(*gguf_.weights->Find(in_gguf[i].name)), expected);
  }
}

TEST_P(EveryDemoModel, HasTheSameTextInBothFormats) {
  EXPECT_EQ(folder_.text->tokenizer->Serialize(), gguf_.text->tokenizer->Serialize());
  EXPECT_EQ(folder_.text->tokenizer->special().end, gguf_.text->tokenizer->special().end);
  ASSERT_NE(gguf_.text->chat_template, nullptr);
  EXPECT_EQ(folder_.text->chat_template->source(), gguf_.text->chat_template->source());
  EXPECT_EQ(folder_.text->bos_text, gguf_.text->bos_text);
  EXPECT_EQ(folder_.text->eos_text, gguf_.text->eos_text);
  EXPECT_EQ(Digest(*folder_.text), Digest(*gguf_.text));
}

TEST(OpenModel, AnswersNotFoundForWhatIsNotThere) {
  const FolderParts parts = TinyFolder();
  EXPECT_EQ(OpenModel(Path("absent")).status().code(), StatusCode::kNotFound);
  EXPECT_EQ(OpenModel(Path("absent.gguf")).status().code(), StatusCode::kNotFound);
  for (const char* name : {"config.json", "tokenizer.json", "model.safetensors"}) {
    FolderParts without = parts;
    without.absent = {name};
    without.Write(Path("without"));
    const Status status = OpenModel(Path("without")).status();
    EXPECT_EQ(status.code(), StatusCode::kNotFound) << status;
    EXPECT_NE(Message(status).find(name), std::string::npos) << status;
  }
}

TEST(OpenModel, DoesWithoutOptionalParts) {
  FolderParts folder = TinyFolder();
  folder.absent = {"generation_config.json"};
  folder.tokenizer_config.erase("chat_template");
  folder.Write(Path("plain"));
  EXPECT_EQ(Opened(Path("plain")).text->chat_template, nullptr);

  GgufParts gguf = TinyGguf();
  for (const char* key : {"general.name", "llama.vocab_size", "llama.rope.dimension_count",
                          "llama.rope.freq_base", "tokenizer.chat_template", "tokenizer.ggml.add_bos_token"})
    gguf.Remove(key);
  WriteFile(Path("plain.gguf"), gguf.Bytes());
  const ModelFiles model = Opened(Path("plain.gguf"));
  EXPECT_EQ(model.text->chat_template, nullptr);
  EXPECT_FALSE(model.text->tokenizer->special().add_bos);
  EXPECT_EQ(model.config.vocab_size, model.text->tokenizer->vocab_size());
  EXPECT_EQ(model.config.rope_base, 10000.0f);
  EXPECT_EQ(model.config.name, "model_files_plain");
}

TEST(OpenModel, NamesAFolderHoweverItsPathIsWritten) {
  TinyFolder().Write(Path("named"));
  for (const std::string& spelling :
       {Path("named"), Path("named") + "/", Path("named") + "/.", Path("named") + "//"})
    EXPECT_EQ(Opened(spelling).config.name, "model_files_named") << spelling;
}

TEST(OpenModel, ToleratesTensorsThatChangeNothing) {
  FolderParts folder = TinyFolder();
  folder.weights.Add("model.layers.0.self_attn.rotary_emb.inv_freq", "F32", {8}, std::string(32, '\0'));
  folder.weights.Add("lm_head.weight", "F16", {262, 32},
                     std::string(262 * 32 * 2, '\0'));  // embeddings are tied
  folder.Write(Path("extra"));
  EXPECT_EQ(OpenModel(Path("extra")).status(), Status());
}

TEST(OpenModel, TakesTheOutputMatrixOfAGgufFileWhereThereIsOne) {
  GgufParts parts = TinyGguf();
  WriteFile(Path("tied.gguf"), parts.Bytes());
  EXPECT_TRUE(Opened(Path("tied.gguf")).config.tied_embeddings);
  GgufParts::Tensor output = parts.tensor("token_embd.weight");
  output.name = "output.weight";
  parts.tensors.push_back(output);
  WriteFile(Path("untied.gguf"), parts.Bytes());
  EXPECT_FALSE(Opened(Path("untied.gguf")).config.tied_embeddings);
}

TEST(OpenModel, DigestFollowsTheWeightFile) {
  GgufParts parts = TinyGguf();
  WriteFile(Path("a.gguf"), parts.Bytes());
  WriteFile(Path("b.gguf"), parts.Bytes());
  EXPECT_EQ(Opened(Path("a.gguf")).digest, Opened(Path("b.gguf")).digest);
  parts.tensor("blk.0.attn_q.weight").data[5] ^= 1;
  WriteFile(Path("b.gguf"), parts.Bytes());
  EXPECT_NE(Opened(Path("a.gguf")).digest, Opened(Path("b.gguf")).digest);
}

TEST(OpenModel, AFoldersDigestFollowsItsConfiguration) {
  const std::filesystem::path demo = "models/terrace-demo-nano", folder = Path("config");
  std::filesystem::remove_all(folder);
  std::filesystem::create_directories(folder);
  for (const auto& file : std::filesystem::directory_iterator(demo))
    std::filesystem::copy_file(file.path(), folder / file.path().filename());
  EXPECT_EQ(Opened(folder).digest, Opened(demo).digest);
  std::filesystem::permissions(folder / "config.json", std::filesystem::perms::owner_all);
  std::string config = *ReadFile(folder / "config.json");
  const std::string_view before = "\"rope_theta\": 10000";
  const size_t at = config.find(before);
  ASSERT_NE(at, std::string::npos);
  config.replace(at, before.size(), "\"rope_theta\": 20000");
  WriteFile(folder / "config.json", config);
  EXPECT_EQ(Opened(folder).config.rope_base, 20000);
  EXPECT_NE(Opened(folder).digest, Opened(demo).digest);
}

TEST(LoadGgufText, TakesUserDefinedTokensAndAllEndTokens) {
  GgufParts parts = TinyGguf();
  std::vector<int32_t> types(262, 1);
  types[0] = types[1] = types[2] = 3;
  types[3] = 4;  // "<|assistant|>"
  parts.Set("tokenizer.ggml.token_type", GgufInts(types));
  parts.Set("tokenizer.ggml.eot_token_id", GgufU32(2));
  parts.Set("tokenizer.ggml.eom_token_id", GgufU32(1));
  WriteFile(Path("types.gguf"), parts.Bytes());
  const auto text = Opened(Path("types.gguf")).text;
  EXPECT_TRUE(text->tokenizer->IsControl(2));
  EXPECT_FALSE(text->tokenizer->IsControl(3));
  EXPECT_EQ(text->tokenizer->Encode("<|assistant|>"), std::vector<TokenId>{3});
  EXPECT_NE(text->tokenizer->Encode("<|user|>"), std::vector<TokenId>{2});
  EXPECT_EQ(text->tokenizer->special().end, (std::vector<TokenId>{1, 2}));
}

TEST(RequiredTensors, FollowTheNamesOfEachFormat) {
  ModelConfig config;
  config.layers = 2;
  config.names = NameScheme::kGguf;
  EXPECT_EQ(RequiredTensors(config).size(), 3u + 2 * 9);
  EXPECT_EQ(RequiredTensors(config).back().name, "output.weight");
  config.tied_embeddings = true;
  EXPECT_EQ(RequiredTensors(config).back().name, "output_norm.weight");
  EXPECT_EQ(TensorName(NameScheme::kGguf, TensorKind::kQuery, 3), "blk.3.attn_q.weight");
  EXPECT_EQ(TensorName(NameScheme::kHuggingFace, TensorKind::kQuery, 3),
            "model.layers.3.self_attn.q_proj.weight");
  config.experts = 4;
  EXPECT_EQ(RequiredTensors(config).size(), 2u + 2 * (6 + 1 + 3 * 4));
  EXPECT_EQ(TensorName(config, TensorKind::kDown, 3, 2), "blk.3.ffn_down.2.weight");
  config.names = NameScheme::kHuggingFace;
  config.family = "mixtral";
  EXPECT_EQ(TensorName(config, TensorKind::kRouter, 3), "model.layers.3.block_sparse_moe.gate.weight");
  EXPECT_EQ(TensorName(config, TensorKind::kDown, 3, 2),
            "model.layers.3.block_sparse_moe.experts.2.w2.weight");
  config.family = "qwen3_moe";
  EXPECT_EQ(TensorName(config, TensorKind::kRouter, 3), "model.layers.3.mlp.gate.weight");
  EXPECT_EQ(TensorName(config, TensorKind::kDown, 3, 2), "model.layers.3.mlp.experts.2.down_proj.weight");
}

// Of which the tensors that are there would be another model.
TEST(OpenModel, RefusesFewerExpertsThanThereAre) {
  const std::string path = Path("three_experts");
  std::filesystem::remove_all(path);
  std::filesystem::copy("tests/families/data/mixtral", path, std::filesystem::copy_options::recursive);
  Json config = ParseJson(ReadFile(path + "/config.json", 1 << 20).value()).value();
  config["num_local_experts"] = 3;
  std::filesystem::permissions(path + "/config.json", std::filesystem::perms::owner_write,
                               std::filesystem::perm_options::add);
  WriteFile(path + "/config.json", config.dump());
  const Status status = OpenModel(path).status();
  EXPECT_EQ(Reason(status), "unsupported_tensor") << status;
  EXPECT_NE(Message(status).find("experts.3.w"), std::string::npos) << status;
}

}  // namespace
}  // namespace terrace
