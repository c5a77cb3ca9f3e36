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

// Rows, of which a thread takes four neighbours at a time: as floats, 0 from `end` on, and rounded to T again. Metal's
// compiler makes one load or store of the four. CUDA's, for which MC_FOURS is defined, does so where it is told that the
// address allows it: a row of odd width, or a part of another array, may begin anywhere.
#ifdef MC_FOURS
template <typename T>
struct alignas(4 * sizeof(T)) mc_four {
  uint words[sizeof(T)];
};
template <typename T, typename Row>
inline bool mc_in_fours(Row row, uint end) {
  return end % 4 == 0 && reinterpret_cast<size_t>(row) % sizeof(mc_four<T>) == 0;
}
template <typename T, typename Row>
inline mc_four<T> mc_load_four(Row at) {
  return *reinterpret_cast<const mc_four<T>*>(at);
}
template <typename T>
inline void mc_widen(const mc_four<T>& four, float* values) {
  for (int i = 0; i < 4; ++i) {
    values[i] = float(reinterpret_cast<const T*>(four.words)[i]);
  }
}
#endif

template <typename T, typename Row>
inline void mc_store4(Row row, uint at, uint end, const thread float* values) {
#ifdef MC_FOURS
  if (mc_in_fours<T>(row, end)) {
    if (at < end) {
      mc_four<T> four;
      for (int i = 0; i < 4; ++i) {
        reinterpret_cast<T*>(four.words)[i] = T(values[i]);
      }
      *reinterpret_cast<mc_four<T>*>(row + at) = four;
    }
    return;
  }
#endif
  if (at + 4 <= end) {
    for (uint i = 0; i < 4; ++i) {
      row[at + i] = T(values[i]);
    }
  } else {
    for (uint i = 0; i < 4; ++i) {
      if (at + i < end) {
        row[at + i] = T(values[i]);
      }
    }
  }
}

// CHUNKS times four neighbours, `step` apart, of a row, at will of a second and a third one. All are on their way before
// one is waited for, which widening it does.
template <typename T, int CHUNKS, bool SECOND, bool THIRD, typename A, typename B, typename C>
inline void mc_load_rows(
    A a, B b, C c, uint first, uint step, uint end, thread float* of_a, thread float* of_b, thread float* of_c) {
#ifdef MC_FOURS
  if (mc_in_fours<T>(a, end) && (!SECOND || mc_in_fours<T>(b, end)) && (!THIRD || mc_in_fours<T>(c, end))) {
    mc_four<T> fours[3][CHUNKS] = {};
    _Pragma("unroll")
    for (int chunk = 0; chunk < CHUNKS; ++chunk) {
      const uint at = first + chunk * step;
      if (at < end) {
        fours[0][chunk] = mc_load_four<T>(a + at);
        if (SECOND) {
          fours[1][chunk] = mc_load_four<T>(b + at);
        }
        if (THIRD) {
          fours[2][chunk] = mc_load_four<T>(c + at);
        }
      }
    }
    _Pragma("unroll")
    for (int chunk = 0; chunk < CHUNKS; ++chunk) {
      mc_widen(fours[0][chunk], of_a + 4 * chunk);
      if (SECOND) {
        mc_widen(fours[1][chunk], of_b + 4 * chunk);
      }
      if (THIRD) {
        mc_widen(fours[2][chunk], of_c + 4 * chunk);
      }
    }
    return;
  }
#endif
  T narrow[3][4 * CHUNKS];
  _Pragma("unroll")
  for (int chunk = 0; chunk < CHUNKS; ++chunk) {
    const uint at = first + chunk * step;
    if (at + 4 <= end) {
      for (int i = 0; i < 4; ++i) {
        narrow[0][4 * chunk + i] = T(a[at + i]);
        if (SECOND) {
          narrow[1][4 * chunk + i] = T(b[at + i]);
        }
        if (THIRD) {
          narrow[2][4 * chunk + i] = T(c[at + i]);
        }
      }
    } else {
      for (int i = 0; i < 4; ++i) {
        const bool inside = at + i < end;
        narrow[0][4 * chunk + i] = inside ? T(a[at + i]) : T(0.0f);
        if (SECOND) {
          narrow[1][4 * chunk + i] = inside ? T(b[at + i]) : T(0.0f);
        }
        if (THIRD) {
          narrow[2][4 * chunk + i] = inside ? T(c[at + i]) : T(0.0f);
        }
      }
    }
  }
  _Pragma("unroll")
  for (int i = 0; i < 4 * CHUNKS; ++i) {
    of_a[i] = float(narrow[0][i]);
    if (SECOND) {
      of_b[i] = float(narrow[1][i]);
    }
    if (THIRD) {
      of_c[i] = float(narrow[2][i]);
    }
  }
}

// sums (RANKS, TOKENS) += the elements of `a` at `a_at` of each rank by those of x at `x_at` of each row.
template <int RANKS, int TOKENS, typename X, typename A>
inline void mc_add_products(
    X x, A a, const thread int64_t* of_row, const thread int64_t* of_rank, int64_t x_at, int64_t a_at,
    thread float* sums) {
  float values[TOKENS];
  _Pragma("unroll") for (int t = 0; t < TOKENS; t++) {
    values[t] = float(x[of_row[t] + x_at]);
  }
  _Pragma("unroll") for (int j = 0; j < RANKS; j++) {
    const float factor = float(a[of_rank[j] + a_at]);
    _Pragma("unroll") for (int t = 0; t < TOKENS; t++) {
      sums[j * TOKENS + t] += values[t] * factor;
    }
  }
}
