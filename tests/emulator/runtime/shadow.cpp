// The rules of order. Two accesses by different threads, one of them a write, are ordered only if a barrier that
// covers that memory lies between: a threadgroup barrier within a threadgroup, a simdgroup barrier within a simdgroup,
// nothing between threadgroups. No schedule comes into it: what is unordered is reported even where it went well.
#include "shadow.h"

#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "state.h"

namespace em {

// `serial` is the threadgroup's; one from before the launch, or for threadgroup memory of another threadgroup, means
// no access. The counters say how many barriers for this memory its thread had passed.
struct Access {
  em_u32 serial;
  em_u32 thread;
  em_u32 barriers;
  em_u32 simd_barriers;
  em_u32 place;  // the return address as an offset into the object
};

// Two readers by different threads are enough to meet any writer with one that is not itself; see `add_reader`.
struct Cell {
  Access writer;
  Access readers[2];
};

static Cell* cells = nullptr;
static em_u64 room = 0;

constexpr em_u64 MOST_THREADGROUP = 64 * 1024;  // 32 KiB and what lies between arrays
static Cell threadgroup_cells[MOST_THREADGROUP];
static unsigned char array_at[MOST_THREADGROUP];  // of each byte: which array it is of, from 1; 0 is none
// Bytes of threadgroup memory to a cell, as a power of two. Begins at 4 and shrinks when a smaller access comes.
static em_u32 log_grain = 2;

static bool map_arrays() {
  const em_request* request = launch.request;
  if (request->threadgroup_bytes > MOST_THREADGROUP || request->span_count > 255) {
    fail("launch", nullptr, "got %u arrays in %llu bytes of threadgroup memory; takes up to 255 in %llu",
         request->span_count, request->threadgroup_bytes, MOST_THREADGROUP);
    return false;
  }
  memset(array_at, 0, request->threadgroup_bytes);
  for (em_u32 i = 0; i < request->span_count; i++)
    memset(array_at + request->spans[i].offset, (int)i + 1, request->spans[i].bytes);
  log_grain = 2;
  return true;
}

bool prepare_shadow() {
  if (!map_arrays()) return false;
  em_u64 count = 0;
  for (em_u32 i = 0; i < region_count; i++) {
    if (regions[i].buffer->role == EM_INPUT) continue;
    regions[i].first_cell = count;
    count += regions[i].bytes >> regions[i].log_element;
  }
  if (count <= room) return true;  // serials tell old cells from new ones
  if (cells) munmap(cells, room * sizeof(Cell));
  void* got = mmap(nullptr, count * sizeof(Cell), PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  cells = got == MAP_FAILED ? nullptr : (Cell*)got;
  room = cells ? count : 0;
  if (!cells) fail("launch", nullptr, "no room for the shadow of %llu output elements", count);
  return cells != nullptr;
}

static bool ordered(const Access& before, const Access& now) {
  if (before.serial != now.serial) return false;
  if (before.thread == now.thread || before.barriers != now.barriers) return true;
  return simdgroup_of(before.thread) == simdgroup_of(now.thread) && before.simd_barriers != now.simd_barriers;
}

// Keeps, of all readers that no barrier has put in the past, two that suffice: of different simdgroups if there are
// such, since a barrier within one orders nothing for the other; else the two that read last.
static void add_reader(Access* readers, const Access& now, em_u32 first_serial) {
  for (int i = 0; i < 2; i++) {
    Access& old = readers[i];
    bool same_thread = old.serial == now.serial && old.thread == now.thread;
    bool past = old.serial < first_serial || (old.serial == now.serial && old.barriers != now.barriers);
    if (same_thread || past) {
      old = now;
      // The other slot may hold this thread as well.
      Access& other = readers[1 - i];
      if (other.serial == now.serial && other.thread == now.thread) other.serial = 0;
      return;
    }
  }
  auto group = [](const Access& a) { return (em_u64)a.serial << 32 | simdgroup_of(a.thread); };
  if (group(readers[0]) != group(readers[1])) return;
  readers[readers[1].simd_barriers < readers[0].simd_barriers] = now;
}

struct Where {
  const Region* region;  // null for threadgroup memory
  em_u64 offset;
  em_u32 bytes;
};

// "index 5 of part", elements being as large as the access.
static const char* name_of(const Where& where) {
  static char text[160];
  if (where.region) return describe(where.region, where.region->begin + where.offset);
  const em_span& span = launch.request->spans[array_at[where.offset] - 1];
  snprintf(text, sizeof text, "index %llu of %s", (where.offset - span.offset) / where.bytes, span.name);
  return text;
}

static void race(const Where& where, const Access& before, const char* did, const Access& now, const char* does,
                 void* frame) {
  set_place(1, before.place);
  fail("race", frame, "%s %s %s {0}, which %s %s {1}, and no barrier for that memory orders the two",
       thread_name(now.thread, now.serial), does, name_of(where), thread_name(before.thread, before.serial), did);
}

// `first_serial`: of the threadgroups whose accesses count for this cell.
static inline void touch(Cell& cell, const Access& now, em_u32 first_serial, bool write, const Where& where,
                         void* frame) {
  bool written = cell.writer.serial >= first_serial;
  if (written && !ordered(cell.writer, now))
    return race(where, cell.writer, "wrote", now, write ? "writes" : "reads", frame);
  if (!write) {
    if (!written)
      return fail("uninitialised", frame, "%s reads %s {0}, which nobody wrote",
                  thread_name(now.thread, now.serial), name_of(where));
    return add_reader(cell.readers, now, first_serial);
  }
  for (const Access& reader : cell.readers)
    if (reader.serial >= first_serial && !ordered(reader, now))
      return race(where, reader, "read", now, "writes", frame);
  cell.writer = now;
}

static Access access_now(Memory memory, void* frame) {
  const Passed& passed = current->passed;
  return Access{launch.serial, (em_u32)(current - fibres), passed.threadgroup[memory], passed.simdgroup[memory],
                (em_u32)((char*)((void**)frame)[1] - launch.object)};
}

static void refine(em_u32 wanted) {
  em_u64 count = (launch.request->threadgroup_bytes + (1u << log_grain) - 1) >> log_grain;
  while (log_grain > wanted) {
    // Backwards, in place: each cell becomes two alike.
    for (em_u64 i = count; i-- > 0;) threadgroup_cells[2 * i + 1] = threadgroup_cells[2 * i] = threadgroup_cells[i];
    count *= 2;
    log_grain--;
  }
}

// Past an array: which is the nearest?
static void stray(long long offset, em_u32 bytes, bool write, void* frame) {
  const em_span* nearest = nullptr;
  long long least = 0;
  for (em_u32 i = 0; i < launch.request->span_count; i++) {
    const em_span& span = launch.request->spans[i];
    long long after = offset + bytes - (span.offset + span.bytes), before = span.offset - offset;
    long long distance = after > before ? after : before;
    if (!nearest || distance < least) nearest = &span, least = distance;
  }
  if (!nearest) return fail("bounds", frame, "%s leaves its memory {0}", this_thread());
  long long from = offset - nearest->offset;
  long long index = from >= 0 ? from / bytes : -((-from + bytes - 1) / bytes);
  fail("bounds", frame, "%s %s index %lld of %s {0}, threadgroup memory of %u bytes", this_thread(),
       write ? "writes" : "reads", index, nearest->name, nearest->bytes);
}

void access_threadgroup(long long offset, em_u32 bytes, bool write, void* frame) {
  em_u64 size = launch.request->threadgroup_bytes;
  if (offset < 0 || (em_u64)offset + bytes > size || !array_at[offset] ||
      array_at[offset] != array_at[offset + bytes - 1])
    return stray(offset, bytes, write, frame);
  em_u64 at = (em_u64)offset, both = at | bytes;
  if (both & ((1u << log_grain) - 1)) refine(both & 1 ? 0 : 1);
  Access now = access_now(THREADGROUP, frame);
  for (em_u64 i = at >> log_grain; i < (at + bytes) >> log_grain; i++)
    touch(threadgroup_cells[i], now, launch.serial, write, {nullptr, at, bytes}, frame);
}

void access_output(const Region* region, em_u64 offset, em_u32 bytes, bool write, void* frame) {
  Access now = access_now(DEVICE, frame);
  em_u32 log = region->log_element;
  for (em_u64 i = offset >> log; i <= (offset + bytes - 1) >> log; i++)
    touch(cells[region->first_cell + i], now, launch.first_serial, write, {region, i << log, bytes}, frame);
}

void check_covered() {
  for (em_u32 i = 0; i < region_count; i++) {
    const Region& region = regions[i];
    if (region.buffer->role != EM_OUTPUT) continue;
    em_u64 count = region.bytes >> region.log_element, missing = 0, first = 0;
    for (em_u64 j = 0; j < count; j++) {
      if (cells[region.first_cell + j].writer.serial >= launch.first_serial) continue;
      if (!missing++) first = j;
    }
    if (missing) {
      fail("uncovered", nullptr, "nobody writes index %llu of %s; %llu of its %llu elements are left unwritten", first,
           region.buffer->name, missing, count);
      return;
    }
  }
}

}  // namespace em
