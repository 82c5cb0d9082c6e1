"""How a repository stores its ternary weights: what quantization_config says, and each linear layer read by it.

Source: huggingface/transformers, integrations/bitnet.py (BitLinear, AutoBitLinear) and BitNetQuantConfig.
"""

from __future__ import annotations

from dataclasses import dataclass

from sterna.conversion.families import Family
from sterna.conversion.repository import JsonFile, Repository
from sterna.conversion.safetensors import FLOATS, StoredTensor
from sterna.conversion.ternary import PackedMatrix, TernaryMatrix, masters, read_scale, survey, ternary_floats
from sterna.errors import UnsupportedModelError
from sterna.typed_reads import shown

_DEFAULT_NORM_EPS = 1e-6


@dataclass(frozen=True)
class Scheme:
    """The meaning of `weight` and `weight_scale`.

    Packed weights are codes; `divides` says that their scale is a divisor (BitLinear), not a factor (AutoBitLinear).
    Floats are masters, quantised by their mean magnitude, where `online` says so; elsewhere they are ternary as they
    stand, or masters where `may_be_masters`.
    """

    divides: bool
    online: bool
    may_be_masters: bool
    norm_eps: float | None  # of an RMS norm inside every linear layer; None: there is none

    def matrix(self, repository: Repository, module: str, shape: tuple[int, int]) -> TernaryMatrix:
        """The linear layer `module` of [n, k]; floats are read once here. ModelFormatError, UnsupportedModelError."""
        weight = self.weight(repository, module, shape)
        stored = repository.tensors.get(f"{module}.weight_scale")
        if weight.dtype == "U8":
            return PackedMatrix(weight, read_scale(repository.tensor(f"{module}.weight_scale"), self.divides))
        found = survey(weight)
        if self.online:
            return masters(weight, found)
        if found.is_ternary:
            return ternary_floats(weight, found, 1.0 if stored is None else read_scale(stored, self.divides))
        if self.may_be_masters and stored is None:
            return masters(weight, found)
        raise UnsupportedModelError(
            f"{weight.file.path}: tensor {weight.name}: its values are not ternary (magnitudes from "
            f"{found.smallest:.6g} to {found.largest:.6g}), and config.json has no quantization_config of "
            "quantization_mode online; --masters quantises the weights that BitNet training leaves"
        )

    def weight(self, repository: Repository, module: str, shape: tuple[int, int]) -> StoredTensor:
        """The stored weight of a linear layer, of the right type and shape."""
        weight = repository.tensor(f"{module}.weight")
        n, k = shape
        if weight.dtype == "U8":
            if n % 4 or weight.shape != (n // 4, k):
                weight.fail(f"has shape {list(weight.shape)}, expected {[n // 4, k]} for {n} rows, four in a byte")
        elif weight.dtype not in FLOATS:
            weight.fail(f"has dtype {weight.dtype}, expected U8 (packed) or a floating-point type")
        elif weight.shape != shape:
            weight.fail(f"has shape {list(weight.shape)}, expected {list(shape)}")
        return weight


def read_scheme(config: JsonFile, family: Family, *, masters: bool) -> Scheme:
    """From config.json; `masters` is what the caller says about floats. UnsupportedModelError for another method."""
    quantization = config.object("quantization_config")
    if quantization is None:
        return Scheme(True, False, masters or family.always_ternary, None)
    if quantization.values.get("quant_method") != "bitnet":
        quantization.unsupported("quant_method", "only bitnet is converted")
    linear_class = quantization.text("linear_class", "bitlinear")
    mode = quantization.text("quantization_mode", "offline")
    if linear_class not in ("bitlinear", "autobitlinear"):
        quantization.unsupported("linear_class", "known are bitlinear and autobitlinear")
    if mode not in ("online", "offline"):
        quantization.unsupported("quantization_mode", "known are online and offline")
    for name in quantization.items("modules_to_not_convert"):
        if not isinstance(name, str) or ("lm_head" not in name and "embed" not in name):
            quantization.unsupported(
                "modules_to_not_convert", f"a block with {shown(name)} left in floating point is not converted"
            )
    eps = quantization.number("rms_norm_eps", _DEFAULT_NORM_EPS, high=1.0)
    return Scheme(
        divides=linear_class == "bitlinear",
        online=mode == "online" and linear_class == "autobitlinear",
        may_be_masters=masters,
        norm_eps=eps if quantization.flag("use_rms_norm", False) else None,
    )
