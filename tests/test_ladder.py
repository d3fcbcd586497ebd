"""docs/ladder.md: its commands, its table, and the order of the models, in trainings of seconds."""

import json
import pathlib
import re
import shlex

import train_gpt2
from models.families import PRESETS, make_config
from tinygrad2.distributed.world import World

ROOT = pathlib.Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "ladder.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
RUNGS = ["bigram", "mlp", "head", "block", "demo"]
ROW = re.compile(r"^\| `(\w+)` \| [^|]+ \| (\d\.\d\d) \| ([\d,]+) \| `([\w/.]+)` \|$", re.MULTILINE)


def test_the_table_has_the_losses_in_the_order_that_the_text_states():
    rows = ROW.findall(PAGE)
    assert [name for name, *_ in rows] == RUNGS == list(PRESETS)[:5]
    losses = [float(loss) for _, loss, *_ in rows]
    assert 6.93 > losses[0] > losses[1] > losses[2] > losses[3] > losses[4] - 0.02
    assert ("Two blocks end where one does" in PAGE) == (abs(losses[4] - losses[3]) < 0.02)
    for name, _, parameters, file in rows:
        assert int(parameters.replace(",", "")) == make_config(**PRESETS[name]).count_parameters()
        assert (ROOT / file).exists()
    shown = re.search(r"^\| 6\.93 \|(.*)\|$", README, re.MULTILINE)[1]
    assert [float(loss) for loss in shown.split("|")] == losses


def test_the_commands_train_the_rungs_alike():
    commands = [shlex.split(line)[2:] for line in re.findall(r"^python train_gpt2.py.*$", PAGE, re.MULTILINE)]
    parsed = [train_gpt2.parse(flags) for flags in commands]
    assert [preset for *_, preset in parsed] == RUNGS
    assert [config.run_dir for config, *_ in parsed] == [f"ladder/{name}" for name in RUNGS]
    for config, model, _ in parsed:
        first, first_model, _ = parsed[0]
        for name in ("seed", "data", "steps", "batch_size", "val_fraction", "eval_every", "eval_batches"):
            assert getattr(config, name) == getattr(first, name)
        assert (model.block_size, model.vocab_size) == (first_model.block_size, first_model.vocab_size)
    plot = re.search(r"^python -m tinygrad2 plot (.*) --panel val_loss", PAGE, re.MULTILINE)[1]
    assert plot.split() == [f"ladder/{name}" for name in RUNGS]


def final_loss(name, folder, flags):
    """The mean training loss of the last ten steps."""
    files = ["--run-dir", str(folder / name), "--weights-out", str(folder / f"{name}.bin")]
    fast = "--eval-every 0 --sample-tokens 0 --checkpoint-every 0 --batch-size 8 --schedule linear"
    assert train_gpt2.main(World(), ["--model", name, *files, *fast.split(), *flags.split()]) == 0
    lines = (folder / name / "metrics.jsonl").read_text().splitlines()[-10:]
    return sum(json.loads(line)["loss"] for line in lines) / 10


def beginning(folder, n):
    """A file with the first n characters of the bundled stories."""
    text = (ROOT / "data" / "dummy_data.txt").read_text(encoding="utf-8")[:n]
    (folder / "text.txt").write_text(text, encoding="utf-8")
    return folder / "text.txt"


def test_four_rungs_in_order_after_few_steps_on_a_page_of_the_stories(tmp_path):
    """Nearly by heart: what a model cannot see of the past is what it cannot know."""
    common = f"--data {beginning(tmp_path, 2000)} --block-size 32 --vocab-size 512 --steps 240 --warmup-steps 10 "
    flags = {
        "bigram": "",
        "mlp": "--n-context 2 --n-hidden 64",
        "head": "--lr 3e-2",
        "block": "--lr 1e-2 --n-embd 64 --n-head 4",
    }
    losses = [final_loss(name, tmp_path, common + flags[name]) for name in flags]
    assert all(low < 0.9 * high for high, low in zip(losses, losses[1:]))
