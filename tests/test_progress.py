"""What is printed while training, on a terminal and into a file."""

import io

import pytest

from tinygrad2.errors import UserError
from tinygrad2.monitor.metrics import MetricsFile
from tinygrad2.monitor.progress import Progress, duration


class Terminal(io.StringIO):
    def isatty(self):
        return True


def shown(stream, total=4, **options):
    progress = Progress(total, stream=stream, **options)
    for done in range(1, total + 1):
        progress.step(done, f"loss {done}")
        if done == 3:
            progress.note("a note")
    return stream.getvalue()


def test_into_a_file_goes_every_line_and_nothing_else():
    lines = shown(io.StringIO(), keep_every=10).splitlines()
    assert [line.split(" | ")[0] for line in lines if line != "a note"] == [
        "step 1/4 [###---------] loss 1",
        "step 2/4 [######------] loss 2",
        "step 3/4 [#########---] loss 3",
        "step 4/4 [############] loss 4",
    ]
    assert lines.index("a note") == 3 and lines[-1].endswith("| 0s left")


def test_on_a_terminal_lines_are_written_over_but_the_kept_ones():
    text = shown(Terminal(), keep_every=2)
    kept = [line for line in text.split("\n") if line]
    assert len(kept) == 4  # step 1, step 2, the note (in place of step 3), step 4
    assert kept[1].endswith("left") and "loss 2" in kept[1]
    assert kept[2].split("\r\x1b[K")[-1] == "a note" and "loss 3" in kept[2]


def test_on_a_narrow_terminal_a_line_that_is_written_over_does_not_wrap(monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    text = shown(Terminal(), keep_every=4)
    assert "\x1b[Kstep 2/4 [######---\r" in text and "[############] loss 4" in text


def test_other_ranks_print_nothing():
    assert shown(io.StringIO(), enabled=False) == ""


@pytest.mark.parametrize("seconds, text", [(0.2, "0s"), (59.4, "59s"), (75, "1m15s"), (3600, "1h00m"), (7384, "2h03m")])
def test_durations_are_readable(seconds, text):
    assert duration(seconds) == text


def test_metrics_are_on_disk_line_by_line(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text("old\n")
    metrics = MetricsFile(str(path))
    metrics.append({"step": 0, "loss": 1.5})
    assert path.read_text() == '{"step": 0, "loss": 1.5}\n'
    MetricsFile("").append({"step": 0})  # no path, no file
    with pytest.raises(UserError, match="is a folder"):
        MetricsFile(str(tmp_path))
