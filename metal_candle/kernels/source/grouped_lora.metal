// y = base + scale_g * (x * a_g) * b_g for each row by itself, g its adapter: as fused_lora.metal does for one row. The
// adapters' factors lie below each other in a (ranks, K) and b (ranks, N), those of adapter g from row offsets[g] to
// offsets[g + 1]. A row whose id is none of theirs has rank 0, and keeps its base. All but y have strides.

constexpr int RANKS = 8;  // of a simdgroup at a time
// h of the row by (split, rank): splits times ranks are at most 16 simdgroups times 8, or the largest rank.
threadgroup float part[256];

const int K = x_shape[1];
const int N = b_shape[1];
const int group = int(simdgroup_index_in_threadgroup);
const int groups = int(simdgroups_per_threadgroup);
const int lane = int(thread_index_in_simdgroup);
const int row = int(threadgroup_position_in_grid.y);
const int id = ids[row * ids_strides[0]];
const bool known = id >= 0 && id < scales_shape[0];
const int begin = known ? offsets[id] : 0;
const int R = known ? offsets[id + 1] - begin : 0;

// Step 1, in every threadgroup: simdgroups share out the ranks, what is left of them splits K, along which lanes read.
const int blocks = metal::max((R + RANKS - 1) / RANKS, 1);
const int beside = metal::min(blocks, groups);
const int splits = groups / beside;
const int split = group / beside;
const int start = split * 32 + lane;
const int stride = splits * 32;
if (split < splits && R > 0) {
  for (int block = group % beside; block < blocks; block += beside) {
    int64_t of_rank[RANKS];
    float sum[RANKS];
    _Pragma("unroll") for (int j = 0; j < RANKS; j++) {
      of_rank[j] = (begin + metal::min(block * RANKS + j, R - 1)) * a_strides[0];
      sum[j] = 0.0f;
    }
    const int steps = (K - start + stride - 1) / stride;
    // Four steps along K have their loads in flight together.
    _Pragma("unroll 4") for (int step = 0; step < steps; step++) {
      const int k = start + step * stride;
      const float value = float(x[row * x_strides[0] + k * x_strides[1]]);
      _Pragma("unroll") for (int j = 0; j < RANKS; j++) {
        sum[j] += value * float(a[of_rank[j] + k * a_strides[1]]);
      }
    }
    _Pragma("unroll") for (int j = 0; j < RANKS; j++) {
      const float total = simd_sum(sum[j]);
      if (lane == 0 && block * RANKS + j < R) {
        part[split * R + block * RANKS + j] = total;
      }
    }
  }
}
threadgroup_barrier(mem_flags::mem_threadgroup);
for (int i = int(thread_index_in_threadgroup); i < R; i += groups * 32) {
  float sum = 0.0f;
  for (int other = 0; other < splits; other++) {
    sum += part[other * R + i];
  }
  part[i] = sum * scales[id];
}
threadgroup_barrier(mem_flags::mem_threadgroup);

// Step 2. A column for each thread.
const int across = int(threadgroups_per_grid.x) * groups * 32;
const int first = (int(threadgroup_position_in_grid.x) * groups + group) * 32 + lane;
for (int n = first; n < N; n += across) {
  const auto kept = base[row * base_strides[0] + n * base_strides[1]];
  float sum = 0.0f;
  _Pragma("unroll 4") for (int r = 0; r < R; r++) {
    sum += part[r] * float(b[(begin + r) * b_strides[0] + n * b_strides[1]]);
  }
  y[int64_t(row) * N + n] = R > 0 ? T(float(kept) + sum) : kept;
}
