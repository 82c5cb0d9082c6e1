/// The kernel that writes keys and values to the cache: floats against the transform in double, binary16 and q8_0 pages
/// against the rounding of those floats; run on the CPU.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <vector>

#include "base/half.h"
#include "cuda_launch.h"
#include "engine/batch.h"

using namespace sterna;
using namespace sterna::cuda;

namespace {

struct Case {
  int query_heads, key_heads, head_dim, value_dim, rotary_dim;
  bool latent, normed, interleaved, with_queries;
};

constexpr int kRows = 5;
constexpr int kPages = 6;
constexpr std::uint8_t kUntouched = 0xA5;

struct Written {
  std::vector<std::vector<std::uint8_t>> pages;
  std::vector<float> queries;
};

/// Rows 0..2 are positions 62..64 of sequence 0, rows 3 and 4 positions 7 and 8 of sequence 1.
constexpr int kPositions[kRows] = {62, 63, 64, 7, 8};
constexpr int kPageOf[kRows] = {4, 4, 1, 2, 2};

struct Inputs {
  std::vector<float> q, k, v, norm, cosines, sines;
};

std::int64_t bytes_of(KvType type, int dim, int stride) {
  if (type == KvType::kF32) return 64 * 4 * stride;
  if (type == KvType::kF16) return 64 * 2 * stride;
  return 64 * stride + 64 * 2 * ((dim + 31) / 32);
}

KvLayer layer_of(const Case& c, KvType type) {
  KvLayer layer{};
  layer.offset = 32;
  layer.pool = 0;
  layer.num_heads = c.key_heads;
  layer.head_dim = c.head_dim;
  layer.value_dim = c.value_dim;
  layer.value_stride = (c.value_dim + 15) / 16 * 16;
  layer.value_offset = bytes_of(type, c.head_dim, c.head_dim);
  layer.head_bytes = layer.value_offset + (c.latent ? 0 : bytes_of(type, c.value_dim, layer.value_stride));
  layer.latent = c.latent;
  layer.type = type;
  return layer;
}

Written store(const Case& c, KvType type, const Inputs& in) {
  Written written;
  KvLayer layer = layer_of(c, type);
  std::vector<std::uint8_t*> pointers;
  for (int page = 0; page < kPages; ++page) {
    written.pages.emplace_back(static_cast<std::size_t>(layer.offset + c.key_heads * layer.head_bytes), kUntouched);
  }
  for (auto& page : written.pages) pointers.push_back(page.data());
  layer.pages = pointers.data();

  TestBatch batch(kRows);
  batch.counts = {kRows, kRows, 2};
  batch.positions.assign(kPositions, kPositions + kRows);
  batch.sequences = {0, 0, 0, 1, 1};
  batch.last_rows = {2, 2, 2, 4, 4};
  batch.first_rows = {0, 3};
  batch.pages = {5, 4, 1, 2};
  batch.tables = {1, 3};
  StoreKvArguments a{};
  a.q = rows(in.q, c.query_heads * c.head_dim);
  a.k = rows(in.k, c.key_heads * c.head_dim + 1);
  a.v = rows(in.v, c.key_heads * c.value_dim + 2);
  written.queries.assign(static_cast<std::size_t>(kRows * c.query_heads * c.head_dim), -7.0f);
  if (c.with_queries) a.q_out = rows(written.queries, c.query_heads * c.head_dim);
  a.query_heads = c.query_heads;
  a.layer = layer;
  HeadTransform transform{};
  if (c.normed) transform.norm = in.norm.data();
  transform.eps = 1e-5f;
  if (c.rotary_dim > 0) {
    transform.cosines = rows(in.cosines, c.rotary_dim / 2);
    transform.sines = rows(in.sines, c.rotary_dim / 2);
  }
  transform.rotary_dim = c.rotary_dim;
  transform.interleaved = c.interleaved;
  a.query_transform = transform;
  a.key_transform = transform;
  batch.launch(Kernel::kStoreKv, a);
  return written;
}

std::vector<double> transformed(const Case& c, const Inputs& in, int row, const float* x) {
  std::vector<double> y(x, x + c.head_dim);
  if (c.normed) {
    double squares = 0;
    for (const double value : y) squares += value * value;
    for (int i = 0; i < c.head_dim; ++i) {
      y[static_cast<std::size_t>(i)] *= in.norm[static_cast<std::size_t>(i)] / std::sqrt(squares / c.head_dim + 1e-5);
    }
  }
  const int half = c.rotary_dim / 2;
  for (int i = 0; i < half; ++i) {
    double& first = y[static_cast<std::size_t>(c.interleaved ? 2 * i : i)];
    double& second = y[static_cast<std::size_t>(c.interleaved ? 2 * i + 1 : half + i)];
    const double cosine = in.cosines[static_cast<std::size_t>(row * half + i)];
    const double sine = in.sines[static_cast<std::size_t>(row * half + i)];
    const double turned = first * cosine - second * sine;
    second = second * cosine + first * sine;
    first = turned;
  }
  return y;
}

/// The bytes that a row of floats becomes: its codes, and its scales.
void expect_rounded(KvType type, const float* x, int dim, const std::uint8_t* codes, const std::uint8_t* scale_bytes) {
  if (type == KvType::kF16) {
    for (int i = 0; i < dim; ++i) {
      std::uint16_t half;
      std::memcpy(&half, codes + 2 * i, 2);
      const bool is_nan = std::isnan(x[i]) && std::isnan(sterna::half_to_float(half));
      if (!is_nan && half != sterna::float_to_half(x[i])) expect_near(half, sterna::float_to_half(x[i]), 0, "binary16");
    }
    return;
  }
  for (int group = 0; group * 32 < dim; ++group) {
    float largest = 0.0f;
    bool is_finite = true;
    for (int i = group * 32; i < dim && i < group * 32 + 32; ++i) {
      is_finite = is_finite && std::isfinite(x[i]);
      largest = std::max(largest, std::abs(x[i]));
    }
    const float d = largest / 127.0f;
    const std::uint16_t rounded = sterna::float_to_half(d);
    is_finite = is_finite && rounded < 0x7C00;
    std::uint16_t scale;
    std::memcpy(&scale, scale_bytes + 2 * group, 2);
    expect_near(scale, is_finite ? rounded : 0x7E00, 0, "scale");
    for (int i = group * 32; i < dim && i < group * 32 + 32; ++i) {
      const float expected = is_finite && rounded != 0 ? std::round(x[i] * (1.0f / d)) : 0.0f;
      expect_near(static_cast<std::int8_t>(codes[i]), expected, 0, "code");
    }
  }
}

void check(const Case& c, const Inputs& in) {
  const Written floats = store(c, KvType::kF32, in);
  const KvLayer float_layer = layer_of(c, KvType::kF32);
  for (int row = 0; row < kRows; ++row) {
    for (int head = 0; c.with_queries && head < c.query_heads; ++head) {
      const auto at = static_cast<std::size_t>((row * c.query_heads + head) * c.head_dim);
      const std::vector<double> expected = transformed(c, in, row, in.q.data() + at);
      for (std::size_t i = 0; i < expected.size(); ++i) {
        expect_near(floats.queries[at + i], expected[i], 1e-6, "query");
      }
    }
    if (!c.with_queries && floats.queries[0] != -7.0f) ++failures();
  }
  for (const KvType type : {KvType::kF32, KvType::kF16, KvType::kQ8_0}) {
    const Written written = store(c, type, in);
    const KvLayer layer = layer_of(c, type);
    std::vector<std::vector<bool>> is_written;
    for (const auto& page : written.pages) is_written.emplace_back(page.size());
    for (int row = 0; row < kRows; ++row) {
      const auto page = static_cast<std::size_t>(kPageOf[row]);
      for (int head = 0; head < c.key_heads; ++head) {
        for (const bool value : {false, true}) {
          if (value && c.latent) continue;
          const int dim = value ? c.value_dim : c.head_dim;
          const int stride = value ? layer.value_stride : c.head_dim;
          const int slot = kPositions[row] % 64;
          const auto tile = [&](const KvLayer& of) {
            return of.offset + head * of.head_bytes + (value ? of.value_offset : 0);
          };
          const int bytes = type == KvType::kF32 ? 4 : type == KvType::kF16 ? 2 : 1;
          const std::int64_t codes = tile(layer) + std::int64_t{slot} * stride * bytes;
          const std::int64_t scales = tile(layer) + 64 * stride + std::int64_t{slot} * ((dim + 31) / 32) * 2;
          std::fill_n(is_written[page].begin() + codes, dim * bytes, true);
          if (type == KvType::kQ8_0) std::fill_n(is_written[page].begin() + scales, (dim + 31) / 32 * 2, true);
          std::vector<float> x(static_cast<std::size_t>(dim));
          std::memcpy(x.data(), floats.pages[page].data() + tile(float_layer) + std::int64_t{slot} * stride * 4,
                      sizeof(float) * x.size());
          if (type != KvType::kF32) {
            expect_rounded(type, x.data(), dim, written.pages[page].data() + codes,
                           written.pages[page].data() + scales);
          } else if (value) {
            const float* from = in.v.data() + row * (c.key_heads * c.value_dim + 2) + head * c.value_dim;
            if (std::memcmp(from, x.data(), sizeof(float) * x.size()) != 0) ++failures();
          } else {
            const float* from = in.k.data() + row * (c.key_heads * c.head_dim + 1) + head * c.head_dim;
            const std::vector<double> expected = transformed(c, in, row, from);
            for (std::size_t i = 0; i < expected.size(); ++i) {
              if (std::isfinite(expected[i])) expect_near(x[i], expected[i], 1e-6, "key");
            }
          }
        }
      }
    }
    for (std::size_t page = 0; page < written.pages.size(); ++page) {
      for (std::size_t i = 0; i < written.pages[page].size(); ++i) {
        if (!is_written[page][i] && written.pages[page][i] != kUntouched) ++failures();
      }
    }
  }
}

Inputs inputs_for(const Case& c) {
  Inputs in;
  in.q = random_floats(kRows * c.query_heads * c.head_dim, 1);
  in.k = random_floats(kRows * (c.key_heads * c.head_dim + 1), 2, 3.0f);
  in.v = random_floats(kRows * (c.key_heads * c.value_dim + 2), 3);
  in.norm = random_floats(c.head_dim, 4);
  for (int i = 0; i < kRows * c.rotary_dim / 2; ++i) {
    in.cosines.push_back(static_cast<float>(std::cos(0.1 * i)));
    in.sines.push_back(static_cast<float>(std::sin(0.1 * i)));
  }
  return in;
}

}  // namespace

int main() {
  for (const Case& c :
       {Case{4, 2, 64, 64, 64, false, true, false, true}, Case{3, 3, 50, 37, 20, false, false, true, true},
        Case{2, 1, 128, 96, 128, false, true, true, true}, Case{5, 1, 31, 33, 0, false, true, false, true},
        Case{1, 1, 576, 512, 64, true, false, true, false}, Case{7, 7, 16, 1, 0, false, false, false, false}}) {
    check(c, inputs_for(c));
  }
  // Numbers that lie between two codes, that have no scale, and that are none.
  const Case plain{1, 1, 64, 64, 0, false, false, false, false};
  Inputs in = inputs_for(plain);
  for (int i = 0; i < 64; ++i) {
    in.v[static_cast<std::size_t>(i)] =
        static_cast<float>(i % 32 == 0 ? 127 : i - 32) + 0.5f * static_cast<float>(i % 32 != 0);
    in.v[static_cast<std::size_t>(66 + i)] = i < 32 ? 0.0f : 1e-7f * static_cast<float>(i);
    in.v[static_cast<std::size_t>(132 + i)] = 1e30f;
  }
  in.v[200] = std::numeric_limits<float>::quiet_NaN();
  in.v[240] = -std::numeric_limits<float>::infinity();
  in.k[3] = -std::numeric_limits<float>::quiet_NaN();
  in.k[70] = std::numeric_limits<float>::infinity();
  check(plain, in);
  return finish_test();
}
