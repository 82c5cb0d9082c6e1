/// Pieces and TextStream in Python, and the pieces of a vocabulary for the sentencepiece library.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "bindings/bind_engine_parts.h"
#include "bindings/engine_arguments.h"
#include "engine/pieces.h"
#include "engine/sentencepiece_model.h"
#include "engine/text_stream.h"
#include "gguf/gguf.h"

namespace py = pybind11;
using namespace pybind11::literals;

namespace sterna::bindings {
namespace {

py::bytes model_pieces(const std::vector<py::bytes>& tokens, const py::bytes& scores, const py::bytes& types) {
  const std::vector<std::string_view> texts(tokens.begin(), tokens.end());
  const std::string_view numbers(scores), kinds(types);
  std::vector<float> values(numbers.size() / sizeof(float));
  std::memcpy(values.data(), numbers.data(), values.size() * sizeof(float));
  return sentencepiece_pieces(texts, values, {reinterpret_cast<const std::uint8_t*>(kinds.data()), kinds.size()});
}

}  // namespace

void bind_text(py::module_& m) {
  py::class_<Pieces, std::shared_ptr<Pieces>>(m, "Pieces")
      .def_static(
          "from_tokens",
          [](const std::string& kind, const std::vector<std::string>& tokens, const py::object& types) {
            const std::vector<std::string_view> views(tokens.begin(), tokens.end());
            const auto numbers = types.is_none() ? std::vector<std::int32_t>() : to_tokens(types, "types");
            return std::make_shared<Pieces>(Pieces::from_tokens(piece_kind(kind), views, numbers));
          },
          "kind"_a, "tokens"_a, "types"_a = py::none())
      .def_static(
          "from_gguf",
          [](const GgufModel& file) { return std::make_shared<Pieces>(Pieces::from_metadata(file.metadata())); },
          "file"_a)
      .def("__len__", &Pieces::size)
      .def(
          "piece",
          [](const Pieces& pieces, std::int32_t token, bool special) {
            const std::string_view piece = pieces.piece(token, special);
            return py::bytes(piece.data(), piece.size());
          },
          "token"_a, "special"_a = false)
      .def("is_control", &Pieces::is_control, "token"_a)
      .def(
          "decode",
          [](const Pieces& pieces, const py::object& tokens, bool special, bool drop_leading_space) {
            return pieces.decode(to_tokens(tokens, "tokens"), special, drop_leading_space);
          },
          "tokens"_a, "special"_a = false, "drop_leading_space"_a = false);

  py::class_<TextStream>(m, "TextStream")
      .def(py::init<std::vector<std::string>, bool>(), "stop_strings"_a = std::vector<std::string>(),
           "drop_leading_space"_a = false)
      .def(
          "push", [](TextStream& stream, const py::bytes& data) { return stream.push(std::string_view(data)); },
          "data"_a)
      .def("finish", &TextStream::finish)
      .def_property_readonly("stopped", [](const TextStream& stream) -> py::object {
        if (const std::string* stop = stream.stopped()) return py::str(*stop);
        return py::none();
      });

  m.def("sentencepiece_pieces", &model_pieces, "tokens"_a, "scores"_a, "types"_a);
}

}  // namespace sterna::bindings
