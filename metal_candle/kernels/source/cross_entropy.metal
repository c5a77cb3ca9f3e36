// Cross entropy of rows of logits x (rows, n) with one target each: log(sum(exp(x - top))) + (top - x[target]), top the
// row's maximum, from one reading of the logits. Of a label smoothing e the target's logit is mixed with e of the mean.
// What the gradient needs is kept: the maximum and the sum.
//
// numbers: e, and 1 for the loss or -1 for the log-probability, its negative.
// A row is a threadgroup's or, NARROW, a simdgroup's, so that short rows need neither barriers nor idle threads.
threadgroup float part[32];
constexpr uint READS = 8;

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
auto line = x + size_t(row) * n;

// A running maximum and the sum to it. Not from -inf, since -inf - -inf is NaN: a row of -inf gets the sum 0.
// Neighbouring threads read neighbouring logits; READS reads of a thread are under way together.
float top = -FLT_MAX;
float sum = 0.0f;
float all = 0.0f;
for (uint start = index; start < n; start += threads * READS) {
  float value[READS];
  float highest = top;
  _Pragma("unroll")
  for (uint i = 0; i < READS; i++) {
    const uint at = start + i * threads;
    value[i] = at < n ? float(line[at]) : -INFINITY;
    highest = value[i] > highest ? value[i] : highest;
    all += at < n ? value[i] : 0.0f;
  }
  if (highest > top) {
    sum *= metal::exp(top - highest);
    top = highest;
  }
  _Pragma("unroll")
  for (uint i = 0; i < READS; i++) {
    // The maximum itself may be infinite: not inf - inf. NaN equals nothing and gets through.
    sum += value[i] == top ? 1.0f : metal::exp(value[i] - top);
  }
}
const float highest = mc_max(top, part, lane, group, groups);
sum = mc_sum(top == highest ? sum : sum * metal::exp(top - highest), part, lane, group, groups);
const float smoothing = numbers[0];
if (smoothing != 0.0f) {
  all = mc_sum(all, part, lane, group, groups);
}

if (index == 0 && wanted < rows) {
  // With 64 bits, to which any id is widened. One outside the row is the caller's mistake: it gives NaN, reads nothing.
  const int64_t target = int64_t(targets[row]);
  float picked = target >= 0 && target < int64_t(n) ? float(line[target]) : NAN;
  if (smoothing != 0.0f) {
    picked = (1.0f - smoothing) * picked + smoothing * (all / float(n));
  }
  const float loss = metal::log(sum) + (highest - picked);
  // log_softmax of a row that holds +inf is NaN throughout, the loss of another class +inf.
  result[row] = T(numbers[1] < 0.0f ? (highest > FLT_MAX ? NAN : -loss) : loss);
  seen[2 * row] = highest;
  seen[2 * row + 1] = sum;
}
