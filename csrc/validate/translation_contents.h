// What a buffer holds, element by element, as values of the decoder: ranges in order, neighbours joined.
// In: writes of ranges. Out: what stands in a range. Knows nothing of the decoder.
#pragma once

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <map>

#include "validate/translation_model.h"

namespace amk {

class Contents {
 public:
  // Elements [first, end) hold `value` from its element `at` on.
  struct Piece {
    int64_t first = 0, end = 0;
    Value value;
    int64_t at = 0;
  };

  void write(int64_t first, int64_t end, Value value, int64_t at) {
    clear(first, end);
    auto next = pieces_.lower_bound(first);
    if (next != pieces_.end() && next->first == end && next->second.value == value &&
        next->second.at == at + (end - first)) {
      end = next->second.end;
      next = pieces_.erase(next);
    }
    if (next != pieces_.begin()) {
      const auto last = std::prev(next);
      Held& held = last->second;
      if (held.end == first && held.value == value && held.at + (first - last->first) == at) {
        held.end = end;
        return;
      }
    }
    pieces_.emplace_hint(next, first, Held{end, value, at});
  }

  // The piece that holds `element`, cut to [element, end); an unset value up to the next piece where nothing stands.
  Piece at(int64_t element, int64_t end) const {
    auto next = pieces_.upper_bound(element);
    if (next != pieces_.begin()) {
      const auto it = std::prev(next);
      if (it->second.end > element)
        return {element, std::min(end, it->second.end), it->second.value, it->second.at + (element - it->first)};
    }
    return {element, next == pieces_.end() ? end : std::min(end, next->first), Value{}, 0};
  }

 private:
  struct Held {
    int64_t end;
    Value value;
    int64_t at;
  };

  // Takes [first, end) out of every piece.
  void clear(int64_t first, int64_t end) {
    auto it = pieces_.upper_bound(first);
    if (it != pieces_.begin()) --it;
    while (it != pieces_.end() && it->first < end) {
      const int64_t begin = it->first;
      const Held held = it->second;
      if (held.end <= first) {
        ++it;
        continue;
      }
      if (begin < first) {
        it->second.end = first;
        ++it;
      } else {
        it = pieces_.erase(it);
      }
      if (held.end > end) {
        pieces_.emplace_hint(it, end, Held{held.end, held.value, held.at + (end - begin)});
        return;
      }
    }
  }

  std::map<int64_t, Held> pieces_;  // by first element
};

}  // namespace amk
