// Runs compiled AMX code on processors without AMX: such a processor raises SIGILL at every
// instruction on tiles, and a handler carries the instruction out on emulated tiles.
#pragma once
#include <ucontext.h>

#include <csignal>
#include <cstdint>
#include <cstring>

#include "ring/emulated_tiles.hpp"

namespace cloister {

inline thread_local TileFile interpreted_tiles;

// The registers of the interrupted code in the order of their numbers in instructions.
inline int64_t general_register(const ucontext_t& context, int number) {
  static constexpr int kOrder[] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP,
                                   REG_RSI, REG_RDI, REG_R8,  REG_R9,  REG_R10, REG_R11,
                                   REG_R12, REG_R13, REG_R14, REG_R15};
  return context.uc_mcontext.gregs[kOrder[number]];
}

// A VEX instruction of three bytes of prefix: c4, then R X B inverted and the opcode map, then
// W, vvvv inverted, L, pp.
struct TileInstruction {
  explicit TileInstruction(const uint8_t* code) : code(code) {
    expect(code[0] == 0xc4 && (code[1] & 0x1f) == 2 && (code[2] & 0x84) == 0,
           "interpreted tiles: a VEX.128.0F38.W0 instruction");
  }

  int prefix() const { return code[2] & 3; }  // none, 66, f3, f2
  int opcode() const { return code[3]; }
  bool on_registers() const { return code[4] >> 6 == 3; }
  int reg() const { return (code[4] >> 3 & 7) | (code[1] & 0x80 ? 0 : 8); }
  int rm() const { return code[4] & 7; }
  int vvvv() const { return ~code[2] >> 3 & 15; }
  bool has_sib() const { return !on_registers() && rm() == 4; }

  // The address of the operand in memory but for an index, the index, and where the next
  // instruction begins.
  int64_t base(const ucontext_t& context) const {
    const int base = (has_sib() ? code[5] & 7 : rm()) | (code[1] & 0x20 ? 0 : 8);
    const int mod = code[4] >> 6;
    if (mod == 0 && !has_sib() && rm() == 5) {
      return reinterpret_cast<int64_t>(next()) + displacement(4);
    }
    expect(mod != 0 || (base & 7) != 5, "interpreted tiles: an address with a base");
    return general_register(context, base) + displacement(mod == 0 ? 0 : mod == 1 ? 1 : 4);
  }
  int64_t index(const ucontext_t& context) const {
    const int index = (code[5] >> 3 & 7) | (code[1] & 0x40 ? 0 : 8);
    return index == 4 ? 0 : general_register(context, index) << (code[5] >> 6);
  }
  const uint8_t* next() const {
    const int mod = code[4] >> 6;
    const bool relative = mod == 0 && rm() == 5;
    return code + 5 + has_sib() + (mod == 1 ? 1 : mod == 2 || relative ? 4 : 0);
  }

  const uint8_t* code;

 private:
  int64_t displacement(int bytes) const {
    const uint8_t* at = code + 5 + has_sib();
    int32_t wide = 0;
    if (bytes == 4) std::memcpy(&wide, at, sizeof wide);
    return bytes == 1 ? static_cast<int8_t>(*at) : wide;
  }
};

inline void interpret_tiles(int, siginfo_t*, void* state) {
  auto& context = *static_cast<ucontext_t*>(state);
  greg_t& position = context.uc_mcontext.gregs[REG_RIP];
  const TileInstruction instruction(reinterpret_cast<const uint8_t*>(position));
  enum { kNone, k66, kF3, kF2 };
  TileFile& tiles = interpreted_tiles;
  const int prefix = instruction.prefix(), reg = instruction.reg();
  if (instruction.opcode() == 0x49 && prefix == kF2 && instruction.on_registers()) {
    tiles.zero(reg);
  } else if (instruction.opcode() == 0x49 && prefix == kNone && instruction.on_registers()) {
    tiles.release();
  } else if (instruction.opcode() == 0x49 && prefix == kNone) {
    TileLayout layout;
    const int64_t index = instruction.has_sib() ? instruction.index(context) : 0;
    std::memcpy(&layout, reinterpret_cast<const void*>(instruction.base(context) + index),
                sizeof layout);
    tiles.configure(layout);
  } else if (instruction.opcode() == 0x4b && prefix == kF2 && instruction.has_sib()) {
    tiles.load(reg, reinterpret_cast<const void*>(instruction.base(context)),
               instruction.index(context));
  } else if (instruction.opcode() == 0x4b && prefix == kF3 && instruction.has_sib()) {
    tiles.store(reg, reinterpret_cast<void*>(instruction.base(context)),
                instruction.index(context));
  } else {
    expect(instruction.opcode() == 0x5e && instruction.on_registers(),
           "interpreted tiles: a known instruction");
    tiles.multiply(reg, instruction.rm(), instruction.vvvv(), prefix == kF3 || prefix == kF2,
                   prefix == k66 || prefix == kF2);
  }
  position = reinterpret_cast<greg_t>(instruction.next());
}

// From now on, in every thread.
inline void interpret_tile_instructions() {
  struct sigaction action{};
  action.sa_sigaction = interpret_tiles;
  action.sa_flags = SA_SIGINFO | SA_NODEFER;
  expect(sigaction(SIGILL, &action, nullptr) == 0, "interpreted tiles: a handler");
}

}  // namespace cloister
