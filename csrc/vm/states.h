// What a failed step leaves behind: STATE buffers of which some tasks wrote their part and others did not. Both
// machines keep this book the same way. In: which steps failed, which states were written or reset since. Out: Error
// POISONED where a state may not be used. It never touches the bytes.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "base/error.h"
#include "pack/layout.h"

namespace amk {

class States {
 public:
  explicit States(const ImageView& image) : image_(image), poisoned_(image.buffers.size(), false) {
    for (size_t b = 0; b < image.bindings.size(); ++b)
      if (image.bindings[b].kind == AMK_KIND_STATE) buffers_.push_back(static_cast<int32_t>(b));
  }

  const std::vector<int32_t>& buffers() const { return buffers_; }

  void poison(const std::string& reason) {
    if (buffers_.empty()) return;
    for (int32_t b : buffers_) poisoned_[b] = true;
    reason_ = reason;
  }
  void reset() { std::fill(poisoned_.begin(), poisoned_.end(), false); }
  // A caller wrote nbytes of a buffer; only all of them make it good.
  void written(int64_t buffer, uint64_t nbytes) {
    if (nbytes == static_cast<uint64_t>(image_.places[buffer].nbytes)) poisoned_[buffer] = false;
  }

  void require_readable(int64_t buffer) const {
    AMK_CHECK(!poisoned_[buffer], AMK_ERR_POISONED,
              "read %s: an earlier step failed and left it half written; write all of it or reset the state (%s)",
              name_of(buffer).c_str(), reason_.c_str());
  }
  void require_good() const {
    const auto bad = std::find_if(buffers_.begin(), buffers_.end(), [&](int32_t b) { return poisoned_[b]; });
    AMK_CHECK(bad == buffers_.end(), AMK_ERR_POISONED,
              "an earlier step failed and left %s half written; write all of each state or reset the state (%s)",
              name_of(*bad).c_str(), reason_.c_str());
  }

 private:
  std::string name_of(int64_t buffer) const { return std::string(image_.buffer_name.at(buffer)); }

  const ImageView image_;
  std::vector<int32_t> buffers_;
  std::vector<bool> poisoned_;  // per buffer
  std::string reason_;          // of the last failure
};

}  // namespace amk
