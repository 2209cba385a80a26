// Between the messages of worker.proto and sampling.proto and the values of worker/engine. Pure.
#pragma once

#include <chrono>

#include "base/clock.h"
#include "base/status.h"
#include "proto/terrace/v1/worker.pb.h"
#include "worker/engine/sequence.h"
#include "worker/engine/speculation_stats.h"

namespace terrace {

// INVALID_ARGUMENT, reason invalid_value, when a seed is needed and absent; every other check is
// Scheduler::Validate's.
StatusOr<SamplingParams> ToSamplingParams(const v1::SamplingParams& in);
// The same. A draft_record that cannot be used is left out.
StatusOr<SequenceSpec> ToSequenceSpec(const v1::ExecuteRequest& request);

// A call's deadline on the monotonic clock; none when the call has none.
std::optional<MonoTime> ToMonoDeadline(std::chrono::system_clock::time_point deadline,
                                       std::chrono::system_clock::time_point wall_now, MonoTime now);

v1::FinishReason ToProto(FinishReason reason);
void ToProto(const SamplingParams& params, v1::SamplingParams& out);
void ToProto(const SampledToken& token, v1::GeneratedToken& out);
void ToProto(const SpeculationStats& stats, v1::SpeculationTotals& out);
void ToProto(const DraftRecord& record, v1::DraftRecord& out);
void ToProto(const SequenceResult& result, v1::ExecuteFinished& out);

}  // namespace terrace
