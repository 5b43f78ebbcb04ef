// The GPU machine with a kernel of the caller's, and its tables made once more: for tests and ablations; the library
// calls neither.
// In: what make_cuda_vm takes, and a kernel that outlives the machine. Out: a machine, or its Errors.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "variants.h"
#include "vm/vm.h"

namespace amk {

std::unique_ptr<Vm> make_cuda_vm_of(const KernelVariant& variant,
                                    std::shared_ptr<const std::vector<uint8_t>> image_bytes,
                                    const amk_vm_options_t& options, int32_t device);

// Task records with addresses, queues and streams, from the image to the device, as when the machine was made; waits.
// machine: of make_cuda_vm or make_cuda_vm_of, no step in flight. image_bytes: its own image, packed again.
void rebuild_tables(Vm& machine, const std::vector<uint8_t>& image_bytes);

}  // namespace amk
