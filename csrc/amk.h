/* amk.h - the public interface of libamk, and the only home of its opcodes, limits and table layouts.
 *
 * C99. Read by C, C++, CUDA and (between the amk-cdef marks, where only "#define NAME number" is allowed) by cffi.
 *
 * Conventions
 *  - Every fallible call returns an amk_status; 0 is success. The sentence behind a failure is in amk_last_error(),
 *    which is thread-local: it says what, where, expected and got. No call prints, aborts, exits or throws.
 *  - Handles are opaque. `create`-like calls give the caller ownership; the matching `_destroy` accepts NULL.
 *    Different handles may be used from different threads; one handle is used from one thread at a time.
 *  - Structs that cross by pointer and may grow start with `struct_size` = sizeof(the struct); new fields only at
 *    the end. A smaller size than this header's first version is AMK_ERR_INVALID_ARGUMENT.
 *  - Dimension letters in shapes: L layers, H hidden, F feed-forward, Q query heads, G kv heads, D head dim,
 *    S cache rows (max_seq), V vocabulary, T KV splits. Of a gated delta net: Hq key heads, Hv value heads, E head dim,
 *    W convolution width, C = (2Hq+Hv)*E channels. B consecutive tokens of one sequence in a step, 1 unless said.
 */
#ifndef AMK_H
#define AMK_H
#include <stddef.h>
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif
#if defined(__GNUC__)
#pragma GCC visibility push(default)
#endif
/* amk-cdef-begin */
#define AMK_ABI_VERSION_MAJOR 1
#define AMK_ABI_VERSION_MINOR 6
#define AMK_IR_VERSION 1
/* ---- limits ------------------------------------------------------------------------------------------------ */
#define AMK_MAX_INPUTS 8
#define AMK_MAX_OUTPUTS 4
#define AMK_MAX_WAITS 8
#define AMK_MAX_RANK 4
#define AMK_MAX_TASKS 4194304    /* 2^22 */
#define AMK_MAX_COUNTERS 1048576 /* 2^20 */
#define AMK_MAX_BUFFERS 1048576  /* 2^20 */
#define AMK_MAX_QUEUES 1024      /* SMs of one device */
#define AMK_MAX_SEQ 16777216     /* 2^24 positions */
#define AMK_MAX_LAYERS 1024
#define AMK_MAX_HIDDEN 1048576   /* 2^20 */
#define AMK_MAX_VOCAB 4194304    /* 2^22 */
#define AMK_ROW_GROUP 8          /* output rows of a matrix-vector product are dealt to SMs in groups of this many */
#define AMK_MIN_WEIGHT_GROUP 64  /* elements of a row that share a scale in a quantised model: this many */
#define AMK_MAX_WEIGHT_GROUP 128 /* or this many */
#define AMK_MAX_CONV_WIDTH 8     /* taps of a causal convolution */
#define AMK_MAX_BATCH 16         /* B: consecutive tokens of one sequence that a step decodes */
#define AMK_VECTOR_BYTES 16      /* widest load of a kernel: what V5 asks of matrix rows and of their operands */
#define AMK_PAGE_ALIGN 256       /* alignment of pages that the lowering places */
#define AMK_MAX_GDN_BATCH 512    /* batch rows of amk_gdn_decode */
#define AMK_MAX_GDN_HEADS 256    /* value heads of amk_gdn_decode */
#define AMK_MAX_REPORTED 64      /* rejections kept in a report; the count goes on */
#define AMK_HASH_BYTES 32        /* BLAKE2b-256 (RFC 7693) */
/* Bytes touched plus floating-point operations of one queue in a step (V23): what a minute at 1 GB/s amounts to. One SM
 * of today's GPUs streams over 20 GB/s, and the share of a model that fills the device's memory is a tenth of this. */
#define AMK_MAX_QUEUE_WORK 60000000000
/* ---- status codes: pinned, append-only ---------------------------------------------------------------------- */
typedef enum amk_status {
  AMK_OK = 0,
  AMK_ERR_INVALID_ARGUMENT = -1, /* misuse of this API: NULL, size, range of a call argument */
  AMK_ERR_INPUT = -2,            /* bytes from outside are malformed (image, table) */
  AMK_ERR_UNSUPPORTED = -3,      /* a well-formed model or feature this library does not model */
  AMK_ERR_REJECTED = -4,         /* a schedule or program was judged and refused */
  AMK_ERR_OUT_OF_MEMORY = -5,
  AMK_ERR_MISMATCH = -6,    /* certificate, hash, ABI or build does not agree (V24) */
  AMK_ERR_UNAVAILABLE = -7, /* needs a GPU, driver or build option that is not there */
  AMK_ERR_DEVICE_FAULT = -8,
  AMK_ERR_TIMEOUT = -9,
  AMK_ERR_POISONED = -10,  /* an earlier fault makes this handle unusable */
  AMK_ERR_NONFINITE = -11, /* NaN or infinity where a number is due */
  AMK_ERR_INTERNAL = -70   /* a bug in libamk: a check of its own failed */
} amk_status;

/* ---- pinned numbers of the tables: append-only --------------------------------------------------------------- */
typedef enum amk_dtype {
  AMK_DTYPE_F32 = 0,
  AMK_DTYPE_F16 = 1,
  AMK_DTYPE_BF16 = 2,
  AMK_DTYPE_F8E4M3 = 3,
  AMK_DTYPE_F8E5M2 = 4,
  AMK_DTYPE_I32 = 5,
  AMK_DTYPE_I8 = 6,
  AMK_DTYPE_I4 = 7,
  AMK_DTYPE_U8 = 8,
  AMK_DTYPE_BOOL = 9
} amk_dtype;

typedef enum amk_space {
  AMK_SPACE_HBM = 0, /* storage bound from outside or owned by the machine: weights, cache, inputs, outputs */
  AMK_SPACE_GLOBAL_SCRATCH = 1, /* the arena that pages carve up */
  AMK_SPACE_SMEM = 2,
  AMK_SPACE_REGISTER = 3
} amk_space;

typedef enum amk_buffer_kind {
  AMK_KIND_WEIGHT = 0,
  AMK_KIND_ACTIVATION = 1,
  AMK_KIND_KV_CACHE = 2, /* [G, S, D]; rows below `pos` are read-only in a step, rows pos .. pos + B - 1 are appended */
  AMK_KIND_IO_INPUT = 3,
  AMK_KIND_IO_OUTPUT = 4,
  AMK_KIND_CONST = 5,
  /* What one step leaves to the next: a recurrent state. Owned by the machine, zero at first. Within a step each of its
   * bytes is read and then written, once, by one and the same task, which names the buffer as an input and as an
   * output; nobody else touches it. A failed step poisons it: amk_vm_run says how. */
  AMK_KIND_STATE = 6
} amk_buffer_kind;

/* Opcodes. "Law" = what the task reads and writes; csrc/ops/op_spec.cpp holds it as code and is the only place that
 * does. T is one of f32, f16, bf16, the same for every operand named T. Offsets count elements unless said
 * otherwise; a parameter that an opcode does not name must be zero. Accumulation is f32, with one rounding where a
 * result is stored.
 * Tokens: an opcode marked [B] works on B tokens, t = 0 .. B-1 at positions pos + t: M_tile of them (of ATTENTION_TILE
 * N; there and here 0 means 1), at most AMK_MAX_BATCH. With B > 1 each operand of it but weights, tables and caches is
 * [B, W], row t at t*W, and each part_o, part_ml and best_* below gets B as its first dimension; the law then holds
 * row by row for the columns of the task, offsets counting inside a row. With B = 1 such an operand is any W elements.
 * ROPE, KV_APPEND and ATTENTION_TILE have one B in all of a program (V19): the program's, which is 1 without them. */
typedef enum amk_opcode {
  AMK_OP_NOP = 0,
  /* [B] out[n_off + i] = in[m_off + i] for i < N_tile; any dtype, the same on both sides. */
  AMK_OP_COPY = 1,
  /* [B] in: token i32 [B], table T [V=vocab, H=hidden]. out[n_off + i] = table[token, n_off + i] for i < N_tile. */
  AMK_OP_EMBED = 2,
  /* in: x T, weight T [hidden]. For rows r < M_tile, of any number and one after another: out[n_off + r*hidden + j] =
   * x[m_off + r*hidden + j] * weight[j] / sqrt(mean_j(x^2) + eps)   (Zhang & Sennrich 2019, arXiv:1910.07467).
   * NORM_PLUS_ONE is allowed. */
  AMK_OP_RMSNORM = 3,
  AMK_OP_LAYERNORM = 4,
  /* [B] in: x T, weight T [N, K], then in this order where the flag is set: NORM weight T [K], BIAS T [N],
   * RESIDUAL T [N]. out (T or f32): y[n] = sum_k weight[n, k] * x[m_off + k] (+ bias[n]) (+ residual[n]) for
   * n in [n_off, n_off + N_tile). NORM: x is first RMS-normalised over its K elements (eps) and rounded to T.
   * SILU_PAIR: weight is [2N, K], bias [2N]: y[n] = silu(row n) * (row N + n). In-place residual is allowed.
   * qdtype AMK_DTYPE_I8 (0: not quantised): weight is I8 and behind it comes scale T [N, K / group] ([2N, K / group]
   * with SILU_PAIR); group is a multiple of 16 that divides K. Element (n, k) then stands for
   * weight[n, k] * scale[n, k / group], where -128 counts as -127. */
  AMK_OP_GEMV_TILE = 5,
  AMK_OP_GEMM_TILE = 6,
  /* [B] in: q T (rotated; head h at m_off + h*D), k and v caches T [G, S=K, D]. out: part_o f32 [Q, T=M, D],
   * part_ml f32 [Q, M, 2] (row maximum, sum of exponentials). Covers kv heads [n_off, n_off + N_tile) and KV split
   * `dim` of M. At launch the rows [0, pos + B) are cut into ceil((pos+B) / M_tile) blocks and split d of M takes the
   * blocks [floor(blocks*d/M), floor(blocks*(d+1)/M)); of its rows token t sees those in [0, pos + t]. Where that is
   * none, part_ml = (-inf, 0) and part_o = 0. part_o is the undivided sum of exp(s - max) * v, s = scale * <q, k>.
   * ROPE (B = 1 alone): input 0 is x T, this step's raw heads back to back: query head h at m_off + h*D, the new key of
   * kv head g at m_off + (Q + g)*D, its new value at m_off + (Q + G + g)*D. After the caches come inv_freq f32 [D/2]
   * and, where NORM is set too (never without ROPE), q_norm T [D] and k_norm T [D], with eps. The task turns its query
   * heads and the new key of its kv heads as ROPE does. Row `pos`, in the split that holds it, is that key and the raw
   * value; only rows [0, pos) come from the caches, so no KV_APPEND of this step has to come first (one still appends
   * row pos). A task reads of x the query heads, keys and values of its own kv heads, whatever its split.
   * DIRECT (M = 1 and B = 1 alone): the one output is T [Q*D], head h at h*D: its part_o / its sum of exponentials. */
  AMK_OP_ATTENTION_TILE = 7,
  /* [B] in: x T (head h at m_off + h*D), inv_freq f32 [D/2], then NORM weight T [D] where the flag is set. out T (head
   * h at n_off + h*D), h < n_heads. Pairs (i, i + D/2) turn by (pos + t) * inv_freq[i], rounded to T (Su et al.
   * 2021, arXiv:2104.09864, in the half-split order of Hugging Face checkpoints). NORM: each head is RMS-normalised
   * first and rounded to T. */
  AMK_OP_ROPE = 8,
  /* [B] in: gate_up T [2N]. out[n_off + i] = silu(in[n_off + i]) * in[N + n_off + i] for i < N_tile. */
  AMK_OP_SILU_MUL = 9,
  AMK_OP_GELU = 10,
  /* [B] out[n_off + i] = a[n_off + i] + b[n_off + i] for i < N_tile; T; in place allowed. */
  AMK_OP_ADD = 11,
  AMK_OP_MUL = 12, /* [B] As ADD, product. */
  AMK_OP_DEQUANT = 13,
  AMK_OP_SOFTMAX = 14,
  AMK_OP_ALLREDUCE_SHARD = 15,
  /* [B] in: src T, then inv_freq f32 [D/2] with ROPE, then NORM weight T [D] with NORM. out: cache T [G, S=K, D].
   * For i < N_tile: cache[n_off + i, pos + t, :] = src[m_off + i*D ...], normalised and rotated first where flagged. */
  AMK_OP_KV_APPEND = 16,
  /* [B] in: logits f32 [V=vocab]. out: best_value f32 [M], best_index i32 [M]. Entry `dim` = maximum and its lowest
   * index over [n_off, n_off + N_tile). A NaN in the range gives index -1. */
  AMK_OP_SAMPLE_ARGMAX = 17,
  /* [B] in: part_o f32 [Q, M, D], part_ml f32 [Q, M, 2]. out T: head h at h*D for h in [n_off, n_off + N_tile), the
   * splits merged in index order (Milakov & Gimelshein 2018, arXiv:1805.02867; Dao et al. 2023, flash-decoding). */
  AMK_OP_ATTENTION_COMBINE = 18,
  AMK_OP_FUSED = 19,
  /* [B] in: best_value f32 [M], best_index i32 [M]. out: i32 [B], the index of the largest value, lowest index on
   * a tie; -1 where any entry is -1. */
  AMK_OP_ARGMAX_COMBINE = 20,
  /* in: x T (channel c at m_off + c), weight T [C=N, W=K] (WEIGHT or CONST), state T [C, W-1], oldest first, of kind
   * STATE. out: y T [C], and the same state. For c in [n_off, n_off + N_tile): y[c] = silu(sum_{j < W-1} weight[c, j] *
   * state[c, j] + weight[c, W-1] * x[c]); then state[c, :] moves down by one and x[c] becomes its last.
   * 2 <= W <= AMK_MAX_CONV_WIDTH. */
  AMK_OP_CAUSAL_CONV = 21,
  /* in: qkv T [C] (q of key head g at g*D, its k at (Hq + g)*D, v of value head h at (2*Hq + h)*D), ba T (b of value
   * head h at m_off + h, its a at m_off + Hv + h), a_log f32 [Hv] and dt_bias f32 [Hv] (WEIGHT or CONST), state f32
   * [Hv, D (of v), D (of k)] of kind STATE. out: o T [Hv*D], and the same state. Hv = n_heads, Hq = n_kv_heads,
   * D = head_dim; value head h has key head g = h / (Hv / Hq). Covers value heads h in [n_off, n_off + N_tile); with S
   * the state of h, all in f32 (Yang et al. 2024, "Gated Delta Networks", arXiv:2412.06464):
   *   S = exp(-exp(a_log) * softplus(a + dt_bias)) * S; S = S + sigmoid(b) * (v - S k) k^T; o[h*D ...] = scale * S q.
   * L2_NORM: q and k are first divided by sqrt(sum(x^2) + eps), in f32. D elements of T are whole 16-byte vectors. */
  AMK_OP_GDN_DECODE = 22,
  /* in: o T [Hv*D], z T (element i at m_off + i), weight T [D]. out T [Hv*D]. Hv = n_heads, D = head_dim; for heads h
   * in [n_off, n_off + N_tile): out[h*D + j] = o[h*D + j] / sqrt(mean_j(o^2) + eps) * weight[j] * silu(z[m_off + h*D +
   * j]). NORM_PLUS_ONE is not allowed. */
  AMK_OP_GATED_RMSNORM = 23,
  /* in: a T, b T. out[n_off + i] = a[n_off + i] / (1 + exp(-b[m_off + n_off + i])) for i < N_tile; out may be a. */
  AMK_OP_SIGMOID_MUL = 24
} amk_opcode;

/* Bits of amk_params_t.flags: fusions into an instruction. */
typedef enum amk_flag {
  AMK_FLAG_NORM = 1,
  AMK_FLAG_BIAS = 2,
  AMK_FLAG_SILU_PAIR = 4,
  AMK_FLAG_RESIDUAL = 8,
  AMK_FLAG_ROPE = 16,
  AMK_FLAG_NORM_PLUS_ONE = 32, /* with NORM, and in RMSNORM: each norm weight w is used as 1 + w, added in f32 */
  AMK_FLAG_L2_NORM = 64,       /* GDN_DECODE alone; uses eps */
  AMK_FLAG_DIRECT = 128        /* ATTENTION_TILE alone */
} amk_flag;

/* ---- POD tables: little-endian, natural C alignment ----------------------------------------------------------- */
/* Parameters of one task; which fields an opcode uses, and what they mean for it, stands at the opcode. `pos`,
 * `kv_start` and `kv_len` are zero in every table: the position is a launch scalar (V19). */
typedef struct amk_params_t {
  int32_t K, N, M, N_tile, M_tile, n_off, m_off, hidden, vocab, head_dim, n_heads, n_kv_heads, kv_start, kv_len, pos,
      qdtype, group, flags, dim;
  float eps, scale, theta;
} amk_params_t;

/* One buffer. `ptr` is zero in a program and in an image. shape and stride count elements; stride is row-major and
 * contiguous; entries at and past `rank` are zero. numel = product of shape. */
typedef struct amk_buffer_t {
  uint64_t ptr;
  int64_t numel;
  int32_t rank, dtype, space, pad;
  int64_t shape[AMK_MAX_RANK];
  int64_t stride[AMK_MAX_RANK];
} amk_buffer_t;

/* One task as the machines read it. Slots at and past the counts are zero. */
typedef struct amk_instruction_t {
  int32_t op, n_inputs, n_outputs, n_waits;
  int32_t inputs[AMK_MAX_INPUTS];
  int32_t outputs[AMK_MAX_OUTPUTS];
  int32_t wait_counter[AMK_MAX_WAITS];
  int32_t wait_threshold[AMK_MAX_WAITS];
  int32_t out_counter, sm;
  amk_params_t params;
} amk_instruction_t;

typedef uint32_t amk_counter_t;

/* What a buffer is and where it lives. page -1: storage of its own (or, for a non-empty source name, the storage
 * that every buffer with this source shares); else the start of that page. */
typedef struct amk_binding_t {
  int32_t kind, page;
} amk_binding_t;

/* A range of the arena (space = GLOBAL_SCRATCH), in bytes. Pages of one space are disjoint. */
typedef struct amk_page_t {
  int64_t space, offset, nbytes;
} amk_page_t;

/* How counters get back to zero between steps: the host clears them before each launch. */
typedef enum amk_counter_reset { AMK_COUNTER_RESET_HOST = 0 } amk_counter_reset;

/* Launch facts carried by a program and its image. */
typedef struct amk_launch_t {
  int32_t grid; /* thread blocks = queues, one per SM */
  int32_t threads_per_block, smem_bytes_per_block, pipelining_depth, cols_per_warp, cpasync, cpa_stages, cpa_cols;
  int32_t max_seq;          /* S: positions 0 .. S-1 may be decoded */
  int32_t steps_per_launch; /* 1 */
  int32_t counter_reset;    /* amk_counter_reset */
  int32_t kv_block;         /* rows per step of attention, as lowered */
} amk_launch_t;

/* A GPU as data. Figures of a preset are the vendor's published ones; amk_target_source says which document. */
typedef struct amk_target_t {
  char name[32]; /* NUL-terminated */
  int32_t sm_count, cc_major, cc_minor, max_threads_per_block, max_threads_per_sm, warp_threads;
  int32_t smem_optin_bytes; /* shared memory one block may opt in to */
  int32_t smem_per_sm_bytes, regs_per_sm, clock_mhz;
  int64_t l2_bytes, hbm_bytes;
  double hbm_gb_per_s; /* 1e9 bytes per second */
} amk_target_t;

/* n strings back to back without separators: string i = bytes[offset[i] .. offset[i + 1]), UTF-8. */
typedef struct amk_strings_t {
  const char* bytes;
  const uint64_t* offset; /* n + 1 entries, or NULL when every string is empty */
} amk_strings_t;

/* A whole program as tables. Pointers are borrowed: going in, for the call; coming out, until the handle is
 * destroyed. The queue of SM s is the tasks with sm == s in table order. */
typedef struct amk_program_tables_t {
  uint64_t struct_size;
  int64_t n_buffers, n_counters, n_tasks, n_pages;
  const amk_buffer_t* buffers;
  const amk_binding_t* bindings;     /* [n_buffers] */
  const amk_counter_t* counter_init; /* [n_counters]; zero (V8) */
  const amk_instruction_t* tasks;
  const amk_page_t* pages;
  amk_strings_t buffer_name, buffer_source, task_label; /* [n_buffers], [n_buffers], [n_tasks] */
  amk_launch_t launch;
  amk_target_t target;
} amk_program_tables_t;

/* ---- descriptions ---------------------------------------------------------------------------------------------- */
typedef enum amk_model_feature {
  AMK_MODEL_QKV_BIAS = 1,
  AMK_MODEL_O_BIAS = 2,
  AMK_MODEL_MLP_BIAS = 4,
  AMK_MODEL_QK_NORM = 8,
  AMK_MODEL_TIED_HEAD = 16,
  AMK_MODEL_ATTENTION_GATE = 32, /* wqkv [(2Q+2G)*D, H], gate rows behind v: wo sees attention * sigmoid(gate) */
  AMK_MODEL_NORM_PLUS_ONE = 64   /* attn_norm, mlp_norm, final_norm, q_norm, k_norm are used as 1 + w */
} amk_model_feature;

/* One decoder. Weights by name, in `dtype`, row-major, i < layers:
 *   embed [V,H]; layers.{i}.attn_norm [H]; layers.{i}.wqkv [(Q+2G)*D, H] (q, k, v rows); layers.{i}.bqkv;
 *   layers.{i}.q_norm, layers.{i}.k_norm [D]; layers.{i}.wo [H, Q*D]; layers.{i}.bo [H]; layers.{i}.mlp_norm [H];
 *   layers.{i}.w_gate_up [2F, H] (gate, then up rows); layers.{i}.b_gate_up [2F]; layers.{i}.w_down [H, F];
 *   layers.{i}.b_down [H]; final_norm [H]; lm_head [V,H] (absent when tied: embed is read); rope_inv_freq f32 [D/2].
 * Hybrid: with full_attention_interval n > 0, layer i is as above where (i + 1) % n == 0; else it is linear attention
 * (a gated delta net), whose weights in place of wqkv .. bo are layers.{i}.w_gdn_in [2*Hq*E + 2*Hv*E + 2*Hv, H] (q, k,
 * v, z, b, a rows), layers.{i}.conv_w [C, W], layers.{i}.a_log f32 [Hv], layers.{i}.dt_bias f32 [Hv],
 * layers.{i}.gdn_norm [E] and layers.{i}.w_gdn_out [H, Hv*E]. Its STATE buffers are layers.{i}.conv_state [C, W-1] and
 * layers.{i}.gdn_state f32 [Hv, E, E] (of v, of k). q and k are l2-normalised with eps 1e-6, and scale is 1/sqrt(E).
 * With weight_group g > 0 the matrices wqkv, wo, w_gdn_in, w_gdn_out, w_gate_up, w_down and lm_head are I8, and each
 * `m` of them comes with `m_scale` [rows, columns / g] in `dtype`: an element is its integer times the scale of its row
 * and of the g columns that it lies in. embed stays in `dtype`, and so does a tied head.
 * With batch B > 1 a step decodes B consecutive tokens of one sequence, causal among themselves, and reads the weights
 * once: activations are [B, width], token and next_token i32 [B] (the greedy choice after each token), logits [B, V].
 * Independent sequences are not modelled. UNSUPPORTED: B > 1 of a hybrid or with an output gate.
 * A struct_size that ends before the fields of a hybrid, before weight_group or before reserved means 0 from there. */
typedef struct amk_model_t {
  uint64_t struct_size;
  int32_t dtype; /* F32, F16 or BF16 */
  int32_t layers, hidden, n_heads, n_kv_heads, head_dim, ffn, vocab, max_seq;
  int32_t features; /* amk_model_feature bits */
  float eps;
  int32_t linear_key_heads, linear_value_heads, linear_head_dim, conv_width, full_attention_interval; /* Hq Hv E W n */
  int32_t weight_group; /* 0: not quantised; else AMK_MIN_WEIGHT_GROUP or AMK_MAX_WEIGHT_GROUP */
  int32_t reserved;     /* not read: it was padding */
  int32_t batch;        /* B: 0 or 1, one token; 2..AMK_MAX_BATCH, at most max_seq */
} amk_model_t;

typedef enum amk_fusion {
  AMK_FUSE_RMSNORM_GEMV = 1,       /* "rmsnorm+gemv" */
  AMK_FUSE_GATE_UP = 2,            /* "gate+up": one op over the 2F rows */
  AMK_FUSE_GATE_UP_SILU = 4,       /* "gate+up+silu": and the activation inside it */
  AMK_FUSE_GEMV_ADD = 8,           /* "gemv+add" */
  AMK_FUSE_QKV = 16,               /* "qkv": one op over the q, k and v rows */
  AMK_FUSE_ROPE_KV_APPEND = 32,    /* "rope+kv_append" */
  AMK_FUSE_ROPE_ATTENTION = 64,    /* "rope+attention": where q, k and v are one tensor and k is appended turned */
  AMK_FUSE_ATTENTION_COMBINE = 128 /* "attention+combine": where a step has one token and attention one split */
} amk_fusion;

typedef enum amk_sm_policy { AMK_SM_ROUND_ROBIN = 0, AMK_SM_LOAD_BALANCE = 1, AMK_SM_EXPLICIT = 2 } amk_sm_policy;

typedef enum amk_page_policy {
  AMK_PAGES_NONE = 0,       /* one page per buffer */
  AMK_PAGES_LINEAR = 1,     /* first fit over live ranges in program order */
  AMK_PAGES_GRAPH_COLOR = 2 /* interference graph, largest first */
} amk_page_policy;

/* One point of the search space (Python: amk.ScheduleConfig). */
typedef struct amk_schedule_t {
  uint64_t struct_size;
  int32_t gemv_n_tile; /* rows per matrix-vector tile: 0 = even split over SMs, else a multiple of AMK_ROW_GROUP */
  int32_t attention_kv_block;
  int32_t fusion; /* amk_fusion bits */
  int32_t sm_policy, page_policy;
  /* cpasync 1: packed weights stream through a ring in shared memory (targets of compute capability >= 9.0; older ones
   * load directly, as with 0). Then pipelining_depth = slots of 8 KB on their way at a time, cpa_stages = slots per
   * warp (0: as many as fit), smem_bytes_per_block = cap of a block's shared memory (0: all that the device offers). */
  int32_t pipelining_depth, threads_per_block, smem_bytes_per_block, cols_per_warp, cpasync, cpa_stages, cpa_cols;
  int64_t sm_map_count;
  const int32_t *sm_map_task, *sm_map_sm; /* [sm_map_count] pairs for AMK_SM_EXPLICIT: every task exactly once */
} amk_schedule_t;

/* One refusal. code is the V-number of the obligation that failed; ids are -1 where they do not apply. */
typedef struct amk_rejection_t {
  int32_t code, task, buffer, counter;
  const char* text; /* borrowed from the report */
} amk_rejection_t;

/* What a program costs on its target. */
typedef struct amk_cost_t {
  uint64_t struct_size;
  double latency_us;      /* predicted by the cost model */
  double bound_us;        /* streamed_bytes / published bandwidth */
  int64_t streamed_bytes; /* weights, constants, KV rows and state read, state written, each once */
  int64_t weight_bytes;
  int64_t arena_bytes;
  double flops;
} amk_cost_t;

/* One task as the cost model runs it: microseconds since the step began. It takes finish_us - start_us, which is
 * max(streamed_us + cached_us, compute_us) and a fixed overhead. */
typedef struct amk_task_cost_t {
  double free_us;                            /* when its queue was free for it */
  double start_us, finish_us;                /* start_us > free_us: it waited */
  double streamed_us, cached_us, compute_us; /* bytes from memory, bytes from the L2 cache, arithmetic */
  double streamed_bytes, cached_bytes, flops;
  int32_t blocker;  /* the counter that the start waited for last; -1: the start waited for its queue alone */
  int32_t producer; /* the task that completed that counter; -1: none */
} amk_task_cost_t;

/* One task of a step as the device ran it: microseconds since the first task of the step began. */
typedef struct amk_task_time_t {
  int32_t task, queue;
  double start_us, ready_us, finish_us;
} amk_task_time_t;

typedef struct amk_vm_options_t {
  uint64_t struct_size;
  uint64_t seed;        /* which legal order; 0 = program order */
  int32_t threads;      /* 0 = one thread, order by seed; n = n threads that share the queues out */
  int32_t guard;        /* 1 = poison the arena and outputs before each step, canaries around each region, checked after
                           (a GPU machine poisons and has no canaries) */
  int32_t deadline_ms;  /* GPU: a step without progress for so long, some 18 at least, is ended; 0 = 2,000 */
  int32_t reserved;     /* 0 */
  int32_t timeline;     /* GPU: 1 = each step leaves a timeline (amk_vm_timeline), from a kernel compiled with one */
  struct amk_vm* share; /* NULL, or a machine of this kind (on this device), all bound and, on a GPU, prepared: its
                           weights, constants and caches are this one's too, and bind is refused. INVALID_ARGUMENT names
                           what the other lacks or has in another size or packing; UNSUPPORTED: an image with STATE. Of
                           machines that share, one runs at a time; they are destroyed in any order. */
} amk_vm_options_t;

/* One task as the library sees it: its operands' byte ranges at a position. rows ranges of row_bytes, stride apart. */
typedef struct amk_access_t {
  int32_t buffer, is_write;
  int64_t offset_bytes, row_bytes, rows, stride_bytes;
} amk_access_t;

/* Operands of amk_gdn_decode, shapes [batch, heads, head_dim] for q, k (Hq), v, out (Hv); a, b [batch, Hv]; a_log,
 * dt_bias [Hv]; states f32 [batch, Hv, head_dim (of v), head_dim (of k)]. Strides count elements, in the order of the
 * dimensions, none negative; the last dimension of the states is contiguous and their rows are 16-byte aligned. */
typedef struct amk_gdn_decode_t {
  uint64_t struct_size;
  int32_t device;      /* of every pointer; -1: host memory, computed on the CPU before the call returns */
  int32_t batch;       /* 1..AMK_MAX_GDN_BATCH */
  int32_t key_heads;   /* Hq */
  int32_t value_heads; /* Hv: a multiple of Hq, at most AMK_MAX_GDN_HEADS */
  int32_t head_dim;    /* 128 */
  int32_t dtype;       /* of q, k, v and out: F32, F16 or BF16, as are the next two */
  int32_t gate_dtype;  /* of a and b */
  int32_t bias_dtype;  /* of dt_bias */
  int32_t l2norm;      /* 1: q and k are first divided by sqrt(sum(x^2) + 1e-6) */
  float scale;         /* finite */
  const void *q, *k, *v, *a, *b, *dt_bias, *a_log, *state_in;
  void *state_out, *out; /* state_out: state_in with its strides, or disjoint from every other operand; so is out */
  int64_t q_stride[3], k_stride[3], v_stride[3], out_stride[3], a_stride[2], b_stride[2], state_in_stride[3],
      state_out_stride[3];
} amk_gdn_decode_t;

typedef struct amk_program amk_program;
typedef struct amk_valid_program amk_valid_program;
typedef struct amk_report amk_report;
typedef struct amk_image amk_image;
typedef struct amk_vm amk_vm;

/* ---- library ---------------------------------------------------------------------------------------------------- */
/* major << 16 | minor of the ABI the library was built with. */
uint32_t amk_abi_version(void);
/* Sentence of the last failed call on this thread; "" if none. Borrowed until the next failing call on it. */
const char* amk_last_error(void);
const char* amk_status_name(int32_t status);
/* One JSON object: version, build_id, compiler, cxx_flags, cuda {enabled, nvcc, flags, architectures, variants (threads
 * per block of each kernel)}. Static. */
const char* amk_build_info(void);
/* sizeof of params, buffer, instruction, counter, binding, page, launch, target, program_tables, model, schedule,
 * rejection, cost, vm_options, access, strings, task_cost, gdn_decode, task_time: in this order. n = room in out;
 * returns how many there are. */
int32_t amk_struct_sizes(uint64_t* out, int32_t n);
/* 1 where the opcode has a law and an implementation in this build. */
int32_t amk_op_supported(int32_t op);
int32_t amk_dtype_bits(int32_t dtype); /* 0 for an unknown dtype */

/* ---- targets ----------------------------------------------------------------------------------------------------- */
int32_t amk_target_count(void);
/* Preset i < amk_target_count(), and the document its figures come from. INVALID_ARGUMENT if i is out of range. */
amk_status amk_target_preset(int32_t i, amk_target_t* out);
const char* amk_target_source(int32_t i); /* NULL if i is out of range */
/* Live GPUs. UNAVAILABLE, with the reason, without a driver, a device or a CUDA build. Opens no context. */
amk_status amk_device_count(int32_t* out);
amk_status amk_device_query(int32_t index, amk_target_t* out);
/* "GPU-" and the UUID as the driver's tools print it, 40 characters and a NUL. */
amk_status amk_device_uuid(int32_t index, char out[41]);
/* Measures how fast the device only reads, 1e9 bytes per second. Takes up to half of the free memory while it runs. */
amk_status amk_device_read_bandwidth(int32_t index, double* gb_per_s);

/* ---- schedule and lowering ------------------------------------------------------------------------------------- */
/* Fills the default schedule. */
amk_status amk_schedule_default(amk_schedule_t* out);
/* REJECTED, naming the field, when a value is outside its domain or was not built. */
amk_status amk_schedule_check(const amk_schedule_t* schedule, const amk_target_t* target);
/* Model + schedule + target -> program. UNSUPPORTED or INVALID_ARGUMENT for the model, REJECTED for the schedule. */
amk_status amk_program_lower(const amk_model_t* model, const amk_schedule_t* schedule, const amk_target_t* target,
                             amk_program** out);

/* ---- programs -------------------------------------------------------------------------------------------------- */
/* Copies the tables; judges nothing (amk_program_validate does). INVALID_ARGUMENT only for NULLs, counts over the
 * caps and string tables that are not monotonic. */
amk_status amk_program_from_tables(const amk_program_tables_t* tables, amk_program** out);
/* Borrowed view, valid until the program is destroyed. out->struct_size must be set. */
amk_status amk_program_tables(const amk_program* program, amk_program_tables_t* out);
/* Proves every obligation but V17. Always AMK_OK when the judgement was made: *report says what was found and *valid is
 * NULL unless the report is empty. Either out pointer may be NULL. The program may be destroyed afterwards. */
amk_status amk_program_validate(const amk_program* program, amk_report** report, amk_valid_program** valid);
/* And V17: the program computes the decoder that the model describes, at every position below its max_seq.
 * INVALID_ARGUMENT for a model outside its domain. */
amk_status amk_program_validate_model(const amk_program* program, const amk_model_t* model, amk_report** report,
                                      amk_valid_program** valid);
/* Byte ranges task `task` touches at position pos; writes at most `room` of them, and how many there are to *n. */
amk_status amk_program_footprint(const amk_valid_program* program, int64_t task, int32_t pos, amk_access_t* out,
                                 int32_t room, int32_t* n);
/* Cost at position pos on the program's own target. */
amk_status amk_program_cost(const amk_valid_program* program, int32_t pos, amk_cost_t* out);
/* What that cost is made of: entry i is task i. Writes at most `room` of them, and how many there are to *n. */
amk_status amk_program_task_costs(const amk_valid_program* program, int32_t pos, amk_task_cost_t* out, int64_t room,
                                  int64_t* n);
void amk_program_destroy(amk_program* program);
void amk_valid_program_destroy(amk_valid_program* program);

/* Rejections found: all of them, of which the first AMK_MAX_REPORTED can be read. */
int64_t amk_report_count(const amk_report* report);
amk_status amk_report_entry(const amk_report* report, int32_t i, amk_rejection_t* out);
void amk_report_destroy(amk_report* report);

/* ---- images ---------------------------------------------------------------------------------------------------- */
/* One flat, hashed blob with offsets for pointers; only a valid program packs. */
amk_status amk_image_pack(const amk_valid_program* program, amk_image** out);
/* Opens untrusted bytes: checks the certificate (MISMATCH), validates the program again (REJECTED) and requires that
 * packing it gives the same bytes (INPUT). */
amk_status amk_image_from_bytes(const void* bytes, uint64_t nbytes, amk_image** out);
amk_status amk_image_bytes(const amk_image* image, const void** bytes, uint64_t* nbytes); /* borrowed */
/* 64 lower-case hexadecimal digits and a NUL: BLAKE2b-256 of everything in the blob but the hash field itself. */
amk_status amk_image_hash(const amk_image* image, char out[65]);
/* The tables back out, as a new program. */
amk_status amk_image_program(const amk_image* image, amk_program** out);
void amk_image_destroy(amk_image* image);

/* ---- machines -------------------------------------------------------------------------------------------------- */
/* The reference machine. Weights and constants are bound by source name and stay the caller's; the cache, inputs,
 * outputs, STATE and the arena belong to the machine (cache and STATE zeroed). */
amk_status amk_vm_create_reference(const amk_image* image, const amk_vm_options_t* options, amk_vm** out);
/* Borrow nbytes at ptr as the storage of every buffer whose source is `name`. ptr must be 16-byte aligned. */
amk_status amk_vm_bind(amk_vm* vm, const char* name, const void* ptr, uint64_t nbytes);
/* Copy into / out of a KV_CACHE, STATE, IO_INPUT or (read only) IO_OUTPUT buffer, by buffer name. NONFINITE from read:
 * the f32 output holds NaN or infinity where it was read (the GPU machine; the reference machine says so in run).
 * POISONED from read: a STATE that a failed step left behind; a write of all of its bytes makes it good again. */
amk_status amk_vm_write(amk_vm* vm, const char* name, uint64_t offset, const void* data, uint64_t nbytes);
amk_status amk_vm_read(amk_vm* vm, const char* name, uint64_t offset, void* data, uint64_t nbytes);
/* One launch: B tokens at positions pos .. pos + B - 1. INVALID_ARGUMENT: one of them outside [0, max_seq), something
 * not bound, a token outside the table it indexes. A step that fails after its first task may have run poisons every
 * STATE: until each is written whole or amk_vm_reset_state is called, runs are POISONED, naming the step's failure. */
amk_status amk_vm_run(amk_vm* vm, int32_t pos);
/* Every STATE zero, as in a new machine, and no longer poisoned. Nothing to do without STATE buffers. */
amk_status amk_vm_reset_state(amk_vm* vm);
/* One greedy token of a decoder: as write of input "token", run, and read of output "next_token", in one call that
 * copies nothing else. INVALID_ARGUMENT for a program without them; NONFINITE where a logit is NaN; UNSUPPORTED: B > 1.
 */
amk_status amk_vm_decode(amk_vm* vm, int32_t token, int32_t pos, int32_t* next);
/* The same for the n = B tokens of a step: next[t] is the greedy choice after tokens[0 .. t]; output "logits", [B, V],
 * is there to be read. INVALID_ARGUMENT: n is not the program's B, which is the element count of "token". A caller with
 * fewer tokens fills up with any: no token sees a later one, and the next step at their positions replaces their cache
 * rows. So may a caller take back tokens: a step at a lower pos sees no row from there on but its own. */
amk_status amk_vm_decode_batch(amk_vm* vm, const int32_t* tokens, int32_t n, int32_t pos, int32_t* next);
/* Legal order: another seed for the next runs. */
amk_status amk_vm_reseed(amk_vm* vm, uint64_t seed);
void amk_vm_destroy(amk_vm* vm);

/* The GPU machine on device `device`: the same image, the same calls, one cooperative launch per step. seed and threads
 * of the options must be 0. UNAVAILABLE: no CUDA build, driver or device, or no machine code for this device (the
 * message lists both sides). REJECTED, before anything is launched: grid, threads or shared memory do not fit the live
 * device, or a task is too large for the kernel. MISMATCH: another build's image (V24). OUT_OF_MEMORY: bytes asked and
 * free. A failed or timed-out launch gives DEVICE_FAULT or TIMEOUT from the call that notices it; after a fault of the
 * device, or a step that could not be ended, every later call is POISONED. reseed is UNAVAILABLE here.
 * The cache's rows of the step are undefined after it failed. STATE is poisoned by one, and by a NONFINITE read. */
amk_status amk_vm_create_cuda(const amk_image* image, const amk_vm_options_t* options, int32_t device, amk_vm** out);
/* Copies what is bound to the device, once; weights rebound later are copied by the next prepare. run does it too. */
amk_status amk_vm_prepare(amk_vm* vm);
/* Enqueues one step on a cudaStream_t (NULL: the machine's own) and returns; no host synchronisation. One step may be
 * in flight. The stream may be capturing: aim, replay the graph, synchronise, finish. */
amk_status amk_vm_launch(amk_vm* vm, int32_t pos, void* stream);
/* The position that the next replay of a captured launch decodes. No replay may be in flight. */
amk_status amk_vm_aim(amk_vm* vm, int32_t pos);
/* Waits for the step in flight and checks its completion proof: every counter at its producers, every task done, the
 * number of this step echoed. INVALID_ARGUMENT without one; TIMEOUT names SM, task and counter. */
amk_status amk_vm_finish(amk_vm* vm);
/* n steps at position pos, each launched and finished alone; us[i] = CUDA events around all that step i enqueues. */
amk_status amk_vm_time(amk_vm* vm, int32_t pos, int32_t n, float* us);
/* When the tasks of the last finished step began to wait (start), had what they wait for, and had signalled: entry i is
 * task i. Writes at most `room`, and how many there are to *n. INVALID_ARGUMENT: no step, or no `timeline` asked. */
amk_status amk_vm_timeline(amk_vm* vm, amk_task_time_t* out, int64_t room, int64_t* n);
/* Ends the step in flight, from any thread: its finish (or run) reports TIMEOUT, "cancelled". */
amk_status amk_vm_cancel(amk_vm* vm);
/* One decode step of a gated delta net, the law of AMK_OP_GDN_DECODE for each batch row. On a device: enqueued on
 * `stream` (a cudaStream_t, NULL: the default one), no allocation, no synchronisation, and what the pointers point to
 * is not looked at. INVALID_ARGUMENT names the operand; UNSUPPORTED: head_dim, a dtype; UNAVAILABLE: as a machine. */
amk_status amk_gdn_decode(const amk_gdn_decode_t* args, void* stream);
/* amk-cdef-end */
#if defined(__GNUC__)
#pragma GCC visibility pop
#endif
#ifdef __cplusplus
}
#endif
#endif /* AMK_H */
