/// Typed errors of the core. The bindings map each to the class of the same name in python/sterna/errors.py.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

namespace sterna {

/// Base of every error that the core throws on purpose.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// A model file that is malformed: names the file, the field and the byte offset of the field.
class ModelFormatError : public Error {
 public:
  ModelFormatError(std::string file, std::string field, std::uint64_t byte_offset, const std::string& problem)
      : Error(file + ": " + field + " at byte " + std::to_string(byte_offset) + ": " + problem),
        file_(std::move(file)),
        field_(std::move(field)),
        byte_offset_(byte_offset) {}

  const std::string& file() const { return file_; }
  const std::string& field() const { return field_; }
  std::uint64_t byte_offset() const { return byte_offset_; }

 private:
  std::string file_;
  std::string field_;
  std::uint64_t byte_offset_;
};

/// A well-formed model that this build cannot run.
class UnsupportedModelError : public Error {
 public:
  using Error::Error;
};

/// An argument out of range, or of the wrong shape.
class ArgumentError : public Error {
 public:
  using Error::Error;
};

/// A file that cannot be opened or read.
class FileError : public Error {
 public:
  FileError(const std::string& file, int error_number, const std::string& problem)
      : Error(file + ": " + problem), file_(file), error_number_(error_number) {}

  const std::string& file() const { return file_; }
  int error_number() const { return error_number_; }

 private:
  std::string file_;
  int error_number_;
};

/// More tokens than the context holds.
class ContextOverflowError : public Error {
 public:
  using Error::Error;
};

/// An allocation that would pass the memory budget.
class MemoryBudgetError : public Error {
 public:
  using Error::Error;
};

/// A device or an instruction set that is not there.
class DeviceError : public Error {
 public:
  using Error::Error;
};

/// NaN or infinity where a number is needed.
class NumericError : public Error {
 public:
  using Error::Error;
};

/// A request that found too many others waiting.
class QueueFullError : public Error {
 public:
  using Error::Error;
};

/// A request that did not end in the time that it was given.
class DeadlineError : public Error {
 public:
  using Error::Error;
};

}  // namespace sterna
