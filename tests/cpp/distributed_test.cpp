// natten::distributed: plans of slabs, a group of one, and two ranks, which are processes of this program.
#include "natten/distributed.h"

#include <gtest/gtest.h>
#include <netinet/in.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <numeric>
#include <string>
#include <vector>

#include "distributed/ring_sockets.h"
#include "distributed/slabs.h"
#include "mlx/mlx.h"
#include "natten/natten.h"

extern char** environ;

namespace natten::distributed {
namespace {

using Arrays = std::vector<mx::array>;
using Ints = std::vector<std::int64_t>;

mx::array normal(mx::Shape shape, int seed) {
  return mx::random::normal(shape, mx::float32, mx::random::key(seed));
}

bool same(const mx::array& a, const mx::array& b) {
  return mx::array_equal(a, b).item<bool>();
}

std::string error_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "nothing was thrown";
}

Axis axis_of(std::int64_t length, std::int64_t kernel_size) {
  return {length, kernel_size, 1, 1, 1, false, false};
}

TEST(DistributedPlan, InnerSlabsNeedTheRadiusOnBothSides) {
  const SlabPlan plan = plan_slabs({axis_of(32, 5)}, {8, 8, 8, 8});
  ASSERT_EQ(plan.hops.size(), 1u);
  EXPECT_EQ(plan.hops[0].to_right, (Ints{2, 2, 2, 0}));
  EXPECT_EQ(plan.hops[0].to_left, (Ints{0, 2, 2, 2}));
  EXPECT_EQ(plan.left_border, 2);
  EXPECT_EQ(plan.right_border, 2);
  EXPECT_EQ(plan.sent(1), 4);
}

TEST(DistributedPlan, EvenKernelsAreNotSymmetric) {
  const SlabPlan plan = plan_slabs({axis_of(32, 4)}, {16, 16});
  EXPECT_EQ(plan.hops[0].to_right, (Ints{2, 0}));
  EXPECT_EQ(plan.hops[0].to_left, (Ints{0, 1}));
}

TEST(DistributedPlan, CausalAxesSendOneWayAndCircularOnesAround) {
  Axis causal = axis_of(24, 4), circular = causal;
  causal.is_causal = true;
  circular.is_circular = true;
  EXPECT_EQ(plan_slabs({causal}, {8, 8, 8}).hops[0].to_right, (Ints{3, 3, 0}));
  EXPECT_EQ(plan_slabs({causal}, {8, 8, 8}).hops[0].to_left, (Ints{0, 0, 0}));
  EXPECT_EQ(plan_slabs({circular}, {8, 8, 8}).hops[0].to_right, (Ints{2, 2, 2}));
  EXPECT_EQ(plan_slabs({circular}, {8, 8, 8}).hops[0].to_left, (Ints{1, 1, 1}));
}

TEST(DistributedPlan, RowsFromFurtherAwayAreHandedOn) {
  const SlabPlan plan = plan_slabs({axis_of(6, 5)}, {1, 2, 1, 2});
  // Rank 0 needs rows 1 to 4: of ranks 1, 2 and the first row of rank 3.
  EXPECT_EQ(plan.kept_right(0, 1), 2);
  EXPECT_EQ(plan.kept_right(0, 2), 1);
  EXPECT_EQ(plan.kept_right(0, 3), 1);
  EXPECT_EQ(plan.hops.size(), 3u);
  EXPECT_EQ(plan.left_border + plan.right_border, 0);  // nobody has queries of its own
}

TEST(DistributedPlan, EqualRows) {
  EXPECT_EQ(equal_rows(10, 4), (Ints{3, 3, 2, 2}));
  EXPECT_EQ(equal_rows(2, 3), (Ints{1, 1, 0}));
}

TEST(DistributedSockets, PortsOfAHostFile) {
  const std::string path = testing::TempDir() + "natten_ports.json";
  const auto ports = [&](const char* text) {
    std::ofstream(path) << text;
    return ports_in(path);
  };
  using Ports = std::vector<std::vector<int>>;
  EXPECT_EQ(ports("[[\"10.0.0.1:5000\", \"10.0.0.1:5001\"],\n [\"[::1]:80\"]]\n"), (Ports{{5000, 5001}, {80}}));
  EXPECT_EQ(ports("[{\"ssh\": \"host\", \"ips\": [\"10.0.0.1\"]}]"), Ports{});  // that of the launcher
  EXPECT_EQ(ports("[[\"10.0.0.1:5000"), Ports{});
  EXPECT_EQ(ports_in(path + ".none"), Ports{});
  std::remove(path.c_str());
}

SlabOptions alone() {
  return {.group = mx::distributed::init(false, "ring")};
}

// As a rank the program has a group of two.
bool is_rank() {
  return std::getenv("MLX_HOSTFILE") != nullptr;
}

TEST(Distributed, OneRankIsThePlainCall) {
  if (is_rank()) GTEST_SKIP();
  const mx::array q = normal({1, 9, 4, 2, 8}, 1), k = normal({1, 9, 4, 2, 8}, 2), v = normal({1, 9, 4, 2, 8}, 3);
  const auto plain = natten::attention(q, k, v, {.kernel_size = {4, 3}});
  const auto spread = attention(q, k, v, {.kernel_size = {4, 3}}, {}, alone());
  EXPECT_TRUE(same(plain.out, spread.out));
  EXPECT_TRUE(same(plain.lse, spread.lse));
  EXPECT_TRUE(same(shard(q, alone()), q));
  EXPECT_TRUE(same(gather(q, alone()), q));
  EXPECT_TRUE(same(sum_over_ranks({q, k}, alone().group)[1], k));
}

TEST(Distributed, BadArguments) {
  if (is_rank()) GTEST_SKIP();
  const mx::array x = normal({1, 9, 2, 8}, 1);
  SlabOptions slabs = alone();
  slabs.axis = 1;
  EXPECT_EQ(error_of([&] { attention(x, x, x, {3}, {}, slabs); }),
            "[distributed.na1d] axis must be a spatial axis from -1 to 0, got 1");
  slabs.axis = 0;
  slabs.rows = Ints{4, 5};
  EXPECT_EQ(error_of([&] { attention(x, x, x, {3}, {}, slabs); }),
            "[distributed.na1d] rows must have one value for each of 1 ranks, got 2");
  slabs.rows = Ints{8};
  EXPECT_EQ(error_of([&] { attention(x, x, x, {3}, {}, slabs); }),
            "[distributed.na1d] rows[0]=8 must be the rows of this rank's slab, 9");
  EXPECT_NE(error_of([&] { attention(x, x, x, {11}, {}, alone()); }).find("kernel_size[0]=11"), std::string::npos);
  slabs.axis = -1;
  EXPECT_NE(error_of([&] { shard(x, slabs); }).find("[distributed.shard] axis must count"), std::string::npos);
  EXPECT_NE(error_of([&] { gather(mx::array(1.0F), {}); }).find("[distributed.gather] expected an array"),
            std::string::npos);
}

// What each of two ranks runs.
TEST(DistributedRank, ForwardIsThePlainCallsAndGradientsTravelBack) {
  if (!is_rank()) GTEST_SKIP() << "run by Distributed.TwoRanks";
  const SlabOptions slabs{.group = mx::distributed::init(true, "ring"), .axis = 1};
  const int rank = slabs.group->rank();
  ASSERT_EQ(slabs.group->size(), 2);
  const Arrays whole{normal({1, 3, 9, 2, 8}, 1), normal({1, 3, 9, 1, 8}, 2), normal({1, 3, 9, 1, 8}, 3)};
  const mx::array rpb = normal({2, 5, 7}, 4), cotangent = normal({1, 3, 9, 2, 8}, 5);
  const Neighborhood window{.kernel_size = {3, 4}, .is_causal = {true, false}};
  const auto own = [&](const mx::array& x) { return shard(x, slabs); };
  const auto plain = [&](const Arrays& a) {
    return Arrays{natten::attention(a[0], a[1], a[2], window, {.rpb = a[3]}).out};
  };
  const auto spread = [&](const Arrays& a) {
    return Arrays{attention(a[0], a[1], a[2], window, {.rpb = a[3]}, slabs).out};
  };
  const auto [outs, gradients] = mx::vjp(plain, {whole[0], whole[1], whole[2], rpb}, {cotangent});
  const auto [own_outs, own_gradients] =
      mx::vjp(spread, {own(whole[0]), own(whole[1]), own(whole[2]), rpb}, {own(cotangent)});
  EXPECT_TRUE(same(own_outs[0], own(outs[0])));
  EXPECT_EQ(own_outs[0].shape(2), rank == 0 ? 5 : 4);
  EXPECT_TRUE(same(gather(own_outs[0], slabs), outs[0]));
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(mx::allclose(own_gradients[i], own(gradients[i]), 1e-4, 1e-5).item<bool>());
  const mx::array sum = sum_over_ranks({own_gradients[3]}, slabs.group)[0];
  EXPECT_TRUE(mx::allclose(sum, gradients[3], 1e-4, 1e-5).item<bool>());
  const std::string error = error_of([&] {
    attention(own(whole[0]), own(whole[1]), own(whole[2]), {.kernel_size = {3, 3 + rank}}, {}, slabs);
  });
  EXPECT_EQ(error, "[distributed.na2d] all ranks must share kernel_size, got (3, 3) on rank 0 and (3, 4) on rank 1");
}

int free_port() {
  const int s = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  EXPECT_EQ(bind(s, reinterpret_cast<sockaddr*>(&address), size), 0);
  EXPECT_EQ(getsockname(s, reinterpret_cast<sockaddr*>(&address), &size), 0);
  ::close(s);
  return ntohs(address.sin_port);
}

TEST(Distributed, TwoRanks) {
  if (is_rank()) GTEST_SKIP();
  const std::string hosts = testing::TempDir() + "hosts-" + std::to_string(getpid()) + ".json";
  std::ofstream(hosts) << "[[\"127.0.0.1:" << free_port() << "\"], [\"127.0.0.1:" << free_port() << "\"]]";
  std::string program = testing::internal::GetArgvs()[0], filter = "--gtest_filter=DistributedRank.*";
  pid_t ranks[2];
  for (int rank = 0; rank < 2; ++rank) {
    std::vector<std::string> variables{"MLX_HOSTFILE=" + hosts, "MLX_RANK=" + std::to_string(rank)};
    for (char** variable = environ; *variable != nullptr; ++variable) variables.emplace_back(*variable);
    std::vector<char*> environment, arguments{program.data(), filter.data(), nullptr};
    for (std::string& variable : variables) environment.push_back(variable.data());
    environment.push_back(nullptr);
    ASSERT_EQ(posix_spawn(&ranks[rank], program.c_str(), nullptr, nullptr, arguments.data(), environment.data()), 0);
  }
  for (const pid_t rank : ranks) {
    int status = -1;
    ASSERT_EQ(waitpid(rank, &status, 0), rank);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  }
  std::remove(hosts.c_str());
}

}  // namespace
}  // namespace natten::distributed
