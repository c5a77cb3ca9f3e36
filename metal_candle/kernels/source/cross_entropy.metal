// Cross entropy of rows of logits x (rows, n) with one target each: log(sum(exp(x - top))) + (top - x[target]), top the
// row's maximum, from one reading of the logits. Of a label smoothing e the target's logit is mixed with e of the mean.
// What the gradient needs is kept: the maximum and the sum.
//
// numbers: e, and 1 for the loss or -1 for the log-probability, its negative. The result is of type R.
// A row is a threadgroup's or, NARROW, a simdgroup's, so that short rows need neither barriers nor idle threads.
threadgroup float part[32];
// A thread takes so many times four neighbours at a time, of halves more: as many bytes under way.
constexpr int CHUNKS = sizeof(T) == 2 && !NARROW ? 4 : 2;

const uint lane = thread_index_in_simdgroup;
const uint group = simdgroup_index_in_threadgroup;
const uint groups = NARROW ? 1 : simdgroups_per_threadgroup;
const uint rows = x_shape[0];
const uint n = x_shape[1];
const uint wanted = NARROW ? threadgroup_position_in_grid.x * simdgroups_per_threadgroup + group
                           : threadgroup_position_in_grid.x;
// The last threadgroup may hold more rows than are left: those take part in what all threads do, and write nothing.
const uint row = wanted < rows ? wanted : rows - 1;
const uint threads = NARROW ? 32 : threads_per_threadgroup.x;
const uint index = NARROW ? lane : thread_position_in_threadgroup.x;
const uint step = 4 * threads;
auto line = x + size_t(row) * n;

// The mean is taken of differences to one of the row's logits: where all are large, it would lose what they differ by.
// Only of one so large that a difference might overflow it is taken of the logits themselves.
const float smoothing = numbers[0];
float pivot = smoothing != 0.0f ? float(line[0]) : 0.0f;
pivot = metal::fabs(pivot) < 1e30f ? pivot : 0.0f;

// A running maximum and the sum to it, both finite numbers where the maximum is not: of -inf - -inf NaN would come, so
// that a row of -inf gets the sum 0; of inf - inf too, so that a row that holds inf gets an infinite sum.
float top = -FLT_MAX;
float sum = 0.0f;
float all = 0.0f;
for (uint start = 0; start < n; start += CHUNKS * step) {
  const uint first = start + 4 * index;
  float values[4 * CHUNKS];
  mc_load_rows<T, CHUNKS, false, false>(line, line, line, first, step, n, values, values, values);
  if (smoothing != 0.0f) {
    _Pragma("unroll")
    for (int i = 0; i < 4 * CHUNKS; ++i) {
      all += first + i / 4 * step + i % 4 < n ? values[i] - pivot : 0.0f;
    }
  }
  if (n - start < CHUNKS * step) {
    _Pragma("unroll")
    for (int i = 0; i < 4 * CHUNKS; ++i) {
      values[i] = first + i / 4 * step + i % 4 < n ? values[i] : -INFINITY;
    }
  }
  float highest = top;
  _Pragma("unroll")
  for (int i = 0; i < 4 * CHUNKS; ++i) {
    highest = metal::fmax(highest, values[i]);  // NaN is no maximum: it comes through the sum
  }
  highest = metal::fmin(highest, FLT_MAX);
  sum *= metal::exp(top - highest);
  top = highest;
  // Of halves the rounding exceeds what the faster function loses.
  _Pragma("unroll")
  for (int i = 0; i < 4 * CHUNKS; ++i) {
    sum += sizeof(T) == 2 ? metal::fast::exp(values[i] - top) : metal::exp(values[i] - top);
  }
}
const float highest = mc_max(top, part, lane, group, groups);
sum = mc_sum(sum * metal::exp(top - highest), part, lane, group, groups);
if (smoothing != 0.0f) {
  all = mc_sum(all, part, lane, group, groups);
}

if (index == 0 && wanted < rows) {
  // With 64 bits, to which any id is widened. One outside the row is the caller's mistake: it gives NaN, reads nothing.
  const int64_t target = int64_t(targets[row]);
  float below = highest - (target >= 0 && target < int64_t(n) ? float(line[target]) : NAN);
  if (smoothing != 0.0f) {
    below = (1.0f - smoothing) * below + smoothing * ((highest - pivot) - all / float(n));
  }
  const float loss = metal::log(sum) + below;
  // log_softmax of a row that holds +inf is NaN throughout, the loss of another class +inf.
  result[row] = R(numbers[1] < 0.0f ? (sum > FLT_MAX ? NAN : -loss) : loss);
  seen[2 * row] = highest;
  seen[2 * row + 1] = sum;
}
