#include "tools/report/quality_plot.h"

#include <algorithm>
#include <cmath>

#include "base/format.h"
#include "base/status.h"

namespace terrace {
namespace {

constexpr double kWidth = 880, kHeight = 560, kLeft = 70, kRight = 130, kTop = 40, kBottom = 60;
constexpr double kCharacter = 6.2, kLine = 13;  // of a label, pixels
constexpr const char *kModelColour = "#3b82d6", *kCascadeColour = "#d9772b";
constexpr char kStyle[] = R"(
  text { font: 13px sans-serif; fill: #555 } .title { font-size: 15px; font-weight: bold } .small { font-size: 11px }
  .axis { stroke: #888; stroke-width: 1 } .grid { stroke: #888; stroke-width: 0.5; stroke-opacity: 0.35 }
  .frontier { stroke: #888; stroke-width: 6; stroke-opacity: 0.25; fill: none }
  @media (prefers-color-scheme: dark) { text { fill: #bbb } }
)";

std::string Escaped(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if (c == '&') {
      out += "&amp;";
    } else if (c == '<') {
      out += "&lt;";
    } else if (c == '>') {
      out += "&gt;";
    } else {
      out += c;
    }
  }
  return out;
}

// 1, 2 or 5 times a power of ten: about `count` of them in `range`, which is above 0.
double TickStep(double range, double count) {
  const double power = std::pow(10, std::floor(std::log10(range / count)));
  for (const double step : {1.0, 2.0, 5.0}) {
    if (range / (step * power) <= count) return step * power;
  }
  return 10 * power;
}

int DecimalsOf(double step) { return std::max(0, static_cast<int>(std::ceil(-std::log10(step) - 1e-9))); }

struct Box {
  double left, top, right, bottom;
  bool Meets(const Box& other) const {
    return left < other.right && other.left < right && top < other.bottom && other.top < bottom;
  }
};

class Plot {
 public:
  Plot(const std::string& title, std::span<const TechniqueRow> rows, std::span<const size_t> frontier)
      : rows_(rows), frontier_(frontier) {
    CHECK(!rows.empty());
    double most = 0, low = 1, high = 0;
    for (const TechniqueRow& row : rows) {
      const double price = row.price.usd_per_thousand_answers;
      CHECK(std::isfinite(price) && price >= 0, row.name);
      most = std::max(most, price);
      low = std::min(low, row.accuracy().low);
      high = std::max(high, row.accuracy().high);
    }
    unit_ = most >= 0.1 ? 1 : most >= 1e-4 ? 1e3 : 1e6;
    high_x_ = most > 0 ? most * unit_ * 1.05 : 1;
    low_y_ = std::floor(low * 20) / 20;
    high_y_ = std::min(1.0, std::ceil(high * 20) / 20);
    if (high_y_ <= low_y_) low_y_ = high_y_ - 0.05;
    out_ = Concat("<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 ", FormatFixed(kWidth, 0), " ",
                  FormatFixed(kHeight, 0), "\" role=\"img\">\n<title>", Escaped(title), "</title>\n<style>",
                  kStyle, "</style>\n");
    Text(kLeft, 22, title, "start", "title");
  }

  std::string Draw() {
    Axes();
    Band();
    for (const TechniqueRow& row : rows_) Mark(row);
    for (const TechniqueRow& row : rows_) Label(row);
    return out_ + "</svg>\n";
  }

 private:
  double X(double price) const { return kLeft + price * unit_ / high_x_ * (kWidth - kLeft - kRight); }
  double Y(double quality) const {
    return kHeight - kBottom - (quality - low_y_) / (high_y_ - low_y_) * (kHeight - kTop - kBottom);
  }
  static const char* ColourOf(const TechniqueRow& row) {
    return row.is_cascade ? kCascadeColour : kModelColour;
  }

  void Text(double x, double y, const std::string& words, const char* anchor, const char* kind = "",
            const std::string& more = "") {
    out_ += Concat("<text x=\"", FormatFixed(x, 1), "\" y=\"", FormatFixed(y, 1), "\" text-anchor=\"", anchor,
                   "\" class=\"", kind, "\"", more, ">", Escaped(words), "</text>\n");
  }

  void Line(double x1, double y1, double x2, double y2, const std::string& look) {
    out_ += Concat("<line x1=\"", FormatFixed(x1, 1), "\" y1=\"", FormatFixed(y1, 1), "\" x2=\"",
                   FormatFixed(x2, 1), "\" y2=\"", FormatFixed(y2, 1), "\" ", look, "/>\n");
  }

  void Axes() {
    const double right = kWidth - kRight, bottom = kHeight - kBottom;
    const double x_step = TickStep(high_x_, 10), y_step = TickStep(high_y_ - low_y_, 10);
    for (int i = 0; i * x_step <= high_x_; ++i) {
      const double x = X(i * x_step / unit_);
      Line(x, bottom, x, kTop, "class=\"grid\"");
      Text(x, bottom + 18, FormatFixed(i * x_step, DecimalsOf(x_step)), "middle");
    }
    for (int i = static_cast<int>(std::ceil(low_y_ / y_step - 1e-9)); i * y_step <= high_y_ + 1e-9; ++i) {
      const double y = Y(i * y_step);
      Line(kLeft, y, right, y, "class=\"grid\"");
      Text(kLeft - 8, y + 4, FormatFixed(i * y_step, std::max(2, DecimalsOf(y_step))), "end");
    }
    Line(kLeft, bottom, kLeft, kTop, "class=\"axis\"");
    Line(kLeft, bottom, right, bottom, "class=\"axis\"");
    const char* const unit = unit_ == 1     ? "USD"
                             : unit_ == 1e3 ? "thousandths of a USD"
                                            : "millionths of a USD";
    Text((kLeft + right) / 2, kHeight - 16, Concat("price of 1,000 answers, ", unit), "middle");
    const std::string middle = FormatFixed((kTop + bottom) / 2, 1);
    Text(18, (kTop + bottom) / 2, "accuracy, with its 95% interval", "middle", "",
         Concat(" transform=\"rotate(-90 18 ", middle, ")\""));
  }

  void Band() {
    std::string points;
    for (const size_t i : frontier_) {
      points += Concat(points.empty() ? "" : " ", FormatFixed(X(rows_[i].price.usd_per_thousand_answers), 1),
                       ",", FormatFixed(Y(rows_[i].accuracy().value), 1));
    }
    out_ += Concat("<polyline class=\"frontier\" points=\"", points, "\"/>\n");
  }

  void Mark(const TechniqueRow& row) {
    const EstimatedRate accuracy = row.accuracy();
    const double x = X(row.price.usd_per_thousand_answers), y = Y(accuracy.value);
    Line(x, Y(accuracy.low), x, Y(accuracy.high),
         Concat("stroke=\"", ColourOf(row), "\" stroke-opacity=\"0.35\""));
    out_ += Concat("<circle cx=\"", FormatFixed(x, 1), "\" cy=\"", FormatFixed(y, 1), "\" r=\"4\" fill=\"",
                   ColourOf(row), "\"/>\n");
    taken_.push_back({x - 4, y - 4, x + 4, y + 4});
  }

  // Beside its point, as near to its height as those before it leave room.
  void Label(const TechniqueRow& row) {
    const double x = X(row.price.usd_per_thousand_answers) + 7, y = Y(row.accuracy().value);
    const double width = kCharacter * static_cast<double>(row.name.size());
    Box box = {};
    for (size_t i = 0; i <= 4 * rows_.size(); ++i) {
      const double away = static_cast<double>((i + 1) / 2) * kLine / 2 * (i % 2 == 0 ? 1 : -1);
      box = {x, y + away - kLine / 2, x + width, y + away + kLine / 2};
      if (std::ranges::none_of(taken_, [&](const Box& other) { return box.Meets(other); })) break;
    }
    taken_.push_back(box);
    Text(x, box.bottom - 2.5, row.name, "start", "small");
  }

  const std::span<const TechniqueRow> rows_;
  const std::span<const size_t> frontier_;
  double unit_ = 1;    // of prices: so many are a dollar
  double high_x_ = 1;  // of the axis, in that unit
  double low_y_ = 0, high_y_ = 1;
  std::vector<Box> taken_;  // by marks and labels
  std::string out_;
};

}  // namespace

std::string QualityPlot(const std::string& title, std::span<const TechniqueRow> rows,
                        std::span<const size_t> frontier) {
  return Plot(title, rows, frontier).Draw();
}

}  // namespace terrace
