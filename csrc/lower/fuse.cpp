// Pass 1: merges nodes of the graph. Each fusion is a pattern over producers and readers, not over names, so it holds
// for any graph; each takes away tasks, a buffer or a join.
#include <algorithm>
#include <utility>

#include "lower/passes.h"

namespace amk {
namespace {

class Fuser {
 public:
  explicit Fuser(Graph& graph) : graph_(graph), dead_(graph.nodes.size(), false) { index(); }

  // The normalisation moves into every linear that reads it.
  void norm_into_linears() {
    for (size_t i = 0; i < graph_.nodes.size(); ++i) {
      const Node norm = graph_.nodes[i];
      if (dead_[i] || norm.kind != NodeKind::kRmsNorm) continue;
      bool all_linear = !readers_[norm.out].empty();
      for (int32_t r : readers_[norm.out]) {
        const Node& reader = graph_.nodes[r];
        all_linear &= reader.kind == NodeKind::kLinear && reader.norm == kNoTensor && reader.x == norm.out;
      }
      if (!all_linear) continue;
      for (int32_t r : readers_[norm.out]) {
        graph_.nodes[r].x = norm.x;
        graph_.nodes[r].norm = norm.norm;
      }
      dead_[i] = true;
    }
    index();
  }

  // Neighbours that read adjacent rows of one matrix become one linear. `gate_up`: those whose result feeds a
  // SiluMul; otherwise all others.
  void merge_adjacent_rows(bool gate_up) {
    for (size_t i = 0; i < graph_.nodes.size(); ++i) {
      Node& node = graph_.nodes[i];
      if (dead_[i] || node.kind != NodeKind::kLinear || feeds_silu_mul(node) != gate_up) continue;
      for (size_t j = i + 1; j < graph_.nodes.size(); ++j) {
        const Node& next = graph_.nodes[j];
        if (next.kind != NodeKind::kLinear || next.x != node.x || next.weight != node.weight || next.out != node.out ||
            next.bias != node.bias || next.norm != node.norm || next.row_first != node.row_first + node.row_count)
          break;
        node.row_count += next.row_count;
        node.name = graph_.tensors[node.out].name;
        dead_[j] = true;
      }
    }
    index();
  }

  void silu_into_linear() {
    for (size_t i = 0; i < graph_.nodes.size(); ++i) {
      const Node& act = graph_.nodes[i];
      Node* linear = act.kind == NodeKind::kSiluMul && !dead_[i] ? whole_linear_only_for(act.x) : nullptr;
      if (!linear) continue;
      linear->silu_pair = true;
      linear->row_count /= 2;
      linear->out = act.out;
      dead_[i] = true;
    }
    index();
  }

  void add_into_linear() {
    for (size_t i = 0; i < graph_.nodes.size(); ++i) {
      Node& add = graph_.nodes[i];
      Node* linear = add.kind == NodeKind::kAdd && !dead_[i] ? whole_linear_only_for(add.x) : nullptr;
      if (!linear || linear->silu_pair || linear->residual != kNoTensor) continue;
      // The merged node takes the place of the addition: both its operands exist there.
      const int32_t residual = add.residual, out = add.out;
      dead_[linear - graph_.nodes.data()] = true;
      add = *linear;
      add.residual = residual;
      add.out = out;
    }
    index();
  }

  void rope_into_append() {
    for (size_t i = 0; i < graph_.nodes.size(); ++i) {
      const Node& rope = graph_.nodes[i];
      if (dead_[i] || rope.kind != NodeKind::kRope || readers_[rope.out].size() != 1) continue;
      Node& append = graph_.nodes[readers_[rope.out][0]];
      if (append.kind != NodeKind::kKvAppend || append.inv_freq != kNoTensor || append.x_first != 0 ||
          append.heads != rope.heads)
        continue;
      append.x = rope.x;
      append.x_first = rope.x_first;
      append.inv_freq = rope.inv_freq;
      append.norm = rope.norm;
      dead_[i] = true;
    }
    index();
  }

  // Attention turns this step's queries and key itself, and no longer waits for the appends: they move behind it. With
  // several tokens it reads the step's keys back from the cache.
  void rope_into_attention() {
    if (graph_.batch > 1) return;
    std::vector<std::pair<size_t, int32_t>> order;  // per node: the place it takes, and its turn there
    for (size_t i = 0; i < graph_.nodes.size(); ++i) order.emplace_back(i, 0);
    for (size_t i = 0; i < graph_.nodes.size(); ++i) {
      Node& attention = graph_.nodes[i];
      if (attention.kind != NodeKind::kAttention || attention.inv_freq != kNoTensor) continue;
      const int32_t q = only_writer(attention.x, NodeKind::kRope);
      const int32_t k = only_writer(attention.k_cache, NodeKind::kKvAppend);
      const int32_t v = only_writer(attention.v_cache, NodeKind::kKvAppend);
      if (q < 0 || k < 0 || v < 0 || !one_step_of_heads(attention, graph_.nodes[q], graph_.nodes[k], graph_.nodes[v]))
        continue;
      attention.x = graph_.nodes[q].x;
      attention.x_first = graph_.nodes[q].x_first;
      attention.inv_freq = graph_.nodes[q].inv_freq;
      attention.norm = graph_.nodes[q].norm;
      attention.k_norm = graph_.nodes[k].norm;
      dead_[q] = true;
      order[k] = {i, 1};
      order[v] = {i, 2};
    }
    std::vector<int32_t> at(order.size());
    for (size_t i = 0; i < at.size(); ++i) at[i] = static_cast<int32_t>(i);
    std::sort(at.begin(), at.end(), [&](int32_t a, int32_t b) { return order[a] < order[b]; });
    std::vector<Node> nodes;
    std::vector<bool> dead;
    for (int32_t i : at) {
      nodes.push_back(std::move(graph_.nodes[i]));
      dead.push_back(dead_[i]);
    }
    graph_.nodes = std::move(nodes);
    dead_ = std::move(dead);
    index();
  }

  void finish() { graph_.drop_unused_tensors(); }

 private:
  // Drops dead nodes and finds the readers and writers of each tensor.
  void index() {
    std::vector<Node> kept;
    for (size_t i = 0; i < graph_.nodes.size(); ++i)
      if (!dead_[i]) kept.push_back(std::move(graph_.nodes[i]));
    graph_.nodes = std::move(kept);
    dead_.assign(graph_.nodes.size(), false);
    readers_.assign(graph_.tensors.size(), {});
    writers_.assign(graph_.tensors.size(), {});
    for (size_t i = 0; i < graph_.nodes.size(); ++i) {
      const Node& node = graph_.nodes[i];
      for_inputs(node, [&](int32_t id) { readers_[id].push_back(static_cast<int32_t>(i)); });
      writers_[node.out].push_back(static_cast<int32_t>(i));
    }
  }
  bool feeds_silu_mul(const Node& node) const {
    for (int32_t r : readers_[node.out])
      if (graph_.nodes[r].kind == NodeKind::kSiluMul) return true;
    return false;
  }
  // The node that alone writes the tensor, if it is of this kind and one operand reads the tensor; else -1.
  int32_t only_writer(int32_t tensor, NodeKind kind) const {
    if (writers_[tensor].size() != 1 || readers_[tensor].size() != 1) return -1;
    const int32_t writer = writers_[tensor][0];
    return graph_.nodes[writer].kind == kind ? writer : -1;
  }
  // Whether q, k and v come from one tensor, heads back to back, all of them, q and k turned in the same way.
  bool one_step_of_heads(const Node& attention, const Node& q, const Node& k, const Node& v) const {
    const int32_t k_first = q.x_first + q.heads * graph_.head_dim, v_first = k_first + k.heads * graph_.head_dim;
    return attention.x_first == 0 && attention.heads == q.heads && q.heads == graph_.n_heads &&
           k.heads == graph_.n_kv_heads && v.heads == graph_.n_kv_heads && k.x == q.x && v.x == q.x &&
           k.x_first == k_first && v.x_first == v_first && k.inv_freq == q.inv_freq && v.inv_freq == kNoTensor &&
           v.norm == kNoTensor && (q.norm == kNoTensor) == (k.norm == kNoTensor);
  }
  // The linear that alone writes the tensor, all of it, when exactly one operand reads it; else nullptr.
  Node* whole_linear_only_for(int32_t tensor) {
    if (writers_[tensor].size() != 1 || readers_[tensor].size() != 1) return nullptr;
    Node& node = graph_.nodes[writers_[tensor][0]];
    const bool whole = node.row_first == 0 && node.row_count == graph_.tensors[tensor].width();
    return node.kind == NodeKind::kLinear && whole ? &node : nullptr;
  }

  Graph& graph_;
  std::vector<bool> dead_;
  std::vector<std::vector<int32_t>> readers_, writers_;
};

}  // namespace

Graph fuse(Graph graph, int32_t fusion) {
  Fuser fuser(graph);
  if (fusion & AMK_FUSE_RMSNORM_GEMV) fuser.norm_into_linears();
  if (fusion & AMK_FUSE_QKV) fuser.merge_adjacent_rows(false);
  if (fusion & (AMK_FUSE_GATE_UP | AMK_FUSE_GATE_UP_SILU)) fuser.merge_adjacent_rows(true);
  if (fusion & AMK_FUSE_GATE_UP_SILU) fuser.silu_into_linear();
  if (fusion & AMK_FUSE_GEMV_ADD) fuser.add_into_linear();
  if (fusion & AMK_FUSE_ROPE_KV_APPEND) fuser.rope_into_append();
  if (fusion & AMK_FUSE_ROPE_ATTENTION) fuser.rope_into_attention();
  fuser.finish();
  return graph;
}

}  // namespace amk
