/// Every kernel of every level that this CPU has, on buffers of exactly the size that the contracts name, tails
/// included: the sanitizers see what is read or written beyond them, and all levels must give the bits of the first.
#include <bit>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "base/error.h"
#include "cpu/isa.h"
#include "cpu/kernel_table.h"
#include "cpu/rope_table.h"
#include "engine/batch.h"
#include "plan/plan.h"
#include "quant/layout.h"

namespace {

using namespace sterna;
using namespace sterna::cpu;

int failures = 0;
std::mt19937 generator(20241110);

/// `count` elements on the heap with nothing behind them, where vectors do not happen to be aligned.
template <class T>
class Exact {
 public:
  explicit Exact(std::int64_t count)
      : count_(count), bytes_(std::make_unique<std::byte[]>(kFront + sizeof(T) * static_cast<std::size_t>(count))) {
    std::memset(bytes_.get(), 0x5A, kFront + sizeof(T) * static_cast<std::size_t>(count));
  }
  const T* get() const { return reinterpret_cast<const T*>(bytes_.get() + kFront); }
  T* get() { return reinterpret_cast<T*>(bytes_.get() + kFront); }
  T& operator[](std::int64_t i) { return get()[i]; }
  std::int64_t size() const { return count_; }

 private:
  static constexpr std::size_t kFront = 4;  // the bytes of a panel hold floats

  std::int64_t count_;
  std::unique_ptr<std::byte[]> bytes_;
};

float random_float() { return std::normal_distribution<float>()(generator); }

Exact<float> random_floats(std::int64_t count) {
  Exact<float> values(count);
  for (std::int64_t i = 0; i < count; ++i) values[i] = random_float();
  return values;
}

/// What a kernel wrote, level after level.
class Outcome {
 public:
  explicit Outcome(std::string what) : what_(std::move(what)) {}

  template <class T>
  void add(const T* values, std::int64_t count) {
    for (std::int64_t i = 0; i < count; ++i) {
      if constexpr (std::is_same_v<T, float>) {
        now_.push_back(std::isnan(values[i]) ? 0x7FC00000u : std::bit_cast<std::uint32_t>(values[i]));
      } else {
        now_.push_back(static_cast<std::uint32_t>(values[i]));
      }
    }
  }
  /// The level is done.
  void compare(const KernelTable& kernels) {
    if (first_.empty()) first_ = now_;
    if (now_ != first_) {
      std::printf("%s: %s differs from the first level\n", what_.c_str(), kernels.isa);
      ++failures;
    }
    now_.clear();
  }

 private:
  std::string what_;
  std::vector<std::uint32_t> first_, now_;
};

std::vector<const KernelTable*> levels() {
  std::vector<const KernelTable*> tables;
  for (const std::string_view name : compiled_levels()) {
    if (is_supported(name)) tables.push_back(&kernel_table(name));
  }
  return tables;
}

/// Buffers of one tile, each of its own.
struct Tile {
  Tile(std::int64_t k, int rows, std::int64_t scale_every)
      : codes(k * rows),
        scales(k / scale_every * rows),
        scaled_sums(k / 32 * rows),
        sums16(k / 16 * rows),
        sums32(k / 32 * rows) {
    tile.codes = codes.get();
    tile.scales = scales.get();
    tile.sums16 = sums16.get();
    tile.sums32 = tile.pairs32 = sums32.get();
    tile.scaled_sums = scaled_sums.get();
    tile.rows = rows;
  }
  Exact<std::int8_t> codes;
  Exact<float> scales, scaled_sums;
  Exact<std::int32_t> sums16, sums32;
  ActivationTile tile;
};

void check_panels(const Format& format) {
  const std::int64_t k = format.block_size == 1 ? 21 : 2 * std::max<std::int64_t>(format.block_size, 32);
  const std::int64_t row_bytes = k / format.block_size * format.block_bytes;
  PackedMatrix matrix = make_matrix(format, kPanelRows, k);
  std::vector<std::uint8_t> rows(static_cast<std::size_t>(kPanelRows * row_bytes));
  for (std::uint8_t& byte : rows) byte = static_cast<std::uint8_t>(generator());
  pack_panel(matrix, 0, rows);

  LayoutId layout = matrix.layout;
  std::int64_t size = matrix.panel_bytes;
  if (layout == LayoutId::kNative) {
    layout = LayoutId::kUnpacked;
    size = k / 256 * layout_spec(layout).block_bytes();
  }
  Exact<std::uint8_t> panel(size);
  if (matrix.layout == LayoutId::kNative)
    unpack_native_panel(matrix, 0, panel.get());
  else
    std::memcpy(panel.get(), matrix.panel(0), static_cast<std::size_t>(size));

  Exact<float> x = random_floats(k * kMaxTileRows);
  const bool dense = format.scales == ScaleKind::kNone;
  const std::int64_t scale_every = format.scales == ScaleKind::kSuper ? 256 : 32;
  for (const std::int64_t block : {scale_every, k}) {
    Outcome outcome(std::string(format.name) + ", a scale every " + std::to_string(block));
    for (const KernelTable* kernels : levels()) {
      // Row by row: levels differ in how many rows a tile has, and no row may depend on that.
      std::vector<float> by_row(kMaxTileRows * kPanelRows);
      for (int count = 1; count <= kernels->tile_rows; ++count) {
        Tile tile(dense ? 0 : k, count, scale_every);
        Exact<float> values(dense ? k * count : 0);
        for (int row = 0; row < count; ++row) {
          Exact<float> one(k);
          std::memcpy(one.get(), x.get() + row * k, sizeof(float) * static_cast<std::size_t>(k));
          if (dense) {
            for (std::int64_t i = 0; i < k; ++i) values[i * count + row] = one[i];
          } else {
            kernels->quantize(one.get(), k, block, scale_every, tile.tile, row);
          }
        }
        tile.tile.values = values.get();
        Exact<float> out(count * kPanelRows);
        kernels->panel[static_cast<int>(layout)][count - 1](panel.get(), k, tile.tile, out.get());
        for (int i = 0; i < count * kPanelRows; ++i) {
          const float before = by_row[static_cast<std::size_t>(i)];
          const bool known = i < (count - 1) * kPanelRows;
          if (known && std::bit_cast<std::uint32_t>(out[i]) != std::bit_cast<std::uint32_t>(before) &&
              !(std::isnan(out[i]) && std::isnan(before))) {
            std::printf("%s, %s: a row depends on how many there are\n", kernels->isa,
                        std::string(format.name).c_str());
            ++failures;
          }
          by_row[static_cast<std::size_t>(i)] = out[i];
        }
        if (is_ternary_layout(layout)) {
          kernels->panel_sum[static_cast<int>(layout)][count - 1](panel.get(), k, tile.tile, out.get());
          if (count <= 2) outcome.add(out.get(), count * kPanelRows);
        }
      }
      outcome.add(by_row.data(), 2 * kPanelRows);  // as many rows as every level has
      outcome.compare(*kernels);
    }
  }
}

void check_rows(std::int64_t n) {
  Exact<float> a = random_floats(n), b = random_floats(n);
  if (n > 3) {
    a[1] = std::numeric_limits<float>::quiet_NaN();
    a[2] = std::numeric_limits<float>::infinity();
    b[3] = 1e-41f;
  }
  Outcome outcome("row kernels of " + std::to_string(n));
  for (const KernelTable* kernels : levels()) {
    const auto result = [&](auto call) {
      Exact<float> y(n);
      call(y.get());
      outcome.add(y.get(), n);
    };
    result([&](float* y) { kernels->rms_norm(b.get(), a.get(), y, n, 1e-5f); });
    result([&](float* y) { kernels->rms_norm(a.get(), nullptr, y, n, 1e-5f); });
    result([&](float* y) { kernels->layer_norm(b.get(), a.get(), b.get(), y, n, 1e-5f); });
    result([&](float* y) { kernels->layer_norm(b.get(), nullptr, nullptr, y, n, 1e-5f); });
    result([&](float* y) { kernels->clamp(a.get(), 0.5f, y, n); });
    result([&](float* y) { kernels->add(a.get(), b.get(), y, n); });
    result([&](float* y) { kernels->mul(a.get(), b.get(), y, n); });
    result([&](float* y) { kernels->scale(a.get(), -0.3f, y, n); });
    for (int kind = 0; kind < kNumActivations; ++kind) {
      result([&](float* y) { kernels->activation[kind](a.get(), y, n); });
    }
    for (int kind = 0; kind < kNumGates; ++kind) {
      result([&](float* y) { kernels->glu[kind](a.get(), b.get(), y, n); });
    }
    Exact<std::uint16_t> halves(n);
    kernels->to_half(b.get(), halves.get(), n);
    outcome.add(halves.get(), n);
    for (const Exact<float>* row : {&b, &a}) {  // a holds what no scale can express
      Exact<std::int8_t> codes(n);
      Exact<std::uint16_t> scales((n + kKvGroup - 1) / kKvGroup);
      kernels->to_q8_0(row->get(), codes.get(), scales.get(), n);
      outcome.add(codes.get(), n);
      outcome.add(scales.get(), scales.size());
    }
    outcome.compare(*kernels);
  }
}

/// Matrices of an adapter: a [rank][n], b [rank][n].
void check_lora(std::int64_t n, std::int64_t rank) {
  Exact<float> x = random_floats(n), a = random_floats(rank * n), b = random_floats(rank * n);
  Outcome outcome("adapter of rank " + std::to_string(rank) + " for " + std::to_string(n));
  for (const KernelTable* kernels : levels()) {
    Exact<float> t(rank), y(n);
    kernels->lora_down(x.get(), a.get(), n, rank, 0.7f, t.get());
    std::memcpy(y.get(), x.get(), sizeof(float) * static_cast<std::size_t>(n));
    kernels->lora_up(t.get(), rank, b.get(), n, y.get(), n);
    outcome.add(t.get(), rank);
    outcome.add(y.get(), n);
    outcome.compare(*kernels);
  }
}

void check_recurrent(int n) {
  constexpr int kRows = 5;
  Exact<float> state = random_floats(kRows * n), a = random_floats(kRows * n), b = random_floats(n);
  Exact<float> c = random_floats(n), x = random_floats(kRows), dt = random_floats(kRows), d = random_floats(kRows);
  const float* inputs[] = {nullptr, b.get(), c.get()};
  Exact<float> taps = random_floats(3 * n);
  Outcome outcome("recurrent kernels of " + std::to_string(n));
  for (const KernelTable* kernels : levels()) {
    Exact<float> conv(n);
    for (const float* bias : {static_cast<const float*>(nullptr), static_cast<const float*>(b.get())}) {
      kernels->short_conv({inputs, 3, n, taps.get(), n, bias, conv.get()});
      outcome.add(conv.get(), n);
    }
    for (const float* from : {static_cast<const float*>(nullptr), static_cast<const float*>(state.get())}) {
      for (const bool per_row : {false, true}) {
        Exact<float> target(kRows * n), y(kRows);
        kernels->ssm_scan(
            {from, target.get(), kRows, n, x.get(), b.get(), c.get(), y.get(), per_row, dt.get(), a.get(), d.get()});
        outcome.add(target.get(), kRows * n);
        outcome.add(y.get(), kRows);
      }
      Exact<float> target(kRows * n), y(n);
      kernels->delta_rule({from, target.get(), kRows, n, x.get(), dt.get(), b.get(), -0.4f, 0.7f, y.get()});
      outcome.add(target.get(), kRows * n);
      outcome.add(y.get(), n);
    }
    outcome.compare(*kernels);
  }
}

void check_rope(int heads, int head_dim, int rotary_dim, bool interleaved) {
  Exact<float> cosines(rotary_dim / 2), sines(rotary_dim / 2), frequencies = random_floats(rotary_dim / 2);
  rope_angles(12345, {frequencies.get(), static_cast<std::size_t>(rotary_dim / 2)}, 1.5f, cosines.get(), sines.get());
  Exact<float> x = random_floats(heads * head_dim);
  Outcome outcome("rope of " + std::to_string(rotary_dim) + " in " + std::to_string(head_dim));
  for (const KernelTable* kernels : levels()) {
    Exact<float> y(heads * head_dim);
    std::memcpy(y.get(), x.get(), sizeof(float) * static_cast<std::size_t>(heads * head_dim));
    kernels->rope(y.get(), heads, head_dim, rotary_dim, interleaved, cosines.get(), sines.get());
    outcome.add(y.get(), y.size());
    outcome.compare(*kernels);
  }
}

/// Keys or values of a page, [64][dim] in rows of `stride` elements; keys lie the other way, which makes no difference
/// here.
Exact<std::uint8_t> random_tile(KvType type, int dim, int stride) {
  const std::int64_t count = kPageSlots * stride;
  const std::int64_t scales = type == KvType::kQ8_0 ? (dim + kKvGroup - 1) / kKvGroup * kPageSlots : 0;
  Exact<std::uint8_t> tile(count * (type == KvType::kF32 ? 4 : type == KvType::kF16 ? 2 : 1) + 2 * scales);
  for (std::int64_t i = 0; i < count; ++i) {
    switch (type) {
      case KvType::kF32:
        reinterpret_cast<float*>(tile.get())[i] = random_float();
        break;
      case KvType::kF16:  // 0.125 to 2, of both signs
        reinterpret_cast<std::uint16_t*>(tile.get())[i] = static_cast<std::uint16_t>(0x3000 + (generator() & 0x8FFF));
        break;
      case KvType::kQ8_0:
        tile[i] = static_cast<std::uint8_t>(generator());
        break;
    }
  }
  for (std::int64_t i = 0; i < scales; ++i) {  // 0.0078 to 0.03
    reinterpret_cast<std::uint16_t*>(tile.get() + count)[i] =
        static_cast<std::uint16_t>(0x2000 + (generator() & 0x7FF));
  }
  return tile;
}

/// `latent`: the values are the beginnings of the keys.
void check_attention(KvType type, int head_dim, int value_dim, std::int64_t first_key, std::int64_t last_key,
                     float softcap, bool latent = false) {
  const int stride = (value_dim + 15) / 16 * 16;
  const std::int64_t tiles = last_key / kPageSlots + 1;
  std::vector<Exact<std::uint8_t>> keys, values;
  std::vector<const std::uint8_t*> key_tiles, value_tiles;
  for (std::int64_t i = 0; i < tiles; ++i) {
    keys.push_back(random_tile(type, head_dim, head_dim));
    values.push_back(random_tile(type, value_dim, stride));
    key_tiles.push_back(keys.back().get());
    value_tiles.push_back(values.back().get());
  }
  constexpr int kQueries = 24;
  std::vector<Exact<float>> queries;
  for (int q = 0; q < kQueries; ++q) queries.push_back(random_floats(head_dim));
  Outcome outcome("attention " + std::to_string(head_dim) + ", " + std::to_string(value_dim) + ", keys " +
                  std::to_string(first_key) + " to " + std::to_string(last_key));
  for (const KernelTable* kernels : levels()) {
    // Rows x heads of one call, a divisor of the queries; all see the same keys here.
    for (const auto& [rows, heads] : {std::pair{1, 1}, {1, 2}, {1, 3}, {2, 3}, {3, 4}, {12, 1}, {3, 8}}) {
      const int together = rows * heads;
      std::vector<Exact<float>> outputs;
      for (int q = 0; q < kQueries; ++q) outputs.emplace_back(value_dim);
      for (int q = 0; q < kQueries; q += together) {
        AttendArgs args;
        const float* from[kQueries];
        float* to[kQueries];
        args.rows = rows;
        args.heads = heads;
        for (int i = 0; i < together; ++i) {
          from[i] = queries[static_cast<std::size_t>(q + i)].get();
          to[i] = outputs[static_cast<std::size_t>(q + i)].get();
        }
        args.queries = from;
        args.outputs = to;
        args.head_dim = head_dim;
        args.value_dim = value_dim;
        const std::vector<float> scales(static_cast<std::size_t>(rows), 0.25f);
        args.scales = scales.data();
        args.softcap = softcap;
        const std::vector<std::int64_t> first_keys(static_cast<std::size_t>(rows), first_key);
        const std::vector<std::int64_t> last_keys(static_cast<std::size_t>(rows), last_key);
        args.first_keys = first_keys.data();
        args.last_keys = last_keys.data();
        args.key_tiles = key_tiles.data();
        args.value_tiles = latent ? nullptr : value_tiles.data();
        args.value_stride = stride;
        Exact<float> scratch(attend_scratch(together, value_dim));
        args.scratch = scratch.get();
        (type == KvType::kF32   ? kernels->attend_f32
         : type == KvType::kF16 ? kernels->attend_f16
                                : kernels->attend_q8_0)(args);
      }
      for (Exact<float>& output : outputs) outcome.add(output.get(), value_dim);
      outcome.compare(*kernels);
    }
  }
}

}  // namespace

int main() {
  std::printf("levels:");
  for (const KernelTable* kernels : levels()) std::printf(" %s", kernels->isa);
  std::printf("\n");
  int panels = 0;
  for (const Format& format : formats()) {
    try {
      layout_for(format);
    } catch (const UnsupportedModelError&) {
      continue;
    }
    check_panels(format);
    ++panels;
  }
  for (const std::int64_t n : {1, 7, 15, 16, 17, 31, 33, 49, 64}) check_rows(n);
  for (const std::int64_t n : {1, 15, 16, 17, 64, 100}) {
    check_recurrent(static_cast<int>(n));
    for (const std::int64_t rank : {1, 3, 16}) check_lora(n, rank);
  }
  for (const bool interleaved : {false, true}) {
    for (const int rotary : {2, 6, 32, 34}) check_rope(3, rotary, rotary, interleaved);
    check_rope(2, 40, 20, interleaved);
  }
  for (const auto& [head_dim, value_dim] : {std::pair{16, 16}, {7, 1}, {20, 33}, {80, 80}, {64, 128}}) {
    for (const auto& [first, last] : {std::pair{0, 0}, {0, 62}, {0, 63}, {0, 64}, {63, 64}, {10, 130}, {127, 127}}) {
      check_attention(KvType::kF32, head_dim, value_dim, first, last, 0.0f);
      check_attention(KvType::kF16, head_dim, value_dim, first, last, 3.0f);
      check_attention(KvType::kQ8_0, head_dim, value_dim, first, last, 0.0f);
    }
  }
  for (const KvType type : {KvType::kF32, KvType::kF16, KvType::kQ8_0}) {
    for (const auto& [head_dim, value_dim] : {std::pair{20, 20}, {88, 72}, {80, 64}, {33, 1}}) {
      check_attention(type, head_dim, value_dim, 10, 130, 0.0f, true);
    }
  }
  check_attention(KvType::kF32, 16, 16, 0, 1100, 0.0f);
  check_attention(KvType::kF16, 16, 16, 1000, 1030, 0.0f);
  check_attention(KvType::kQ8_0, 16, 16, 1000, 1030, 0.0f);
  std::printf("%d formats, %d failures\n", panels, failures);
  return failures == 0 && panels == 36 ? 0 : 1;
}
