// The walker's exchanges over a socket pair: what it sends, and every way an exchange can end.
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "cloister/walker.hpp"
#include "sockets.hpp"

using namespace cloister;

namespace {

using Why = Stop::Why;
using Bytes = std::vector<uint8_t>;

constexpr size_t kIdOffset = 3;
constexpr size_t kMaxPacket = 64;

// The worker's end.
void say(const Sockets& sockets, const Bytes& packet) {
  expect(send(sockets.theirs, packet.data(), packet.size(), 0) >= 0, "send");
}

Bytes heard(const Sockets& sockets) {
  Bytes packet(kMaxPacket);
  const ssize_t size = recv(sockets.theirs, packet.data(), packet.size(), MSG_DONTWAIT);
  packet.resize(size > 0 ? static_cast<size_t>(size) : 0);
  return packet;
}

Bytes packet_of(uint8_t fill, size_t size, uint64_t id) {
  Bytes packet(size, fill);
  for (int i = 0; i < 8; ++i) packet[kIdOffset + i] = static_cast<uint8_t>(id >> (8 * i));
  return packet;
}

bool throws(const auto& action) {
  try {
    action();
  } catch (const std::logic_error&) {
    return true;
  }
  return false;
}

// A pass over one pixel that writes one request in the clear, and the exchange of that request.
struct Subject {
  Pass pass{PassShape{1, 1, 1, {}, {}, -1e9f, 1e9f, std::nullopt, {{1.0f, 100}}}};
  float value = 7.0f;
  int16_t staged = 0, place = 0;
  Walker walker{1, 1, 1};

  Subject() {
    PassStep write;
    write.pass = &pass;
    write.sink_nodes = {0};
    write.run.values = &value;
    write.run.sinks.resize(1);
    write.run.sinks[0].plain = &staged;
    walker.add(write);
    walker.add(exchange());
  }

  ExchangeStep exchange() {
    ExchangeStep exchange;
    exchange.node = 0;
    exchange.packet = Bytes(20, 1);
    exchange.answer = Bytes(16, 2);
    exchange.packet_id = exchange.answer_id = kIdOffset;
    exchange.staged = reinterpret_cast<const uint8_t*>(&staged);
    exchange.place = reinterpret_cast<uint8_t*>(&place);
    exchange.staged_bytes = sizeof staged;
    return exchange;
  }

  Stop run(const Sockets& sockets, uint64_t& id) {
    const Channel channel{sockets.ours, 20'000'000, kMaxPacket, [](void*) { return true; },
                          nullptr};
    walker.begin();
    return walker.run(0, 2, id, channel);
  }
};

void answers() {
  Sockets sockets;
  Subject subject;
  uint64_t id = 0x0102030405060708;
  say(sockets, packet_of(2, 16, id));
  expect(subject.run(sockets, id).why == Why::done, "the expected answer");
  expect(heard(sockets) == packet_of(1, 20, 0x0102030405060708), "the request");
  expect(id == 0x0102030405060709 && subject.place == 7, "id and message");

  for (const Bytes& wrong : {packet_of(2, 16, id - 1), packet_of(2, 15, id), packet_of(3, 16, id),
                             Bytes(kMaxPacket, 2), Bytes(kMaxPacket + 50, 2)}) {
    say(sockets, wrong);
    const uint64_t sent = id;
    const Stop stop = subject.run(sockets, id);
    expect(stop.why == Why::unexpected && stop.step == 1, "another packet");
    expect(stop.request_id == sent, "its request");
    expect(stop.packet.size() == std::min(wrong.size(), kMaxPacket + 1), "the packet is kept");
  }
}

void silence() {
  Sockets sockets;
  Subject subject;
  uint64_t id = 1;
  expect(subject.run(sockets, id).why == Why::unanswered, "a timeout");
  shutdown(sockets.theirs, SHUT_WR);
  expect(subject.run(sockets, id).why == Why::unanswered, "the end of the file");
  sockets.hang_up();
  expect(subject.run(sockets, id).why == Why::unsent, "nobody there");
}

void order() {
  Sockets sockets;
  Subject subject;
  uint64_t id = 1;
  const Channel channel{sockets.ours, 1, kMaxPacket, [](void*) { return true; }, nullptr};
  expect(throws([&] { subject.walker.run(0, 2, id, channel); }), "a walk that did not begin");
  subject.walker.begin();
  expect(throws([&] { subject.walker.run(1, 2, id, channel); }), "a request that is not there");
  expect(throws([&] { subject.walker.answered(1); }), "an answer without a request");
  subject.walker.run(0, 1, id, channel);
  expect(throws([&] { subject.walker.run(0, 1, id, channel); }), "a request written twice");
  expect(throws([&] { subject.walker.run(0, 3, id, channel); }), "no such step");
  expect(throws([&] { subject.walker.pass_step(1); }), "no pass");
  expect(heard(sockets).empty() && subject.place == 0, "nothing left");
}

// A worker that answers while the walker waits, and passes that helpers share.
void threads() {
  constexpr int64_t kSide = 64, kChannels = 32, kSize = kSide * kSide * kChannels;
  std::vector<uint32_t> reply(kSize);
  for (size_t i = 0; i < reply.size(); ++i) reply[i] = static_cast<uint32_t>(i * 2654435761u);
  const auto walked = [&](int threads) {
    Subject subject;
    Pass pass{PassShape{kSide,
                        kSide,
                        kChannels,
                        std::vector<float>(kChannels, 1e-3f),
                        std::vector<float>(kChannels, 0.5f),
                        0.0f,
                        1e9f,
                        std::nullopt,
                        {}}};
    std::vector<float> result(kSize);
    PassStep read;
    read.pass = &pass;
    read.node = 0;
    read.run.reply = reply.data();
    read.run.post = {result.data(), kSize, kChannels};
    Walker walker(1, 1, threads);
    walker.add(subject.walker.pass_step(0));
    walker.add(subject.exchange());
    walker.add(read);
    const Sockets sockets;
    const Channel channel{sockets.ours, 20'000'000'000, kMaxPacket, [](void*) { return true; },
                          nullptr};
    uint64_t id = 1;
    for (int i = 0; i < 20; ++i) {
      std::thread worker([&, asked = id] {
        Bytes packet(kMaxPacket);
        expect(recv(sockets.theirs, packet.data(), packet.size(), 0) == 20, "a request");
        while (waiting_for(sockets.ours) != threads - 1) std::this_thread::yield();
        say(sockets, packet_of(2, 16, asked));
      });
      walker.begin();
      std::fill(result.begin(), result.end(), -1.0f);
      expect(walker.run(0, 3, id, channel).why == Why::done, "a walk with helpers");
      worker.join();
    }
    return result;
  };
  expect(walked(1) == walked(3), "threads change no number");
}

}  // namespace

int main() {
  answers();
  silence();
  order();
  threads();
  std::puts("walker: ok");
  return 0;
}
