// What several bodies call. Portable as they are: see docs/adding_a_kernel.md.

// The sum over a threadgroup, the same in every thread. `part` is threadgroup memory for a float a simdgroup.
template <typename Part>
inline float mc_sum(float value, Part part, uint lane, uint group, uint groups) {
  value = simd_sum(value);
  if (groups > 1) {
    if (lane == 0) {
      part[group] = value;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    value = simd_sum(lane < groups ? part[lane] : 0.0f);
    threadgroup_barrier(mem_flags::mem_threadgroup);  // `part` may be written again
  }
  return value;
}

// The maximum over a threadgroup, likewise. NaN counts as nothing.
template <typename Part>
inline float mc_max(float value, Part part, uint lane, uint group, uint groups) {
  value = simd_max(value);
  if (groups > 1) {
    if (lane == 0) {
      part[group] = value;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    value = simd_max(lane < groups ? part[lane] : -FLT_MAX);
    threadgroup_barrier(mem_flags::mem_threadgroup);  // `part` may be written again
  }
  return value;
}
