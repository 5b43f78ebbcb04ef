// The harness of amk_task_harness.h: one device, one stream, memory, calls, and graphs that are timed.
// In: entries and operands from Python. Out: bytes, microseconds, names of kernels; it judges nothing, and never
// prints.
#include "amk_task_harness.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "cuda_resources.h"
#include "guarded.h"
#include "pieces.h"

using amk::Error;
using amk::task::guarded;
using amk::task::require;

struct amk_harness {
  int device = 0;
  amk::Stream stream, second;
  amk::Event begin, end;
  amk::PinnedMemory staging;
  int64_t staging_bytes = 0;
};

struct amk_harness_graph {
  amk_harness* harness = nullptr;
  amk::Owned<cudaGraph_t, cudaGraphDestroy> graph;
  amk::Owned<cudaGraphExec_t, cudaGraphExecDestroy> ready;
};

namespace {

using SteadyClock = std::chrono::steady_clock;
// How long a stream is held for an entry to return, and how much longer for its outputs, of up to a gigabyte, to be
// read.
constexpr auto kEntryLimit = std::chrono::seconds(2), kReadLimit = std::chrono::seconds(30);
constexpr int64_t kStagedBytes = 1 << 20;    // an upload of as many goes through page-locked memory
constexpr long long kQueueCycles = 400'000;  // about 200 us: the time it takes to enqueue some launches of a graph

// Keeps the device busy until the host has enqueued what follows.
__global__ void wait_cycles(long long cycles) {
  const long long start = clock64();
  while (clock64() - start < cycles) {
  }
}

void* staging(amk_harness& h, int64_t nbytes) {
  if (nbytes > h.staging_bytes) {
    h.staging_bytes = 0;
    amk::PinnedMemory{std::move(h.staging)};  // freed before the larger one is asked for
    h.staging = amk::allocate_pinned(static_cast<size_t>(nbytes), "harness: staging");
    h.staging_bytes = nbytes;
  }
  return h.staging.get();
}

int32_t call_entry(const amk_harness_call_t& call, cudaStream_t stream) {
  return call.entry(call.inputs, call.n_inputs, call.scalars, call.n_scalars, call.outputs, call.n_outputs, stream);
}

void require_call(const amk_harness_call_t* call) {
  require(call && call->entry && (call->inputs || !call->n_inputs) && (call->scalars || !call->n_scalars) &&
              (call->outputs || !call->n_outputs),
          "expected a call with an entry and its tables, got NULL");
}

// Holds a stream back from the host until it is let go, or its time has come.
struct Hold {
  std::atomic<bool> let_go{false}, gave_up{false}, has_begun{false}, has_ended{false};
  std::atomic<SteadyClock::time_point> end{SteadyClock::now() + kEntryLimit};

  static void CUDART_CB wait(void* self) {
    auto* hold = static_cast<Hold*>(self);
    hold->has_begun = true;
    while (!hold->let_go) {
      if (SteadyClock::now() > hold->end.load()) {
        hold->gave_up = true;
        break;
      }
      std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
    hold->has_ended = true;
  }
};

std::string uuid_text(const cudaDeviceProp& properties) {
  const auto* b = reinterpret_cast<const unsigned char*>(properties.uuid.bytes);
  std::string out = "GPU-";
  for (int i = 0; i < 16; ++i) {
    if (i == 4 || i == 6 || i == 8 || i == 10) out += '-';
    out += amk::text("%02x", b[i]);
  }
  return out;
}

template <size_t kRoom>
void put(char (&to)[kRoom], const char* from) {
  std::snprintf(to, kRoom, "%s", from);
}

// One node of a graph as a row of amk_harness_graph_kernels.
amk_harness_kernel_t describe(cudaGraphNode_t node) {
  amk_harness_kernel_t row{};
  row.launches = 1;
  cudaGraphNodeType type{};
  AMK_CUDA_CHECK(cudaGraphNodeGetType(node, &type));
  if (type != cudaGraphNodeTypeKernel) {
    put(row.name, type == cudaGraphNodeTypeMemcpy   ? "(memcpy)"
                  : type == cudaGraphNodeTypeMemset ? "(memset)"
                                                    : "(other)");
    return row;
  }
  cudaKernelNodeParams params{};
  AMK_CUDA_CHECK(cudaGraphKernelNodeGetParams(node, &params));
  const char* name = nullptr;
  AMK_CUDA_CHECK(cudaFuncGetName(&name, params.func));
  AMK_CHECK(name && std::strlen(name) < sizeof row.name, AMK_ERR_UNSUPPORTED,
            "harness: a kernel's name is too long: %s", name ? name : "NULL");
  put(row.name, name);
  cudaFuncAttributes attributes{};
  AMK_CUDA_CHECK(cudaFuncGetAttributes(&attributes, params.func));
  row.binary_version = attributes.binaryVersion;
  row.registers = attributes.numRegs;
  row.local_bytes = static_cast<int32_t>(attributes.localSizeBytes);
  const dim3 sizes[] = {params.gridDim, params.blockDim};
  int32_t* const into[] = {row.grid, row.block};
  for (int i = 0; i < 2; ++i) {
    into[i][0] = static_cast<int32_t>(sizes[i].x);
    into[i][1] = static_cast<int32_t>(sizes[i].y);
    into[i][2] = static_cast<int32_t>(sizes[i].z);
  }
  return row;
}

// The calls on the stream while it is captured; the capture is ended whatever happens.
cudaGraph_t capture(cudaStream_t stream, const amk_harness_call_t* calls, int32_t n_calls, int32_t rounds) {
  AMK_CUDA_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  int32_t status = 0, at = 0;
  for (int32_t r = 0; r < rounds && !status; ++r)
    for (int32_t i = 0; i < n_calls && !status; ++i) {
      at = i;
      status = call_entry(calls[i], stream);
    }
  cudaGraph_t graph = nullptr;
  const cudaError_t code = cudaStreamEndCapture(stream, &graph);
  if (status) {
    if (graph) cudaGraphDestroy(graph);
    cudaGetLastError();
    throw Error(AMK_ERR_REJECTED, amk::text("harness: call %d returned %d while it was captured", at, status));
  }
  amk::check_cuda(code, "cudaStreamEndCapture");
  return graph;
}

}  // namespace

int32_t amk_harness_version(void) { return AMK_HARNESS_VERSION; }

int32_t amk_harness_device_count(int32_t* count) {
  return guarded([&] {
    require(count, "count is NULL");
    int n = 0;
    AMK_CUDA_CHECK(cudaGetDeviceCount(&n));
    *count = n;
  });
}

int32_t amk_harness_device(int32_t index, amk_harness_device_t* out) {
  return guarded([&] {
    require(out, "out is NULL");
    cudaDeviceProp properties{};
    AMK_CUDA_CHECK(cudaGetDeviceProperties(&properties, index));
    *out = {};
    put(out->name, properties.name);
    put(out->uuid, uuid_text(properties).c_str());
    out->compute_major = properties.major;
    out->compute_minor = properties.minor;
    out->sm_count = properties.multiProcessorCount;
    out->l2_bytes = properties.l2CacheSize;
    out->memory_bytes = static_cast<int64_t>(properties.totalGlobalMem);
    AMK_CUDA_CHECK(cudaRuntimeGetVersion(&out->runtime_version));
    AMK_CUDA_CHECK(cudaDriverGetVersion(&out->driver_version));
  });
}

int32_t amk_harness_create(int32_t index, amk_harness** out) {
  return guarded([&] {
    require(out, "out is NULL");
    AMK_CUDA_CHECK(cudaSetDevice(index));
    auto* h = new amk_harness;
    try {
      h->device = index;
      h->stream = amk::make_stream();
      h->second = amk::make_stream();
      h->begin = amk::make_event(cudaEventDefault);
      h->end = amk::make_event(cudaEventDefault);
    } catch (...) {
      delete h;
      throw;
    }
    *out = h;
  });
}

void amk_harness_destroy(amk_harness* h) { delete h; }

int32_t amk_harness_allocate(amk_harness* h, int64_t nbytes, void** out) {
  return guarded([&] {
    require(h && out && nbytes > 0, "allocate: expected a positive number of bytes and where to put the address");
    amk::DeviceMemory memory = amk::allocate_device(static_cast<size_t>(nbytes), "operands");
    *out = memory.get();
    memory.abandon();  // the caller's from here on
  });
}

int32_t amk_harness_free(amk_harness* h, void* memory) {
  return guarded([&] {
    require(h, "harness is NULL");
    AMK_CUDA_CHECK(cudaFree(memory));
  });
}

static int32_t move(amk_harness* h, void* to, const void* from, int64_t nbytes, cudaMemcpyKind kind) {
  return guarded([&] {
    require(h && to && from && nbytes >= 0, "copy: expected a harness and two addresses");
    AMK_CUDA_CHECK(cudaMemcpyAsync(to, from, static_cast<size_t>(nbytes), kind, h->stream.get()));
    AMK_CUDA_CHECK(cudaStreamSynchronize(h->stream.get()));
  });
}
int32_t amk_harness_upload(amk_harness* h, void* to, const void* from, int64_t nbytes) {
  if (!h || !from || nbytes < kStagedBytes) return move(h, to, from, nbytes, cudaMemcpyHostToDevice);
  void* staged = nullptr;
  const int32_t status = guarded([&] {
    staged = staging(*h, nbytes);
    amk::task::each_piece(nbytes, [&](int64_t, int64_t begin, int64_t end) {
      std::memcpy(static_cast<char*>(staged) + begin, static_cast<const char*>(from) + begin,
                  static_cast<size_t>(end - begin));
    });
  });
  return status ? status : move(h, to, staged, nbytes, cudaMemcpyHostToDevice);
}
int32_t amk_harness_download(amk_harness* h, void* to, const void* from, int64_t nbytes) {
  return move(h, to, from, nbytes, cudaMemcpyDeviceToHost);
}
int32_t amk_harness_move(amk_harness* h, void* to, const void* from, int64_t nbytes) {
  return move(h, to, from, nbytes, cudaMemcpyDeviceToDevice);
}
int32_t amk_harness_fill(amk_harness* h, void* to, int32_t byte, int64_t nbytes) {
  return guarded([&] {
    require(h && to && nbytes >= 0, "fill: expected a harness and an address");
    AMK_CUDA_CHECK(cudaMemsetAsync(to, byte, static_cast<size_t>(nbytes), h->stream.get()));
    AMK_CUDA_CHECK(cudaStreamSynchronize(h->stream.get()));
  });
}

int32_t amk_harness_staging(amk_harness* h, int64_t nbytes, void** out) {
  return guarded([&] {
    require(h && out && nbytes > 0, "staging: expected a positive number of bytes and where to put the address");
    *out = staging(*h, nbytes);
  });
}

int32_t amk_harness_run(amk_harness* h, const amk_harness_call_t* call, int32_t* status) {
  return guarded([&] {
    require(h && status, "run: expected a harness and where to put the status");
    require_call(call);
    *status = call_entry(*call, h->stream.get());
    AMK_CUDA_CHECK(cudaStreamSynchronize(h->stream.get()));
    AMK_CUDA_CHECK(cudaDeviceSynchronize());  // what went elsewhere ends here too, and shows its errors
  });
}

int32_t amk_harness_run_held(amk_harness* h, const amk_harness_call_t* call, int32_t settle_ms, const void* watched,
                             void* seen, int64_t nbytes, int32_t* status, int32_t* was_held) {
  return guarded([&] {
    require(h && status && was_held && watched && seen && nbytes > 0 && settle_ms >= 0, "run_held: expected addresses");
    require_call(call);
    Hold hold;
    AMK_CUDA_CHECK(cudaLaunchHostFunc(h->stream.get(), Hold::wait, &hold));
    cudaError_t code = cudaSuccess;
    try {
      hold.end = SteadyClock::now() + kEntryLimit;
      *status = call_entry(*call, h->stream.get());
      *was_held = !hold.gave_up;  // the entry returned while the stream was held
      hold.end = SteadyClock::now() + kReadLimit;
      std::this_thread::sleep_for(std::chrono::milliseconds(settle_ms));
      code = cudaMemcpyAsync(seen, watched, static_cast<size_t>(nbytes), cudaMemcpyDeviceToHost, h->second.get());
      if (!code) code = cudaStreamSynchronize(h->second.get());
    } catch (...) {
      hold.let_go = true;
      cudaStreamSynchronize(h->stream.get());
      throw;
    }
    const bool is_late = *was_held && hold.gave_up;
    hold.let_go = true;
    const cudaError_t ended = cudaStreamSynchronize(h->stream.get());
    while (hold.has_begun && !hold.has_ended) std::this_thread::yield();  // it reads `hold`
    amk::check_cuda(code, "run_held: reading while the stream was held");
    amk::check_cuda(ended, "run_held: the launch");
    AMK_CHECK(!is_late, AMK_ERR_TIMEOUT, "harness: %lld bytes were not read in %lld s, so the stream was let go",
              static_cast<long long>(nbytes), static_cast<long long>(kReadLimit.count()));
    AMK_CUDA_CHECK(cudaDeviceSynchronize());
  });
}

int32_t amk_harness_graph_create(amk_harness* h, const amk_harness_call_t* calls, int32_t n_calls, int32_t rounds,
                                 amk_harness_graph** out) {
  return guarded([&] {
    require(h && calls && out && n_calls > 0 && rounds > 0, "graph: expected at least one call and round");
    for (int32_t i = 0; i < n_calls; ++i) require_call(calls + i);
    auto* g = new amk_harness_graph;
    try {
      g->harness = h;
      g->graph = amk::Owned<cudaGraph_t, cudaGraphDestroy>(capture(h->stream.get(), calls, n_calls, rounds));
      size_t nodes = 0;
      AMK_CUDA_CHECK(cudaGraphGetNodes(g->graph.get(), nullptr, &nodes));
      AMK_CHECK(nodes >= static_cast<size_t>(n_calls) * rounds, AMK_ERR_REJECTED,
                "harness: %d calls put %zu nodes on the stream they were given, expected at least one each",
                n_calls * rounds, nodes);
      cudaGraphExec_t ready = nullptr;
      AMK_CUDA_CHECK(cudaGraphInstantiate(&ready, g->graph.get(), 0));
      g->ready = amk::Owned<cudaGraphExec_t, cudaGraphExecDestroy>(ready);
      AMK_CUDA_CHECK(cudaGraphUpload(ready, h->stream.get()));
      AMK_CUDA_CHECK(cudaStreamSynchronize(h->stream.get()));
    } catch (...) {
      delete g;
      throw;
    }
    *out = g;
  });
}

void amk_harness_graph_destroy(amk_harness_graph* graph) { delete graph; }

int32_t amk_harness_graph_time(amk_harness_graph* graph, int32_t replays, double* us) {
  return guarded([&] {
    require(graph && us && replays > 0, "graph_time: expected a graph and at least one replay");
    const amk_harness& h = *graph->harness;
    wait_cycles<<<1, 1, 0, h.stream.get()>>>(kQueueCycles);
    AMK_CUDA_CHECK(cudaGetLastError());
    AMK_CUDA_CHECK(cudaEventRecord(h.begin.get(), h.stream.get()));
    for (int32_t i = 0; i < replays; ++i) AMK_CUDA_CHECK(cudaGraphLaunch(graph->ready.get(), h.stream.get()));
    AMK_CUDA_CHECK(cudaEventRecord(h.end.get(), h.stream.get()));
    AMK_CUDA_CHECK(cudaEventSynchronize(h.end.get()));
    float ms = 0;
    AMK_CUDA_CHECK(cudaEventElapsedTime(&ms, h.begin.get(), h.end.get()));
    AMK_CHECK(ms > 0, AMK_ERR_DEVICE_FAULT, "harness: %d replays took no time", replays);
    *us = 1e3 * static_cast<double>(ms);
  });
}

int32_t amk_harness_graph_kernels(amk_harness_graph* graph, amk_harness_kernel_t* out, int32_t room, int32_t* count) {
  return guarded([&] {
    require(graph && count && (out || room <= 0), "graph_kernels: expected a graph and room for rows");
    size_t n = 0;
    AMK_CUDA_CHECK(cudaGraphGetNodes(graph->graph.get(), nullptr, &n));
    std::vector<cudaGraphNode_t> nodes(n);
    AMK_CUDA_CHECK(cudaGraphGetNodes(graph->graph.get(), nodes.data(), &n));
    std::vector<amk_harness_kernel_t> found;
    for (const cudaGraphNode_t node : nodes) {
      const amk_harness_kernel_t row = describe(node);
      const auto same = std::find_if(found.begin(), found.end(), [&](const amk_harness_kernel_t& other) {
        return !std::strcmp(other.name, row.name);
      });
      if (same == found.end()) {
        found.push_back(row);
      } else {
        ++same->launches;
      }
    }
    *count = static_cast<int32_t>(found.size());
    for (int32_t i = 0; i < std::min(room, *count); ++i) out[i] = found[static_cast<size_t>(i)];
  });
}
