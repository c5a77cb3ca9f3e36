// normed = v / sqrt(mean(v²) + eps) · weight by rows, where v is x, or total = x + residual, which is kept too.
//
// A row belongs to a simdgroup, several of which then make a threadgroup, or to a whole threadgroup: the threads of one
// x axis. A thread takes four neighbours at a time. CHUNKS times that stays in registers, so that a row is read once;
// of a wider one the rest is read again. All loads of a row come before the first store: the compiler cannot know that
// they do not overlap, and would wait for one after the other.
threadgroup float part[32];

const uint width = x_shape[x_ndim - 1];
uint rows = 1;
for (int dim = 0; dim + 1 < x_ndim; ++dim) {
  rows *= x_shape[dim];
}
const uint first = 4 * thread_position_in_threadgroup.x;
const uint step = 4 * threads_per_threadgroup.x;
const uint row = threadgroup_position_in_grid.x * threads_per_threadgroup.y + thread_position_in_threadgroup.y;
// The last threadgroup may have no row left for all of its simdgroups.
const uint end = row < rows ? width : 0;
const size_t offset = row < rows ? size_t(row) * width : 0;
auto x_row = x + offset;
auto residual_row = residual + (RESIDUAL ? offset : 0);
auto total_row = total + (RESIDUAL ? offset : 0);
auto normed_row = normed + offset;

float held[4 * CHUNKS];
float beside[4 * CHUNKS];  // the residual, then the weight: both at once would halve the threadgroups a core runs
if (RESIDUAL) {
  mc_load_rows<T, CHUNKS, true, false>(x_row, residual_row, x_row, first, step, end, held, beside, beside);
  _Pragma("unroll")
  for (uint i = 0; i < 4 * CHUNKS; ++i) {
    held[i] = float(T(held[i] + beside[i]));
  }
} else {
  mc_load_rows<T, CHUNKS, WEIGHT, false>(x_row, weight, x_row, first, step, end, held, beside, beside);
}
float squares = 0.0f;
_Pragma("unroll")
for (uint i = 0; i < 4 * CHUNKS; ++i) {
  squares += held[i] * held[i];
}
if (RESIDUAL) {
  _Pragma("unroll")
  for (uint chunk = 0; chunk < CHUNKS; ++chunk) {
    mc_store4<T>(total_row, first + chunk * step, end, held + 4 * chunk);
  }
}
for (uint at = first + CHUNKS * step; at < end; at += step) {
  float values[4];
  float others[4];
  mc_load_rows<T, 1, RESIDUAL, false>(x_row, residual_row, x_row, at, 0, end, values, others, others);
  if (RESIDUAL) {
    for (uint i = 0; i < 4; ++i) {
      values[i] = float(T(values[i] + others[i]));
    }
    mc_store4<T>(total_row, at, end, values);
  }
  for (uint i = 0; i < 4; ++i) {
    squares += values[i] * values[i];
  }
}

squares = mc_sum(squares, part, thread_index_in_simdgroup, first / 128, step / 128);
const float inverse = metal::precise::rsqrt(squares / float(width) + eps[0]);
if (RESIDUAL && WEIGHT) {
  mc_load_rows<T, CHUNKS, false, false>(weight, weight, weight, first, step, end, beside, beside, beside);
}

// Rounded before the weight, as MLX and candle do.
_Pragma("unroll")
for (uint i = 0; i < 4 * CHUNKS; ++i) {
  const float value = float(T(held[i] * inverse));
  held[i] = WEIGHT ? value * beside[i] : value;
}
_Pragma("unroll")
for (uint chunk = 0; chunk < CHUNKS; ++chunk) {
  mc_store4<T>(normed_row, first + chunk * step, end, held + 4 * chunk);
}
for (uint at = first + CHUNKS * step; at < end; at += step) {
  float values[4];
  float others[4];
  if (RESIDUAL) {
    // What this thread itself wrote.
    mc_load_rows<T, 1, WEIGHT, false>(total_row, weight, weight, at, 0, end, values, others, others);
  } else {
    mc_load_rows<T, 1, WEIGHT, false>(x_row, weight, weight, at, 0, end, values, others, others);
  }
  for (uint i = 0; i < 4; ++i) {
    const float value = float(T(values[i] * inverse));
    values[i] = WEIGHT ? value * others[i] : value;
  }
  mc_store4<T>(normed_row, at, end, values);
}
