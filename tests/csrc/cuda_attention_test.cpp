/// Attention against its definition in double, over pages of random numbers in random order, run on the CPU; and the
/// same bits for a row whatever it shares its batch with.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "base/half.h"
#include "cuda_launch.h"
#include "emulator.h"
#include "engine/batch.h"

using namespace sterna;
using namespace sterna::cuda;

namespace {

struct Case {
  const char* name;
  KvType type = KvType::kF16;
  int query_heads = 4, key_heads = 2, head_dim = 64, value_dim = 64;
  bool latent = false;
  float softcap = 0.0f;
  int window = 0, chunk = 0;
  bool causal = true, cross = false, biased = false, sinks = false, alibi = false;
  double temperature = 0.0;
};

/// Rows of a sequence are its last positions; with `cross` it has `encoded` keys instead of those.
struct Sequence {
  int rows, positions, encoded = 0;
};

struct Key {
  int first, last;
};
Key seen(const Case& c, const Sequence& sequence, int position) {
  if (c.cross) return {0, sequence.encoded - 1};
  if (!c.causal) {
    if (c.window == 0) return {0, sequence.positions - 1};
    return {std::max(0, position - c.window / 2), std::min(sequence.positions - 1, position + c.window / 2)};
  }
  if (c.chunk != 0) return {position / c.chunk * c.chunk, position};
  return {c.window == 0 ? 0 : std::max(0, position - c.window + 1), position};
}

/// The pages of all sequences, with what lies in them.
class World {
 public:
  World(const Case& c, const std::vector<Sequence>& sequences, unsigned seed) : c_(c), sequences_(sequences) {
    layer_.offset = 64;
    layer_.pool = 1;
    layer_.num_heads = c.key_heads;
    layer_.head_dim = c.head_dim;
    layer_.value_dim = c.value_dim;
    layer_.value_stride = (c.value_dim + 15) / 16 * 16;
    layer_.latent = c.latent;
    layer_.type = c.type;
    const auto tile_bytes = [&](int dim, int stride) -> std::int64_t {
      if (c.type == KvType::kF32) return 64 * 4 * stride;
      if (c.type == KvType::kF16) return 64 * 2 * stride;
      return 64 * stride + 64 * 2 * ((dim + 31) / 32);
    };
    layer_.value_offset = tile_bytes(c.head_dim, c.head_dim);
    layer_.head_bytes = layer_.value_offset + (c.latent ? 0 : tile_bytes(c.value_dim, layer_.value_stride));
    std::mt19937 random(seed);
    int count = 3;  // some are of nobody
    for (const Sequence& s : sequences) count += pages_of(s);
    std::vector<int> numbers(static_cast<std::size_t>(count));
    std::iota(numbers.begin(), numbers.end(), 0);
    std::shuffle(numbers.begin(), numbers.end(), random);
    // All bytes of a page are NaNs at first, in every type of cache: 0x7F, or 0xFF.
    pages_.assign(static_cast<std::size_t>(count), {});
    for (auto& page : pages_) {
      page.assign(static_cast<std::size_t>(layer_.offset + c.key_heads * layer_.head_bytes + 63) / 64, Piece());
      std::memset(page.data(), random() % 2 ? 0x7F : 0xFF, page.size() * sizeof(Piece));
      pointers_.push_back(reinterpret_cast<std::uint8_t*>(page.data()));
    }
    layer_.pages = pointers_.data();
    std::size_t next = 0;
    for (std::size_t s = 0; s < sequences.size(); ++s) {
      tables_.emplace_back();
      const int keys = c.cross ? sequences[s].encoded : sequences[s].positions;
      int first = keys;  // of those that any row sees
      for (int row = 0; row < sequences[s].rows; ++row) {
        first = std::min(first, seen(c, sequences[s], sequences[s].positions - sequences[s].rows + row).first);
      }
      for (int page = 0; page < pages_of(sequences[s]); ++page) {
        tables_[s].push_back(64 * page + 63 < first ? kNoPage : numbers[next++]);
      }
      for (int key = first; key < keys; ++key) {
        for (int head = 0; head < c.key_heads; ++head) {
          fill(slot(static_cast<int>(s), key, head, false), c.head_dim, random);
          if (!c.latent) fill(slot(static_cast<int>(s), key, head, true), c.value_dim, random);
        }
      }
    }
    const int rows =
        std::accumulate(sequences.begin(), sequences.end(), 0, [](int sum, const Sequence& s) { return sum + s.rows; });
    q_ = random_floats(std::int64_t{rows} * stride(), seed + 1);
    sinks_ = random_floats(c.query_heads, seed + 2);
    slopes_ = random_floats(c.query_heads, seed + 3, 0.05f);
    for (float& slope : slopes_) slope = std::abs(slope);
    farthest_ = 40;
    bias_ = random_floats(c.query_heads * (2 * farthest_ + 1), seed + 4);
  }

  const Case& options() const { return c_; }
  const std::vector<Sequence>& sequences() const { return sequences_; }

  /// Makes a key's and value's numbers NaN.
  void poison(int sequence, int key) {
    for (int head = 0; head < c_.key_heads; ++head) {
      for (const bool value : {false, true}) {
        if (value && c_.latent) continue;
        const Slot at = slot(sequence, key, head, value);
        const int dim = value ? c_.value_dim : c_.head_dim;
        for (int i = 0; i < dim; ++i) {
          if (c_.type == KvType::kF32) reinterpret_cast<float*>(at.codes)[i] = std::nanf("");
          if (c_.type == KvType::kF16) reinterpret_cast<std::uint16_t*>(at.codes)[i] = 0x7E00;
          if (c_.type == KvType::kQ8_0) at.scales[i / 32] = 0x7E00;
        }
      }
    }
  }

  /// Results of the first rows [first, last) of each given sequence, in their order.
  std::vector<float> attend(const std::vector<int>& chosen, int first, int last, int spare, bool with_partial) const {
    TestBatch batch(0);
    batch.num_pools = 2;
    batch.first_rows.clear();
    batch.last_rows.clear();
    batch.tables.clear();
    batch.encoded_sizes.clear();
    std::vector<float> q, y;
    batch.pages = {kNoPage, kNoPage};
    for (std::size_t i = 0; i < chosen.size(); ++i) {
      const auto s = static_cast<std::size_t>(chosen[i]);
      const int begin = first_row(chosen[i]) + first;
      const int rows = std::min(last, sequences_[s].rows) - first;
      const auto before = static_cast<std::int32_t>(batch.positions.size());
      batch.first_rows.push_back(before);
      batch.encoded_sizes.push_back(sequences_[s].encoded);
      batch.tables.push_back(0);
      batch.tables.push_back(static_cast<std::int32_t>(batch.pages.size()));
      batch.pages.insert(batch.pages.end(), tables_[s].begin(), tables_[s].end());
      for (int row = 0; row < rows; ++row) {
        batch.positions.push_back(sequences_[s].positions - sequences_[s].rows + first + row);
        batch.sequences.push_back(static_cast<std::int32_t>(i));
        batch.last_rows.push_back(before + rows - 1);
      }
      q.insert(q.end(), q_.begin() + begin * stride(), q_.begin() + (begin + rows) * stride());
    }
    const auto total = static_cast<std::int32_t>(batch.positions.size());
    batch.counts = {total, total, static_cast<std::int32_t>(chosen.size())};
    const int y_stride = c_.query_heads * c_.value_dim + 3;
    y.assign(static_cast<std::size_t>(total * y_stride), -7.0f);

    AttendArguments a{};
    a.q = rows(q, stride());
    a.y = rows(y, y_stride);
    a.query_heads = c_.query_heads;
    a.layer = layer_;
    a.scale = scale();
    a.softcap = c_.softcap;
    a.window = c_.window;
    a.chunk = c_.chunk;
    a.causal = c_.causal;
    a.cross = c_.cross;
    if (c_.biased) a.relative_bias = bias_.data();
    a.farthest = farthest_;
    if (c_.sinks) a.sinks = sinks_.data();
    if (c_.alibi) a.slopes = slopes_.data();
    a.temperature_scale = c_.temperature;
    a.temperature_length = 100;
    a.temperature_offset = 1;
    a.partial_room = 3 * (total + spare);  // spans of a row: fewer than some see
    std::vector<float> partial;
    std::vector<std::int32_t> arrivals;
    if (with_partial) {
      partial.assign(static_cast<std::size_t>(total * c_.query_heads * 3 * (2 + c_.value_dim)), std::nanf(""));
      arrivals.assign(static_cast<std::size_t>(total * c_.query_heads), 0);
      a.partial = partial.data();
      a.arrivals = arrivals.data();
    }
    constexpr std::int32_t kMostRows = 8;
    std::vector<std::uint32_t> maxima(kMostRows, 0);
    a.maxima = {maxima.data(), kMostRows};
    batch.launch(Kernel::kAttend, a, spare);
    if (std::any_of(arrivals.begin(), arrivals.end(), [](int n) { return n != 0; })) {
      ++failures();
      std::printf("%s: arrivals are left\n", c_.name);
    }
    std::vector<float> results;
    std::vector<std::uint32_t> largest(kMostRows, 0);
    for (int row = 0; row < total; ++row) {
      const float* from = y.data() + row * y_stride;
      results.insert(results.end(), from, from + y_stride - 3);
      if (from[y_stride - 1] != -7.0f || from[y_stride - 3] != -7.0f) {
        ++failures();
        std::printf("%s: wrote beyond a row\n", c_.name);
      }
      if (total + spare > kMostRows) continue;
      for (const float* x = from; x != from + y_stride - 3; ++x) {
        largest[static_cast<std::size_t>(row)] =
            std::max(largest[static_cast<std::size_t>(row)], std::bit_cast<std::uint32_t>(*x) & 0x7FFFFFFFu);
      }
    }
    if (maxima != largest) {
      ++failures();
      std::printf("%s: maxima of %d rows\n", c_.name, total);
    }
    return results;
  }

  /// The definition.
  std::vector<double> expected(int sequence, int row, int head) const {
    const Sequence& s = sequences_[static_cast<std::size_t>(sequence)];
    const int position = s.positions - s.rows + row;
    const int key_head = head / (c_.query_heads / c_.key_heads);
    const float* q = q_.data() + (first_row(sequence) + row) * stride() + head * c_.head_dim;
    const Key keys = seen(c_, s, position);
    std::vector<double> scores, result(static_cast<std::size_t>(c_.value_dim));
    double largest = c_.sinks ? sinks_[static_cast<std::size_t>(head)] : -std::numeric_limits<double>::infinity();
    for (int key = keys.first; key <= keys.last; ++key) {
      double score = 0;
      const Slot at = slot(sequence, key, key_head, false);
      for (int i = 0; i < c_.head_dim; ++i) score += static_cast<double>(q[i]) * number(at, i);
      score *= scale();
      if (c_.temperature != 0) score *= 1 + c_.temperature * std::log(1.0 + (position + 1) / 100);
      if (c_.softcap != 0) score = c_.softcap * std::tanh(score / c_.softcap);
      if (c_.alibi) score -= slopes_[static_cast<std::size_t>(head)] * std::abs(position - key);
      if (c_.biased) {
        const int offset = std::clamp<int>(key - position, -farthest_, farthest_);
        score += bias_[static_cast<std::size_t>(head * (2 * farthest_ + 1) + farthest_ + offset)];
      }
      scores.push_back(score);
      largest = std::max(largest, score);
    }
    double sum = c_.sinks ? std::exp(sinks_[static_cast<std::size_t>(head)] - largest) : 0.0;
    for (const double score : scores) sum += std::exp(score - largest);
    for (int key = keys.first; key <= keys.last; ++key) {
      const double p = std::exp(scores[static_cast<std::size_t>(key - keys.first)] - largest) / sum;
      const Slot at = slot(sequence, key, key_head, !c_.latent);
      for (int i = 0; i < c_.value_dim; ++i) result[static_cast<std::size_t>(i)] += p * number(at, i);
    }
    return result;
  }

 private:
  struct alignas(64) Piece {
    std::uint8_t bytes[64];
  };
  struct Slot {
    std::uint8_t* codes;
    std::uint16_t* scales;
  };

  float scale() const { return 1.0f / std::sqrt(static_cast<float>(c_.head_dim)); }
  int stride() const { return c_.query_heads * c_.head_dim; }
  int pages_of(const Sequence& s) const { return ((c_.cross ? s.encoded : s.positions) + 63) / 64; }
  int first_row(int sequence) const {
    int row = 0;
    for (int i = 0; i < sequence; ++i) row += sequences_[static_cast<std::size_t>(i)].rows;
    return row;
  }
  Slot slot(int sequence, int key, int head, bool value) const {
    const int page = tables_[static_cast<std::size_t>(sequence)][static_cast<std::size_t>(key / 64)];
    std::uint8_t* tile = pointers_[static_cast<std::size_t>(page)] + layer_.offset + head * layer_.head_bytes +
                         (value ? layer_.value_offset : 0);
    const int stride = value ? layer_.value_stride : c_.head_dim;
    const int groups = ((value ? c_.value_dim : c_.head_dim) + 31) / 32;
    const int bytes = c_.type == KvType::kF32 ? 4 : c_.type == KvType::kF16 ? 2 : 1;
    return {tile + key % 64 * stride * bytes,
            reinterpret_cast<std::uint16_t*>(tile + 64 * stride * bytes) + key % 64 * groups};
  }
  void fill(Slot at, int dim, std::mt19937& random) const {
    std::normal_distribution<float> normal;
    for (int i = 0; i < dim; ++i) {
      if (c_.type == KvType::kF32) reinterpret_cast<float*>(at.codes)[i] = normal(random);
      if (c_.type == KvType::kF16) reinterpret_cast<std::uint16_t*>(at.codes)[i] = float_to_half(normal(random));
      if (c_.type == KvType::kQ8_0) {
        reinterpret_cast<std::int8_t*>(at.codes)[i] = static_cast<std::int8_t>(static_cast<int>(random() % 255) - 127);
        if (i % 32 == 0) at.scales[i / 32] = float_to_half(0.01f * std::abs(normal(random)));
      }
    }
  }
  double number(Slot at, int i) const {
    if (c_.type == KvType::kF32) return reinterpret_cast<const float*>(at.codes)[i];
    if (c_.type == KvType::kF16) return sterna::half_to_float(reinterpret_cast<const std::uint16_t*>(at.codes)[i]);
    return reinterpret_cast<const std::int8_t*>(at.codes)[i] *
           static_cast<double>(sterna::half_to_float(at.scales[i / 32]));
  }

  Case c_;
  std::vector<Sequence> sequences_;
  KvLayer layer_{};
  std::vector<std::vector<Piece>> pages_;
  std::vector<std::uint8_t*> pointers_;
  std::vector<std::vector<int>> tables_;
  std::vector<float> q_, sinks_, slopes_, bias_;
  int farthest_;
};

void check_values(const World& world, const std::vector<float>& results, const std::vector<int>& chosen) {
  const Case& c = world.options();
  std::size_t at = 0;
  for (const int s : chosen) {
    for (int row = 0; row < world.sequences()[static_cast<std::size_t>(s)].rows; ++row) {
      for (int head = 0; head < c.query_heads; ++head) {
        for (const double expected : world.expected(s, row, head)) {
          if (std::isnan(results[at])) ++failures();
          expect_near(results[at++], expected, 2e-6, c.name);
        }
      }
    }
  }
}

void check_same(const std::vector<float>& actual, const std::vector<float>& expected, std::size_t from,
                const char* name, const char* what) {
  for (std::size_t i = 0; i < actual.size(); ++i) {
    if (std::memcmp(&actual[i], &expected[from + i], 4) == 0) continue;
    if (++failures() <= 20) std::printf("%s, %s: %.9g is not %.9g\n", name, what, actual[i], expected[from + i]);
    return;
  }
}

void check(const Case& c, const std::vector<Sequence>& sequences, bool all_ways = true) {
  World world(c, sequences, 11);
  std::vector<int> all(sequences.size());
  std::iota(all.begin(), all.end(), 0);
  const auto most = std::numeric_limits<int>::max();
  const std::vector<float> results = world.attend(all, 0, most, 0, false);
  check_values(world, results, all);
  check_same(world.attend(all, 0, most, 70, true), results, 0, c.name, "more blocks");
  if (!all_ways) return;
  const auto row_size = static_cast<std::size_t>(c.query_heads * c.value_dim);
  std::size_t row = 0;
  for (const int s : all) {
    const int rows = sequences[static_cast<std::size_t>(s)].rows;
    if (c.causal || c.cross) {
      for (int i = 0; i < rows; i += 16) {
        check_same(world.attend({s}, i, i + 1, 0, i % 32 == 0), results, (row + static_cast<std::size_t>(i)) * row_size,
                   c.name, "one row");
      }
    }
    if (sequences.size() > 1) {
      check_same(world.attend({s}, 0, most, 3, true), results, row * row_size, c.name, "one sequence");
    }
    row += static_cast<std::size_t>(rows);
  }
  if (!c.causal || c.cross) return;
  // What only the last row sees, the others must not meet.
  for (const int s : all) world.poison(s, sequences[static_cast<std::size_t>(s)].positions - 1);
  const std::vector<float> poisoned = world.attend(all, 0, most, 0, true);
  row = 0;
  for (const int s : all) {
    const auto rows = static_cast<std::size_t>(sequences[static_cast<std::size_t>(s)].rows);
    const auto part = [&](std::size_t first, std::size_t last) {
      return std::vector<float>(poisoned.begin() + static_cast<std::ptrdiff_t>(first * row_size),
                                poisoned.begin() + static_cast<std::ptrdiff_t>(last * row_size));
    };
    check_same(part(row, row + rows - 1), results, row * row_size, c.name, "beside a NaN");
    for (const float value : part(row + rows - 1, row + rows)) {
      if (!std::isnan(value)) ++failures();
    }
    row += rows;
  }
}

/// Where a block has little shared memory other kernels run, which give the same bits.
void check_small_device(KvType type) {
  struct Heads {
    int head_dim, value_dim;
    bool latent;
  };
  const std::vector<Sequence> sequences = {{1, 70}, {33, 66}};
  const auto most = std::numeric_limits<int>::max();
  for (const Heads& heads : {Heads{256, 256, false}, Heads{kMaxHeadDim, 512, true}, Heads{kMaxHeadDim, 100, false}}) {
    Case c{.name = "little shared memory", .type = type, .query_heads = 2, .key_heads = 1};
    c.head_dim = heads.head_dim;
    c.value_dim = heads.value_dim;
    c.latent = heads.latent;
    const World world(c, sequences, 12);
    const std::vector<float> results = world.attend({0, 1}, 0, most, 0, true);
    const std::vector<float> one = world.attend({0}, 0, most, 0, true);
    cuda_emulation::max_shared_bytes = cuda_emulation::kSharedBytesSm75;
    check_same(world.attend({0, 1}, 0, most, 0, true), results, 0, c.name, "many rows");
    check_same(world.attend({0}, 0, most, 0, true), one, 0, c.name, "one row");
    cuda_emulation::max_shared_bytes = cuda_emulation::kSharedBytesSm90;
  }
}

void check_type(KvType type) {
  // Enough rows for the shape of prompts; with spare capacity they get the other one.
  const std::vector<Sequence> sequences = {{3, 130}, {44, 270}, {1, 67}};
  Case plain{.name = "plain", .type = type, .query_heads = 2, .key_heads = 1, .head_dim = 32, .value_dim = 32};
  check(plain, sequences);

  Case c = plain;
  c.name = "one head each, odd sizes, softcap, sinks";
  c.query_heads = c.key_heads = 2;
  c.head_dim = 50;
  c.value_dim = 37;
  c.softcap = 3.0f;
  c.sinks = true;
  check(c, {{1, 330}, {63, 66}});

  c = plain;
  c.name = "window, slopes, temperature";
  c.query_heads = 6;
  c.key_heads = 2;
  c.window = 70;
  c.alibi = true;
  c.temperature = 0.3;
  c.head_dim = 96;
  c.value_dim = 100;
  check(c, {{22, 160}, {1, 290}});

  c = plain;
  c.name = "wide";
  c.head_dim = c.value_dim = 160;
  c.query_heads = 1;
  c.key_heads = 1;
  check(c, {{3, 70}}, false);
  c.name = "256";
  c.query_heads = 2;
  c.head_dim = c.value_dim = 256;
  check(c, {{17, 70}}, false);
  c.name = "latent";
  c.query_heads = 3;
  c.latent = true;
  c.head_dim = 576;
  c.value_dim = 512;
  check(c, {{3, 70}}, false);
  c.name = "latent, small";
  c.head_dim = 72;
  c.value_dim = 40;
  check(c, {{3, 70}, {1, 129}});

  if (type == KvType::kQ8_0) return;  // which keys are seen has nothing to do with how they are stored

  c = plain;
  c.name = "chunk, more heads than a block";
  c.query_heads = 20;
  c.key_heads = 1;
  c.head_dim = 32;
  c.value_dim = 32;
  c.chunk = 64;
  check(c, {{3, 130}, {1, 63}});

  c = plain;
  c.name = "both ways, bias";
  c.causal = false;
  c.biased = true;
  check(c, {{7, 7}, {28, 28}});
  c.name = "both ways, window";
  c.window = 41;
  c.query_heads = c.key_heads = 1;
  check(c, {{70, 70}});

  c = plain;
  c.name = "cross";
  c.cross = true;
  check(c, {{3, 3, 130}, {1, 9, 1}});

  c = plain;
  c.name = "many spans";
  c.query_heads = c.key_heads = 1;
  c.head_dim = c.value_dim = 32;
  check(c, {{1, 700}, {2, 1026}}, type != KvType::kF32);
}

}  // namespace

int main(int count, char** words) {
  for (const KvType type : {KvType::kF32, KvType::kF16, KvType::kQ8_0}) {
    if (count > 1 && std::atoi(words[1]) != static_cast<int>(type)) continue;
    check_type(type);
    check_small_device(type);
  }
  return finish_test();
}
