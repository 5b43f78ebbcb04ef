// A test framework of one page: TEST(name) { CHECK(...); } and a main in check_main.cpp.
// A failed CHECK prints where and what, and the test goes on; the program's exit status counts failed tests.
#pragma once

#include <cstdio>
#include <functional>
#include <sstream>
#include <string>
#include <vector>

namespace check {

struct Case {
  const char* name;
  std::function<void()> body;
};
inline std::vector<Case>& cases() {
  static std::vector<Case> all;
  return all;
}
inline int& failures() {
  static int count = 0;
  return count;
}
struct Register {
  Register(const char* name, std::function<void()> body) { cases().push_back({name, std::move(body)}); }
};
inline void fail(const char* file, int line, const std::string& what) {
  ++failures();
  std::printf("%s:%d: %s\n", file, line, what.c_str());
}
template <class A, class B>
void equal(const char* file, int line, const char* text, const A& a, const B& b) {
  if (a == b) return;
  std::ostringstream out;
  out << text << ": " << a << " != " << b;
  fail(file, line, out.str());
}

}  // namespace check

#define TEST(name)                                           \
  static void name();                                        \
  static ::check::Register name##_registration(#name, name); \
  static void name()
#define CHECK(cond)                                                            \
  do {                                                                         \
    if (!(cond)) ::check::fail(__FILE__, __LINE__, "CHECK(" #cond ") failed"); \
  } while (0)
#define CHECK_EQ(a, b) ::check::equal(__FILE__, __LINE__, #a " == " #b, (a), (b))
