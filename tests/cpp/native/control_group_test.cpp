#include "native/cpu/control_group.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>

namespace natten::cpu {
namespace {

namespace fs = std::filesystem;

class ControlGroup : public ::testing::Test {
 protected:
  void SetUp() override {
    root_ = fs::temp_directory_path() / ("natten_group_" + std::to_string(getpid()));
    fs::remove_all(root_);
  }
  void TearDown() override { fs::remove_all(root_); }
  void write(const std::string& file, const std::string& text) const {
    fs::create_directories((root_ / file).parent_path());
    std::ofstream(root_ / file) << text;
  }
  fs::path root_;
};

TEST_F(ControlGroup, NothingToRead) {
  EXPECT_EQ(cpu_quota(root_), std::nullopt);
  write("proc/self/cgroup", "");
  EXPECT_EQ(cpu_quota(root_), std::nullopt);
  write("proc/self/cgroup", "no colons here\n0:one\n0::/\n");
  EXPECT_EQ(cpu_quota(root_), std::nullopt);
  write("sys/fs/cgroup/cpu.max", "");
  EXPECT_EQ(cpu_quota(root_), std::nullopt);
  write("sys/fs/cgroup/cpu.max", "garbage 100000\n");
  EXPECT_EQ(cpu_quota(root_), std::nullopt);
  write("sys/fs/cgroup/cpu.max", "100000 0\n");
  EXPECT_EQ(cpu_quota(root_), std::nullopt);
}

TEST_F(ControlGroup, VersionTwo) {
  write("proc/self/cgroup", "0::/user/job\n");
  write("sys/fs/cgroup/user/job/cpu.max", "max 100000\n");
  EXPECT_EQ(cpu_quota(root_), std::nullopt);
  write("sys/fs/cgroup/user/job/cpu.max", "250000 100000\n");
  EXPECT_EQ(cpu_quota(root_), 2.5);
  write("sys/fs/cgroup/user/cpu.max", "50000 100000\n");  // around it, and tighter
  EXPECT_EQ(cpu_quota(root_), 0.5);
}

TEST_F(ControlGroup, VersionTwoInAContainer) {
  write("proc/self/cgroup", "0::/docker/0123\n");  // a path that only the host knows
  write("sys/fs/cgroup/cpu.max", "300000 100000\n");
  EXPECT_EQ(cpu_quota(root_), 3.0);
}

TEST_F(ControlGroup, VersionOne) {
  write("proc/self/cgroup", "5:cpuset:/job\n4:cpu,cpuacct:/job\n1:name=systemd:/job\n");
  write("sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us", "-1\n");
  write("sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(cpu_quota(root_), std::nullopt);
  write("sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us", "150000\n");
  EXPECT_EQ(cpu_quota(root_), 1.5);
}

TEST_F(ControlGroup, VersionOneUnderTheShortName) {
  write("proc/self/cgroup", "4:cpu:/docker/0123\n0::/\n");
  write("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "400000\n");
  write("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(cpu_quota(root_), 4.0);
}

TEST_F(ControlGroup, Memory) {
  EXPECT_EQ(memory_limit(root_), std::nullopt);
  write("proc/self/cgroup", "7:memory:/job\n0::/job\n");
  write("sys/fs/cgroup/job/memory.max", "max\n");
  EXPECT_EQ(memory_limit(root_), std::nullopt);
  write("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
  EXPECT_GT(memory_limit(root_), std::uint64_t{1} << 62);
  write("sys/fs/cgroup/memory/job/memory.limit_in_bytes", "2000000000\n");
  EXPECT_EQ(memory_limit(root_), 2000000000u);
  write("sys/fs/cgroup/job/memory.max", "1000000000\n");
  EXPECT_EQ(memory_limit(root_), 1000000000u);
}

}  // namespace
}  // namespace natten::cpu
