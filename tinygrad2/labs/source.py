"""From the shipped source to a file with a hole, and back."""

import os
import re
import textwrap

from tinygrad2.errors import UserError
from tinygrad2.io.files import atomic_write, may_exist, read_bytes
from tinygrad2.system.installation import PROJECT_ROOT

_BEGIN = re.compile(r"^( *)# lab: begin (\w+)\n", re.MULTILINE)


def shipped(lab):
    """The text of the file that the lab is cut from."""
    return read_bytes(os.path.join(PROJECT_ROOT, *lab.file.split("/"))).decode("utf-8")


def regions(lab, text):
    """[(start, end, indentation)] of what stands between the two marker lines of the lab, each place in `text`."""
    found = []
    for match in _BEGIN.finditer(text):
        if match[2] == lab.name:
            end = text.index(f"{match[1]}# lab: end {lab.name}\n", match.end())
            found.append((match.end(), end, match[1]))
    if not found:
        raise UserError(f"{lab.file}: has no line `# lab: begin {lab.name}`; install tinygrad2 again")
    return found


def solution(lab):
    """The shipped lines between the markers, without their indentation; several places are separated by `---`."""
    text = shipped(lab)
    return "---\n".join(textwrap.dedent(text[start:end]) for start, end, _ in regions(lab, text))


def with_answer(lab, answer):
    """The shipped file with `answer`, in the form of `solution`, between the markers."""
    text = shipped(lab)
    places = regions(lab, text)
    parts = answer.split("---\n") if len(places) > 1 else [answer]
    for (start, end, indent), part in reversed(list(zip(places, parts, strict=True))):
        text = text[:start] + textwrap.indent(part, indent) + text[end:]
    return text


def with_hole(lab):
    """The file that a student gets: the shipped one with the task in place of each part to be written.

    No other line is changed, except that the markers of other labs are left out.
    """
    text = shipped(lab)
    places = regions(lab, text)
    hole = f'raise NotImplementedError("lab {lab.name}: this part is still to be written")\n'
    task = textwrap.fill(" ".join(lab.task.split()), 100, initial_indent="# ", subsequent_indent="# ") + "\n"
    text = with_answer(lab, "---\n".join([task + hole] + [hole] * (len(places) - 1)))
    others = rf"^ *# lab: (begin|end) (?!{lab.name}\n)\w+\n"
    text = re.sub(others, "", text, flags=re.MULTILINE)
    head = [f"Lab {lab.name}: {lab.title}.", f"Cut from {lab.file}; look for `# lab: begin {lab.name}`.",
            f"Check it with: python -m tinygrad2 lab check {lab.name}"]  # fmt: skip
    return "".join(f"# {line}\n" for line in head) + "\n" + text


def path_of(lab, folder):
    """The student's file of a lab."""
    return os.path.join(folder, f"{lab.name}.py")


def is_started(lab, folder):
    """Has the student a file of this lab? Of an empty one nothing would be lost."""
    path = path_of(lab, folder)
    return may_exist(path) and (os.path.isdir(path) or os.path.getsize(path) > 0)


def write_hole(lab, folder):
    """Write the student's file, which must not have been started; returns its path."""
    path = path_of(lab, folder)
    with atomic_write(path) as file:
        file.write(with_hole(lab).encode("utf-8"))
    return path
