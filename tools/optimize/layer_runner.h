// Runs a model layer by layer over all calibration tokens at once, in f32, and shows what goes into each
// linear before the linear is applied, so that it can be changed first. What Transformer computes with
// ComputeType::kF32, to rounding; the same bits for any number of threads. One thread at a time.
//
// Memory beside the layer's weights (twice: as they are and packed): 4 bytes * tokens * (hidden + the wider
// of heads * head_dim and ffn).
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/parallel_for.h"
#include "base/status.h"
#include "kernels/op_table.h"
#include "text/tokenizer.h"
#include "tools/optimize/float_layer.h"
#include "worker/kv/kv_pool.h"

namespace terrace {

// What looks at a layer while it runs. An error of it ends the run and is returned.
class LayerObserver {
 public:
  virtual ~LayerObserver() = default;
  // The residual stream, [tokens, hidden], whose rows are normalized for the linears of `input`, kAttention
  // or kFfn.
  virtual void OnStream(LinearInput, std::span<const float>) {}
  // Rows of what goes into the linears of `input`: x is [tokens, inputs]; all calibration tokens in order, in
  // pieces that depend on the sequences alone.
  virtual Status OnInputs(LinearInput input, std::span<const float> x, size_t tokens) = 0;
  // That were all. The linears of `input` are applied after this returns, and may be changed here.
  virtual Status OnReady(LinearInput input) = 0;
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

  // `hidden`, [tokens, hidden], is what goes into the layer, and then what comes out of it. The layer may
  // have fewer heads than the model, and any feed-forward width: its matrices say. A null observer sees
  // nothing. RESOURCE_EXHAUSTED for the memory of packed weights.
  Status Run(const FloatLayer& layer, std::vector<float>& hidden, LayerObserver* observer);

 private:
  LayerRunner(const ModelConfig& config, const std::vector<std::vector<TokenId>>& sequences,
              const OpTable& ops, ThreadPool& pool);
  // The rows of [begin, begin + count) of `hidden`, normalized.
  std::span<const float> Normalized(const std::vector<float>& hidden, const std::vector<float>& norm,
                                    size_t begin, size_t count);
  Status Observe(LinearInput input, size_t width, LayerObserver* observer);  // what is in inner_
  Status ObserveNormalized(LinearInput input, const std::vector<float>& hidden,
                           const std::vector<float>& norm, LayerObserver* observer);
  Status Attend(const FloatLayer& layer, const std::vector<float>& hidden);         // into inner_
  Status Gate(const FloatLayer& layer, const std::vector<float>& hidden);           // into inner_
  Status AddProducts(const FloatMatrix& matrix, std::vector<float>& hidden) const;  // of inner_

  const ModelConfig config_;
  const std::vector<std::vector<TokenId>>& sequences_;
  const OpTable& ops_;
  ThreadPool& pool_;
  size_t tokens_ = 0;
  std::unique_ptr<KvPool> kv_;                           // of one layer and the longest sequence
  std::vector<BlockId> blocks_;                          // all of them
  std::vector<uint32_t> positions_;                      // 0 to the longest
  std::vector<float> cos_, sin_;                         // of them
  std::vector<float> normalized_, query_, key_, value_;  // of a piece or a sequence
  std::vector<float> inner_;                             // [tokens, heads * head_dim] or [tokens, ffn]
};

}  // namespace terrace
