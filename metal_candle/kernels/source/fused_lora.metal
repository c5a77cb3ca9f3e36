// y = base + scale * (x * a) * b for few rows of x, in two steps with one launch. ADD is false where there is no base,
// whose place any matrix takes then. Shapes: x (rows, K), a (K, R), b (R, N), base and y (rows, N); all but y have
// strides, so that a transposed factor or a repeated base is read where it is.
//
// Every threadgroup computes all of h = x * a, which costs it K * R reads of a, and then some columns of y: threadgroups
// cannot wait for each other, and a second launch takes longer. Both h and the sums are float: halves are rounded once.

// Ranks of a thread at a time: with more of them x is read less often, and a row of `a` with larger gaps.
constexpr int RANKS = TOKENS <= 2 ? 2 : 4;
constexpr int SUMS = RANKS * TOKENS;
constexpr int SPREAD = 64;                    // ranks of a simdgroup at a time, at most
constexpr int GROUPS = TOKENS <= 2 ? 16 : 8;  // simdgroups, at most
// Partial sums of h by (split, rank, token). Splits times ranks are at most what the simdgroups cover at a time, or the
// largest rank, 256.
threadgroup float part[TOKENS * GROUPS * SPREAD];

const int rows = x_shape[0];
const int K = x_shape[1];
const int R = b_shape[0];
const int N = b_shape[1];
const int group = int(simdgroup_index_in_threadgroup);
const int groups = int(simdgroups_per_threadgroup);
const int lane = int(thread_index_in_simdgroup);
const int row = int(threadgroup_position_in_grid.y) * TOKENS;

// Step 1. Neighbouring lanes read neighbours: along K where those are closest in memory, else along R first, as far as
// the rank goes. Simdgroups share out the ranks; what is left of them splits K.
int rank_lanes = 1;
if (a_strides[1] < a_strides[0]) {
  while (rank_lanes * RANKS < SPREAD && rank_lanes * RANKS < R) {
    rank_lanes *= 2;
  }
}
const int k_lanes = 32 / rank_lanes;
const int spread = rank_lanes * RANKS;
const int blocks = (R + spread - 1) / spread;
const int beside = blocks < groups ? blocks : groups;
const int splits = groups / beside;
const int split = group / beside;

if (split < splits) {
  const int64_t row_step = x_strides[0];
  const int64_t x_step = x_strides[1];
  const int64_t a_step = a_strides[0];
  for (int block = group % beside; block < blocks; block += beside) {
    const int first_rank = block * spread + lane % rank_lanes;
    // Past the last rank or row the last one is read again, and what comes of it is not stored.
    int64_t of_rank[RANKS];
    int64_t of_row[TOKENS];
    float sum[SUMS];
    _Pragma("unroll") for (int j = 0; j < RANKS; j++) {
      of_rank[j] = metal::min(first_rank + j * rank_lanes, R - 1) * a_strides[1];
    }
    _Pragma("unroll") for (int t = 0; t < TOKENS; t++) {
      of_row[t] = metal::min(row + t, rows - 1) * row_step;
    }
    _Pragma("unroll") for (int i = 0; i < SUMS; i++) {
      sum[i] = 0.0f;
    }
    const int start = split * k_lanes + lane / rank_lanes;
    const int stride = splits * k_lanes;
    // Counted by one, so that the compiler unrolls without a test in between and has the loads in flight together.
    const int steps = (K - start + stride - 1) / stride;
    // Eight or two steps have their loads in flight together, as registers allow.
    if (TOKENS <= 2) {
      _Pragma("unroll 8") for (int step = 0; step < steps; step++) {
        const int k = start + step * stride;
        mc_add_products<RANKS, TOKENS>(x, a, of_row, of_rank, k * x_step, k * a_step, sum);
      }
    } else {
      _Pragma("unroll 2") for (int step = 0; step < steps; step++) {
        const int k = start + step * stride;
        mc_add_products<RANKS, TOKENS>(x, a, of_row, of_rank, k * x_step, k * a_step, sum);
      }
    }
    // Sums over the lanes of one rank. While a lane has several, it keeps half of them and sends the other half: 31
    // exchanges for 32 sums, not 160. Every index is known to the compiler, so that `sum` stays in registers.
    int first = 0;
    int left = SUMS;
    bool stores = true;
    _Pragma("unroll") for (int step = 0; step < 5; step++) {
      const int mask = 16 >> step;
      const int kept = SUMS >> (step + 1);
      const bool upper = (lane & mask) != 0;
      if (mask >= rank_lanes) {
        _Pragma("unroll") for (int i = 0; i < SUMS / 2; i++) {
          if (i < kept) {
            const float low = sum[i];
            const float high = sum[i + kept];
            sum[i] = (upper ? high : low) + simd_shuffle_xor(upper ? low : high, ushort(mask));
          }
        }
        if (kept > 0) {
          first += upper ? kept : 0;
          left = kept;
        } else {
          sum[0] += simd_shuffle_xor(sum[0], ushort(mask));
          stores = stores && !upper;
        }
      }
    }
    _Pragma("unroll") for (int i = 0; i < SUMS; i++) {
      const int rank = first_rank + (first + i) / TOKENS * rank_lanes;
      if (stores && i < left && rank < R) {
        part[(split * R + rank) * TOKENS + (first + i) % TOKENS] = sum[i];
      }
    }
  }
}
threadgroup_barrier(mem_flags::mem_threadgroup);
for (int i = int(thread_index_in_threadgroup); i < R * TOKENS; i += groups * 32) {
  float sum = 0.0f;
  for (int other = 0; other < splits; other++) {
    sum += part[other * R * TOKENS + i];
  }
  part[i] = sum * scale[0];
}
threadgroup_barrier(mem_flags::mem_threadgroup);

// Step 2. A column for each thread; or, where neighbours in memory are those along R, for a few lanes together.
int lanes = 1;
if (b_strides[0] < b_strides[1]) {
  while (lanes < 8 && lanes * 2 <= R) {
    lanes *= 2;
  }
}
const int columns = 32 / lanes;
const int stride = int(threadgroups_per_grid.x) * groups * columns;
const int start = (int(threadgroup_position_in_grid.x) * groups + group) * columns;
for (int near = start; near < N; near += stride) {
  const int n = near + lane / lanes;
  const int column = metal::min(n, N - 1);
  float sum[TOKENS];
  float added[TOKENS];  // read early: a store in between could change it, for all the compiler knows
  _Pragma("unroll") for (int t = 0; t < TOKENS; t++) {
    sum[t] = 0.0f;
    const int at = metal::min(row + t, rows - 1);
    added[t] = ADD ? float(base[at * base_strides[0] + column * base_strides[1]]) : 0.0f;
  }
  const int steps = (R - lane % lanes + lanes - 1) / lanes;
  _Pragma("unroll 4") for (int step = 0; step < steps; step++) {
    const int r = lane % lanes + step * lanes;
    const float factor = float(b[r * b_strides[0] + column * b_strides[1]]);
    _Pragma("unroll") for (int t = 0; t < TOKENS; t++) {
      sum[t] += part[r * TOKENS + t] * factor;
    }
  }
  for (int mask = lanes / 2; mask > 0; mask /= 2) {
    _Pragma("unroll") for (int t = 0; t < TOKENS; t++) {
      sum[t] += simd_shuffle_xor(sum[t], ushort(mask));
    }
  }
  if (n < N && lane % lanes == 0) {
    _Pragma("unroll") for (int t = 0; t < TOKENS; t++) {
      if (row + t < rows) {
        y[int64_t(row + t) * N + n] = T(added[t] + sum[t]);
      }
    }
  }
}
