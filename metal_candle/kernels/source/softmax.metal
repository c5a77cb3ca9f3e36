// out = softmax(scale · x + mask) over the last dim, or its logarithm.
//
// Threadgroups are (threads of a row, rows): a short row belongs to a simdgroup, and no barrier is met; a longer one to
// a threadgroup, which meets one. A thread takes four neighbours at a time, and holds CHUNKS times that. A row of more
// is read part by part, with the maximum and the sum corrected on the way, then back from the last part, which is still
// held, to the first.
//
// MASK: 0 none, 1 added, 2 true where x is seen, 3 causal. The mask, of type M, has its own shape and strides, x then
// too; otherwise x is in order.
threadgroup float tops[32];
threadgroup float sums[32];

const uint lane = thread_index_in_simdgroup;
const uint threads = threads_per_threadgroup.x;
const uint mine = thread_position_in_threadgroup.x;
const uint groups = threads / 32;
const uint group = mine / 32;
const uint row = threadgroup_position_in_grid.x * threads_per_threadgroup.y + thread_position_in_threadgroup.y;

const int dims = x_ndim;
const uint whole = x_shape[dims - 1];
uint rows = 1;
for (int d = 0; d < dims - 1; ++d) {
  rows *= x_shape[d];
}
// The last threadgroup may have fewer rows than places for them. Its other simdgroups go along, without elements.
const uint width = row < rows ? whole : 0;
uint visible = width;
if (MASK == 3) {
  // Of t rows the last sees all of the row. What is hidden is not read, but for the last neighbours of what is not.
  const int t = x_shape[dims < 2 ? 0 : dims - 2];
  const int seen = int(row % uint(t)) + 1 + int(whole) - t;
  visible = seen < 0 ? 0 : metal::min(uint(seen), width);
}

// Where the row begins, and how far apart its elements are. Along the mask's dims of 1 one element serves all.
const size_t begin = row < rows ? size_t(row) * whole : 0;
int64_t x_begin = begin;
int64_t x_step = 1;
int64_t mask_begin = 0;
int64_t mask_step = 0;
if (MASK == 1 || MASK == 2) {
  const int missing = dims - mask_ndim;
  x_begin = 0;
  x_step = x_strides[dims - 1];
  mask_step = mask_shape[mask_ndim - 1] == 1 ? 0 : int64_t(mask_strides[mask_ndim - 1]);
  uint rest = row < rows ? row : 0;
  for (int d = dims - 2; d >= 0; --d) {
    // Divisions cost as much as a short row does: what is left for the first dim is its index.
    const uint before = d > 0 ? rest / uint(x_shape[d]) : 0;
    const int64_t at = rest - before * uint(x_shape[d]);
    rest = before;
    x_begin += at * int64_t(x_strides[d]);
    if (d >= missing && mask_shape[d - missing] != 1) {
      mask_begin += at * int64_t(mask_strides[d - missing]);
    }
  }
}
auto row_x = x + x_begin;
auto row_mask = mask + mask_begin;
auto row_out = out + begin;

// A number, not -inf, so that of an element of -inf the difference is -inf, which counts for nothing, and not NaN. A
// row without any other element has a sum of 0, hence is NaN; so is one with inf or NaN.
float top = -FLT_MAX;
float sum = 0;
float factor = 0;
const float by = scale[0];
const uint step = 4 * threads;
const uint part = CHUNKS * step;
const uint read = metal::min((visible + 3) / 4 * 4, width);
uint start = 0;
bool reading = true;
while (true) {
  const uint first = start + 4 * mine;
  float values[4 * CHUNKS];
  if (x_step == 1) {
    mc_load_rows<T, CHUNKS, false, false>(row_x, row_x, row_x, first, step, read, values, values, values);
  } else {
    _Pragma("unroll")
    for (int i = 0; i < 4 * CHUNKS; ++i) {
      const uint column = first + i / 4 * step + i % 4;
      values[i] = column < read ? float(row_x[int64_t(column) * x_step]) : 0.0f;
    }
  }
  if (MASK == 1 || MASK == 2) {
    float masks[4 * CHUNKS];
    if (mask_step == 1) {
      mc_load_rows<M, CHUNKS, false, false>(row_mask, row_mask, row_mask, first, step, read, masks, masks, masks);
    } else {
      _Pragma("unroll")
      for (int i = 0; i < 4 * CHUNKS; ++i) {
        const uint column = first + i / 4 * step + i % 4;
        masks[i] = column < read ? float(row_mask[int64_t(column) * mask_step]) : 0.0f;
      }
    }
    _Pragma("unroll")
    for (int i = 0; i < 4 * CHUNKS; ++i) {
      const float scaled = values[i] * by;
      values[i] = MASK == 1 ? scaled + masks[i] : (masks[i] != 0 ? scaled : -INFINITY);
    }
  } else {
    _Pragma("unroll")
    for (int i = 0; i < 4 * CHUNKS; ++i) {
      values[i] *= by;
    }
  }
  _Pragma("unroll")
  for (int i = 0; i < 4 * CHUNKS; ++i) {
    values[i] = first + i / 4 * step + i % 4 < visible ? values[i] : -INFINITY;
  }

  if (reading) {
    float highest = top;
    _Pragma("unroll")
    for (int i = 0; i < 4 * CHUNKS; ++i) {
      highest = metal::fmax(highest, values[i]);  // NaN is no maximum: it comes through the sum
    }
    sum *= metal::exp(top - highest);
    top = highest;
  }
  // Of halves the rounding exceeds what the faster function loses.
  if (LOG) {
    if (reading) {
      _Pragma("unroll")
      for (int i = 0; i < 4 * CHUNKS; ++i) {
        sum += sizeof(T) == 2 ? metal::fast::exp(values[i] - top) : metal::exp(values[i] - top);
      }
    }
  } else {
    _Pragma("unroll")
    for (int i = 0; i < 4 * CHUNKS; ++i) {
      values[i] = sizeof(T) == 2 ? metal::fast::exp(values[i] - top) : metal::exp(values[i] - top);
    }
    if (reading) {
      _Pragma("unroll")
      for (int i = 0; i < 4 * CHUNKS; ++i) {
        sum += values[i];
      }
    }
  }

  if (reading && whole - start > part) {
    start += part;
    continue;
  }
  if (reading) {
    reading = false;
    // Maximum and sum of the row from those of its threads, in one exchange.
    float highest = simd_max(top);
    float total = simd_sum(sum * metal::exp(top - highest));
    if (groups > 1) {
      if (lane == 0) {
        tops[group] = highest;
        sums[group] = total;
      }
      threadgroup_barrier(mem_flags::mem_threadgroup);
      const float of_group = lane < groups ? tops[lane] : -FLT_MAX;
      highest = simd_max(of_group);
      total = simd_sum(lane < groups ? sums[lane] * metal::exp(of_group - highest) : 0.0f);
    }
    factor = LOG ? metal::log(total) : metal::exp(top - highest) / total;
    top = LOG ? highest : top;  // the powers were taken with the thread's own maximum, and still are
  }
  _Pragma("unroll")
  for (int i = 0; i < 4 * CHUNKS; ++i) {
    values[i] = LOG ? values[i] - top - factor : values[i] * factor;
  }
  _Pragma("unroll")
  for (int i = 0; i < CHUNKS; ++i) {
    mc_store4<T>(row_out, first + i * step, width, values + 4 * i);
  }
  if (start == 0) {
    break;
  }
  start -= part;
}
