// How fast a device only reads, measured now, by several ways of reading: the one place where that is counted.
#pragma once

#include <vector>

namespace amk {

struct ReadRate {
  const char* way;
  double gb_per_s;  // 1e9 bytes per second, the median of its passes
};

// Every way, fastest first. OUT_OF_MEMORY when too little is free to tell memory from cache. Leaves nothing allocated.
std::vector<ReadRate> measure_read_rates(int index);

}  // namespace amk
