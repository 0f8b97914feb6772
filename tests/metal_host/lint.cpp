#include "emulator.h"
namespace natten::metal_host {
std::string address_space_complaints(const Kernel&, const std::vector<Parameter>&, const std::vector<Parameter>&) { return ""; }
}
