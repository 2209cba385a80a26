// Prometheus metrics. AllMetrics() is the one table of names, types, help texts and labels: dashboards,
// alerts and docs/metrics.md are checked against it. A Registry belongs to one process's main and outlives
// its users; every call is thread-safe. Label values must be bounded by the configuration (tiers, outcomes),
// never by clients.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace terrace {

enum class MetricType : uint8_t { kCounter, kGauge, kHistogram };

struct MetricInfo {
  std::string_view name;  // terrace_<noun>_<unit>
  MetricType type;
  std::string_view help;
  std::vector<std::string_view> labels;
  std::vector<double> buckets;  // of a histogram, ascending
};

// All metrics of all processes.
std::span<const MetricInfo> AllMetrics();

class MetricRegistry {
 public:
  MetricRegistry();
  ~MetricRegistry();

  // `name` must be in the table with that type, and `labels` must be its label values in the table's order
  // (else CHECK). The handle stays valid for the registry's life; asking again gives the same one. Handles
  // are cheap to use: keep them, do not look them up on hot paths.
  class Counter {
   public:
    virtual ~Counter() = default;
    virtual void Add(double value = 1) = 0;
  };
  class Gauge {
   public:
    virtual ~Gauge() = default;
    virtual void Set(double value) = 0;
  };
  class Histogram {
   public:
    virtual ~Histogram() = default;
    virtual void Observe(double value) = 0;
  };
  Counter& GetCounter(std::string_view name, std::span<const std::string> labels = {});
  Gauge& GetGauge(std::string_view name, std::span<const std::string> labels = {});
  Histogram& GetHistogram(std::string_view name, std::span<const std::string> labels = {});

  // Text exposition format 0.0.4.
  std::string Render() const;
  static constexpr std::string_view kContentType = "text/plain; version=0.0.4; charset=utf-8";

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace terrace
