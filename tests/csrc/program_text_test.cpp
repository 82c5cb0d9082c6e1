/// Program texts, whole and mutated, under the sanitizers: parsing is a program or an ArgumentError, and every program
/// that is accepted survives all passes and reads back the same.
#include <cstdio>
#include <random>
#include <string>

#include "base/error.h"
#include "program/passes/passes.h"
#include "program/text.h"

namespace {

constexpr const char* kText = R"(program 1
input %tokens [T]
input %positions [T]
weight @embd [50, 32] Q4_0
weight @norm [32] F32
weight @head [8] F32
weight @freqs [4] F32
weight @q [32, 32] F32
weight @k [16, 32] F32
weight @v [16, 32] F32
weight @o [32, 32] F32
weight @gate [64, 32] Q8_0
weight @up [64, 32] Q8_0
weight @down [32, 64] Q8_0
weight @bias [32] F32
kv 0: 2 heads, 8, 8
function logits
  %x [T, 32] = embed(tokens=%tokens, w=@embd)  # models/m.py:1
  %n [T, 32] = rms_norm(x=%x, w=@norm) {eps=1e-05}
  %q [T, 32] = linear(x=%n, w=@q)
  %k [T, 16] = linear(x=%n, w=@k)
  %v [T, 16] = linear(x=%n, w=@v)
  %qh [T, 4, 8] = reshape(x=%q) {dims="4, 8"}
  %kh [T, 2, 8] = reshape(x=%k) {dims="2, 8"}
  %vh [T, 2, 8] = reshape(x=%v) {dims="2, 8"}
  %qn [T, 4, 8] = rms_norm(x=%qh, w=@head) {eps=1e-06}
  %kn [T, 2, 8] = rms_norm(x=%kh, w=@head) {eps=1e-06}
  %qr [T, 4, 8] = rope(x=%qn, positions=%positions, factors=@freqs) {theta=10000.0, rotary_dim=8, scaling="yarn", original_context=64}
  %kr [T, 2, 8] = rope(x=%kn, positions=%positions, factors=@freqs) {theta=10000.0, rotary_dim=8, scaling="yarn", original_context=64}
  %a [T, 32] = attention(q=%qr, k=%kr, v=%vh) {layer=0, scale=0.5, window=4, softcap=30.0}
  %o [T, 32] = linear(x=%a, w=@o, bias=@bias)
  %y [T, 32] = add(a=%x, b=%o)
  %m [T, 32] = rms_norm(x=%y, w=@norm) {eps=1e-05}
  %gate [T, 64] = linear(x=%m, w=@gate)
  %up [T, 64] = linear(x=%m, w=@up)
  %g [T, 64] = glu(gate=%gate, up=%up)
  %d [T, 32] = linear(x=%g, w=@down)
  %z [T, 32] = add(a=%y, b=%d)
  %l [T, 8], %r [T, 24] = split(x=%z) {sizes="8, 24"}
  %c [T, 32] = concat(x=%r, x=%l)
  %f [T, 32] = rms_norm(x=%c, w=@norm) {eps=1e-05}
  %logits [L, 50] = unembed(x=%f, w=@embd)
  return %logits
)";

/// Whether the text is a program; ends the test where a program does not survive its passes.
bool is_program(const std::string& text) {
  sterna::Program program;
  try {
    program = sterna::parse_program(text);
  } catch (const sterna::ArgumentError&) {
    return false;
  }
  sterna::fuse(program);
  const std::string fused = sterna::to_text(program);
  if (sterna::to_text(sterna::parse_program(fused)) != fused) {
    std::fprintf(stderr, "does not read back the same:\n%s", fused.c_str());
    std::exit(1);
  }
  return true;
}

}  // namespace

int main() {
  const std::string text = kText;
  if (!is_program(text) || sterna::to_text(sterna::parse_program(text)) != text) {
    std::fprintf(stderr, "the seed text does not read back the same\n");
    return 1;
  }
  int accepted = 0;
  int tried = 0;
  for (std::size_t cut = 0; cut < text.size(); ++cut, ++tried) accepted += is_program(text.substr(0, cut)) ? 1 : 0;

  std::mt19937 random(20261121);
  const auto below = [&](std::size_t n) { return static_cast<std::size_t>(random() % n); };
  static constexpr const char* kPieces[] = {"T",     "L",    "-1", "0", "99999999999999999999",
                                            "1e308", "\"",   "\\", "%", "@",
                                            "[",     "]",    "{",  "}", "(",
                                            ")",     "x=%x", ", ", "=", "\x80",
                                            "embed", "%n",   "@q", "\n"};
  for (int i = 0; i < 20000; ++i, ++tried) {
    std::string changed = text;
    for (std::size_t edits = 1 + below(3); edits > 0; --edits) {
      const std::size_t at = below(changed.size());
      switch (below(4)) {
        case 0:
          changed[at] = static_cast<char>(random());
          break;
        case 1:
          changed.erase(at, 1 + below(8));
          break;
        case 2:
          changed.insert(at, kPieces[below(std::size(kPieces))]);
          break;
        default:
          changed.insert(at, text.substr(below(text.size()), below(40)));
      }
    }
    accepted += is_program(changed) ? 1 : 0;
  }
  std::printf("%d texts, %d of them programs\n", tried, accepted);
  return accepted > 100 ? 0 : 1;
}
