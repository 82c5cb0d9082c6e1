"""Devices that models run on: which are there, what they have free, and compiling for them."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sterna.errors import ArgumentError, DeviceError, UnsupportedModelError
from sterna.memory import MemoryPlan, PlanSettings, parse_budget, plan_encoder, plan_memory, readable

if TYPE_CHECKING:
    from sterna._core import Gguf, Program, ProgramPlan

# Nothing else grows there while a model runs, as it may on the host.
CUDA_BUDGET_SHARE = 0.9
# A GPU that has no room for so many tokens is not chosen for those who name no context.
AUTO_CONTEXT = 4096


@dataclass(frozen=True)
class Device:
    """The CPU, or a GPU with its number; one without a name is not there."""

    number: int | None = None
    name: str = ""
    compute_capability: str = ""

    @property
    def id(self) -> str:
        """ "cpu", "cuda:0"."""
        return "cpu" if self.number is None else f"cuda:{self.number}"

    @property
    def title(self) -> str:
        """ "cpu", "cuda:0 (NVIDIA H200)"."""
        return f"{self.id} ({self.name})" if self.name else self.id

    @property
    def isa(self) -> str:
        """What its code is for: "avx2", "sm_90"."""
        if self.number is None:
            from sterna import _core

            return _core.chosen_isa()
        return f"sm_{self.compute_capability.replace('.', '')}"

    def budget(self, given: int | str | None) -> int | None:
        """Bytes that a model may take; None is a share of what is free, for which a GPU is started: ask only for one
        that may be used. None for a GPU that is not there. ArgumentError, DeviceError.
        """
        if given is not None or self.number is None:
            return parse_budget(given)
        if not self.name:
            return None
        from sterna import _core

        return int(_core.cuda_free_bytes(self.number) * CUDA_BUDGET_SHARE)


CPU = Device()


def cuda_devices() -> list[Device]:
    """Those that can be used, in the order of their numbers. None of them is started for that."""
    from sterna import _core

    return [
        Device(found["number"], found["name"], found["compute_capability"])
        for found in _core.cuda_devices()
        if not found["problem"]
    ]


def cuda_problem() -> str:
    """Why there is no GPU to use; "" where there is one."""
    from sterna import _core

    return _core.cuda_problem()


def chosen_device(device: str) -> str:
    """`device`, or where it is "auto" what $STERNA_DEVICE says.

    ArgumentError unless it is "auto", "cpu", "cuda" or "cuda:N".
    """
    source = "device"
    if device == "auto" and (said := os.environ.get("STERNA_DEVICE")):
        source, device = "STERNA_DEVICE", said
    if not isinstance(device, str) or not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", device):
        raise ArgumentError(f'{source} is {device!r:.60}, must be "auto", "cpu", "cuda" or "cuda:N"')
    return device


def find_devices(device: str) -> list[Device]:
    """What `device` may mean, the first choice first: "auto" is each GPU, then the CPU, or what `chosen_device` says.

    ArgumentError for what is no device, and for the number of a GPU that is not there where others are; DeviceError
    where there is none at all, and for one that cannot be used.
    """
    device = chosen_device(device)
    if device == "cpu":
        return [CPU]
    if device == "auto":
        return [*cuda_devices(), CPU]
    if problem := cuda_problem():
        raise DeviceError(f'device {device!r} is not there: {problem}; use device="cpu"')
    found = cuda_devices()
    if device == "cuda":
        return [found[0]]
    number = _number(device)
    for usable in found:
        if usable.number == number:
            return [usable]
    from sterna import _core

    listed = _core.cuda_devices()
    if number < len(listed):
        raise DeviceError(f"device {device!r} cannot be used: {listed[number]['problem']}")
    raise ArgumentError(f"device is {device!r}, the last one that is there is 'cuda:{len(listed) - 1}'")


def devices_to_plan_for(device: str) -> list[Device]:
    """As `find_devices`, but a GPU that is not there may be planned for where there is none."""
    device = chosen_device(device)
    if device.startswith("cuda") and cuda_problem():
        return [Device(_number(device))]
    return find_devices(device)


def _number(device: str) -> int:
    return int(device.partition(":")[2] or 0)


@dataclass(frozen=True)
class Placement:
    """A device, and what a model takes there."""

    device: Device
    settings: PlanSettings
    memory: MemoryPlan
    no_gpu: str | None = None  # why not one before it in the list


def place(
    devices: Sequence[Device],
    memory_budget: int | str | None,
    program: Program,
    settings: PlanSettings,
    draft: tuple[Program, PlanSettings] | None,
    *,
    context: int | None,
    kv_tokens: int | None,
    trained_context: int,
) -> Placement:
    """The first device that the model fits on, the last one in any case; those behind it are not asked.

    UnsupportedModelError and DeviceError of the last one.
    """
    enough = context or min(trained_context, kv_tokens or trained_context, AUTO_CONTEXT)
    problems = []
    for device in devices[:-1]:
        try:
            budget = device.budget(memory_budget)
            found = _place_on(device, budget, program, settings, draft, context, kv_tokens, trained_context)
        except (UnsupportedModelError, DeviceError) as error:
            problems.append(f"{device.title}: {error}")
            continue
        if found.memory.fits and found.memory.context >= enough:
            return found
        problems.append(
            f"the model needs {readable(found.memory.total)} with a context of {found.memory.context} tokens, "
            f"{device.title} has {readable(budget or 0)}, which is enough for {found.memory.max_context or 0}"
        )
    device, budget = devices[-1], devices[-1].budget(memory_budget)
    last = _place_on(device, budget, program, settings, draft, context, kv_tokens, trained_context)
    return replace(last, no_gpu="; ".join(problems) or None)


def _place_on(
    device: Device,
    budget: int | None,
    program: Program,
    settings: PlanSettings,
    draft: tuple[Program, PlanSettings] | None,
    context: int | None,
    kv_tokens: int | None,
    trained_context: int,
) -> Placement:
    placed = replace(settings, device=device.id)
    if "logits" in program.functions:
        drafts = None if draft is None else (draft[0], replace(draft[1], device=device.id))
        memory = plan_memory(
            program,
            placed,
            context=context,
            kv_tokens=kv_tokens,
            trained_context=trained_context,
            budget=budget,
            draft=drafts,
        )
    else:
        placed, memory = plan_encoder(
            program, placed, context=context, kv_tokens=kv_tokens, trained_context=trained_context, budget=budget
        )
    return Placement(device, placed, memory)


def compile_for(
    settings: PlanSettings,
    program: Program,
    file: Gguf,
    adapters: Sequence[Gguf] = (),
    share_threads: ProgramPlan | None = None,
) -> ProgramPlan:
    """Compiles for the settings' device: packs the weights. The plan takes turns with `share_threads`, a CPU's."""
    from sterna import _core

    if settings.device == CPU.id:
        return _core.compile_cpu(
            program,
            file,
            threads=settings.threads,
            kv_dtype=settings.kv_dtype,
            max_tokens=settings.max_tokens,
            max_outputs=settings.max_outputs,
            adapters=adapters,
            share_threads=share_threads if isinstance(share_threads, _core.CpuPlan) else None,
        )
    return _core.compile_cuda(
        program,
        file,
        device=_number(settings.device),
        threads=settings.threads,
        kv_dtype=settings.kv_dtype,
        max_tokens=settings.max_tokens,
        max_outputs=settings.max_outputs,
        adapters=adapters,
    )
