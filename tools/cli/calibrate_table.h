// What came of a calibration, for people. Pure.
#pragma once

#include <string>

#include "tools/calibrate/calibrator.h"

namespace terrace {

// How good the scorers are, and how often what they called so likely was so.
std::string FormatScorers(const CalibratorResult& result);

// Every candidate that was tested; the chosen one is marked.
std::string FormatCandidates(const CalibratorResult& result);

// `tally` of the calibration on `records`, beside thresholds on the mean log-probability, each tier alone
// and the oracle.
std::string FormatReport(const Tally& tally, const Records& records);

}  // namespace terrace
