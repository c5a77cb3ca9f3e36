// The gradient of softmax or log-softmax over the last dim, from its result y and the gradient g of that:
// scale · y · (g - Σ g·y), of the logarithm g - exp(y) · Σ g.
//
// Rows, threads and parts as in softmax.metal.
threadgroup float sums[32];

const uint lane = thread_index_in_simdgroup;
const uint threads = threads_per_threadgroup.x;
const uint mine = thread_position_in_threadgroup.x;
const uint groups = threads / 32;
const uint group = mine / 32;
const uint row = threadgroup_position_in_grid.x * threads_per_threadgroup.y + thread_position_in_threadgroup.y;

const uint whole = y_shape[1];
const uint width = row < uint(y_shape[0]) ? whole : 0;
const size_t begin = row < uint(y_shape[0]) ? size_t(row) * whole : 0;
auto row_y = y + begin;
auto row_g = g + begin;
auto row_out = out + begin;

float sum = 0;
const float by = scale[0];
const uint step = 4 * threads;
const uint part = CHUNKS * step;
uint start = 0;
bool reading = true;
while (true) {
  const uint first = start + 4 * mine;
  const bool last = !reading || whole - start <= part;
  float upstream[4 * CHUNKS];
  float results[4 * CHUNKS];
  if (!LOG || last) {
    mc_load_rows<T, CHUNKS, true, false>(row_g, row_y, row_y, first, step, width, upstream, results, results);
  } else {
    // The logarithm's sum is over the gradient alone.
    mc_load_rows<T, CHUNKS, false, false>(row_g, row_g, row_g, first, step, width, upstream, upstream, upstream);
  }
  if (reading) {
    _Pragma("unroll")
    for (int i = 0; i < 4 * CHUNKS; ++i) {
      sum += LOG ? upstream[i] : upstream[i] * results[i];
    }
    if (!last) {
      start += part;
      continue;
    }
    reading = false;
    sum = simd_sum(sum);
    if (groups > 1) {
      if (lane == 0) {
        sums[group] = sum;
      }
      threadgroup_barrier(mem_flags::mem_threadgroup);
      sum = simd_sum(lane < groups ? sums[lane] : 0.0f);
    }
  }
  _Pragma("unroll")
  for (int i = 0; i < 4 * CHUNKS; ++i) {
    results[i] = by * (LOG ? upstream[i] - metal::exp(results[i]) * sum : (upstream[i] - sum) * results[i]);
  }
  _Pragma("unroll")
  for (int i = 0; i < CHUNKS; ++i) {
    mc_store4<T>(row_out, first + i * step, width, results + 4 * i);
  }
  if (start == 0) {
    break;
  }
  start -= part;
}
