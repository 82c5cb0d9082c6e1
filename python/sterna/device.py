"""Devices that models run on: which are there, what they have free, and compiling for them."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sterna.errors import ArgumentError, DeviceError, UnsupportedModelError
from sterna.memory import CacheSize, MemoryPlan, ModelPart, PlanSettings, plan_encoder, plan_memory
from sterna.memory_budget import parse_budget, readable

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


def choose_devices(device: str, gpu_layers: int | None, *, to_load: bool = True) -> list[Device]:
    """As `find_devices`; with `gpu_layers`, one device: the GPU that gets them, or the CPU where they are none.

    Unless it is to load a model, a GPU that is not there may be planned for where there is none. ArgumentError for
    `gpu_layers` that is no count, or goes with device="cpu".
    """
    chosen = chosen_device(device)
    if gpu_layers is not None:
        if type(gpu_layers) is not int or gpu_layers < 0:
            raise ArgumentError(f"gpu_layers is {gpu_layers!r:.60}, must be at least 0")
        if gpu_layers == 0:
            return [CPU]
        if chosen == CPU.id:
            source = "device" if device == CPU.id else "STERNA_DEVICE"
            raise ArgumentError(f'gpu_layers is {gpu_layers}, and {source} "cpu": layers on a GPU need device="cuda"')
        chosen = "cuda" if chosen == "auto" else chosen
    if chosen.startswith("cuda") and not to_load and cuda_problem():
        return [Device(_number(chosen))]
    return find_devices(chosen)


def _number(device: str) -> int:
    return int(device.partition(":")[2] or 0)


@dataclass(frozen=True)
class Placement:
    """Where a model is to run: its parts and their devices, one of each, or two where its layers are divided."""

    devices: tuple[Device, ...]
    parts: tuple[ModelPart, ...]
    memory: MemoryPlan
    no_gpu: str | None = None  # why not on a device before it in the list

    @property
    def settings(self) -> PlanSettings:
        """Those of the part that gives the logits."""
        return self.parts[-1].settings

    @property
    def gpu_layers(self) -> int:
        pairs = zip(self.devices, self.parts, strict=True)
        return sum(part.layers for device, part in pairs if device.number is not None)

    @property
    def title(self) -> str:
        """ "cpu", "cuda:0 (NVIDIA H200)", "cpu + cuda:0 (NVIDIA H200), 20 of 32 layers"."""
        titles = " + ".join(device.title for device in self.devices)
        if len(self.parts) == 1:
            return titles
        return f"{titles}, {self.gpu_layers} of {sum(part.layers for part in self.parts)} layers"

    @property
    def isa(self) -> str:
        return " + ".join(device.isa for device in self.devices)


def split_program(traced: Program, gpu_layers: int | None) -> tuple[Program, Program] | None:
    """A program without its last `gpu_layers` layers, and these, both fused; None where it need not be cut.

    UnsupportedModelError where it cannot be cut there.
    """
    layers = traced.num_layers
    if not gpu_layers or gpu_layers >= layers:
        return None
    try:
        first, last = traced.split_layers(layers - gpu_layers)
    except UnsupportedModelError as error:
        raise UnsupportedModelError(f"gpu_layers is {gpu_layers}, of {layers}: {error}") from None
    return first.fuse(), last.fuse()


def place_parts(
    programs: tuple[Program, Program],
    gpu: Device,
    memory_budget: int | str | None,
    settings: PlanSettings,
    draft: ModelPart | None,
    size: CacheSize,
) -> Placement:
    """The first part on the CPU, a draft model too, and the second one on the GPU: each has its `memory_budget`."""
    first, last = programs
    before = first.num_layers
    parts = (
        ModelPart(first, replace(settings, device=CPU.id, max_outputs=1), before),
        ModelPart(last, replace(settings, device=gpu.id), last.num_layers - before),
    )
    budgets = CPU.budget(memory_budget), gpu.budget(memory_budget)
    return Placement((CPU, gpu), parts, plan_memory(parts, budgets, size, None if draft is None else _on(CPU, draft)))


def place(
    program: Program,
    devices: Sequence[Device],
    memory_budget: int | str | None,
    settings: PlanSettings,
    draft: ModelPart | None,
    size: CacheSize,
) -> Placement:
    """The first device that the model fits on, the last one in any case; those behind it are not asked.

    UnsupportedModelError and DeviceError of the last one.
    """
    part = ModelPart(program, settings, program.num_layers)
    enough, _ = size.choose(AUTO_CONTEXT)
    problems = []
    for device in devices[:-1]:
        try:
            budget = device.budget(memory_budget)
            found = _place_on(device, budget, part, draft, size)
        except (UnsupportedModelError, DeviceError) as error:
            problems.append(f"{device.title}: {error}")
            continue
        if found.memory.fits and found.memory.context >= enough:
            return found
        problems.append(
            f"the model needs {readable(found.memory.total)} with a context of {found.memory.context} tokens, "
            f"{device.title} has {readable(budget or 0)}, which is enough for {found.memory.max_context or 0}"
        )
    last = _place_on(devices[-1], devices[-1].budget(memory_budget), part, draft, size)
    return replace(last, no_gpu="; ".join(problems) or None)


def _on(device: Device, part: ModelPart) -> ModelPart:
    return replace(part, settings=replace(part.settings, device=device.id))


def _place_on(
    device: Device, budget: int | None, part: ModelPart, draft: ModelPart | None, size: CacheSize
) -> Placement:
    part = _on(device, part)
    if "logits" in part.program.functions:
        memory = plan_memory([part], [budget], size, None if draft is None else _on(device, draft))
    else:
        part, memory = plan_encoder(part, budget, size)
    return Placement((device,), (part,), memory)


def compile_placed(placed: Placement, program: Program, file: Gguf, adapters: Sequence[Gguf] = ()) -> ProgramPlan:
    """Compiles the parts of `program` for their devices: packs the weights."""
    from sterna import _core

    plans = [compile_for(part, file, adapters) for part in placed.parts]
    return plans[0] if len(plans) == 1 else _core.compile_chain(program, plans)


def threads_of(plan: ProgramPlan) -> int:
    """Threads of the CPU that compute; 0: none."""
    from sterna import _core

    if isinstance(plan, _core.ChainPlan):
        return max(threads_of(part) for part in plan.parts)
    return plan.threads if isinstance(plan, _core.CpuPlan) else 0


def compile_for(
    part: ModelPart, file: Gguf, adapters: Sequence[Gguf] = (), share_threads: ProgramPlan | None = None
) -> ProgramPlan:
    """Compiles for the settings' device: packs the weights. The plan takes turns with `share_threads`, a CPU's."""
    from sterna import _core

    program, settings = part.program, part.settings
    if isinstance(share_threads, _core.ChainPlan):
        share_threads = share_threads.parts[0]
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
