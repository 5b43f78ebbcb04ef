// The GPU machine against the reference machine: logits, chosen token and appended cache rows of small models of every
// kind, under many schedules, at positions around every edge; then graph replay. Needs a GPU.
// Out: one line per case, "FAIL" in it where a limit is broken; exit status = number of failures.
#include <cuda_runtime_api.h>

#include <cstdio>

#include "gpu_pair.h"

using namespace gpu_test;

namespace gpu_test {
void hybrid_models(int32_t deadline_ms, bool few);
}  // namespace gpu_test

namespace {

int32_t deadline_ms = 0;  // 0: the machine's own; longer under a sanitizer

void compare(const char* name, const amk_model_t& m, const amk_schedule_t& s, int32_t sms, bool few = false) {
  try {
    Pair p(make_image(m, s, sms), 1, deadline_ms);
    double logit_error = 0, cache_error = 0;
    bool same_choice = true;
    std::vector<int32_t> positions = positions_below(m.max_seq, s.attention_kv_block);
    if (few) positions = {0, 17};
    for (int32_t pos : positions) {
      p.token((pos * 37 + 5) % m.vocab);
      p.reference->run(pos);
      p.gpu->run(pos);
      const auto a = read_buffer(*p.gpu, p.image, "logits"), b = read_buffer(*p.reference, p.image, "logits");
      logit_error = std::max(logit_error, error_of(AMK_DTYPE_F32, a.data(), b.data(), m.vocab));
      int32_t got = 0;
      p.gpu->read("next_token", 0, &got, sizeof got);
      const float* logits = reinterpret_cast<const float*>(a.data());
      same_choice &= got == std::max_element(logits, logits + m.vocab) - logits;
      for (int32_t layer = 0; layer < m.layers; ++layer) {
        for (const char* which : {".k", ".v"}) {
          const std::string cache = "kv." + std::to_string(layer) + which;
          const auto x = read_buffer(*p.gpu, p.image, cache), y = read_buffer(*p.reference, p.image, cache);
          cache_error = std::max(cache_error,
                                 error_of(m.dtype, x.data(), y.data(), (int64_t)m.n_kv_heads * m.max_seq * m.head_dim));
        }
      }
    }
    const double limit = limit_of(m.dtype);
    report(
        logit_error <= limit && cache_error <= limit && same_choice,
        amk::text("%-34s %-4s N_tile %4d kv_block %4d fusion 0x%02x sm %d pages %d grid %3d: logits %.2e cache %.2e%s",
                  name, amk::dtype_name(m.dtype), s.gemv_n_tile, s.attention_kv_block, s.fusion, s.sm_policy,
                  s.page_policy, sms, logit_error, cache_error, same_choice ? "" : " WRONG CHOICE"));
  } catch (const amk::Error& e) {
    report(false, std::string(name) + ": " + amk::text("%d ", e.status()) + e.what());
  }
}

amk_schedule_t schedule(int32_t n_tile, int32_t kv_block, int32_t fusion = -1, int32_t sm = AMK_SM_ROUND_ROBIN,
                        int32_t pages = AMK_PAGES_LINEAR, int32_t threads = 0) {
  amk_schedule_t s = amk::default_schedule();
  s.gemv_n_tile = n_tile;
  s.attention_kv_block = kv_block;
  if (fusion >= 0) s.fusion = fusion;
  s.sm_policy = sm;
  s.page_policy = pages;
  if (threads) s.threads_per_block = threads;
  return s;
}

void compare_all() {
  const int32_t f32 = AMK_DTYPE_F32, f16 = AMK_DTYPE_F16, bf16 = AMK_DTYPE_BF16;
  const int32_t every_bias = AMK_MODEL_QKV_BIAS | AMK_MODEL_O_BIAS | AMK_MODEL_MLP_BIAS;
  const int32_t qwen3 = AMK_MODEL_QK_NORM | AMK_MODEL_TIED_HEAD;
  const amk_schedule_t plain = schedule(0, 64);
  for (int32_t dtype : {f32, f16, bf16}) {
    const amk_model_t gqa = model(dtype, 2, 256, 8, 2, 32, 512, 1001, 1024);
    compare("gqa", gqa, plain, 132);
    compare("qwen3: qk norm, tied", model(dtype, 2, 256, 4, 2, 64, 768, 1000, 1024, qwen3), plain, 132);
    compare("every bias, mha", model(dtype, 2, 256, 4, 4, 64, 512, 1000, 1024, every_bias), plain, 132);
    compare("8 heads on 1", model(dtype, 1, 1024, 8, 1, 128, 2816, 2000, 1024, AMK_MODEL_QKV_BIAS), plain, 132);
    compare("head_dim 80", model(dtype, 1, 320, 4, 2, 80, 640, 1000, 1024), plain, 132);
    compare("head_dim 256", model(dtype, 1, 256, 2, 1, 256, 512, 1000, 1024), plain, 132);
    compare("7 heads on 1, odd rows", model(dtype, 1, 112, 7, 1, 16, 240, 997, 1024), plain, 5);
    compare("gqa", gqa, schedule(8, 16), 132);
    compare("gqa", gqa, schedule(64, 256, 0), 132);
    compare("gqa, unfused", gqa, schedule(0, 64, 0, AMK_SM_LOAD_BALANCE, AMK_PAGES_NONE), 3);
    compare("gqa", gqa,
            schedule(8192, 1024, AMK_FUSE_GATE_UP | AMK_FUSE_QKV, AMK_SM_ROUND_ROBIN, AMK_PAGES_GRAPH_COLOR), 1);
    for (int32_t fusion : {255, 255 & ~AMK_FUSE_ROPE_ATTENTION}) {
      const amk_schedule_t direct = schedule(0, 1024, fusion);
      compare("gqa, no combine", gqa, direct, 132);
      compare("8 heads on 1, no combine", model(dtype, 1, 1024, 8, 1, 128, 2816, 2000, 1024), direct, 132);
      compare("qwen3, no combine", model(dtype, 2, 256, 4, 2, 64, 768, 1000, 1024, qwen3), direct, 132);
    }
  }
  compare("qk norm and every bias, unfused", model(f32, 2, 256, 8, 2, 32, 512, 1000, 1024, qwen3 | every_bias),
          schedule(16, 128, 0, AMK_SM_LOAD_BALANCE, AMK_PAGES_GRAPH_COLOR), 17);
  compare("one layer of a 1B model", model(bf16, 1, 2048, 32, 8, 64, 8192, 4096, 1024), plain, 132);
  compare("many rows per tile (panels)", model(bf16, 1, 256, 4, 2, 64, 512, 6001, 1024), schedule(8192, 64), 2);
}

// What each supported family is made of, with a cache of 8,192 rows and all three dtypes.
void families() {
  const int32_t qk_norm = AMK_MODEL_QK_NORM, tied = AMK_MODEL_TIED_HEAD, qkv_bias = AMK_MODEL_QKV_BIAS;
  for (int32_t dtype : {AMK_DTYPE_F32, AMK_DTYPE_F16, AMK_DTYPE_BF16}) {
    const amk_schedule_t plain = schedule(0, 64);
    compare("llama2: mha", model(dtype, 2, 256, 4, 4, 64, 688, 1000, 8192), plain, 132);
    compare("llama3: gqa", model(dtype, 2, 256, 8, 2, 32, 512, 1001, 8192), plain, 132);
    compare("mistral: q wider than hidden", model(dtype, 2, 160, 8, 2, 24, 512, 1000, 8192), plain, 132);
    compare("qwen2: qkv bias, tied", model(dtype, 2, 256, 4, 2, 64, 512, 1000, 8192, qkv_bias | tied), plain, 132);
    compare("qwen3: qk norm", model(dtype, 2, 128, 4, 2, 64, 512, 1000, 8192, qk_norm), plain, 132);
    compare("smollm: 9 heads on 3, tied", model(dtype, 2, 144, 9, 3, 16, 256, 1000, 8192, tied), plain, 132);
  }
}

amk_model_t quantised(amk_model_t m, int32_t group) {
  m.weight_group = group;
  return m;
}

// Matrices as int8, of every kind of model that streams; and what cannot is refused before anything is launched.
void int8_models() {
  const int32_t every_bias = AMK_MODEL_QKV_BIAS | AMK_MODEL_O_BIAS | AMK_MODEL_MLP_BIAS;
  const amk_schedule_t plain = schedule(0, 64);
  for (int32_t dtype : {AMK_DTYPE_F16, AMK_DTYPE_BF16}) {
    for (int32_t group : {64, 128}) {
      const amk_model_t gqa = quantised(model(dtype, 2, 256, 8, 2, 32, 512, 1000, 1024), group);
      compare("int8 gqa", gqa, plain, 132);
      compare("int8 gqa, unfused", gqa, schedule(0, 64, 0, AMK_SM_LOAD_BALANCE, AMK_PAGES_NONE), 3);
      compare("int8 gqa", gqa, schedule(8, 16), 132);
      compare("int8 qk norm", quantised(model(dtype, 2, 256, 4, 2, 64, 768, 1000, 1024, AMK_MODEL_QK_NORM), group),
              plain, 132);
      compare("int8 every bias, mha", quantised(model(dtype, 2, 256, 4, 4, 64, 640, 1000, 1024, every_bias), group),
              plain, 132);
      compare("int8, tied head plain",
              quantised(model(dtype, 2, 128, 4, 2, 32, 1152, 1000, 1024, AMK_MODEL_TIED_HEAD), group), plain, 132);
      compare("int8 panels", quantised(model(dtype, 1, 256, 4, 2, 64, 512, 6000, 1024), group), schedule(8192, 64), 2);
    }
  }
  compare("int8 one layer of 1B", quantised(model(AMK_DTYPE_BF16, 1, 2048, 32, 8, 64, 8192, 4096, 1024), 128), plain,
          132);
  compare("int8 one layer of 8B", quantised(model(AMK_DTYPE_BF16, 1, 4096, 32, 8, 128, 14336, 4096, 1024), 128), plain,
          132);
  amk_schedule_t direct = plain;
  direct.cpasync = 0;
  const auto refused = [&](const char* what, const amk_model_t& m, const amk_schedule_t& s) {
    std::string said = "accepted";
    try {
      amk::make_cuda_vm(make_image(m, s, 4), options(), 0);
    } catch (const amk::Error& e) {
      said = amk::text("%d ", e.status()) + e.what();
    }
    report(
        said.find(amk::text("%d ", AMK_ERR_REJECTED)) == 0 && said.find("through the ring alone") != std::string::npos,
        amk::text("int8 %s: %s", what, said.c_str()));
  };
  refused("loaded directly", quantised(model(AMK_DTYPE_BF16, 1, 128, 4, 2, 32, 256, 512, 64), 64), direct);
  refused("f32", quantised(model(AMK_DTYPE_F32, 1, 128, 4, 2, 32, 256, 512, 64), 64), plain);
  refused("odd vocabulary", quantised(model(AMK_DTYPE_BF16, 1, 128, 4, 2, 32, 256, 511, 64), 64), plain);
}

// decode() is write, run and read in one; and what it refuses leaves the token that the device holds as it was.
void decodes() {
  const amk_model_t m = model(AMK_DTYPE_BF16, 2, 256, 8, 2, 32, 512, 1001, 128);
  Pair p(make_image(m, schedule(0, 64), 132), 1, deadline_ms);
  bool ok = true;
  const auto logits = [&](amk::Vm& vm) { return read_buffer(vm, p.image, "logits"); };
  for (int32_t pos : {0, 1, 2, 63, 64, 127}) {
    const int32_t token = (pos * 37 + 5) % m.vocab;
    const int32_t chosen = p.gpu->decode(token, pos);
    const std::vector<uint8_t> decoded = logits(*p.gpu);
    const float* values = reinterpret_cast<const float*>(decoded.data());
    ok &= chosen == std::max_element(values, values + m.vocab) - values;
    int32_t read = -1;
    p.gpu->read("next_token", 0, &read, sizeof read);
    p.gpu->run(pos);  // of the token that decode left there
    ok &= read == chosen && logits(*p.gpu) == decoded;
    p.token(token);
    p.reference->run(pos);
    p.gpu->run(pos);
    ok &= logits(*p.gpu) == decoded;
    ok &= error_of(AMK_DTYPE_F32, decoded.data(), logits(*p.reference).data(), m.vocab) <= limit_of(m.dtype);
  }
  const auto refuses = [&](int32_t token, int32_t pos) {
    try {
      p.gpu->decode(token, pos);
      return false;
    } catch (const amk::Error& e) {
      return e.status() == AMK_ERR_INVALID_ARGUMENT;
    }
  };
  p.gpu->decode(11, 64);
  const std::vector<uint8_t> before = logits(*p.gpu);
  const bool refused = refuses(12, m.max_seq) && refuses(12, -1) && refuses(m.vocab, 64) && refuses(-1, 64);
  p.gpu->run(64);
  const bool kept = logits(*p.gpu) == before;
  const int32_t other = 13;
  p.gpu->write("token", 0, &other, sizeof other);
  p.gpu->run(64);
  const bool written = logits(*p.gpu) != before;
  report(ok && refused && kept && written,
         amk::text("decode at 6 positions: %s; %s; %s; %s", ok ? "as write, run and read" : "WRONG",
                   refused ? "bad requests refused" : "a bad request ACCEPTED",
                   kept ? "the token before is kept" : "the token before is LOST",
                   written ? "a written token counts" : "a written token is IGNORED"));
}

// Several tokens a step: logits, choices and cache rows of each token, and the choices that come back with the proof.
void compare_batch(const char* name, amk_model_t m, int32_t batch, const amk_schedule_t& s, int32_t sms,
                   bool few = false) {
  try {
    m.batch = batch;
    Pair p(make_image(m, s, sms), 1, deadline_ms);
    const size_t count = static_cast<size_t>(batch);
    std::vector<int32_t> tokens(count), got(count), want(count);
    std::vector<int32_t> positions{0, 13, 17, 1000, m.max_seq - batch};
    if (few) positions = {0, 17};
    double logit_error = 0, cache_error = 0;
    bool same_choice = true;
    for (int32_t pos : positions) {
      if (pos > m.max_seq - batch) continue;
      for (int32_t t = 0; t < batch; ++t) tokens[static_cast<size_t>(t)] = (pos * 37 + 5 + t * 11) % m.vocab;
      p.reference->decode_batch(tokens.data(), batch, pos, want.data());
      p.gpu->decode_batch(tokens.data(), batch, pos, got.data());
      const auto a = read_buffer(*p.gpu, p.image, "logits"), b = read_buffer(*p.reference, p.image, "logits");
      logit_error = std::max(logit_error, error_of(AMK_DTYPE_F32, a.data(), b.data(), int64_t{batch} * m.vocab));
      for (int32_t t = 0; t < batch; ++t) {
        const float* logits = reinterpret_cast<const float*>(a.data()) + int64_t{t} * m.vocab;
        same_choice &= got[static_cast<size_t>(t)] == std::max_element(logits, logits + m.vocab) - logits;
      }
      for (int32_t layer = 0; layer < m.layers; ++layer) {
        for (const char* which : {".k", ".v"}) {
          const std::string cache = "kv." + std::to_string(layer) + which;
          const auto x = read_buffer(*p.gpu, p.image, cache), y = read_buffer(*p.reference, p.image, cache);
          cache_error = std::max(cache_error,
                                 error_of(m.dtype, x.data(), y.data(), (int64_t)m.n_kv_heads * m.max_seq * m.head_dim));
        }
      }
    }
    const double limit = limit_of(m.dtype);
    report(logit_error <= limit && cache_error <= limit && same_choice,
           amk::text("%-28s %-4s %2d tokens, kv_block %4d fusion 0x%02x grid %3d: logits %.2e cache %.2e%s", name,
                     amk::dtype_name(m.dtype), batch, s.attention_kv_block, s.fusion, sms, logit_error, cache_error,
                     same_choice ? "" : " WRONG CHOICE"));
  } catch (const amk::Error& e) {
    report(false, std::string(name) + ": " + amk::text("%d ", e.status()) + e.what());
  }
}

void batches() {
  const int32_t every_bias = AMK_MODEL_QKV_BIAS | AMK_MODEL_O_BIAS | AMK_MODEL_MLP_BIAS;
  const int32_t qwen3 = AMK_MODEL_QK_NORM | AMK_MODEL_TIED_HEAD;
  const amk_schedule_t plain = schedule(0, 16);
  for (int32_t dtype : {AMK_DTYPE_F32, AMK_DTYPE_F16, AMK_DTYPE_BF16}) {
    for (int32_t batch : {2, 5, 16}) {
      const amk_model_t gqa = model(dtype, 2, 256, 8, 2, 32, 512, 1001, 1024);
      compare_batch("gqa", gqa, batch, plain, 132);
      compare_batch("gqa, unfused", gqa, batch, schedule(0, 64, 0, AMK_SM_LOAD_BALANCE, AMK_PAGES_NONE), 3);
      compare_batch("qwen3: qk norm, tied", model(dtype, 2, 256, 4, 2, 64, 768, 1000, 1024, qwen3), batch, plain, 132);
      compare_batch("every bias, mha", model(dtype, 2, 256, 4, 4, 64, 512, 1000, 1024, every_bias), batch, plain, 132);
      compare_batch("8 heads on 1, 128 wide", model(dtype, 1, 1024, 8, 1, 128, 2816, 2000, 1024), batch, plain, 132);
      compare_batch("7 heads on 1, odd rows", model(dtype, 1, 112, 7, 1, 16, 240, 997, 1024), batch, plain, 5);
    }
    compare_batch("panels of rows and columns", model(dtype, 1, 4640, 2, 1, 64, 512, 6000, 256), 16, plain, 7);
  }
  for (int32_t group : {64, 128}) {
    for (int32_t batch : {2, 16}) {
      compare_batch("int8 gqa", quantised(model(AMK_DTYPE_BF16, 2, 256, 8, 2, 64, 512, 1000, 1024), group), batch,
                    plain, 132);
      compare_batch("int8 panels", quantised(model(AMK_DTYPE_F16, 1, 4736, 2, 1, 64, 512, 6000, 256), group), batch,
                    plain, 7);
    }
  }
  compare_batch("one layer of a 1B model", model(AMK_DTYPE_BF16, 1, 2048, 32, 8, 64, 8192, 4096, 1024), 16, plain, 132);
  compare_batch("one layer of an 8B model", model(AMK_DTYPE_BF16, 1, 4096, 32, 8, 128, 14336, 4096, 1024), 16, plain,
                132);
  compare_batch("int8 one layer of 8B", quantised(model(AMK_DTYPE_BF16, 1, 4096, 32, 8, 128, 14336, 4096, 1024), 128),
                16, plain, 132);

  // What a step of several tokens cannot do is refused before anything runs.
  amk_model_t m = model(AMK_DTYPE_BF16, 1, 128, 4, 2, 32, 256, 512, 64);
  m.batch = 5;
  Pair p(make_image(m, plain, 4), 0, deadline_ms);
  const std::vector<int32_t> tokens{1, 2, 3, 4, 5}, bad{1, 2, 3, 512, 5};
  std::vector<int32_t> next(5);
  const auto refused = [&](const char* what, int32_t status, auto call) {
    int32_t said = AMK_OK;
    try {
      call();
    } catch (const amk::Error& e) {
      said = e.status();
    }
    report(said == status, amk::text("5 tokens, %s: status %d", what, said));
  };
  refused("one token given", AMK_ERR_UNSUPPORTED, [&] { p.gpu->decode(1, 0); });
  refused("a step over the end", AMK_ERR_INVALID_ARGUMENT,
          [&] { p.gpu->decode_batch(tokens.data(), 5, 60, next.data()); });
  refused("a token outside its table", AMK_ERR_INVALID_ARGUMENT,
          [&] { p.gpu->decode_batch(bad.data(), 5, 0, next.data()); });
  refused("another number", AMK_ERR_INVALID_ARGUMENT, [&] { p.gpu->decode_batch(tokens.data(), 4, 0, next.data()); });
  refused("then a good step", AMK_OK, [&] { p.gpu->decode_batch(tokens.data(), 5, 59, next.data()); });
}

// launch() into a capturing stream, replayed at several positions.
void replay() {
  const amk_model_t m = model(AMK_DTYPE_F32, 2, 256, 8, 2, 32, 512, 1000, 1024);
  Pair p(make_image(m, schedule(0, 64), 132), 0, deadline_ms);
  p.token(3);
  p.gpu->prepare();
  cudaStream_t stream;
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  bool ok = cudaStreamCreate(&stream) == cudaSuccess &&
            cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal) == cudaSuccess;
  p.gpu->launch(0, stream);
  ok =
      ok && cudaStreamEndCapture(stream, &graph) == cudaSuccess && cudaGraphInstantiate(&exec, graph, 0) == cudaSuccess;
  double error = 0;
  for (int32_t pos : {0, 5, 64, 900}) {
    p.gpu->aim(pos);
    ok = ok && cudaGraphLaunch(exec, stream) == cudaSuccess && cudaStreamSynchronize(stream) == cudaSuccess;
    p.gpu->finish();
    p.reference->run(pos);
    const auto a = read_buffer(*p.gpu, p.image, "logits"), b = read_buffer(*p.reference, p.image, "logits");
    error = std::max(error, error_of(AMK_DTYPE_F32, a.data(), b.data(), m.vocab));
  }
  bool stale_proof_refused = false;
  p.gpu->aim(1);
  try {
    p.gpu->finish();  // nothing ran since aim
  } catch (const amk::Error& e) {
    stale_proof_refused = e.status() == AMK_ERR_INTERNAL;
  }
  // Replays that nobody announced, between steps on the machine's own stream; each is of the last position aimed at.
  double own_error = 0;
  p.reference->run(1);
  for (int32_t pos : {900, 7}) {
    ok = ok && cudaGraphLaunch(exec, stream) == cudaSuccess && cudaStreamSynchronize(stream) == cudaSuccess;
    p.gpu->run(pos);
    p.reference->run(pos);
    const auto a = read_buffer(*p.gpu, p.image, "logits"), b = read_buffer(*p.reference, p.image, "logits");
    own_error = std::max(own_error, error_of(AMK_DTYPE_F32, a.data(), b.data(), m.vocab));
  }
  report(ok && error <= 1e-5 && own_error <= 1e-5 && stale_proof_refused,
         amk::text("graph replay at 4 positions: logits %.2e, on its own between replays %.2e, a step that did not run "
                   "is %s",
                   error, own_error, stale_proof_refused ? "noticed" : "NOT noticed"));
  cudaGraphExecDestroy(exec);
  cudaGraphDestroy(graph);
  cudaStreamDestroy(stream);
}

void long_context() {
  for (int32_t dtype : {AMK_DTYPE_F32, AMK_DTYPE_F16, AMK_DTYPE_BF16}) {
    const amk_model_t m = model(dtype, 1, 512, 8, 2, 64, 1024, 1000, 8192);
    Pair p(make_image(m, schedule(0, 64), 132), 0, deadline_ms);
    double error = 0;
    for (int32_t pos : {0, 1, 17, 63, 64, 1023, 4095, 8190, 8191}) {
      p.token(pos % 1000);
      p.gpu->run(pos);
      p.reference->run(pos);
      const auto a = read_buffer(*p.gpu, p.image, "logits"), b = read_buffer(*p.reference, p.image, "logits");
      error = std::max(error, error_of(AMK_DTYPE_F32, a.data(), b.data(), m.vocab));
    }
    report(error <= limit_of(dtype), amk::text("%-4s positions to 8,191: logits %.2e", amk::dtype_name(dtype), error));
  }
}

// Five whole models at two positions each, and hybrids for three steps: what a sanitizer, some hundred times slower,
// has time for.
void three_models() {
  const int32_t qwen3 = AMK_MODEL_QK_NORM | AMK_MODEL_TIED_HEAD;
  compare("gqa", model(AMK_DTYPE_BF16, 1, 128, 4, 2, 32, 256, 500, 64), schedule(0, 16), 16, true);
  compare("qk norm, tied, every bias",
          model(AMK_DTYPE_F32, 1, 128, 4, 2, 32, 256, 500, 64,
                qwen3 | AMK_MODEL_QKV_BIAS | AMK_MODEL_O_BIAS | AMK_MODEL_MLP_BIAS),
          schedule(8, 16, 0), 8, true);
  compare("int8", quantised(model(AMK_DTYPE_BF16, 1, 128, 4, 2, 32, 256, 504, 64), 64), schedule(0, 16), 16, true);
  compare("mha, 80 wide", model(AMK_DTYPE_F16, 1, 160, 2, 2, 80, 320, 301, 64), schedule(64, 32), 3, true);
  compare_batch("gqa", model(AMK_DTYPE_BF16, 1, 128, 4, 2, 64, 256, 504, 64), 5, schedule(0, 16), 16, true);
  hybrid_models(deadline_ms, true);
}

}  // namespace

// "int8", "batch", "hybrid": quantised models, steps of several tokens, hybrid models alone. "launches": the ways to
// run a step. "quick": the first models alone, before and after a measurement. "three": see there. deadline_ms=N.
int main(int argc, char** argv) {
  const std::string which = argc > 1 ? argv[1] : "";
  for (int i = 1; i < argc; ++i) std::sscanf(argv[i], "deadline_ms=%d", &deadline_ms);
  try {
    if (which == "int8") {
      int8_models();
    } else if (which == "batch") {
      batches();
    } else if (which == "hybrid") {
      hybrid_models(deadline_ms, false);
    } else if (which == "launches") {
      decodes();
      replay();
    } else if (which == "three") {
      three_models();
    } else if (which == "quick") {
      long_context();
      decodes();
      compare("one layer of a 1B model", model(AMK_DTYPE_BF16, 1, 2048, 32, 8, 64, 8192, 4096, 1024), schedule(0, 64),
              132);
    } else {
      compare_all();
      families();
      int8_models();
      batches();
      hybrid_models(deadline_ms, false);
      long_context();
      decodes();
      replay();
    }
  } catch (const amk::Error& e) {
    report(false, amk::text("status %d: ", e.status()) + e.what());
  }
  std::printf("gpu_check %s: %d failures\n", which.c_str(), failures);
  return failures;
}
