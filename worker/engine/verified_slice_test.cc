#include "worker/engine/verified_slice.h"

#include <algorithm>
#include <filesystem>
#include <functional>
#include <map>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/engine/collecting_sink.h"
#include "worker/engine/fake_device.h"
#include "worker/engine/follower.h"
#include "worker/engine/open_engine.h"
#include "worker/engine/testing_group.h"
#include "worker/formats/byte_reader.h"
#include "worker/formats/safetensors_file.h"
#include "worker/formats/tensor_names.h"
#include "worker/formats/testing_files.h"
#include "worker/model/transformer.h"

namespace terrace {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

constexpr const char* kModels[] = {"models/terrace-demo-base", "models/terrace-demo-base.f16.gguf"};

ModelFiles Opened(const std::string& path) {
  auto model = OpenModel(path);
  CHECK(model.ok(), Message(model.status()));
  return *std::move(model);
}

ShardPlan PlanOf(const ModelFiles& files, uint32_t rank, uint32_t ranks, uint32_t stages) {
  return *Transformer::Plan(files.config, *files.weights, {.rank = rank, .ranks = ranks, .stages = stages});
}

std::vector<FileRange> RangesOf(const ModelFiles& files, const ShardPlan& plan) {
  return *RangesOf(files.weights->files(), SliceOf(files.config, plan));
}

uint64_t Bytes(const std::vector<FileRange>& ranges) {
  uint64_t bytes = 0;
  for (const FileRange& range : ranges) bytes += range.end - range.begin;
  return bytes;
}

TEST(SliceOf, ARankHasItsRowsAndAllOfWhatIsCutByColumnsOrNotAtAll) {
  const ModelFiles files = Opened(kModels[0]);
  const ModelConfig& config = files.config;
  const ShardPlan plan = PlanOf(files, 1, 2, 1);
  std::map<std::string, TensorRows> slice;
  for (const TensorRows& part : SliceOf(config, plan)) slice[part.name] = part;
  EXPECT_EQ(slice.size(), RequiredTensors(config).size());
  const auto rows_of = [&](TensorKind kind) {
    const TensorRows& part = slice.at(TensorName(config, kind, 0));
    return std::pair(part.begin, part.end);
  };
  const uint64_t query = uint64_t{config.heads} * config.head_dim, ffn = config.FfnSize(0);
  EXPECT_EQ(rows_of(TensorKind::kQuery), std::pair(query / 2, query));
  EXPECT_EQ(rows_of(TensorKind::kGate), std::pair(ffn / 2, ffn));
  for (const TensorKind kind : {TensorKind::kAttentionOutput, TensorKind::kDown})
    EXPECT_EQ(rows_of(kind), std::pair(uint64_t{0}, uint64_t{config.hidden_size}));
  EXPECT_EQ(rows_of(TensorKind::kEmbedding), std::pair(uint64_t{0}, uint64_t{config.vocab_size}));
  EXPECT_EQ(rows_of(TensorKind::kFfnNorm), std::pair(uint64_t{0}, uint64_t{1}));
}

// A byte of a tensor that no rank verified would be computed with unseen.
TEST(SliceOf, TheRanksOfAGroupHaveEveryByteOfEveryTensorBetweenThem) {
  for (const char* model : {kModels[0], kModels[1], "tests/families/data/qwen3_moe",
                            "tests/families/data/qwen3_moe/model.gguf"}) {  // where experts are a stack
    const ModelFiles files = Opened(model);
    const std::vector<FileRange> all = RangesOf(files, PlanOf(files, 0, 1, 1));
    const struct { uint32_t ranks, stages; } cases[] = {{2, 1}, {4, 1}, {2, 2}, {3, 3}, {4, 2}};
    for (const auto& [ranks, stages] : cases) {
      SCOPED_TRACE(Concat(model, ", ", ranks, " ranks in ", stages, " stages"));
      std::vector<bool> is_used(files.digest_list.bytes());
      for (uint32_t rank = 0; rank < ranks; ++rank) {
        const std::vector<FileRange> own = RangesOf(files, PlanOf(files, rank, ranks, stages));
        EXPECT_LT(Bytes(own), Bytes(all)) << "rank " << rank;
        for (const FileRange& range : own)
          std::fill(is_used.begin() + range.begin, is_used.begin() + range.end, true);
      }
      for (const FileRange& range : all) {
        EXPECT_TRUE(std::all_of(is_used.begin() + range.begin, is_used.begin() + range.end, std::identity()))
            << range.begin << " to " << range.end;
      }
    }
  }
}

// demo-base in a file of three pieces: the header and the embedding, the layers of the first of two stages,
// those of the second. Between them are tensors that nothing needs.
class ThreePiecesTest : public testing::Test {
 protected:
  static constexpr uint64_t kPiece = kDigestPieceBytes;

  ThreePiecesTest() {
    const auto file = *MappedFile::Open(Concat(kModels[0], "/model.safetensors"));
    const auto tensors = *ParseSafetensors(file->bytes());
    const uint32_t layers = Opened(kModels[0]).config.layers;
    const uint32_t half = LayersOfStage(layers, 0, 2).end;
    SafetensorsParts parts;
    const auto add = [&](std::string_view begin) {
      for (const SafetensorsTensor& tensor : tensors) {
        const std::vector<uint64_t> shape(tensor.shape.dims.begin(),
                                          tensor.shape.dims.begin() + tensor.shape.rank);
        if (tensor.name.starts_with(begin)) parts.Add(tensor.name, tensor.dtype, shape, AsText(tensor.data));
      }
    };
    const auto pad = [&](const char* name) {
      parts.Add(name, "F32", {kPiece / 4}, std::string(kPiece, '\0'));
    };
    add("model.embed_tokens.");
    pad("pad.0");
    for (uint32_t i = 0; i < half; ++i) add(Concat("model.layers.", i, "."));
    pad("pad.1");
    for (uint32_t i = half; i < layers; ++i) add(Concat("model.layers.", i, "."));
    add("model.norm.");
    weights_ = parts.Bytes();
    Write(folder_, weights_);
    const ModelFiles files = Opened(folder_);
    digest_ = files.digest;
    WriteFile(DigestListPath(folder_), DigestListText(files.digest_list));
    CHECK(files.digest_list.files[0].pieces.size() == 3, files.digest_list.files[0].pieces.size());
  }

  // With the list of folder_, if that is there.
  void Write(const std::string& folder, const std::string& weights) const {
    fs::remove_all(folder);
    fs::create_directories(folder);
    for (const auto& file : fs::directory_iterator(kModels[0])) {
      if (file.path().filename() != "model.safetensors")
        WriteFile(Concat(folder, "/", file.path().filename().string()), *ReadFile(file.path()));
    }
    WriteFile(folder + "/model.safetensors", weights);
    const auto list = ReadFile(DigestListPath(folder_));
    if (list.ok()) WriteFile(DigestListPath(folder), *list);
  }

  // The model with one bit changed in the middle of the data of a tensor.
  std::string Damaged(const std::string& tensor) const {
    const ModelFiles files = Opened(folder_);
    std::string damaged = weights_;
    for (const auto& entry : files.weights->entries()) {
      if (entry.name == tensor) damaged[entry.offset + entry.tensor.bytes / 2] ^= 1;
    }
    CHECK(damaged != weights_, "no ", tensor);
    const std::string folder = folder_ + "-damaged";
    Write(folder, damaged);
    return folder;
  }

  static StatusOr<uint64_t> Verify(const std::string& folder, uint32_t rank, uint32_t ranks,
                                   uint32_t stages) {
    ASSIGN_OR_RETURN(const ModelFiles files, OpenModel(folder, {.use_digest_list = true}));
    return VerifySlice(files, PlanOf(files, rank, ranks, stages), nullptr);
  }

  OpenEngineOptions Options(const std::string& model, const GroupOptions& group = {}) const {
    return {.model = model,
            .threads = 1,
            .max_sequences = 2,
            .kv_pool_bytes = 8 << 20,
            .compute = "f32",
            .device = "cpu",
            .group = group};
  }

  const std::string folder_ = testing::TempDir() + "/three-pieces";
  std::string weights_;
  Hash128 digest_;
};

TEST_F(ThreePiecesTest, ARankHashesThePiecesThatItUses) {
  EXPECT_EQ(*Verify(folder_, 0, 2, 2), 2 * kPiece);
  EXPECT_EQ(*Verify(folder_, 1, 2, 2), weights_.size() - kPiece);
  EXPECT_EQ(*Verify(folder_, 1, 2, 1), weights_.size()) << "rows of all layers";
  fs::remove(DigestListPath(folder_));
  EXPECT_EQ(*Verify(folder_, 0, 2, 2), weights_.size()) << "all was hashed when it was opened";
}

TEST_F(ThreePiecesTest, DamageIsFoundByTheRanksThatUseThePieceAndByNoOther) {
  const std::string first = Damaged("model.layers.0.mlp.down_proj.weight");
  EXPECT_EQ(Reason(Verify(first, 0, 2, 2).status()), "digest_differs");
  EXPECT_EQ(Verify(first, 1, 2, 2).status(), Status());
  EXPECT_EQ(Reason(Verify(first, 1, 2, 1).status()), "digest_differs");
  const std::string embedding = Damaged("model.embed_tokens.weight");
  for (const uint32_t rank : {0, 1}) {
    const Status status = Verify(embedding, rank, 2, 2).status();
    EXPECT_EQ(status.code(), StatusCode::kDataLoss);
    EXPECT_THAT(Message(status),
                HasSubstr("model.safetensors: its bytes from 0 up to 16777216 have the hash"));
  }
  EXPECT_EQ(Verify(Damaged("pad.1"), 0, 2, 2).status().code(), StatusCode::kDataLoss)
      << "beside what it uses";
}

TEST_F(ThreePiecesTest, AGroupWithListsAnswersAsOneProcessThatReadsAll) {
  SequenceSpec spec;
  spec.prompt = {7, 8, 9};
  spec.max_tokens = 24;
  spec.ignore_eos = true;
  const auto answer_of = [&spec](const OpenedEngine& opened) {
    const auto sink = std::make_shared<CollectingSink>();
    CHECK(opened.engine->Submit(spec, sink).ok(), "refused");
    return sink->Wait().ids();
  };
  auto alone = OpenEngine(Options(folder_));
  ASSERT_TRUE(alone.ok()) << alone.status();
  EXPECT_EQ(alone->hashed_bytes, weights_.size()) << "a process alone takes no list's word";
  EXPECT_EQ(alone->file_bytes, weights_.size());
  const auto want = answer_of(*alone);

  TestingGroup group(2, std::chrono::seconds(120), /*stages=*/2);
  uint64_t hashed = 0;
  std::thread other([&] {
    const auto follower = Follower::Open(Options(folder_, group.OptionsOf(1)));
    ASSERT_TRUE(follower.ok()) << follower.status();
    hashed = (*follower)->loaded().hashed_bytes;
    EXPECT_EQ((*follower)->Run(nullptr), Status());
  });
  {
    auto leader = OpenEngine(Options(folder_, group.OptionsOf(0)));
    ASSERT_TRUE(leader.ok()) << leader.status();
    EXPECT_EQ(leader->hashed_bytes, 2 * kPiece);
    EXPECT_EQ(leader->file_bytes, weights_.size());
    EXPECT_EQ(leader->files->digest, digest_);
    EXPECT_EQ(answer_of(*leader), want);
  }
  other.join();
  EXPECT_EQ(hashed, weights_.size() - kPiece);
  ASSERT_EQ(group.traits().size(), 2u);
  for (const RankTraits& traits : group.traits()) EXPECT_EQ(traits.model_digest, digest_.Hex());
}

TEST_F(ThreePiecesTest, ARankWhoseFilesAreDamagedDoesNotJoin) {
  TestingGroup group(2, std::chrono::seconds(120), /*stages=*/2);
  const std::string damaged = Damaged("model.norm.weight");
  const Status status = Follower::Open(Options(damaged, group.OptionsOf(1))).status();
  EXPECT_EQ(status.code(), StatusCode::kDataLoss);
  EXPECT_EQ(Reason(status), "digest_differs");
  EXPECT_THAT(Message(status), HasSubstr(Concat("`terrace digest --model ", damaged, "` makes it anew")));
  EXPECT_TRUE(group.traits().empty());
}

TEST_F(ThreePiecesTest, ARankOnADeviceVerifiesToo) {
  FakeDevice device;
  TestingGroup group(2, std::chrono::seconds(120));
  const std::string damaged = Damaged("model.norm.weight");
  for (const std::string& model : {folder_, damaged}) {
    OpenEngineOptions options = Options(model, group.OptionsOf(1));
    options.compute = "auto";
    options.device = "cuda";
    options.virtual_shards = 2;
    options.find_device = FakeDevice::Find;
    options.group.join = [](const RankTraits&) -> StatusOr<std::unique_ptr<RankGroup>> {
      return Unavailable("it joins");
    };
    const Status status = Follower::Open(options).status();
    EXPECT_EQ(status.code(), model == damaged ? StatusCode::kDataLoss : StatusCode::kUnavailable) << status;
  }
}

TEST_F(ThreePiecesTest, WhoVerifiesNothingCannotLoadWhatAListSaid) {
  const ModelFiles files = *OpenModel(folder_, {.use_digest_list = true});
  EXPECT_DEATH((void)LoadModel(files, nullptr, Options(folder_)), "unverified: .*weights.digests.json");
}

}  // namespace
}  // namespace terrace
