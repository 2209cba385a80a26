#include "base/build_id.h"

#include <elf.h>
#include <link.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>

namespace terrace {
namespace {

constexpr std::string_view kGnu("GNU\0", 4);  // the owner of the note

struct Search {
  uintptr_t address = 0;
  std::string id;
};

std::string Hex(std::span<const std::byte> bytes) {
  constexpr char kDigits[] = "0123456789abcdef";
  std::string out;
  for (const std::byte each : bytes) {
    out += kDigits[std::to_integer<unsigned>(each) >> 4];
    out += kDigits[std::to_integer<unsigned>(each) & 15];
  }
  return out;
}

// A run of notes: a header, its owner's name and its content, which begins, as the next note does, at a
// multiple of `alignment`.
std::string FindBuildId(std::span<const std::byte> notes, size_t alignment) {
  const auto padded = [alignment](size_t size) { return (size + alignment - 1) / alignment * alignment; };
  while (notes.size() >= sizeof(ElfW(Nhdr))) {
    ElfW(Nhdr) header;
    std::memcpy(&header, notes.data(), sizeof(header));
    const size_t content = padded(sizeof(header) + header.n_namesz);
    if (content > notes.size() || header.n_descsz > notes.size() - content) return "";
    const std::string_view name(reinterpret_cast<const char*>(notes.data()) + sizeof(header),
                                header.n_namesz);
    if (header.n_type == NT_GNU_BUILD_ID && name == kGnu) return Hex(notes.subspan(content, header.n_descsz));
    notes = notes.subspan(std::min(notes.size(), content + padded(header.n_descsz)));
  }
  return "";
}

bool Has(const dl_phdr_info& object, uintptr_t address) {
  for (size_t i = 0; i < object.dlpi_phnum; ++i) {
    const ElfW(Phdr)& part = object.dlpi_phdr[i];
    if (part.p_type == PT_LOAD && address - (object.dlpi_addr + part.p_vaddr) < part.p_memsz) return true;
  }
  return false;
}

int Look(dl_phdr_info* object, size_t, void* data) {
  Search& search = *static_cast<Search*>(data);
  if (!Has(*object, search.address)) return 0;
  for (size_t i = 0; i < object->dlpi_phnum && search.id.empty(); ++i) {
    const ElfW(Phdr)& part = object->dlpi_phdr[i];
    if (part.p_type != PT_NOTE) continue;
    const auto* const notes = reinterpret_cast<const std::byte*>(object->dlpi_addr + part.p_vaddr);
    search.id = FindBuildId({notes, part.p_memsz}, part.p_align == 8 ? 8 : 4);
  }
  return 1;  // no other one has it
}

}  // namespace

std::string BuildIdAt(const void* address) {
  Search search{.address = reinterpret_cast<uintptr_t>(address), .id = {}};
  dl_iterate_phdr(&Look, &search);
  return search.id;
}

std::string OwnBuildId() { return BuildIdAt(&kGnu); }

}  // namespace terrace
