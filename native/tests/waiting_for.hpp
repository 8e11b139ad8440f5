// For tests: who waits for a descriptor.
#pragma once
#include <fstream>
#include <string>

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
