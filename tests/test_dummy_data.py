"""The bundled texts are what their generator makes, and hold the structure they were made for."""

import importlib.util
import pathlib
import re

import pytest

DATA = pathlib.Path(__file__).parents[1] / "data"
_SPEC = importlib.util.spec_from_file_location("make_dummy_data", DATA / "make_dummy_data.py")
make = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(make)


def documents(name):
    return (DATA / name).read_text(encoding="ascii").split(make.END)[:-1]


STORIES, RECIPES = documents("dummy_data.txt"), documents("dummy_data2.txt")


def test_the_generator_makes_exactly_these_files(tmp_path, capsys):
    make.main(["--out", str(tmp_path)])
    for name in ("dummy_data.txt", "dummy_data2.txt"):
        assert (tmp_path / name).read_bytes() == (DATA / name).read_bytes()
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("found", [STORIES, RECIPES])
def test_there_is_enough_of_it_and_nothing_twice(found):
    assert sum(map(len, found)) > 300_000 and len(set(found)) == len(found) > 500


@pytest.mark.parametrize("found", [STORIES, RECIPES])
def test_the_language_is_clean(found):
    for text in found:
        assert "  " not in text and "{" not in text
        assert not re.search(r"\b[Aa] [aeiouAEIOU]|\b[Aa]n [^aeiouAEIOU]", text), text
        assert text[0].isupper() and not re.search(r"[.!?] [a-z]", text), text


def test_most_stories_begin_once_upon_a_time():
    assert 0.5 < sum(text.startswith("Once upon a time") for text in STORIES) / len(STORIES) < 0.7


def test_quotes_are_closed_and_punctuated():
    for text in STORIES:
        assert text.count('"') % 2 == 0, text
        for quote in text.split('"')[1::2]:
            assert quote[-1] in ",.!?" and quote[0].isupper(), quote


def hero_of(text):
    return re.search(r"\b(" + "|".join(make.GIRLS + make.BOYS) + r")\b", text)[0]


def test_the_hero_keeps_name_and_pronouns():
    """At most two people have names; where all are girls, "he" can only be the father (or a snowman), and so on."""
    for text in STORIES:
        people = set(re.findall(r"\b(" + "|".join(make.GIRLS + make.BOYS) + r")\b", text))
        assert hero_of(text) in people and len(people) <= 2, text
        others = re.search(r"\b(father|mother|grand\w+|aunt|uncle|teacher|snowman|Mom|Dad)\b", text)
        if not others and people <= set(make.GIRLS):
            assert not re.search(r"\b[Hh](e|is|im)\b", text), text
        if not others and people <= set(make.BOYS):
            assert not re.search(r"\b[Ss]he\b|\b[Hh]er\b", text), text
        opening = re.search(r"\b(boy|girl)\b", text)[0]
        assert (hero_of(text) in make.GIRLS) == (opening == "girl"), text


def test_a_thing_keeps_its_colour():
    kept = 0
    for text in STORIES:
        things = "ball|kite|car|doll|boat|drum|train|coat|cup|lamp|plate"
        colours = re.findall(rf"\b({'|'.join(make.COLORS)}) ({things})", text)
        for thing in {thing for _, thing in colours}:
            assert len({colour for colour, other in colours if other == thing}) == 1, text
        kept += len(colours) > 1
    assert kept > 50


def test_recipes_use_their_ingredients_and_nothing_else():
    pantry = set()
    lists = [re.findall(r"^- \d+ (?:\w+ of )?(.+)$", text, re.MULTILINE) for text in RECIPES]
    for names in lists:
        pantry.update(names)
    for text, names in zip(RECIPES, lists):
        steps = text.split("Steps:")[1]
        assert len(names) == len(set(names)) >= 5
        for name in names:
            assert f"the {name}" in steps, (name, text)
        for name in pantry - set(names):
            assert not re.search(rf"\bthe {name}\b", steps), (name, text)


def test_numbers_and_nouns_of_ingredients_agree():
    for text in RECIPES:
        for count, noun in re.findall(r"^- (\d+) (\w+)", text, re.MULTILINE):
            assert noun.endswith("s") == (count != "1"), text


def test_steps_are_numbered_from_one():
    for text in RECIPES:
        numbers = re.findall(r"^(\d+)\. ", text, re.MULTILINE)
        assert numbers == [str(n) for n in range(1, len(numbers) + 1)] and len(numbers) >= 5
