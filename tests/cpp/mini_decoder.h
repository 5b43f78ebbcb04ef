// One layer of a decoder as a valid program of 15 tasks on 4 queues, for tests that break one thing in it.
// Shapes: V=16 H=8 Q=2 G=1 D=8 S=16, two KV splits, bf16.
#pragma once

#include <initializer_list>
#include <utility>

#include "program_builder.h"

struct MiniDecoder : ProgramBuilder {
  int token, embed, x, norm, wqkv, qkv, inv_freq, q, k_cache, v_cache, part_o, part_ml, attn, wo, h, logits, best,
      index, next;
  int t_embed, t_qkv, t_rope, t_append_k, t_append_v, t_attend, t_combine, t_wo, t_head, t_argmax, t_next;
  int c_embed, c_qkv, c_rope, c_append, c_attend, c_combine, c_wo, c_head, c_argmax, c_next;

  MiniDecoder() : ProgramBuilder(4, 16) {
    constexpr int kT = AMK_DTYPE_BF16, kF = AMK_DTYPE_F32;
    token = buffer("token", AMK_KIND_IO_INPUT, AMK_DTYPE_I32, {1});
    embed = buffer("embed", AMK_KIND_WEIGHT, kT, {16, 8});
    norm = buffer("norm", AMK_KIND_WEIGHT, kT, {8});
    wqkv = buffer("wqkv", AMK_KIND_WEIGHT, kT, {32, 8});
    wo = buffer("wo", AMK_KIND_WEIGHT, kT, {8, 16});
    inv_freq = buffer("rope_inv_freq", AMK_KIND_CONST, kF, {4});
    k_cache = buffer("kv.0.k", AMK_KIND_KV_CACHE, kT, {1, 16, 8});
    v_cache = buffer("kv.0.v", AMK_KIND_KV_CACHE, kT, {1, 16, 8});
    logits = buffer("logits", AMK_KIND_IO_OUTPUT, kF, {16});
    next = buffer("next_token", AMK_KIND_IO_OUTPUT, AMK_DTYPE_I32, {1});
    x = activation("x", kT, {8});
    qkv = activation("qkv", kT, {32});
    q = activation("q", kT, {16});
    part_o = activation("part_o", kF, {2, 2, 8});
    part_ml = activation("part_ml", kF, {2, 2, 2});
    attn = activation("attn", kT, {16});
    h = activation("h", kT, {8});
    best = activation("best_value", kF, {2});
    index = activation("best_index", AMK_DTYPE_I32, {2});
    for (int* c : {&c_embed, &c_qkv, &c_rope, &c_append, &c_attend, &c_combine, &c_wo, &c_head, &c_argmax, &c_next})
      *c = counter();

    amk_params_t p{};
    p.vocab = 16;
    p.hidden = p.N_tile = 8;
    t_embed = task(0, AMK_OP_EMBED, {token, embed}, {x}, p, c_embed);
    p = {};
    p.K = 8;
    p.N = 32;
    p.N_tile = 16;
    p.flags = AMK_FLAG_NORM;
    p.eps = 1e-5f;
    t_qkv = task(0, AMK_OP_GEMV_TILE, {x, wqkv, norm}, {qkv}, p, c_qkv, {{c_embed, 1}});
    p.n_off = 16;
    task(1, AMK_OP_GEMV_TILE, {x, wqkv, norm}, {qkv}, p, c_qkv, {{c_embed, 1}});
    p = {};
    p.n_heads = 2;
    p.head_dim = 8;
    t_rope = task(2, AMK_OP_ROPE, {qkv, inv_freq}, {q}, p, c_rope, {{c_qkv, 2}});
    p = {};
    p.n_kv_heads = p.N_tile = 1;
    p.head_dim = 8;
    p.K = 16;
    p.m_off = 16;
    p.flags = AMK_FLAG_ROPE;
    t_append_k = task(3, AMK_OP_KV_APPEND, {qkv, inv_freq}, {k_cache}, p, c_append, {{c_qkv, 2}});
    p.m_off = 24;
    p.flags = 0;
    t_append_v = task(0, AMK_OP_KV_APPEND, {qkv}, {v_cache}, p, c_append, {{c_qkv, 2}});
    p = {};
    p.n_heads = p.M = 2;
    p.n_kv_heads = p.N_tile = 1;
    p.head_dim = 8;
    p.K = p.M_tile = 16;
    p.scale = 0.35f;
    const std::initializer_list<std::pair<int, int>> ready = {{c_rope, 1}, {c_append, 2}};
    t_attend = task(1, AMK_OP_ATTENTION_TILE, {q, k_cache, v_cache}, {part_o, part_ml}, p, c_attend, ready);
    p.dim = 1;
    task(2, AMK_OP_ATTENTION_TILE, {q, k_cache, v_cache}, {part_o, part_ml}, p, c_attend, ready);
    p = {};
    p.n_heads = p.M = p.N_tile = 2;
    p.head_dim = 8;
    t_combine = task(3, AMK_OP_ATTENTION_COMBINE, {part_o, part_ml}, {attn}, p, c_combine, {{c_attend, 2}});
    p = {};
    p.K = 16;
    p.N = p.N_tile = 8;
    p.flags = AMK_FLAG_RESIDUAL;
    t_wo = task(1, AMK_OP_GEMV_TILE, {attn, wo, x}, {h}, p, c_wo, {{c_combine, 1}});
    p = {};
    p.K = p.N_tile = 8;
    p.N = 16;
    t_head = task(0, AMK_OP_GEMV_TILE, {h, embed}, {logits}, p, c_head, {{c_wo, 1}});
    p.n_off = 8;
    task(2, AMK_OP_GEMV_TILE, {h, embed}, {logits}, p, c_head, {{c_wo, 1}});
    p = {};
    p.vocab = 16;
    p.N_tile = 8;
    p.M = 2;
    t_argmax = task(0, AMK_OP_SAMPLE_ARGMAX, {logits}, {best, index}, p, c_argmax, {{c_head, 2}});
    p.dim = 1;
    p.n_off = 8;
    task(3, AMK_OP_SAMPLE_ARGMAX, {logits}, {best, index}, p, c_argmax, {{c_head, 2}});
    p = {};
    p.M = 2;
    t_next = task(1, AMK_OP_ARGMAX_COMBINE, {best, index}, {next}, p, c_next, {{c_argmax, 2}});
  }

  // Attention turns this step's heads itself and waits for qkv alone. The ROPE task stays, for nobody.
  void raw_heads(bool with_norms = false) {
    for (int i : {t_attend, t_attend + 1}) {
      amk_instruction_t& t = program.tasks[i];
      t.inputs[0] = qkv;
      t.inputs[t.n_inputs++] = inv_freq;
      t.params.flags = AMK_FLAG_ROPE;
      t.n_waits = 1;
      t.wait_counter[0] = c_qkv;
      t.wait_threshold[0] = 2;
      t.wait_counter[1] = t.wait_threshold[1] = 0;
      if (!with_norms) continue;
      t.inputs[t.n_inputs++] = norm;
      t.inputs[t.n_inputs++] = norm;
      t.params.flags |= AMK_FLAG_NORM;
      t.params.eps = 1e-5f;
    }
  }
};
