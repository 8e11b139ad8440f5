// Walks runs of passes and exchanges of one compiled program over one shared-memory link.
//
// The order is the caller's, and it is the order of release: an exchange sends what earlier steps
// wrote, and a pass that consumes an answer compares both sums of its check before the walk goes
// on. Steps that do not fit that order (a message sent twice, an answer consumed before it came, a
// pad used twice) throw std::logic_error and send nothing.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "cloister/aes_ctr.hpp"
#include "cloister/pass.hpp"

namespace cloister {

// One native pass over the whole batch. `run` holds every pointer that is the same in every walk.
struct PassStep {
  Pass* pass = nullptr;
  int64_t node = -1;      // whose answer it consumes; -1: it reads a float32 value
  bool unblinds = false;  // node >= 0: the answer is unblinded
  bool accepts = false;   // node >= 0: the answer is checked
  std::vector<int64_t> sink_nodes;
  PassRun run;
};

// One request and its answer. The packets lack the request id only: 8 bytes, little endian.
struct ExchangeStep {
  int64_t node = -1;
  std::vector<uint8_t> packet, answer;
  size_t packet_id = 0, answer_id = 0;  // where the request id goes
  const uint8_t* staged = nullptr;      // a message that waited in private memory, or nullptr
  uint8_t* place = nullptr;             // where the worker reads it
  size_t staged_bytes = 0;
};

struct Channel {
  int descriptor;              // SOCK_SEQPACKET
  int64_t timeout_ns;          // for each answer
  size_t max_packet_bytes;     // of an answer
  bool (*interrupted)(void*);  // asked after EINTR: shall the walk stop?
  void* context;
};

// How a walk ended: `step` is the first step that was not completed.
struct Stop {
  enum class Why {
    done,
    mismatch,     // a check failed
    unsent,       // send() failed or would block; nothing was sent
    unanswered,   // timeout, end of file or an error while waiting
    unexpected,   // `packet` came instead of the answer
    interrupted,  // a signal; the request is outstanding
  };
  Why why = Why::done;
  size_t step = 0;
  uint64_t request_id = 0;  // of the exchange that did not complete
  int64_t deadline_ns = 0;  // CLOCK_MONOTONIC
  std::vector<uint8_t> packet;
};

struct StepCost {
  int64_t cpu_ns = 0;
  int64_t wait_ns = 0;
};

// Not for use by several threads at once.
class Walker {
 public:
  Walker(int64_t nodes, int64_t batch, int threads);
  ~Walker();
  Walker(const Walker&) = delete;
  Walker& operator=(const Walker&) = delete;

  int64_t batch() const { return batch_; }
  size_t size() const { return steps_.size(); }

  // Throw std::invalid_argument for a node that does not exist; return the step's number.
  size_t add(PassStep step);
  size_t add(ExchangeStep step);

  PassStep& pass_step(size_t step);  // throws std::invalid_argument when it is none

  // A new request: nothing is written, answered or consumed. One pad id per image, or none when
  // nothing is blinded; unblind[i] has one pointer per image for node hidden[i].
  void begin(const uint8_t key[kAesKeyBytes], const std::vector<uint64_t>& pad_ids,
             const std::vector<int64_t>& hidden, std::vector<std::vector<const uint32_t*>> unblind);
  void begin();

  // The request is over, however it ended: forgets key, nonces and pointers.
  void end();

  // Steps first .. last - 1. `next_request_id` counts up with every exchange.
  Stop run(size_t first, size_t last, uint64_t& next_request_id, const Channel& channel);

  // The caller got the answer of an exchange that the walk stopped at.
  void answered(size_t step);

  const std::vector<StepCost>& costs() const { return costs_; }

 private:
  enum class State : uint8_t { closed, open, written, answered, consumed };
  struct Node {
    State state = State::closed;
    std::vector<uint8_t> nonces;  // 12 bytes per image
    std::vector<const uint32_t*> unblind;
    std::vector<uint64_t> sums;  // of the request; one per image
  };
  struct Step {
    bool is_pass;
    size_t index;
  };

  Node& node(int64_t index);
  bool pass(PassStep& step);
  int threads_of(size_t step) const;  // 1 unless it is a pass
  // What arrives wakes as many threads as the next step uses.
  Stop::Why exchange(ExchangeStep& step, const Channel& channel, int threads, Stop& stop);

  int64_t batch_;
  int threads_;
  std::vector<Node> nodes_;
  std::vector<PassStep> passes_;
  std::vector<ExchangeStep> exchanges_;
  std::vector<Step> steps_;
  std::vector<StepCost> costs_;
  std::vector<uint64_t> answer_sums_;
  std::vector<uint8_t> received_;
  std::array<uint8_t, kAesKeyBytes> key_{};
  bool has_pads_ = false;
};

}  // namespace cloister
