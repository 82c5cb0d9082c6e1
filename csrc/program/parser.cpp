/// Reads the text form (text.h) line by line; the builder checks every node as it comes.
#include <charconv>
#include <string>
#include <unordered_map>

#include "base/error.h"
#include "program/builder.h"
#include "program/text.h"

namespace sterna {

namespace {

bool is_plain(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
         std::string_view("_./-:+").find(c) != std::string_view::npos;
}

/// One line, and the place in it.
class Cursor {
 public:
  Cursor(std::string_view line, std::size_t number) : line_(line), number_(number) {}

  [[noreturn]] void fail(const std::string& problem) const {
    throw ArgumentError("program text, line " + std::to_string(number_) + ", column " + std::to_string(at_ + 1) + ": " +
                        problem);
  }

  void skip_spaces() {
    while (at_ < line_.size() && (line_[at_] == ' ' || line_[at_] == '\t')) ++at_;
  }
  bool at_end() {
    skip_spaces();
    return at_ == line_.size();
  }
  void expect_end() {
    if (!at_end()) fail("expected the end of the line");
  }
  bool take(char c) {
    skip_spaces();
    if (at_ == line_.size() || line_[at_] != c) return false;
    ++at_;
    return true;
  }
  void expect(char c) {
    if (!take(c)) fail(std::string("expected '") + c + "'");
  }
  bool next_is(char c) {
    skip_spaces();
    return at_ < line_.size() && line_[at_] == c;
  }

  /// Letters, digits and _ . / - : +; `stop` ends it too.
  std::string_view word(char stop = '\0') {
    skip_spaces();
    const std::size_t begin = at_;
    while (at_ < line_.size() && is_plain(line_[at_]) && line_[at_] != stop) ++at_;
    if (at_ == begin) fail("expected a word");
    return line_.substr(begin, at_ - begin);
  }

  std::string quoted() {
    expect('"');
    std::string text;
    for (; at_ < line_.size(); ++at_) {
      if (line_[at_] == '"') {
        ++at_;
        return text;
      }
      if (line_[at_] == '\\' && ++at_ == line_.size()) break;
      text += line_[at_];
    }
    fail("the string has no end");
  }

  std::string name() { return next_is('"') ? quoted() : std::string(word()); }

  std::int64_t integer(char stop = '\0') {
    const std::size_t begin = (skip_spaces(), at_);
    const std::string_view text = word(stop);
    std::int64_t value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc() || end != text.data() + text.size()) {
      at_ = begin;
      fail("expected an integer");
    }
    return value;
  }

  double number() {
    const std::size_t begin = (skip_spaces(), at_);
    const std::string_view text = word();
    double value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc() || end != text.data() + text.size()) {
      at_ = begin;
      fail("expected a number");
    }
    return value;
  }

  Attribute attribute() {
    if (next_is('"')) return quoted();
    const std::size_t begin = at_;
    const std::string_view text = word();
    if (text == "true" || text == "false") return text == "true";
    at_ = begin;
    if (text[0] != '-' && (text[0] < '0' || text[0] > '9')) fail("expected true, false, a number or a quoted string");
    if (text.find_first_of(".eE") != std::string_view::npos) return number();
    return integer();
  }

  Shape shape() {
    Shape shape;
    expect('[');
    do {
      if (next_is('T') || next_is('L')) {
        shape.push_back({line_[at_] == 'T' ? Dim::kTokens : Dim::kOutputs});
        ++at_;
      } else {
        const std::int64_t size = integer();
        if (size < 1) fail("an extent must be above 0");
        shape.push_back({size});
      }
    } while (take(','));
    expect(']');
    return shape;
  }

  /// What follows "# ", to the end of the line.
  std::string rest() {
    if (at_ < line_.size() && line_[at_] == ' ') ++at_;
    std::string text(line_.substr(at_));
    at_ = line_.size();
    return text;
  }

 private:
  std::string_view line_;
  std::size_t number_;
  std::size_t at_ = 0;
};

class Parser {
 public:
  Program parse(std::string_view text) {
    std::size_t number = 0;
    while (!text.empty()) {
      const std::size_t end = text.find('\n');
      std::string_view line = text.substr(0, end);
      text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
      if (line.ends_with('\r')) line.remove_suffix(1);
      Cursor cursor(line, ++number);
      if (!cursor.at_end()) statement(cursor);
    }
    if (!has_header_) throw ArgumentError("program text: is empty");
    if (slots_ != builder_.program().kv_slots) {
      throw ArgumentError("program text: the kv lines are not those of the attention nodes");
    }
    if (states_ != builder_.program().state_slots) {
      throw ArgumentError("program text: the state lines are not those of the recurrent nodes");
    }
    return builder_.finish();
  }

 private:
  void statement(Cursor& cursor) {
    if (cursor.next_is('%')) return node(cursor);
    const std::string_view keyword = cursor.word();
    if (!has_header_) {
      if (keyword != "program" || cursor.integer() != 1) cursor.fail("expected \"program 1\"");
      has_header_ = true;
    } else if (keyword == "input") {
      const std::string name = sigil_name(cursor, '%');
      const Shape shape = cursor.shape();
      guarded(cursor, [&] { results_[name] = builder_.add_input(name, shape); });
    } else if (keyword == "weight") {
      const std::string name = sigil_name(cursor, '@');
      const Shape shape = cursor.shape();
      const Format* format = find_format(cursor.word());
      if (format == nullptr) cursor.fail("there is no such format");
      guarded(cursor, [&] { weights_[name] = builder_.add_weight(name, shape, format->id); });
    } else if (keyword == "kv") {
      slot(cursor);
    } else if (keyword == "state") {
      state(cursor);
    } else if (keyword == "function") {
      const std::string name = cursor.name();
      guarded(cursor, [&] { builder_.begin_function(name); });
    } else if (keyword == "return") {
      std::vector<ValueId> outputs;
      do {
        outputs.push_back(reference(cursor));
      } while (cursor.take(','));
      guarded(cursor, [&] { builder_.set_outputs(outputs); });
    } else {
      cursor.fail("expected input, weight, kv, state, function, return or a result");
    }
    cursor.expect_end();
  }

  void node(Cursor& cursor) {
    if (!has_header_) cursor.fail("expected \"program 1\"");
    std::vector<std::string> names;
    std::vector<Shape> shapes;
    do {
      names.push_back(sigil_name(cursor, '%'));
      shapes.push_back(cursor.shape());
    } while (cursor.take(','));
    cursor.expect('=');
    Node node;
    node.op = cursor.word();
    node.name = names[0];
    cursor.expect('(');
    if (!cursor.take(')')) {
      do {
        const std::string role(cursor.word());
        cursor.expect('=');
        node.inputs.push_back({role, reference(cursor)});
      } while (cursor.take(','));
      cursor.expect(')');
    }
    if (cursor.take('{')) {
      do {
        const std::string name(cursor.word());
        cursor.expect('=');
        if (!node.attributes.emplace(name, cursor.attribute()).second) cursor.fail("attribute " + name + " again");
      } while (cursor.take(','));
      cursor.expect('}');
    }
    if (cursor.take('#')) node.source = cursor.rest();
    cursor.expect_end();
    std::vector<ValueId> ids;
    guarded(cursor, [&] { ids = builder_.emit(std::move(node), names); });
    for (std::size_t i = 0; i < ids.size(); ++i) {
      const Shape& shape = builder_.program().value(ids[i]).shape;
      if (shape != shapes[i])
        cursor.fail(names[i] + " has shape " + to_string(shape) + ", not " + to_string(shapes[i]));
      results_[names[i]] = ids[i];
    }
  }

  void slot(Cursor& cursor) {
    KvSlot slot;
    slot.layer = cursor.integer(':');
    cursor.expect(':');
    slot.num_kv_heads = cursor.integer();
    if (cursor.word() != "heads") cursor.fail("expected \"heads\"");
    cursor.expect(',');
    slot.head_dim = cursor.integer();
    cursor.expect(',');
    slot.value_head_dim = cursor.integer();
    if (cursor.next_is(',')) {
      cursor.expect(',');
      if (cursor.word() != "latent") cursor.fail("expected \"latent\"");
      slot.latent = true;
    }
    slots_.push_back(slot);
  }

  void state(Cursor& cursor) {
    StateSlot slot;
    slot.layer = cursor.integer(':');
    cursor.expect(':');
    slot.op = cursor.word();
    cursor.expect(',');
    slot.rows = cursor.integer();
    cursor.expect(',');
    slot.columns = cursor.integer();
    states_.push_back(std::move(slot));
  }

  static std::string sigil_name(Cursor& cursor, char sigil) {
    cursor.expect(sigil);
    return cursor.name();
  }

  ValueId reference(Cursor& cursor) {
    const bool is_weight = cursor.next_is('@');
    const std::string name = sigil_name(cursor, is_weight ? '@' : '%');
    const auto& table = is_weight ? weights_ : results_;
    const auto found = table.find(name);
    if (found == table.end()) cursor.fail("there is no value " + name + " up to here");
    return found->second;
  }

  /// What the builder says is wrong, with the line.
  template <class Action>
  static void guarded(const Cursor& cursor, Action action) {
    try {
      action();
    } catch (const ArgumentError& error) {
      cursor.fail(error.what());
    }
  }

  ProgramBuilder builder_;
  std::unordered_map<std::string, ValueId> results_;  // and inputs
  std::unordered_map<std::string, ValueId> weights_;
  std::vector<KvSlot> slots_;
  std::vector<StateSlot> states_;
  bool has_header_ = false;
};

}  // namespace

Program parse_program(std::string_view text) { return Parser().parse(text); }

}  // namespace sterna
