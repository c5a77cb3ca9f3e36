#include "memory.h"

#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "state.h"

namespace em {

// Reserved between any two buffers, so that a stray index lands in no other buffer. It costs no memory.
constexpr em_u64 GAP = 64ull << 20;
constexpr int POISON = 0xff;  // NaN in every floating type
// Bytes of the widest access of one thread, more than which no address need be a multiple of.
constexpr em_u64 WIDEST = 16;

Region regions[MAX_BUFFERS];
em_u32 region_count = 0;
static char* reserved = nullptr;
static em_u64 reserved_bytes = 0;

static em_u64 whole_pages(em_u64 bytes) {
  em_u64 page = (em_u64)sysconf(_SC_PAGESIZE);
  return (bytes + page - 1) / page * page;
}

static em_u32 log2_of(em_u32 value) {
  em_u32 log = 0;
  while ((2u << log) <= value) log++;
  return log;
}

bool map_regions() {
  const em_request* request = launch.request;
  region_count = 0;
  if (request->buffer_count > MAX_BUFFERS) {
    fail("launch", nullptr, "got %u buffers; takes up to %u", request->buffer_count, MAX_BUFFERS);
    return false;
  }
  reserved_bytes = GAP;
  for (em_u32 i = 0; i < request->buffer_count; i++)
    reserved_bytes += whole_pages(request->buffers[i].bytes + WIDEST) + GAP;
  void* got = mmap(nullptr, reserved_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (got == MAP_FAILED) {
    fail("launch", nullptr, "no room for %llu bytes of buffers and gaps", reserved_bytes);
    return false;
  }
  reserved = (char*)got;
  char* at = reserved + GAP;
  for (em_u32 i = 0; i < request->buffer_count; i++) {
    const em_buffer& buffer = request->buffers[i];
    Region& region = regions[region_count++];
    em_u64 lies = buffer.lies % WIDEST;
    em_u64 pages = buffer.bytes ? whole_pages(lies + buffer.bytes) : 0;
    region.buffer = &buffer;
    region.bytes = buffer.bytes;
    region.mapped = at;
    region.mapped_bytes = pages;
    region.log_grain = region.log_element = log2_of(buffer.element);
    // Checked, every access is compared with the ends; else the end lies against the unmapped page.
    region.begin = request->checked ? at + lies : at + pages - buffer.bytes;
    if (pages) {
      mprotect(at, pages, PROT_READ | PROT_WRITE);
      memset(at, POISON, pages);
      if (buffer.role == EM_INPUT) {
        memcpy(region.begin, buffer.data, buffer.bytes);
        mprotect(at, pages, PROT_READ);
      }
    }
    at += pages + GAP;
  }
  return true;
}

void check_slack() {
  for (em_u32 i = 0; i < region_count; i++) {
    const Region& region = regions[i];
    if (region.buffer->role == EM_INPUT) continue;
    for (const char* at = region.mapped; at < region.begin; at++)
      if (*(const unsigned char*)at != POISON) {
        fail("bounds", nullptr, "a thread wrote %s; %s", index_of(&region, at), size_of(&region));
        return;
      }
  }
}

void copy_out_and_unmap() {
  for (em_u32 i = 0; i < region_count; i++)
    if (regions[i].buffer->role != EM_INPUT && !launch.report->failed)
      memcpy(regions[i].buffer->data, regions[i].begin, regions[i].bytes);
  region_count = 0;
  if (reserved) munmap(reserved, reserved_bytes);
  reserved = nullptr;
}

Region* region_of(const void* address) {
  for (em_u32 i = 0; i < region_count; i++)
    if ((em_u64)((const char*)address - regions[i].begin) < regions[i].bytes) return &regions[i];
  return nullptr;
}

Region* region_near(const void* address) {
  const char* at = (const char*)address;
  for (em_u32 i = 0; i < region_count; i++)
    if (at >= regions[i].mapped - GAP / 2 && at < regions[i].mapped + regions[i].mapped_bytes + GAP / 2)
      return &regions[i];
  return nullptr;
}

static long long index_at(const Region* region, const void* address) {
  long long element = region->buffer->element;
  long long offset = (const char*)address - region->begin - (long long)region->buffer->first;
  return offset >= 0 ? offset / element : -((-offset + element - 1) / element);
}

const char* index_of(const Region* region, const void* address) {
  static char text[160];
  snprintf(text, sizeof text, "index %lld of %s", index_at(region, address), region->buffer->name);
  return text;
}

const char* size_of(const Region* region) {
  static char text[160];
  long long below = (long long)region->buffer->first / region->buffer->element;
  long long count = (long long)region->bytes / region->buffer->element - below;
  if (below)
    snprintf(text, sizeof text, "%s has indices %lld to %lld", region->buffer->name, -below, count - 1);
  else
    snprintf(text, sizeof text, "%s has %lld element%s", region->buffer->name, count, count == 1 ? "" : "s");
  return text;
}

const char* below_zero(const void* address, em_u32 bytes, const Region** found) {
  static char text[200];
  for (em_u32 i = 0; i < region_count; i++) {
    const Region* region = &regions[i];
    em_u64 sizes[] = {region->buffer->element, bytes};
    for (em_u64 size : sizes) {
      const char* meant = (const char*)((em_u64)address - (size << 32));
      if (!size || region_near(meant) != region || meant >= region->begin + region->buffer->first) continue;
      long long index = (meant - region->begin - (long long)region->buffer->first) / (long long)size + (1ll << 32);
      snprintf(text, sizeof text, "index %lld of %s (an unsigned index below 0)", index, region->buffer->name);
      *found = region;
      return text;
    }
  }
  return nullptr;
}

}  // namespace em
