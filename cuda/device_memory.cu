#include "device_memory.h"

#include <algorithm>
#include <cstring>
#include <system_error>
#include <thread>

#include "attention.cuh"
#include "base/checked.h"
#include "base/dtype.h"
#include "batch_attention.cuh"
#include "batch_gemv.cuh"
#include "batch_ops.cuh"
#include "gdn.cuh"
#include "gemv.cuh"
#include "ops/op_spec.h"
#include "repack.h"
#include "rope.cuh"
#include "sample.cuh"

namespace amk {
namespace {

constexpr int64_t kRegionAlign = 256;
constexpr size_t kStagingBytes = size_t{32} << 20;
constexpr size_t kCopiers = 4, kBytesPerCopier = size_t{4} << 20;  // one thread copies at about 10 GB/s, the bus at 50

bool is_borrowed(int32_t kind) { return kind == AMK_KIND_WEIGHT || kind == AMK_KIND_CONST; }
// What machines of one model may share.
bool is_shareable(int32_t kind) { return is_borrowed(kind) || kind == AMK_KIND_KV_CACHE; }
bool is_lasting(int32_t kind) {
  return is_borrowed(kind) || kind == AMK_KIND_KV_CACHE || kind == AMK_KIND_STATE || kind == AMK_KIND_IO_INPUT;
}
// A state is: of all tasks only the one that reads it writes it, afterwards.
bool is_early(int32_t kind) { return is_borrowed(kind) || kind == AMK_KIND_IO_INPUT || kind == AMK_KIND_STATE; }

// The operand that says what T is.
int32_t dtype_of(const ImageView& image, const amk_instruction_t& t) {
  if (t.op == AMK_OP_EMBED) return image.buffers[t.inputs[1]].dtype;
  return t.n_inputs > 0 ? image.buffers[t.inputs[0]].dtype : AMK_DTYPE_F32;
}

// Of the weight that a task reads in slot 1.
Packing packing_of(const ImageView& image, const amk_instruction_t& t) {
  if (t.op != AMK_OP_GEMV_TILE && t.op != AMK_OP_EMBED) return Packing::kPlain;
  return static_cast<Packing>(image.storages[static_cast<size_t>(image.places[t.inputs[1]].storage)].packing);
}
bool is_streamed(const ImageView& image, const amk_instruction_t& t) {
  return t.op == AMK_OP_GEMV_TILE && packing_of(image, t) != Packing::kPlain;
}

int64_t shared_bytes(const ImageView& image, const amk_instruction_t& t, int threads) {
  const int element_bytes = dtype_bits(dtype_of(image, t)) / 8;
  switch (t.op) {
    case AMK_OP_GEMV_TILE:
      if (is_streamed(image, t)) return stream_shared_bytes(t.params, threads);
      return gemv_shared_bytes(t.params, element_bytes, threads);
    case AMK_OP_ATTENTION_TILE: return attention_shared_bytes(t.params, element_bytes, threads);
    case AMK_OP_ROPE:
    case AMK_OP_KV_APPEND: return rope_shared_bytes(t.params);
    case AMK_OP_SAMPLE_ARGMAX:
    case AMK_OP_ARGMAX_COMBINE: return kBestScratchBytes;
    default: return 0;
  }
}

// The same in the kernel of several tokens.
int64_t batch_shared_bytes(const ImageView& image, const amk_instruction_t& t, int threads) {
  switch (t.op) {
    case AMK_OP_GEMV_TILE:
      return is_streamed(image, t) ? batch_gemv_shared_bytes(t.params) : shared_bytes(image, t, threads);
    case AMK_OP_ATTENTION_TILE: return batch_attention_shared_bytes(t.params, dtype_bits(dtype_of(image, t)) / 8);
    case AMK_OP_ROPE:
    case AMK_OP_KV_APPEND: return batch_rope_shared_bytes(t.params, op_tokens(t));
    default: return 0;
  }
}
// Ops of hybrid models, and heads that attention turns or writes itself, are for one token a task and one kernel.
bool has_batch_code(const amk_instruction_t& t) {
  switch (t.op) {
    case AMK_OP_CAUSAL_CONV:
    case AMK_OP_GDN_DECODE:
    case AMK_OP_GATED_RMSNORM:
    case AMK_OP_SIGMOID_MUL: return false;
    case AMK_OP_ATTENTION_TILE: return !(t.params.flags & (AMK_FLAG_ROPE | AMK_FLAG_DIRECT));
    default: return true;
  }
}

// The operand that the kernel of several tokens reads or writes in whole vectors although no law asks for them: the
// norm weight of packed weights, the partial output of attention. -1: none.
int32_t vector_operand(const ImageView& image, const amk_instruction_t& t) {
  if (t.op == AMK_OP_ATTENTION_TILE) return t.outputs[0];
  if (t.op == AMK_OP_ATTENTION_COMBINE) return t.inputs[0];
  const int norm = is_streamed(image, t) ? flag_slots(t).norm : -1;
  return norm < 0 ? -1 : t.inputs[norm];
}

// Elements from one token's row to the next, in an operand of a task.
int32_t row_width(const amk_buffer_t& b, int32_t tokens) {
  const int64_t width = b.numel / tokens;
  AMK_CHECK(width <= INT32_MAX, AMK_ERR_UNSUPPORTED, "a row of %lld elements for each token, at most %d are addressed",
            (long long)width, INT32_MAX);
  return static_cast<int32_t>(width);
}

// memcpy on several threads, where there is enough to copy; on fewer where the system has no more.
void copy_to_staging(char* to, const char* from, size_t nbytes) {
  const size_t parts = std::clamp(nbytes / kBytesPerCopier, size_t{1}, kCopiers), part = nbytes / parts;
  std::vector<std::thread> others;
  others.reserve(parts);
  size_t done = 0;
  try {
    for (; others.size() + 1 < parts; done += part)
      others.emplace_back([=] { std::memcpy(to + done, from + done, part); });
  } catch (const std::system_error&) {  // this thread copies the rest
  }
  std::memcpy(to + done, from + done, nbytes - done);
  for (std::thread& t : others) t.join();
}

}  // namespace

bool is_batched(const ImageView& image) {
  return std::any_of(image.tasks.begin(), image.tasks.end(),
                     [](const amk_instruction_t& t) { return op_tokens(t) > 1; });
}

int64_t needed_shared_bytes(const ImageView& image, int threads, int64_t limit_bytes) {
  int64_t most = 0;
  const bool batched = is_batched(image);
  for (size_t i = 0; i < image.tasks.size(); ++i) {
    const amk_instruction_t& t = image.tasks[i];
    AMK_CHECK(!is_quantised(t) || is_streamed(image, t), AMK_ERR_REJECTED,
              "task %zu (%s): quantised weights come through the ring alone, and these do not: that takes cpasync = 1, "
              "an f16 or bf16 model, rows in whole groups of %d and a group of %d or %d",
              i, std::string(image.task_label.at(i)).c_str(), kGroupRows, AMK_MIN_WEIGHT_GROUP, AMK_MAX_WEIGHT_GROUP);
    AMK_CHECK(!batched || has_batch_code(t), AMK_ERR_REJECTED,
              "task %zu (%s): %s is for one token here, in a program whose tasks work on several", i,
              std::string(image.task_label.at(i)).c_str(),
              t.op == AMK_OP_ATTENTION_TILE ? "ATTENTION_TILE with ROPE or DIRECT" : op_name(t.op));
    const int32_t vectors = batched ? vector_operand(image, t) : -1;
    AMK_CHECK(vectors < 0 || image.places[vectors].offset_bytes % kVectorBytes == 0, AMK_ERR_REJECTED,
              "task %zu (%s): buffer %s begins at byte %lld, the kernel of several tokens wants a multiple of %d", i,
              std::string(image.task_label.at(i)).c_str(), std::string(image.buffer_name.at(vectors)).c_str(),
              (long long)image.places[vectors].offset_bytes, kVectorBytes);
    const int64_t bytes = batched ? batch_shared_bytes(image, t, threads) : shared_bytes(image, t, threads);
    AMK_CHECK(bytes <= limit_bytes, AMK_ERR_REJECTED,
              "V10: task %zu (%s) needs %lld bytes of shared memory per block, the device offers %lld", i,
              std::string(image.task_label.at(i)).c_str(), (long long)bytes, (long long)limit_bytes);
    if (t.op == AMK_OP_ATTENTION_TILE) {
      const int64_t row_bytes = storage_bytes(dtype_of(image, t), t.params.head_dim);
      AMK_CHECK(row_bytes <= kMaxHeadRowBytes, AMK_ERR_REJECTED,
                "task %zu (%s): cache rows of %lld bytes, this kernel holds %d", i,
                std::string(image.task_label.at(i)).c_str(), (long long)row_bytes, kMaxHeadRowBytes);
    }
    AMK_CHECK((t.op != AMK_OP_GDN_DECODE && t.op != AMK_OP_GATED_RMSNORM) || t.params.head_dim <= kGdnMaxDim,
              AMK_ERR_REJECTED, "task %zu (%s): heads of %d elements, this kernel holds %d", i,
              std::string(image.task_label.at(i)).c_str(), t.params.head_dim, kGdnMaxDim);
    most = std::max(most, bytes);
  }
  return most;
}

// A quantised matrix that is packed has its scales in its slots: in its region, and none of their own.
void DeviceImage::plan_regions() {
  for (size_t i = 0; i < regions_.size(); ++i) regions_[i].nbytes = image_.storages[i].nbytes;
  for (size_t b = 0; b < image_.buffers.size(); ++b) {
    const size_t s = static_cast<size_t>(image_.places[b].storage);
    if (image_.storages[s].packing == 0 || image_.buffers[b].rank != 2) continue;
    regions_[s].rows = image_.buffers[b].shape[0];
    regions_[s].columns = image_.buffers[b].shape[1];
    regions_[s].row_bytes = storage_bytes(image_.buffers[b].dtype, image_.buffers[b].shape[1]);
  }
  for (const amk_instruction_t& t : image_.tasks) {
    if (!is_quantised(t) || !is_streamed(image_, t)) continue;
    const int32_t q = image_.places[t.inputs[1]].storage, scales = image_.places[t.inputs[2]].storage;
    regions_[q].group = regions_[scales].group = t.params.group;
    regions_[q].nbytes = image_.storages[q].nbytes + image_.storages[scales].nbytes;
    regions_[scales].nbytes = 0;
    regions_[scales].matrix = q;
  }
}

// The other machine's regions in place of this image's own, where they hold the same.
void DeviceImage::take_shared(const DeviceImage& share) {
  const auto name_in = [](const ImageView& image, size_t i) { return std::string(image.storage_name.at(i)); };
  AMK_CHECK(!share.any_dirty_, AMK_ERR_INVALID_ARGUMENT, "share: the other machine is not prepared");
  AMK_CHECK(share.is_bound(), AMK_ERR_INVALID_ARGUMENT, "share: not bound there: %s", share.unbound().c_str());
  for (size_t i = 1; i < regions_.size(); ++i) {
    Region& r = regions_[i];
    const ImageStorage& s = image_.storages[i];
    AMK_CHECK(s.kind != AMK_KIND_STATE, AMK_ERR_UNSUPPORTED, "share: %s is a state, and machines share none",
              name_in(image_, i).c_str());
    if (!is_shareable(s.kind)) continue;
    for (size_t j = 1; j < share.regions_.size() && !r.is_shared; ++j) {
      const ImageStorage& other = share.image_.storages[j];
      if (other.kind != s.kind || share.image_.storage_name.at(j) != image_.storage_name.at(i)) continue;
      const Region& found = share.regions_[j];
      AMK_CHECK(other.nbytes == s.nbytes && other.packing == s.packing && found.nbytes == r.nbytes &&
                    found.rows == r.rows && found.columns == r.columns && found.group == r.group,
                AMK_ERR_INVALID_ARGUMENT,
                "share: %s has %lld bytes in packing %d there, this image wants %lld in packing %d",
                name_in(image_, i).c_str(), (long long)found.nbytes, other.packing, (long long)r.nbytes, s.packing);
      r.base = found.base;
      r.is_shared = true;
    }
    AMK_CHECK(r.is_shared, AMK_ERR_INVALID_ARGUMENT, "share: the other machine has no %s, which this image reads",
              name_in(image_, i).c_str());
  }
  memory_ = share.memory_;
}

DeviceImage::DeviceImage(const ImageView& image, std::initializer_list<Placed> placed, cudaStream_t stream,
                         const DeviceImage* share)
    : image_(image), regions_(image.storages.size()) {
  plan_regions();
  if (share) take_shared(*share);
  for (const Placed& p : placed) regions_[static_cast<size_t>(p.storage)].base = static_cast<char*>(p.at);
  for (size_t i = 1; i < regions_.size(); ++i)
    unbound_count_ += is_borrowed(image.storages[i].kind) && !regions_[i].is_shared;
  int64_t total = 0;
  std::vector<int64_t> offset(regions_.size());
  for (size_t i = 0; i < regions_.size(); ++i) {
    offset[i] = total;
    if (regions_[i].base) continue;
    AMK_CHECK(checked_add(total, regions_[i].nbytes, &total) && total <= INT64_MAX - kRegionAlign, AMK_ERR_INPUT,
              "image: the storages are larger than 2^63 bytes");
    total = round_up(total, kRegionAlign);
  }
  memory_.push_back(std::make_shared<DeviceMemory>(
      allocate_device(static_cast<size_t>(total), share ? "activations" : "weights, cache and activations")));
  for (size_t i = 0; i < regions_.size(); ++i) {
    if (!regions_[i].base) regions_[i].base = static_cast<char*>(memory_.back()->get()) + offset[i];
    if (regions_[i].is_shared) continue;
    if (!is_borrowed(image.storages[i].kind) && image.storages[i].nbytes)
      AMK_CUDA_CHECK(cudaMemsetAsync(regions_[i].base, 0, static_cast<size_t>(image.storages[i].nbytes), stream));
  }
  upload_tables(stream);
}

void DeviceImage::upload_tables(cudaStream_t stream) {
  const bool batched = is_batched(image_);
  const std::vector<BatchTask> records = relocate();
  std::vector<DeviceTask> tasks;  // of one token each: shorter records
  if (!batched) tasks.assign(records.begin(), records.end());
  std::vector<StreamTask> streamed;
  std::vector<uint32_t> stream_start{0};
  for (size_t q = 0; q + 1 < image_.queue_start.size(); ++q) {
    for (uint32_t id : image_.queue(q)) {
      const amk_instruction_t& t = image_.tasks[id];
      if (!is_streamed(image_, t)) continue;
      const StreamShape s = stream_shape(t.params, image_.launch().threads_per_block / kWarpThreads);
      const bool is_int8 = is_quantised(t);
      const int64_t row_bytes =
          is_int8 ? int8_row_bytes(t.params.K, t.params.group) : int64_t{s.vectors} * kVectorBytes;
      const int64_t first = int64_t{t.params.n_off} * (s.is_pair ? 2 : 1);  // rows before it, in packed order
      const int chunk_bytes = is_int8 ? int8_slot_bytes(t.params.group) : kSlotBytes;
      const int64_t tail_bytes = kGroupRows * row_bytes - int64_t{s.chunks - 1} * chunk_bytes;
      const char* weights = at(t.inputs[1]) + first * row_bytes;
      if (!batched) {
        streamed.push_back({weights, s.groups, s.chunks, chunk_bytes, static_cast<int32_t>(tail_bytes)});
        continue;
      }
      for_each_batch_copy(batch_plan(t.params), [&](int group, int groups, int chunk, int chunks) {
        streamed.push_back({weights + group * kGroupRows * row_bytes + int64_t{chunk} * chunk_bytes, groups, chunks,
                            chunk_bytes, chunk + chunks == s.chunks ? static_cast<int32_t>(tail_bytes) : chunk_bytes});
      });
    }
    stream_start.push_back(static_cast<uint32_t>(streamed.size()));
  }

  size_t total = 0;
  const auto reserve = [&](size_t nbytes) {
    const size_t offset = total;
    total = static_cast<size_t>(round_up(static_cast<int64_t>(total + nbytes), kVectorBytes));
    return offset;
  };
  const auto bytes_of = [](const auto& table) { return table.size() * sizeof(table[0]); };
  reserve(batched ? bytes_of(records) : bytes_of(tasks));
  queue_start_at_ = reserve(image_.queue_start.size_bytes());
  streams_at_ = reserve(bytes_of(streamed));
  stream_start_at_ = reserve(bytes_of(stream_start));
  if (total != tables_bytes_) tables_ = allocate_device(tables_bytes_ = total, "task records");
  const auto put = [&](size_t offset, const void* data, size_t nbytes) {
    if (nbytes)
      AMK_CUDA_CHECK(
          cudaMemcpyAsync(static_cast<char*>(tables_.get()) + offset, data, nbytes, cudaMemcpyHostToDevice, stream));
  };
  batched ? put(0, records.data(), bytes_of(records)) : put(0, tasks.data(), bytes_of(tasks));
  put(queue_start_at_, image_.queue_start.data(), image_.queue_start.size_bytes());
  put(streams_at_, streamed.data(), bytes_of(streamed));
  put(stream_start_at_, stream_start.data(), bytes_of(stream_start));
  AMK_CUDA_CHECK(cudaStreamSynchronize(stream));
}

// Buffer ids become addresses here and nowhere else. Queue order, so that a block reads its records one after the
// other.
std::vector<BatchTask> DeviceImage::relocate() const {
  std::vector<BatchTask> out;
  out.reserve(image_.tasks.size());
  const auto known = [&](const int32_t* ids, int32_t n, int32_t most) {
    if (n < 0 || n > most) return false;
    return std::all_of(ids, ids + n,
                       [&](int32_t id) { return id >= 0 && static_cast<size_t>(id) < image_.buffers.size(); });
  };
  for (uint32_t id : image_.queue_task) {
    const amk_instruction_t& t = image_.tasks[id];
    bool lawful = known(t.inputs, t.n_inputs, AMK_MAX_INPUTS) && known(t.outputs, t.n_outputs, AMK_MAX_OUTPUTS) &&
                  t.n_waits >= 0 && t.n_waits <= AMK_MAX_WAITS && t.out_counter >= 0 &&
                  static_cast<size_t>(t.out_counter) < image_.producers.size();
    for (int i = 0; lawful && i < t.n_waits; ++i)
      lawful = t.wait_counter[i] >= 0 && static_cast<size_t>(t.wait_counter[i]) < image_.producers.size();
    AMK_CHECK(lawful, AMK_ERR_INPUT, "image: task %u names a buffer or counter that is not there", id);
    BatchTask d{};
    for (int i = 0; i < t.n_inputs; ++i) {
      d.in[i] = at(t.inputs[i]);
      if (is_early(image_.bindings[t.inputs[i]].kind)) d.early |= 1 << i;
    }
    for (int i = 0; i < t.n_outputs; ++i) d.out[i] = at(t.outputs[i]);
    for (int i = 0; i < t.n_waits; ++i) {
      d.wait_counter[i] = t.wait_counter[i];
      d.wait_threshold[i] = static_cast<uint32_t>(t.wait_threshold[i]);
    }
    d.params = t.params;
    d.op = t.op;
    d.task = static_cast<int32_t>(id);
    d.n_waits = t.n_waits;
    d.out_counter = t.out_counter;
    d.dtype = dtype_of(image_, t);
    d.out_dtype = t.n_outputs > 0 ? image_.buffers[t.outputs[0]].dtype : d.dtype;
    const FlagSlots slots = flag_slots(t);
    d.rope_slot = slots.rope;
    d.norm_slot = slots.norm;
    d.k_norm_slot = slots.k_norm;
    d.bias_slot = slots.bias;
    d.residual_slot = slots.residual;
    d.packing = static_cast<int32_t>(packing_of(image_, t));
    d.tokens = op_tokens(t);
    if (d.tokens > 1) {
      const int other = t.op == AMK_OP_ADD || t.op == AMK_OP_MUL ? 1 : slots.residual;
      d.in_width = row_width(image_.buffers[t.inputs[0]], d.tokens);
      d.out_width = row_width(image_.buffers[t.outputs[0]], d.tokens);
      if (other >= 0) d.other_width = row_width(image_.buffers[t.inputs[other]], d.tokens);
    }
    out.push_back(d);
  }
  return out;
}

void DeviceImage::bind(const std::string& name, const void* ptr, uint64_t nbytes) {
  AMK_CHECK(ptr, AMK_ERR_INVALID_ARGUMENT, "bind %s: the pointer is NULL", name.c_str());
  AMK_CHECK(reinterpret_cast<uintptr_t>(ptr) % AMK_VECTOR_BYTES == 0, AMK_ERR_INVALID_ARGUMENT,
            "bind %s: the address %p is not a multiple of %d", name.c_str(), ptr, AMK_VECTOR_BYTES);
  AMK_CHECK(std::none_of(regions_.begin(), regions_.end(), [](const Region& r) { return r.is_shared; }),
            AMK_ERR_INVALID_ARGUMENT, "bind %s: this machine uses the weights of another", name.c_str());
  bool found = false;
  for (int pass = 0; pass < 2; ++pass) {  // judge all before binding any
    for (size_t i = 1; i < regions_.size(); ++i) {
      const ImageStorage& s = image_.storages[i];
      if (!is_borrowed(s.kind) || image_.storage_name.at(i) != name) continue;
      found = true;
      AMK_CHECK(nbytes == static_cast<uint64_t>(s.nbytes), AMK_ERR_INVALID_ARGUMENT,
                "bind %s: %llu bytes given, the image wants %lld", name.c_str(), (unsigned long long)nbytes,
                (long long)s.nbytes);
      if (pass == 0) continue;
      unbound_count_ -= !regions_[i].source;
      regions_[i].source = ptr;
      regions_[i].is_dirty = any_dirty_ = true;
    }
  }
  AMK_CHECK(found, AMK_ERR_INVALID_ARGUMENT, "bind %s: the image reads no weight or constant of that name",
            name.c_str());
}

std::string DeviceImage::unbound() const {
  constexpr int kSpelledOut = 8;
  std::string names;
  int count = 0;
  for (size_t i = 1; i < regions_.size(); ++i) {
    if (!is_borrowed(image_.storages[i].kind) || regions_[i].source || regions_[i].is_shared || ++count > kSpelledOut)
      continue;
    names += (names.empty() ? "" : ", ") + std::string(image_.storage_name.at(i));
  }
  if (count > kSpelledOut) names += text(" and %d more", count - kSpelledOut);
  return names;
}

// Rows of storage `i`, which lie plainly at `plain`, to where they belong.
void DeviceImage::repack(size_t i, const void* plain, int64_t first_row, int64_t row_count, cudaStream_t stream) const {
  const Region &r = regions_[i], &m = r.matrix < 0 ? r : regions_[static_cast<size_t>(r.matrix)];
  const Packing packing =
      static_cast<Packing>(image_.storages[r.matrix < 0 ? i : static_cast<size_t>(r.matrix)].packing);
  if (m.group == 0)
    return enqueue_repack({packing, m.rows, m.row_bytes / kVectorBytes}, plain, m.base, first_row, row_count, stream);
  const Int8Matrix matrix{packing, m.rows, m.columns, m.group};
  r.matrix < 0 ? enqueue_repack_int8(matrix, plain, m.base, first_row, row_count, stream)
               : enqueue_repack_scales(matrix, plain, m.base, first_row, row_count, stream);
}

void DeviceImage::upload(cudaStream_t stream) {
  if (!any_dirty_) return;
  constexpr int kStages = 2;  // the copy of one to the device overlaps the filling of the other
  PinnedMemory staging[kStages];
  DeviceMemory plain[kStages];  // a matrix that is packed passes through here
  Event done[kStages];
  const bool any_packed = std::any_of(regions_.begin(), regions_.end(), [](const Region& r) { return r.rows > 0; });
  for (int i = 0; i < kStages; ++i) {
    staging[i] = allocate_pinned(kStagingBytes, "staging for weights");
    if (any_packed) plain[i] = allocate_device(kStagingBytes, "staging for weights");
    done[i] = make_event(cudaEventDisableTiming);
  }
  int stage = 0;
  for (size_t i = 0; i < regions_.size(); ++i) {
    Region& r = regions_[i];
    if (!r.is_dirty) continue;
    const ImageStorage& storage = image_.storages[i];
    const size_t total = static_cast<size_t>(storage.nbytes);
    const size_t row_bytes = static_cast<size_t>(r.row_bytes);
    const bool is_packed = r.rows > 0;
    AMK_CHECK(row_bytes <= kStagingBytes, AMK_ERR_UNSUPPORTED, "%s: rows of %zu bytes, at most %zu are staged",
              std::string(image_.storage_name.at(i)).c_str(), row_bytes, kStagingBytes);
    const size_t step = is_packed ? kStagingBytes / row_bytes * row_bytes : kStagingBytes;
    for (size_t at = 0; at < total; at += step, stage = (stage + 1) % kStages) {
      const size_t nbytes = std::min(step, total - at);
      AMK_CUDA_CHECK(cudaEventSynchronize(done[stage].get()));
      copy_to_staging(static_cast<char*>(staging[stage].get()), static_cast<const char*>(r.source) + at, nbytes);
      void* to = is_packed ? plain[stage].get() : r.base + at;
      AMK_CUDA_CHECK(cudaMemcpyAsync(to, staging[stage].get(), nbytes, cudaMemcpyHostToDevice, stream));
      if (is_packed)
        repack(i, to, static_cast<int64_t>(at / row_bytes), static_cast<int64_t>(nbytes / row_bytes), stream);
      AMK_CUDA_CHECK(cudaEventRecord(done[stage].get(), stream));
    }
  }
  AMK_CUDA_CHECK(cudaStreamSynchronize(stream));
  for (Region& r : regions_) r.is_dirty = false;
  any_dirty_ = false;
}

void DeviceImage::poison(cudaStream_t stream) const {
  for (size_t i = 0; i < regions_.size(); ++i) {
    const ImageStorage& s = image_.storages[i];
    if (!is_lasting(s.kind) && s.nbytes)
      AMK_CUDA_CHECK(cudaMemsetAsync(regions_[i].base, kDevicePoisonByte, static_cast<size_t>(s.nbytes), stream));
  }
}

char* DeviceImage::at(int64_t buffer) const {
  const ImagePlace& p = image_.places[buffer];
  return regions_[p.storage].base + p.offset_bytes;
}

int64_t DeviceImage::find(std::string_view name) const {
  for (size_t i = 0; i < image_.buffers.size(); ++i)
    if (image_.buffer_name.at(i) == name) return static_cast<int64_t>(i);
  return -1;
}

void DeviceImage::abandon() {
  for (const std::shared_ptr<DeviceMemory>& memory : memory_) memory->abandon();
  tables_.abandon();
}

}  // namespace amk
