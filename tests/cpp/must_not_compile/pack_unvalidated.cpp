// Only a ValidProgram packs: a Program that nobody judged has no way into an image.
#include "pack/image.h"
#include "program/program.h"

amk::Image make(const amk::Program& program, const amk::ValidProgram& valid) {
#ifdef AMK_FORBIDDEN
  return amk::pack(program);
#else
  (void)program;
  return amk::pack(valid);
#endif
}
