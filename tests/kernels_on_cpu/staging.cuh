// Stands in for the header of the same name: what is requested comes at once, yet is seen only by who awaits it, since
// a slot that was not awaited holds what was there before. What is sent leaves its slot as late as it may, when it is
// awaited: a slot that is written before that sends what is wrong, and what nobody awaits is never stored.
#pragma once

#include <cstdint>
#include <cstring>
#include <deque>
#include <vector>

#include "cuda_runtime.h"

namespace amk::task {

inline char* dynamic_shared() {
  alignas(128) static char memory[227 << 10];
  return memory;
}

namespace staged {
struct Copy {
  void* to;
  std::vector<char> bytes;
  void land() const { std::memcpy(to, bytes.data(), bytes.size()); }
};
inline Copy take(void* to, const void* from, size_t n) {
  const char* at = static_cast<const char*>(from);
  return {to, std::vector<char>(at, at + n)};
}
// Of each thread of the running block; a block ends with no group missing or its threads ignore what is.
struct Groups {
  unsigned block = ~0u;
  std::vector<Copy> open;
  std::deque<std::vector<Copy>> closed;
  struct Send {
    void* to;
    const void* from;
    size_t n;
  };
  std::vector<Send> sent;
};
inline Groups& mine() {
  static Groups all[1024];
  Groups& groups = all[threadIdx.x];
  if (groups.block != blockIdx.x) groups = {blockIdx.x, {}, {}, {}};
  return groups;
}
}  // namespace staged

inline void stage_vector(void* shared, const void* global) {
  staged::mine().open.push_back(staged::take(shared, global, 16));
}
inline void end_group() {
  staged::Groups& groups = staged::mine();
  groups.closed.push_back(std::move(groups.open));
  groups.open.clear();
}
template <int kNewer>
void await_groups() {
  auto& closed = staged::mine().closed;
  for (; closed.size() > kNewer; closed.pop_front()) {
    for (const staged::Copy& copy : closed.front()) copy.land();
  }
}

class Arrival {
 public:
  void init() { *this = {}; }
  void expect(int nbytes) {
    if (missing_ != 0) kernels_on_cpu::stop("a slot is requested again before it came");
    missing_ = nbytes;
  }
  void request(void* shared, const void* global, int nbytes, bool = true) {
    staged::take(shared, global, nbytes).land();
    missing_ -= nbytes;
    if (missing_ == 0) ++phase_;
  }
  void await(uint32_t parity) const {
    for (int i = 0; phase_ % 2 == parity; ++i) {
      if (i > 10000) kernels_on_cpu::stop("what is awaited was never requested");
      kernels_on_cpu::wait(kernels_on_cpu::State::kAwaiting);
    }
  }

 private:
  int missing_ = 0;
  uint32_t phase_ = 0;
};

inline void expose() {}
inline void send(void* global, const void* shared, int nbytes) {
  staged::mine().sent.push_back({global, shared, static_cast<size_t>(nbytes)});
}
inline void await_sent() {
  for (const auto& s : staged::mine().sent) std::memcpy(s.to, s.from, s.n);
  staged::mine().sent.clear();
}

}  // namespace amk::task
