#include "native/cpu/target.h"

#include <gtest/gtest.h>

#include <stdexcept>

namespace natten::cpu {
namespace {

TEST(Target, IsTheBestOfTheMachineByDefault) {
  set_cpu_target("");
  if (std::getenv("NATTEN_CPU_TARGET") != nullptr) GTEST_SKIP() << "the environment chooses";
  EXPECT_EQ(cpu_target(), cpu_targets().front());
}

TEST(Target, CanBeForced) {
  for (const std::string& name : cpu_targets()) {
    set_cpu_target(name);
    EXPECT_EQ(cpu_target(), name);
  }
  set_cpu_target("");
}

TEST(Target, UnknownNameIsAnErrorThatListsTheNames) {
  try {
    set_cpu_target("MMX");
    FAIL() << "no exception";
  } catch (const std::invalid_argument& error) {
    const std::string message = error.what();
    EXPECT_NE(message.find("'MMX'"), std::string::npos) << message;
    for (const std::string& name : cpu_targets()) EXPECT_NE(message.find(name), std::string::npos) << message;
  }
}

}  // namespace
}  // namespace natten::cpu
