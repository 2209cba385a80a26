// What was measured at one level. Bounded memory, however many requests. Used by one thread.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "tools/bench/bench_settings.h"
#include "tools/bench/latency_histogram.h"
#include "tools/bench/request_recorder.h"
#include "tools/bench/speculation_figures.h"

namespace terrace {

// An answer that ended well with fewer tokens than it was asked for: it makes a server look fast.
struct ShortAnswer {
  uint64_t request = 0;  // index
  uint32_t wanted_tokens = 0, tokens = 0;
};

struct LevelResult {
  static constexpr size_t kShortAnswerExamples = 20;

  struct Failure {
    uint64_t count = 0;
    std::string example;  // the first message
  };

  LoadShape shape;
  uint64_t planned = 0;    // sent or dropped
  uint64_t ok = 0;         // complete answers
  uint64_t cancelled = 0;  // by us
  uint64_t failed = 0;
  uint64_t dropped = 0;                     // never sent: max_in_flight were under way
  uint64_t unfinished = 0;                  // given up after an interruption
  std::map<std::string, Failure> failures;  // by reason
  bool is_interrupted = false;
  double seconds = 0;  // from the start of the level to its last answer

  uint64_t prompt_tokens = 0;  // of requests whose answer began
  uint64_t output_tokens = 0;  // that arrived, those of answers that were not completed too
  // Of the complete answers.
  uint64_t reported_prompt_tokens = 0, cached_tokens = 0;  // as the target counted them
  uint32_t min_output_tokens = 0, max_output_tokens = 0;
  uint64_t short_answers = 0;
  std::vector<ShortAnswer> short_answer_examples;
  uint64_t cut_requests = 0;  // drawn longer than the context

  // first_token and inter_token: of every token that arrived. end_to_end and queue: of complete answers.
  LatencyHistogram first_token, inter_token, end_to_end, queue;
  LatencyHistogram send_lag;  // how late this client sent
  SpeculationFigures speculation;

  void Add(const RequestRecord& record);

  double PerSecond(uint64_t count) const { return seconds > 0 ? static_cast<double>(count) / seconds : 0; }
  double output_tokens_per_second() const { return PerSecond(output_tokens); }
  // Of the prompt tokens the target counted; 0 when it counted none.
  double cached_share() const {
    return reported_prompt_tokens == 0
               ? 0
               : static_cast<double>(cached_tokens) / static_cast<double>(reported_prompt_tokens);
  }
};

// What failures are counted by: the reason of the error, or its code in lower case.
std::string FailureReason(const Status& status);

}  // namespace terrace
