"""Numbers as they are said in Chinese and in English, so that 四千四百万, 44 million and 44,000,000 are one number."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

DIGITS = {c: n for n, c in enumerate("零一二三四五六七八九")} | {"〇": 0, "两": 2}
TENS = {"十": 10, "百": 100, "千": 1000}
MYRIADS = {"万": 10**4, "亿": 10**8}
MEASURES = "个种步层次行列条项头位组块段幅张件份维倍例章节部词字类级轮卷题遍"
"""Characters before which a single Chinese digit is a number and not part of a word."""
SCALES = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
SUFFIXES = {"k": 10**3, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}


def _counted(words: str, start: int = 0, step: int = 1) -> dict[str, int]:
    """Return words with their numbers."""
    return {word: start + step * n for n, word in enumerate(words.split())}


CARDINALS = _counted("zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen")
CARDINALS |= _counted("sixteen seventeen eighteen nineteen", 16) | _counted("twenty thirty forty fifty sixty", 20, 10)
CARDINALS |= _counted("seventy eighty ninety", 70, 10)
WORDS = CARDINALS | _counted("zeroth first second third fourth fifth sixth seventh eighth ninth tenth") | {
    "once": 1, "single": 1, "ones": 1, "both": 2, "twice": 2, "double": 2, "doubled": 2, "doubles": 2, "pair": 2,
    "half": 2, "halves": 2, "either": 2, "other": 2, "neither": 2, "couple": 2, "thirds": 3, "triple": 3,
    "quarter": 4, "quarters": 4, "eleventh": 11, "twelfth": 12, "dozen": 12, "sixteenth": 16,
    "hundred": 100, "hundreds": 100, "thousand": 1000, "thousands": 1000, "million": 10**6, "billion": 10**9,
}  # fmt: skip
"""What may say a number in English; whatever is no cardinal may also say something else."""
MONTHS = _counted("january february march april may june july august september october november december", 1)
ARABIC = r"(?P<digits>(?<![\w.])[-−+]?\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|(?:(?<![\w.)])[-−])?\d+(?:\.\d+)?)"
CHINESE_NUMBER = re.compile(
    rf"{ARABIC}\s*(?P<scale>[十百千]?[万亿]{{1,2}}|[百千](?![克米分]))?(?P<suffix>[kKMBT](?![A-Za-z]))?"
    r"|(?P<spoken>[零〇一二三四五六七八九十百千万亿两]+)"
)
ANY = "|".join(sorted(WORDS | SCALES, key=len, reverse=True))
ENGLISH_NUMBER = re.compile(
    rf"{ARABIC}(?:[ -](?P<scale>{'|'.join(SCALES)})\b|(?P<suffix>[kKMBT](?![A-Za-z])))?"
    rf"|\b(?P<spoken>(?:{ANY})\b(?:(?:-|\s+(?:and\s+)?)(?:{ANY})\b)*)"
    rf"|\b(?P<month>{'|'.join(MONTHS)})\b",
    re.IGNORECASE,
)
SAYING = frozenset(WORDS | SCALES | MONTHS)
UNITS = {
    "%": ("%|百分之|百分点", r"%|percent\b|percentage points?"),
    "ms": (r"毫秒|ms\b", r"ms\b|milliseconds?"),
    "µs": (r"微秒|[µμ]s\b", r"[µμ]s\b|microseconds?"),
    "s": (r"秒|s\b", r"s\b|seconds?"),
    "min": (r"分钟|min\b", r"min\b|minutes?"),
    "h": (r"小时|h\b", r"h\b|hours?"),
    "×": (r"倍|乘|次", r"times\b|-?fold\b|factor|twice|double|triple|half|×"),
    "byte": ("字节|B\\b", r"bytes?\b|B\b"),
    "bit": (r"比特|位", r"bits?\b|-bit\b"),
} | {unit: (unit, unit) for unit in ["KiB", "MiB", "GiB", "TiB", "KB", "MB", "GB", "TB", "kHz", "MHz", "GHz", "kW"]}
"""What a unit is called in Chinese and in English."""
ANY_UNIT = re.compile(r"\d|百分之|[KMGT]i?B|Hz|kW")
"""Without any of these a text names no unit."""
CLEAR = {
    "byte": ("字节", "bytes?"),
    "×": ("倍", "times"),
    "bit": ("比特", "bits?"),
    "s": ("秒", "seconds?"),
    "h": ("小时", "hours?"),
}
"""What surely is the unit; the other names of these units have other meanings, too, and only count in a translation."""


@dataclass(frozen=True)
class Number:
    """A number in a text, with all that it may mean."""

    text: str
    values: frozenset[Fraction]
    certain: bool
    """Whether it is written so that it can be nothing but a number: a translation must have it."""
    arabic: bool = False


def numbers(text: str, language: str) -> Iterator[Number]:
    """Yield the numbers of a text, in Chinese if ``language`` is ``zh_CN``, else in English."""
    pattern = CHINESE_NUMBER if language == "zh_CN" else ENGLISH_NUMBER
    if language != "zh_CN" and not re.search(r"\d", text) and SAYING.isdisjoint(re.findall("[a-z]+", text.lower())):
        return  # most texts, and the pattern is slow
    for found in pattern.finditer(text):
        if found["digits"]:
            yield _arabic(found)
        elif language == "zh_CN":
            yield from _chinese(found, text)
        elif found["month"]:
            yield Number(found[0], frozenset({Fraction(MONTHS[found[0].lower()])}), False)
        else:
            yield _english(found["spoken"])


def units(text: str, language: str) -> set[str]:
    """Return the units that a text surely names: behind digits, or such as KiB."""
    patterns = _units(0 if language == "zh_CN" else 1) if ANY_UNIT.search(text) else {}
    return {unit for unit, pattern in patterns.items() if pattern.search(text)}


@lru_cache
def _units(side: int) -> dict[str, re.Pattern[str]]:
    """Return a pattern for each unit; a digit must stand before it, unless its name can be nothing else."""
    names = {unit: CLEAR.get(unit, both)[side] for unit, both in UNITS.items()}
    alone = {unit for unit, both in UNITS.items() if both[0] == both[1]}
    return {
        unit: re.compile(rf"{'(?<![A-Za-z])' if unit in alone else '[0-9] *-?'}(?:{name})(?![A-Za-z])")
        for unit, name in names.items()
    } | {"%": re.compile(rf"[0-9] *(?:{names['%']})|百分之[0-9一二三四五六七八九十]")}


def has_unit(text: str, unit: str, language: str) -> bool:
    """Whether a text names a unit."""
    return bool(re.search(UNITS[unit][0 if language == "zh_CN" else 1], text))


def _arabic(found: re.Match[str]) -> Number:
    plain = Fraction(found["digits"].replace(",", "").replace("−", "-"))
    values = {plain}
    if found["scale"]:
        values = {plain * _scale(found["scale"])}
    elif found["suffix"]:
        values.add(plain * SUFFIXES.get(found["suffix"], 1))
    return Number(found[0].strip(), frozenset(values), True, True)


def _scale(name: str) -> int:
    if name.lower() in SCALES:
        return SCALES[name.lower()]
    value = 1
    for character in name:
        value *= (TENS | MYRIADS)[character]
    return value


def _chinese(found: re.Match[str], text: str) -> Iterator[Number]:
    """Read Chinese numerals; one digit alone is certain only before a measure word or behind 第, and 一 never is."""
    spoken, behind, before = found["spoken"], text[found.end() : found.end() + 1], text[: found.start()][-2:]
    if not set(spoken) & set(DIGITS) and spoken != "十":
        return  # 千万, 百: part of a word, or vague
    vague = before[-1:] in {"几", "数", "上", "成", "好"} or behind in {"几", "多"} or spoken in {"万一", "一一"}
    value = chinese_value(spoken)
    if len(spoken) > 1 and not set(spoken) & (set(TENS) | set(MYRIADS)):
        yield from (Number(c, frozenset({Fraction(DIGITS[c])}), False) for c in spoken)  # 二三: a row of digits
    else:
        measured = behind in set(MEASURES) or before.endswith(("第", "之")) or text.startswith("分之", found.end())
        certain = value > 2 and (len(spoken) > 1 or measured) and not vague
        yield Number(spoken, frozenset({Fraction(value)}), certain)


def chinese_value(spoken: str) -> int:
    """Return the value of a Chinese numeral."""
    total, section, digit = 0, 0, 0
    for character in spoken:
        if character in DIGITS:
            digit = DIGITS[character]
        elif character in TENS:
            section += (digit or 1) * TENS[character]
            digit = 0
        elif character == "亿":
            total, section, digit = (total + section + digit or 1) * MYRIADS[character], 0, 0
        else:
            total, section, digit = total + (section + digit or 1) * MYRIADS[character], 0, 0
    return total + section + digit


def _english(spoken: str) -> Number:
    """Read English number words; only those from three on are certain, and only cardinals."""
    words = re.findall(r"[a-z]+", spoken.lower())
    total, part = 0, 0
    each = {Fraction(WORDS[word]) for word in words if word in WORDS}
    for word in words:
        if word in SCALES:
            total, part = total + (part or 1) * SCALES[word], 0
        elif word in WORDS:
            part += WORDS[word]
    certain = all(word in CARDINALS | SCALES for word in words if word != "and") and total + part > 2
    return Number(spoken, frozenset({Fraction(total + part), *each}), certain and len(words) < 4)
