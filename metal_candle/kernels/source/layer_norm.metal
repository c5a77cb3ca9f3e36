// normed = (v - mean) / sqrt(variance + eps) · weight + bias by rows, where v is x, or total = x + residual, which is
// kept too. The mean comes first, then the squares of the differences: where the mean is large, the mean of the squares
// less the square of the mean has no digit left.
//
// Threads, registers and the order of loads and stores are as in rms_norm.metal.
threadgroup float part[32];

const uint width = x_shape[x_ndim - 1];
uint rows = 1;
for (int dim = 0; dim + 1 < x_ndim; ++dim) {
  rows *= x_shape[dim];
}
const uint first = 4 * thread_position_in_threadgroup.x;
const uint step = 4 * threads_per_threadgroup.x;
const uint row = threadgroup_position_in_grid.x * threads_per_threadgroup.y + thread_position_in_threadgroup.y;
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
float sum = 0.0f;
_Pragma("unroll")
for (uint i = 0; i < 4 * CHUNKS; ++i) {
  sum += held[i];
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
    sum += values[i];
  }
}
const float mean = mc_sum(sum, part, thread_index_in_simdgroup, first / 128, step / 128) / float(width);

float squares = 0.0f;
_Pragma("unroll")
for (uint i = 0; i < 4 * CHUNKS; ++i) {
  // What lies behind the row was read as 0, and is no part of it.
  held[i] = first + i / 4 * step + i % 4 < end ? held[i] - mean : 0.0f;
  squares += held[i] * held[i];
}
for (uint at = first + CHUNKS * step; at < end; at += step) {
  float values[4];
  if (RESIDUAL) {
    // What this thread itself wrote.
    mc_load_rows<T, 1, false, false>(total_row, total_row, total_row, at, 0, end, values, values, values);
  } else {
    mc_load_rows<T, 1, false, false>(x_row, x_row, x_row, at, 0, end, values, values, values);
  }
  for (uint i = 0; i < 4; ++i) {
    const float off = at + i < end ? values[i] - mean : 0.0f;
    squares += off * off;
  }
}
squares = mc_sum(squares, part, thread_index_in_simdgroup, first / 128, step / 128);
const float inverse = metal::precise::rsqrt(squares / float(width) + eps[0]);
if (RESIDUAL && WEIGHT) {
  mc_load_rows<T, CHUNKS, false, false>(weight, weight, weight, first, step, end, beside, beside, beside);
}

_Pragma("unroll")
for (uint i = 0; i < 4 * CHUNKS; ++i) {
  held[i] = WEIGHT ? held[i] * inverse * beside[i] : held[i] * inverse;
}
if (BIAS) {
  mc_load_rows<T, CHUNKS, false, false>(bias, bias, bias, first, step, end, beside, beside, beside);
  _Pragma("unroll")
  for (uint i = 0; i < 4 * CHUNKS; ++i) {
    held[i] += beside[i];
  }
}
_Pragma("unroll")
for (uint chunk = 0; chunk < CHUNKS; ++chunk) {
  mc_store4<T>(normed_row, first + chunk * step, end, held + 4 * chunk);
}
for (uint at = first + CHUNKS * step; at < end; at += step) {
  float values[4];
  float weights[4];
  float biases[4];
  if (RESIDUAL) {
    mc_load_rows<T, 1, WEIGHT, BIAS>(total_row, weight, bias, at, 0, end, values, weights, biases);
  } else {
    mc_load_rows<T, 1, WEIGHT, BIAS>(x_row, weight, bias, at, 0, end, values, weights, biases);
  }
  for (uint i = 0; i < 4; ++i) {
    const float value = (values[i] - mean) * inverse;
    const float weighted = WEIGHT ? value * weights[i] : value;
    values[i] = BIAS ? weighted + biases[i] : weighted;
  }
  mc_store4<T>(normed_row, at, end, values);
}
