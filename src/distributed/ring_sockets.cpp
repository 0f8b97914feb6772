#include "distributed/ring_sockets.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <limits>

namespace natten::distributed {

namespace {

constexpr int kMostSockets = 4096;
constexpr int kLongestWait = 10'000;  // ms

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

void wait_for(const std::vector<int>& sockets, short event) {
  std::vector<pollfd> events;
  for (const int socket : sockets) events.push_back({socket, event, 0});
  if (!events.empty()) poll(events.data(), static_cast<nfds_t>(events.size()), kLongestWait);
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

void wait_to_receive(const std::vector<int>& sockets) {
  wait_for(sockets, POLLIN);
}

void wait_to_send(const std::vector<int>& sockets) {
  wait_for(sockets, POLLOUT);
}

}  // namespace natten::distributed
