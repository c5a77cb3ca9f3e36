// The gradient of cross_entropy: (softmax(x) - (1 - e) onehot(target) - e / n) · cotangent, x (rows, n). The logits are
// read once and the gradient is written once; `seen` is each row's maximum and sum, as the loss kept them.
//
// numbers: e, and 1 for the loss or -1 for the log-probability. Rows are distributed as there.
constexpr uint READS = 8;

const uint rows = x_shape[0];
const uint n = x_shape[1];
const uint row = NARROW ? threadgroup_position_in_grid.x * simdgroups_per_threadgroup + simdgroup_index_in_threadgroup
                        : threadgroup_position_in_grid.x;
const uint threads = NARROW ? 32 : threads_per_threadgroup.x;
const uint index = NARROW ? thread_index_in_simdgroup : thread_position_in_threadgroup.x;

if (row < rows) {
  auto line = x + size_t(row) * n;
  auto to = gradient + size_t(row) * n;
  const float smoothing = numbers[0];
  const int64_t target = int64_t(targets[row]);
  // An id outside the row has no gradient: its loss is NaN whatever the logits are.
  const float upstream = target >= 0 && target < int64_t(n) ? float(cotangent[row]) * numbers[1] : 0.0f;
  const float top = seen[2 * row];
  const float factor = upstream / seen[2 * row + 1];
  const float even = upstream * (smoothing / float(n));
  const float of_target = upstream * (1.0f - smoothing);
  const uint class_of_row = uint(target);
  for (uint start = index; start < n; start += threads * READS) {
    float value[READS];
    _Pragma("unroll")
    for (uint i = 0; i < READS; i++) {
      const uint at = start + i * threads;
      value[i] = at < n ? float(line[at]) : 0.0f;
    }
    _Pragma("unroll")
    for (uint i = 0; i < READS; i++) {
      const uint at = start + i * threads;
      if (at < n) {
        const float probability = metal::exp(value[i] - top) * factor - even;
        to[at] = T(at == class_of_row ? probability - of_target : probability);
      }
    }
  }
}
