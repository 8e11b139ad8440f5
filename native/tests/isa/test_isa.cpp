// The choice of an instruction set, also where the system refuses AMX.
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <stdexcept>

#include "cloister/isa.hpp"
#include "expect.hpp"

using namespace cloister;

namespace {

// What a child process has found: its processor's best, and whether it was refused AMX.
struct Found {
  int best;
  bool refused;
};

Found in_child(bool without_permission) {
  const pid_t child = fork();
  if (child == 0) {
    if (without_permission) {
      sock_filter code[] = {
          BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
          BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_arch_prctl, 0, 1),
          BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
          BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
      };
      const sock_fprog program{sizeof code / sizeof *code, code};
      expect(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
                 prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0,
             "a filter of system calls");
    }
    _exit(16 + static_cast<int>(best_isa()) + 4 * amx_refused());
  }
  int status = 0;
  expect(child > 0 && waitpid(child, &status, 0) == child, "a child process");
  expect(WIFEXITED(status) && WEXITSTATUS(status) >= 16, "a child that was not ended");
  return {WEXITSTATUS(status) & 3, (WEXITSTATUS(status) & 4) != 0};
}

}  // namespace

int main() {
  // Before this process has found anything.
  const Found asked = in_child(false), denied = in_child(true);
  const int amx = static_cast<int>(Isa::amx), avx512 = static_cast<int>(Isa::avx512);
  if (asked.best == amx) {
    expect(!asked.refused && denied.refused && denied.best == avx512, "AVX-512 instead of AMX");
  } else {
    expect(asked.refused == denied.refused && asked.best == denied.best, "no AMX to refuse");
  }
  expect(static_cast<int>(best_isa()) == asked.best, "what a child has found");
  expect(in_child(true).best == asked.best, "what the parent has found");  // and keeps

  for (int i = 0; i <= amx; ++i) {
    bool refused = false;
    try {
      force_isa(static_cast<Isa>(i));
    } catch (const std::invalid_argument&) {
      refused = true;
    }
    expect(refused == (i > asked.best), "instruction sets beyond the best are refused");
  }
  return 0;
}
