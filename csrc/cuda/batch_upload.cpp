#include "cuda/batch_upload.h"

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

namespace sterna::cuda {
namespace {

/// Where each array of a batch begins, in bytes.
struct Places {
  std::uint64_t counts, tokens, positions, sequences, last_rows, output_rows, largest, first_rows, encoded_sizes,
      is_long, adapters, adapter_scales, given_rows, given, pages, tables, row_segments, segment_starts, segments,
      received;

  DeviceBatch in(std::uint8_t* base, std::int64_t num_pools) const {
    const auto ints = [base](std::uint64_t at) { return reinterpret_cast<const std::int32_t*>(base + at); };
    const auto floats = [base](std::uint64_t at) { return reinterpret_cast<const float*>(base + at); };
    return {ints(counts),
            ints(tokens),
            ints(positions),
            ints(sequences),
            ints(last_rows),
            ints(output_rows),
            ints(largest),
            ints(first_rows),
            ints(encoded_sizes),
            ints(is_long),
            ints(adapters),
            floats(adapter_scales),
            ints(given_rows),
            floats(given),
            ints(pages),
            ints(tables),
            static_cast<std::int32_t>(num_pools),
            ints(row_segments),
            ints(segment_starts),
            reinterpret_cast<const StateSegment*>(base + segments),
            floats(received)};
  }
};

/// What is read-only for kernels is filled in here.
template <class T>
T* writable(const T* place) {
  return const_cast<T*>(place);
}

}  // namespace

BatchUpload::BatchUpload(std::shared_ptr<const Device> device, std::int32_t max_tokens, std::int32_t hidden_size,
                         std::int64_t received_floats)
    : device_(std::move(device)),
      max_tokens_(max_tokens),
      hidden_size_(hidden_size),
      received_floats_(received_floats) {
  lay_out(16, 1024, 1, 0, 16);
}

template <class T>
std::uint64_t BatchUpload::place(std::int64_t count) {
  const std::uint64_t begin = used_;
  used_ = (used_ + static_cast<std::uint64_t>(count) * sizeof(T) + 63) / 64 * 64;
  return begin;
}

void BatchUpload::lay_out(std::int64_t num_sequences, std::int64_t num_pages, std::int64_t num_pools,
                          std::int64_t num_given, std::int64_t num_segments) {
  const bool fits = num_sequences <= most_sequences_ && num_pages <= most_pages_ && num_pools == num_pools_ &&
                    num_given <= most_given_ && num_segments <= most_segments_;
  if (fits && device_memory_.data() != nullptr) return;
  // Twice as much as is wanted, so that this does not happen often.
  const auto grow = [](std::int64_t most, std::int64_t wanted) { return wanted <= most ? most : 2 * wanted; };
  most_sequences_ = grow(most_sequences_, num_sequences);
  most_pages_ = grow(most_pages_, num_pages);
  most_given_ = grow(most_given_, num_given);
  most_segments_ = grow(most_segments_, num_segments);
  num_pools_ = num_pools;
  used_ = 0;
  using Int = std::int32_t;
  Places at{};
  at.counts = place<Int>(3);
  for (std::uint64_t* rows : {&at.tokens, &at.positions, &at.sequences, &at.last_rows, &at.output_rows, &at.largest,
                              &at.given_rows, &at.row_segments}) {
    *rows = place<Int>(max_tokens_);
  }
  for (std::uint64_t* of_sequences : {&at.first_rows, &at.encoded_sizes, &at.is_long, &at.adapters}) {
    *of_sequences = place<Int>(most_sequences_);
  }
  at.adapter_scales = place<float>(most_sequences_);
  at.segment_starts = place<Int>(most_sequences_ + 1);
  at.tables = place<Int>(most_sequences_ * num_pools_);
  at.segments = place<StateSegment>(most_segments_);
  at.pages = place<Int>(most_pages_);
  at.given = place<float>(most_given_ * hidden_size_);
  at.received = place<float>(max_tokens_ * received_floats_);
  device_memory_ = {};  // first, so that there is room; and when there is none, the next batch is laid out again
  DeviceMemory host(device_, used_, DeviceMemory::Where::kHost);
  device_memory_ = DeviceMemory(device_, used_);
  host_memory_ = std::move(host);
  std::memset(host_memory_.data(), 0, used_);
  batch_ = at.in(device_memory_.data(), num_pools_);
  host_ = at.in(host_memory_.data(), num_pools_);
  ++generation_;
}

void BatchUpload::copy(const Batch& batch, const StateRuns* states) {
  const auto pools = static_cast<std::int64_t>(batch.num_pools);
  const std::int32_t rows = batch.num_tokens();
  // Those that have rows, in the order of their rows: kernels search them.
  std::vector<std::int32_t> sequences;
  std::int64_t pages = 0;
  for (const std::int32_t sequence : batch.sequences) {
    if (!sequences.empty() && sequences.back() == sequence) continue;
    sequences.push_back(sequence);
    for (std::int64_t pool = 0; pool < pools; ++pool) {
      pages += static_cast<std::int64_t>(batch.table(sequence, static_cast<std::size_t>(pool)).size());
    }
  }
  // Without an embedding table nothing stands for a token: the plan before this one has looked at them.
  const auto is_given = [&](std::int32_t token) { return token < 0 && hidden_size_ != 0; };
  const std::int64_t given = std::ranges::count_if(batch.tokens, is_given);
  const std::int64_t segments = states == nullptr ? 0 : static_cast<std::int64_t>(states->segments().size());
  lay_out(static_cast<std::int64_t>(sequences.size()), pages, pools, given, segments);
  num_sequences_ = static_cast<std::int32_t>(sequences.size());

  std::int32_t* const counts = writable(host_.counts);
  counts[0] = rows;
  counts[1] = batch.num_outputs();
  counts[2] = num_sequences_;
  std::ranges::copy(batch.tokens, writable(host_.tokens));
  std::ranges::copy(batch.positions, writable(host_.positions));
  std::ranges::copy(batch.output_rows, writable(host_.output_rows));
  std::ranges::copy(batch.largest, writable(host_.largest));
  std::int32_t next_given = 0, own = num_sequences_, last = 0;
  for (std::int32_t row = rows - 1; row >= 0; --row) {
    const auto at = static_cast<std::size_t>(row);
    const std::int32_t sequence = batch.sequences[at];
    if (row + 1 == rows || batch.sequences[at + 1] != sequence) {
      --own;
      last = row;
    }
    writable(host_.sequences)[row] = own;
    writable(host_.last_rows)[row] = last;
    writable(host_.first_rows)[own] = row;
    const std::int32_t id = batch.tokens[at];
    writable(host_.given_rows)[row] = is_given(id) ? next_given : -1;
    if (!is_given(id)) continue;
    const SequenceContext& context = *batch.context(sequence);
    std::memcpy(writable(host_.given) + next_given * hidden_size_, context.embeddings.data() + (-1 - id) * hidden_size_,
                static_cast<std::size_t>(hidden_size_) * sizeof(float));
    ++next_given;
  }
  std::int32_t page = 0;
  for (std::int32_t s = 0; s < num_sequences_; ++s) {
    const std::int32_t sequence = sequences[static_cast<std::size_t>(s)];
    const SequenceContext* context = batch.context(sequence);
    writable(host_.encoded_sizes)[s] =
        context == nullptr ? 0 : static_cast<std::int32_t>(context->encoder_tokens.size());
    writable(host_.is_long)[s] = batch.is_long(sequence) ? 1 : 0;
    writable(host_.adapters)[s] = context == nullptr ? -1 : context->adapter;
    writable(host_.adapter_scales)[s] = context == nullptr ? 1.0f : context->adapter_scale;
    for (std::int64_t pool = 0; pool < pools; ++pool) {
      const auto table = batch.table(sequence, static_cast<std::size_t>(pool));
      writable(host_.tables)[s * pools + pool] = page;
      std::ranges::copy(table, writable(host_.pages) + page);
      page += static_cast<std::int32_t>(table.size());
    }
  }
  if (states != nullptr) {
    std::int32_t end = 0;
    for (std::int32_t s = 0; s < num_sequences_; ++s) {
      writable(host_.segment_starts)[s] = end;
      for (const sterna::StateSegment& segment : states->of_row(host_.first_rows[s])) {
        writable(host_.segments)[end++] = {segment.source, segment.target, static_cast<std::int32_t>(segment.first_row),
                                           static_cast<std::int32_t>(segment.last_row)};
      }
    }
    writable(host_.segment_starts)[num_sequences_] = end;
    for (std::int32_t row = 0; row < rows; ++row) {
      writable(host_.row_segments)[row] = host_.segment_starts[host_.sequences[row]];
    }
  }
  // Pages, given embeddings and received rows come last, and there may be room for many more.
  const auto* const copied = given > 0 ? reinterpret_cast<const std::uint8_t*>(host_.given + given * hidden_size_)
                                       : reinterpret_cast<const std::uint8_t*>(host_.pages + pages);
  device_->copy(device_memory_.data(), host_memory_.data(), static_cast<std::uint64_t>(copied - host_memory_.data()));
  if (batch.received.empty()) return;
  std::ranges::copy(batch.received, writable(host_.received));
  device_->copy(writable(batch_.received), host_.received, batch.received.size_bytes());
}

}  // namespace sterna::cuda
