// Runs a model layer by layer over all calibration tokens, in f32, and shows what goes into each linear
// before the linear is applied, so that it can be changed first. What Transformer computes with
// ComputeType::kF32, to rounding; the same bits for any number of threads. One thread at a time.
//
// Tokens pass in pieces of kPieceTokens. What goes into the last linear of the attention and of the
// feed-forward part is not kept: where it has to be seen in full before the linear is applied, it is computed
// a second time.
//
// Of a mixture of experts (docs/adr/0016-experts.md) each token goes to those that the router chooses of what
// comes into the feed-forward part, which the changed linears before it have made. Experts are shown one
// after the other, each with its own tokens, which are read again; then the pieces pass all of them at once.
//
// Memory beside the layer's weights (packed, at most all of them once more): 4 bytes * kPieceTokens *
// (2 * hidden + the wider of 2 * heads * head_dim + 2 * kv_heads * head_dim and ffn), and the longest
// sequence's keys and values, 8 bytes * tokens * kv_heads * head_dim. With experts 4 bytes * kPieceTokens *
// (2 * hidden + ffn) more for each that a token takes, and 12 bytes for each that each of all tokens takes.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/parallel_for.h"
#include "base/status.h"
#include "kernels/op_table.h"
#include "kernels/rope/rope_frequencies.h"
#include "text/tokenizer.h"
#include "tools/optimize/float_layer.h"
#include "tools/optimize/hidden_states.h"
#include "worker/kv/kv_pool.h"

namespace terrace {

class PackedMatrices;

// What looks at a layer while it runs. An error of it ends the run and is returned.
class LayerObserver {
 public:
  virtual ~LayerObserver() = default;
  // Whether OnReady may change linears. If not, those of attention's output and down are applied to each
  // piece as it is shown, before OnReady, and nothing is computed twice but what experts make.
  virtual bool changes_linears() const { return true; }
  // Rows of the residual stream, [tokens, hidden], that are normalized for the linears of `input`, kAttention
  // or kFfn; before OnInputs shows them, which it does to each of a token's experts.
  virtual void OnStream(LinearInput, std::span<const float>) {}
  // Rows of what goes into the linears of `input`: x is [tokens, inputs]; all calibration tokens, or all that
  // go to the expert, in order, in pieces of kPieceTokens.
  virtual Status OnInputs(LayerInput input, std::span<const float> x, size_t tokens) = 0;
  // That were all; of an expert there may have been none. The linears of `input` may be changed here, if
  // changes_linears(), and no others; they are applied after this returns.
  virtual Status OnReady(LayerInput input) = 0;
};

class LayerRunner {
 public:
  // `sequences`, none empty and with tokens of the vocabulary, `ops` and `pool` outlive the object. `config`
  // is the model's; its pairing is that of the layers that will be run. RESOURCE_EXHAUSTED for the memory of
  // the longest sequence's keys and values.
  static StatusOr<std::unique_ptr<LayerRunner>> Create(const ModelConfig& config,
                                                       const std::vector<std::vector<TokenId>>& sequences,
                                                       const OpTable& ops, ThreadPool& pool);

  size_t tokens() const { return tokens_; }  // of all sequences

  // `from` goes into the layer and is not changed, unless it is `to`, which becomes what comes out. The layer
  // may have fewer heads than the model, and any feed-forward width: its matrices say. A null observer sees
  // nothing. RESOURCE_EXHAUSTED for the memory of packed weights, the errors of HiddenStates.
  Status Run(const FloatLayer& layer, const HiddenStates& from, HiddenStates& to, LayerObserver* observer);
  // Shows what Run does, but what comes out is not wanted. Takes the space of `from` once more on the disk.
  Status Show(const FloatLayer& layer, const HiddenStates& from, LayerObserver& observer);

 private:
  // The attention of a layer or its feed-forward part, with what goes into its last linear.
  struct Half {
    LinearInput first, last;
    const std::vector<float>& norm;
    const FloatMatrix& last_linear;
    const std::vector<float>* post_norm;  // or null
  };

  struct Angles {
    std::vector<float> cos, sin;  // [positions, head_dim / 2]
  };

  LayerRunner(const ModelConfig& config, const std::vector<std::vector<TokenId>>& sequences,
              const OpTable& ops, ThreadPool& pool);
  static Half AttentionOf(const FloatLayer& layer);
  static Half FfnOf(const FloatLayer& layer);
  void SetAngles(const RopeFrequencies& frequencies, Angles& out) const;
  Status RunHalf(const FloatLayer& layer, const Half& half, const HiddenStates& from, HiddenStates* to,
                 LayerObserver* observer);
  Status ShowNormalized(const Half& half, const HiddenStates& from, LayerObserver& observer);
  Status Pass(const FloatLayer& layer, const Half& half, const HiddenStates& from, HiddenStates* to,
              LayerObserver* observer);
  Status RunFfn(const FloatLayer& layer, const HiddenStates& from, HiddenStates* to, LayerObserver* observer);
  Status ShowExperts(const FloatLayer& layer, const HiddenStates& from, LayerObserver& observer);
  Status ShowExpert(const FloatLayer& layer, uint32_t expert, std::span<const uint32_t> pairs,
                    const HiddenStates& from, LayerObserver& observer);
  Status PassExperts(const FloatLayer& layer, const HiddenStates& from, HiddenStates& to);
  void Route(const GemmWeights& router);  // normalized_, into chosen_ and expert_weights_
  template <typename Put>
  void AddSublayer(const std::vector<float>* post_norm, const Put& put);
  Status ReadPiece(const HiddenStates& from, size_t begin);                             // into stream_
  Status ReadRows(const HiddenStates& from, std::span<const uint32_t> pairs);           // into stream_
  void Normalize(const std::vector<float>& norm);                                       // stream_
  void Attend(const FloatLayer& layer, const PackedMatrices& weights, size_t begin);    // into inner_
  void AttendPart(const FloatLayer& layer, size_t row, size_t position, size_t count);  // of a sequence
  void Gate(const FeedForward& ffn, const PackedMatrices& weights);                     // into inner_

  const ModelConfig config_;
  const std::vector<std::vector<TokenId>>& sequences_;
  const OpTable& ops_;
  ThreadPool& pool_;
  size_t tokens_ = 0;
  std::vector<size_t> starts_;          // the first token of each sequence
  std::unique_ptr<KvPool> kv_;          // of one layer and the longest sequence
  std::vector<BlockId> blocks_;         // all of them
  std::vector<const BlockId*> tables_;  // of each token of a piece
  std::vector<uint32_t> positions_;     // 0 to the longest
  Angles angles_, window_angles_;       // of them; of layers with a window, where these have their own
  // Of the piece that passes:
  size_t count_ = 0;  // tokens
  std::vector<float> stream_, normalized_, query_, key_, value_, sublayer_;
  std::vector<float> inner_;  // [tokens, heads * head_dim] or [tokens, ffn]; of experts [pairs, ffn]
  std::vector<float> router_logits_, expert_weights_, expert_rows_, gathered_;
  std::vector<uint32_t> chosen_;  // [tokens, experts_per_token]
};

}  // namespace terrace
