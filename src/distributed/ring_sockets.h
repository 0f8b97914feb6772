// The connections of MLX's ring, to send and receive on and to sleep meanwhile: the ring itself waits in a busy loop,
// and its thread of a connection ends with the first error, after which whoever asks it for more waits forever.
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <string>
#include <vector>

#include "mlx/distributed/distributed.h"

namespace natten::distributed {

/// Ports of every rank's addresses in the host file of a ring: [["ip:port", ...], ...]. None where it cannot be read.
std::vector<std::vector<int>> ports_in(const std::string& host_file);

/// Connections of this process with its neighbors in the ring, found among its sockets by their ports.
struct RingSockets {
  std::vector<int> left, right;

  /// Those of the rank and host file in the environment, as MLX's ring reads them. None where MLX made no ring.
  static const RingSockets& of_this_process();
  /// The same where `group` is a ring with one connection to each neighbor; otherwise null: MLX cuts what it sends
  /// then.
  static const RingSockets* of(const mlx::core::distributed::Group& group);

  /// Bytes that a connection without any on the way takes before the other end reads them. 0 where none were found.
  std::size_t room() const;
};

/// Whether `group` is of one of MLX's backends, by a part of its name: groups do not tell.
bool is_backend(const mlx::core::distributed::Group& group, const char* name);

/// All bytes, one run after the other, none of which is empty; the same on the way as MLX's where there is one
/// connection. Throw std::runtime_error where the peer is lost, and close both
/// connections, so that the other neighbor is told too, and the whole ring in turn.
void send_runs(int socket, std::vector<iovec> runs);
void receive_bytes(int socket, char* data, std::size_t bytes);
/// Both at a time, on two connections.
void pass_on(int to, const char* sent, std::size_t bytes_sent, int from, char* received, std::size_t bytes_received);

}  // namespace natten::distributed
