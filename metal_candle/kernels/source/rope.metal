// Each pair (a, b) of x (batch, heads, t, d) turned by the angle of its cosine and sine (t, d/2): a read, b read,
// both written, once. Everything is read by strides, so that heads made by a transposition are not copied first.
//
// A thread turns the same four neighbouring pairs of HEADS heads with one look into the tables; all is read before
// anything is written, so that the reads are under way together. Neighbouring threads have neighbouring pairs.
constexpr int HEADS = 2;

const uint heads = x_shape[1];
const uint rows = x_shape[2];
const uint pairs = x_shape[3] / 2;
const uint fours = (pairs + 3) / 4;
const uint place = thread_position_in_grid.x;
const uint first_head = thread_position_in_grid.y * HEADS;
const uint batch = thread_position_in_grid.z;

if (place < rows * fours) {
  const uint row = place / fours;
  const uint pair = 4 * (place - row * fours);
  const uint left = metal::min(uint(HEADS), heads - first_head);
  const int64_t apart = x_strides[1];
  auto from = x + (int64_t(batch) * x_strides[0] + int64_t(row) * x_strides[2] + int64_t(first_head) * apart);
  auto row_of_cosines = cosines + int64_t(row) * cosines_strides[0];
  auto row_of_sines = sines + int64_t(row) * sines_strides[0];

  // Of four pairs the eight elements: two times four neighbours, of which the first are the a and the second the b or,
  // INTERLEAVED, each are two pairs.
  const uint first = INTERLEAVED ? 2 * pair : pair;
  const uint beside = INTERLEAVED ? 4 : pairs;
  const uint end = INTERLEAVED ? 2 * pairs : pairs;
  float one[4 * HEADS];
  float other[4 * HEADS];
  float cosine[4];
  float sine[4];
  // The same for all threads. To what reads rows the heads are parts of one, so many elements apart.
  const bool together = pairs % 4 == 0 && x_strides[3] == 1 && apart >= end && apart < (1 << 28) && apart % 4 == 0 &&
                        cosines_strides[1] == 1 && sines_strides[1] == 1;
  if (together) {
    mc_load_rows<T, 1, true, false>(
        row_of_cosines, row_of_sines, row_of_sines, pair, 4, pairs, cosine, sine, sine);
    const uint step = uint(apart);
    mc_load_rows<T, HEADS, true, false>(
        from, from + beside, from, first, step, (left - 1) * step + end, one, other, other);
  } else {
    _Pragma("unroll")
    for (uint i = 0; i < 4; ++i) {
      const bool inside = pair + i < pairs;
      cosine[i] = inside ? float(row_of_cosines[int64_t(pair + i) * cosines_strides[1]]) : 0.0f;
      sine[i] = inside ? float(row_of_sines[int64_t(pair + i) * sines_strides[1]]) : 0.0f;
    }
    _Pragma("unroll")
    for (uint i = 0; i < 4 * HEADS; ++i) {
      const uint at = first + i % 4;
      const int64_t head = int64_t(i / 4) * apart;
      one[i] = i / 4 < left && at < end ? float(from[head + int64_t(at) * x_strides[3]]) : 0.0f;
      other[i] = i / 4 < left && at + beside < 2 * pairs
                     ? float(from[head + int64_t(at + beside) * x_strides[3]])
                     : 0.0f;
    }
  }

  // The gradient turns back: the same with the sign of the sine changed.
  _Pragma("unroll")
  for (int i = 0; i < 4; ++i) {
    sine[i] *= sign[0];
  }
  _Pragma("unroll")
  for (uint head = 0; head < HEADS; ++head) {
    const uint at = 4 * head;
    if (INTERLEAVED) {
      _Pragma("unroll")
      for (int i = 0; i < 2; ++i) {
        const float a = one[at + 2 * i];
        const float b = one[at + 2 * i + 1];
        one[at + 2 * i] = a * cosine[i] - b * sine[i];
        one[at + 2 * i + 1] = a * sine[i] + b * cosine[i];
        const float c = other[at + 2 * i];
        const float d = other[at + 2 * i + 1];
        other[at + 2 * i] = c * cosine[2 + i] - d * sine[2 + i];
        other[at + 2 * i + 1] = c * sine[2 + i] + d * cosine[2 + i];
      }
    } else {
      _Pragma("unroll")
      for (int i = 0; i < 4; ++i) {
        const float a = one[at + i];
        const float b = other[at + i];
        one[at + i] = a * cosine[i] - b * sine[i];
        other[at + i] = a * sine[i] + b * cosine[i];
      }
    }
    if (head < left) {
      auto to = turned + ((int64_t(batch) * heads + first_head + head) * rows + row) * (2 * pairs);
      mc_store4<T>(to, first, end, one + at);
      mc_store4<T>(INTERLEAVED ? to : to + pairs, INTERLEAVED ? first + 4 : first, end, other + at);
    }
  }
}
