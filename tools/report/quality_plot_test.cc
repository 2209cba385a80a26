#include "tools/report/quality_plot.h"

#include <algorithm>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tools/report/report.h"
#include "tools/report/testing_rows.h"

namespace terrace {
namespace {

using testing::HasSubstr;

size_t Count(const std::string& text, const std::string& what) {
  size_t count = 0;
  for (size_t at = text.find(what); at != std::string::npos; at = text.find(what, at + 1)) ++count;
  return count;
}

std::string PlotOf(const std::vector<TechniqueRow>& rows) {
  return QualityPlot("a < b & c", rows, Frontier(rows));
}

TEST(QualityPlot, HasEachRowOnceAndTheFrontiersBand) {
  std::vector<TechniqueRow> rows = {RowOf("one", 1e-5, 60), RowOf("two", 2e-5, 80), RowOf("three", 3e-5, 70)};
  rows[2].is_cascade = true;
  const std::string svg = PlotOf(rows);
  EXPECT_EQ(Count(svg, "<circle"), 3u);
  for (const TechniqueRow& row : rows) EXPECT_EQ(Count(svg, ">" + row.name + "</text>"), 1u);
  const size_t band = svg.find("class=\"frontier\" points=\"");
  ASSERT_NE(band, std::string::npos);
  EXPECT_EQ(Count(svg.substr(band, svg.find("/>", band) - band), ","), 2u) << "the two that nothing beats";
  EXPECT_THAT(svg, HasSubstr("millionths of a USD"));
  EXPECT_THAT(svg, HasSubstr("<title>a &lt; b &amp; c</title>"));
  EXPECT_EQ(Count(svg, "nan"), 0u);
  EXPECT_EQ(Count(svg, "inf"), 0u);
}

TEST(QualityPlot, DrawsWhatIsAllAlike) {
  for (const double price : {0.0, 1e-9, 3.0, 1e6}) {
    for (const uint64_t right : {0, 100}) {
      const std::string svg = PlotOf({RowOf("a", price, right), RowOf("b", price, right)});
      EXPECT_EQ(Count(svg, "<circle"), 2u);
      EXPECT_EQ(Count(svg, "nan") + Count(svg, "inf"), 0u) << price << " " << right;
      EXPECT_LT(svg.size(), 20'000u) << "so many grid lines?";
    }
  }
}

TEST(QualityPlot, LabelsDoNotCoverOneAnother) {
  std::vector<TechniqueRow> rows;
  for (int i = 0; i < 12; ++i) rows.push_back(RowOf("row" + std::to_string(i), 1, 80));
  const std::string svg = PlotOf(rows);
  std::vector<double> heights;
  for (const TechniqueRow& row : rows) {
    const size_t end = svg.find(">" + row.name + "</text>");
    const size_t begin = svg.rfind(" y=\"", end) + 4;
    heights.push_back(std::stod(svg.substr(begin)));
  }
  std::ranges::sort(heights);
  for (size_t i = 1; i < heights.size(); ++i) EXPECT_GE(heights[i] - heights[i - 1], 12) << i;
}

}  // namespace
}  // namespace terrace
