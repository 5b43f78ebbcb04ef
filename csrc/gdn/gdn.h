// amk_gdn_decode behind the C border. In: its operands. Out: the new states and out, computed here for host memory, or
// enqueued on a stream of a device (cuda/gdn_decode.cu, or cuda/device_absent.cpp in a build without CUDA).
// Nothing is touched before every argument was judged.
#pragma once

#include "amk.h"

namespace amk {

constexpr int kGdnHeadDim = 128;
constexpr float kGdnNormEps = 1e-6f;  // of the l2-norm

// INVALID_ARGUMENT or UNSUPPORTED, naming the operand; returns when the call can be computed.
void check_gdn_decode(const amk_gdn_decode_t& args);

// Both behind the check.
void gdn_decode_on_host(const amk_gdn_decode_t& args);
void gdn_decode_on_device(const amk_gdn_decode_t& args, void* stream);

}  // namespace amk
