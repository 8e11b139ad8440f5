// Integers of 128 bits.
#pragma once

namespace cloister {

__extension__ using U128 = unsigned __int128;
__extension__ using I128 = __int128;

}  // namespace cloister
