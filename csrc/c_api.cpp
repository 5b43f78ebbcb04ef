// The C border: each entry checks its pointers, calls one C++ function and turns every exception into a status.
// No logic lives here.
#include <algorithm>
#include <cstring>
#include <memory>
#include <new>

#include "amk.h"
#include "base/dtype.h"
#include "base/error.h"
#include "base/model.h"
#include "base/target.h"
#include "cost/cost.h"
#include "gdn/gdn.h"
#include "graph/decoder.h"
#include "lower/lower.h"
#include "lower/schedule.h"
#include "ops/op_spec.h"
#include "pack/image.h"
#include "program/program.h"
#include "validate/validate.h"
#include "vm/device.h"
#include "vm/vm.h"

struct amk_program {
  amk::Program program;
};
struct amk_valid_program {
  amk::ValidProgram valid;
};
struct amk_report {
  amk::Report report;
};
struct amk_image {
  std::shared_ptr<const amk::Image> image;
};
struct amk_vm {
  std::unique_ptr<amk::Vm> vm;
};

namespace {

amk_status fail(amk_status status, const char* message) noexcept {
  amk::set_last_error(message);
  return status;
}

// Runs body; nothing it throws gets out.
template <class Body>
amk_status guarded(Body&& body) noexcept {
  try {
    body();
    return AMK_OK;
  } catch (const amk::Error& e) {
    return fail(e.status(), e.what());
  } catch (const std::bad_alloc&) {
    return fail(AMK_ERR_OUT_OF_MEMORY, "out of memory");
  } catch (const std::exception& e) {
    return fail(AMK_ERR_INTERNAL, e.what());
  } catch (...) {
    return fail(AMK_ERR_INTERNAL, "an unknown exception reached the C border");
  }
}

#define AMK_REQUIRE(pointer) \
  AMK_CHECK((pointer) != nullptr, AMK_ERR_INVALID_ARGUMENT, "%s: " #pointer " is NULL", __func__)

template <class T>
void require_size(const T* s, const char* what) {
  AMK_CHECK(s != nullptr, AMK_ERR_INVALID_ARGUMENT, "%s is NULL", what);
  AMK_CHECK(s->struct_size >= sizeof(T), AMK_ERR_INVALID_ARGUMENT, "%s: struct_size is %llu, expected at least %zu",
            what, (unsigned long long)s->struct_size, sizeof(T));
}

// Options of callers of any age: fields that the caller's header did not have are zero.
amk_vm_options_t read_options(const amk_vm_options_t* options) {
  constexpr uint64_t kFirstBytes = 32;  // of ABI 1.0, `reserved` included
  AMK_CHECK(options != nullptr, AMK_ERR_INVALID_ARGUMENT, "options is NULL");
  AMK_CHECK(options->struct_size >= kFirstBytes, AMK_ERR_INVALID_ARGUMENT,
            "options: struct_size is %llu, expected at least %llu", (unsigned long long)options->struct_size,
            (unsigned long long)kFirstBytes);
  amk_vm_options_t out{};
  std::memcpy(&out, options, static_cast<size_t>(std::min<uint64_t>(options->struct_size, sizeof out)));
  return out;
}

// The two halves of a judgement, each where somebody asked for it.
void hand_out(amk::Judgement judgement, amk_report** report, amk_valid_program** valid) {
  std::unique_ptr<amk_valid_program> proof;
  if (valid && judgement.valid) proof.reset(new amk_valid_program{*judgement.valid});
  if (report) *report = new amk_report{std::move(judgement.report)};
  if (valid) *valid = proof.release();
}

// All tokens of a step at pos have a place in the cache.
void require_position(const amk::Program& p, int32_t pos) {
  const int32_t batch = amk::program_batch(p.tasks);
  AMK_CHECK(pos >= 0 && pos <= p.launch.max_seq - batch, AMK_ERR_INVALID_ARGUMENT,
            "position %d of a step of %d, max_seq is %d", pos, batch, p.launch.max_seq);
}

}  // namespace

extern "C" {

uint32_t amk_abi_version(void) { return AMK_ABI_VERSION_MAJOR << 16 | AMK_ABI_VERSION_MINOR; }

const char* amk_last_error(void) { return amk::last_error(); }

const char* amk_status_name(int32_t status) {
  switch (status) {
    case AMK_OK: return "OK";
    case AMK_ERR_INVALID_ARGUMENT: return "INVALID_ARGUMENT";
    case AMK_ERR_INPUT: return "INPUT";
    case AMK_ERR_UNSUPPORTED: return "UNSUPPORTED";
    case AMK_ERR_REJECTED: return "REJECTED";
    case AMK_ERR_OUT_OF_MEMORY: return "OUT_OF_MEMORY";
    case AMK_ERR_MISMATCH: return "MISMATCH";
    case AMK_ERR_UNAVAILABLE: return "UNAVAILABLE";
    case AMK_ERR_DEVICE_FAULT: return "DEVICE_FAULT";
    case AMK_ERR_TIMEOUT: return "TIMEOUT";
    case AMK_ERR_POISONED: return "POISONED";
    case AMK_ERR_NONFINITE: return "NONFINITE";
    case AMK_ERR_INTERNAL: return "INTERNAL";
    default: return "UNKNOWN_STATUS";
  }
}

int32_t amk_struct_sizes(uint64_t* out, int32_t n) {
  static constexpr uint64_t kSizes[] = {
      sizeof(amk_params_t),         sizeof(amk_buffer_t),     sizeof(amk_instruction_t), sizeof(amk_counter_t),
      sizeof(amk_binding_t),        sizeof(amk_page_t),       sizeof(amk_launch_t),      sizeof(amk_target_t),
      sizeof(amk_program_tables_t), sizeof(amk_model_t),      sizeof(amk_schedule_t),    sizeof(amk_rejection_t),
      sizeof(amk_cost_t),           sizeof(amk_vm_options_t), sizeof(amk_access_t),      sizeof(amk_strings_t),
      sizeof(amk_task_cost_t),      sizeof(amk_gdn_decode_t), sizeof(amk_task_time_t)};
  constexpr int32_t kCount = sizeof(kSizes) / sizeof(kSizes[0]);
  for (int32_t i = 0; out && i < n && i < kCount; ++i) out[i] = kSizes[i];
  return kCount;
}

int32_t amk_op_supported(int32_t op) { return amk::op_supported(op); }
int32_t amk_dtype_bits(int32_t dtype) { return amk::dtype_bits(dtype); }

int32_t amk_target_count(void) { return amk::target_count(); }

amk_status amk_target_preset(int32_t i, amk_target_t* out) {
  return guarded([&] {
    AMK_REQUIRE(out);
    const amk_target_t* preset = amk::target_preset(i);
    AMK_CHECK(preset, AMK_ERR_INVALID_ARGUMENT, "target preset %d of %d", i, amk::target_count());
    *out = *preset;
  });
}

const char* amk_target_source(int32_t i) { return amk::target_source(i); }

amk_status amk_device_count(int32_t* out) {
  return guarded([&] {
    AMK_REQUIRE(out);
    *out = amk::device_count();
  });
}

amk_status amk_device_query(int32_t index, amk_target_t* out) {
  return guarded([&] {
    AMK_REQUIRE(out);
    *out = amk::query_device(index);
  });
}

amk_status amk_device_uuid(int32_t index, char out[41]) {
  return guarded([&] {
    AMK_REQUIRE(out);
    const std::string uuid = amk::device_uuid(index);
    AMK_CHECK(uuid.size() == 40, AMK_ERR_INTERNAL, "a UUID of %zu characters", uuid.size());
    std::memcpy(out, uuid.c_str(), 41);
  });
}

amk_status amk_device_read_bandwidth(int32_t index, double* gb_per_s) {
  return guarded([&] {
    AMK_REQUIRE(gb_per_s);
    *gb_per_s = amk::measure_read_gb_per_s(index);
  });
}

amk_status amk_schedule_default(amk_schedule_t* out) {
  return guarded([&] {
    AMK_REQUIRE(out);
    *out = amk::default_schedule();
  });
}

amk_status amk_schedule_check(const amk_schedule_t* schedule, const amk_target_t* target) {
  return guarded([&] {
    require_size(schedule, "schedule");
    AMK_REQUIRE(target);
    amk::check_schedule(*schedule, *target);
  });
}

amk_status amk_program_lower(const amk_model_t* model, const amk_schedule_t* schedule, const amk_target_t* target,
                             amk_program** out) {
  return guarded([&] {
    AMK_REQUIRE(out);
    const amk_model_t whole = amk::read_model(model);
    require_size(schedule, "schedule");
    AMK_REQUIRE(target);
    amk::check_schedule(*schedule, *target);
    *out = new amk_program{amk::lower(amk::build_decoder(whole), *schedule, *target)};
  });
}

amk_status amk_program_from_tables(const amk_program_tables_t* tables, amk_program** out) {
  return guarded([&] {
    AMK_REQUIRE(out);
    require_size(tables, "tables");
    *out = new amk_program{amk::Program::from_tables(*tables)};
  });
}

amk_status amk_program_tables(const amk_program* program, amk_program_tables_t* out) {
  return guarded([&] {
    AMK_REQUIRE(program);
    require_size(out, "tables");
    *out = program->program.view();
  });
}

amk_status amk_program_validate(const amk_program* program, amk_report** report, amk_valid_program** valid) {
  return guarded([&] {
    AMK_REQUIRE(program);
    if (report) *report = nullptr;
    if (valid) *valid = nullptr;
    hand_out(amk::validate(program->program), report, valid);
  });
}

amk_status amk_program_validate_model(const amk_program* program, const amk_model_t* model, amk_report** report,
                                      amk_valid_program** valid) {
  return guarded([&] {
    AMK_REQUIRE(program);
    const amk_model_t whole = amk::read_model(model);
    if (report) *report = nullptr;
    if (valid) *valid = nullptr;
    hand_out(amk::validate_model(program->program, whole), report, valid);
  });
}

amk_status amk_program_footprint(const amk_valid_program* program, int64_t task, int32_t pos, amk_access_t* out,
                                 int32_t room, int32_t* n) {
  return guarded([&] {
    AMK_REQUIRE(program);
    AMK_REQUIRE(n);
    AMK_CHECK(room == 0 || out, AMK_ERR_INVALID_ARGUMENT, "out is NULL but room is %d", room);
    const amk::Program& p = program->valid.program();
    const int64_t tasks = static_cast<int64_t>(p.tasks.size());
    AMK_CHECK(task >= 0 && task < tasks, AMK_ERR_INVALID_ARGUMENT, "task %lld of %lld", (long long)task,
              (long long)tasks);
    require_position(p, pos);
    amk::AccessList list;
    amk::op_footprint({p.tasks[task], p.buffers.data(), p.bindings.data()}, &list);
    *n = list.count;
    for (int32_t i = 0; i < list.count && i < room; ++i) {
      const amk::Access& a = list.items[i];
      out[i] = {
          a.buffer, a.write,       a.offset_bytes + pos * a.offset_per_pos, a.row_bytes + pos * a.row_bytes_per_pos,
          a.rows,   a.stride_bytes};
    }
  });
}

amk_status amk_program_cost(const amk_valid_program* program, int32_t pos, amk_cost_t* out) {
  return guarded([&] {
    AMK_REQUIRE(program);
    require_size(out, "cost");
    const amk::Program& p = program->valid.program();
    require_position(p, pos);
    *out = amk::predict_cost(p, pos);
  });
}

amk_status amk_program_task_costs(const amk_valid_program* program, int32_t pos, amk_task_cost_t* out, int64_t room,
                                  int64_t* n) {
  return guarded([&] {
    AMK_REQUIRE(program);
    AMK_REQUIRE(n);
    AMK_CHECK(room == 0 || (room > 0 && out), AMK_ERR_INVALID_ARGUMENT, "out is NULL or room below 0, room is %lld",
              (long long)room);
    const std::vector<amk_task_cost_t> costs = amk::predict_task_costs(program->valid.program(), pos);
    *n = static_cast<int64_t>(costs.size());
    std::copy_n(costs.begin(), std::min(room, *n), out);
  });
}

void amk_program_destroy(amk_program* program) { delete program; }
void amk_valid_program_destroy(amk_valid_program* program) { delete program; }

int64_t amk_report_count(const amk_report* report) { return report ? report->report.count() : 0; }

amk_status amk_report_entry(const amk_report* report, int32_t i, amk_rejection_t* out) {
  return guarded([&] {
    AMK_REQUIRE(report);
    AMK_REQUIRE(out);
    const auto& entries = report->report.entries();
    AMK_CHECK(i >= 0 && i < static_cast<int64_t>(entries.size()), AMK_ERR_INVALID_ARGUMENT, "report entry %d of %zu", i,
              entries.size());
    const amk::Rejection& r = entries[i];
    *out = {r.code, r.task, r.buffer, r.counter, r.text.c_str()};
  });
}

void amk_report_destroy(amk_report* report) { delete report; }

amk_status amk_image_pack(const amk_valid_program* program, amk_image** out) {
  return guarded([&] {
    AMK_REQUIRE(program);
    AMK_REQUIRE(out);
    *out = new amk_image{std::make_shared<const amk::Image>(amk::pack(program->valid))};
  });
}

amk_status amk_image_from_bytes(const void* bytes, uint64_t nbytes, amk_image** out) {
  return guarded([&] {
    AMK_REQUIRE(bytes);
    AMK_REQUIRE(out);
    *out =
        new amk_image{std::make_shared<const amk::Image>(amk::Image::open(static_cast<const uint8_t*>(bytes), nbytes))};
  });
}

amk_status amk_image_bytes(const amk_image* image, const void** bytes, uint64_t* nbytes) {
  return guarded([&] {
    AMK_REQUIRE(image);
    AMK_REQUIRE(bytes);
    AMK_REQUIRE(nbytes);
    *bytes = image->image->bytes().data();
    *nbytes = image->image->bytes().size();
  });
}

amk_status amk_image_hash(const amk_image* image, char out[65]) {
  return guarded([&] {
    AMK_REQUIRE(image);
    AMK_REQUIRE(out);
    std::memcpy(out, image->image->hash_hex().c_str(), 65);
  });
}

amk_status amk_image_program(const amk_image* image, amk_program** out) {
  return guarded([&] {
    AMK_REQUIRE(image);
    AMK_REQUIRE(out);
    *out = new amk_program{image->image->program()};
  });
}

void amk_image_destroy(amk_image* image) { delete image; }

amk_status amk_vm_create_reference(const amk_image* image, const amk_vm_options_t* options, amk_vm** out) {
  return guarded([&] {
    AMK_REQUIRE(image);
    AMK_REQUIRE(out);
    const amk_vm_options_t read = read_options(options);
    // The machine keeps the image alive: the caller may destroy its handle first.
    std::shared_ptr<const std::vector<uint8_t>> bytes(image->image, &image->image->bytes());
    *out = new amk_vm{amk::make_reference_vm(std::move(bytes), read)};
  });
}

amk_status amk_vm_bind(amk_vm* vm, const char* name, const void* ptr, uint64_t nbytes) {
  return guarded([&] {
    AMK_REQUIRE(vm);
    AMK_REQUIRE(name);
    AMK_REQUIRE(ptr);
    vm->vm->bind(name, ptr, nbytes);
  });
}

amk_status amk_vm_write(amk_vm* vm, const char* name, uint64_t offset, const void* data, uint64_t nbytes) {
  return guarded([&] {
    AMK_REQUIRE(vm);
    AMK_REQUIRE(name);
    AMK_CHECK(data || nbytes == 0, AMK_ERR_INVALID_ARGUMENT, "data is NULL");
    vm->vm->write(name, offset, data, nbytes);
  });
}

amk_status amk_vm_read(amk_vm* vm, const char* name, uint64_t offset, void* data, uint64_t nbytes) {
  return guarded([&] {
    AMK_REQUIRE(vm);
    AMK_REQUIRE(name);
    AMK_CHECK(data || nbytes == 0, AMK_ERR_INVALID_ARGUMENT, "data is NULL");
    vm->vm->read(name, offset, data, nbytes);
  });
}

amk_status amk_vm_run(amk_vm* vm, int32_t pos) {
  return guarded([&] {
    AMK_REQUIRE(vm);
    vm->vm->run(pos);
  });
}

amk_status amk_vm_reset_state(amk_vm* vm) {
  return guarded([&] {
    AMK_REQUIRE(vm);
    vm->vm->reset_state();
  });
}

amk_status amk_vm_decode(amk_vm* vm, int32_t token, int32_t pos, int32_t* next) {
  return guarded([&] {
    AMK_REQUIRE(vm);
    AMK_REQUIRE(next);
    *next = vm->vm->decode(token, pos);
  });
}

amk_status amk_vm_decode_batch(amk_vm* vm, const int32_t* tokens, int32_t n, int32_t pos, int32_t* next) {
  return guarded([&] {
    AMK_REQUIRE(vm);
    AMK_REQUIRE(tokens);
    AMK_REQUIRE(next);
    vm->vm->decode_batch(tokens, n, pos, next);
  });
}

amk_status amk_vm_reseed(amk_vm* vm, uint64_t seed) {
  return guarded([&] {
    AMK_REQUIRE(vm);
    vm->vm->reseed(seed);
  });
}

void amk_vm_destroy(amk_vm* vm) { delete vm; }

amk_status amk_vm_create_cuda(const amk_image* image, const amk_vm_options_t* options, int32_t device, amk_vm** out) {
  return guarded([&] {
    AMK_REQUIRE(image);
    AMK_REQUIRE(out);
    const amk_vm_options_t read = read_options(options);
    std::shared_ptr<const std::vector<uint8_t>> bytes(image->image, &image->image->bytes());
    *out = new amk_vm{amk::make_cuda_vm(std::move(bytes), read, device)};
  });
}

amk_status amk_vm_prepare(amk_vm* vm) {
  return guarded([&] {
    AMK_REQUIRE(vm);
    vm->vm->prepare();
  });
}

amk_status amk_vm_launch(amk_vm* vm, int32_t pos, void* stream) {
  return guarded([&] {
    AMK_REQUIRE(vm);
    vm->vm->launch(pos, stream);
  });
}

amk_status amk_vm_aim(amk_vm* vm, int32_t pos) {
  return guarded([&] {
    AMK_REQUIRE(vm);
    vm->vm->aim(pos);
  });
}

amk_status amk_vm_finish(amk_vm* vm) {
  return guarded([&] {
    AMK_REQUIRE(vm);
    vm->vm->finish();
  });
}

amk_status amk_vm_time(amk_vm* vm, int32_t pos, int32_t n, float* us) {
  return guarded([&] {
    AMK_REQUIRE(vm);
    AMK_REQUIRE(us);
    vm->vm->time(pos, n, us);
  });
}

amk_status amk_vm_timeline(amk_vm* vm, amk_task_time_t* out, int64_t room, int64_t* n) {
  return guarded([&] {
    AMK_REQUIRE(vm);
    AMK_REQUIRE(n);
    AMK_CHECK(room >= 0 && (out || room == 0), AMK_ERR_INVALID_ARGUMENT, "timeline: room is %lld, out is %p",
              (long long)room, static_cast<void*>(out));
    const std::vector<amk_task_time_t> times = vm->vm->timeline();
    *n = static_cast<int64_t>(times.size());
    std::copy_n(times.begin(), std::min(room, *n), out);
  });
}

amk_status amk_vm_cancel(amk_vm* vm) {
  return guarded([&] {
    AMK_REQUIRE(vm);
    vm->vm->cancel();
  });
}

amk_status amk_gdn_decode(const amk_gdn_decode_t* args, void* stream) {
  return guarded([&] {
    require_size(args, "args");
    amk::check_gdn_decode(*args);
    if (args->device < 0) {
      amk::gdn_decode_on_host(*args);
    } else {
      amk::gdn_decode_on_device(*args, stream);
    }
  });
}

}  // extern "C"
