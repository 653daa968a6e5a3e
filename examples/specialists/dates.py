"""Written dates in English, German and French, and which of them are held out of training.

Babel's CLDR data gives the names and the standard patterns, num2words the ordinals and the years in words; a form is a
template over those. Whole years and whole day-month pairs are held out, the same ones in every language.
"""

import random
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import date, timedelta
from functools import lru_cache

from babel.dates import format_date
from num2words import num2words

from examples.specialists.example import Example, Split, split_of

LANGUAGES = ("en", "de", "fr")

FIRST_YEAR, LAST_YEAR = 1200, 2899
"""The span of the data. Without a wide one, the words of a held-out decade are never learned."""

RECENT = (1900, 2099)
"""Half of all dates fall in these years, which is where most dates that people write fall."""

HELD_OUT_YEARS_PERCENT = 6
HELD_OUT_DAYS_PERCENT = 5

TRAINED: Mapping[str, tuple[str, ...]] = {
    "en": (
        "{full}",
        "{long}",
        "{medium}",
        "{d} {month} {y}",
        "{d} {mon} {y}",
        "{weekday}, {d} {month} {y}",
        "{wd}, {mon} {d}, {y}",
        "{month} {dth}, {y}",
        "the {dth} of {month} {y}",
        "{dth} {month} {y}",
        "{month} {d}, {year}",
        "{d} {month} {year}",
        "{month} the {dth}, {year}",
        "{month} the {ordinal}, {y}",
        "the {ordinal} of {month} {y}",
        "{month} the {ordinal}, {year}",
        "{month} {ordinal}, {year}",
        "{month} {ordinal} {year}",
        "the {ordinal} of {month}, {year}",
        "the {ordinal} of {month} {year}",
        "{ordinal} of {month} {year}",
        "{weekday}, the {ordinal} of {month}, {year}",
        "{weekday}, {month} {ordinal}, {year}",
    ),
    "de": (
        "{full}",
        "{long}",
        "{medium}",
        "{d}.{m}.{y}",
        "{d}. {mon} {y}",
        "{dd}. {month} {y}",
        "{wd}, {d}. {mon} {y}",
        "am {d}. {month} {y}",
        "{weekday}, den {d}. {month} {y}",
        "{ordinal}r {month} {y}",
        "am {ordinal}n {month} {y}",
        "{d}. {month} {year}",
        "der {d}. {month} {year}",
        "{weekday}, {d}. {month} {year}",
        "{ordinal}r {month} {year}",
        "der {ordinal} {month} {year}",
        "den {ordinal}n {month} {year}",
        "am {ordinal}n {month} {year}",
        "{weekday}, der {ordinal} {month} {year}",
        "{weekday}, {ordinal}r {month} {year}",
    ),
    "fr": (
        "{full}",
        "{long}",
        "{medium}",
        "{short}",
        "{d} {mon} {y}",
        "{wd} {d} {mon} {y}",
        "le {d} {month} {y}",
        "le {weekday} {d} {month} {y}",
        "{words} {month} {y}",
        "le {words} {month} {y}",
        "{d} {month} {year}",
        "le {d} {month} {year}",
        "{weekday} {d} {month} {year}",
        "{words} {month} {year}",
        "le {words} {month} {year}",
        "{weekday} {words} {month} {year}",
        "le {weekday} {words} {month} {year}",
    ),
}
"""Forms that the specialists are trained on."""

UNSEEN: Mapping[str, Mapping[str, str]] = {
    "en": {
        "year first": "{y}, {month} {d}",
        "hyphens": "{d}-{mon}-{y}",
        "day of": "on the {ordinal} day of {month}, {year}",
        "in the year": "the {ordinal} of {month} in the year {year}",
    },
    "de": {
        "year first": "{y}, {d}. {month}",
        "month as ordinal": "{ordinal}r {month_ordinal}r {year}",
        "day of": "am {ordinal}n Tag des Monats {month} {year}",
        "in the year": "am {ordinal}n {month} im Jahre {year}",
    },
    "fr": {
        "year first": "{y}, {d} {month}",
        "hyphens": "{d}-{m}-{y}",
        "day of": "le {ordinal} jour de {month} {year}",
        "in the year": "le {words} {month} de l'an {year}",
    },
}
"""Forms never trained on, by the name under which their accuracy is reported."""


@lru_cache(maxsize=4096)
def split_of_year(year: int) -> Split:
    """The split that the whole year belongs to."""
    return split_of(f"year {year}", HELD_OUT_YEARS_PERCENT)


@lru_cache(maxsize=512)
def split_of_day(month: int, day: int) -> Split:
    """The split that this day of this month belongs to, in every year."""
    return split_of(f"day {month}-{day}", HELD_OUT_DAYS_PERCENT)


def split_of_date(day: date) -> Split | None:
    """Training if neither its year nor its day-month pair is held out; None if both are, for different sets."""
    splits = {split_of_year(day.year), split_of_day(day.month, day.day)} - {Split.TRAIN}
    if not splits:
        return Split.TRAIN
    return splits.pop() if len(splits) == 1 else None


def draw(rng: random.Random, accept: Callable[[date], bool]) -> date:
    """A day that `accept` takes, half of them from recent years."""
    while True:
        first, last = RECENT if rng.random() < 0.5 else (FIRST_YEAR, LAST_YEAR)
        start = date(first, 1, 1)
        day = start + timedelta(days=rng.randrange((date(last, 12, 31) - start).days + 1))
        if accept(day):
            return day


def year_words(year: int, language: str, rng: random.Random) -> str:
    """The year in words, in one of the ways in which the language says it."""
    cardinal, spoken = _year_readings(year, language)
    return rng.choice(cardinal) if rng.random() < 0.4 else rng.choice(spoken)


@lru_cache(maxsize=8192)
def _year_readings(year: int, language: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    cardinal = str(num2words(year, lang=language)).replace(",", "")
    spoken = str(num2words(year, lang=language, to="year"))
    hundreds = year // 100
    if language == "en":
        return (cardinal, cardinal.replace(" and ", " ")), (spoken, spoken.replace("oh-", "oh "))
    if language == "de":
        return (cardinal, re.sub(r"^eintausend", "tausend", cardinal)), (spoken,)
    if hundreds < 20 and hundreds % 10 and year % 100:
        # The older French reading, dix-neuf cent quatre-vingts, up to 1999.
        rest = num2words(year % 100, lang="fr")
        return (cardinal,), (cardinal, f"{num2words(hundreds, lang='fr')} cent {rest}")
    return (cardinal,), (cardinal,)


@lru_cache(maxsize=4096)
def _day_fields(month: int, day: int, language: str) -> dict[str, str]:
    """Everything a form may name that depends on the day and the month only."""
    fields = {
        "d": str(day),
        "dd": f"{day:02}",
        "m": str(month),
        "ordinal": str(num2words(day, lang=language, to="ordinal")),
        "month_ordinal": str(num2words(month, lang=language, to="ordinal")),
        "words": str(num2words(day, lang=language)),
        "month": format_date(date(2000, month, day), "MMMM", locale=language),
        "mon": format_date(date(2000, month, day), "MMM", locale=language),
    }
    if language == "en":
        fields["dth"] = str(num2words(day, lang="en", to="ordinal_num"))
    if language == "fr" and day == 1:
        fields |= {"d": "1er", "words": "premier"}
    return fields


def written(day: date, language: str, form: str, rng: random.Random) -> str:
    """The day written out in a form."""
    fields = dict(_day_fields(day.month, day.day, language))
    for standard in ("full", "long", "medium", "short"):
        if f"{{{standard}}}" in form:
            fields[standard] = format_date(day, standard, locale=language)
    if "{weekday}" in form:
        fields["weekday"] = format_date(day, "EEEE", locale=language)
    if "{wd}" in form:
        fields["wd"] = format_date(day, "EEE", locale=language)
    if "{year}" in form:
        fields["year"] = year_words(day.year, language, rng)
    text = form.format(**fields, y=f"{day.year:04d}")
    return re.sub(r"\bde (?=[ao])", "d'", text) if language == "fr" else text


def example(day: date, language: str, form: str, rng: random.Random, name: str = "") -> Example:
    """The day in a form, with the answer as eight digits and the value in ISO 8601."""
    return Example(written(day, language, form, rng), day.strftime("%Y%m%d"), day.isoformat(), name or form)


def training(language: str, rng: random.Random) -> Example:
    """One example for training, now and then without its commas, as many people write."""
    day = draw(rng, lambda day: split_of_date(day) is Split.TRAIN)
    made = example(day, language, rng.choice(TRAINED[language]), rng)
    return replace(made, text=made.text.replace(",", "")) if rng.random() < 0.2 else made


def held_out(language: str, split: Split, rng: random.Random) -> Example:
    """One example in a trained form whose year (half of them) or day-month pair was never trained on."""
    by_year = rng.random() < 0.5

    def accept(day: date) -> bool:
        year, pair = split_of_year(day.year), split_of_day(day.month, day.day)
        return (year, pair) == ((split, Split.TRAIN) if by_year else (Split.TRAIN, split))

    form = rng.choice(TRAINED[language])
    return example(draw(rng, accept), language, form, rng, "held-out years" if by_year else "held-out day-months")


def unseen_form(language: str, split: Split, rng: random.Random) -> Example:
    """One held-out day in a form never trained on."""
    name, form = rng.choice(list(UNSEEN[language].items()))
    return example(draw(rng, lambda day: split_of_date(day) is split), language, form, rng, name)
