// What a machine's processor is called. Pure but for ThisProcessor.
#pragma once

#include <istream>
#include <string>

namespace terrace {

// Of the text of /proc/cpuinfo: "AMD EPYC, family 26 model 2", as a virtual machine's name may say little;
// "unknown processor" where it has no name.
std::string ProcessorName(std::istream& cpuinfo);
std::string ThisProcessor();

}  // namespace terrace
