// terrace.v1.Inference messages <-> the router's own values. Pure.
#pragma once

#include <span>

#include "proto/terrace/v1/inference.pb.h"
#include "router/dispatch/dispatcher.h"
#include "router/request/answer.h"
#include "router/request/request.h"

namespace terrace {

// Without request id and times, which the service sets.
RequestFields FieldsFromProto(const v1::GenerateRequest& request);
RequestFields FieldsFromProto(const v1::ScoreRequest& request);
RequestFields FieldsFromProto(const v1::TokenizeRequest& request);
RequestFields FieldsFromProto(const v1::DetokenizeRequest& request);

// Log-probabilities are set only `with_logprobs`; token ids always.
void PieceToProto(const AnswerPiece& piece, bool with_logprobs, v1::GenerateResponse& out);
// With log-probabilities.
void PromptTokensToProto(std::span<const AnswerToken> tokens, v1::GenerateResponse& out);
// The workers' addresses only with `shows_replicas`.
void SummaryToProto(const AnswerSummary& summary, bool shows_replicas, v1::GenerateFinished& out);
void ScoreToProto(const ScoreAnswer& answer, v1::ScoreResponse& out);
void TokenizedToProto(const TokenizedInput& input, v1::TokenizeResponse& out);
void ModelToProto(const ModelInfo& model, v1::Model& out);

}  // namespace terrace
