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
    count += regions[i].bytes;  // room for the finest grain; what is not touched takes no memory
  }
  if (count <= room) return true;  // serials tell old cells from new ones
  if (cells) munmap(cells, room * sizeof(Cell));
  void* got = mmap(nullptr, count * sizeof(Cell), PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  cells = got == MAP_FAILED ? nullptr : (Cell*)got;
  room = cells ? count : 0;
  if (!cells) fail("launch", nullptr, "no room for the shadow of %llu bytes of outputs", count);
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

// "index 5 of part". Where the access is no element's: "byte 20 of part (in element 2 of 64)".
static const char* name_of(const Where& where) {
  static char text[160];
  if (where.region) return index_of(where.region, where.region->begin + where.offset);
  const em_span& span = launch.request->spans[array_at[where.offset] - 1];
  em_u64 offset = where.offset - span.offset;
  em_u32 element = span.element;
  if (element == where.bytes || (!element && offset % where.bytes == 0))
    snprintf(text, sizeof text, "index %llu of %s", offset / where.bytes, span.name);
  else if (!element)
    snprintf(text, sizeof text, "byte %llu of %s", offset, span.name);
  else
    snprintf(text, sizeof text, "byte %llu of %s (in element %llu of %u)", offset, span.name, offset / element,
             span.bytes / element);
  return text;
}

static void race(const Where& where, const Access& before, const char* did, const Access& now, const char* does,
                 void* frame) {
  set_place(1, before.place);
  fail("race", frame, "%s %s %s {0}, which %s %s {1}, and no barrier for that memory orders the two",
       thread_name(now.thread, now.serial), does, name_of(where), thread_name(before.thread, before.serial), did);
}

// `first_serial`: of the threadgroups whose accesses count for this cell. `strict`: to read it unwritten is a fault.
static inline void touch(Cell& cell, const Access& now, em_u32 first_serial, bool write, bool strict,
                         const Where& where, void* frame) {
  bool written = cell.writer.serial >= first_serial;
  if (written && !ordered(cell.writer, now))
    return race(where, cell.writer, "wrote", now, write ? "writes" : "reads", frame);
  if (!write) {
    if (!written && strict)
      keep_pending(frame, "%s reads %s {0}, which nobody had written", thread_name(now.thread, now.serial),
                   name_of(where));
    return add_reader(cell.readers, now, first_serial);
  }
  for (const Access& reader : cell.readers)
    if (reader.serial >= first_serial && !ordered(reader, now))
      return race(where, reader, "read", now, "writes", frame);
  cell.writer = now;
}

// Of a structure with padding, that is: bytes that nobody wrote are no fault beside others that somebody did.
static bool in_part(const Cell* first, const Cell* end, em_u32 first_serial) {
  for (const Cell* cell = first; cell < end; cell++)
    if (cell->writer.serial >= first_serial) return true;
  return false;
}

static Access access_now(Memory memory, void* frame) {
  const Passed& passed = current->passed;
  return Access{launch.serial, (em_u32)(current - fibres), passed.threadgroup[memory], passed.simdgroup[memory],
                (em_u32)((char*)((void**)frame)[1] - launch.object)};
}

// Makes cells small enough for an access to be of whole ones.
static inline void refine(Cell* first, em_u64 bytes, em_u32& grain, em_u64 offset, em_u32 of) {
  em_u64 both = offset | of;
  if (!(both & ((1ull << grain) - 1))) return;
  em_u64 count = (bytes + (1ull << grain) - 1) >> grain;
  while (both & ((1ull << grain) - 1)) {
    // Backwards, in place: each cell becomes two alike.
    for (em_u64 i = count; i-- > 0;) first[2 * i + 1] = first[2 * i] = first[i];
    count *= 2;
    grain--;
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
  em_u32 element = nearest->element ? nearest->element : bytes;
  long long index = from >= 0 ? from / element : -((-from + element - 1) / element);
  fail("bounds", frame, "%s %s index %lld of %s {0}, threadgroup memory; %s has %u %s", this_thread(),
       write ? "writes" : "reads", index, nearest->name, nearest->name,
       nearest->element ? nearest->bytes / element : nearest->bytes, nearest->element ? "elements" : "bytes");
}

static void touch_all(Cell* first, em_u32 grain, em_u32 first_serial, const Access& now, bool write, const Where& where, void* frame) {
  Cell* end = first + ((where.offset + where.bytes) >> grain);
  Cell* begin = first + (where.offset >> grain);
  bool strict = !launch.request->padded || !in_part(begin, end, first_serial);
  for (Cell* cell = begin; cell < end; cell++)
    touch(*cell, now, first_serial, write, strict, {where.region, (em_u64)(cell - first) << grain, where.bytes}, frame);
}

void access_threadgroup(long long offset, em_u32 bytes, bool write, void* frame) {
  em_u64 size = launch.request->threadgroup_bytes;
  if (offset < 0 || (em_u64)offset + bytes > size || !array_at[offset] ||
      array_at[offset] != array_at[offset + bytes - 1])
    return stray(offset, bytes, write, frame);
  refine(threadgroup_cells, size, log_grain, (em_u64)offset, bytes);
  touch_all(threadgroup_cells, log_grain, launch.serial, access_now(THREADGROUP, frame), write,
            {nullptr, (em_u64)offset, bytes}, frame);
}

void access_output(Region* region, em_u64 offset, em_u32 bytes, bool write, void* frame) {
  Cell* first = cells + region->first_cell;
  refine(first, region->bytes, region->log_grain, offset, bytes);
  touch_all(first, region->log_grain, launch.first_serial, access_now(DEVICE, frame), write,
            {region, offset, bytes}, frame);
}

void check_covered() {
  for (em_u32 i = 0; i < region_count; i++) {
    const Region& region = regions[i];
    if (region.buffer->role != EM_OUTPUT) continue;
    const Cell* cell = cells + region.first_cell;
    em_u64 count = region.bytes >> region.log_element, parts = 1ull << (region.log_element - region.log_grain);
    em_u64 missing = 0, first = 0;
    bool in_part = false;
    for (em_u64 j = 0; j < count; j++) {
      em_u64 written = 0;
      for (em_u64 part = 0; part < parts; part++) written += cell++->writer.serial >= launch.first_serial;
      if (written == parts) continue;
      if (!missing++) first = j, in_part = written > 0;
    }
    if (missing) {
      fail("uncovered", nullptr, "nobody writes %sindex %llu of %s; %llu of its %llu elements are left unwritten%s",
           in_part ? "the whole of " : "", first, region.buffer->name, missing, count,
           parts > 1 ? " in whole or in part" : "");
      return;
    }
  }
}

}  // namespace em
