// The gradient of cross_entropy: (softmax(x) - (1 - e) onehot(target) - e / n) · cotangent, x (rows, n). The logits are
// read once and the gradient is written once; `seen` is each row's maximum and sum, as the loss kept them.
//
// numbers: e, and 1 for the loss or -1 for the log-probability. Rows are distributed as there.
constexpr int CHUNKS = sizeof(T) == 2 && !NARROW ? 4 : 2;

const uint rows = x_shape[0];
const uint n = x_shape[1];
const uint row = NARROW ? threadgroup_position_in_grid.x * simdgroups_per_threadgroup + simdgroup_index_in_threadgroup
                        : threadgroup_position_in_grid.x;
const uint threads = NARROW ? 32 : threads_per_threadgroup.x;
const uint index = NARROW ? thread_index_in_simdgroup : thread_position_in_threadgroup.x;
const uint step = 4 * threads;

if (row < rows) {
  auto line = x + size_t(row) * n;
  auto to = gradient + size_t(row) * n;
  const float smoothing = numbers[0];
  const int64_t target = int64_t(targets[row]);
  // An id outside the row has no gradient, whatever the logits are: 0 times what is no number would be none.
  const bool known = target >= 0 && target < int64_t(n);
  const float upstream = known ? float(cotangent[row]) * numbers[1] : 0.0f;
  const float top = seen[2 * row];
  const float sum = seen[2 * row + 1];
  // The softmax of a row that holds +inf, of which the sum is infinite, is NaN.
  const float factor = sum > FLT_MAX ? NAN : upstream / sum;
  const float even = upstream * (smoothing / float(n));
  const float of_target = upstream * (1.0f - smoothing);
  const uint class_of_row = uint(target);
  for (uint first = 4 * index; first < n; first += CHUNKS * step) {
    float values[4 * CHUNKS];
    mc_load_rows<T, CHUNKS, false, false>(line, line, line, first, step, n, values, values, values);
    _Pragma("unroll")
    for (int i = 0; i < 4 * CHUNKS; ++i) {
      // Of halves the rounding exceeds what the faster function loses.
      const float power = sizeof(T) == 2 ? metal::fast::exp(values[i] - top) : metal::exp(values[i] - top);
      values[i] = known ? power * factor - even : 0.0f;
    }
    _Pragma("unroll")
    for (int chunk = 0; chunk < CHUNKS; ++chunk) {
      // Wraps around where the target lies before these four.
      const uint place = class_of_row - (first + chunk * step);
      if (place < 4) {
        _Pragma("unroll")
        for (uint i = 0; i < 4; ++i) {
          values[4 * chunk + i] -= place == i ? of_target : 0.0f;
        }
      }
      mc_store4<T>(to, first + chunk * step, n, values + 4 * chunk);
    }
  }
}
