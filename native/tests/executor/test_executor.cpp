// The executor over a socket pair: what it sends, every way an exchange can end, and what it
// refuses.
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "cloister/executor.hpp"
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

Channel channel_of(const Sockets& sockets, int64_t timeout_ns = 20'000'000) {
  return {sockets.ours, timeout_ns, kMaxPacket, [](void*) { return true; }, nullptr};
}

bool throws(const auto& action) {
  try {
    action();
  } catch (const std::logic_error&) {
    return true;
  }
  return false;
}

// A step over one pixel that writes one request in the clear, and the exchange of that request.
struct Subject {
  FusedStep step{FusedShape{1, 1, 1, {}, {}, -1e9f, 1e9f, std::nullopt, {{1.0f, 100, {}}}}};
  float value = 7.0f;
  int16_t staged = 0, place = 0;
  Executor executor{{false}, 1, 1};

  Subject() {
    executor.add(write());
    executor.add(exchange());
  }

  Fused write() {
    Fused write;
    write.step = &step;
    write.sink_nodes = {0};
    write.run.values = &value;
    write.run.sinks.resize(1);
    write.run.sinks[0].plain = &staged;
    return write;
  }

  Exchange exchange(int64_t node = 0) {
    Exchange exchange;
    exchange.node = node;
    exchange.packet = Bytes(20, 1);
    exchange.answer = Bytes(16, 2);
    exchange.packet_id = exchange.answer_id = kIdOffset;
    exchange.staged = reinterpret_cast<const uint8_t*>(&staged);
    exchange.place = reinterpret_cast<uint8_t*>(&place);
    exchange.staged_bytes = sizeof staged;
    return exchange;
  }

  Stop run(const Sockets& sockets, uint64_t& id) {
    executor.begin();
    return executor.run(0, id, channel_of(sockets));
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
  Executor& executor = subject.executor;
  uint64_t id = 1;
  const Channel channel = channel_of(sockets, 1);
  expect(throws([&] { executor.run(0, id, channel); }), "a run that did not begin");
  executor.begin();
  expect(throws([&] { executor.run(1, id, channel); }), "a request that is not there");
  expect(throws([&] { executor.answered(1); }), "an answer without a request");
  expect(throws([&] { executor.answered(0); }), "an answer to what is no exchange");
  expect(throws([&] { executor.run(3, id, channel); }), "no such step");
  expect(throws([&] { executor.fused(1); }), "no fused step");
  expect(throws([&] { executor.bind(0); }), "a step without arrays of its own");
  expect(heard(sockets).empty() && subject.place == 0, "nothing left");
  expect(executor.run(0, id, channel).why == Why::unanswered, "a request");
  expect(throws([&] { executor.run(0, id, channel); }), "a request written twice");
}

// A node whose answer 5 is right if the coefficient of the request 5 equals that of the answer.
struct Checked {
  const uint64_t one = 1, other = 2;
  float value = 5.0f, result = 0.0f;
  int16_t first = 0, second = 0;
  uint32_t answer = 5;
  FusedStep asks{
      FusedShape{1, 1, 1, {}, {}, -1e9f, 1e9f, std::nullopt, {{1, 9, {&one, nullptr, 0}}}}};
  FusedStep clear{FusedShape{1, 1, 1, {}, {}, -1e9f, 1e9f, std::nullopt, {{1, 9, {}}}}};
  FusedStep reads = FusedStep::checked(
      FusedShape{1, 1, 1, {1.0f}, {0.0f}, -1e9f, 1e9f, std::nullopt, {}}, &one, &one);
  FusedStep believes =
      FusedStep::unchecked(FusedShape{1, 1, 1, {1.0f}, {0.0f}, -1e9f, 1e9f, std::nullopt, {}});
  Executor executor{{true, false}, 1, 1};

  static Fused writing(FusedStep& step, int64_t node, float& value, int16_t& message) {
    Fused write;
    write.step = &step;
    write.sink_nodes = {node};
    write.run.values = &value;
    write.run.sinks.resize(1);
    write.run.sinks[0].plain = &message;
    return write;
  }

  Fused reading(FusedStep& step, int64_t node) {
    Fused read;
    read.step = &step;
    read.node = node;
    read.run.post = {&result, 1, 1};
    return read;
  }
};

void steps_without_coefficients() {
  Checked of;
  expect(throws([&] { of.executor.add(of.reading(of.believes, 0)); }), "reads without a check");
  expect(throws([&] { of.executor.add(of.reading(of.reads, 1)); }), "a check nobody asked for");
  expect(throws([&] { of.executor.add(Checked::writing(of.clear, 0, of.value, of.first)); }),
         "writes without coefficients");
  expect(throws([&] { of.executor.add(Checked::writing(of.asks, 1, of.value, of.first)); }),
         "coefficients of another node");
  expect(of.executor.size() == 0, "none of them was added");
}

// The caller's exchanges: every answer is compared before anything else goes on.
void the_callers_steps() {
  const Channel none{-1, 1, kMaxPacket, [](void*) { return true; }, nullptr};
  uint64_t id = 1;
  Checked of;
  Executor& executor = of.executor;
  executor.add(Checked::writing(of.asks, 0, of.value, of.first));  // 0
  executor.add(Checked::writing(of.clear, 1, of.value, of.second));
  executor.add(Outside{0});  // 2
  executor.add(of.reading(of.reads, 0));
  executor.add(Outside{1});  // 4
  executor.add(Outside{});
  executor.begin();
  expect(throws([&] { executor.run(2, id, none); }), "a request that is not there");
  Stop stop = executor.run(0, id, none);
  expect(stop.why == Why::outside && stop.step == 2 && id == 1, "the caller's exchange");
  executor.answered(2, &of.answer);
  expect(executor.waits(0), "an answer waits");
  expect(throws([&] { executor.run(4, id, none); }), "an exchange before the comparison");
  expect(throws([&] { executor.run(5, id, none); }), "any other step before the comparison");
  stop = executor.run(3, id, none);
  expect(stop.why == Why::outside && stop.step == 4 && of.result == 5.0f, "an honest answer");
  expect(!executor.waits(0), "it was read");

  executor.begin();
  executor.run(0, id, none);
  expect(throws([&] { executor.run(3, id, none); }), "an answer that is not there");
  of.answer = 6;
  executor.answered(2, &of.answer);
  stop = executor.run(3, id, none);
  expect(stop.why == Why::mismatch && stop.step == 3, "a wrong answer");
  expect(throws([&] { executor.run(4, id, none); }), "nothing follows a wrong answer");
}

// A segment's message waits in private memory for every comparison before it.
void segments() {
  const Sockets sockets;
  uint64_t id = 1;
  Checked of;
  Executor& executor = of.executor;
  const std::vector<uint32_t> waiting{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12};
  std::vector<uint32_t> place(waiting.size());
  Exchange segment = Subject().exchange(-1);
  segment.staged = reinterpret_cast<const uint8_t*>(waiting.data());
  segment.place = reinterpret_cast<uint8_t*>(place.data());
  segment.staged_bytes = waiting.size() * sizeof(uint32_t);
  segment.rows = 3;
  segment.columns = 2;
  executor.add(Checked::writing(of.asks, 0, of.value, of.first));  // 0
  executor.add(Outside{0});
  executor.add(segment);  // 2: what a wrong program would do
  executor.add(of.reading(of.reads, 0));
  executor.add(segment);  // 4
  const Channel channel = channel_of(sockets);
  const auto unsent = [&] {
    return heard(sockets).empty() && std::ranges::all_of(place, [](uint32_t v) { return v == 0; });
  };
  expect(throws([&] { executor.run(4, id, channel); }) && unsent(), "a run that did not begin");
  executor.begin();
  executor.run(0, id, channel);
  executor.answered(1, &of.answer);
  expect(throws([&] { executor.run(2, id, channel); }) && unsent(), "before the comparison");
  of.answer = 6;
  expect(executor.run(3, id, channel).why == Why::mismatch, "a wrong answer");
  expect(throws([&] { executor.run(4, id, channel); }) && unsent(), "after a wrong answer");

  of.answer = 5;
  executor.begin();
  executor.run(0, id, channel);
  executor.answered(1, &of.answer);
  say(sockets, packet_of(2, 16, id));
  const uint64_t sent = id;
  expect(executor.run(3, id, channel).why == Why::done && id == sent + 1, "after the comparison");
  expect(heard(sockets) == packet_of(1, 20, sent), "the request");
  expect(place == std::vector<uint32_t>{1, 3, 5, 2, 4, 6, 7, 9, 11, 8, 10, 12}, "two transposes");
  expect(throws([&] { executor.answered(4); }), "no step reads its answer");
  executor.end();
  expect(throws([&] { executor.run(4, id, channel); }), "a request that is over");
  segment.rows = 5;
  expect(throws([&] { executor.add(segment); }), "no whole number of matrices");
}

void arrays_of_one_request() {
  const Channel none{-1, 1, kMaxPacket, [](void*) { return true; }, nullptr};
  uint64_t id = 1;
  Checked of;
  Fused write = Checked::writing(of.asks, 0, of.value, of.first);
  write.binds = true;
  write.run.values = nullptr;
  write.run.sinks[0].plain = nullptr;
  of.executor.add(write);
  for (int request = 0; request < 2; ++request) {
    of.executor.begin();
    expect(of.executor.run(0, id, none).why == Why::unbound, "arrays are missing");
    FusedRun& run = of.executor.bind(0);
    run.values = &of.value;
    run.sinks[0].plain = &of.first;
    expect(of.executor.run(0, id, none).why == Why::done && of.first == 5, "with its arrays");
    expect(of.executor.run(0, id, none).why == Why::unbound, "they serve once");
  }
}

// A worker that answers while the executor waits, and steps that helpers share.
void threads() {
  constexpr int64_t kSide = 64, kChannels = 32, kSize = kSide * kSide * kChannels;
  std::vector<uint32_t> reply(kSize);
  for (size_t i = 0; i < reply.size(); ++i) reply[i] = static_cast<uint32_t>(i * 2654435761u);
  const auto computed = [&](int threads) {
    Subject subject;
    FusedStep step = FusedStep::unchecked({kSide,
                                           kSide,
                                           kChannels,
                                           std::vector<float>(kChannels, 1e-3f),
                                           std::vector<float>(kChannels, 0.5f),
                                           0.0f,
                                           1e9f,
                                           std::nullopt,
                                           {}});
    std::vector<float> result(kSize);
    Fused read;
    read.step = &step;
    read.node = 0;
    read.run.reply = reply.data();
    read.run.post = {result.data(), kSize, kChannels};
    Executor executor({false}, 1, threads);
    executor.add(subject.write());
    executor.add(subject.exchange());
    executor.add(read);
    const Sockets sockets;
    const Channel channel = channel_of(sockets, 20'000'000'000);
    uint64_t id = 1;
    for (int i = 0; i < 20; ++i) {
      std::thread worker([&, asked = id] {
        Bytes packet(kMaxPacket);
        expect(recv(sockets.theirs, packet.data(), packet.size(), 0) == 20, "a request");
        while (waiting_for(sockets.ours) != threads - 1) std::this_thread::yield();
        say(sockets, packet_of(2, 16, asked));
      });
      executor.begin();
      std::fill(result.begin(), result.end(), -1.0f);
      expect(executor.run(0, id, channel).why == Why::done, "a run with helpers");
      worker.join();
    }
    return result;
  };
  expect(computed(1) == computed(3), "threads change no number");
}

}  // namespace

int main() {
  answers();
  silence();
  order();
  steps_without_coefficients();
  the_callers_steps();
  segments();
  arrays_of_one_request();
  threads();
  std::puts("executor: ok");
  return 0;
}
