// For tests of those who wait for a socket.
#pragma once
#include <sys/socket.h>
#include <unistd.h>

#include <fstream>
#include <string>

#include "expect.hpp"

namespace cloister {

// The two ends of a connection.
struct Sockets {
  int ours = -1, theirs = -1;
  Sockets() {
    int pair[2];
    expect(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair) == 0, "socketpair");
    ours = pair[0];
    theirs = pair[1];
  }
  ~Sockets() { close(); }
  Sockets(const Sockets&) = delete;
  Sockets& operator=(const Sockets&) = delete;

  void close() {
    if (ours >= 0) ::close(ours);
    ours = -1;
    hang_up();
  }
  void hang_up() {
    if (theirs >= 0) ::close(theirs);
    theirs = -1;
  }
};

// How many of this process's epoll instances wait for the descriptor.
inline int waiting_for(int descriptor) {
  int found = 0;
  for (int i = 0; i < 256; ++i) {
    std::ifstream info("/proc/self/fdinfo/" + std::to_string(i));
    for (std::string word; info >> word;) {
      int target = -1;
      if (word == "tfd:" && info >> target && target == descriptor) ++found;
    }
  }
  return found;
}

}  // namespace cloister
