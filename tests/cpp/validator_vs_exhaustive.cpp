// Counts disagreements between the validator and the exhaustive oracle: validator_vs_exhaustive [count] [seed].
// Exit status 0 only when there is none, and when the programs were varied enough to mean something.
#include <cstdio>
#include <cstdlib>

#include "exhaustive_oracle.h"
#include "validate/validate.h"

int main(int argc, char** argv) {
  const long count = argc > 1 ? std::atol(argv[1]) : 20000;
  const unsigned long seed = argc > 2 ? std::strtoul(argv[2], nullptr, 10) : 1;
  std::mt19937_64 random(seed);
  constexpr int kCodes = 27;
  long accepted = 0, rejected = 0, false_accepts = 0, false_rejects = 0;
  long by_code[kCodes] = {}, by_verdict[static_cast<int>(oracle::Verdict::kCount)] = {};
  for (long i = 0; i < count; ++i) {
    const oracle::TinyProgram tiny = oracle::generate(random);
    const oracle::Verdict verdict = oracle::judge(tiny);
    const amk::Judgement judgement = amk::validate(oracle::encode(tiny));
    const bool safe = verdict == oracle::Verdict::kSafe, ok = judgement.report.ok();
    ++(ok ? accepted : rejected);
    ++by_verdict[static_cast<int>(verdict)];
    if (!ok) ++by_code[judgement.report.entries()[0].code];
    if (ok == safe && ok == judgement.valid.has_value()) continue;
    ++(ok ? false_accepts : false_rejects);
    if (false_accepts + false_rejects > 5) continue;
    std::printf("program %ld: the oracle says \"%s\", the validator says \"%s\"\n%s", i, oracle::verdict_name(verdict),
                ok ? "valid" : judgement.report.entries()[0].text.c_str(), oracle::describe(tiny).c_str());
  }
  std::printf("n %ld seed %lu accepted %ld rejected %ld false_accepts %ld false_rejects %ld\n", count, seed, accepted,
              rejected, false_accepts, false_rejects);
  for (int v = 0; v < static_cast<int>(oracle::Verdict::kCount); ++v)
    std::printf("  oracle: %-32s %ld\n", oracle::verdict_name(static_cast<oracle::Verdict>(v)), by_verdict[v]);
  for (int c = 0; c < kCodes; ++c)
    if (by_code[c]) std::printf("  validator: first code V%-2d %ld\n", c, by_code[c]);
  bool varied = true;
  if (count >= 20000)
    for (int code : {8, 9, 11, 12, 13, 14, 15, 16, 18, 19}) varied = varied && by_code[code] > 0;
  if (!varied) std::printf("some obligation was never broken by the generator\n");
  return false_accepts || false_rejects || !varied;
}
