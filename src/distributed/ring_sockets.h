// The connections of MLX's ring, to sleep on until a message is there: the ring itself waits in a busy loop.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace natten::distributed {

/// Ports of every rank's addresses in the host file of a ring: [["ip:port", ...], ...]. None where it cannot be read.
std::vector<std::vector<int>> ports_in(const std::string& host_file);

/// Connections of this process with its neighbors in the ring, found among its sockets by their ports.
struct RingSockets {
  std::vector<int> left, right;

  /// Those of the rank and host file in the environment, as MLX's ring reads them. None where MLX made no ring.
  static const RingSockets& of_this_process();

  /// Bytes that a connection without any on the way takes before the other end reads them. 0 where none were found.
  std::size_t room() const;
};

/// Sleep until one of them has something to read, or takes something to send, or lost its peer; 10 seconds at most,
/// after which MLX may wait as it does. Return at once for none.
void wait_to_receive(const std::vector<int>& sockets);
void wait_to_send(const std::vector<int>& sockets);

}  // namespace natten::distributed
