// The buffers of a launch, in memory of their own with unmapped pages around.
#pragma once

#include "interface.h"

namespace em {

constexpr em_u32 MAX_BUFFERS = 128;

struct Region {
  const em_buffer* buffer;
  char* begin;     // the lowest element
  em_u64 bytes;
  char* mapped;    // what is mapped around it
  em_u64 mapped_bytes;
  em_u64 first_cell;  // of its shadow, where it is an output
  em_u32 log_element;
  em_u32 log_grain;   // bytes to a cell, as a power of two: an element's, fewer from a smaller access on
};

extern Region regions[MAX_BUFFERS];
extern em_u32 region_count;

bool map_regions();                 // false after a fault
void copy_out_and_unmap();
void check_slack();                 // in fast mode, where an overrun within a page hits no guard
Region* region_of(const void* address);   // that holds it, or null
Region* region_near(const void* address);  // that holds it or lies nearest, within its gap; or null

const char* index_of(const Region* region, const void* address);  // "index 301 of x"
const char* size_of(const Region* region);                        // "x has 300 elements"

// "index 4294967295 of x (an unsigned index below 0)", and `found` the region, for an address that such an index leads
// to: 2^32 elements, or as many accesses of `bytes`, after the place below the buffer that was meant. Else null.
const char* below_zero(const void* address, em_u32 bytes, const Region** found);

}  // namespace em
