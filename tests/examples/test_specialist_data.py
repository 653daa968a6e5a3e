"""The specialists' data and what ships of each model: splits, answers, mappings. No model is run here."""

import json
import random
import re
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from num2words import num2words

from examples import make_invoices
from examples.specialists import data, dates, numbers
from examples.specialists.example import Example, Split

EXAMPLES = Path(make_invoices.__file__).parent
MODELS = EXAMPLES / "specialists" / "models"
HELD_OUT = (Split.DEV, Split.TEST)
MONTHS = {"en": "March", "de": "März", "fr": "mars"}


def split_of(capability: str, example: Example) -> Split | None:
    if ".date." in capability:
        return dates.split_of_date(date.fromisoformat(example.value))
    return numbers.split_of_number(int(example.value))


@pytest.mark.parametrize("capability", data.CAPABILITIES)
def test_same_seed_same_data(capability: str) -> None:
    assert data.training(capability, 50, 3) == data.training(capability, 50, 3)
    assert data.training(capability, 50, 3) != data.training(capability, 50, 4)
    assert data.held_out(capability, Split.TEST, 50) == data.held_out(capability, Split.TEST, 50)
    assert data.unseen_forms(capability, Split.TEST, 50) == data.unseen_forms(capability, Split.TEST, 50)


@pytest.mark.parametrize("capability", data.CAPABILITIES)
def test_held_out_items_are_never_trained_on(capability: str) -> None:
    trained = data.training(capability, 4000, 1)
    assert {split_of(capability, example) for example in trained} == {Split.TRAIN}
    texts = {example.text for example in trained}
    for split in HELD_OUT:
        held_out = data.held_out(capability, split, 300) + data.unseen_forms(capability, split, 100)
        assert {split_of(capability, example) for example in held_out} == {split}
        assert texts.isdisjoint(example.text for example in held_out)


@pytest.mark.parametrize("language", dates.LANGUAGES)
def test_held_out_dates_hold_out_the_whole_year_or_the_whole_day(language: str) -> None:
    trained = [date.fromisoformat(e.value) for e in data.training(f"normalize.date.{language}", 4000, 1)]
    years, days = {day.year for day in trained}, {(day.month, day.day) for day in trained}
    for example in data.held_out(f"normalize.date.{language}", Split.TEST, 300):
        day = date.fromisoformat(example.value)
        if example.form == "held-out years":
            assert day.year not in years
        else:
            assert (day.month, day.day) not in days


@pytest.mark.parametrize("language", dates.LANGUAGES)
def test_unseen_forms_are_not_among_the_trained_ones(language: str) -> None:
    assert not set(dates.UNSEEN[language].values()) & set(dates.TRAINED[language])
    for number in (1105, 5285, 71_091, 340_012):
        trained = {writer(number) for writer in numbers.TRAINED[language].values()}
        unseen = {writer(number) for writer in numbers.UNSEEN[language].values()} - {None}
        assert trained.isdisjoint(unseen), number


@pytest.mark.parametrize("language", dates.LANGUAGES)
def test_dates_carry_their_answer(language: str) -> None:
    """Where the form shows a year in digits or a month by name, the answer agrees with it."""
    for example in data.training(f"normalize.date.{language}", 2000, 1):
        day = date.fromisoformat(example.value)
        assert example.answer == f"{day.year}{day.month:02}{day.day:02}"
        for year in re.findall(r"\d{4}", example.text):
            assert int(year) == day.year, example
        if MONTHS[language] in example.text:
            assert day.month == 3, example
        if found := re.match(r"(\d\d?)(?:er|th|st|nd|rd)?\.? \w", example.text):
            assert int(found[1]) == day.day, example


@pytest.mark.parametrize(
    ("language", "form", "text"),
    [
        ("de", "{ordinal}r {month} {year}", "dritter März zweitausendeinundzwanzig"),
        ("de", "{full}", "Mittwoch, 3. März 2021"),
        ("en", "{long}", "March 3, 2021"),
        ("en", "the {dth} of {month} {y}", "the 3rd of March 2021"),
        ("fr", "{long}", "3 mars 2021"),
        ("fr", "le {words} {month} {year}", "le trois mars deux mille vingt et un"),
    ],
)
def test_dates_as_people_write_them(language: str, form: str, text: str) -> None:
    example = dates.example(date(2021, 3, 3), language, form, random.Random(0))
    assert (example.text, example.answer, example.value) == (text, "20210303", "2021-03-03")


def test_an_english_year_is_said_in_several_ways() -> None:
    rng = random.Random(0)
    said = {dates.year_words(2021, "en", rng) for _ in range(100)}
    assert said == {"twenty twenty-one", "two thousand and twenty-one", "two thousand twenty-one"}


@pytest.mark.parametrize("language", dates.LANGUAGES)
def test_numbers_carry_their_answer(language: str) -> None:
    for example in data.training(f"normalize.number.{language}", 2000, 1):
        number = int(example.value)
        assert example.answer == f"{number:06d}"
        if example.form == "standard":
            assert example.text == num2words(number, lang=language).replace("einstausend", "eintausend")


@pytest.mark.parametrize(
    ("language", "number", "texts"),
    [
        ("en", 1_105, {"one thousand, one hundred and five", "one thousand one hundred five"}),
        ("de", 1_212, {"tausendzweihundertzwölf", "eintausendzweihundertundzwölf"}),
        ("de", 101_001, {"hunderteintausendeins", "einhunderteintausendundeins"}),
        ("fr", 80_091, {"quatre-vingt mille quatre-vingt-onze", "quatre-vingt-mille-quatre-vingt-onze"}),
    ],
)
def test_numbers_as_people_write_them(language: str, number: int, texts: set[str]) -> None:
    assert texts <= {writer(number) for writer in numbers.TRAINED[language].values()}


def test_every_number_below_a_hundred_is_trained_on() -> None:
    assert {numbers.split_of_number(number) for number in range(100)} == {Split.TRAIN}


@pytest.mark.parametrize("model", data.MODELS)
class TestShippedModel:
    def test_weights_are_small(self, model: str) -> None:
        assert (MODELS / model / "model.safetensors").stat().st_size <= 2_000_000

    def test_mapping_is_the_one_it_was_trained_with(self, model: str) -> None:
        shipped = json.loads((MODELS / model / "modelnet.json").read_text())
        quality = {name: capability["quality"] for name, capability in shipped["capabilities"].items()}
        assert shipped == data.mapping(model, quality)
        assert all(0 < value <= 1 for value in quality.values())

    def test_mapping_takes_the_answers(self, model: str) -> None:
        shipped = json.loads((MODELS / model / "modelnet.json").read_text())
        for name, capability in shipped["capabilities"].items():
            for example in data.training(name, 200, 1):
                assert capability["prompt_template"].format(text=example.text).count(example.text) == 1
                assert len(example.answer) < capability["sampling"]["max_tokens"]
                assert output(capability["output_parser"], example.answer) == {"value": example.value}

    def test_configuration_is_a_plain_llama_that_stops(self, model: str) -> None:
        config = json.loads((MODELS / model / "config.json").read_text())
        assert config["architectures"] == ["LlamaForCausalLM"]
        assert (config["dtype"], config["head_dim"]) == ("bfloat16", 32)
        assert config["tie_word_embeddings"]
        assert not config["attention_bias"]
        generation = json.loads((MODELS / model / "generation_config.json").read_text())
        assert generation["eos_token_id"] == config["eos_token_id"]
        tokenizer = json.loads((MODELS / model / "tokenizer_config.json").read_text())
        assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"

    def test_card_tells_the_measured_quality(self, model: str) -> None:
        card = (MODELS / model / "README.md").read_text()
        shipped = json.loads((MODELS / model / "modelnet.json").read_text())
        for name, capability in shipped["capabilities"].items():
            assert f"| `{name}` | {capability['quality']:.1%} |" in card
        assert "license: apache-2.0" in card

    def test_readme_tells_the_measured_quality(self, model: str) -> None:
        readme = (MODELS.parent / "README.md").read_text()
        shipped = json.loads((MODELS / model / "modelnet.json").read_text())
        for name, capability in shipped["capabilities"].items():
            row = f"| `{name}` | {capability['price']} | {capability['quality']:.1%} |"
            assert f"[{model}](models/{model}/README.md) {row}" in readme


def output(parser: dict[str, Any], generated: str) -> dict[str, str]:
    match = re.fullmatch(parser["regex"], generated.strip())
    assert match is not None
    return {key: template.format(**match.groupdict()) for key, template in parser["output"].items()}


@pytest.mark.parametrize(("answer", "value"), [("000000", "0"), ("000340", "340"), ("999999", "999999")])
def test_padded_numbers_become_plain_digits(answer: str, value: str) -> None:
    parser = data.mapping("number-de", {"normalize.number.de": 1.0})["capabilities"]
    assert isinstance(parser, dict)
    assert output(parser["normalize.number.de"]["output_parser"], answer) == {"value": value}


def test_the_invoices_are_the_generated_ones() -> None:
    made = make_invoices.invoices(240, 2026)
    assert made == make_invoices.invoices(240, 2026)
    for name, column in (("invoices.jsonl", 0), ("invoices.answers.jsonl", 1)):
        rows = (EXAMPLES / name).read_text(encoding="utf-8").splitlines()
        assert [json.loads(row) for row in rows] == [pair[column] for pair in made]


@pytest.fixture(scope="module")
def said() -> dict[str, dict[str, int]]:
    """By language, every number that an invoice may name, by its words."""
    named = [n for n in range(make_invoices.MOST_IN_UNIT_PRICE) if n < 1000 or numbers.split_of_number(n) is Split.TEST]
    return {
        language: {text: n for n in named for writer in writers.values() if (text := writer(n))}
        for language, writers in numbers.TRAINED.items()
    }


def test_invoices_are_right_and_not_training_data(said: dict[str, dict[str, int]]) -> None:
    rng = random.Random(0)
    languages = []
    for given, answer in make_invoices.invoices(240, 2026):
        language, day = given["language"], date.fromisoformat(answer["issued"])
        languages.append(language)
        assert dates.split_of_date(day) is Split.TEST
        forms = dates.TRAINED[language] * 20
        assert given["issued"] in {dates.written(day, language, form, rng) for form in forms}
        lines = [(said[language][line["quantity"]], said[language][line["unit_price"]]) for line in given["lines"]]
        assert str(sum(quantity * price for quantity, price in lines)) == answer["total"]
        assert all(numbers.split_of_number(price) is Split.TEST for _, price in lines)
        assert 1 <= len(lines) <= 3
    assert {language: languages.count(language) for language in dates.LANGUAGES} == {"en": 80, "de": 80, "fr": 80}
