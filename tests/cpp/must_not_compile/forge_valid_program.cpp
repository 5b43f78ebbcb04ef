// Only validate() makes a ValidProgram.
#include "validate/validate.h"

amk::Judgement make(amk::Program program) {
#ifdef AMK_FORBIDDEN
  amk::ValidProgram forged{std::move(program)};
  return {amk::Report{}, forged};
#else
  return amk::validate(std::move(program));
#endif
}
