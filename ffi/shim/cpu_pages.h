// cpu_pages.h: zero-filled memory straight from the kernel, on huge pages where it grants them.
#pragma once
#include <stddef.h>

namespace metalora {

// NULL when the machine has none left. Starts at a multiple of 4096, and of 2 MB when that large.
void* pages_map(size_t bytes);
void pages_unmap(void* data, size_t bytes);

}  // namespace metalora
