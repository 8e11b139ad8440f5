// Which instruction set the kernels use: one dispatch point for all of them.
#pragma once
#include <string>
#include <vector>

namespace cloister {

enum class Isa { portable = 0, avx2 = 1, avx512 = 2, amx = 3 };

// avx2 needs AVX2, FMA, AES-NI; avx512 needs F, BW, DQ, VL, VNNI, IFMA and VAES. amx is avx512 with
// VBMI, AMX-TILE, AMX-INT8 and the system's permission, which the first call asks for: it holds for
// all threads of the process and for the processes that it forks.
Isa best_isa();           // what this CPU and its system offer
bool amx_refused();       // this CPU offers AMX, the system does not; best_isa() is avx512 then
Isa active_isa();         // what kernels use now: best_isa() unless forced
void force_isa(Isa isa);  // for tests; throws std::invalid_argument beyond best_isa()
std::vector<std::string> available_isas();
const char* isa_name(Isa isa);

}  // namespace cloister
