#include "cuda/kv_storage.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "base/error.h"

namespace sterna::cuda {
namespace {

constexpr std::int64_t kSlabBytes = std::int64_t{64} << 20;
constexpr std::int64_t kMostPages = std::int64_t{1} << 20;

}  // namespace

KvLayer describe_layer(const sterna::KvLayout& layout, std::int64_t index) {
  const sterna::KvLayout::Layer& layer = layout.layer(index);
  return {nullptr,         layer.offset,   layer.head_bytes, layer.value_offset, static_cast<std::int32_t>(layer.pool),
          layer.num_heads, layer.head_dim, layer.value_dim,  layer.value_stride, layer.latent,
          layout.type()};
}

KvStorage::KvStorage(const sterna::KvLayout& layout, std::shared_ptr<const Device> device)
    : sterna::KvLayout(layout), device_(std::move(device)), pages_(pools().size()) {
  std::uint64_t smallest = device_->info().total_bytes;
  for (const KvPoolInfo& pool : pools()) smallest = std::min(smallest, std::max<std::uint64_t>(pool.page_bytes, 256));
  table_size_ = std::min(kMostPages, static_cast<std::int64_t>(device_->info().total_bytes / smallest) + 1);
  for (std::size_t pool = 0; pool < pools().size(); ++pool) {
    tables_.emplace_back(device_, static_cast<std::uint64_t>(table_size_) * sizeof(std::uint8_t*));
  }
}

KvLayer KvStorage::device_layer(std::int64_t index) const {
  KvLayer layer = describe_layer(*this, index);
  layer.pages = tables_[static_cast<std::size_t>(layer.pool)].as<std::uint8_t*>();
  return layer;
}

std::uint8_t* KvStorage::page(std::size_t pool, std::int32_t number) const {
  if (number < 0 || number >= num_pages(pool)) {
    throw ArgumentError("page " + std::to_string(number) + " of " + std::to_string(num_pages(pool)));
  }
  return pages_[pool][static_cast<std::size_t>(number)];
}

void KvStorage::reserve(std::size_t pool, std::int32_t num_pages) {
  if (num_pages > table_size_) {
    throw MemoryBudgetError("a KV cache of " + std::to_string(num_pages) + " pages is more than the memory of " +
                            device_->info().name);
  }
  device_->use();
  const auto page_bytes = static_cast<std::int64_t>((pools()[pool].page_bytes + 255) / 256 * 256);
  std::vector<std::uint8_t*>& pages = pages_.at(pool);
  while (this->num_pages(pool) < num_pages) {
    const std::int64_t wanted = num_pages - this->num_pages(pool);
    const std::int64_t count =
        std::max<std::int64_t>(1, std::min(wanted, kSlabBytes / std::max<std::int64_t>(page_bytes, 1)));
    const DeviceMemory& slab = slabs_.emplace_back(device_, static_cast<std::uint64_t>(count * page_bytes));
    device_->fill_zero(slab.data(), slab.size());
    const std::size_t first = pages.size();
    for (std::int64_t i = 0; i < count; ++i) pages.push_back(slab.data() + i * page_bytes);
    const std::size_t added = (pages.size() - first) * sizeof(std::uint8_t*);
    device_->copy(tables_[pool].as<std::uint8_t*>() + first, pages.data() + first, added);
    device_->synchronize();  // before the vector may move
  }
  if (is_state(pool)) state_headers_.resize(pages.size(), {{0, 0}});
}

void KvStorage::copy_page(std::size_t pool, std::int32_t from, std::int32_t to) {
  device_->use();
  device_->copy(page(pool, to), page(pool, from), pools()[pool].page_bytes);
  if (is_state(pool)) state_header(to) = state_header(from);
}

void KvStorage::read_page(std::size_t pool, std::int32_t number, std::span<std::uint8_t> bytes) const {
  const std::uint64_t size = pools()[pool].page_bytes;
  if (bytes.size() != size) throw ArgumentError("a page has " + std::to_string(size) + " bytes");
  device_->use();
  device_->copy(bytes.data(), page(pool, number), size);
  device_->synchronize();
  if (!is_state(pool)) return;
  std::fill_n(bytes.begin(), kStateHeaderBytes, std::uint8_t{0});
  std::memcpy(bytes.data(), &state_header(number), sizeof(StateHeader));
}

void KvStorage::write_page(std::size_t pool, std::int32_t number, std::span<const std::uint8_t> bytes) {
  const std::uint64_t size = pools()[pool].page_bytes;
  if (bytes.size() != size) throw ArgumentError("a page has " + std::to_string(size) + " bytes");
  device_->use();
  device_->copy(page(pool, number), bytes.data(), size);
  device_->synchronize();
  if (is_state(pool)) std::memcpy(&state_header(number), bytes.data(), sizeof(StateHeader));
}

}  // namespace sterna::cuda
