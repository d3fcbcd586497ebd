"""Write the two bundled texts: dummy_data.txt (short stories) and dummy_data2.txt (recipes).

    python data/make_dummy_data.py                # next to this file
    python data/make_dummy_data.py --out DIR

In two minutes a tiny GPT learns only what a text makes easy: few words, short sentences. And one sees that it has
learnt only if a text has structure that spans more than a few words. So every story has a hero whose name and pronouns
stay the same, things that keep their colour, events with causes, questions with fitting answers, and an end that
returns to the beginning; the steps of every recipe use exactly the ingredients in its list.

The material is in story_plots.txt and recipe_dishes.txt, which also explain how to add to it. Everything is drawn from
one seeded generator, by random() only, whose results are the same in every version of Python.
"""

import argparse
import os
import random

HERE = os.path.dirname(os.path.abspath(__file__))
SEED = 1337
SIZE = 400_000  # bytes of each text, at least
END = "\n<|endoftext|>\n"

GIRLS = ["Mia", "Lily", "Anna", "Lucy", "Emma"]
BOYS = ["Tom", "Ben", "Max", "Leo", "Sam"]
COLORS = ["red", "blue", "green", "yellow", "white"]
NATURES = ["kind", "little", "clever", "brave", "happy", "curious", "quiet", "young"]
PLACES = ["in a small village", "near a big forest", "by the sea", "on a farm", "by a river", "in a big town"]
OPENINGS = [
    "Once upon a time there was a {nature} {boy} named {N}.",
    "Once upon a time there was a {boy} named {N} who lived {place}.",
    "Once upon a time, a {nature} {boy} named {N} lived {place}.",
    "Once upon a time there lived a {boy} named {N}.",
    "Once upon a time, {place}, there lived a {nature} {boy} named {N}.",
    "Once upon a time there was a {nature} {boy}. {His} name was {N}.",
    "There was a {nature} {boy} named {N}.",
    "{N} was a {nature} {boy} who lived {place}.",
    "A {boy} named {N} lived {place}.",
    "This is the story of a {boy} named {N}.",
]
NUMBERS = {2: "two", 3: "three", 4: "four", 6: "six"}
PLURALS = {
    "potato": "potatoes", "tomato": "tomatoes", "peach": "peaches", "radish": "radishes", "mango": "mangoes",
    "pinch": "pinches",
}  # fmt: skip
MASS_NOUNS_IN_S = {"chives"}  # end in s, but are "it" in the steps


class Draw:
    """Choices from a seeded generator."""

    def __init__(self, seed):
        self.random = random.Random(seed).random

    def one(self, options):
        return options[int(self.random() * len(options))]


def read_sections(name):
    """Returns the sections of a text file in this folder: [(title, {key: value}, [paragraph as a list of lines])].

    Everything above the first "== title" is the section "". Lines that begin with # are comments.
    """
    with open(os.path.join(HERE, name), encoding="ascii") as file:
        lines = [line.strip() for line in file if not line.startswith("#")]
    sections = [("", {}, [[]])]
    for line in lines:
        _, values, paragraphs = sections[-1]
        separator = ": " if len(sections) == 1 else " = "
        if line.startswith("== "):
            sections.append((line[3:], {}, [[]]))
        elif not line:
            paragraphs.append([])
        elif separator in line and not any(paragraphs):
            key, value = line.split(separator)
            values[key] = value.split(" | ")
        else:
            paragraphs[-1].append(line)
    return [(title, values, [p for p in paragraphs if p]) for title, values, paragraphs in sections]


# -- stories -----------------------------------------------------------------------------------------------------------


def pronouns(girl, mark=""):
    """{he: she, his: her, ...}; `mark` is put before each key; the keys are those of a boy."""
    words = ("she", "her", "her", "girl") if girl else ("he", "him", "his", "boy")
    table = {mark + key: word for key, word in zip(("he", "him", "his", "boy"), words)}
    return {**table, **{key.capitalize(): word.capitalize() for key, word in table.items()}}


def cast(draw):
    """Who is in a story: the hero (N, he, his, ...), a friend (F, f_he, ...), a parent (p_he, ...)."""
    girl, friend_girl, mother = (draw.random() < 0.5 for _ in range(3))
    words = {**pronouns(girl), **pronouns(friend_girl, "f_"), **pronouns(mother, "p_")}
    words["N"] = draw.one(GIRLS if girl else BOYS)
    words["F"] = draw.one([name for name in (GIRLS if friend_girl else BOYS) if name != words["N"]])
    words["parent"] = "mother" if mother else "father"
    words["call"] = "Mom" if mother else "Dad"
    words["color"], words["nature"], words["place"] = draw.one(COLORS), draw.one(NATURES), draw.one(PLACES)
    return words


def story(draw, plots):
    """One story: an opening, then a sentence for each paragraph of a plot, all about the same hero and things."""
    words = cast(draw)
    _, choices, paragraphs = draw.one(plots)
    for names, options in choices.items():
        words.update(zip(names.split("/"), draw.one(options).split("/")))
    words = {key: word.format(**words) for key, word in words.items()}  # a choice may name another, such as {color}
    sentences = [draw.one(OPENINGS)] + [draw.one(ways) for ways in paragraphs]
    return " ".join(sentence.format(**words) for sentence in sentences)


# -- recipes -----------------------------------------------------------------------------------------------------------


def plural(word, count):
    """plural("carrot", 1) -> "carrot", plural("potato", 3) -> "potatoes"."""
    return word if count == 1 else PLURALS.get(word, word + "s")


class Ingredient:
    """`line` for the list of ingredients; in the steps {a}, {a.the}, {a.it} and {a.is}."""

    def __init__(self, count, unit, thing):
        self.thing = thing
        name = thing if unit else plural(thing, count)
        self.line = f"{count} {plural(unit, count)} of {name}" if unit else f"{count} {name}"
        many = name.endswith("s") and name not in MASS_NOUNS_IN_S if unit else count > 1
        self.the = "the " + name
        self.it = "them" if many else "it"
        setattr(self, "is", "are" if many else "is")  # a keyword, so it cannot be an ordinary attribute

    def __format__(self, _):
        return self.thing


def ingredients(draw, values, lists, serves):
    """{name: Ingredient} as a dish describes them: "1 | 2 spoon of herb" -> two spoons of basil, say."""
    chosen, things = {}, set()
    for name, options in values.items():
        *counts, last = options
        count, _, what = last.partition(" ")
        counts = [serves if number == "serves" else int(number) for number in [*counts, count]]
        unit, _, what = what.rpartition(" of ")
        thing = draw.one([thing for thing in lists.get(what, [what]) if thing not in things])
        things.add(thing)
        chosen[name] = Ingredient(draw.one(counts), unit, thing)
    return chosen


def recipe(draw, lists, dishes):
    """One recipe: title, ingredients, numbered steps that use exactly these, and the time."""
    serves = draw.one(list(NUMBERS))
    title, values, paragraphs = draw.one(dishes)
    minutes = int(draw.one(values["minutes"]))
    chosen = ingredients(draw, {name: value for name, value in values.items() if name != "minutes"}, lists, serves)
    steps = [draw.one(ways).format(minutes=minutes, **chosen) for ways in paragraphs]
    ready = f"Ready in {minutes + draw.one([10, 15, 20])} minutes."
    lines = [f"Recipe: {title.format(**chosen).capitalize()}", "", "Ingredients:"]
    lines += [f"- {ingredient.line}" for ingredient in chosen.values()] + ["", "Steps:"]
    lines += [f"{n}. {step}" for n, step in enumerate(steps, 1)]
    lines += ["", draw.one([f"Serves {NUMBERS[serves]}. {ready}", f"{ready} Serves {NUMBERS[serves]}."])]
    return "\n".join(lines)


# -- files -------------------------------------------------------------------------------------------------------------


def corpus(make, seed, size=SIZE):
    """Different documents, each followed by the end mark, until they are `size` bytes."""
    draw, seen, documents, length = Draw(seed), set(), [], 0
    while length < size:
        document = make(draw)
        if document not in seen:
            seen.add(document)
            documents.append(document + END)
            length += len(documents[-1])
    return "".join(documents)


def write(path, text):
    """Write under another name, then rename: the text is complete or not there.

    Exits with a line if there is another text in a folder that is not this file's own.
    """
    if os.path.lexists(path) and not os.path.samefile(os.path.dirname(path) or ".", HERE):
        with open(path, "rb") as file:
            if file.read() != text.encode("ascii"):
                raise SystemExit(f"{path}: exists, and is another text; choose another --out, or move it away")
    with open(path + ".tmp", "w", encoding="ascii", newline="\n") as file:
        file.write(text)
    os.replace(path + ".tmp", path)
    print(f"{path}: {len(text):,} bytes, {text.count(END):,} documents, {len(set(text.split())):,} different words")


def main(argv=None):
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--out", default=HERE, help="folder to write to (default: that of this file)")
    folder = parser.parse_args(argv).out
    if not folder.strip():
        parser.error("--out is empty; give a folder, or leave it out")
    (_, _, _), *plots = read_sections("story_plots.txt")
    (_, lists, _), *dishes = read_sections("recipe_dishes.txt")
    write(os.path.join(folder, "dummy_data.txt"), corpus(lambda draw: story(draw, plots), SEED))
    write(os.path.join(folder, "dummy_data2.txt"), corpus(lambda draw: recipe(draw, lists, dishes), SEED + 1))


if __name__ == "__main__":
    main()
