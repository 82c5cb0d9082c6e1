"""How text is cut into words before byte-pair encoding, by `tokenizer.ggml.pre`.

The patterns are those of the models' own tokenizer.json files as far as published, otherwise those that llama.cpp
documents (src/llama-vocab.cpp, src/unicode.cpp). `linear_pattern` says which ones are written differently before use.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_UPPER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}"
_LOWER = r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
_QWEN2 = rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
_QWEN35 = (
    rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}"
)


def _cased(suffix: str, digits: str, after_symbols: str = r"[\r\n/]*", without: str = "") -> str:
    """The pattern of o200k: a word is capitals, then small letters; marks and uncased letters count as both."""
    head = r"[^\r\n\p{L}\p{N}]?"
    upper, lower = f"[{_UPPER}{without}]", f"[{_LOWER}{without}]"
    return (
        rf"{head}{upper}*{lower}+{suffix}|{head}{upper}+{lower}*{suffix}|{digits}"
        rf"| ?[^\s\p{{L}}\p{{N}}]+{after_symbols}|{_SPACES}"
    )


_GPT4O = _cased(f"{_CONTRACTION}?", r"\p{N}{1,3}")
_ASCII_PUNCTUATION = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"
_DEEPSEEK3_LETTERS = rf"{_ASCII_PUNCTUATION}[A-Za-z]+|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+"
_DEEPSEEK3_WORDS = rf"{_DEEPSEEK3_LETTERS}| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}"
_DEEPSEEK3 = (r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", _DEEPSEEK3_WORDS)
_DEEPSEEK_HAN = "[一-龥ࠀ-一가-퟿]+"
# The cased letters of Unicode 11 or so, as the tokenizer.json of deepseek-llm lists them.
_DEEPSEEK_LETTERS = """
    B5 C0-D6 D8-F6 F8-1BA 1BC-1BF 1C4-293 295-2AF 370-373 376 377 37B-37D 37F 386 388-38A 38C 38E-3A1 3A3-3F5 3F7-481
    48A-52F 531-556 10A0-10C5 13A0-13F5 13F8-13FD 1C90-1CBA 1CBD-1CBF 1D00-1D2B 1D6B-1D77 1D79-1D9A 1E00-1F15 1F18-1F1D
    1F20-1F45 1F48-1F4D 1F50-1F57 1F59 1F5B 1F5D 1F5F-1F7D 1F80-1FB4 1FB6-1FBC 1FBE 1FC2-1FC4 1FC6-1FCC 1FD0-1FD3
    1FD6-1FDB 1FE0-1FEC 1FF2-1FF4 1FF6-1FFC 2102 2107 210A-2113 2115 2119-211D 2124 2126 2128 212A-212D 212F-2134 2139
    213C-213F 2145-2149 214E 2183 2184 2C00-2C7B 2C7E-2CE4 2CEB-2CEE 2CF2 2CF3 A640-A66D A680-A69B A722-A76F A771-A787
    A78B-A78E AB70-ABBF FB00-FB06 FB13-FB17 FF21-FF3A FF41-FF5A 10400-1044F 104B0-104D3 104D8-104FB 10C80-10CB2
    10CC0-10CF2 118A0-118DF 1E900-1E943
"""
_DEEPSEEK_WORDS = (
    r"\s?[A-Za-z" + "".join(re.sub("[0-9A-F]+", r"\\x{\g<0>}", part) for part in _DEEPSEEK_LETTERS.split()) + "]+"
)
_BLOOM = r" ?[^(\s|.,!?…。，、।۔،)]+"
_FALCON_PUNCTUATION = r"[\p{P}\$\+<=>\^~\|`]+"
_JAIS2_SPACES = r"\s*[\r\n]+|" + "".join(rf"\s{{{2**n}}}(?!\S)|" for n in range(9, 1, -1)) + r"\s{1,2}(?!\S)|\s"
_TINY_AYA_GROUPS = r"\d{1,3}(?=(?:\d{3})*\b)"
_AFMOE_GROUPS = r"(?<!\p{N})\p{N}{1,2}(?=(?:\p{N}{3})++(?!\p{N}))|\p{N}{3}|\p{N}{1,2}"
_AFMOE_SCRIPTS = r"[一-鿿㐀-䶿\x{F900}-﫿぀-ゟ゠-ヿ･-ﾟ⼀-⿟เ-๿຀-໿ក-៿က-႟ꩠ-ꩿꧠ-꧿가-힯ᄀ-ᇿ]+"
_NO_HAN = r"&&[^\p{Han}]"
_YOUTU_SCRIPTS = "[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥぀-ゟ゠-ヿ]+"
_LINES = r"[^\n]+|\n+"

_DIGITS = r"\d"
_NEWLINES = r"[\r\n]"
# Between two letters and a space: every pattern that knows words has a boundary there, and none looks across it. The
# same between a Han character and a comma or full stop that another one follows.
_BETWEEN_WORDS = r"(?<=[A-Za-z])(?= [A-Za-z])|(?<=[一-龥])(?=[，。][一-龥])"
_AFTER_LINES = r"(?<=\n)(?=[^\n])"


@dataclass(frozen=True)
class PreTokenizer:
    """One way of cutting text into words."""

    stages: tuple[
        str, ...
    ]  # patterns (Oniguruma); each cuts the pieces that the one before left, matches and gaps alike
    byte_level: bool = (
        True  # bytes are written as the 256 characters of GPT-2; otherwise text is plain, with byte tokens <0x0A>
    )
    ignore_merges: bool = False  # a word that is a token as a whole is that token, whatever the merges say
    add_bos: bool = False  # where the file does not say
    nfc: bool = False  # text is brought to Unicode's composed form first
    alone: str | None = None  # (re) characters that the first stage always makes words of their own
    thousands: bool = False  # numbers are cut into groups of three digits from the right, which \d+ finds
    boundary: str | None = _BETWEEN_WORDS  # (re) places where long text may be cut without changing any word


_deepseek = PreTokenizer((), alone=_NEWLINES)
_deepseek3 = PreTokenizer(_DEEPSEEK3)
_gpt2 = PreTokenizer((_GPT2,))
_digits_gpt2 = PreTokenizer((r"\p{N}", _GPT2), alone=_DIGITS)
_llama3 = PreTokenizer((_LLAMA3,))
_qwen2 = PreTokenizer((_QWEN2,), alone=_DIGITS)
_plain = PreTokenizer((_LINES,), byte_level=False, boundary=_AFTER_LINES)

_FAMILIES: tuple[tuple[str, PreTokenizer], ...] = (
    (
        "default",
        PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"), boundary=_BETWEEN_WORDS),
    ),
    (
        "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano",
        replace(_llama3, ignore_merges=True, add_bos=True),
    ),
    ("dbrx smaug-bpe chatglm-bpe", _llama3),
    ("glm4 glm5", replace(_llama3, ignore_merges=True)),
    ("jais-2", PreTokenizer((_LLAMA3.replace(_SPACES, _JAIS2_SPACES),))),
    (
        "deepseek-llm",
        replace(
            _deepseek,
            stages=(
                _NEWLINES,
                _DEEPSEEK_WORDS,
                r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
                r"\s+$",
                _DEEPSEEK_HAN,
                r"\p{N}+",
            ),
        ),
    ),
    (
        "deepseek-coder",
        replace(_deepseek, stages=(_NEWLINES, r"\s?\p{L}+", r"\s?\p{P}+", _DEEPSEEK_HAN, r"\p{N}")),
    ),
    ("deepseek-v3 hunyuan-dense joyai-llm hy_v4", _deepseek3),
    (
        "spark2_5",
        replace(
            _deepseek3,
            stages=(
                *_DEEPSEEK3[:2],
                rf"{_DEEPSEEK3_LETTERS}| ?[\p{{P}}\p{{S}}]+|[\r\n]|\s+(?!\S)|\s+",
                r"\p{N}",
            ),
        ),
    ),
    ("youtu", PreTokenizer((_YOUTU_SCRIPTS, _cased(f"{_CONTRACTION}?", r"\p{N}")), ignore_merges=True)),
    ("falcon", PreTokenizer((_FALCON_PUNCTUATION, _GPT2, "[0-9][0-9][0-9]"))),
    ("starcoder refact command-r smollm codeshell exaone minerva-7b mellum2", _digits_gpt2),
    (
        "gpt-2 phi-2 jina-es jina-de gigachat jina-v2-es jina-v2-de a.x-4.0 mellum jina-v1-en jina-v2-code roberta-bpe "
        "jais trillion granite-docling exaone4",
        _gpt2,
    ),
    ("mpt olmo modern-bert", replace(_gpt2, nfc=True)),
    ("qwen2", replace(_qwen2, nfc=True)),
    ("deepseek-r1-qwen kormo f2llmv2 stablelm2 hunyuan solar-open megrez grok-2", _qwen2),
    ("qwen35", PreTokenizer((_QWEN35,), alone=_DIGITS)),
    ("ufakzeka", PreTokenizer((_QWEN2.removeprefix(f"{_CONTRACTION}|"),), alone=_DIGITS)),
    ("laguna", PreTokenizer((_LINES, _QWEN2))),
    ("poro-chat bloom gpt3-finnish", PreTokenizer((_BLOOM,))),
    ("viking", PreTokenizer((_BLOOM, r"\p{N}"))),
    ("tekken", PreTokenizer((_cased("", r"\p{N}"),), ignore_merges=True, add_bos=True, alone=_DIGITS)),
    (
        "chameleon",
        PreTokenizer(
            (
                "<sentinel:[0-9]+>",
                "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
                "([\t\n]|    |  )",
                r"\p{N}",
                r"[\p{P}!-/:-@\[-`{-~]",
                _GPT2,
            ),
            add_bos=True,
            alone=r"[\t\n]",
        ),
    ),
    ("gpt-4o llama4 kanana2 talkie minimax-m2", PreTokenizer((_GPT4O,))),
    ("granite-embed-multi-97m", PreTokenizer((_GPT4O,), ignore_merges=True)),
    ("tiny_aya cohere2moe", PreTokenizer((_TINY_AYA_GROUPS, _GPT4O))),
    (
        "kimi-k2",
        PreTokenizer((r"[\p{Han}]+|" + _cased(f"{_CONTRACTION}?", r"\p{N}{1,3}", r"[\r\n]*", without=_NO_HAN),)),
    ),
    ("superbpe", PreTokenizer((r"\p{N}+", r"(?=(\d{3})+(?!\d))"), thousands=True, boundary=None)),
    (
        "bailingmoe bailingmoe2 llada-moe",
        PreTokenizer(
            (
                r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*"
                r"|\s*[\r\n]|\s+(?!\S)|\s+",
            ),
            alone=_DIGITS,
        ),
    ),
    (
        "seed-coder",
        PreTokenizer(
            (rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACES}",),
            alone=_DIGITS,
        ),
    ),
    ("afmoe", PreTokenizer((_AFMOE_GROUPS, _AFMOE_SCRIPTS, _DEEPSEEK3_WORDS))),
    (
        "exaone-moe",
        PreTokenizer(
            (
                rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}"
                r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+",
            ),
            alone=_DIGITS,
            boundary=None,
        ),
    ),
    ("minicpm5", PreTokenizer((r"\p{N}{1,3}", _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}+")), ignore_merges=True)),
    ("gemma4 granite-embed-multi-311m", replace(_plain, add_bos=True)),
    ("sarvam-moe", _plain),
)

PRE_TOKENIZERS: dict[str, PreTokenizer] = {name: entry for names, entry in _FAMILIES for name in names.split()}

# The library gives up (it panics) when a match takes ten million steps back, and patterns that scan the rest of a
# long run at each place of it take quadratic time. These parts are replaced by others that find the same words and
# never do either.
_REPLACED = (
    # Up to the last line end of a run of white space. Spaces without one are passed over once, and not tried again
    # within the run: after a space that an earlier alternative took there is no line end in the run, or this one
    # would have taken the space.
    (r"|\s*[\r\n]+|", r"|(?<![^\S\r\n])(?:[^\S\r\n]*+[\r\n]++)++|"),
    (r"|\s*[\r\n]|", r"|(?<![^\S\r\n])(?:[^\S\r\n]*+[\r\n]++)++|"),
    # Spaces at the end, tried where a run begins.
    (r"\s+$", r"(?<!\s)\s++$"),
    # Groups of three digits: the first looks ahead to the end of the number, the others follow from it.
    (_TINY_AYA_GROUPS, r"(?<!\d)\d{1,3}(?=(?:\d{3})*+\b)|(?<=\d)\G\d{3}"),
    # Capitals, then small letters: either a small letter proper follows the capitals, or the word ends in the last
    # letter among them that counts as both.
    *(
        (
            f"[{_UPPER}{without}]*[{_LOWER}{without}]+",
            rf"(?:[{_UPPER}{without}]*+[\p{{Ll}}{without}][{_LOWER}{without}]*"
            rf"|(?:[\p{{Lu}}\p{{Lt}}{without}]*+[\p{{Lm}}\p{{Lo}}\p{{M}}{without}]++)++)",
        )
        for without in ("", _NO_HAN)
    ),
)


def linear_pattern(published: str) -> str:
    """A pattern that finds the same words in linear time."""
    for part, replacement in _REPLACED:
        published = published.replace(part, replacement)
    return published
