"""`sterna doctor`: what this machine and this installation can do."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Any

import click

from sterna.cli import console
from sterna.cli.options import json_option


@click.command()
@json_option
def command(as_json: bool) -> None:
    """Check this machine and this installation; exit code 1 where something is wrong.

    Every kernel that this CPU can run is held against its definition on random inputs, bit for bit.
    """
    problems: list[str] = []
    report: dict[str, Any] = {
        "sterna": version("sterna"),
        "python": f"{platform.python_version()} ({sys.executable})",
        "system": platform.platform(),
        "packages": _packages(problems),
        "processor": _processor(problems),
        "kernels": _kernels(problems),
        "gpu": _gpus(),
        "memory": _memory(),
        "models": _models(problems),
        "problems": problems,
    }
    if as_json:
        console.print_json(report)
    else:
        for title, section in report.items():
            if isinstance(section, dict):
                print(title)
                console.print_fields(section.items(), "  ")
            elif title != "problems":
                print(f"{title}  {section}")
        for problem in problems:
            console.error(problem)
        if not problems:
            console.say("No problems found.")
    if problems:
        click.get_current_context().exit(1)


def _packages(problems: list[str]) -> dict[str, str]:
    found = {}
    for requirement in requires("sterna") or ():
        if "extra ==" in requirement:
            continue
        name = requirement.split(";")[0]
        for separator in "<>=!~ [":
            name = name.split(separator)[0]
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
            problems.append(f"the package {name} is missing")
    return found


def _processor(problems: list[str]) -> dict[str, Any]:
    try:
        from sterna import _core
    except ImportError as error:
        problems.append(f"the compiled core cannot be loaded: {error}")
        return {}
    from sterna.errors import SternaError

    compiled, supported = _core.compiled_isas(), _core.supported_isas()
    fields: dict[str, Any] = {"machine": platform.machine(), "cpus": _core.available_cpus()}
    fields["instruction sets"] = ", ".join(n if n in supported else f"{n} (not on this CPU)" for n in compiled)
    try:
        fields["in use"] = _core.chosen_isa()
    except SternaError as error:
        problems.append(str(error))
    return fields


def _kernels(problems: list[str]) -> dict[str, str]:
    """Each instruction set's kernels beside the scalar definition, bit for bit."""
    try:
        from sterna import _core
    except ImportError:
        return {}
    import time

    fields = {}
    for isa in _core.supported_isas():
        begin = time.monotonic()
        checks = _core.check_kernels(isa, seed=time.time_ns() & 0xFFFFFFFF)
        wrong = [f"{family}: {mismatch}" for family, _, mismatch in checks if mismatch]
        problems += [f"the kernels for {isa} are wrong: {problem}" for problem in wrong]
        cases = sum(count for _, count, _ in checks)
        outcome = f"{len(wrong)} of {len(checks)} families differ" if wrong else "all as defined"
        fields[isa] = f"{cases} cases in {time.monotonic() - begin:.1f} s, {outcome}"
    return fields


def _gpus() -> dict[str, str]:
    """CUDA devices, or why there is none: a machine without is in order. Starts each."""
    try:
        from sterna import _core
    except ImportError:
        return {}
    from sterna.errors import DeviceError

    devices = _core.cuda_devices()
    if not devices:
        return {"cuda": f"none: {_core.cuda_problem()}"}
    fields = {}
    for found in devices:
        name = f"cuda:{found['number']}"
        fields[name] = (
            f"{found['name']}, compute capability {found['compute_capability']}, "
            f"{found['multiprocessors']} multiprocessors, {console.size(found['total_bytes'])}"
        )
        try:
            if found["problem"]:
                raise DeviceError(found["problem"])
            fields[name] += f", {console.size(_core.cuda_free_bytes(found['number']))} free"
        except DeviceError as error:
            fields[name] += f"; cannot be used: {error}"
    return fields


def _memory() -> dict[str, Any]:
    fields: dict[str, Any] = {}
    try:
        page = os.sysconf("SC_PAGE_SIZE")
        fields["total"] = console.size(os.sysconf("SC_PHYS_PAGES") * page)
        fields["free"] = console.size(os.sysconf("SC_AVPHYS_PAGES") * page)
    except (AttributeError, ValueError, OSError):
        fields["total"] = None  # not to be had this way here
    return fields


def _models(problems: list[str]) -> dict[str, Any]:
    from sterna.hub import cache_dir
    from sterna.hub.installed import list_models

    folder = cache_dir()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not os.access(existing, os.W_OK):
        problems.append(f"the cache folder {folder} cannot be written")
    models = list_models()
    fields: dict[str, Any] = {"cache": folder, "free": console.size(shutil.disk_usage(existing).free)}
    fields["on this machine"] = ", ".join(model.name for model in models) or "none"
    fields["pip"] = "yes" if importlib.util.find_spec("pip") is not None else "no: models in packages cannot be fetched"
    return {name: str(value) for name, value in fields.items()}
