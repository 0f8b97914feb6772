// Every test of this program runs in a locale that writes 1.024,5: kernels are made of text, and no number may reach it
// through a locale.
#include <gtest/gtest.h>
#include <unistd.h>

#include <clocale>
#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <locale>
#include <sstream>

#include "cases.h"

namespace natten::metal_host {
namespace {

class Commas : public std::numpunct<char> {
  char do_decimal_point() const override { return ','; }
  char do_thousands_sep() const override { return '.'; }
  std::string do_grouping() const override { return "\3"; }
};

bool use_c_locale() {
  for (const char* name : {"de_DE.UTF-8", "de_DE.utf8", "fr_FR.UTF-8"}) {
    if (std::setlocale(LC_ALL, name)) return true;
  }
  // Few machines have one installed: make it, where glibc's sources of locales are.
  const auto folder = std::filesystem::temp_directory_path() / ("natten_locale_" + std::to_string(getpid()));
  std::filesystem::create_directories(folder);
  const std::string made = (folder / "de_DE.UTF-8").string();
  const bool is_made = std::system(("localedef -i de_DE -f UTF-8 '" + made + "' >/dev/null 2>&1").c_str()) == 0;
  setenv("LOCPATH", folder.c_str(), 1);
  const bool is_set = is_made && std::setlocale(LC_ALL, "de_DE.UTF-8");
  unsetenv("LOCPATH");
  std::filesystem::remove_all(folder);
  return is_set;
}

class CommaLocale : public testing::Environment {
  void SetUp() override {
    if (!use_c_locale()) std::cerr << "no C locale with a decimal comma: only that of C++ is set\n";
    std::locale::global(std::locale(std::locale(), new Commas));
  }
};

const auto* const environment = testing::AddGlobalTestEnvironment(new CommaLocale);

TEST(Locale, HasCommas) {
  std::ostringstream text;
  text << 1024.5;
  EXPECT_EQ(text.str(), "1.024,5");
}

TEST(Locale, IsNotInTheText) {
  for (const fast::Platform platform : {fast::Platform::metal, fast::Platform::cuda}) {
    for (const Case& test : cases()) {
      for (const KernelOf& kernel : kernels_of(test.problem)) {
        const fast::KernelText here = fast::kernel_text(kernel.problem, kernel.id, platform);
        const std::locale commas = std::locale::global(std::locale::classic());
        const fast::KernelText classic = fast::kernel_text(kernel.problem, kernel.id, platform);
        std::locale::global(commas);
        EXPECT_EQ(here.header, classic.header);
        EXPECT_EQ(here.source, classic.source);
        EXPECT_EQ(here.name, classic.name);
      }
    }
  }
}

}  // namespace
}  // namespace natten::metal_host
