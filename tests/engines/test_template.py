"""modelnet.json: what it maps, and what it refuses with which words."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from modelnet.engines import (
    BadPrompt,
    BadRecipe,
    Grammar,
    OutputParser,
    Prompt,
    PromptTemplate,
    Sampling,
    UnparsableOutput,
    load_recipe,
)

CAPABILITY: dict[str, Any] = {
    "prompt_template": "{text}=",
    "output_parser": {"regex": r"(?P<y>\d{4})(?P<m>\d{2})(?P<d>\d{2})", "output": {"value": "{y}-{m}-{d}"}},
    "sampling": {"max_tokens": 10, "temperature": 0, "stop": ["\n"]},
    "price": 12,
    "quality": 0.991,
}
RECIPE = {"name": "date-de", "capabilities": {"normalize.date.de": CAPABILITY}}


def write(folder: Path, recipe: object) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "modelnet.json").write_text(recipe if isinstance(recipe, str) else json.dumps(recipe))
    return folder


def test_a_recipe_maps_input_to_prompt_and_answer_to_output(folder: Path) -> None:
    recipe = load_recipe(write(folder, RECIPE))
    assert recipe is not None
    capability = recipe.capabilities["normalize.date.de"]
    assert capability.prompt({"text": "3. Mai 2024", "more": 1}) == Prompt(text="3. Mai 2024=")
    assert capability.sampling == Sampling(max_tokens=10, temperature=0, stop=("\n",))
    assert capability.parse(" 20240503\n") == {"value": "2024-05-03"}
    assert (capability.price, capability.quality) == (12, 0.991)


def test_no_file_is_no_recipe(tmp_path: Path) -> None:
    assert load_recipe(tmp_path) is None


def test_without_a_parser_the_text_is_the_output(folder: Path) -> None:
    plain = {"name": "x", "capabilities": {"text.generate": {"prompt_template": "{text}"}}}
    recipe = load_recipe(write(folder, plain))
    assert recipe is not None
    assert recipe.capabilities["text.generate"].parse(" as it is ") == {"text": " as it is "}
    assert recipe.capabilities["text.generate"].sampling == Sampling()


@pytest.mark.parametrize("text", ["2024050", "x20240503", "20240503 and more", ""])
def test_an_answer_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(UnparsableOutput) as caught:
        OutputParser(**CAPABILITY["output_parser"]).parse(text)
    assert caught.value.code == "bad_output"


def test_output_may_nest_and_keep_values_that_are_no_text() -> None:
    parser = OutputParser(
        regex=r"(?P<c>\d)(?P<b>\d)(?P<a>-)?", output={"sum": {"digits": ["{b}{c}"], "sign": "{a}"}, "exact": True}
    )
    assert parser.parse("21") == {"sum": {"digits": ["12"], "sign": ""}, "exact": True}


def test_a_template_takes_numbers_and_formats() -> None:
    assert PromptTemplate("{a:03d}+{b:03d}={{").render({"a": 7, "b": 42}) == "007+042={"
    assert PromptTemplate("{x:.2f}|{s:>5}").render({"x": 1, "s": "ab"}) == "1.00|   ab"


@pytest.mark.parametrize(
    "template", ["{text.__class__}", "{text[0]}", "{}", "{0}", "{text!r}", "{a:{b}}", "{a:99999}", "{a", "a}"]
)
def test_a_template_is_plain_fields_only(template: str) -> None:
    with pytest.raises(ValidationError):
        PromptTemplate(template)


@pytest.mark.parametrize("values", [{}, {"a": None}, {"a": [1]}, {"a": {"b": 1}}, {"a": "no number"}])
def test_an_input_that_does_not_fit_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(BadPrompt):
        PromptTemplate("{a:03d}").render(values)


def test_braces_in_an_input_are_only_text() -> None:
    assert PromptTemplate("{a}=").render({"a": "{b} {a.__class__}"}) == "{b} {a.__class__}="


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prompt_template": "{text.x}"}, "no plain field name"),
        ({"output_parser": {"regex": "(", "output": {}}}, "regex"),
        ({"output_parser": {"regex": "(?P<y>.)", "output": {"value": "{z}"}}}, "no group z"),
        ({"sampling": {"max_token": 3}}, "max_token"),
        ({"sampling": {"max_tokens": 0}}, "max_tokens must be at least 1"),
        ({"price": -1}, "price"),
        ({"quality": 2}, "quality"),
        ({"prise": 1}, "prise"),
    ],
)
def test_a_recipe_with_a_mistake_names_file_and_place(folder: Path, change: dict[str, Any], words: str) -> None:
    write(folder, {"name": "x", "capabilities": {"a.b": CAPABILITY | change}})
    with pytest.raises(BadRecipe, match=words) as caught:
        load_recipe(folder)
    assert "modelnet.json" in str(caught.value)
    assert caught.value.code == "bad_recipe"


@pytest.mark.parametrize("recipe", ["{", "[]", {"name": "x"}, {"name": "", "capabilities": {"A b": CAPABILITY}}])
def test_a_file_that_is_no_recipe_is_refused(folder: Path, recipe: object) -> None:
    with pytest.raises(BadRecipe):
        load_recipe(write(folder, recipe))


def test_a_recipe_may_have_a_grammar(tmp_path: Path) -> None:
    recipe: dict[str, Any] = {
        "name": "m",
        "capabilities": {"a.b": {"prompt_template": "{text}", "sampling": {"grammar": {"choice": ["x", "y"]}}}},
    }
    (tmp_path / "modelnet.json").write_text(json.dumps(recipe))
    loaded = load_recipe(tmp_path)
    assert loaded is not None
    assert loaded.capabilities["a.b"].sampling.grammar == Grammar(choice=("x", "y"))
    recipe["capabilities"]["a.b"]["sampling"] = {"grammar": {}}
    (tmp_path / "modelnet.json").write_text(json.dumps(recipe))
    with pytest.raises(BadRecipe, match="exactly one"):
        load_recipe(tmp_path)
