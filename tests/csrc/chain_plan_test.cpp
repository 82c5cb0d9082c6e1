/// A program that is cut between two layers, and the chain of its parts' plans: the bits of the whole, also after an
/// interrupt in either part, with pages that were read, written and copied, and with soft prompts.
#include "plan/chain_plan.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "base/error.h"
#include "cpu/cpu_plan.h"
#include "program/passes/passes.h"
#include "program/passes/split_layers.h"
#include "program/text.h"

namespace {

using namespace sterna;

int failures = 0;

void expect(bool good, const char* what) {
  if (good) return;
  ++failures;
  std::printf("wrong: %s\n", what);
}

/// Numbers made from the name and the place, the same at every read; `broken` is a tensor of infinities.
class Numbers final : public TensorSource {
 public:
  explicit Numbers(std::string_view broken = "") : broken_(broken) {}
  void read(std::string_view tensor, std::uint64_t offset, std::span<std::uint8_t> out) const override {
    std::mt19937 random(static_cast<unsigned>(tensor.size()));
    random.discard(offset / 4);
    for (std::size_t i = 0; i + 4 <= out.size(); i += 4) {
      float value = static_cast<float>(random() % 2001) / 1000.0f - 1.0f;
      if (tensor == broken_) value = 3e38f;
      std::memcpy(out.data() + i, &value, 4);
    }
  }

 private:
  const std::string broken_;
};

/// Each layer keeps a state and, in windows of its own, keys; the last one reads a value of the first, too.
Program whole_program() {
  std::string text =
      "program 1\ninput %tokens [T]\nweight @table [21, 32] F32\nweight @out [21, 32] F32\n"
      "weight @conv [32, 4] F32\n";
  for (int layer = 0; layer < 3; ++layer)
    text += "weight @w" + std::string(2, static_cast<char>('0' + layer)) + " [32, 32] F32\n";
  for (int layer = 0; layer < 3; ++layer) text += "kv " + std::to_string(layer) + ": 2 heads, 16, 16\n";
  for (int layer = 0; layer < 3; ++layer) text += "state " + std::to_string(layer) + ": short_conv, 3, 32\n";
  text += "function logits\n  %x [T, 32] = embed(tokens=%tokens, w=@table)\n";
  std::string x = "x";
  for (int layer = 0; layer < 3; ++layer) {
    const std::string at = "layers." + std::to_string(layer) + "/", own = "{layer=" + std::to_string(layer);
    text += "  %" + at + "n [T, 32] = rms_norm(x=%" + x + ") {eps=1e-05}\n";
    text += "  %" + at + "c [T, 32] = short_conv(x=%" + at + "n, w=@conv) " + own + "}\n";
    text += "  %" + at + "h [T, 2, 16] = reshape(x=%" + at + "c) {dims=\"2,16\"}\n";
    const std::string values = layer == 2 ? "layers.0/h" : at + "h";
    text += "  %" + at + "a [T, 32] = attention(q=%" + at + "h, k=%" + at + "h, v=%" + values + ") " + own +
            ", scale=0.25" + (layer == 1 ? ", window=9" : "") + "}\n";
    text +=
        "  %" + at + "l [T, 32] = linear(x=%" + at + "a, w=@w" + std::string(2, static_cast<char>('0' + layer)) + ")\n";
    text += "  %" + at + "y [T, 32] = add(a=%" + x + ", b=%" + at + "l)\n";
    x = at + "y";
  }
  return parse_program(text + "  %logits [L, 21] = unembed(x=%" + x + ", w=@out)\n  return %logits\n");
}

/// A part that can be made to be interrupted behind its first step.
class Part final : public ProgramPlan {
 public:
  Part(const Program& program, const TensorSource& source, const cpu::CpuPlanOptions& options, Interrupt* interrupt)
      : ProgramPlan(program, KvLayout(program, options.kv_type, "test"), options.max_tokens, options.max_outputs),
        plan_(program, source, options),
        interrupt_(interrupt) {}

  bool stops = false;

  bool run(const Batch& batch, const Interrupt* interrupt) override {
    if (stops) interrupt_->asked = true;
    return plan_.run(batch, interrupt);
  }
  std::span<const float> logits() const override { return plan_.logits(); }
  std::span<const float> kept_row(std::string_view name, std::int32_t row, std::size_t output) const override {
    return plan_.kept_row(name, row, output);
  }
  std::string first_non_finite(const Batch& batch, std::int32_t row) override {
    return plan_.first_non_finite(batch, row);
  }
  void reserve_pages(std::size_t pool, std::int32_t count) override { plan_.reserve_pages(pool, count); }
  std::int32_t num_pages(std::size_t pool) const override { return plan_.num_pages(pool); }
  void copy_page(std::size_t pool, std::int32_t from, std::int32_t to) override { plan_.copy_page(pool, from, to); }
  void read_page(std::size_t pool, std::int32_t page, std::span<std::uint8_t> bytes) const override {
    plan_.read_page(pool, page, bytes);
  }
  void write_page(std::size_t pool, std::int32_t page, std::span<const std::uint8_t> bytes) override {
    plan_.write_page(pool, page, bytes);
  }
  PlanMemory memory() const override { return plan_.memory(); }
  std::map<std::string, int> layouts() const override { return plan_.layouts(); }
  std::vector<std::string> value_names() const override { return plan_.value_names(); }
  std::vector<float> value(const std::string& name) const override { return plan_.value(name); }

 private:
  cpu::CpuPlan plan_;
  Interrupt* interrupt_;
};

struct Chain {
  Interrupt interrupt;
  std::vector<std::shared_ptr<Part>> parts;
  std::unique_ptr<ChainPlan> plan;

  Chain(std::int64_t cut, const TensorSource& source, const cpu::CpuPlanOptions& options) {
    const Program program = whole_program();
    auto [first, last] = split_layers(program, cut);
    std::vector<std::shared_ptr<ProgramPlan>> plans;
    for (Program* part : {&first, &last}) {
      fuse(*part);
      plans.push_back(parts.emplace_back(std::make_shared<Part>(*part, source, options, &interrupt)));
    }
    plan = std::make_unique<ChainPlan>(program, plans);
    for (std::size_t pool = 0; pool < plan->kv_pools().size(); ++pool) plan->reserve_pages(pool, 6);
  }
};

/// Rows [begin, end) of one sequence in a plan, all of them outputs; the same pages in each pool.
class Sequence {
 public:
  Sequence(Plan& plan, std::vector<std::int32_t> pages) : plan_(plan), pages_(std::move(pages)) {
    tables_.assign(plan.kv_pools().size(), pages_);
    contexts_ = {&context_};
    context_.embeddings.resize(2 * 32);
    for (std::size_t i = 0; i < context_.embeddings.size(); ++i) context_.embeddings[i] = std::sin(float(i));
  }

  Batch batch(std::int32_t begin, std::int32_t end) {
    tokens_.clear();
    for (std::int32_t i = begin; i < end; ++i) tokens_.push_back(i == 1 ? -2 : i == 2 ? -1 : i * 7 % 21);
    positions_.resize(tokens_.size());
    std::iota(positions_.begin(), positions_.end(), begin);
    rows_.resize(tokens_.size());
    std::iota(rows_.begin(), rows_.end(), 0);
    sequences_.assign(tokens_.size(), 0);
    Batch batch{tokens_, positions_, sequences_, tables_, rows_};
    batch.num_pools = tables_.size();
    batch.contexts = contexts_;
    return batch;
  }

  std::vector<float> run(std::int32_t begin, std::int32_t end) {
    expect(plan_.run(batch(begin, end), nullptr), "a run is complete");
    return {plan_.logits().begin(), plan_.logits().end()};
  }

 private:
  Plan& plan_;
  std::vector<std::int32_t> pages_, tokens_, positions_, sequences_, rows_;
  std::vector<std::span<const std::int32_t>> tables_;
  SequenceContext context_;
  std::vector<const SequenceContext*> contexts_;
};

void check(std::int64_t cut) {
  cpu::CpuPlanOptions options;
  options.threads = 2;
  options.max_tokens = options.max_outputs = 100;
  Program program = whole_program();
  fuse(program);
  cpu::CpuPlan whole(program, Numbers(), options);
  for (std::size_t pool = 0; pool < whole.kv_pools().size(); ++pool) whole.reserve_pages(pool, 6);
  Sequence alone(whole, {0, 1});
  const std::vector<float> want = alone.run(0, 90);
  const auto same = [&](const std::vector<float>& got, std::int32_t begin) {
    return std::equal(got.begin(), got.end(), want.begin() + begin * 21);
  };

  Chain chain(cut, Numbers(), options);
  ChainPlan& plan = *chain.plan;
  Sequence sequence(plan, {4, 2});
  expect(same(sequence.run(0, 90), 0), "all rows at once");
  for (std::int32_t begin = 0; begin < 90; begin += 15) {
    for (const auto& part : chain.parts) {
      part->stops = true;
      expect(!plan.run(sequence.batch(begin, begin + 15), &chain.interrupt), "an interrupt stops the run");
      chain.interrupt.asked = false;
      part->stops = false;
    }
    expect(same(sequence.run(begin, begin + 15), begin), "rows after interrupts");
  }

  // The second page, through the host and within the chain, into two other places.
  Chain other(cut, Numbers(), options);
  Sequence again(*other.plan, {4, 2}), copied(plan, {4, 0});
  again.run(0, 64);
  for (std::size_t pool = 0; pool < plan.kv_pools().size(); ++pool) {
    std::vector<std::uint8_t> bytes(plan.kv_pools()[pool].page_bytes);
    for (const std::int32_t page : {4, 2}) {
      plan.read_page(pool, page, bytes);
      other.plan->write_page(pool, page, bytes);
    }
    plan.copy_page(pool, 2, 0);
    bytes.pop_back();
    try {
      plan.read_page(pool, 2, bytes);
      expect(false, "a page of another size is refused");
    } catch (const ArgumentError&) {
    }
  }
  expect(plan.kv_layout() == other.plan->kv_layout(), "equal layouts");
  const std::vector<float> next = alone.run(90, 93);
  expect(again.run(90, 93) == next, "pages that were written");
  expect(copied.run(90, 93) == next, "pages that were copied");

  // Values of both parts by their names.
  const std::vector<std::string> kept{"layers.0/y", "layers.2/a", "layers.1/y"};
  for (Plan* each : std::vector<Plan*>{&whole, &plan}) {
    Sequence rows(*each, {5, 3});
    Batch batch = rows.batch(0, 4);
    batch.kept = kept;
    expect(each->run(batch, nullptr), "a run that keeps values");
  }
  for (const std::string& name : kept) {
    expect(plan.value_size(name) == whole.value_size(name), "sizes of values");
    const auto ours = plan.kept_row(name, 2, 2), theirs = whole.kept_row(name, 2, 2);
    expect(!ours.empty() && std::ranges::equal(ours, theirs), "values that are kept");
  }
}

void check_non_finite() {
  cpu::CpuPlanOptions options;
  options.threads = 1;
  for (const char* broken : {"w00", "w11", "w22"}) {
    Chain chain(1, Numbers(broken), options);
    Sequence sequence(*chain.plan, {0});
    sequence.run(0, 5);
    const std::string found = chain.plan->first_non_finite(sequence.batch(0, 5), 3);
    const std::string expected = std::string("layers.") + broken[1];
    expect(found.starts_with(expected), found.c_str());
  }
}

}  // namespace

int main() {
  for (const std::int64_t cut : {1, 2}) check(cut);
  check_non_finite();
  return failures == 0 ? 0 : 1;
}
