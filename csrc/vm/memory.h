// Memory: every byte the reference machine computes on, laid out as the image says.
// In: an image, then borrowed weights by name. Out: the address of each buffer. It owns the arena, cache, state, inputs
// and outputs, zeroed and not touched before use, so that a large cache costs nothing until it fills. Weights and
// caches may be those of another memory instead.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "pack/layout.h"

namespace amk {

constexpr int64_t kBandBytes = 64;  // canary before and after each owned region
constexpr uint8_t kBandByte = 0xA5;
constexpr uint8_t kPoisonByte = 0xFF;  // NaN in every float type, -1 in every integer

// A range of bytes and whose it is.
struct ByteRange {
  uint8_t* data;
  int64_t nbytes;
  std::string name;
};

// First byte of a band that is not kBandByte any more, or -1.
int64_t first_damage(const uint8_t* band, int64_t nbytes);

class Memory {
 public:
  // OUT_OF_MEMORY, naming the region and its bytes. `share`: whose weights, constants and caches to use (amk.h).
  explicit Memory(const ImageView& image, const Memory* share = nullptr);

  // INVALID_ARGUMENT as Vm::bind says.
  void bind(const std::string& name, const void* ptr, uint64_t nbytes);
  // Names of the storages nobody has bound yet, at most a handful spelled out; "" when there is none.
  std::string unbound() const;

  uint8_t* at(int64_t buffer) const;
  int64_t nbytes(int64_t buffer) const { return image_.places[buffer].nbytes; }
  // The buffer of this name, or -1.
  int64_t find(std::string_view name) const;

  // What a step may not rely on, made NaN: arena, activations, outputs.
  void poison() const;
  // INTERNAL, naming the region, when a byte outside the regions was written.
  void check_bands() const;

 private:
  uint8_t* own(const std::string& name, int64_t nbytes);
  void map_arena();
  // Where `share` keeps storage i of this image.
  uint8_t* shared(size_t i, const Memory& share) const;

  ImageView image_;
  bool is_sharing_;
  std::vector<std::shared_ptr<uint8_t>> owned_;  // and what a memory that is shared owned then
  std::vector<uint8_t*> base_;                   // per storage; nullptr until bound
  std::vector<ByteRange> bands_, volatile_;
};

}  // namespace amk
