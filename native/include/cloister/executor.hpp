// Runs the steps of one compiled program for one batch size, whatever carries its messages.
//
// A step is a fused step, an exchange over a socket and shared memory, or the caller's: at a step
// of the caller (a local computation, an exchange over another link) the run stops, and the caller
// does it and goes on with the next one.
//
// The executor enforces the order of release. An answer is compared by the fused step that reads it
// before anything else is sent; a node that the plan checks is written and read by steps that have
// coefficients, or add() refuses them; after a comparison that failed, nothing can run any more.
// Steps that do not fit that order (a message sent twice, an answer consumed before it came, a pad
// used twice) throw std::logic_error and send nothing.
#pragma once
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <utility>
#include <variant>
#include <vector>

#include "cloister/aes_ctr.hpp"
#include "cloister/fused_step.hpp"

namespace cloister {

// A fused step over the whole batch. `run` holds every pointer that is the same in every request.
struct Fused {
  FusedStep* step = nullptr;
  int64_t node = -1;      // whose answer it reads; -1: it reads a float32 value
  bool unblinds = false;  // node >= 0: the answer is unblinded
  bool binds = false;     // every request has arrays of its own for this step: see bind()
  std::vector<int64_t> sink_nodes;
  FusedRun run;  // `reply` may be nullptr: then answered() says where the answer lies
};

// One request and its answer. The packets lack the request id only: 8 bytes, little endian.
struct Exchange {
  int64_t node = -1;  // -1: an open segment, whose answer no step reads and nothing compares
  std::vector<uint8_t> packet, answer;
  size_t packet_id = 0, answer_id = 0;  // where the request id goes
  const uint8_t* staged = nullptr;      // a message that waited in private memory, or nullptr
  uint8_t* place = nullptr;             // where the worker reads it
  size_t staged_bytes = 0;
  // Not 0: `staged` is one matrix of words after the other, and the worker reads their transposes.
  int64_t rows = 0, columns = 0;
};

// The caller's step; node >= 0: an exchange of that node's message, over a link of the caller's.
struct Outside {
  int64_t node = -1;
};

struct Channel {
  int descriptor;              // SOCK_SEQPACKET
  int64_t timeout_ns;          // for each answer
  size_t max_packet_bytes;     // of an answer
  bool (*interrupted)(void*);  // asked after EINTR: shall the run stop?
  void* context;
};

// How a run ended: `step` is the first step that was not completed.
struct Stop {
  enum class Why {
    done,
    mismatch,     // a check failed
    unbound,      // the fused step needs bind() first
    outside,      // the caller's step
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

// What a step of this request took. The caller's CPU time counts for the step it stopped at.
struct StepCost {
  int64_t cpu_ns = 0;  // here
  int64_t wait_ns = 0;
  int64_t caller_ns = 0;
};

// The pads of one image. The terms of every node, in one array, are masked if there is a mask key.
struct ImagePads {
  uint64_t id;
  const uint8_t* key;  // 32 bytes, as is the other one
  const uint32_t* terms;
  const uint8_t* mask_key;  // or nullptr
};

// Not for use by several threads at once.
class Executor {
 public:
  // `checked` says of every node whether the plan checks its answers. A node with pads has its
  // first word in `pad_offsets`; the terms of one image are `pad_words` words.
  Executor(std::vector<bool> checked, int64_t batch, int threads,
           const std::map<int64_t, int64_t>& pad_offsets = {}, int64_t pad_words = 0);
  ~Executor();
  Executor(const Executor&) = delete;
  Executor& operator=(const Executor&) = delete;

  int64_t batch() const { return batch_; }
  size_t nodes() const { return nodes_.size(); }
  size_t size() const { return steps_.size(); }

  // Throw std::invalid_argument for a node that does not exist, for a fused step that reads or
  // writes messages of a checked node without coefficients, or of an unchecked one with them, for
  // one that unblinds an answer without pads, and for a staged message that is no whole number of
  // matrices.
  void add(Fused step);
  void add(Exchange step);
  void add(Outside step);

  // A new request: nothing is written, answered or consumed. One entry per image, or none when
  // nothing is blinded. Throws std::invalid_argument for masked terms unless every node with pads
  // is checked: a mask hides a change as little as it prevents it.
  void begin(const std::vector<ImagePads>& pads = {});

  // The arrays of a fused step that are this request's alone: the caller enters them in the run
  // that it is given, and keeps them until the step is completed. Throws std::invalid_argument when
  // the step does not bind.
  FusedRun& bind(size_t step);

  // The request is over, however it ended: forgets keys, nonces and pointers.
  void end();

  // The steps from `first` on. `next_request_id` counts up with every exchange.
  Stop run(size_t first, uint64_t& next_request_id, const Channel& channel);

  // The caller has the answer of an exchange that the run stopped at; where it lies, while the
  // answer waits, unless it lies where the fused step that follows looks for it.
  void answered(size_t step, const uint32_t* answer = nullptr);
  bool waits(int64_t node);  // an answer came that no fused step has read

  const FusedStep& fused(size_t step) const;  // throws std::invalid_argument when it is none
  int64_t node_of(size_t step) const;         // of an exchange; throws std::invalid_argument
  const std::vector<StepCost>& costs() const { return costs_; }
  int64_t pad_words() const { return pad_words_; }

 private:
  enum class State : uint8_t { closed, open, written, answered, consumed };
  struct Node {
    bool checked = false;
    State state = State::closed;
    const uint32_t* answer = nullptr;  // this request's, or null
    int64_t pad_offset = -1;           // of its terms; -1: it has no pads
    std::vector<uint8_t> nonces;       // 12 bytes per image
    std::vector<uint64_t> sums;        // of the request; one per image
  };
  using Step = std::variant<Fused, Exchange, Outside>;

  Node& node(int64_t index);
  void enter(const std::vector<ImagePads>& pads);
  void close();
  Stop::Why perform(Fused& step, size_t number);
  Stop::Why exchange(Exchange& step, const Channel& channel, int threads, Stop& stop);
  int threads_of(size_t step) const;  // 1 unless it is a fused step
  void require_compared() const;

  int64_t batch_;
  int threads_;
  std::vector<Node> nodes_;
  std::vector<Step> steps_;
  std::vector<std::optional<FusedRun>> bound_;  // by step, of this request
  std::vector<StepCost> costs_;
  std::vector<uint64_t> answer_sums_;
  std::vector<uint8_t> received_;
  // Of this request, by image; pointers lead to the schedules, which do not move.
  std::vector<std::optional<AesSchedule>> schedules_, mask_schedules_;
  std::vector<const AesSchedule*> keys_, mask_keys_;
  std::vector<const uint32_t*> terms_;
  const int64_t pad_words_;
  // Where the last run stopped for the caller, and the CPU time then.
  std::optional<std::pair<size_t, int64_t>> paused_;
  bool begun_ = false;  // and no comparison has failed
  bool has_pads_ = false, has_masks_ = false;
  bool answer_waits_ = false;  // an answer came that no step has read
};

}  // namespace cloister
