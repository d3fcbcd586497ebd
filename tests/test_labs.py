"""The labs as students meet them: shipped solutions pass, holes and typical wrong answers fail with the right hint."""

import io
import json
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

from tinygrad2.commands import lab as lab_module
from tinygrad2.commands.lab import main as lab_command
from tinygrad2.dispatch import OPS
from tinygrad2.errors import UserError
from tinygrad2.labs.catalog import LABS
from tinygrad2.labs.diagnose import compare
from tinygrad2.labs.lab import MOST_POINTS, Wrong
from tinygrad2.labs.load import UNUSABLE
from tinygrad2.labs.report import entry_of, report_of
from tinygrad2.labs.run import run_cases
from tinygrad2.labs.source import shipped, solution, with_answer, with_hole
from tinygrad2.labs.worker import MOST_PRINTED, Limited

ROOT = pathlib.Path(__file__).parents[1]


def answers(name):
    """[(kind, title, phrase of the hint, code)] in tests/labs/NAME.txt."""
    text = (ROOT / "tests" / "labs" / f"{name}.txt").read_text(encoding="utf-8")
    found = re.findall(r"=== (wrong|right): (.*)\n(?:=== says: (.*)\n)?((?:(?!===).*\n)+)", text)
    assert len(found) == len(re.findall("^=== (?:wrong|right)", text, re.MULTILINE))
    return found


ANSWERS = [(name, *answer) for name in LABS for answer in answers(name)]


def grade(lab, text, folder, seed):
    path = folder / f"{lab.name}.py"
    path.write_text(text, encoding="utf-8")
    return run_cases(lab, str(path), seed)


def points(results):
    return sum(result.points for result in results)


# -- every lab --------------------------------------------------------------------------------------------------------


def test_there_are_at_least_14_labs():
    assert len(LABS) >= 14


def test_every_marker_in_the_source_belongs_to_a_lab():
    files = [path for folder in ("ops", "models", "tinygrad2") for path in (ROOT / folder).rglob("*.py")]
    marked = set()
    for path in files:
        lines = re.findall(r"^ *# lab: (begin|end) (\w+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
        assert [kind for kind, _ in lines] == ["begin", "end"] * (len(lines) // 2)
        assert lines[::2] == [("begin", name) for _, name in lines[1::2]]
        marked |= {(name, path.relative_to(ROOT).as_posix()) for _, name in lines}
    assert marked == {(lab.name, lab.file) for lab in LABS.values()}


@pytest.mark.parametrize("lab", LABS.values(), ids=LABS)
def test_a_lab_has_cases_hints_and_answers_of_both_kinds(lab):
    assert lab.most == MOST_POINTS and len(lab.cases) >= 4 and len(lab.hints) >= 3
    assert len({case.title for case in lab.cases}) == len(lab.cases)
    kinds = [kind for kind, *_ in answers(lab.name)]
    assert kinds.count("wrong") >= 3 and kinds.count("right") >= 1
    assert solution(lab).strip() and "NotImplementedError" not in solution(lab)


@pytest.mark.parametrize("lab", LABS.values(), ids=LABS)
def test_the_shipped_solution_has_all_points_with_every_seed(lab, tmp_path):
    text = with_answer(lab, solution(lab))
    assert text == shipped(lab)
    for seed in (*range(4), int(np.random.SeedSequence().entropy % (1 << 32))):
        results = grade(lab, text, tmp_path, seed)
        assert points(results) == MOST_POINTS, (seed, results)


@pytest.mark.parametrize("lab", LABS.values(), ids=LABS)
def test_the_hole_has_no_points_and_says_where_it_is(lab, tmp_path):
    text = with_hole(lab)
    rest = with_answer(lab, "---\n" * (solution(lab).count("---\n")))
    cut = [line for line in map(str.strip, solution(lab).splitlines()) if len(line) > 15 and line not in rest]
    assert cut and not any(line in text for line in cut), "the answer is still in there"
    results = grade(lab, text, tmp_path, 0)
    holes = [i for i, line in enumerate(text.splitlines(), 1) if f'NotImplementedError("lab {lab.name}' in line]
    assert points(results) == 0
    assert {result.message for result in results} <= {f"line {i}: the hole is still empty" for i in holes}


@pytest.mark.parametrize("name, kind, title, says, code", ANSWERS, ids=[f"{a[0]}: {a[2]}" for a in ANSWERS])
def test_answers(name, kind, title, says, code, tmp_path):
    """A wrong one fails with the right hint, with every seed; a right one in another form is accepted."""
    for seed in (1, 2):
        results = grade(LABS[name], with_answer(LABS[name], code), tmp_path, seed)
        messages = [result.message for result in results if result.message]
        if kind == "right":
            assert points(results) == MOST_POINTS, messages
        else:
            assert points(results) < MOST_POINTS and any(says in message for message in messages), messages
            assert not any(UNUSABLE in message for message in messages), f"the grader failed: {messages}"


# -- the diagnosis ----------------------------------------------------------------------------------------------------

X = np.random.default_rng(0).standard_normal((4, 5))
SQUARE = X[:, :4]
TRACES = {
    "sign": (-X, X, "ratio -1 over all elements: the sign is wrong"),
    "twice": (2 * X, X, "ratio 2 over all elements: counted twice"),
    "half": (X / 2, X, "ratio 1/2 over all elements: half of it is missing"),
    "zero": (0 * X, X, "ratio 0: every element is zero"),
    "size": (7 * X, X, "ratio 7 over all elements: times 7 rows: a sum where a mean belongs"),
    "mean": (X / 7, X, "ratio 1/7 over all elements: divided by 7 rows: a mean where a sum belongs"),
    "unknown factor": (1.37 * X, X, "ratio 1.37 over all elements: a factor is lost"),
    "transposed": (SQUARE.T, SQUARE, "it is the transpose"),
    "transposed shape": (X.T, X, "x has shape (5, 4), not (4, 5): transposed?"),
    "later": (np.roll(X, 1, 1), X, "shifted by one along axis 1: each is one place later"),
    "earlier": (np.roll(X, -1, 0), X, "shifted by one along axis 0: each is one place earlier"),
    "reversed": (X[::-1], X, "reversed order along axis 0"),
    "reshaped": (X.T.reshape(4, 5), X, "the right values at the wrong places"),
    "offset": (X + 0.5, X, "every element is off by the same 0.5"),
    "float32": (X.astype(np.float32), X, "only the last digits differ: a step in float32"),
    "nan": (np.where(X == X[0, 0], np.nan, X), X, "x[0, 0]: expected"),
    "one row": (np.where(np.arange(4)[:, None] == 2, 9.0, X), X, "wrong is all of index 2 along axis 0; the rest"),
    "keepdims": (X[:, 0], X[:, :1], "an axis of size 1 is gone: keepdims=True?"),
    "not summed": (X, X[:, :1], "axis 1 was not summed"),
    "none": (None, X, "x is None; it must be an array of shape (4, 5)"),
    "text": ("x", X, "x is str 'x'; it must be an array of numbers"),
    "one number": (np.float64(0.3), np.float64(-0.4), "found 0.3, ratio -0.75\nevery element is wrong"),
    "one number, twice": (np.float64(0.6), np.float64(0.3), "ratio 2 over all elements: counted twice"),
    "digits": (X * (1 + 1e-8), X, "only the last digits differ"),
    "zero with a sign": (np.where(X == X.min(), 0, X), X, ", found 0, ratio 0\n"),
    "equal neighbours": (np.array([2.0, 1, 1, 1]), np.ones(4), "wrong is all of index 0 along axis 0; the rest"),
    "another length": (X[:3], X, "x has shape (3, 5), not (4, 5): axis 0 has 3 elements, not 4"),
    "nothing simple": (X**3, X, "no simple ratio, term or shift"),
}


@pytest.mark.parametrize("name", TRACES)
def test_a_trace_is_named(name):
    found, expected, says = TRACES[name]
    with pytest.raises(Wrong) as error:
        compare("x", found, expected, rtol=1e-9, sizes={"7 rows": 7})
    assert says in str(error.value)


def test_the_worst_element_is_shown():
    found = X.copy()
    found[1, 3] += 10
    with pytest.raises(Wrong, match=r"x\[1, 3\]: expected .*\n1 of 20 elements are wrong; the rest is right"):
        compare("x", found, X)


def test_lists_and_numbers_are_accepted():
    compare("x", X.tolist(), X)
    compare("x", 2, np.float64(2))


# -- loading and running ----------------------------------------------------------------------------------------------

LAB = LABS["layernorm_backward"]


@pytest.mark.parametrize(
    "code, says",
    [
        ("return 1 +", "SyntaxError: invalid syntax"),
        ("return nothing", "NameError: name 'nothing' is not defined"),
        ("raise SystemExit(0)", "SystemExit: 0"),
        ("return dout", "backward returns 1 gradients for the 3 inputs x, weight, bias"),
        ("return None, None, None", "dx is None; it must be an array of shape (5, 6)"),
        ("return 'a', 'b', 'c'", "dx is str 'a'; it must be an array of numbers"),
    ],
)
def test_what_a_student_may_write_is_one_line(code, says, tmp_path):
    results = grade(LAB, with_answer(LAB, code + "\n"), tmp_path, 0)
    assert points(results) == 0
    assert says in results[0].message and "\n" not in results[0].message
    if "Error: " in says:
        line = next(i for i, text in enumerate(shipped(LAB).splitlines(), 1) if "lab: begin" in text) + 1
        assert results[0].message.startswith(f"line {line}: ")


@pytest.mark.parametrize(
    "content, says",
    [
        (b"", "the file has no `LayerNorm` any more: write it again"),
        ("x = 1".encode("utf-16"), "it seems to be UTF-16; save it as UTF-8"),
        (b"\xe9 = 1\n", "line 1: SyntaxError"),
        (b"import nothing_there\n", "line 1: ModuleNotFoundError: No module named 'nothing_there'"),
    ],
)
def test_other_files_are_one_line(content, says, tmp_path):
    (tmp_path / "x.py").write_bytes(content)
    results = run_cases(LAB, str(tmp_path / "x.py"), 0)
    assert points(results) == 0 and all(says in result.message for result in results)
    assert not any("\n" in result.message for result in results)


def test_the_former_ops_are_back_after_a_check(tmp_path):
    before = OPS["layernorm"]
    grade(LAB, shipped(LAB), tmp_path, 0)
    assert OPS["layernorm"] is before and "lab_in_work" not in sys.modules


def test_other_line_ends_and_a_byte_order_mark(tmp_path):
    text = shipped(LAB).replace("\n", "\r\n").encode("utf-8-sig")
    (tmp_path / "x.py").write_bytes(text)
    assert points(run_cases(LAB, str(tmp_path / "x.py"), 0)) == MOST_POINTS


# -- the command ------------------------------------------------------------------------------------------------------


def run(folder, *words):
    command = [sys.executable, "-m", "tinygrad2", "lab", *words]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, encoding="utf-8", timeout=600)


def test_a_student_from_start_to_report(tmp_path):
    folder = tmp_path / "my labs é"
    folder.mkdir()
    assert run(folder, "start", "unbroadcast", "layernorm_backward").returncode == 0
    path = folder / "labs" / "unbroadcast.py"
    empty = run(folder, "check", "unbroadcast")
    assert empty.returncode == 1 and "the hole is still empty" in empty.stdout and "0 of 10 points" in empty.stdout

    path.write_text(with_answer(LABS["unbroadcast"], answers("unbroadcast")[0][3]), encoding="utf-8")
    wrong = run(folder, "check", "unbroadcast", "--seed", "7")
    assert wrong.returncode == 1 and "seed 7" in wrong.stdout and "axis 1 was not summed" in wrong.stdout

    path.write_text(shipped(LABS["unbroadcast"]), encoding="utf-8")
    right = run(folder, "check", "unbroadcast")
    assert right.returncode == 0 and "10 of 10 points" in right.stdout and not right.stderr

    report = run(folder, "report")
    assert report.returncode == 1 and "10 of 20 points in 2 labs" in report.stdout
    values = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert values["score"] == 10 and values["extra_data"]["max_score"] == 20
    assert sum(test["score"] for test in values["tests"]) == 10
    assert values["extra_data"]["labs"]["unbroadcast"]["score"] == 10


def test_an_endless_loop_is_ended(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    lab_command(["start", "unbroadcast"])
    endless = "if shape == ():\n    while True:\n        pass\n" + solution(LABS["unbroadcast"])
    (tmp_path / "labs/unbroadcast.py").write_text(with_answer(LABS["unbroadcast"], endless), encoding="utf-8")
    assert lab_command(["check", "unbroadcast", "--time-limit", "3"]) == 1
    out = capfd.readouterr().out
    assert out.count("no end within 3 s") == 1 and "more were not run" in out


def test_a_process_that_ends_itself(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    lab_command(["start", "unbroadcast"])
    text = with_answer(LABS["unbroadcast"], "import os\nos._exit(5)\n")
    (tmp_path / "labs/unbroadcast.py").write_text(text, encoding="utf-8")
    assert lab_command(["check", "unbroadcast"]) == 1
    assert "the process has ended here, with exit code 5" in capfd.readouterr().out


def test_hints_come_one_by_one_and_a_reset_keeps_what_was_there(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    lab_command(["start", "matmul_backward"])
    path = tmp_path / "labs/matmul_backward.py"
    hole = path.read_bytes()
    capsys.readouterr()
    for n in (1, 2, 3, 3):
        lab_command(["hint", "matmul_backward"])
        assert capsys.readouterr().out.count("hint ") == n
    for n in (1, 2):
        path.write_text(f"mine = {n}\n", encoding="utf-8")
        lab_command(["reset", "matmul_backward"])
        assert (tmp_path / f"labs/matmul_backward.previous-{n}.py").read_text(encoding="utf-8") == f"mine = {n}\n"
        assert path.read_bytes() == hole


def test_what_cannot_be_done_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lab_command(["start", "unbroadcast"])
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/progress.json").write_text("[1]", encoding="utf-8")
    for words, says in {
        "start": "give the NAME of a lab",
        "start dance": "there is no lab 'dance'; choose among: unbroadcast",
        "start unbroadcast": "exists already; go on there, or begin again with",
        "check matmul_backward": "does not exist; python -m tinygrad2 lab start matmul_backward writes it",
        "check --folder empty": "no lab is started here",
        "hint matmul_backward": "does not exist",
        "check --seed -1": "--seed must be in 0 ..",
        "check --time-limit 0": "--time-limit must be more than 0",
        "check --time-limit nan": "--time-limit must be more than 0",
        "report --out notes.txt": "exists and is not a report of labs",
        "report --out labs/unbroadcast.py": "is what lab reads, and would be replaced",
        "list --folder other": "is not the progress of labs",
        "learn": "invalid choice: 'learn'",
    }.items():
        with pytest.raises(UserError, match=re.escape(says)):
            lab_command(words.split())
    assert (tmp_path / "notes.txt").read_text(encoding="utf-8") == "mine"


# -- answers that are right -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [1064, 1240])
def test_slopes_that_are_hard_to_measure_refuse_no_right_answer(seed, tmp_path):
    """With these numbers a softmax is nearly saturated: a five-point formula with one step was off by 1e-5."""
    lab = LABS["attention_backward"]
    results = grade(lab, shipped(lab), tmp_path, seed)
    assert points(results) == MOST_POINTS, results


def test_more_digits_than_asked_for_are_a_note(tmp_path):
    lab = LABS["gelu_backward"]
    code = solution(lab).replace("_SCALE", "np.sqrt(2 / np.pi)")
    results = grade(lab, with_answer(lab, "import numpy as np\n" + code), tmp_path, 0)
    assert points(results) == MOST_POINTS
    assert [result.message for result in results if result.message.startswith("note: the numbers are right, but of")]


def test_a_changed_forward_is_noticed(tmp_path):
    """Gradients are measured with it: backward would be right for another function."""
    lab = LABS["softmax_backward"]
    text = with_answer(lab, "return (dout,)\n").replace("        return p\n", "        return x\n")
    results = grade(lab, text, tmp_path, 0)
    assert points(results) == 0
    assert all("forward has another result than in the shipped file" in result.message for result in results)


# -- what is raised and printed ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "code, says",
    [
        ("exit()", "SystemExit: it ends the program; leave out exit() and sys.exit()"),
        ("raise BaseException('mine')", "BaseException: mine"),
        ("raise ValueError('a b\\n' * 1000)", "a b a b a"),
        ("return unbroadcast(dout, shape)", "RecursionError: maximum recursion depth exceeded"),
    ],
)
def test_whatever_is_raised_is_one_line(code, says, tmp_path):
    lab = LABS["unbroadcast"]
    results = grade(lab, with_answer(lab, code + "\n"), tmp_path, 0)
    assert points(results) == 0 and all(says in result.message for result in results)
    assert all(len(result.message) < 400 and "\n" not in result.message for result in results)


def test_an_error_inside_the_engine_has_its_line(tmp_path):
    lab = LABS["softmax_backward"]
    last = grade(lab, with_answer(lab, "return (p * (dout - (dout * p).sum(axis)),)\n"), tmp_path, 0)[-1]
    assert re.match(r"line \d+: ValueError: operands could not be broadcast", last.message)


def test_much_output_is_cut():
    file = io.StringIO()
    limited = Limited(file)
    for _ in range(10):
        limited.write("x" * (MOST_PRINTED // 4))
    assert file.getvalue().count("x") == MOST_PRINTED
    assert file.getvalue().endswith("(more is printed, and not shown)\n")


# -- the command, in folders of all kinds -----------------------------------------------------------------------------


def test_an_empty_file_can_be_started_and_reset(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "labs/unbroadcast.py"
    path.parent.mkdir()
    for action in ("start", "reset"):
        path.write_bytes(b"")
        assert lab_command([action, "unbroadcast"]) == 0
        assert path.read_text(encoding="utf-8") == with_hole(LABS["unbroadcast"])
    assert not list(path.parent.glob("*.previous-*"))


def test_a_reset_names_the_file_that_it_has_made(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    lab_command(["start", "unbroadcast"])
    (tmp_path / "labs/unbroadcast.previous-2.py").write_text("older", encoding="utf-8")
    lab_command(["reset", "unbroadcast"])
    assert "is now labs" + os.sep + "unbroadcast.previous-1.py" in capsys.readouterr().out


def test_what_is_started_does_not_keep_others_from_starting(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["--folder", "my labs"]
    lab_command(["start", "unbroadcast", *words])
    with pytest.raises(UserError, match=re.escape('tinygrad2 lab reset unbroadcast --folder "my labs"')):
        lab_command(["start", "unbroadcast", "causal_mask", *words])
    assert (tmp_path / "my labs/causal_mask.py").exists()


def test_a_folder_that_cannot_be_written_can_be_reported(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    lab_command(["start", "unbroadcast"])

    def refuse(*_, **__):
        raise UserError("progress.json: cannot write into labs (Read-only file system)")

    monkeypatch.setattr(lab_module, "note", refuse)
    assert lab_command(["report"]) == 1
    assert "the points are not noted for `lab list`: progress.json" in capsys.readouterr().out
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["score"] == 0


def test_a_damaged_note_is_named_before_anything_is_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    lab_command(["start", "unbroadcast"])
    (tmp_path / "labs/progress.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match="is not the progress of labs; move it away"):
        lab_command(["check", "unbroadcast"])


# -- the documentation ------------------------------------------------------------------------------------------------


def read(name):
    return (ROOT / "learn" / name).read_text(encoding="utf-8")


def test_the_tables_name_all_labs_and_the_files_they_are_cut_from():
    table = re.findall(r"^\| `(\w+)` \| `([\w./]+)` \| \d+ \|$", read("labs.md"), re.MULTILINE)
    assert sorted(table) == sorted((lab.name, lab.file) for lab in LABS.values())
    assert set(re.findall(r"^\| `(\w+)` \|", read("teachers/mistakes.md"), re.MULTILINE)) == set(LABS)
    assert all(f"`{name}`" in read("teachers/README.md") for name in LABS)
    weeks = read("teachers/plans.md").split("\n## ")[1:]
    assert [plan.split()[0] for plan in weeks] == ["4", "8", "14"]
    for plan in weeks:
        assert len(re.findall(r"^\| \d+ \|", plan, re.MULTILINE)) == int(plan.split()[0])
        assert set(re.findall(r"`(\w+_\w+)`", plan)) <= set(LABS)
    assert all(f"`{name}`" in weeks[-1] for name in LABS)


def test_every_field_of_the_report_is_documented(tmp_path):
    results = grade(LAB, with_hole(LAB), tmp_path, 3)
    report = report_of({LAB.name: entry_of(LAB, "labs/x.py", b"", results, 3, 1)})
    text = read("labs.md").split("## report.json")[1]
    extra = report["extra_data"]
    names = [*report, *report["tests"][0], *extra["labs"][LAB.name], *extra["labs"][LAB.name]["cases"][0]]
    names += [*extra["versions"], *(f"extra_data.{name}" for name in extra)]
    assert [name for name in names if f"`{name}`" not in text and name != "extra_data"] == []
    assert report == json.loads(json.dumps(report))


@pytest.mark.parametrize("name", ["labs.md", "teachers/README.md", "teachers/plans.md", "teachers/mistakes.md"])
def test_links_lead_somewhere(name):
    for target in re.findall(r"\]\(([^)#]+)", read(name)):
        assert target.startswith("http") or (ROOT / "learn" / name).parent.joinpath(target).exists(), target


def test_the_output_in_the_text_is_that_of_the_program(tmp_path):
    code = solution(LAB).replace(" - g.mean(-1, keepdims=True)", "")
    messages = "\n".join(result.message for result in grade(LAB, with_answer(LAB, code), tmp_path, 7))
    for line in re.findall(r"^ {16}(.*)$", read("labs.md"), re.MULTILINE):
        assert line in messages


# -- answers that are nonsense ----------------------------------------------------------------------------------------

JUNK = ("None", "'x'", "()", "[1, [2, 3]]", "3", "1j", "True", "float('nan')", "{}", "object", "(None,) * 2",
        "(None,) * 3", "([1, [2]],) * 2", "([1, [2]],) * 3", "('x',)", "(1, 1j)", "(object(), {}, 'x')")  # fmt: skip


@pytest.mark.parametrize("name", LABS)
def test_nonsense_is_answered_with_a_sentence(name, tmp_path):
    """Never by the bare name of an exception."""
    lab = LABS[name]
    count = solution(lab).count("---\n") + 1
    returns = name not in ("adamw", "matmul_backward", "exact_checkpoint", "tree_allreduce")
    for junk in JUNK:
        code = f"return {junk}\n" if returns else f"da = db = {junk}\n"
        results = grade(lab, with_answer(lab, "---\n".join([code] * count)), tmp_path, 5)
        messages = [result.message for result in results if result.message]
        assert points(results) < MOST_POINTS and not any(re.match(r"\w+Error", m) for m in messages), (junk, messages)
