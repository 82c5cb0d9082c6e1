/// The parts of the engine that Python can use alone; bind_engine calls these.
#pragma once

#include <pybind11/pybind11.h>

#include "engine/sampler.h"

namespace sterna::bindings {

void bind_sampler(pybind11::module_& m);
void bind_text(pybind11::module_& m);
void bind_scheduler(pybind11::module_& m);

/// [(token, logprob)], as Event and Sampled show it.
pybind11::list top_logprobs_list(const Sampled& sampled);

}  // namespace sterna::bindings
