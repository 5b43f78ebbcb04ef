// Pass 2: nodes -> tasks, tensors -> buffers. The only place that fills the parameters of a task.
#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include "base/checked.h"
#include "base/error.h"
#include "lower/passes.h"

namespace amk {
namespace {

// Smallest share of an elementwise op, or of the scan for the largest logit, that is worth a task of its own.
constexpr int64_t kElementwiseTile = 512;
// The same for rotations and appends, in elements of whole heads: a warp has at most one head of the usual sizes.
constexpr int64_t kHeadsTile = 512;
// The same for a convolution: a channel is K multiply-adds and a state that moves.
constexpr int64_t kConvTile = 128;

struct Range {
  int32_t first, count;
};

// [0, total) in at most max_parts ranges of whole groups, whose sizes differ by at most one group.
std::vector<Range> split_even(int64_t total, int64_t group, int64_t max_parts) {
  const int64_t groups = ceil_div(total, group), parts = std::clamp<int64_t>(max_parts, 1, groups);
  std::vector<Range> ranges;
  int64_t first = 0;
  for (int64_t i = 0; i < parts; ++i) {
    const int64_t share = groups / parts + (i < groups % parts ? 1 : 0);
    const int64_t count = std::min(share * group, total - first);
    ranges.push_back({static_cast<int32_t>(first), static_cast<int32_t>(count)});
    first += count;
  }
  return ranges;
}

class Tiler {
 public:
  Tiler(const Graph& graph, const amk_schedule_t& schedule, const amk_target_t& target)
      : g_(graph), schedule_(schedule), sm_count_(target.sm_count), tokens_(graph.batch > 1 ? graph.batch : 0) {
    plan_.program.target = target;
    fill_launch();
    // Every KV split of a kv head is a task: as many splits as keep one wave of tasks, none without a block to read.
    splits_ = static_cast<int32_t>(std::clamp<int64_t>(ceil_div(g_.max_seq, schedule.attention_kv_block), 1,
                                                       std::max(1, sm_count_ / g_.n_kv_heads)));
    is_direct_ = schedule.fusion & AMK_FUSE_ATTENTION_COMBINE && splits_ == 1 && !tokens_;
  }

  Plan run() {
    check_task_count();
    for (const Tensor& tensor : g_.tensors) add_tensor_buffer(tensor);
    for (const Node& node : g_.nodes) tile_node(node);
    return std::move(plan_);
  }

 private:
  void fill_launch() {
    amk_launch_t& launch = plan_.program.launch;
    launch.grid = sm_count_;
    launch.threads_per_block = schedule_.threads_per_block;
    launch.smem_bytes_per_block = schedule_.smem_bytes_per_block;
    launch.pipelining_depth = schedule_.pipelining_depth;
    launch.cols_per_warp = schedule_.cols_per_warp;
    launch.cpasync = schedule_.cpasync;
    launch.cpa_stages = schedule_.cpa_stages;
    launch.cpa_cols = schedule_.cpa_cols;
    launch.max_seq = g_.max_seq;
    launch.steps_per_launch = 1;
    launch.counter_reset = AMK_COUNTER_RESET_HOST;
    launch.kv_block = schedule_.attention_kv_block;
  }

  // Before any task is made: a small tile of a large model could otherwise ask for gigabytes of tables.
  void check_task_count() {
    int64_t count = 0;
    for (const Node& node : g_.nodes) {
      if (node.kind == NodeKind::kLinear) count += linear_tile_count(node);
      if (node.kind == NodeKind::kAttention) count += int64_t{splits_} * g_.n_kv_heads + (is_direct_ ? 0 : g_.n_heads);
    }
    AMK_CHECK(count <= AMK_MAX_TASKS / 2, AMK_ERR_REJECTED,
              "tiling.gemv.N_tile is %d: the model would need %lld tasks, allowed %d", schedule_.gemv_n_tile,
              (long long)count, AMK_MAX_TASKS / 2);
    plan_.program.tasks.reserve(static_cast<size_t>(count + count / 8));
  }
  int64_t linear_tile_count(const Node& node) const {
    if (schedule_.gemv_n_tile) return ceil_div(node.row_count, schedule_.gemv_n_tile);
    return std::min<int64_t>(ceil_div(node.row_count, AMK_ROW_GROUP), sm_count_);
  }

  int32_t add_buffer(const std::string& name, int32_t kind, const amk_buffer_t& buffer) {
    const bool bound = kind == AMK_KIND_WEIGHT || kind == AMK_KIND_CONST;
    Program& p = plan_.program;
    p.buffers.push_back(buffer);
    p.bindings.push_back({kind, -1});
    p.buffer_name.push(name);
    p.buffer_source.push(bound ? name : std::string());
    return static_cast<int32_t>(p.buffers.size()) - 1;
  }
  // Tensor ids stay buffer ids.
  void add_tensor_buffer(const Tensor& t) {
    const int32_t space = t.kind == AMK_KIND_ACTIVATION ? AMK_SPACE_GLOBAL_SCRATCH : AMK_SPACE_HBM;
    const auto& s = t.shape;
    add_buffer(t.name, t.kind,
               t.rank == 1   ? make_buffer(t.dtype, space, {s[0]})
               : t.rank == 2 ? make_buffer(t.dtype, space, {s[0], s[1]})
                             : make_buffer(t.dtype, space, {s[0], s[1], s[2]}));
  }
  // For each token.
  int32_t add_scratch(const std::string& name, int32_t dtype, std::initializer_list<int64_t> shape) {
    std::vector<int64_t> dims(shape);
    if (tokens_) dims.insert(dims.begin(), tokens_);
    return add_buffer(name, AMK_KIND_ACTIVATION, make_buffer(dtype, AMK_SPACE_GLOBAL_SCRATCH, dims));
  }

  // The tasks pushed until the next begin_op are one op; they start as copies of `base`.
  void begin_op(const std::string& name, int32_t opcode, std::initializer_list<int32_t> inputs,
                std::initializer_list<int32_t> outputs) {
    base_ = {};
    base_.op = opcode;
    base_.params.M_tile = tokens_;  // where most opcodes have it
    for (int32_t id : inputs) add_input(id);
    for (int32_t id : outputs) base_.outputs[base_.n_outputs++] = id;
    op_name_ = name;
    plan_.ops.push_back({static_cast<int32_t>(plan_.program.tasks.size()), 0});
  }
  void add_input(int32_t id) { base_.inputs[base_.n_inputs++] = id; }
  // Operands that a flag adds, called in the order of the law: rope, norm (and k_norm), bias, residual.
  void add_flag(int32_t flag, int32_t operand) {
    if (operand == kNoTensor) return;
    base_.params.flags |= flag;
    add_input(operand);
    if (flag == AMK_FLAG_NORM) add_norm_numbers();
  }
  void add_norm_numbers() {
    base_.params.eps = g_.eps;
    if (g_.norm_plus_one) base_.params.flags |= AMK_FLAG_NORM_PLUS_ONE;
  }
  amk_params_t& push_task() {
    Op& op = plan_.ops.back();
    plan_.program.tasks.push_back(base_);
    plan_.program.task_label.push(op_name_ + "[" + std::to_string(op.task_count++) + "]");
    return plan_.program.tasks.back().params;
  }
  // N_tile and n_off over [0, total), in shares worth a task.
  void push_elementwise(int64_t total, int64_t tile = kElementwiseTile) {
    for (Range r : split_even(total, AMK_ROW_GROUP, std::min<int64_t>(sm_count_, total * g_.batch / tile)))
      push_range(r);
  }
  void push_range(Range r) {
    amk_params_t& p = push_task();
    p.n_off = r.first;
    p.N_tile = r.count;
  }
  std::vector<Range> split_heads(int32_t heads, int32_t width) const {
    return split_even(heads, 1, std::min<int64_t>(sm_count_, int64_t{heads} * width * g_.batch / kHeadsTile));
  }

  void tile_node(const Node& node) {
    switch (node.kind) {
      case NodeKind::kEmbed: return tile_embed(node);
      case NodeKind::kRmsNorm: return tile_rmsnorm(node);
      case NodeKind::kLinear: return tile_linear(node);
      case NodeKind::kRope: return tile_rope(node);
      case NodeKind::kKvAppend: return tile_append(node);
      case NodeKind::kAttention: return tile_attention(node);
      case NodeKind::kCausalConv: return tile_conv(node);
      case NodeKind::kGdn: return tile_gdn(node);
      case NodeKind::kGatedNorm: return tile_gated_norm(node);
      case NodeKind::kSigmoidMul:
        begin_op(node.name, AMK_OP_SIGMOID_MUL, {node.x, node.gates}, {node.out});
        base_.params.m_off = node.x_first;
        return push_elementwise(g_.tensors[node.out].width());
      case NodeKind::kSiluMul:
        begin_op(node.name, AMK_OP_SILU_MUL, {node.x}, {node.out});
        base_.params.N = g_.ffn;
        return push_elementwise(g_.ffn);
      case NodeKind::kAdd:
        begin_op(node.name, AMK_OP_ADD, {node.residual, node.x}, {node.out});
        return push_elementwise(g_.hidden);
      case NodeKind::kArgmax: return tile_argmax(node);
    }
  }
  void tile_embed(const Node& node) {
    begin_op(node.name, AMK_OP_EMBED, {node.x, node.weight}, {node.out});
    base_.params.vocab = g_.vocab;
    base_.params.hidden = g_.hidden;
    push_elementwise(g_.hidden);
  }
  void tile_rmsnorm(const Node& node) {
    begin_op(node.name, AMK_OP_RMSNORM, {node.x, node.norm}, {node.out});
    base_.params.hidden = g_.hidden;
    base_.params.M_tile = g_.batch;
    add_norm_numbers();
    push_task();
  }
  void tile_linear(const Node& node) {
    begin_op(node.name, AMK_OP_GEMV_TILE, {node.x, node.weight}, {node.out});
    if (node.scale != kNoTensor) {
      add_input(node.scale);
      base_.params.qdtype = AMK_DTYPE_I8;
      base_.params.group = g_.weight_group;
    }
    const Tensor& weight = g_.tensors[node.weight];
    base_.params.K = static_cast<int32_t>(weight.shape[1]);
    base_.params.N = static_cast<int32_t>(weight.shape[0]) / (node.silu_pair ? 2 : 1);
    add_flag(AMK_FLAG_NORM, node.norm);
    add_flag(AMK_FLAG_BIAS, node.bias);
    if (node.silu_pair) base_.params.flags |= AMK_FLAG_SILU_PAIR;
    add_flag(AMK_FLAG_RESIDUAL, node.residual);
    const int32_t fixed = schedule_.gemv_n_tile;
    if (!fixed) {
      for (Range r : split_even(node.row_count, AMK_ROW_GROUP, sm_count_)) push_rows(node, r);
      return;
    }
    for (int32_t first = 0; first < node.row_count; first += std::min(fixed, node.row_count - first))
      push_rows(node, {first, std::min(fixed, node.row_count - first)});
  }
  void push_rows(const Node& node, Range rows) {
    amk_params_t& p = push_task();
    p.n_off = node.row_first + rows.first;
    p.N_tile = rows.count;
  }
  void tile_rope(const Node& node) {
    begin_op(node.name, AMK_OP_ROPE, {node.x, node.inv_freq}, {node.out});
    base_.params.head_dim = g_.head_dim;
    add_flag(AMK_FLAG_NORM, node.norm);
    for (Range heads : split_heads(node.heads, g_.head_dim)) {
      amk_params_t& p = push_task();
      p.n_heads = heads.count;
      p.n_off = heads.first * g_.head_dim;
      p.m_off = node.x_first + p.n_off;
    }
  }
  void tile_append(const Node& node) {
    begin_op(node.name, AMK_OP_KV_APPEND, {node.x}, {node.out});
    base_.params.n_kv_heads = g_.n_kv_heads;
    base_.params.head_dim = g_.head_dim;
    base_.params.K = g_.max_seq;
    add_flag(AMK_FLAG_ROPE, node.inv_freq);
    add_flag(AMK_FLAG_NORM, node.norm);
    for (Range heads : split_heads(node.heads, g_.head_dim)) {
      amk_params_t& p = push_task();
      p.n_off = heads.first;
      p.N_tile = heads.count;
      p.m_off = node.x_first + heads.first * g_.head_dim;
    }
  }
  void tile_attention(const Node& node) {
    if (is_direct_) {
      begin_op(node.name, AMK_OP_ATTENTION_TILE, {node.x, node.k_cache, node.v_cache}, {node.out});
      base_.params.flags = AMK_FLAG_DIRECT;
      return push_attention(node);
    }
    const int32_t part_o = add_scratch(node.name + ".part_o", AMK_DTYPE_F32, {g_.n_heads, splits_, g_.head_dim});
    const int32_t part_ml = add_scratch(node.name + ".part_ml", AMK_DTYPE_F32, {g_.n_heads, splits_, 2});
    begin_op(node.name, AMK_OP_ATTENTION_TILE, {node.x, node.k_cache, node.v_cache}, {part_o, part_ml});
    push_attention(node);
    begin_op(node.name + "_combine", AMK_OP_ATTENTION_COMBINE, {part_o, part_ml}, {node.out});
    base_.params.n_heads = g_.n_heads;
    base_.params.head_dim = g_.head_dim;
    base_.params.M = splits_;
    base_.params.N_tile = 1;
    for (int32_t head = 0; head < g_.n_heads; ++head) push_task().n_off = head;
  }
  void push_attention(const Node& node) {
    add_flag(AMK_FLAG_ROPE, node.inv_freq);
    add_flag(AMK_FLAG_NORM, node.norm);
    if (node.k_norm != kNoTensor) add_input(node.k_norm);
    amk_params_t& base = base_.params;
    base.n_heads = g_.n_heads;
    base.n_kv_heads = g_.n_kv_heads;
    base.head_dim = g_.head_dim;
    base.K = g_.max_seq;
    base.N = tokens_;
    base.M = splits_;
    base.M_tile = schedule_.attention_kv_block;
    base.N_tile = 1;
    base.m_off = node.x_first;
    base.scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(g_.head_dim)));
    for (int32_t split = 0; split < splits_; ++split) {
      for (int32_t head = 0; head < g_.n_kv_heads; ++head) {
        amk_params_t& p = push_task();
        p.n_off = head;
        p.dim = split;
      }
    }
  }
  void tile_conv(const Node& node) {
    begin_op(node.name, AMK_OP_CAUSAL_CONV, {node.x, node.weight, node.state}, {node.out, node.state});
    const Tensor& weight = g_.tensors[node.weight];
    base_.params.N = static_cast<int32_t>(weight.shape[0]);
    base_.params.K = static_cast<int32_t>(weight.shape[1]);
    base_.params.m_off = node.x_first;
    push_elementwise(weight.shape[0], kConvTile);
  }
  // Each value head is a state of its own: a head per task spreads them over as many SMs as there are.
  void tile_gdn(const Node& node) {
    begin_op(node.name, AMK_OP_GDN_DECODE, {node.x, node.gates, node.a_log, node.dt_bias, node.state},
             {node.out, node.state});
    amk_params_t& base = base_.params;
    base.n_heads = g_.linear_value_heads;
    base.n_kv_heads = g_.linear_key_heads;
    base.head_dim = g_.linear_head_dim;
    base.m_off = node.x_first;
    base.flags = AMK_FLAG_L2_NORM;
    base.eps = g_.l2_eps;
    base.scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(g_.linear_head_dim)));
    for (Range heads : split_even(g_.linear_value_heads, 1, sm_count_)) push_range(heads);
  }
  void tile_gated_norm(const Node& node) {
    begin_op(node.name, AMK_OP_GATED_RMSNORM, {node.x, node.gates, node.norm}, {node.out});
    base_.params.n_heads = g_.linear_value_heads;
    base_.params.head_dim = g_.linear_head_dim;
    base_.params.m_off = node.x_first;
    base_.params.eps = g_.eps;
    for (Range heads : split_heads(g_.linear_value_heads, g_.linear_head_dim)) push_range(heads);
  }
  void tile_argmax(const Node& node) {
    const int32_t parts =
        static_cast<int32_t>(std::clamp<int64_t>(int64_t{g_.vocab} * g_.batch / kElementwiseTile, 1, sm_count_));
    const int32_t value = add_scratch(node.name + ".best_value", AMK_DTYPE_F32, {parts});
    const int32_t index = add_scratch(node.name + ".best_index", AMK_DTYPE_I32, {parts});
    begin_op(node.name, AMK_OP_SAMPLE_ARGMAX, {node.x}, {value, index});
    base_.params.vocab = g_.vocab;
    base_.params.M = parts;
    push_elementwise(g_.vocab);
    const Op& scan = plan_.ops.back();
    AMK_CHECK(scan.task_count == parts, AMK_ERR_INTERNAL, "argmax: %d tasks for %d entries", scan.task_count, parts);
    for (int32_t i = 0; i < parts; ++i) plan_.program.tasks[scan.first_task + i].params.dim = i;
    begin_op(node.name + "_combine", AMK_OP_ARGMAX_COMBINE, {value, index}, {node.out});
    base_.params.M = parts;
    push_task();
  }

  const Graph& g_;
  const amk_schedule_t& schedule_;
  const int32_t sm_count_;
  const int32_t tokens_;  // parameter of the tasks: 0 for one
  int32_t splits_ = 1;
  bool is_direct_ = false;  // attention writes its heads: there are no partials to combine
  Plan plan_;
  amk_instruction_t base_{};
  std::string op_name_;
};

}  // namespace

Plan tile(const Graph& graph, const amk_schedule_t& schedule, const amk_target_t& target) {
  return Tiler(graph, schedule, target).run();
}

}  // namespace amk
