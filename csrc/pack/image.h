// Image: the certificate that travels. Only a ValidProgram packs; bytes from outside become an Image only after the
// program in them was validated again and packed to the same bytes.
// In: a ValidProgram, or untrusted bytes. Out: immutable bytes. Never weight bytes, addresses or files.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "pack/layout.h"
#include "program/program.h"
#include "validate/validate.h"

namespace amk {

class Image {
 public:
  const std::vector<uint8_t>& bytes() const { return *bytes_; }
  std::shared_ptr<const std::vector<uint8_t>> shared_bytes() const { return bytes_; }
  ImageView view() const { return view_; }
  std::string hash_hex() const;  // 64 lower-case digits
  Program program() const;       // the tables that were packed, equal entry by entry

  // INPUT, MISMATCH or REJECTED (the first rejection's text) as amk_image_from_bytes says.
  static Image open(const uint8_t* bytes, size_t nbytes);

 private:
  friend Image pack(const ValidProgram& valid);
  Image(std::shared_ptr<const std::vector<uint8_t>> bytes, const ImageView& view)
      : bytes_(std::move(bytes)), view_(view) {}

  std::shared_ptr<const std::vector<uint8_t>> bytes_;
  ImageView view_;
};

Image pack(const ValidProgram& valid);

}  // namespace amk
