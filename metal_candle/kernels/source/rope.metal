// Each pair (a, b) of x (batch, heads, t, d) turned by the angle of its cosine and sine (t, d/2): a read, b read,
// both written, once. Everything is read by strides, so that heads made by a transposition are not copied first.
// A thread turns the same pair of HEADS heads with one look into the tables; all is read before anything is written,
// so that the reads are under way together. Neighbouring threads have neighbouring pairs.
constexpr uint HEADS = 4;

const uint heads = x_shape[1];
const uint rows = x_shape[2];
const uint pairs = x_shape[3] / 2;
const uint place = thread_position_in_grid.x;
const uint first_head = thread_position_in_grid.y * HEADS;
const uint batch = thread_position_in_grid.z;

if (place < rows * pairs) {
  const uint row = place / pairs;
  const uint pair = place - row * pairs;
  const uint of_a = INTERLEAVED ? 2 * pair : pair;
  const uint of_b = INTERLEAVED ? of_a + 1 : pair + pairs;

  // The gradient turns back: the same with the sign of the sine changed.
  const float cosine = float(cosines[row * cosines_strides[0] + pair * cosines_strides[1]]);
  const float sine = float(sines[row * sines_strides[0] + pair * sines_strides[1]]) * sign[0];

  const int64_t start = batch * x_strides[0] + row * x_strides[2];
  float a[HEADS];
  float b[HEADS];
  _Pragma("unroll")
  for (uint i = 0; i < HEADS; i++) {
    if (first_head + i < heads) {
      const int64_t from = start + (first_head + i) * x_strides[1];
      a[i] = float(x[from + of_a * x_strides[3]]);
      b[i] = float(x[from + of_b * x_strides[3]]);
    }
  }
  _Pragma("unroll")
  for (uint i = 0; i < HEADS; i++) {
    if (first_head + i < heads) {
      const int64_t head = int64_t(batch) * heads + first_head + i;
      const int64_t to = (head * rows + row) * (2 * pairs);
      turned[to + of_a] = T(a[i] * cosine - b[i] * sine);
      turned[to + of_b] = T(a[i] * sine + b[i] * cosine);
    }
  }
}
