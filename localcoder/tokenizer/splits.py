"""Pre-tokenizers of the DeepSeek-Coder family: how text is split before BPE sees it.

Both are a chain of regular expressions whose matches become pieces of their own, then digits one by one, then the byte
alphabet. GGUF stores only a name (`tokenizer.ggml.pre`), tokenizer.json the whole chain; this table joins the two.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from localcoder.errors import TokenizerError

if TYPE_CHECKING:
    from tokenizers.pre_tokenizers import PreTokenizer

# Letters as DeepSeek-LLM lists them, in hexadecimal: several of them look alike, and an editor may normalize them away.
_LLM_LETTERS = """
41-5A 61-7A B5 C0-D6 D8-F6 F8-1BA 1BC-1BF 1C4-293 295-2AF 370-373 376 377 37B-37D 37F 386 388-38A 38C 38E-3A1 3A3-3F5
3F7-481 48A-52F 531-556 10A0-10C5 13A0-13F5 13F8-13FD 1C90-1CBA 1CBD-1CBF 1D00-1D2B 1D6B-1D77 1D79-1D9A 1E00-1F15
1F18-1F1D 1F20-1F45 1F48-1F4D 1F50-1F57 1F59 1F5B 1F5D 1F5F-1F7D 1F80-1FB4 1FB6-1FBC 1FBE 1FC2-1FC4 1FC6-1FCC 1FD0-1FD3
1FD6-1FDB 1FE0-1FEC 1FF2-1FF4 1FF6-1FFC 2102 2107 210A-2113 2115 2119-211D 2124 2126 2128 212A-212D 212F-2134 2139
213C-213F 2145-2149 214E 2183 2184 2C00-2C7B 2C7E-2CE4 2CEB-2CEE 2CF2 2CF3 A640-A66D A680-A69B A722-A76F A771-A787
A78B-A78E AB70-ABBF FB00-FB06 FB13-FB17 FF21-FF3A FF41-FF5A 10400-1044F 104B0-104D3 104D8-104FB 10C80-10CB2 10CC0-10CF2
118A0-118DF 1E900-1E943
"""
_LLM_CLASS = "".join("-".join(chr(int(end, 16)) for end in span.split("-")) for span in _LLM_LETTERS.split())
_CJK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"  # the odd second range is as trained

SPLITS = {
    "deepseek-coder": ("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK),
    "deepseek-llm": (
        "[\r\n]",
        rf"\s?[{_LLM_CLASS}]+",
        "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
        r"\s+$",
        _CJK,
    ),
}


def make_pre_tokenizer(name: str) -> PreTokenizer:
    """The pre-tokenizer that `tokenizer.ggml.pre` calls by this name, one of SPLITS."""
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence, Split

    splits = [Split(Regex(pattern), "isolated") for pattern in SPLITS[name]]
    return Sequence([*splits, Digits(individual_digits=True), ByteLevel(add_prefix_space=False, use_regex=False)])


def recognize_pre_tokenizer(found: Any) -> str:
    """The name in SPLITS of a tokenizer.json's `pre_tokenizer`.

    Raises:
        TokenizerError: it is none of them; the message shows its steps.
    """
    steps = found.get("pretokenizers") if isinstance(found, dict) and found.get("type") == "Sequence" else [found]
    summary = [_summarize(step) for step in steps] if isinstance(steps, list) else ["malformed"]
    for name, splits in SPLITS.items():
        if summary == [*(f"Split {pattern!r}" for pattern in splits), "Digits", "ByteLevel"]:
            return name
    shown = "; ".join(text if len(text) <= 120 else text[:117] + "..." for text in summary[:12])
    raise TokenizerError(
        f"its pre-tokenizer is not one of this family's ({', '.join(SPLITS)}); found: {shown} "
        "(a tokenizer.json saved again by transformers 5 has lost it: take the original)"
    )


def _summarize(step: Any) -> str:
    """One line per step, equal exactly for steps that act alike."""
    if not isinstance(step, dict):
        return repr(step)
    match step.get("type"), step:
        case "Split", {"pattern": {"Regex": str(pattern)}, "behavior": "Isolated", "invert": False}:
            return f"Split {pattern!r}"
        case "Digits", {"individual_digits": True}:
            return "Digits"
        case "ByteLevel", {"add_prefix_space": False, "use_regex": False}:
            return "ByteLevel"
    return " ".join(f"{key}={value}" for key, value in step.items())
