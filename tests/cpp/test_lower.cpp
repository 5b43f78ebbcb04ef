// Lowered programs: the judge accepts every one of them, each knob changes the tables, equal inputs give equal bytes.
#include <algorithm>
#include <map>
#include <set>

#include "lower_models.h"
#include "ops/op_spec.h"
#include "program/storage.h"
#include "validate/validate.h"

using namespace amk;

namespace {

void expect_valid(const char* file, int line, Program program, const std::string& what) {
  const Judgement judgement = validate(std::move(program));
  if (judgement.report.ok()) return;
  const Rejection& r = judgement.report.entries().front();
  check::fail(file, line, what + ": V" + std::to_string(r.code) + " " + r.text);
}
#define EXPECT_VALID(program, what) expect_valid(__FILE__, __LINE__, program, what)

int count_ops(const Program& p, int32_t op, int32_t flags = 0) {
  return static_cast<int>(std::count_if(p.tasks.begin(), p.tasks.end(), [&](const amk_instruction_t& t) {
    return t.op == op && (t.params.flags & flags) == flags;
  }));
}
bool has_buffer(const Program& p, const std::string& name) {
  for (size_t i = 0; i < p.buffers.size(); ++i)
    if (p.buffer_name.at(i) == name) return true;
  return false;
}
// Counters whose tasks carry labels "name[i]".
std::set<std::string> op_names(const Program& p) {
  std::set<std::string> names;
  for (size_t i = 0; i < p.tasks.size(); ++i) {
    const std::string label(p.task_label.at(i));
    names.insert(label.substr(0, label.find('[')));
  }
  return names;
}
int64_t arena_bytes(const Program& p) { return map_storage(p).storages[0].nbytes; }

amk_schedule_t with_fusion(int32_t fusion) {
  amk_schedule_t s = default_schedule();
  s.fusion = fusion;
  return s;
}

}  // namespace

TEST(every_combination_of_structure_is_accepted) {
  const std::vector<amk_model_t> models = small_models();
  const int32_t kSmCounts[] = {8, 5, 1, 17, 132};
  int kv_block = 16;
  for (size_t m = 0; m < models.size(); ++m) {
    const Graph graph = build_decoder(models[m]);
    const amk_target_t target = small_target(kSmCounts[m % 5]);
    for (int fusion = 0; fusion < 128; ++fusion)
      for (int n_tile : {0, 48})
        for (int pages = 0; pages <= AMK_PAGES_GRAPH_COLOR; ++pages)
          for (int policy = 0; policy <= AMK_SM_LOAD_BALANCE; ++policy) {
            amk_schedule_t s = with_fusion(fusion);
            s.gemv_n_tile = n_tile;
            s.page_policy = pages;
            s.sm_policy = policy;
            s.attention_kv_block = kv_block = kv_block == 256 ? 16 : kv_block * 2;
            EXPECT_VALID(lower(graph, s, target), "model " + std::to_string(m) + " fusion " + std::to_string(fusion) +
                                                      " N_tile " + std::to_string(n_tile) + " pages " +
                                                      std::to_string(pages) + " sm " + std::to_string(policy));
          }
  }
}

TEST(full_shapes_are_accepted) {
  EXPECT_VALID(lower_model(llama_1b(), default_schedule(), h200()), "1B");
  amk_schedule_t s = with_fusion(0);
  s.page_policy = AMK_PAGES_GRAPH_COLOR;
  s.sm_policy = AMK_SM_LOAD_BALANCE;
  EXPECT_VALID(lower_model(llama_8b(), s, h200()), "8B");
  EXPECT_VALID(lower_model(large_hybrid(), default_schedule(), h200()), "hybrid");
  EXPECT_VALID(lower_model(large_hybrid(), s, h200()), "hybrid, unfused");
}

TEST(equal_inputs_give_equal_bytes) {
  for (int policy : {AMK_SM_ROUND_ROBIN, AMK_SM_LOAD_BALANCE}) {
    amk_schedule_t s = default_schedule();
    s.sm_policy = policy;
    for (const amk_model_t& m : small_models())
      CHECK(table_bytes(lower_model(m, s, h200())) == table_bytes(lower_model(m, s, h200())));
  }
}

TEST(every_knob_value_changes_the_program) {
  const Graph graph = build_decoder(small_models()[1]);
  const amk_target_t target = small_target(8);
  std::map<std::string, std::string> seen;  // tables -> the knob value that gave them
  auto add = [&](const std::string& what, const amk_schedule_t& s) {
    auto [at, is_new] = seen.emplace(table_bytes(lower(graph, s, target)), what);
    if (!is_new) check::fail(__FILE__, __LINE__, what + " gives the program of " + at->second);
  };
  add("default", default_schedule());
  for (int n_tile : {8, 16, 64, 128}) {
    amk_schedule_t s = default_schedule();
    s.gemv_n_tile = n_tile;
    add("N_tile " + std::to_string(n_tile), s);
  }
  for (int kv_block : {32, 64, 128, 256, 512}) {
    amk_schedule_t s = default_schedule();
    s.attention_kv_block = kv_block;
    add("kv_block " + std::to_string(kv_block), s);
  }
  amk_schedule_t balanced = default_schedule();
  balanced.sm_policy = AMK_SM_LOAD_BALANCE;
  add("load_balance", balanced);
  for (int pages : {AMK_PAGES_NONE, AMK_PAGES_GRAPH_COLOR}) {
    amk_schedule_t s = default_schedule();
    s.page_policy = pages;
    add("pages " + std::to_string(pages), s);
  }
  // The 64 sets give 48 programs: gate+up+silu holds gate+up.
  seen.clear();
  for (int fusion = 0; fusion < 128; ++fusion)
    if ((fusion & (AMK_FUSE_GATE_UP | AMK_FUSE_GATE_UP_SILU)) != (AMK_FUSE_GATE_UP | AMK_FUSE_GATE_UP_SILU) &&
        (fusion & (AMK_FUSE_ROPE_KV_APPEND | AMK_FUSE_ROPE_ATTENTION)) != AMK_FUSE_ROPE_ATTENTION)
      add("fusion " + std::to_string(fusion), with_fusion(fusion));
  CHECK_EQ(seen.size(), 72u);
  CHECK(table_bytes(lower(graph, with_fusion(AMK_FUSE_GATE_UP_SILU), target)) ==
        table_bytes(lower(graph, with_fusion(AMK_FUSE_GATE_UP_SILU | AMK_FUSE_GATE_UP), target)));
  // Without a key that is turned as it is appended there is nothing for attention to turn.
  CHECK(table_bytes(lower(graph, with_fusion(0), target)) ==
        table_bytes(lower(graph, with_fusion(AMK_FUSE_ROPE_ATTENTION), target)));
  // With several splits there is something to combine.
  CHECK(table_bytes(lower(graph, with_fusion(0), target)) ==
        table_bytes(lower(graph, with_fusion(AMK_FUSE_ATTENTION_COMBINE), target)));
}

TEST(fusion_takes_away_what_it_names) {
  const amk_model_t model = small_models()[2];  // with head norms
  const Program plain = lower_model(model, with_fusion(0), small_target(8));
  CHECK_EQ(count_ops(plain, AMK_OP_RMSNORM), 5);
  CHECK_EQ(count_ops(plain, AMK_OP_GEMV_TILE, AMK_FLAG_NORM), 0);
  CHECK(count_ops(plain, AMK_OP_ADD) > 0 && count_ops(plain, AMK_OP_SILU_MUL) > 0);

  const Program norm = lower_model(model, with_fusion(AMK_FUSE_RMSNORM_GEMV), small_target(8));
  CHECK_EQ(count_ops(norm, AMK_OP_RMSNORM), 0);
  CHECK(!has_buffer(norm, "layers.0.attn_in") && !has_buffer(norm, "head_in"));

  const Program gate_up = lower_model(model, with_fusion(AMK_FUSE_GATE_UP), small_target(8));
  CHECK(op_names(gate_up).count("layers.1.gate_up") && !op_names(gate_up).count("layers.1.gate"));
  CHECK(count_ops(gate_up, AMK_OP_SILU_MUL) > 0);

  const Program silu = lower_model(model, with_fusion(AMK_FUSE_GATE_UP_SILU), small_target(8));
  CHECK_EQ(count_ops(silu, AMK_OP_SILU_MUL), 0);
  CHECK(count_ops(silu, AMK_OP_GEMV_TILE, AMK_FLAG_SILU_PAIR) > 0 && !has_buffer(silu, "layers.0.gate_up"));

  const Program add = lower_model(model, with_fusion(AMK_FUSE_GEMV_ADD), small_target(8));
  CHECK_EQ(count_ops(add, AMK_OP_ADD), 0);
  CHECK(!has_buffer(add, "layers.0.attn_out") && !has_buffer(add, "layers.0.mlp_out"));

  const Program qkv = lower_model(model, with_fusion(AMK_FUSE_QKV), small_target(8));
  CHECK(op_names(qkv).count("layers.0.qkv") && !op_names(qkv).count("layers.0.q"));

  const Program rope = lower_model(model, with_fusion(AMK_FUSE_ROPE_KV_APPEND), small_target(8));
  CHECK_EQ(count_ops(rope, AMK_OP_ROPE), 2);
  CHECK_EQ(count_ops(rope, AMK_OP_KV_APPEND, AMK_FLAG_ROPE | AMK_FLAG_NORM), 2);
  CHECK(!has_buffer(rope, "layers.0.k_rotated"));

  const Program raw =
      lower_model(model, with_fusion(AMK_FUSE_ROPE_KV_APPEND | AMK_FUSE_ROPE_ATTENTION), small_target(8));
  CHECK_EQ(count_ops(raw, AMK_OP_ROPE), 0);
  CHECK_EQ(count_ops(raw, AMK_OP_ATTENTION_TILE, AMK_FLAG_ROPE | AMK_FLAG_NORM), count_ops(raw, AMK_OP_ATTENTION_TILE));
  CHECK(!has_buffer(raw, "layers.0.q_rotated"));
}

// The hop that the fusion is for: attention waits for nothing but the rows of wqkv, and nothing that it leads to waits
// for the appends, which come after it in every queue.
TEST(attention_of_raw_heads_does_not_wait_for_the_appends) {
  for (const amk_model_t& model : small_models()) {
    if (model.full_attention_interval > model.layers) continue;  // no layer attends
    const bool gated = model.features & AMK_MODEL_ATTENTION_GATE;
    amk_schedule_t s = default_schedule();
    s.page_policy = AMK_PAGES_NONE;
    const Program p = lower_model(model, s, small_target(8));
    std::map<int32_t, std::string> op_of_counter;
    std::map<std::string, size_t> last;
    std::map<std::string, std::set<std::string>> waits;
    for (size_t i = 0; i < p.tasks.size(); ++i) {
      const std::string label(p.task_label.at(static_cast<int64_t>(i)));
      const std::string op = label.substr(0, label.find('['));
      op_of_counter[p.tasks[i].out_counter] = op;
      last[op] = i;
      for (int w = 0; w < p.tasks[i].n_waits; ++w) waits[op].insert(op_of_counter[p.tasks[i].wait_counter[w]]);
    }
    const std::string layer = model.full_attention_interval ? "layers.3." : "layers.0.";
    const std::set<std::string> qkv = {layer + "qkv"};
    CHECK(waits[layer + "attention"] == qkv);
    CHECK(waits[layer + "append_k"] == qkv && waits[layer + "append_v"] == qkv);
    CHECK(waits[layer + "o"] == std::set<std::string>{layer + (gated ? "attn_gate_mul" : "attention_combine")});
    CHECK(last[layer + "append_k"] > last[layer + "attention"]);
    CHECK(last[layer + "append_v"] > last[layer + "attention"]);
  }
}

TEST(tiles_partition_rows_in_groups) {
  const amk_model_t model = small_models()[4];  // 5001 rows of lm_head
  for (int n_tile : {0, 8, 40, 8192}) {
    amk_schedule_t s = default_schedule();
    s.gemv_n_tile = n_tile;
    const Program p = lower_model(model, s, small_target(20));
    int32_t next = 0, tiles = 0, smallest = INT32_MAX, largest = 0;
    for (size_t i = 0; i < p.tasks.size(); ++i) {
      if (p.task_label.at(i).substr(0, 7) != "lm_head") continue;
      const amk_params_t& q = p.tasks[i].params;
      CHECK_EQ(q.n_off, next);
      CHECK_EQ(q.n_off % AMK_ROW_GROUP, 0);
      next += q.N_tile;
      ++tiles;
      if (next < model.vocab) smallest = std::min(smallest, q.N_tile);
      largest = std::max(largest, q.N_tile);
    }
    CHECK_EQ(next, model.vocab);
    if (n_tile == 0) {
      CHECK_EQ(tiles, 20);
      CHECK(largest - smallest <= AMK_ROW_GROUP);
    } else {
      CHECK_EQ(tiles, (model.vocab + n_tile - 1) / n_tile);
    }
  }
}

TEST(attention_splits_follow_block_capacity_and_sms) {
  struct Row {
    int32_t max_seq, kv_block, sm_count, splits;
  };
  // Two kv heads.
  for (const Row& row : {Row{256, 64, 132, 4}, Row{256, 16, 132, 16}, Row{256, 512, 132, 1}, Row{256, 16, 8, 4},
                         Row{256, 16, 1, 1}, Row{1, 16, 132, 1}, Row{65, 64, 132, 2}, Row{4096, 16, 132, 66}}) {
    amk_model_t model = small_models()[1];
    model.layers = 1;
    model.max_seq = row.max_seq;
    amk_schedule_t s = default_schedule();
    s.attention_kv_block = row.kv_block;
    const Program p = lower_model(model, s, small_target(row.sm_count));
    CHECK_EQ(count_ops(p, AMK_OP_ATTENTION_TILE), row.splits * model.n_kv_heads);
    CHECK_EQ(count_ops(p, AMK_OP_ATTENTION_COMBINE), model.n_heads);
    EXPECT_VALID(p, "splits");
    s.fusion |= AMK_FUSE_ATTENTION_COMBINE;
    const Program direct = lower_model(model, s, small_target(row.sm_count));
    const bool one_split = row.splits == 1;
    CHECK_EQ(count_ops(direct, AMK_OP_ATTENTION_TILE), row.splits * model.n_kv_heads);
    CHECK_EQ(count_ops(direct, AMK_OP_ATTENTION_TILE, AMK_FLAG_DIRECT), one_split ? model.n_kv_heads : 0);
    CHECK_EQ(count_ops(direct, AMK_OP_ATTENTION_COMBINE), one_split ? 0 : model.n_heads);
    CHECK_EQ(has_buffer(direct, "layers.0.attention.part_o"), !one_split);
    CHECK_EQ(has_buffer(direct, "layers.0.attention.part_ml"), !one_split);
    EXPECT_VALID(direct, "attention+combine");
  }
}

TEST(page_reuse_shrinks_the_arena) {
  amk_model_t model = small_models()[1];
  model.layers = 12;
  std::map<int, Program> by_policy;
  for (int pages : {AMK_PAGES_NONE, AMK_PAGES_LINEAR, AMK_PAGES_GRAPH_COLOR}) {
    amk_schedule_t s = default_schedule();
    s.page_policy = pages;
    by_policy[pages] = lower_model(model, s, small_target(8));
  }
  const Program& none = by_policy[AMK_PAGES_NONE];
  CHECK(arena_bytes(by_policy[AMK_PAGES_LINEAR]) * 5 < arena_bytes(none));
  CHECK(arena_bytes(by_policy[AMK_PAGES_GRAPH_COLOR]) * 5 < arena_bytes(none));
  CHECK(by_policy[AMK_PAGES_LINEAR].pages.size() * 5 < none.pages.size());
  for (const auto& [policy, program] : by_policy) {
    int64_t end = 0;
    for (const amk_page_t& page : program.pages) {
      CHECK(page.offset == end && page.offset % AMK_PAGE_ALIGN == 0 && page.nbytes > 0);
      end = page.offset + page.nbytes;
    }
  }
}

TEST(reuse_of_a_page_adds_an_edge_where_the_data_gives_none) {
  // q_rotated may take the page of what only the key path still read: without an added wait V13 would refuse.
  bool added = false;
  for (const amk_model_t& model : small_models())
    for (int fusion = 0; fusion < 128; ++fusion) {
      amk_schedule_t s = with_fusion(fusion), none = s;
      none.page_policy = AMK_PAGES_NONE;
      auto waits = [&](const amk_schedule_t& schedule) {
        int64_t count = 0;
        for (const amk_instruction_t& t : lower_model(model, schedule, small_target(4)).tasks) count += t.n_waits;
        return count;
      };
      added |= waits(s) > waits(none);
    }
  CHECK(added);
}

TEST(waits_are_all_joins_and_none_is_implied_by_another) {
  for (const amk_model_t& model : small_models())
    for (int fusion : {0, 127, 63, 21, 106, 255}) {
      amk_schedule_t schedule = with_fusion(fusion);
      if (fusion & AMK_FUSE_ATTENTION_COMBINE) schedule.attention_kv_block = 1024;  // one split
      const Program p = lower_model(model, schedule, small_target(6));
      const size_t n = p.counter_init.size();
      std::vector<int32_t> producers(n, 0);
      for (const amk_instruction_t& t : p.tasks) ++producers[t.out_counter];
      std::vector<std::vector<bool>> before(n, std::vector<bool>(n, false));
      for (const amk_instruction_t& t : p.tasks) {
        for (int i = 0; i < t.n_waits; ++i) {
          CHECK_EQ(t.wait_threshold[i], producers[t.wait_counter[i]]);
          for (int j = 0; j < t.n_waits; ++j) CHECK(!before[t.wait_counter[j]][t.wait_counter[i]]);
        }
        for (int i = 0; i < t.n_waits; ++i) {
          const int32_t w = t.wait_counter[i];
          before[t.out_counter][w] = true;
          for (size_t c = 0; c < n; ++c)
            if (before[w][c]) before[t.out_counter][c] = true;
        }
      }
    }
}

TEST(assignments_use_every_sm_once_per_wave) {
  for (int policy : {AMK_SM_ROUND_ROBIN, AMK_SM_LOAD_BALANCE}) {
    amk_schedule_t s = default_schedule();
    s.sm_policy = policy;
    const Program p = lower_model(llama_1b(), s, h200());
    std::map<int32_t, std::set<int32_t>> sms;
    std::map<int32_t, int> tasks;
    for (const amk_instruction_t& t : p.tasks) {
      sms[t.out_counter].insert(t.sm);
      ++tasks[t.out_counter];
    }
    for (const auto& [op, count] : tasks) CHECK_EQ(static_cast<int>(sms[op].size()), std::min(count, 132));
  }
}

TEST(explicit_maps) {
  const amk_model_t model = small_models()[1];
  const amk_target_t target = small_target(8);
  amk_schedule_t s = default_schedule();
  const Program base = lower_model(model, s, target);
  std::vector<int32_t> tasks, sms;
  for (size_t i = base.tasks.size(); i-- > 0;) {
    tasks.push_back(static_cast<int32_t>(i));
    sms.push_back(static_cast<int32_t>(i * 5 % 8));
  }
  s.sm_policy = AMK_SM_EXPLICIT;
  s.sm_map_task = tasks.data();
  s.sm_map_sm = sms.data();
  s.sm_map_count = static_cast<int64_t>(tasks.size());
  const Program mapped = lower_model(model, s, target);
  for (size_t i = 0; i < mapped.tasks.size(); ++i) CHECK_EQ(mapped.tasks[i].sm, static_cast<int32_t>(i * 5 % 8));
  EXPECT_VALID(mapped, "explicit");

  amk_schedule_t other_tiling = s;
  other_tiling.gemv_n_tile = 8;
  EXPECT_ERROR(AMK_ERR_REJECTED, std::to_string(tasks.size()) + " entries", lower_model(model, other_tiling, target));
  EXPECT_ERROR(AMK_ERR_REJECTED, "valid only for the tiling", lower_model(model, other_tiling, target));
  auto with_first = [&](int32_t task, int32_t sm) {
    std::swap(tasks[0], task);
    std::swap(sms[0], sm);
    EXPECT_ERROR(AMK_ERR_REJECTED, "sm_assignment", lower_model(model, s, target));
    tasks[0] = task;
    sms[0] = sm;
  };
  with_first(tasks[1], 0);
  with_first(-1, 0);
  with_first(static_cast<int32_t>(tasks.size()), 0);
  with_first(tasks[0], 8);
  with_first(tasks[0], -1);
  s.sm_map_task = nullptr;
  EXPECT_ERROR(AMK_ERR_INVALID_ARGUMENT, "NULL", lower_model(model, s, target));
}

TEST(labels_and_launch) {
  amk_schedule_t s = default_schedule();
  s.attention_kv_block = 32;
  const Program p = lower_model(small_models()[1], s, small_target(8));
  std::set<std::string> labels;
  for (size_t i = 0; i < p.tasks.size(); ++i) CHECK(labels.insert(std::string(p.task_label.at(i))).second);
  CHECK(labels.count("layers.1.gate_up[7]") && labels.count("layers.0.attention[0]") && labels.count("lm_head[3]"));
  CHECK_EQ(p.launch.grid, 8);
  CHECK_EQ(p.launch.threads_per_block, 256);
  CHECK_EQ(p.launch.max_seq, 256);
  CHECK_EQ(p.launch.steps_per_launch, 1);
  CHECK_EQ(p.launch.kv_block, 32);
  for (const char* name : {"token", "logits", "next_token", "kv.0.k", "kv.1.v", "rope_inv_freq", "layers.1.wqkv"})
    CHECK(has_buffer(p, name));
}

TEST(too_many_tasks_is_a_rejection_before_any_memory) {
  amk_schedule_t s = default_schedule();
  s.gemv_n_tile = 8;
  const amk_model_t huge =
      make_model(AMK_DTYPE_BF16, 1024, AMK_MAX_HIDDEN, 1024, 128, 128, 1 << 22, AMK_MAX_VOCAB, 4096);
  EXPECT_ERROR(AMK_ERR_REJECTED, "tiling.gemv.N_tile", lower_model(huge, s, h200()));
}
