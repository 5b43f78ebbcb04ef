// The C border of the harness: an exception becomes a status and a sentence.
// In: the body of a call. Out: AMK_OK, or the amk_status of what it threw. Needs no CUDA.
#pragma once

#include <cstdint>
#include <new>

#include "base/error.h"

namespace amk::task {

template <class Body>
int32_t guarded(Body&& body) noexcept {
  try {
    body();
    return AMK_OK;
  } catch (const Error& e) {
    set_last_error(e.what());
    return e.status();
  } catch (const std::bad_alloc&) {
    set_last_error("out of memory");
    return AMK_ERR_OUT_OF_MEMORY;
  } catch (const std::exception& e) {
    set_last_error(e.what());
    return AMK_ERR_INTERNAL;
  }
}

inline void require(bool ok, const char* what) { AMK_CHECK(ok, AMK_ERR_INVALID_ARGUMENT, "harness: %s", what); }

}  // namespace amk::task
