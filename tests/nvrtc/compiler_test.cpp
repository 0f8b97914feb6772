// Our own compilation of CUDA kernels and what is kept of it, with NVRTC from PyPI (extra `nvrtc`) and no GPU.
#include "fast/compiler.h"

#include <dlfcn.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <random>
#include <stdexcept>
#include <thread>

#include "cases.h"
#include "fast/disk_cache.h"
#include "fast/hash.h"
#include "fast/nvrtc.h"
#include "fast/plan.h"

namespace natten::fast {
namespace {

namespace files = std::filesystem;

/// A folder of a test's own, which is the cache of everything in the test.
class Folder : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = files::temp_directory_path() / ("natten-compiler-test-" + std::to_string(std::random_device{}()));
    setenv("NATTEN_CACHE_DIR", folder_.c_str(), 1);
  }
  void TearDown() override {
    unsetenv("NATTEN_CACHE_DIR");
    files::remove_all(folder_);
  }
  DiskCache cache() const { return DiskCache::of_environment(); }
  /// The only file.
  files::path file() const { return files::directory_iterator(folder_)->path(); }

  files::path folder_;
};

using Disk = Folder;

class Compiler : public Folder {
 protected:
  void SetUp() override {
    Folder::SetUp();
    dlopen(NATTEN_TEST_MLX, RTLD_LAZY);  // beside which the library is looked for
    if (!Nvrtc::find()) GTEST_SKIP() << Nvrtc::failure();
  }
};

void write(const files::path& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

std::string read(const files::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

CudaProgram small_program(const std::string& expression) {
  return {"natten_test",
          "extern \"C\" __global__ void natten_test(float* y) { y[threadIdx.x] = " + expression + "; }",
          {},
          {}};
}

bool is_cubin(const std::string& code) {
  return code.starts_with("\177ELF");
}

TEST(Hash, IsFnv1a) {
  EXPECT_EQ(hash_of("a"), "af63dc4c8601ec8c");
  EXPECT_EQ(hash_of("foobar"), "85944171f73967e8");
}

TEST_F(Disk, KeepsWhatWasStored) {
  EXPECT_FALSE(cache().find("key"));
  std::string bytes("\0any\xff\n", 6);
  EXPECT_TRUE(cache().insert("key", bytes));
  EXPECT_TRUE(cache().insert("other", ""));
  EXPECT_EQ(cache().find("key"), bytes);
  EXPECT_EQ(cache().find("other"), "");
  EXPECT_FALSE(cache().find("ke"));
  EXPECT_EQ(cache().usage().files, 2u);
  EXPECT_EQ(files::status(folder_).permissions(), files::perms::owner_all);
}

TEST_F(Disk, RemovesDamagedFiles) {
  for (const int damage : {0, 1, 2, 3, 4}) {
    ASSERT_TRUE(cache().insert("key", "contents"));
    const files::path path = file();
    std::string bytes = read(path);
    if (damage == 0) bytes.pop_back();
    if (damage == 1) bytes.back() ^= 1;
    if (damage == 2) bytes += '\0';
    if (damage == 3) bytes.clear();
    if (damage == 4) bytes[0] ^= 1;
    write(path, bytes);
    EXPECT_FALSE(cache().find("key")) << damage;
    EXPECT_FALSE(files::exists(path)) << damage;
  }
}

TEST_F(Disk, LeavesOutWhatCannotBeRead) {
  ASSERT_TRUE(cache().insert("key", "contents"));
  const files::path path = file();
  files::remove(path);
  files::create_directory(path);
  EXPECT_FALSE(cache().find("key"));
  EXPECT_FALSE(cache().insert("key", "contents"));
}

TEST_F(Disk, DoesNotTakeAnotherKeysFile) {
  ASSERT_TRUE(cache().insert("one", "contents"));
  const std::string bytes = read(file());
  cache().clear();
  ASSERT_TRUE(cache().insert("two", "other"));
  write(file(), bytes);
  EXPECT_FALSE(cache().find("two"));
}

TEST_F(Disk, DropsWhatWasUsedLongestAgo) {
  const DiskCache small(folder_, 4000);
  const std::string kilobyte(1000, 'x');
  for (const char* key : {"a", "b", "c"}) ASSERT_TRUE(small.insert(key, kilobyte));
  // Of three that were stored in a past long enough for any clock, the first is used again.
  auto then = files::file_time_type::clock::now() - std::chrono::hours(30);
  for (const char* key : {"a", "b", "c"}) {
    files::last_write_time(folder_ / (hash_of(key) + ".kernel"), then += std::chrono::hours(1));
  }
  EXPECT_TRUE(small.find("a"));
  ASSERT_TRUE(small.insert("d", kilobyte));
  EXPECT_FALSE(small.find("b"));
  for (const char* key : {"a", "c", "d"}) EXPECT_TRUE(small.find(key)) << key;
  EXPECT_LE(small.usage().bytes, small.limit());
  EXPECT_FALSE(small.insert("e", std::string(5000, 'x')));
}

TEST_F(Disk, ClearsItsOwnFilesAlone) {
  ASSERT_TRUE(cache().insert("key", "contents"));
  write(folder_ / "notes.txt", "mine");
  write(folder_ / (hash_of("key") + ".writing-abcdef"), "left over");
  EXPECT_EQ(cache().clear().files, 1u);
  EXPECT_EQ(cache().usage().bytes, 0u);
  EXPECT_EQ(file().filename(), "notes.txt");
}

TEST_F(Disk, TakesNoShorterNameForItsOwn) {
  ASSERT_TRUE(cache().insert("key", "contents"));
  write(folder_ / "cafe.kernel", "mine");
  EXPECT_EQ(cache().usage().files, 1u);
  EXPECT_EQ(cache().clear().files, 1u);
  EXPECT_TRUE(files::exists(folder_ / "cafe.kernel"));
}

TEST_F(Disk, LeftOversGoAfterAnHour) {
  ASSERT_TRUE(cache().insert("key", "contents"));
  const files::path fresh = folder_ / (hash_of("a") + ".writing-abcdef"),
                    old = folder_ / (hash_of("b") + ".writing-abcdef");
  for (const files::path& path : {fresh, old}) write(path, "half of");
  files::last_write_time(old, files::file_time_type::clock::now() - std::chrono::hours(2));
  ASSERT_TRUE(cache().insert("other", "contents"));
  EXPECT_TRUE(files::exists(fresh));
  EXPECT_FALSE(files::exists(old));
}

TEST_F(Disk, MayBeMissing) {
  write(folder_, "a file where the folder should be");
  EXPECT_FALSE(cache().insert("key", "contents"));
  EXPECT_FALSE(cache().find("key"));
  setenv("NATTEN_CACHE_DIR", "/proc/natten", 1);
  EXPECT_FALSE(cache().insert("key", "contents"));
  EXPECT_EQ(cache().usage().files, 0u);
}

TEST_F(Disk, IsWhereTheEnvironmentSays) {
  setenv("NATTEN_CACHE_DIR", "", 1);
  EXPECT_TRUE(cache().folder().empty());
  EXPECT_FALSE(cache().insert("key", "contents"));
  EXPECT_EQ(cache().clear().files, 0u);
  unsetenv("NATTEN_CACHE_DIR");
  setenv("XDG_CACHE_HOME", "/somewhere", 1);
  EXPECT_EQ(cache().folder(), "/somewhere/natten-mlx/kernels");
  setenv("XDG_CACHE_HOME", "not/absolute", 1);
  const char* home = std::getenv("HOME");
  EXPECT_EQ(cache().folder(), home ? files::path(home) / ".cache/natten-mlx/kernels" : "");
  unsetenv("XDG_CACHE_HOME");
}

TEST_F(Disk, TakesManyWritersAtOnce) {
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([this, t] {
      for (int i = 0; i < 25; ++i) {
        const std::string key = std::to_string(i), contents(1000 + i, static_cast<char>('a' + i));
        EXPECT_TRUE(cache().insert(key, contents)) << t;
        EXPECT_EQ(cache().find(key), contents) << t;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(cache().usage().files, 25u);
}

/// A few here: gate.py has them all.
TEST_F(Compiler, CompilesKernelsOfEveryEngine) {
  struct Sample {
    const char* test;
    KernelId kernel;
    int capability;
    Engine engine;
  };
  const Sample samples[] = {{"2d_f16", KernelId::delta, 80, Engine::simt},
                            {"all_3d", KernelId::qk, 80, Engine::simt},
                            {"2d_f16", KernelId::forward, 80, Engine::matrix},
                            {"2d_f16", KernelId::forward, 90, Engine::warpgroup}};
  setenv("NATTEN_FAST_TILE", "warpgroup=1", 1);  // where it can be
  for (const metal_host::Case& test : metal_host::cases()) {
    for (const Sample& sample : samples) {
      if (test.name != sample.test) continue;
      for (const auto& kernel : metal_host::kernels_of(test.problem)) {
        if (kernel.id != sample.kernel) continue;
        const Target target{Platform::cuda, sample.capability};
        EXPECT_EQ(plan(kernel.problem, kernel.id, target).engine, sample.engine) << sample.test;
        const bool wide = kernel.problem.rank == 2;
        const CudaProgram program = cuda_program(kernel_source(kernel.problem, kernel.id, target), wide);
        EXPECT_TRUE(is_cubin(request_cubin(program, sample.capability)->code()));
      }
    }
  }
  unsetenv("NATTEN_FAST_TILE");
  EXPECT_EQ(cache().usage().files, std::size(samples));
}

TEST_F(Compiler, ReadsWhatWasCompiledBefore) {
  const CubinPtr first = request_cubin(small_program("1.0f"), 80);
  ASSERT_TRUE(is_cubin(first->code()));
  EXPECT_TRUE(first->is_compiled());
  const CubinPtr second = request_cubin(small_program("1.0f"), 80);
  EXPECT_EQ(second->code(), first->code());
  EXPECT_FALSE(second->is_compiled());
  for (const CubinPtr& other : {request_cubin(small_program("1.0f"), 90), request_cubin(small_program("2.0f"), 80)}) {
    EXPECT_NE(other->code(), first->code());
    EXPECT_TRUE(other->is_compiled());
  }
  EXPECT_EQ(cache().usage().files, 3u);
}

TEST_F(Compiler, CompilesAgainWhatIsDamaged) {
  const std::string code = request_cubin(small_program("3.0f"), 80)->code();
  write(file(), read(file()).substr(0, 300));
  const CubinPtr again = request_cubin(small_program("3.0f"), 80);
  EXPECT_EQ(again->code(), code);
  EXPECT_TRUE(again->is_compiled());
  EXPECT_FALSE(request_cubin(small_program("3.0f"), 80)->code().empty());
}

TEST_F(Compiler, WorksWithoutAFolder) {
  setenv("NATTEN_CACHE_DIR", "", 1);
  EXPECT_TRUE(is_cubin(request_cubin(small_program("4.0f"), 80)->code()));
  setenv("NATTEN_CACHE_DIR", "/proc/natten", 1);
  EXPECT_TRUE(is_cubin(request_cubin(small_program("4.0f"), 80)->code()));
}

TEST_F(Compiler, SaysWhatIsWrongWithAKernel) {
  const CubinPtr cubin = request_cubin(small_program("unknown"), 80);
  for (int i = 0; i < 2; ++i) {
    try {
      cubin->code();
      FAIL() << "compiled";
    } catch (const std::runtime_error& error) {
      EXPECT_NE(std::string(error.what()).find("identifier \"unknown\" is undefined"), std::string::npos)
          << error.what();
    }
  }
  EXPECT_EQ(cache().usage().files, 0u);
}

TEST_F(Compiler, KnowsItsArchitectures) {
  EXPECT_TRUE(Nvrtc::find()->knows(80));
  EXPECT_FALSE(Nvrtc::find()->knows(42));
  EXPECT_EQ(Nvrtc::architecture(89), "sm_89");
  EXPECT_EQ(Nvrtc::architecture(90), "sm_90a");
}

TEST_F(Compiler, ServesManyThreads) {
  std::vector<std::thread> threads;
  for (int t = 0; t < 6; ++t) {
    threads.emplace_back([t] {
      for (int i = 0; i < 3; ++i) {
        EXPECT_TRUE(is_cubin(request_cubin(small_program(std::to_string(i) + ".5f"), 80)->code())) << t;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(cache().usage().files, 3u);
}

/// What was asked for before the fork, and is perhaps just being made, the child makes itself.
TEST_F(Compiler, GoesOnAfterAFork) {
  request_cubin(small_program("5.0f"), 80)->code();
  const CubinPtr pending = request_cubin(small_program("5.0f"), 80);
  const pid_t child = fork();
  if (child == 0) {
    alarm(60);
    const bool works = is_cubin(pending->code()) && is_cubin(request_cubin(small_program("5.0f"), 80)->code());
    _exit(works ? 0 : 1);
  }
  int status = -1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  EXPECT_TRUE(is_cubin(pending->code()));
}

TEST(Program, PassesShapesAndStridesAsIntegers) {
  KernelSource kernel;
  kernel.name = "natten_k";
  kernel.source = "na_b[0] = float(na_a_shape[1] + na_a_strides[0]);\n";
  kernel.inputs = {{"na_a", ElementType::float16, {2, 3}}, {"na_c", ElementType::int32, {4}}};
  kernel.outputs = {{"na_b", ElementType::float32, {1}}};
  const std::int32_t shape[] = {2, 3};
  const std::int64_t strides[] = {(5ll << 32) + 0xfffffffdll, -2};
  const CudaProgram wide = cuda_program(kernel, true);
  EXPECT_NE(wide.text.find("natten_k_wide(const __half* na_a, const int* na_c, float* na_b, int na_integer_0, int "
                           "na_integer_1, int na_integer_2, int na_integer_3, int na_integer_4, int na_integer_5)"),
            std::string::npos);
  std::vector<int> scalars;
  append_scalars(scalars, wide, 0, shape, strides);
  append_scalars(scalars, wide, 1, shape, strides);
  EXPECT_EQ(scalars, (std::vector<int>{2, 3, -3, 5, -2, -1}));
  const CudaProgram narrow = cuda_program(kernel);
  EXPECT_NE(narrow.text.find("natten_k(const __half* na_a, const int* na_c, float* na_b, int na_integer_0, int "
                             "na_integer_1, int na_integer_2, int na_integer_3)"),
            std::string::npos);
  scalars.clear();
  append_scalars(scalars, narrow, 0, shape, strides);
  EXPECT_EQ(scalars, (std::vector<int>{2, 3, 0, -2}));
  EXPECT_FALSE(narrow.scale);
  kernel.inputs.push_back({kScaleName, ElementType::float32, {1}});
  const CudaProgram scaled = cuda_program(kernel);
  EXPECT_EQ(scaled.scale, 2u);
  EXPECT_NE(scaled.text.find("natten_k(const __half* na_a, const int* na_c, float* na_b, int na_integer_0, int "
                             "na_integer_1, int na_integer_2, int na_integer_3, float na_float)"),
            std::string::npos);
  EXPECT_TRUE(needs_wide(shape, strides));
  const std::int32_t one[] = {1, 3};
  EXPECT_FALSE(needs_wide(one, strides));  // of one position a stride means nothing
}

}  // namespace
}  // namespace natten::fast
