"""Number words from 0 to 999,999 in English, German and French, and which of them are held out of training.

num2words writes every number; the variants below are respellings of what it wrote.
"""

import random
import re
from collections.abc import Callable, Mapping
from functools import lru_cache

from num2words import num2words

from examples.specialists.example import Example, Split, split_of

WIDTH = 6
LAST = 10**WIDTH - 1
HELD_OUT_PERCENT = 5
FIRST_HELD_OUT = 100
"""Smaller numbers are the vocabulary itself (zero is in no other number), so none of them is held out."""

Writer = Callable[[int], str | None]
"""Writes a number in one form; None where the form does not apply to it."""


@lru_cache(maxsize=1 << 16)
def words(number: int, language: str) -> str:
    """The number as num2words writes it, save that German says zweihunderteintausend, not zweihunderteinstausend."""
    text = str(num2words(number, lang=language))
    return text.replace("einstausend", "eintausend") if language == "de" else text


def _english_plain(number: int) -> str:
    return words(number, "en").replace(",", "")


def _english_a(number: int) -> str | None:
    text = _english_plain(number)
    return text.replace("one ", "a ", 1) if text.startswith(("one hundred", "one thousand")) else None


def _english_mixed(number: int) -> str | None:
    thousands, rest = divmod(number, 1000)
    return f"{thousands} thousand {rest}" if thousands and rest else None


def _by_hundreds(number: int, language: str, hundred: str, link: str) -> str | None:
    hundreds, rest = divmod(number, 100)
    if not 10 < hundreds < 100 or hundreds % 10 == 0:
        return None
    head = words(hundreds, language) + hundred
    return head + link + words(rest, language) if rest else head


def _german_bare(number: int) -> str:
    """Hundred and thousand without their one: tausendzweihundert, hundertzwölf."""
    return re.sub(r"^ein(?=hundert|tausend)|(?<=tausend)ein(?=hundert)", "", words(number, "de"))


def _german_und(number: int) -> str | None:
    """An und before the tens: zweihundertundeins."""
    rest = number % 100
    return words(number - rest, "de") + "und" + words(rest, "de") if rest and number > 100 else None


def _german_ascii(number: int) -> str | None:
    text = words(number, "de")
    ascii_text = text.replace("ü", "ue").replace("ö", "oe").replace("ß", "ss")
    return ascii_text if ascii_text != text else None


def _german_spaced(number: int) -> str | None:
    text = re.sub(r"(tausend|hundert)(?!$)", r" \1 ", words(number, "de"))
    return " ".join(text.split()) if number > 100 else None


def _french_reformed(number: int) -> str:
    """The spelling of 1990, all words joined by hyphens."""
    return words(number, "fr").replace(" ", "-")


def _french_spaced(number: int) -> str | None:
    text = words(number, "fr")
    return text.replace("-", " ") if "-" in text else None


def _regional(number: int, region: str) -> str | None:
    text = words(number, region)
    return text if text != words(number, "fr") else None


TRAINED: Mapping[str, Mapping[str, Writer]] = {
    "en": {
        "standard": lambda n: words(n, "en"),
        "no commas": _english_plain,
        "no and": lambda n: _english_plain(n).replace(" and ", " "),
        "no hyphens": lambda n: _english_plain(n).replace("-", " "),
    },
    "de": {"standard": lambda n: words(n, "de"), "bare": _german_bare, "und": _german_und},
    "fr": {"standard": lambda n: words(n, "fr"), "reformed spelling": _french_reformed},
}
"""Forms that the specialists are trained on."""

UNSEEN: Mapping[str, Mapping[str, Writer]] = {
    "en": {
        "a hundred": _english_a,
        "hundreds": lambda n: _by_hundreds(n, "en", " hundred", " and "),
        "digits and words": _english_mixed,
    },
    "de": {
        "ae, oe, ue, ss": _german_ascii,
        "spaces": _german_spaced,
        "hundreds": lambda n: _by_hundreds(n, "de", "hundert", ""),
    },
    "fr": {
        "no hyphens": _french_spaced,
        "Belgian": lambda n: _regional(n, "fr_BE"),
        "Swiss": lambda n: _regional(n, "fr_CH"),
    },
}
"""Forms never trained on, by the name under which their accuracy is reported."""


@lru_cache(maxsize=1 << 18)
def split_of_number(number: int) -> Split:
    """The split that the number belongs to, in every language and form."""
    return Split.TRAIN if number < FIRST_HELD_OUT else split_of(f"number {number}", HELD_OUT_PERCENT)


def draw(rng: random.Random, split: Split) -> int:
    """A number of a split: a third uniform, a third uniform in the count of digits, a third with many zeros."""
    while True:
        kind = rng.randrange(3)
        if kind == 0:
            number = rng.randint(0, LAST)
        elif kind == 1:
            number = rng.randrange(10 ** rng.randint(1, WIDTH))
        else:
            number = int("".join(rng.choice("123456789") if rng.random() < 0.4 else "0" for _ in range(WIDTH)))
        if split_of_number(number) is split:
            return number


def _example(split: Split, forms: Mapping[str, Writer], rng: random.Random, group: str | None) -> Example:
    while True:
        number = draw(rng, split)
        name = rng.choice(list(forms))
        text = forms[name](number)
        if text is not None:
            return Example(text, f"{number:0{WIDTH}d}", str(number), group or name)


def training(language: str, rng: random.Random) -> Example:
    """One example for training."""
    return _example(Split.TRAIN, TRAINED[language], rng, None)


def held_out(language: str, split: Split, rng: random.Random) -> Example:
    """One number that was never trained on, in a trained form."""
    return _example(split, TRAINED[language], rng, "held-out numbers")


def unseen_form(language: str, split: Split, rng: random.Random) -> Example:
    """One held-out number in a form never trained on."""
    return _example(split, UNSEEN[language], rng, None)
