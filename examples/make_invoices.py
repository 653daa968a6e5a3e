"""Generates the main job: short invoices in three languages with dates and amounts in words, and their answers.

    python -m examples.make_invoices

Writes `invoices.jsonl` and `invoices.answers.jsonl` beside this file. The forms are those that the specialists know;
the dates and the numbers from 100 on are from their test split, so that the job is not their training data.
"""

import argparse
import json
import random
from pathlib import Path
from typing import Any

from examples.specialists import dates, numbers
from examples.specialists.example import Split

FOLDER = Path(__file__).parent

ITEMS = {
    "en": ("chairs", "desks", "lamps", "paper reams", "cartridges", "shelves", "monitors", "hours of consulting"),
    "de": ("Stühle", "Schreibtische", "Lampen", "Papier", "Patronen", "Regale", "Monitore", "Beratungsstunden"),
    "fr": ("chaises", "bureaux", "lampes", "ramettes", "cartouches", "étagères", "écrans", "heures de conseil"),
}

YEARS = (1990, 2039)
MOST_IN_UNIT_PRICE = 20_000


def _test_number(rng: random.Random, most: int) -> int:
    while True:
        number = numbers.draw(rng, Split.TEST)
        if number <= most:
            return number


def _quantity(rng: random.Random) -> int:
    """Mostly small, which are words that every number is made of; now and then in the hundreds."""
    return rng.randint(2, 99) if rng.random() < 0.8 else _test_number(rng, 999)


def _in_words(number: int, language: str, rng: random.Random) -> str:
    while True:
        text = rng.choice(list(numbers.TRAINED[language].values()))(number)
        if text is not None:
            return text


def invoice(number: int, language: str, rng: random.Random) -> tuple[dict[str, Any], dict[str, str]]:
    """One invoice and its answer."""
    day = dates.draw(rng, lambda day: YEARS[0] <= day.year <= YEARS[1] and dates.split_of_date(day) is Split.TEST)
    forms = [form for form in dates.TRAINED[language] if "{year}" in form or "{ordinal}" in form or "{words}" in form]
    lines, total = [], 0
    for item in rng.sample(ITEMS[language], rng.randint(1, 3)):
        quantity, unit_price = _quantity(rng), _test_number(rng, MOST_IN_UNIT_PRICE)
        total += quantity * unit_price
        lines.append(
            {
                "item": item,
                "quantity": _in_words(quantity, language, rng),
                "unit_price": _in_words(unit_price, language, rng),
            }
        )
    name = f"inv-{number:04d}"
    issued = dates.written(day, language, rng.choice(forms), rng)
    given = {"id": name, "language": language, "issued": issued, "lines": lines}
    return given, {"id": name, "issued": day.isoformat(), "total": str(total)}


def invoices(count: int, seed: int) -> list[tuple[dict[str, Any], dict[str, str]]]:
    """`count` invoices with their answers, the languages in turn."""
    rng = random.Random(seed)
    return [invoice(index + 1, dates.LANGUAGES[index % len(dates.LANGUAGES)], rng) for index in range(count)]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Generate the invoices of the main job.")
    parser.add_argument("--count", type=int, default=240)
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder for the two files")
    arguments = parser.parse_args()
    made = invoices(arguments.count, arguments.seed)
    for name, column in (("invoices.jsonl", 0), ("invoices.answers.jsonl", 1)):
        rows = (json.dumps(pair[column], ensure_ascii=False) + "\n" for pair in made)
        (arguments.out / name).write_text("".join(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
