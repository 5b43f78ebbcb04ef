// Host memory passed over by all cores.
// In: a size, what to do with a piece of it. Out: done, all of it, when the call returns. Needs no CUDA.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <system_error>
#include <thread>
#include <vector>

namespace amk::task {

constexpr int64_t kPiece = 1 << 18;  // elements, or bytes, that a thread takes at a time
constexpr int64_t kMostThreads = 64;

// work(thread, begin, end) for every piece of [0, size). `work` must not throw. Where a thread cannot be started, those
// that could do its share.
template <class Work>
void each_piece(int64_t size, Work&& work) {
  const int64_t n_pieces = (size + kPiece - 1) / kPiece;
  const int64_t n_threads = std::clamp<int64_t>(std::thread::hardware_concurrency(), 1,
                                                std::min(kMostThreads, std::max<int64_t>(n_pieces / 2, 1)));
  std::atomic<int64_t> next{0};
  auto take = [&](int64_t thread) {
    for (int64_t piece = next++; piece < n_pieces; piece = next++)
      work(thread, piece * kPiece, std::min((piece + 1) * kPiece, size));
  };
  std::vector<std::thread> others;
  others.reserve(static_cast<size_t>(n_threads - 1));
  try {
    for (int64_t i = 1; i < n_threads; ++i) others.emplace_back(take, i);
  } catch (const std::system_error&) {
  }
  take(0);
  for (std::thread& other : others) other.join();
}

}  // namespace amk::task
