// validate(): the judge between anybody's Program and everything that runs one.
// In: tables with any contents. Out: a report, and a ValidProgram when the report is empty. Never throws on what the
// tables hold (only std::bad_alloc without memory), and never learns how the program was made.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "program/program.h"
#include "program/storage.h"
#include "validate/report.h"

namespace amk {

class Decoder;

struct Judgement;
Judgement validate(Program program);
Judgement validate_model(Program program, const amk_model_t& model);

// A program that the proofs accepted. Only validate() and validate_model() make one; copies share the tables.
class ValidProgram {
 public:
  const Program& program() const { return facts_->program; }
  const StorageMap& storage() const { return facts_->storage; }
  const std::vector<uint32_t>& producers() const { return facts_->producers; }  // per counter: its value at the end

 private:
  struct Facts {
    Program program;
    StorageMap storage;
    std::vector<uint32_t> producers;
  };
  explicit ValidProgram(std::shared_ptr<const Facts> facts) : facts_(std::move(facts)) {}
  static Judgement judge(Program program, const Decoder* model);
  friend Judgement validate(Program program);
  friend Judgement validate_model(Program program, const amk_model_t& model);

  std::shared_ptr<const Facts> facts_;
};

struct Judgement {
  Report report;
  std::optional<ValidProgram> valid;  // set exactly when report.ok()
};

// Proves V1..V16, V18, V19 and V21..V23, and is what V25 promises. In the order structure, placement, accesses, work,
// order, hazard; a proof that needs an earlier one is skipped when that one failed.
Judgement validate(Program program);

// And V17: the program computes the decoder that `model` describes. Error INVALID_ARGUMENT for a model outside its
// domain.
Judgement validate_model(Program program, const amk_model_t& model);

}  // namespace amk
