"""Every path on the command line of every program, spelt in odd ways: with spaces, new lines, bytes that are no UTF-8,
as long as the system allows, through links. What can be opened must be read or written as under a plain name.

    python tests/odd_paths.py 100 1        tries 100 drawn paths and places, beginning with seed 1
"""

import contextlib
import io
import os
import random
import shutil
import sys
import tempfile
import traceback
from collections import Counter

from command_lines import Outcome, run_forked
from inputs import READS, mains, make_inputs, quick
from odd_kinds import problem_of

OUTPUTS = ("new", "new.bin", "out", "out.bin", "curves", "answers.jsonl", "metrics.jsonl")
NAMES = [
    "a b", " a", "a ", "a\nb", "a\rb", "a\tb", "\x1b[31m", "\x7f", "100%", "%s%n%d", "{}", "{0}", "{a", "*", "a*",
    "?", "[a]", "[", "**", "'a'", '"a"', "a\\b", "\\", "$HOME", "~", "~root", "`id`", "$(id)", "a=b", "a,b", "a:b",
    "#a", "a;b", "a&b", "a|b", "!", "(a)", "<a>", ".a", "...", "-", "-x", "--", "--x", "-0", "\u202eabc",
    "\u200b", "\ufeffa",
    "e\u0301", "é", "日本語", "😀", "\udcff", "a\udcc3(b", "\udc80" * 60, "x" * 255, "é" * 127, "\udcff" * 255,
    "x" * 250 + ".json", "x" * 200, "nan", "None", "0", "con", "a.bin", "a.npy", "a.txt.", "step_00000001", "http:",
]  # fmt: skip
DEEP = "/".join(["d" * 99] * 38)  # 3,800 bytes: with the folder and the name still below the 4,096 of Linux


def spellings():
    """{what: function of a path of the folder (it makes what is needed), returning the odd path; None: impossible}."""
    found = {repr(name): _named(name) for name in NAMES}
    found |= {f"in a folder {name!r}": _named(name, "a") for name in NAMES if name not in ("~",)}
    found |= {"deep": _named(*DEEP.split("/"), "a"), "chain of 30 links": _chain,
              "//": lambda path: path.replace("/", "//"), "/./": lambda path: "./././" + path,
              "..": lambda path: "empty/../" + path,
              "absolute": os.path.abspath, "absolute, //": lambda path: "/" + os.path.abspath(path),
              "link to the folder": _folder_link}  # fmt: skip
    return found


REFUSED = {
    "256 bytes": lambda path: "x" * 256, "5,000 bytes": lambda path: "d/" * 2500 + "a", "NUL": lambda path: path + "\0",
    "a file as a folder": lambda path: "text.txt/a", "empty": lambda path: "",
    "white space": lambda path: "\n", "loop": lambda path: _loop(path),
}  # fmt: skip


def _named(*parts):
    def make(path):
        ending, name = os.path.splitext(path)[1], parts[-1]  # some formats are known by it
        while len(os.fsencode(name + ending)) > 255:
            name = name[:-1]
        odd = "/".join((*parts[:-1], name + ending))
        if len(parts) > 1:
            _make_folders(parts[:-1])
        if os.path.lexists(path):
            os.rename(path, odd)
        return odd

    return make


def _make_folders(parts):
    here = os.open(".", os.O_RDONLY)
    for part in parts:
        os.makedirs(part, exist_ok=True)
        os.chdir(part)
    os.fchdir(here)
    os.close(here)


def _chain(path):
    for i in range(30):
        os.symlink(f"link{i + 1}" if i < 29 else path, f"link{i}")
    return "link0"


def _folder_link(path):
    os.symlink(".", "here")
    return "here/here/" + path


def _loop(path):
    os.symlink("loop2", "loop1")
    os.symlink("loop1", "loop2")
    return "loop1"


def places(base):
    """(Read, index of a word that is a path, is it written) of all programs."""
    for read in READS:
        for i, word in enumerate(read.words):
            if word in OUTPUTS:
                yield read, i, True
            elif os.path.exists(os.path.join(base, word)) and "--" not in word and read.words[i - 1] != "--to":
                yield read, i, False


def line(words, i, path):
    """The words with another path; so that argparse takes a leading dash for a part of it."""
    words = list(words)
    if i and words[i - 1].startswith("-") and words[i - 1] != "--":
        words[i - 1 : i + 1] = [f"{words[i - 1]}={path}"] if words[i - 1].startswith("--") else [words[i - 1], path]
    else:
        words[i] = "./" + path if path.startswith("-") else path
    return words


def run_here(main, words, folder):
    """Outcome of main(words) in this process, whose streams are as strict as those of a terminal."""
    raw = [io.BytesIO(), io.BytesIO()]
    out, err = (io.TextIOWrapper(file, "utf-8", how) for file, how in zip(raw, ("strict", "backslashreplace")))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(words) or 0
        except SystemExit as error:
            code = error.code
        except BaseException:
            traceback.print_exc()
            code = 70
        out.flush()
        err.flush()
    return Outcome(code, *(file.getvalue().decode("utf-8", "replace") for file in raw), [])


def attempt(read, i, spelling, base, folder, run):
    """(words, Outcome): the program with this path spelt so."""
    shutil.copytree(base, folder, symlinks=True)
    here = os.getcwd()
    os.chdir(folder)
    try:
        path = spelling(read.words[i])
        words = line(read.words, i, path)
        outcome = (run_forked if read.program == "launch" else run_here)(run[read.program], words, ".")
        wrote = os.path.exists(path) if len(path) < 4000 and "\0" not in path else True
        return words, outcome, wrote
    finally:
        os.chdir(here)
        shutil.rmtree(folder)


def fault_of(read, i, writes, what, base, folder, run, expected):
    """(Outcome, what is wrong or "") of a place with a spelling; `expected` {words: exit code} is filled in."""
    if read.words not in expected:
        expected[read.words] = attempt(read, i, lambda path: path, base, folder, run)[1].code
    if what in REFUSED:
        words, outcome, _ = attempt(read, i, REFUSED[what], base, folder, run)
        is_unread = (read.program, read.words[i - 1]) == ("plan", "--data")  # it needs the model only
        wrong = "" if outcome.code == 2 or outcome.code == 0 and is_unread else f"exit code {outcome.code}"
        return words, outcome, problem_of(outcome) or wrong
    words, outcome, wrote = attempt(read, i, spellings()[what], base, folder, run)
    plain, wrong = expected[read.words], ""
    if outcome.code != plain:
        wrong = f"exit code {outcome.code}, with a plain name {plain}"
    elif not wrote and read.words[i] != "curves":
        wrong = "nothing has this name"
    return words, outcome, problem_of(outcome) or wrong


def main():
    number, seed = int(sys.argv[1]), int(sys.argv[2])
    quick()
    run, counts, expected, rng = mains(), Counter(), {}, random.Random(seed)
    with tempfile.TemporaryDirectory() as top:
        base, folder = os.path.join(top, "base"), os.path.join(top, "try")
        make_inputs(base)
        all_places, all_spellings = list(places(base)), [*spellings(), *REFUSED]
        for _ in range(number):
            (read, i, writes), what = rng.choice(all_places), rng.choice(all_spellings)
            words, outcome, problem = fault_of(read, i, writes, what, base, folder, run, expected)
            counts[outcome.code] += 1
            if problem:
                counts["FAULT"] += 1
                print(f"FAULT {read.program} {[word[:300] for word in words]}: {what[:60]}: {problem}: "
                      f"{outcome.err.strip()[-600:]!r}", flush=True)  # fmt: skip
    print(dict(counts))


if __name__ == "__main__":
    main()
