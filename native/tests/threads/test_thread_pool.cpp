// Work on several threads: whoever takes part, and whatever wakes the helpers or fails to, every
// item is done once, and a descriptor is waited for as long as its scope lasts.
#include <sched.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "sockets.hpp"
#include "threads/thread_pool.hpp"

using namespace cloister;

namespace {

using Clock = std::chrono::steady_clock;

constexpr int kThreads = 3;
constexpr int64_t kItems = 64;

void say(const Sockets& sockets) { expect(send(sockets.theirs, "x", 1, 0) == 1, "send"); }

void hear(const Sockets& sockets) {
  char byte;
  expect(recv(sockets.ours, &byte, 1, 0) == 1, "recv");
}

// Every item once, by a worker there is; whether a helper took any.
bool share(int threads) {
  std::vector<std::atomic<int>> done(kItems);
  std::atomic<bool> helped{false};
  in_parallel(kItems, threads, [&](int64_t worker, int64_t item) {
    expect(worker >= 0 && worker < threads, "a worker below the number of threads");
    if (worker > 0) helped = true;
    // So that a helper can come before all is done.
    const auto until = Clock::now() + std::chrono::microseconds(20);
    while (!helped && Clock::now() < until) std::this_thread::yield();
    ++done[static_cast<size_t>(item)];
  });
  for (const auto& count : done) expect(count == 1, "every item is done once");
  return helped;
}

bool helped_in_time(const auto& round) {
  for (int i = 0; i < 1000; ++i) {
    if (round()) return true;
  }
  return false;
}

void without_events() {
  expect(!share(1), "one thread has no helpers");
  expect(helped_in_time([] { return share(kThreads); }), "a helper takes part");
  in_parallel(0, kThreads, [](int64_t, int64_t) { expect(false, "there is no item"); });
}

void with_events() {
  const Sockets sockets;
  expect(helped_in_time([&] {
           std::thread peer([&] { say(sockets); });
           {
             const WakeOnPacket wake(sockets.ours, kThreads);
             hear(sockets);
           }
           peer.join();
           return share(kThreads);
         }),
         "a helper takes part in what follows an answer");
  {
    // What was there before, what nobody reads and what needs no help.
    say(sockets);
    const WakeOnPacket wake(sockets.ours, kThreads);
    share(kThreads);
    share(1);
  }
  hear(sockets);
}

void scopes() {
  Sockets sockets;
  const int descriptor = sockets.ours;
  {
    const WakeOnPacket wake(descriptor, kThreads);
    expect(waiting_for(descriptor) == kThreads - 1, "all helpers of the call wait");
    const WakeOnPacket alone(sockets.theirs, 1);
    expect(waiting_for(sockets.theirs) == 0, "one thread has nobody to wake");
  }
  expect(waiting_for(descriptor) == 0, "nobody waits when the scope has ended");
  sockets.close();
  const Sockets others;
  expect(others.ours == descriptor, "the number is used again");
  say(others);
  share(kThreads);
  hear(others);
  const WakeOnPacket nothing(-1, kThreads), closed(1000, kThreads);
  share(kThreads);
}

// A peer that is gone is an event that lasts.
void hang_up() {
  Sockets sockets;
  const WakeOnPacket wake(sockets.ours, kThreads);
  say(sockets);  // nobody reads it
  sockets.hang_up();
  const clock_t before = clock();
  std::this_thread::sleep_for(std::chrono::milliseconds(400));
  expect(clock() - before < CLOCKS_PER_SEC / 10, "helpers sleep when no work comes");
  share(kThreads);
}

cpu_set_t own_cores() {
  cpu_set_t cores;
  expect(sched_getaffinity(0, sizeof cores, &cores) == 0, "affinity");
  return cores;
}

// Whether a helper takes part that may run on these cores.
bool helped_on(const cpu_set_t& wanted) {
  return helped_in_time([&] {
    std::atomic<bool> found{false};
    in_parallel(kItems, 2, [&](int64_t worker, int64_t) {
      const cpu_set_t cores = own_cores();
      if (worker > 0 && CPU_EQUAL(&cores, &wanted)) found = true;
      const auto until = Clock::now() + std::chrono::microseconds(20);
      while (!found && Clock::now() < until) std::this_thread::yield();
    });
    return found.load();
  });
}

void places() {
  const cpu_set_t all = own_cores();
  if (CPU_COUNT(&all) == 1) return;
  cpu_set_t others = all;
  // The caller stays where it is: other threads have their own places.
  const int here = sched_getcpu();
  CPU_CLR(here, &others);
  expect(helped_in_time([&] { return sched_getcpu() == here && helped_on(others); }),
         "helpers keep off their caller's core");
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(here, &one);
  expect(sched_setaffinity(0, sizeof one, &one) == 0 && helped_on(one),
         "helpers stay where their caller may be");
  expect(sched_setaffinity(0, sizeof all, &all) == 0, "affinity");
  share(kThreads);
}

// How often each thread of this process has gone to sleep.
std::map<std::string, long> sleeps() {
  std::map<std::string, long> found;
  for (const auto& task : std::filesystem::directory_iterator("/proc/self/task")) {
    std::ifstream status(task.path() / "status");
    for (std::string word; status >> word;) {
      if (word == "voluntary_ctxt_switches:") status >> found[task.path().filename()];
    }
  }
  return found;
}

void the_unwanted_sleep_on() {
  expect(helped_in_time([] { return share(kThreads + 4); }), "more helpers");
  std::this_thread::sleep_for(std::chrono::milliseconds(50));  // until all sleep
  const auto before = sleeps();
  expect(helped_in_time([] { return share(2); }), "one of them");
  int disturbed = 0;
  for (const auto& [task, count] : sleeps()) {
    if (before.contains(task) && before.at(task) != count) ++disturbed;
  }
  expect(disturbed <= 2, "who is not wanted is not woken");
}

void two_users() {
  const auto use = [] {
    const Sockets sockets;
    for (int i = 0; i < 50; ++i) {
      say(sockets);
      {
        const WakeOnPacket wake(sockets.ours, kThreads);
        hear(sockets);
      }
      share(1 + i % kThreads);
    }
  };
  std::thread other(use);
  use();
  other.join();
}

void fork_has_no_helpers() {
  const Sockets sockets;
  const WakeOnPacket wake(sockets.ours, kThreads);
  const pid_t child = fork();
  if (child == 0) {
    {
      const WakeOnPacket own(sockets.ours, kThreads);
    }
    _exit(share(kThreads) ? 1 : 0);
  }
  int status = -1;
  expect(child > 0 && waitpid(child, &status, 0) == child, "fork");
  expect(WIFEXITED(status) && WEXITSTATUS(status) == 0, "a fork works alone");
  expect(waiting_for(sockets.ours) == kThreads - 1, "the parent's helpers still wait");
  expect(helped_in_time([] { return share(kThreads); }), "and take part");
}

}  // namespace

int main() {
  without_events();
  with_events();
  scopes();
  hang_up();
  places();
  the_unwanted_sleep_on();
  two_users();
  fork_has_no_helpers();
  std::puts("thread pool: ok");
  return 0;
}
