// Which instruction set the kernels use: one dispatch point for all of them.
#pragma once
#include <string>
#include <vector>

namespace cloister {

enum class Isa { portable = 0, avx2 = 1, avx512 = 2 };

// avx2 needs AVX2, FMA, AES-NI; avx512 needs F, BW, DQ, VL, VNNI, IFMA and VAES.
Isa best_isa();           // what this CPU offers
Isa active_isa();         // what kernels use now: best_isa() unless forced
void force_isa(Isa isa);  // for tests; throws std::invalid_argument beyond best_isa()
std::vector<std::string> available_isas();
const char* isa_name(Isa isa);

}  // namespace cloister
