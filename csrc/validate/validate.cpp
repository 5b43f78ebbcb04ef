// The order of the proofs, nothing else.
#include "validate/validate.h"

#include "validate/proofs.h"
#include "validate/translation_model.h"

namespace amk {

Judgement ValidProgram::judge(Program program, const Decoder* model) {
  Judgement result;
  Report* report = &result.report;
  // 1. Structure: until the tables index what exists and every size fits, nothing else may look at them.
  if (!prove_tables(program, report)) return result;
  if (!prove_sizes(program, report)) return result;
  prove_ring(program, report);
  StorageMap storage = map_storage(program);
  if (!prove_placement(program, storage, report)) return result;
  if (!prove_laws(program, report)) return result;
  AccessTable accesses;
  if (!prove_accesses(program, storage, &accesses, report)) return result;
  prove_partials(program, storage, accesses, report);
  prove_work(program, report);
  // 2. Order: happens-before exists only when signals are unambiguous and the graph has no cycle.
  std::vector<uint32_t> producers;
  if (!prove_signals(program, &producers, report)) return result;
  TaskOrder order;
  if (!prove_progress(program, producers, &order, report)) return result;
  // 3. Hazards, on physical bytes.
  prove_hazards(program, storage, accesses, order, report);
  if (!report->ok()) return result;
  // 4. Meaning, which only a program with one order of its reads and writes has.
  if (model && !prove_translation(program, order, *model, report)) return result;
  result.valid =
      ValidProgram(std::make_shared<const Facts>(Facts{std::move(program), std::move(storage), std::move(producers)}));
  return result;
}

Judgement validate(Program program) { return ValidProgram::judge(std::move(program), nullptr); }

Judgement validate_model(Program program, const amk_model_t& model) {
  const Decoder decoder(model);
  return ValidProgram::judge(std::move(program), &decoder);
}

}  // namespace amk
