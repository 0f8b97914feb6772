#include "distributed/ring_sockets.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <limits>
#include <stdexcept>
#include <typeinfo>

#include "mlx/distributed/distributed_impl.h"

namespace natten::distributed {

namespace {

constexpr int kMostSockets = 4096;
constexpr std::size_t kMostRuns = 512;  // of one call; systems take 1024

int port_of(const sockaddr_storage& address) {
  if (address.ss_family == AF_INET) return ntohs(reinterpret_cast<const sockaddr_in&>(address).sin_port);
  if (address.ss_family == AF_INET6) return ntohs(reinterpret_cast<const sockaddr_in6&>(address).sin6_port);
  return 0;
}

template <class Query>
int port_at(int socket, const Query& query) {
  sockaddr_storage address{};
  socklen_t size = sizeof(address);
  return query(socket, reinterpret_cast<sockaddr*>(&address), &size) == 0 ? port_of(address) : 0;
}

bool is_one_of(const std::vector<int>& ports, int port) {
  return std::find(ports.begin(), ports.end(), port) != ports.end();
}

// A lost connection is an error, not a signal.
#ifdef MSG_NOSIGNAL
constexpr int kSendFlags = MSG_NOSIGNAL;
void ignore_broken_pipe(int) {}
#else
constexpr int kSendFlags = 0;  // macOS: an option of the socket
void ignore_broken_pipe(int socket) {
  const int on = 1;
  setsockopt(socket, SOL_SOCKET, SO_NOSIGPIPE, &on, sizeof(on));
}
#endif

[[noreturn]] void lose_ring() {
  const RingSockets& sockets = RingSockets::of_this_process();
  for (const std::vector<int>* side : {&sockets.left, &sockets.right}) {
    for (const int socket : *side) shutdown(socket, SHUT_RDWR);
  }
  throw std::runtime_error("natten::distributed: the connection to a neighboring rank was lost");
}

/// What a call carried: 0 where the connection takes or holds nothing now.
std::size_t carried(ssize_t done) {
  if (done > 0) return static_cast<std::size_t>(done);
  if (done == 0 || (errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR)) lose_ring();
  return 0;
}

/// Calls carry() for what is left until all is done; sleeps where nothing can be carried. Sockets do not block.
template <class Carry>
void carry_all(int socket, short event, std::size_t bytes, const Carry& carry) {
  while (bytes > 0) {
    const std::size_t done = carried(carry(bytes));
    bytes -= done;
    if (done == 0) {
      pollfd wanted{socket, event, 0};
      poll(&wanted, 1, -1);
    }
  }
}

// The rank on the left connected to one of this rank's ports, and this rank to one of those of the rank on the right.
RingSockets found_sockets() {
  RingSockets found;
  const char *file = std::getenv("MLX_HOSTFILE"), *rank_text = std::getenv("MLX_RANK");
  if (file == nullptr || rank_text == nullptr) return found;
  const std::vector<std::vector<int>> ports = ports_in(file);
  const std::size_t rank = static_cast<std::size_t>(std::atoi(rank_text));
  if (rank >= ports.size()) return found;
  const std::vector<int>&own = ports[rank], &next = ports[(rank + 1) % ports.size()];
  for (int socket = 0; socket < kMostSockets; ++socket) {
    const int remote = port_at(socket, getpeername);
    if (remote == 0) continue;
    if (is_one_of(own, port_at(socket, getsockname))) {
      found.left.push_back(socket);
    } else if (is_one_of(next, remote)) {
      found.right.push_back(socket);
    }
  }
  const bool is_complete = found.left.size() == own.size() && found.right.size() == next.size();
  return is_complete ? found : RingSockets{};
}

}  // namespace

std::vector<std::vector<int>> ports_in(const std::string& host_file) {
  std::ifstream file(host_file);
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  std::vector<std::vector<int>> ports;
  int depth = 0;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '[' && ++depth == 2) ports.emplace_back();
    if (text[i] == ']') --depth;
    if (text[i] != '"') continue;
    const std::size_t end = text.find('"', i + 1);
    if (depth != 2 || end == std::string::npos) return {};
    const std::string address = text.substr(i + 1, end - i - 1);
    ports.back().push_back(std::atoi(address.substr(address.rfind(':') + 1).c_str()));
    i = end;
  }
  return ports;
}

const RingSockets& RingSockets::of_this_process() {
  static const RingSockets sockets = found_sockets();
  return sockets;
}

const RingSockets* RingSockets::of(const mlx::core::distributed::Group& group) {
  if (!is_backend(group, "ring")) return nullptr;
  const RingSockets& sockets = of_this_process();
  return sockets.left.size() == 1 && sockets.right.size() == 1 ? &sockets : nullptr;
}

// Part of the name of the backend's namespace.
bool is_backend(const mlx::core::distributed::Group& group, const char* name) {
  const mlx::core::distributed::detail::GroupImpl& implementation = *group.raw_group();
  return std::string(typeid(implementation).name()).find(name) != std::string::npos;
}

std::size_t RingSockets::room() const {
  int smallest = left.empty() || right.empty() ? 0 : std::numeric_limits<int>::max();
  for (const std::vector<int>* side : {&left, &right}) {
    for (const int socket : *side) {
      int bytes = 0;
      socklen_t size = sizeof(bytes);
      if (getsockopt(socket, SOL_SOCKET, SO_SNDBUF, &bytes, &size) != 0) return 0;
      smallest = std::min(smallest, bytes);
    }
  }
  return static_cast<std::size_t>(smallest) / 2;  // the system counts what it needs besides the bytes
}

void send_runs(int socket, std::vector<iovec> runs) {
  ignore_broken_pipe(socket);
  std::size_t bytes = 0;
  for (const iovec& run : runs) bytes += run.iov_len;
  auto next = runs.begin();
  carry_all(socket, POLLOUT, bytes, [&](std::size_t) {
    msghdr message{};
    message.msg_iov = &*next;
    message.msg_iovlen = std::min<std::size_t>(runs.end() - next, kMostRuns);
    const ssize_t sent = sendmsg(socket, &message, kSendFlags);
    for (std::size_t left = std::max<ssize_t>(sent, 0); left > 0;) {
      const std::size_t taken = std::min(left, next->iov_len);
      next->iov_base = static_cast<char*>(next->iov_base) + taken;
      next->iov_len -= taken;
      left -= taken;
      if (next->iov_len == 0) ++next;
    }
    return sent;
  });
}

void receive_bytes(int socket, char* data, std::size_t bytes) {
  carry_all(socket, POLLIN, bytes, [&](std::size_t left) {
    const ssize_t got = recv(socket, data, left, 0);
    if (got > 0) data += got;
    return got;
  });
}

void pass_on(int to, const char* sent, std::size_t bytes_sent, int from, char* received, std::size_t bytes_received) {
  ignore_broken_pipe(to);
  while (bytes_sent > 0 || bytes_received > 0) {
    const std::size_t out = bytes_sent > 0 ? carried(send(to, sent, bytes_sent, kSendFlags)) : 0;
    const std::size_t in = bytes_received > 0 ? carried(recv(from, received, bytes_received, 0)) : 0;
    sent += out;
    bytes_sent -= out;
    received += in;
    bytes_received -= in;
    if (out + in > 0) continue;
    pollfd wanted[] = {{bytes_sent > 0 ? to : -1, POLLOUT, 0}, {bytes_received > 0 ? from : -1, POLLIN, 0}};
    poll(wanted, 2, -1);
  }
}

}  // namespace natten::distributed
