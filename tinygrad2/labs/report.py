"""The report of checked labs as JSON: the fields that Gradescope reads, and in extra_data ours. See learn/labs.md."""

import datetime
import hashlib
import platform

import numpy as np

import tinygrad2
from tinygrad2.errors import UserError
from tinygrad2.io.files import read_json

FORMAT, VERSION = "tinygrad2-lab-report", 1


def entry_of(lab, path, content, results, seed, hints):
    """One lab of the report. `content`: bytes of the student's file, None if there is none."""
    return {
        "title": lab.title,
        "score": sum(result.points for result in results),
        "max_score": lab.most,
        "started": content is not None,
        "hints_shown": hints,
        "hints": len(lab.hints),
        "seed": seed,
        "cut_from": lab.file,
        "file": path,
        "sha256": hashlib.sha256(content).hexdigest() if content is not None else None,
        "cases": [
            {"title": result.title, "points": result.points, "max_points": result.most, "passed": result.passed,
             "message": result.message}
            for result in results
        ],
    }  # fmt: skip


def report_of(labs):
    """The complete report of {name: entry_of(...)}."""
    tests = [
        {"name": f"{name}: {case['title']}", "number": f"{i}.{j}", "score": case["points"],
         "max_score": case["max_points"], "status": "passed" if case["passed"] else "failed",
         "output": case["message"], "visibility": "visible"}
        for i, (name, lab) in enumerate(labs.items(), 1)
        for j, case in enumerate(lab["cases"], 1)
    ]  # fmt: skip
    score, most = (sum(lab[field] for lab in labs.values()) for field in ("score", "max_score"))
    return {
        "score": score,
        "output": f"{score} of {most} points in {len(labs)} lab{'s' * (len(labs) != 1)}",
        "visibility": "visible",
        "stdout_visibility": "visible",
        "tests": tests,
        "extra_data": {
            "format": FORMAT,
            "version": VERSION,
            "max_score": most,
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "versions": {"tinygrad2": tinygrad2.__version__, "python": platform.python_version(),
                         "numpy": np.__version__, "system": platform.platform()},
            "labs": labs,
        },
    }  # fmt: skip


def is_report(path):
    """Is this file such a report?"""
    try:
        values = read_json(path)
        return values["extra_data"]["format"] == FORMAT
    except (UserError, KeyError, TypeError):
        return False
