#include "engine/text_stream.h"

#include <algorithm>
#include <utility>

#include "base/error.h"

namespace sterna {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";
constexpr std::size_t kMaxStopStrings = 1024;

}  // namespace

void Utf8Decoder::byte(std::uint8_t b, std::string& out) {
  if (missing_ > 0) {
    if (b >= lowest_ && b <= highest_) {
      partial_.push_back(static_cast<char>(b));
      lowest_ = 0x80;
      highest_ = 0xBF;
      if (--missing_ == 0) {
        out += partial_;
        partial_.clear();
      }
      return;
    }
    finish(out);  // and b begins anew
  }
  if (b < 0x80) {
    out.push_back(static_cast<char>(b));
    return;
  }
  // Lead bytes, with the second byte's range where it is narrower (overlong forms, surrogates, above U+10FFFF).
  if (b >= 0xC2 && b <= 0xDF) {
    missing_ = 1;
  } else if (b >= 0xE0 && b <= 0xEF) {
    missing_ = 2;
    if (b == 0xE0) lowest_ = 0xA0;
    if (b == 0xED) highest_ = 0x9F;
  } else if (b >= 0xF0 && b <= 0xF4) {
    missing_ = 3;
    if (b == 0xF0) lowest_ = 0x90;
    if (b == 0xF4) highest_ = 0x8F;
  } else {
    out += kReplacement;
    return;
  }
  partial_.push_back(static_cast<char>(b));
}

void Utf8Decoder::push(std::string_view bytes, std::string& out) {
  for (const char c : bytes) byte(static_cast<std::uint8_t>(c), out);
}

void Utf8Decoder::finish(std::string& out) {
  if (missing_ > 0) out += kReplacement;
  partial_.clear();
  missing_ = 0;
  lowest_ = 0x80;
  highest_ = 0xBF;
}

TextStream::TextStream(std::vector<std::string> stop_strings, bool drop_leading_space)
    : drop_leading_space_(drop_leading_space) {
  if (stop_strings.size() > kMaxStopStrings) {
    throw ArgumentError(std::to_string(stop_strings.size()) + " stop strings; at most " +
                        std::to_string(kMaxStopStrings) + " are possible");
  }
  for (std::string& text : stop_strings) {
    if (text.empty()) throw ArgumentError("a stop string is empty");
    Stop stop;
    stop.failure.assign(text.size(), 0);
    for (std::uint32_t i = 1, border = 0; i < text.size(); ++i) {
      while (border > 0 && text[i] != text[border]) border = stop.failure[border - 1];
      if (text[i] == text[border]) ++border;
      stop.failure[i] = border;
    }
    stop.text = std::move(text);
    stops_.push_back(std::move(stop));
  }
}

std::string TextStream::release(const std::string& text) {
  if (stops_.empty()) return text;
  for (const char c : text) {
    held_.push_back(c);
    for (std::size_t i = 0; i < stops_.size(); ++i) {
      Stop& stop = stops_[i];
      while (stop.matched > 0 && stop.text[stop.matched] != c) stop.matched = stop.failure[stop.matched - 1];
      if (stop.text[stop.matched] == c) ++stop.matched;
      if (stop.matched < stop.text.size()) continue;
      if (!stopped_ || stop.text.size() > stops_[*stopped_].text.size()) stopped_ = i;
    }
    if (stopped_) {
      held_.resize(held_.size() - stops_[*stopped_].text.size());
      return std::exchange(held_, {});
    }
  }
  std::uint32_t kept = 0;
  for (const Stop& stop : stops_) kept = std::max(kept, stop.matched);
  const std::size_t sure = held_.size() - kept;
  std::string out = held_.substr(0, sure);
  held_.erase(0, sure);
  return out;
}

std::string TextStream::push(std::string_view bytes) {
  if (stopped_) return {};
  std::string text;
  decoder_.push(bytes, text);
  if (drop_leading_space_ && !text.empty()) {
    if (text.front() == ' ') text.erase(0, 1);
    drop_leading_space_ = false;
  }
  return release(text);
}

std::string TextStream::finish() {
  if (stopped_) return {};
  std::string text;
  decoder_.finish(text);
  std::string out = release(text);
  if (!stopped_) out += std::exchange(held_, {});
  return out;
}

}  // namespace sterna
