// BLAKE2b without a key (RFC 7693): the hash of an image and of weights.
// In: bytes, in any number of pieces. Out: a digest of 1 to 64 bytes. Holds no secret, so nothing here is wiped.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

namespace amk {

class Blake2b {
 public:
  explicit Blake2b(size_t digest_bytes);  // 1 .. 64
  void update(const void* data, size_t nbytes);
  void finish(uint8_t* digest);  // digest_bytes bytes; the object is spent

 private:
  void compress(const uint8_t* block, bool is_last);

  uint64_t state_[8];
  uint64_t total_bytes_ = 0;  // 2^64 bytes are never reached, so the counter's high word stays zero
  size_t digest_bytes_, pending_ = 0;
  uint8_t block_[128];
};

std::array<uint8_t, 32> blake2b_256(const void* data, size_t nbytes);
std::string to_hex(const uint8_t* bytes, size_t nbytes);  // lower case

}  // namespace amk
