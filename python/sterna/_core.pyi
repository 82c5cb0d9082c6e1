"""Types of the compiled core; one section per area, as in csrc/bindings."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NoReturn, TypeAlias, TypedDict, final

import numpy as np
import numpy.typing as npt

IntsLike: TypeAlias = Sequence[int] | npt.NDArray[np.integer[Any]]
BytesLike: TypeAlias = bytes | bytearray | memoryview | npt.NDArray[np.uint8]

# --- gguf

@final
class TensorInfo:
    """One entry of a GGUF file's tensor table, checked: its bytes lie in the file, and overlap no other's."""

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]:
        """Rows first, as numpy sees it; 1 to 4 dimensions."""
    @property
    def format(self) -> str:
        """ "F32", "Q4_K", ..."""
    @property
    def bytes(self) -> int: ...
    @property
    def offset(self) -> int:
        """Of the data, from the start of its file."""
    @property
    def file(self) -> int:
        """Index into `Gguf.files`."""
    @property
    def entry_offset(self) -> int:
        """Where the entry stands in its file, for errors."""

@final
class Gguf:
    """A model in one GGUF file, or in the parts of a split one: metadata, tensor table, reads of tensor data.

    Getters convert among integer types when the value fits; a value of another type, out of range or not finite is a
    ModelFormatError with key and byte offset. `find_` gives None for a missing key, where `get_` raises (but `get` does
    not). `length` is the number of elements that an array must have. Safe to use from several threads.
    """

    def __init__(self, path: str | bytes | os.PathLike[str] | os.PathLike[bytes], *, i2s_order: str = "x86") -> None:
        """Reads metadata and tensor table. FileError; ModelFormatError with the field and its byte offset;
        UnsupportedModelError for a type of another program that cannot be read. `i2s_order`, "x86" or "arm": of I2_S."""
    @property
    def path(self) -> str: ...
    @property
    def version(self) -> int: ...
    @property
    def alignment(self) -> int: ...
    @property
    def file_bytes(self) -> int:
        """Of all parts."""
    @property
    def files(self) -> list[str]: ...
    def keys(self) -> list[str]:
        """In the order of the file."""
    def __contains__(self, key: str) -> bool: ...
    def type_of(self, key: str) -> str:
        """ "uint32", "string", "array[float32]", ..."""
    def offset_of(self, key: str) -> int:
        """Where the value stands in the file; for a missing key, where the metadata begin."""
    def get(self, key: str, default: Any = None) -> Any:
        """The value as it is: bool, int, float, str (bytes that are not UTF-8 become U+FFFD), a list of str, or an array of
        numbers in the file's dtype; `default` for a missing key."""
    def array_length(self, key: str) -> int: ...
    def get_bytes(self, key: str) -> bytes:
        """A string as the file holds it."""
    def get_bytes_list(self, key: str, length: int | None = None) -> list[bytes]: ...
    def string_array_at(self, key: str, index: int) -> bytes:
        """One string of an array, without making a list of all. ArgumentError."""
    def number_array(self, key: str) -> tuple[str, bytes]:
        """The element type ("float32", ...) and the little-endian bytes of an array of numbers."""
    def find_u32(self, key: str) -> int | None: ...
    def find_u64(self, key: str) -> int | None: ...
    def find_i64(self, key: str) -> int | None: ...
    def find_f32(self, key: str) -> float | None: ...
    def find_bool(self, key: str) -> bool | None: ...
    def find_string(self, key: str) -> str | None: ...
    def get_u32(self, key: str) -> int: ...
    def get_u64(self, key: str) -> int: ...
    def get_i64(self, key: str) -> int: ...
    def get_f32(self, key: str) -> float: ...
    def get_bool(self, key: str) -> bool: ...
    def get_string(self, key: str) -> str: ...
    def get_strings(self, key: str, length: int | None = None) -> list[str]: ...
    def get_u32_array(self, key: str, length: int | None = None) -> npt.NDArray[np.uint32]: ...
    def get_i32_array(self, key: str, length: int | None = None) -> npt.NDArray[np.int32]: ...
    def get_f32_array(self, key: str, length: int | None = None) -> npt.NDArray[np.float32]: ...
    def fail(self, key: str, problem: str) -> NoReturn:
        """Raises ModelFormatError about the value of `key`, for checks that know more than its type."""
    @property
    def tensors(self) -> list[TensorInfo]:
        """In the order of the table, part after part."""
    def find(self, name: str) -> TensorInfo | None: ...
    def require(self, name: str) -> TensorInfo:
        """UnsupportedModelError when there is no such tensor."""
    def read(self, name: str, offset: int = 0, count: int | None = None) -> npt.NDArray[np.uint8]:
        """The tensor's bytes as the file stores them, or `count` of them from `offset` on. FileError when the file cannot be
        read or has shrunk; ArgumentError beyond the end."""
    def weight_format(self, name: str) -> str:
        """The format that a tensor is packed from: where all its blocks have one scale and no code is the fourth, that of
        256 ternary weights a block ("Q2_0_TERNARY"), otherwise its own. Reads Q1_0 and Q2_0 tensors up to the first reason
        against. FileError."""
    def scan_ternary(self, name: str) -> TernaryScan | None:
        """Codes and scales of a TQ1_0, TQ2_0, I2_S, Q1_0 or Q2_0 tensor, which is read whole; None for others. FileError."""

@final
class TernaryScan:
    """What a ternary or 1-bit tensor is made of."""

    @property
    def codes(self) -> list[int]:
        """Weights with code -1, 0, 1, and the fourth of two bits (2, which in I2_S means nothing)."""
    @property
    def first_fourth(self) -> int | None:
        """The first weight with the fourth code, counted through the tensor."""
    @property
    def unused_bytes(self) -> int:
        """Bytes of TQ1_0 that stand for no five digits; decoders take them for others."""
    @property
    def least_scale(self) -> float:
        """Of the scales that are numbers; infinite when none is."""
    @property
    def largest_scale(self) -> float: ...
    @property
    def bad_scales(self) -> int:
        """Scales that are NaN or infinite."""
    @property
    def first_bad_block(self) -> int | None: ...
    @property
    def one_scale(self) -> bool:
        """Whether all blocks have the same."""

# --- quant

@final
class FormatInfo:
    """How tensors of one GGUF type are stored."""

    @property
    def id(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def block_size(self) -> int: ...
    @property
    def block_bytes(self) -> int: ...
    @property
    def scales(self) -> str:
        """ "none" (plain numbers), "block" (a float scale per group) or "super" (integer scales under a float one)."""
    @property
    def group_size(self) -> int: ...
    @property
    def has_min(self) -> bool: ...
    @property
    def tail_bytes(self) -> int:
        """Behind a tensor's blocks; they begin with a float32 that multiplies all of it."""
    @property
    def is_ternary(self) -> bool:
        """Codes other than -1, 0 and 1 are faults."""

def formats() -> list[FormatInfo]:
    """All formats of tensors, by id. Ids from 65536 on are in no file: other meanings of an id (Q2_0_G128), and other ways to
    read the same bytes (Q2_0_TERNARY)."""

def dequantize(data: npt.NDArray[np.uint8], format: str) -> npt.NDArray[np.float32]:
    """A tensor's bytes (any shape, read in C order) to floats [num_blocks * block_size]. ArgumentError."""

def decode_blocks(data: npt.NDArray[np.uint8], format: str) -> dict[str, npt.NDArray[Any]]:
    """Blocks of bytes to integer codes and scales; nothing is rounded. ArgumentError for formats without blocks.

    codes int8 [num_blocks, block_size]; scale and min float32 [num_blocks, num_groups], or [num_blocks, 1] where `scales` is
    "super", and then group_scale and group_min int16 [num_blocks, num_groups] (else [num_blocks, 0]).
    """

# --- quantize

def quantize(
    x: npt.NDArray[np.float32],
    format: str,
    importance: npt.NDArray[np.float32] | None = None,
    out: npt.NDArray[np.uint8] | None = None,
    what: str = "weights",
    first: int = 0,
) -> npt.NDArray[np.uint8]:
    """Rows x [..., k] as the bytes of `format`, into `out` where that is given (C order, any shape), else [bytes].

    `importance` [k] weighs the squared error of a row's weights. Formats that gguf.quants writes are the same bytes without
    it. ArgumentError: shapes, or no quantiser; NumericError: a weight that is not finite or too large, called
    what[first + index].
    """

def can_quantize(format: str) -> bool:
    """Whether `quantize` writes the format. ArgumentError for a format that there is not."""

def takes_importance(format: str) -> bool:
    """Whether `quantize` to the format makes use of importance."""

# --- program

Extent: TypeAlias = int | str  # "T": num_tokens, "L": num_outputs

@final
class ProgramValue:
    """A value of a Program: an input, a weight, or the result of a node."""

    name: str
    kind: str  # "input", "weight", "node"
    shape: tuple[Extent, ...]  # weights: rows first
    format: str | None  # of weights: "Q4_K"

@final
class ProgramNode:
    """One op of a Program with its operands, attributes and source line."""

    op: str
    name: str
    inputs: list[tuple[str, int]]  # role and value id
    outputs: list[int]
    attributes: dict[str, bool | int | float | str]
    source: str  # "models/llama.py:27"

@final
class KvSlot:
    """What one layer keeps in the KV cache, per token."""

    layer: int
    num_kv_heads: int
    head_dim: int
    value_head_dim: int
    latent: bool  # V is the beginning of K and not stored again

@final
class StateSlot:
    """What a recurrent op of a layer keeps of a sequence: a matrix of float32."""

    layer: int
    op: str
    rows: int
    columns: int

@final
class Program:
    """What a model computes: SSA values and named nodes. Immutable."""

    @property
    def functions(self) -> list[str]: ...
    def nodes(self, function: str = "logits") -> list[ProgramNode]:
        """In execution order."""
    def outputs(self, function: str = "logits") -> list[int]: ...
    @property
    def values(self) -> list[ProgramValue]:
        """By value id."""
    @property
    def longrope_context(self) -> int:
        """Sequences longer than this turn with the long factors of longrope; 0: there are none."""
    @property
    def kv_slots(self) -> list[KvSlot]: ...
    @property
    def state_slots(self) -> list[StateSlot]: ...
    def text(self) -> str:
        """The text form; `Program.parse` reads it back."""
    @staticmethod
    def parse(text: str) -> Program:
        """ArgumentError with line and column."""
    def fuse(self, passes: Sequence[str] | None = None) -> Program:
        """A new program after the named passes in the order given, or after all of them in their fixed order."""
    @property
    def num_layers(self) -> int:
        """By the scopes of its nodes, "layers.3"."""
    def split_layers(self, first_layer: int) -> tuple[Program, Program]:
        """The parts before and from that layer on; cut before fusion. ArgumentError, UnsupportedModelError."""

    passes: ClassVar[list[str]]  # names, in the order in which fuse() runs them

@final
class ProgramBuilder:
    """Builds a Program node by node; each is checked against the op table as it comes (ArgumentError)."""

    def __init__(self) -> None: ...
    def add_input(self, name: str, shape: Sequence[Extent]) -> int: ...
    def add_weight(self, name: str, shape: Sequence[Extent], format: str) -> int: ...
    def begin_function(self, name: str) -> None: ...
    def emit(
        self,
        op: str,
        name: str,
        inputs: Sequence[tuple[str, int]],
        attributes: Mapping[str, bool | int | float | str],
        source: str,
    ) -> list[int]:
        """Appends a node; gives the ids of its results."""
    def set_outputs(self, outputs: Sequence[int]) -> None: ...
    def shape(self, value: int) -> tuple[Extent, ...]: ...
    def finish(self) -> Program:
        """The program, checked as a whole; the builder is empty afterwards."""

def rope_inverse_frequencies(node: ProgramNode, prefix: str, factors: Sequence[float]) -> list[float]:
    """Angle per position of each pair that the rope node turns; prefix "rope." for attention with rope folded in."""

# --- plan

class Plan:
    """A Program compiled for one device."""

class PyPlan(Plan):
    """Base of plans written in Python, for tests; csrc/bindings/py_plan.h says what they define."""

    def __init__(self) -> None: ...

class ProgramPlan(Plan):
    """A Program, compiled for one device. Not for several threads at a time."""

    def run(
        self,
        tokens: IntsLike,
        positions: IntsLike,
        sequences: IntsLike,
        page_tables: Sequence[Sequence[int]],
        output_rows: IntsLike,
        function: str = "logits",
        *,
        long_sequences: Sequence[int] = (),
        largest: Sequence[int] = (),
        received: npt.NDArray[np.float32] | None = None,
    ) -> npt.NDArray[np.float32]:
        """Runs one batch and gives the logits of its output rows, [num_outputs, vocab_size]. ArgumentError.

        With `function` "encode" the vectors of the sequences that end in its output rows, [num_outputs, encoding_size].

        tokens, positions, sequences [num_tokens]: a row's token, its place in its sequence, and the index of the sequence,
        whose pages `page_tables` lists. Pages must have been reserved. `long_sequences` says for each sequence whether
        it is a long one (1) or not (0); empty: none is. `largest` says for each output row how many of its largest logits
        `largest_logits` is asked for; empty: none. A part of a chain gets `received`
        [num_tokens, n] from the part before it, and gives such rows for the next one.
        """
    @property
    def most_largest(self) -> int:
        """As many of a row's largest logits as `largest_logits` can give; 0 on the CPU, whose rows are at hand."""
    def largest_logits(self, output: int) -> list[tuple[int, float]]:
        """(token, logit) of an output row of the last run, by falling logit and rising token; empty where none were asked
        for, or one of the row's logits is not finite."""
    @property
    def longrope_context(self) -> int:
        """As its program's."""
    def reserve_pages(self, num_pages: int) -> None:
        """Makes room for at least so many pages of 64 tokens; those there are keep their contents. MemoryBudgetError."""
    def value(self, name: str) -> npt.NDArray[np.float32]:
        """A node's result after a run, flat; with keep_values only. ArgumentError."""
    @property
    def value_names(self) -> list[str]:
        """What `value` knows, in execution order."""
    @property
    def vocab_size(self) -> int: ...
    @property
    def has_logits(self) -> bool: ...
    @property
    def encoding_size(self) -> int:
        """Floats of a vector of "encode"; 0 where there is no such function."""
    @property
    def encodes_whole(self) -> bool:
        """Whether "encode" needs all rows of a sequence in one batch."""
    @property
    def max_tokens(self) -> int: ...
    @property
    def max_outputs(self) -> int: ...
    @property
    def num_pages(self) -> int: ...
    @property
    def layouts(self) -> dict[str, int]:
        """Number of matrices by the layout that they are packed in."""
    @property
    def weight_bytes(self) -> int: ...
    @property
    def scratch_bytes(self) -> int: ...
    @property
    def kv_pools(self) -> list[tuple[int, int]]:
        """(window, bytes of a page) of each pool of the KV cache; window 0 sees all positions."""
    @property
    def kv_layout(self) -> str: ...

@final
class CpuPlan(ProgramPlan):
    """Made by `compile_cpu`."""

    @property
    def isa(self) -> str: ...
    @property
    def threads(self) -> int: ...

def compile_cpu(
    program: Program,
    source: Gguf | Mapping[str, npt.NDArray[np.uint8]],
    *,
    threads: int = 0,
    isa: str = "",
    kv_dtype: str = "f16",
    max_tokens: int = 512,
    max_outputs: int = 64,
    keep_values: bool = False,
    adapters: Sequence[Gguf] = (),
    share_threads: CpuPlan | None = None,
) -> CpuPlan:
    """Compiles a program, fused or not, for the CPU; `source` has the tensors' bytes, `adapters` those of weights lora.n.

    threads 0: one per CPU; isa "": the best, or $STERNA_ISA. `share_threads` is a plan whose threads compute this one as
    well, which then must not run at the same time. ArgumentError, DeviceError, UnsupportedModelError, FileError,
    MemoryBudgetError.
    """

@final
class ChainPlan(ProgramPlan):
    """Made by `compile_chain`: what its parts have in common, and their sums."""

    @property
    def parts(self) -> list[ProgramPlan]: ...

def compile_chain(program: Program, parts: Sequence[ProgramPlan]) -> ChainPlan:
    """Plans of the parts of a program, in their order, as one plan; `program` is the one that was cut. ArgumentError."""

def plan_memory(
    program: Program,
    *,
    threads: int = 0,
    isa: str = "",
    kv_dtype: str = "f16",
    max_tokens: int = 512,
    max_outputs: int = 64,
) -> tuple[int, int, list[tuple[int, int]]]:
    """Bytes of weights and scratch that `compile_cpu` with these arguments holds, and `kv_pools`. Reads no tensor; takes
    memory for steps and vectors (norms, biases) while it plans."""

def pool_page_limit(window: int, kv_tokens: int, max_sequences: int, max_tokens: int, page_bytes: int) -> int:
    """Pages that an engine lets a pool have."""

def compiled_isas() -> list[str]:
    """Instruction sets of this build, worst first."""

def supported_isas() -> list[str]:
    """Those of them that this CPU can run."""

def chosen_isa() -> str:
    """The one in use: $STERNA_ISA, or the best. DeviceError."""

def available_cpus() -> int:
    """Workers that a plan has by default: fast physical cores that this process may use, within its quota."""

def place_buffers(buffers: Sequence[tuple[int, int, int]]) -> tuple[list[int], int]:
    """The memory planner: (bytes, first step, last step) of each buffer -> offsets, bytes of the arena."""

def pack_and_dequantize(
    data: npt.NDArray[np.uint8], format: str, n: int, k: int
) -> tuple[npt.NDArray[np.float32], int, bool]:
    """A tensor packed to its layout and read back: values [n, k], packed bytes, whether all scales are finite."""

def packed_bytes(format: str, n: int, k: int) -> int:
    """Bytes of a packed [n, k] matrix. ArgumentError."""

# --- cuda

def cuda_problem() -> str:
    """Why no CUDA device can be used, in a sentence; "" when one can."""

def cuda_devices() -> list[CudaDevice]:
    """All of them, by their numbers; none where they cannot be listed. None is started for that."""

class CudaDevice(TypedDict):
    number: int
    name: str
    compute_capability: str  # "9.0"
    multiprocessors: int
    total_bytes: int
    problem: str  # why it cannot be used; "" when it can

def cuda_free_bytes(device: int) -> int:
    """Bytes that it has free: starts it, which takes some time and memory there. DeviceError."""

@final
class CudaPlan(ProgramPlan):
    """Made by `compile_cuda`."""

    @property
    def device(self) -> str:
        """Number and name: "cuda:0 (NVIDIA H200)"."""
    def time_kernels(self, repetitions: int = 20) -> dict[str, tuple[int, float]]:
        """By kernel, and for "all": how many steps of the last run, and the seconds that they add to it.

        That is what the run takes less without them, a median; "route" and "sort_pairs", which others cannot do without,
        are not among them. The plan's results and cache are of no use afterwards. ArgumentError.
        """

def compile_cuda(
    program: Program,
    source: Gguf | Mapping[str, npt.NDArray[np.uint8]],
    *,
    device: int = 0,
    kv_dtype: str = "f16",
    max_tokens: int = 512,
    max_outputs: int = 64,
    keep_values: bool = False,
    adapters: Sequence[Gguf] = (),
    threads: int = 0,
) -> CudaPlan:
    """As `compile_cpu`, for a CUDA device; `threads` pack the weights. ArgumentError, DeviceError, MemoryBudgetError, ..."""

def plan_memory_cuda(
    program: Program,
    *,
    device: int | None = None,
    kv_dtype: str = "f16",
    max_tokens: int = 512,
    max_outputs: int = 64,
) -> tuple[int, int, list[tuple[int, int]]]:
    """As `plan_memory`, of `compile_cuda` with these arguments; needs no device, and starts none. UnsupportedModelError,
    also for what a device that is there cannot do."""

# --- machine

@final
class Machine:
    """What this machine can do at most with some threads and the instructions of one level."""

    def __init__(self, *, threads: int = 0, isa: str = "", buffer_bytes: int = 1 << 30) -> None:
        """threads 0: one per CPU; isa "": the best, or $STERNA_ISA. ArgumentError, DeviceError, MemoryBudgetError."""
    @property
    def threads(self) -> int: ...
    @property
    def buffer_bytes(self) -> int:
        """What the reads cover."""
    def read_speeds(self, repetitions: int = 5) -> list[tuple[int, bool, float]]:
        """(streams per thread, software prefetch, bytes per second) of each read pattern, the best of its repetitions."""
    def macs_per_second(self, repetitions: int = 5) -> float:
        """Multiply-accumulates of bytes per second of the level's dot product, operands in registers, all threads."""

def check_kernels(isa: str, seed: int = 0) -> list[tuple[str, int, str]]:
    """Holds a level's kernels against scalar's, bit for bit, on random inputs. DeviceError.

    (family, number of cases, the first mismatch or "") of each family of kernels; a fraction of a second.
    """

# --- engine

# Called before a token is chosen, on the engine's thread: the generated tokens so far, and bits (token t is bit t % 64
# of word t // 64) that come all set; it clears those of forbidden tokens. Or a fixed set of words.
MaskLike: TypeAlias = Callable[[list[int], npt.NDArray[np.uint64]], None] | npt.NDArray[np.uint64]

@final
class SamplingParams:
    """How one token is chosen from the logits; every value is checked by `Engine.submit`.

    Order: logit_bias, repetition, presence and frequency penalties, mask; temperature 0 takes the largest logit;
    otherwise top_k, top_p, min_p cut the model's own distribution, and temperature reshapes what is left (llama.cpp's
    order).
    """

    temperature: float  # 0 is greedy
    top_k: int  # 0 is off
    top_p: float  # (0, 1]; 1 is off
    min_p: float  # [0, 1]; 0 is off
    repetition_penalty: float  # over the last penalty_window tokens, prompt included; 1 is off
    penalty_window: int  # tokens; -1 is all
    presence_penalty: float  # over the generated tokens
    frequency_penalty: float  # over the generated tokens
    logit_bias: dict[int, float]  # -inf bans a token
    seed: int  # unsigned, 64 bits
    def __init__(
        self,
        *,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        penalty_window: int = 64,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        logit_bias: Mapping[int, float] = ...,
        seed: int = 0,
    ) -> None: ...

@final
class Sampled:
    """A chosen token, and its log-probability under the model's raw logits (not the filtered ones)."""

    token: int
    logprob: float | None  # where top_logprobs was given
    top_logprobs: list[tuple[int, float]]  # most likely first; empty unless asked for

@final
class Sampler:
    """Chooses tokens outside of an engine: the same code, for tests and tools."""

    def __init__(self, params: SamplingParams, vocab_size: int) -> None: ...
    def sample(
        self,
        logits: npt.NDArray[np.float32],
        *,
        history: IntsLike = (),
        num_prompt: int = 0,
        choice: int = 0,
        top_logprobs: int | None = None,
        mask: MaskLike | None = None,
    ) -> Sampled:
        """Chooses the token that follows `history`, whose first `num_prompt` tokens are the prompt.

        NumericError on NaN or infinity; ArgumentError when bans and mask leave no token.
        """
    def probabilities(
        self,
        logits: npt.NDArray[np.float32],
        *,
        history: IntsLike = (),
        num_prompt: int = 0,
        mask: MaskLike | None = None,
    ) -> npt.NDArray[np.float64]:
        """[vocab_size]: the distribution that `sample` draws from (one-hot where temperature is 0)."""
    def enough_logits(
        self,
        *,
        history: IntsLike = (),
        num_prompt: int = 0,
        later: int = 0,
        most: int,
        top_logprobs: int | None = None,
        mask: MaskLike | None = None,
    ) -> int:
        """How many of the largest logits tell for sure what `sample` chooses, the history being `later` tokens longer by
        then; 0: the whole row, or more than `most`, may be needed."""
    def sample_largest(
        self, largest: Sequence[tuple[int, float]], *, history: IntsLike = (), num_prompt: int = 0, choice: int = 0
    ) -> Sampled | None:
        """As `sample`, from as many (token, logit) as `enough_logits` says, by falling logit and rising token; None where
        they do not reach down to min_p."""

def random_uniform(seed: int, choice: int, position: int) -> float:
    """The number in [0, 1) that chooses the token at `position`: Philox4x32-10 of these three."""

def log_softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """[n] -> [n]; NumericError on NaN or infinity."""

@final
class Pieces:
    """The bytes of every token of a vocabulary. Control and unknown tokens have none unless `special`."""

    @staticmethod
    def from_tokens(kind: str, tokens: Sequence[str | bytes], types: Sequence[int] | None = None) -> Pieces:
        """`kind` is tokenizer.ggml.model ("gpt2", "llama", "bert", ...), `types` is tokenizer.ggml.token_type."""
    @staticmethod
    def from_gguf(file: Gguf) -> Pieces:
        """Reads tokenizer.ggml.model, .tokens and .token_type. ModelFormatError, UnsupportedModelError."""
    def __len__(self) -> int: ...
    def piece(self, token: int, special: bool = False) -> bytes: ...
    def is_control(self, token: int) -> bool: ...
    def decode(self, tokens: IntsLike, special: bool = False, drop_leading_space: bool = False) -> str: ...

@final
class TextStream:
    """Bytes in, text out: never half a character, never a part of a stop string."""

    def __init__(self, stop_strings: Sequence[str] = (), drop_leading_space: bool = False) -> None: ...
    def push(self, data: bytes) -> str: ...
    def finish(self) -> str:
        """What was held back; an incomplete character becomes U+FFFD."""
    @property
    def stopped(self) -> str | None:
        """The stop string that ended the text."""

def sentencepiece_pieces(tokens: Sequence[bytes], scores: bytes, types: bytes) -> bytes:
    """The pieces of a ModelProto of the sentencepiece library: `scores` are float32 [n], `types` the library's, uint8 [n]."""

@final
class KvPages:
    """Numbers of the pages of one pool of a KV cache, and who holds them: pure logic, no bytes."""

    def __init__(self, limit: int) -> None: ...
    limit: int
    num_free: int
    num_in_use: int
    num_idle: int  # only kept
    high_water: int
    def allocate(self) -> int | None: ...
    def share(self, page: int) -> None: ...
    def release(self, page: int) -> None: ...
    def references(self, page: int) -> int: ...
    def keep(self, page: int) -> None: ...
    def let_go(self, page: int) -> None: ...

@final
class ScheduledRows:
    """Rows [first, first + count) of one sequence in a batch; the last `num_outputs` of them want logits."""

    id: int
    first: int
    count: int
    num_outputs: int
    pages: list[list[int]]  # page tables, by pool

@final
class Scheduler:
    """Picks batches over sequences that it knows by number: the engine's own scheduler and cache, bound for tests."""

    def __init__(
        self,
        *,
        max_tokens: int,
        max_outputs: int,
        max_sequences: int,
        page_limits: Sequence[int],
        windows: Sequence[int] = (0,),
    ) -> None: ...
    def pages(self, pool: int = 0) -> KvPages: ...
    @property
    def num_indexed(self) -> int:
        """Pages in the prefix index."""
    @property
    def num_running(self) -> int: ...
    @property
    def num_waiting(self) -> int: ...
    def add(
        self,
        tokens: IntsLike,
        *,
        output_from: int | None = None,
        background: bool = False,
        context_key: bytes = b"",
    ) -> int:
        """A new sequence, waiting."""
    def pick(self) -> list[ScheduledRows]: ...
    def copies(self) -> list[tuple[int, int, int]]:
        """(pool, from, to) of the pages to copy before the picked batch runs."""
    def stuck(self) -> list[int]:
        """Sequences of the last pick that cannot get their pages even alone."""
    def advance(self, accepted: Mapping[int, int] = ...) -> None:
        """The picked batch has run; `accepted` says by id how many tokens of its draft were right."""
    def abandon(self, copied: bool = True) -> None:
        """The picked batch has not run; its pages go back."""
    def draft(self, id: int, tokens: Sequence[int]) -> None: ...
    def append(self, id: int, token: int) -> None: ...
    def retire(self, id: int) -> None:
        """The sequence ends; what it computed stays in the cache."""
    def remove(self, id: int) -> None: ...
    def num_computed(self, id: int) -> int: ...
    def num_reused(self, id: int) -> int: ...
    def page_tables(self, id: int) -> list[list[int]]: ...

@final
class Timings:
    queue_seconds: float
    prefill_seconds: float
    decode_seconds: float
    prompt_tokens: int
    cached_tokens: int  # of prompt_tokens, found in the cache
    generated_tokens: int
    draft_tokens: int  # guessed ahead and computed along
    accepted_tokens: int  # of these: were right

@final
class Event:
    """One token, or the end: after the token events comes exactly one event with a finish_reason."""

    token: int | None  # None in the final event
    text: str  # complete characters that are sure to belong to the output; may be empty
    logprob: float | None  # where top_logprobs was given
    top_logprobs: list[tuple[int, float]]
    finish_reason: str | None  # "stop", "length" or "cancelled"
    stop: int | str | None  # the token or string that stopped it

@final
class Notifier:
    """Gathers the numbers of requests that have news; its descriptor is readable while there are any."""

    def __init__(self) -> None: ...
    def fileno(self) -> int: ...
    def take(self) -> list[int]:
        """The numbers gathered since the last call. Does not wait."""

@final
class RequestHandle:
    """A submitted request. Dropping the last reference cancels it."""

    def next(self, timeout: float | None = None) -> Event | None:
        """The next event; None after `timeout` seconds, and after the final event. Raises the request's error."""
    def events(self, timeout: float | None = None) -> list[Event]:
        """Waits for the final event, then gives all events not yet taken. TimeoutError. Raises the request's error."""
    def ready(self) -> list[Event]:
        """The events that are there now. Raises the request's error when that is all that is left."""
    def notify(self, notifier: Notifier, number: int, only_end: bool = False) -> None:
        """From now on `notifier` is told `number` when there are events to take, or with `only_end` the final one.

        It is not told again before all have been taken. What came before this call counts as well.
        """
    def scores(self, timeout: float | None = None) -> npt.NDArray[np.float32]:
        """Waits for the result of `submit_score` or `submit_embed`. TimeoutError; Error when cancelled. Raises the request's error."""
    def cancel(self) -> None: ...
    @property
    def finished(self) -> bool: ...
    @property
    def timings(self) -> Timings: ...

@final
class EngineStats:
    running: int
    waiting: int
    # Of the pool with the most pages in use:
    pages_in_use: int
    pages_cached: int  # kept for requests that begin alike
    page_limit: int
    runs: int  # batches computed
    tokens: int  # rows computed
    preemptions: int
    # Of requests that have ended:
    requests: int
    prompt_tokens: int
    cached_tokens: int  # of these
    generated_tokens: int
    draft_tokens: int
    accepted_tokens: int

@final
class SequenceContext:
    """What beside its tokens a request is computed from; the same for all requests of one context_key.

    `embeddings`, [n, hidden_size], are input rows in front of the tokens. `encoder_tokens` are encoded before it runs.
    """

    def __init__(
        self,
        *,
        adapter: int = -1,
        adapter_scale: float = 1.0,
        embeddings: npt.NDArray[np.float32] | None = None,
        encoder_tokens: IntsLike = (),
    ) -> None: ...

class Engine:
    """Owns a plan and its KV cache; one thread runs batches, any number of threads submit and wait."""

    def __init__(
        self,
        plan: Plan,
        pieces: Pieces,
        *,
        context: int,
        max_sequences: int = 16,
        kv_tokens: int | None = None,
        max_waiting: int = 1024,
        draft: Plan | None = None,
        step_clock: Callable[[], float] | None = None,
    ) -> None:
        """`context` limits one sequence, `kv_tokens` all of them together (default: one context); both in tokens.

        More than `max_waiting` requests that wait are refused. `draft` is a smaller model that guesses ahead;
        ArgumentError when its vocabulary has another size. What runs take, which decides how much is guessed, is measured
        by `step_clock`, in seconds; None: the machine's.
        """
    @property
    def context(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def hidden_size(self) -> int:
        """Of an input row; 0 when the plan takes none but tokens."""

    @property
    def closed(self) -> bool: ...
    def stats(self) -> EngineStats: ...
    @property
    def page_bytes(self) -> int:
        """Bytes of one page of 64 tokens as export_pages gives it."""
    @property
    def kv_layout(self) -> str:
        """What these bytes mean: pages go from one engine to another of the same model and layout."""
    def cached_pages(self, tokens: IntsLike, *, context_key: bytes = b"") -> int:
        """How many whole pages from the beginning of `tokens` are in the cache."""
    def export_pages(
        self, tokens: IntsLike, first: int, count: int, *, context_key: bytes = b""
    ) -> list[npt.NDArray[np.uint8]]:
        """Copies of those of them from number `first` on. Waits for the step that runs."""
    def import_pages(
        self, tokens: IntsLike, first: int, pages: Sequence[BytesLike], *, context_key: bytes = b""
    ) -> int:
        """Puts pages from number `first` on into the cache; how many of `tokens` it has then. Takes no page in use.

        ArgumentError for a page of another size.
        """
    def submit(
        self,
        tokens: IntsLike,
        *,
        max_tokens: int | None = None,
        sampling: SamplingParams | None = None,
        choice: int = 0,
        stop_ids: IntsLike = (),
        stop_strings: Sequence[str] = (),
        top_logprobs: int | None = None,
        mask: MaskLike | None = None,
        special: bool = False,
        drop_leading_space: bool = False,
        draft_tokens: int | None = None,
        shift_context: bool = False,
        background: bool = False,
        timeout: float | None = None,
        context_key: bytes = b"",
        context: SequenceContext | None = None,
    ) -> RequestHandle:
        """Generates after `tokens`. max_tokens None: up to the context; 0: computes the prompt only, into the cache.

        What the cache has of the prompt, under the same `context_key`, is not computed again; a `context` needs one. top_logprobs: None for
        none, 0 for the chosen token's, n for the n most likely as well. draft_tokens are guessed ahead: None as many as
        pay. shift_context: a full context forgets its middle instead of ending the text. timeout: seconds until
        DeadlineError. ContextOverflowError when the prompt leaves no room, MemoryBudgetError when it can never fit into
        the pool, QueueFullError, ArgumentError.
        """
    def submit_embed(
        self, tokens: IntsLike, *, background: bool = False, timeout: float | None = None, context_key: bytes = b""
    ) -> RequestHandle:
        """`scores()` gives the vector of these tokens, float32 [1, encoding_size].

        Raises ContextOverflowError above `max_encoded`, UnsupportedModelError, and what `submit` raises.
        """
    @property
    def encoding_size(self) -> int:
        """Floats of the vector of a text; 0 where the model makes none."""
    @property
    def needs_encoder_tokens(self) -> bool:
        """Whether requests need a context with a text to encode: the model has an encoder and a decoder."""
    @property
    def max_encoded(self) -> int:
        """Most tokens of a text that `submit_embed` takes."""
    def submit_score(
        self,
        tokens: IntsLike,
        *,
        positions_from: int = 0,
        logits: bool = False,
        hidden: str = "",
        background: bool = False,
        timeout: float | None = None,
        context_key: bytes = b"",
        context: SequenceContext | None = None,
    ) -> RequestHandle:
        """Teacher-forced: `scores()` gives log p(tokens[i + 1] | tokens[: i + 1]) for i in [positions_from, n - 1).

        float32 [n - 1 - positions_from]; with `logits` the rows of i in [positions_from, n), float32
        [n - positions_from, vocab_size]; with `hidden`, the name of a value in the program, rows of that instead.
        """
    def close(self) -> None:
        """Ends all requests with an Error, joins the thread, frees cache and plan. Again is fine."""
