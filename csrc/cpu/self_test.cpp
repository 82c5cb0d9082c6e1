#include "cpu/self_test.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <span>

#include "base/buffer.h"
#include "base/error.h"
#include "base/float_mode.h"
#include "cpu/self_test_checker.h"
#include "cpu/steps.h"
#include "engine/batch.h"
#include "quant/format.h"
#include "quant/layout.h"

namespace sterna::cpu {
namespace {

// As many rows of weights as the widest tile has.
constexpr int kPanels = kMaxGemmWidth / kPanelRows;

/// A random matrix of one format, packed: panels as the kernels read them, those of kNative unpacked.
struct Weights {
  Weights(const Format& format, Checker& checker);

  const std::uint8_t* panel(int index) const { return panels.data() + index * panel_bytes; }

  const Format& format;
  std::int64_t k;
  LayoutId layout;
  std::int64_t panel_bytes;
  Buffer panels;
};

/// Random bytes of a block, tried again until its weights are neither huge nor all but zero.
void fill_block(const Format& format, std::span<std::uint8_t> block, Checker& checker) {
  float values[256];
  float largest = 0.0f;
  do {
    for (std::uint8_t& byte : block) byte = static_cast<std::uint8_t>(checker.bits() >> 13);
    format.dequantize(block.data(), values);
    largest = 0.0f;
    for (std::uint32_t i = 0; i < format.block_size; ++i) {
      largest = std::isnan(values[i]) ? INFINITY : std::max(largest, std::fabs(values[i]));
    }
  } while (!(largest < 1e3f && largest > 1e-4f));
}

Weights::Weights(const Format& format, Checker& checker) : format(format) {
  // Odd numbers of blocks where they are small; columns that fill no vector where there are none.
  k = format.block_size == 1 ? 101 : (format.block_size < 128 ? 11 : 2) * format.block_size;
  const std::int64_t row_bytes = k / format.block_size * format.block_bytes;
  PackedMatrix matrix = make_matrix(format, kPanels * kPanelRows, k);
  std::vector<std::uint8_t> rows(static_cast<std::size_t>(kPanelRows * row_bytes));
  const bool native = matrix.layout == LayoutId::kNative;
  layout = native ? LayoutId::kUnpacked : matrix.layout;
  panel_bytes = native ? k / 256 * layout_spec(layout).block_bytes() : matrix.panel_bytes;
  panels = Buffer(static_cast<std::size_t>(kPanels * panel_bytes));
  for (int p = 0; p < kPanels; ++p) {
    for (std::size_t at = 0; at < rows.size(); at += format.block_bytes) {
      fill_block(format, std::span(rows).subspan(at, format.block_bytes), checker);
    }
    pack_panel(matrix, p, rows);
    if (native) {
      unpack_native_panel(matrix, p, panels.data() + p * panel_bytes);
    } else {
      std::copy_n(matrix.panel(p), panel_bytes, panels.data() + p * panel_bytes);
    }
  }
}

/// How a matmul rounds its activations, and whether it sums over all of k before any scale.
struct Rounding {
  std::int64_t block;  // k per activation scale; 0: not rounded
  std::int64_t scale_every;
  bool sum;
};

std::vector<Rounding> roundings(const Weights& w) {
  if (w.format.scales == ScaleKind::kNone) return {{0, 0, false}};
  const std::int64_t every = w.format.scales == ScaleKind::kSuper ? 256 : 32;
  std::vector<Rounding> found{{every, every, false}, {w.k, every, false}};
  if (is_ternary_layout(w.layout)) found.push_back({w.k, every, true});
  return found;
}

/// Rows of activations as the kernels read them.
struct PreparedRows {
  PreparedRows(const KernelTable& table, const Rounding& rounding, std::int64_t k, std::span<const float> x,
               TileForm form)
      : space{nullptr, k, rounding.block, rounding.scale_every} {
    memory = Buffer(static_cast<std::size_t>(space.tile_bytes(form.rows)));
    space.base = memory.data();
    tile = space.tile(0, form.rows, form);
    for (int row = 0; row < form.rows; ++row) {
      const float* from = x.data() + row * k;
      if (rounding.block == 0) {
        for (std::int64_t i = 0; i < k; ++i) tile.values[i * form.rows + row] = from[i];
      } else {
        (form.gemm ? table.quantize_gemm : table.quantize)(from, k, rounding.block, rounding.scale_every, tile, row);
      }
    }
  }
  TileSpace space;
  Buffer memory;
  ActivationTile tile;
};

/// [rows][kPanels * 16] by the kernels for few rows.
Floats multiply_few(const KernelTable& table, const Weights& w, const Rounding& rounding, std::span<const float> x,
                    int rows) {
  const PreparedRows prepared(table, rounding, w.k, x, {rows, false});
  const int layout = static_cast<int>(w.layout);
  const PanelKernel kernel = rounding.sum ? table.panel_sum[layout][rows - 1] : table.panel[layout][rows - 1];
  Floats result(static_cast<std::size_t>(rows * kPanels * kPanelRows));
  Floats out(static_cast<std::size_t>(rows * kPanelRows));
  for (int p = 0; p < kPanels; ++p) {
    kernel(w.panel(p), w.k, prepared.tile, out.data());
    for (int row = 0; row < rows; ++row) {
      std::copy_n(out.data() + row * kPanelRows, kPanelRows, result.data() + (row * kPanels + p) * kPanelRows);
    }
  }
  return result;
}

/// The same by the kernels for many rows.
Floats multiply_many(const KernelTable& table, const Weights& w, const Rounding& rounding, std::span<const float> x,
                     int rows) {
  const PreparedRows prepared(table, rounding, w.k, x, {rows, true});
  const GemmKind kind = gemm_kind(w.layout, rounding.sum);
  const int width = table.gemm_panels * kPanelRows;
  Buffer memory(static_cast<std::size_t>(wide_tile_bytes(kind, w.k, width)));
  const WideTile wide = WideTile::at(memory.data(), kind, w.k, width);
  Floats result(static_cast<std::size_t>(rows * kPanels * kPanelRows));
  Floats out(static_cast<std::size_t>(rows * width));
  for (int first = 0; first < kPanels; first += table.gemm_panels) {
    for (int p = 0; p < table.gemm_panels; ++p) {
      table.unpack[static_cast<int>(w.layout)](w.panel(first + p), w.k, wide, p * kPanelRows);
    }
    (kind == GemmKind::kSum ? table.gemm_sum : table.gemm[static_cast<int>(w.layout)])[rows - 1](
        wide, w.k, prepared.tile, out.data());
    for (int row = 0; row < rows; ++row) {
      std::copy_n(out.data() + row * width, width, result.data() + (row * kPanels + first) * kPanelRows);
    }
  }
  return result;
}

/// Matmuls of all formats that can be weights; each row of each tile as the definition has it alone.
KernelCheck check_matmuls(const KernelTable& level, const KernelTable& definition, bool many, std::uint64_t seed) {
  Checker checker(many ? "matmuls of many rows" : "matmuls of few rows", seed);
  const int most = many ? level.gemm_rows : level.tile_rows;
  for (const Format& format : formats()) {
    try {
      layout_for(format);
    } catch (const UnsupportedModelError&) {
      continue;
    }
    const Weights w(format, checker);
    const Floats x = checker.numbers(kMaxTileRows * w.k);
    for (const Rounding& rounding : roundings(w)) {
      Floats wanted;
      for (int row = 0; row < most; ++row) {
        const Floats one =
            multiply_few(definition, w, rounding, std::span(x).subspan(static_cast<std::size_t>(row * w.k)), 1);
        wanted.insert(wanted.end(), one.begin(), one.end());
      }
      for (int rows = 1; rows <= most; ++rows) {
        const Floats got = (many ? multiply_many : multiply_few)(level, w, rounding, x, rows);
        const std::span<const float> of_rows = std::span<const float>(wanted).first(got.size());
        checker.expect_same(std::string(format.name) + ", " + std::to_string(rows) + " rows, " +
                                std::to_string(rounding.block) + " per activation scale",
                            std::span<const float>(got), of_rows);
      }
    }
  }
  return std::move(checker).result();
}

/// Codes, scales and sums of rows, in the form for few rows.
KernelCheck check_quantize(const KernelTable& level, const KernelTable& definition, std::uint64_t seed) {
  Checker checker("rounding of activations", seed);
  for (const std::int64_t k : {256, 1024}) {
    Floats x = checker.numbers(k);
    std::fill_n(x.begin(), 64, 0.0f);
    x[70] = 1e30f;
    x[130] = 3e-41f;
    for (const Rounding& rounding : {Rounding{32, 32, false}, {256, 256, false}, {k, 32, false}, {k, 256, false}}) {
      const PreparedRows got(level, rounding, k, x, {1, false}), wanted(definition, rounding, k, x, {1, false});
      const std::string what = std::to_string(rounding.block) + " of " + std::to_string(k);
      const auto same = [&]<class T>(const char* part, const T* a, const T* b, std::int64_t count) {
        const auto size = static_cast<std::size_t>(count);
        checker.expect_same(std::string(part) + ", " + what, std::span(a, size), std::span(b, size));
      };
      const std::int8_t *codes = got.tile.codes, *right = wanted.tile.codes;
      same("codes", codes, right, k);
      same("scales", static_cast<const float*>(got.tile.scales), static_cast<const float*>(wanted.tile.scales),
           k / rounding.scale_every);
      same("sums", static_cast<const std::int32_t*>(got.tile.sums16),
           static_cast<const std::int32_t*>(wanted.tile.sums16), k / 16);
      same("sums", static_cast<const std::int32_t*>(got.tile.sums32),
           static_cast<const std::int32_t*>(wanted.tile.sums32), k / 32);
      same("scaled sums", static_cast<const float*>(got.tile.scaled_sums),
           static_cast<const float*>(wanted.tile.scaled_sums), k / 32);
    }
  }
  return std::move(checker).result();
}

/// Results of one tile on their way out, with and without what is added and multiplied.
Floats finished(const KernelTable& table, const Floats& inputs, int which, int count) {
  constexpr int kRows = 3, kWidth = kMaxGemmWidth;
  Floats y(static_cast<std::size_t>(kRows * kWidth));
  FinishArgs args{};
  args.rows = kRows;
  args.width = kWidth;
  args.count = count;
  args.gate = inputs.data();
  args.up = inputs.data() + kRows * kWidth;
  const bool more = which % 2 == 1;
  args.bias = more ? inputs.data() + 2 * kRows * kWidth : nullptr;
  args.up_bias = more ? args.bias + kWidth : nullptr;
  args.residual = more ? args.bias + 2 * kWidth : nullptr;
  args.residual_stride = kWidth;
  args.y = y.data();
  args.y_stride = kWidth;
  (which < 2 ? table.finish : table.finish_glu[which / 2 - 1])(args);
  return y;
}

/// Row-wise float kernels.
KernelCheck check_rows(const KernelTable& level, const KernelTable& definition, std::uint64_t seed) {
  Checker checker("row-wise floats", seed);
  for (const std::int64_t n : {1, 15, 16, 17, 100, 257}) {
    Floats a = checker.numbers(n), b = checker.numbers(n);
    if (n > 3) {
      a[1] = NAN;
      a[2] = INFINITY;
      b[3] = 1e-41f;
    }
    const auto same = [&](const char* what, auto call) {
      Floats got(a.size()), wanted(a.size());
      call(level, got.data());
      call(definition, wanted.data());
      checker.expect_same(std::string(what) + " of " + std::to_string(n), got, wanted);
    };
    same("rms_norm", [&](const KernelTable& t, float* y) { t.rms_norm(b.data(), a.data(), y, n, 1e-5f); });
    same("rms_norm", [&](const KernelTable& t, float* y) { t.rms_norm(b.data(), nullptr, y, n, 1e-5f); });
    for (const float* w : {static_cast<const float*>(nullptr), static_cast<const float*>(a.data())}) {
      for (const float* bias : {static_cast<const float*>(nullptr), w}) {
        same("layer_norm", [&](const KernelTable& t, float* y) { t.layer_norm(b.data(), w, bias, y, n, 1e-5f); });
      }
    }
    same("add", [&](const KernelTable& t, float* y) { t.add(a.data(), b.data(), y, n); });
    same("mul", [&](const KernelTable& t, float* y) { t.mul(a.data(), b.data(), y, n); });
    same("lora_down", [&](const KernelTable& t, float* y) {
      std::fill_n(y, n, 0.0f);
      for (std::int64_t j = 0; j < n; j += 7) t.lora_down(b.data(), a.data(), n - j, 1, 0.7f, y + j);
    });
    same("lora_up", [&](const KernelTable& t, float* y) {
      std::copy_n(b.data(), n, y);
      t.lora_up(a.data(), std::min<std::int64_t>(2, n), a.data(), 0, y, n);
    });
    same("scale", [&](const KernelTable& t, float* y) { t.scale(a.data(), -0.3f, y, n); });
    same("clamp", [&](const KernelTable& t, float* y) { t.clamp(a.data(), 0.5f, y, n); });
    for (int kind = 0; kind < kNumActivations; ++kind) {
      same("activation", [&](const KernelTable& t, float* y) { t.activation[kind](a.data(), y, n); });
    }
    for (int kind = 0; kind < kNumGates; ++kind) {
      same("glu", [&](const KernelTable& t, float* y) { t.glu[kind](a.data(), b.data(), y, n); });
    }
    std::vector<std::uint16_t> got(a.size()), wanted(a.size());
    level.to_half(b.data(), got.data(), n);
    definition.to_half(b.data(), wanted.data(), n);
    checker.expect_same("to_half", std::span<const std::uint16_t>(got), std::span<const std::uint16_t>(wanted));
    for (const Floats& row : {a, b}) {  // a holds what no scale can express
      std::vector<std::int8_t> codes(row.size()), right(row.size());
      level.to_q8_0(row.data(), codes.data(), got.data(), n);
      definition.to_q8_0(row.data(), right.data(), wanted.data(), n);
      checker.expect_same("to_q8_0", std::span<const std::int8_t>(codes), std::span<const std::int8_t>(right));
      checker.expect_same("to_q8_0", std::span<const std::uint16_t>(got), std::span<const std::uint16_t>(wanted));
    }
  }
  const Floats inputs = checker.numbers(3 * 3 * kMaxGemmWidth + 2 * kMaxGemmWidth);
  for (int which = 0; which < 2 * (kNumGates + 1); ++which) {
    for (const int count : {1, 16, 27, kMaxGemmWidth}) {
      checker.expect_same("finish", finished(level, inputs, which, count), finished(definition, inputs, which, count));
    }
  }
  return std::move(checker).result();
}

KernelCheck check_rope(const KernelTable& level, const KernelTable& definition, std::uint64_t seed) {
  Checker checker("rope", seed);
  constexpr int kHeads = 3, kHeadDim = 72;
  for (const int rotary : {2, 34, 64, kHeadDim}) {
    const Floats cosines = checker.numbers(rotary / 2), sines = checker.numbers(rotary / 2);
    for (const bool interleaved : {false, true}) {
      Floats got = checker.numbers(kHeads * kHeadDim), wanted = got;
      level.rope(got.data(), kHeads, kHeadDim, rotary, interleaved, cosines.data(), sines.data());
      definition.rope(wanted.data(), kHeads, kHeadDim, rotary, interleaved, cosines.data(), sines.data());
      checker.expect_same("rope of " + std::to_string(rotary), got, wanted);
    }
  }
  return std::move(checker).result();
}

Program with_slot(const KvSlot& slot) {
  Program program;
  program.kv_slots = {slot};
  return program;
}

/// Keys and values of one layer and head in pages of a cache.
struct KvPages {
  KvPages(Checker& checker, KvType type, const KvSlot& slot, int pages)
      : storage(KvLayout(with_slot(slot), type, kKvBackend)) {
    storage.reserve(0, pages);
    const KvStorage::Layer& layer = storage.layer(0);
    for (int page = 0; page < pages; ++page) {
      std::uint8_t* keys = storage.keys(page, layer, 0);
      std::uint8_t* values = storage.values(page, layer, 0);
      std::uint8_t* end = keys + layer.head_bytes;
      if (type == KvType::kF32) {
        for (std::int64_t i = 0; i < layer.head_bytes / 4; ++i) reinterpret_cast<float*>(keys)[i] = checker.number();
      } else if (type == KvType::kF16) {  // 0.125 to 2, of both signs
        fill_halves(checker, keys, end, 0x3000, 0x8FFF);
      } else {
        for (std::uint8_t* code = keys; code != end; ++code) *code = static_cast<std::uint8_t>(checker.bits());
        // Scales of 0.008 to 0.03.
        fill_halves(checker, KvStorage::key_scales(keys, layer), values, 0x2000, 0x7FF);
        if (!slot.latent) fill_halves(checker, KvStorage::value_scales(values, layer), end, 0x2000, 0x7FF);
      }
      key_tiles.push_back(keys);
      value_tiles.push_back(values);
    }
  }
  /// Halves whose bits are `first` and some of `mask`.
  static void fill_halves(Checker& checker, void* begin, void* end, std::uint64_t first, std::uint64_t mask) {
    for (auto* at = static_cast<std::uint16_t*>(begin); at != end; ++at) {
      *at = static_cast<std::uint16_t>(first + (checker.bits() & mask));
    }
  }
  KvStorage storage;
  std::vector<const std::uint8_t*> key_tiles, value_tiles;
};

/// Rows of queries, `heads` that share keys each; row i sees keys first + i * step to last + i * step.
struct AttentionCase {
  int rows, heads, head_dim, value_dim;
  std::int64_t first_key, last_key;
  std::int64_t step;
  float softcap;
  KvType type;
  bool biased = false;  // with slopes and sinks
  bool latent = false;  // values are the beginnings of keys
};

/// Rows begin .. begin + rows - 1 in one call; outputs [rows][heads][value_dim].
Floats attend(const KernelTable& table, const AttentionCase& of, const KvPages& pages, const Floats& queries, int begin,
              int rows, int first_head, int heads) {
  std::vector<const float*> from;
  std::vector<float*> to;
  std::vector<std::int64_t> first_keys, last_keys;
  Floats scales, slopes, sinks;
  Floats outputs(static_cast<std::size_t>(rows * heads * of.value_dim));
  Floats scratch(static_cast<std::size_t>(attend_scratch(rows * heads, of.value_dim)));
  for (int row = 0; row < rows; ++row) {
    first_keys.push_back(of.first_key + (begin + row) * of.step);
    last_keys.push_back(of.last_key + (begin + row) * of.step);
    scales.push_back(0.25f + 0.01f * static_cast<float>(begin + row));
    for (int head = 0; head < heads; ++head) {
      from.push_back(queries.data() + ((begin + row) * of.heads + first_head + head) * of.head_dim);
      to.push_back(outputs.data() + (row * heads + head) * of.value_dim);
    }
  }
  AttendArgs args;
  args.queries = from.data();
  args.outputs = to.data();
  args.rows = rows;
  args.heads = heads;
  args.head_dim = of.head_dim;
  args.value_dim = of.value_dim;
  for (int head = first_head; head < first_head + heads; ++head) {
    slopes.push_back(0.01f * static_cast<float>(head + 1));
    sinks.push_back(static_cast<float>(head) - 1.5f);
  }
  args.scales = scales.data();
  if (of.biased) {
    args.slopes = slopes.data();
    args.sinks = sinks.data();
    args.positions = last_keys.data();
  }
  args.softcap = of.softcap;
  args.first_keys = first_keys.data();
  args.last_keys = last_keys.data();
  args.key_tiles = pages.key_tiles.data();
  args.value_tiles = of.latent ? nullptr : pages.value_tiles.data();
  args.value_stride = (of.value_dim + 15) / 16 * 16;
  args.scratch = scratch.data();
  (of.type == KvType::kF32 ? table.attend_f32 : of.type == KvType::kF16 ? table.attend_f16 : table.attend_q8_0)(args);
  return outputs;
}

/// Groups of queries as the definition has each alone.
KernelCheck check_attention(const KernelTable& level, const KernelTable& definition, std::uint64_t seed) {
  Checker checker("attention", seed);
  for (const auto& [type, name] : {std::pair{KvType::kF32, "f32"}, {KvType::kF16, "f16"}, {KvType::kQ8_0, "q8_0"}}) {
    for (const AttentionCase& of : {AttentionCase{1, 1, 64, 64, 0, 0, 0, 0.0f, type},
                                    {1, 4, 64, 64, 0, 130, 0, 0.0f, type},
                                    {7, 1, 128, 128, 0, 120, 1, 0.0f, type},
                                    {5, 3, 80, 80, 10, 1100, 1, 30.0f, type},
                                    {8, 4, 20, 33, 0, 60, 3, 0.0f, type},
                                    {6, 3, 32, 32, 20, 1050, 5, 2.0f, type, true},
                                    {2, 16, 32, 32, 60, 70, 64, 0.0f, type},
                                    {3, 5, 88, 72, 10, 140, 7, 0.0f, type, false, true}}) {
      const KvSlot slot{0, 1, of.head_dim, of.value_dim, of.latent};
      const std::int64_t last_key = of.last_key + (of.rows - 1) * of.step;
      const KvPages pages(checker, type, slot, static_cast<int>(last_key / kPageSlots) + 1);
      const Floats queries = checker.numbers(of.rows * of.heads * of.head_dim);
      Floats wanted;
      for (int row = 0; row < of.rows; ++row) {
        for (int head = 0; head < of.heads; ++head) {
          const Floats one = attend(definition, of, pages, queries, row, 1, head, 1);
          wanted.insert(wanted.end(), one.begin(), one.end());
        }
      }
      checker.expect_same(std::string(name) + ", heads of " + std::to_string(of.head_dim) + ", " +
                              std::to_string(of.rows) + " x " + std::to_string(of.heads) + " queries",
                          attend(level, of, pages, queries, 0, of.rows, 0, of.heads), wanted);
    }
  }
  return std::move(checker).result();
}

}  // namespace

std::vector<KernelCheck> check_kernels(const KernelTable& level, const KernelTable& definition, std::uint64_t seed) {
  const FloatMode mode;
  std::vector<KernelCheck> found;
  found.push_back(check_quantize(level, definition, seed));
  found.push_back(check_matmuls(level, definition, false, seed));
  if (level.gemm_rows != 0) found.push_back(check_matmuls(level, definition, true, seed));
  found.push_back(check_rows(level, definition, seed));
  found.push_back(check_rope(level, definition, seed));
  found.push_back(check_recurrent(level, definition, seed));
  found.push_back(check_attention(level, definition, seed));
  return found;
}

}  // namespace sterna::cpu
