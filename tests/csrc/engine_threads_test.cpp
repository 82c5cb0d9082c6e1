/// Sixteen threads submit, wait, cancel, share beginnings, draft (with a second model), miss deadlines, move pages and
/// fail on one engine over a fake model, then on many short-lived ones: the tokens must be those of a sequence alone,
/// and pages must come back. Meant to run under the thread sanitizer.
#include <atomic>
#include <chrono>
#include <cstdio>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "base/error.h"
#include "engine/engine.h"
#include "fake_plan.h"

namespace {

using namespace sterna;
using namespace std::chrono_literals;
using sterna::testing::FakePlan;

constexpr std::int32_t kVocab = 53;

std::atomic<int> failures = 0;
std::atomic<int> compared = 0;

void expect(bool ok, const char* what) {
  if (ok) return;
  ++failures;
  std::fprintf(stderr, "failed: %s\n", what);
}

std::vector<std::int32_t> prompt(std::uint64_t seed, std::size_t length) {
  std::vector<std::int32_t> tokens;
  for (std::size_t i = 0; i < length; ++i) {
    const auto token = static_cast<std::int32_t>(testing::mix(seed * 1000 + i) % kVocab);
    tokens.push_back(token == FakePlan::kPoison ? 4 : token);
  }
  return tokens;
}

SamplingParams sampling(std::uint64_t seed) {
  SamplingParams params;
  params.seed = seed;
  params.top_k = 20;
  params.logit_bias = {{FakePlan::kPoison, -1e6f}};
  return params;
}

std::vector<std::int32_t> alone(std::vector<std::int32_t> tokens, int count, const SamplingParams& params) {
  Sampler sampler(kVocab);
  std::vector<float> logits(kVocab);
  const std::size_t num_prompt = tokens.size();
  for (int i = 0; i < count; ++i) {
    std::uint64_t sum = 0;
    for (std::size_t p = 0; p < tokens.size(); ++p) sum += testing::slot_hash(tokens[p], static_cast<std::int32_t>(p));
    testing::hash_logits(sum, static_cast<std::int32_t>(tokens.size()), logits);
    SamplingContext context;
    context.history = tokens;
    context.num_prompt = num_prompt;
    tokens.push_back(sampler.sample(params, logits, context).token);
  }
  return {tokens.begin() + static_cast<std::ptrdiff_t>(num_prompt), tokens.end()};
}

/// The tokens up to the final event, and how it ended.
std::pair<std::vector<std::int32_t>, FinishReason> collect(RequestHandle& handle) {
  std::vector<std::int32_t> tokens;
  while (true) {
    const auto event = handle.next(60s);
    if (!event) return {tokens, FinishReason::kNone};
    if (event->sampled) tokens.push_back(event->sampled->token);
    if (event->finish != FinishReason::kNone) return {tokens, event->finish};
  }
}

std::shared_ptr<const Pieces> pieces() {
  std::vector<std::string> texts;
  for (int t = 0; t < kVocab; ++t) texts.push_back(std::string(1, static_cast<char>('!' + t)));
  const std::vector<std::string_view> views(texts.begin(), texts.end());
  return std::make_shared<Pieces>(Pieces::from_tokens(PieceKind::kSentencePiece, views, {}));
}

/// The same model with other limits: it is right, and fails where the poison is.
std::shared_ptr<Plan> draft_plan() { return std::make_shared<FakePlan>(kVocab, 24, 3); }

GenerateRequest request(std::uint64_t seed, std::size_t length, int count) {
  GenerateRequest r;
  r.tokens = prompt(seed, length);
  r.max_tokens = count;
  r.sampling = sampling(seed);
  return r;
}

void compare(RequestHandle& handle, const std::vector<std::int32_t>& expected, const char* what) {
  expect(collect(handle).first == expected, what);
  ++compared;
}

void one_request(Engine& engine, std::uint64_t seed, const std::vector<std::int32_t>& trunk) {
  GenerateRequest r = request(seed, 1 + testing::mix(seed) % 150, 8);
  r.draft_tokens = static_cast<std::int32_t>(seed % 4);
  r.terms.priority = seed % 3 == 0 ? Priority::kBackground : Priority::kInteractive;
  switch (seed % 32) {
    case 1:
    case 2:
    case 3: {  // cancelled somewhere on the way
      const auto handle = engine.submit(std::move(r));
      handle->next(std::chrono::milliseconds(seed % 3));
      handle->cancel();
      const auto finish = collect(*handle).second;
      expect(finish == FinishReason::kCancelled || finish == FinishReason::kLength, "cancelled");
      break;
    }
    case 4:
    case 5:  // dropped
      engine.submit(std::move(r));
      break;
    case 6:  // fails, with whoever shares the batch
      r.tokens.back() = FakePlan::kPoison;
      collect(*engine.submit(std::move(r)));
      expect(false, "poison passed");
      break;
    case 7:
    case 8:
    case 9:
    case 10: {  // a branch of a common beginning
      auto tokens = trunk;
      tokens.insert(tokens.end(), r.tokens.begin(), r.tokens.end());
      r.tokens = tokens;
      compare(*engine.submit(std::move(r)), alone(tokens, 8, sampling(seed)), "branch");
      break;
    }
    case 11: {  // pages out and in again
      const auto pages = engine.export_pages("", trunk, 0, 8);
      const std::vector<std::span<const std::uint8_t>> spans(pages.begin(), pages.end());
      expect(engine.import_pages("", trunk, 0, spans) >= 0, "import");
      expect(engine.cached_pages("", trunk) <= 3, "cached pages");
      break;
    }
    case 12: {  // late
      r.terms.timeout_seconds = 1e-4;
      const auto handle = engine.submit(std::move(r));
      try {
        expect(collect(*handle).second == FinishReason::kLength, "in time");
      } catch (const DeadlineError&) {
      }
      break;
    }
    default: {
      const auto expected = alone(r.tokens, 8, r.sampling);
      compare(*engine.submit(std::move(r)), expected, "same tokens as alone");
      engine.stats();
    }
  }
}

void many_threads_one_engine(int num_threads, int per_thread) {
  EngineOptions options;
  options.context = 512;
  options.max_sequences = 6;
  options.kv_tokens = 1024;
  Engine engine(std::make_shared<FakePlan>(kVocab, 48, 4), pieces(), options, draft_plan());
  GenerateRequest start = request(999, 200, 1);
  const std::vector<std::int32_t> trunk = start.tokens;
  start.max_tokens = 0;
  collect(*engine.submit(std::move(start)));

  std::vector<std::thread> threads;
  for (int n = 0; n < num_threads; ++n) {
    threads.emplace_back([&, n] {
      for (int i = 0; i < per_thread; ++i) {
        try {
          one_request(engine, static_cast<std::uint64_t>(n * per_thread + i), trunk);
        } catch (const DeviceError&) {  // the poisoned one, and whoever shares a batch with it
        }
      }
    });
  }
  for (auto& thread : threads) thread.join();
  for (int i = 0; i < 10'000 && engine.stats().running + engine.stats().waiting > 0; ++i)
    std::this_thread::sleep_for(1ms);
  const EngineStats stats = engine.stats();
  expect(stats.pages_in_use == 0, "pages came back");
  expect(compared > num_threads * per_thread / 2, "most requests were compared");
  std::printf("%d requests, %d compared: %llu batches, %llu rows, %llu preemptions\n", num_threads * per_thread,
              compared.load(), static_cast<unsigned long long>(stats.runs),
              static_cast<unsigned long long>(stats.tokens), static_cast<unsigned long long>(stats.preemptions));
}

void close_while_running(int rounds) {
  for (int round = 0; round < rounds; ++round) {
    EngineOptions options;
    options.context = 4096;
    auto engine = std::make_unique<Engine>(std::make_shared<FakePlan>(kVocab, 32, 4), pieces(), options, draft_plan());
    std::vector<std::thread> threads;
    for (int n = 0; n < 4; ++n) {
      threads.emplace_back([&engine, n] {
        try {
          while (true) collect(*engine->submit(request(static_cast<std::uint64_t>(n), 40, 500)));
        } catch (const Error& e) {
          expect(std::string(e.what()).find("closed") != std::string::npos, "closed");
        }
      });
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(round % 5));
    engine->close();
    for (auto& thread : threads) thread.join();
    engine.reset();
  }
}

}  // namespace

int main() {
  many_threads_one_engine(16, 200);
  close_while_running(30);
  if (failures > 0) std::fprintf(stderr, "%d failures\n", failures.load());
  return failures > 0 ? 1 : 0;
}
