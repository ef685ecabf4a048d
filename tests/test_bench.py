"""The benchmark as a command: its table and JSON, that wrong results are caught, its options."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench import measure, run
from bench.cases import CONTENTS, SUITES, USUAL, WORST
from bench.operations import OPERATIONS
from fcnfast import ops

CPU = torch.device("cpu")
TINY = SUITES["tiny"][0]
TITLES = [f"{o.name} {o.variant}".strip() for o in OPERATIONS]


def rows_of(path: Path) -> list[dict]:
    return json.loads(path.read_text(encoding="utf-8"))["rows"]


def test_command_prints_a_table_and_writes_json(root: Path, tmp_path: Path) -> None:
    """From another folder, with nothing on the path: a bare checkout is enough."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    arguments = ("--suite", "tiny", "--repeats", "2", "--device", "cpu", "--json", "out.json")
    done = subprocess.run(
        (sys.executable, root / "bench" / "run.py", *arguments),
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "profiler" not in done.stderr  # it greets on stderr unless it is told not to
    for title in TITLES:
        assert f"\n{title} " in done.stdout
    for words in (str(TINY), "eager ms", "dense ms", "grouped ms", "fwd+bwd", "bwd", "float64"):
        assert words in done.stdout
    assert "as called ms, GB/s, of copies: not measured" in done.stdout

    about = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert about["device"] == "cpu" and about["torch"] == torch.__version__
    assert about["device_name"] and {"commit", "triton", "python", "fcnfast"} <= about.keys()
    assert about["copy_gb_s"] is None
    rows = about["rows"]
    wanted = {(o.name, "forward") for o in OPERATIONS}
    passes = ("backward", "forward+backward")
    wanted |= {(o.name, which) for o in OPERATIONS if o.trainable for which in passes}
    assert {(row["op"], row["pass"]) for row in rows} == wanted
    contents = {op: {r["content"] for r in rows if r["op"] == op} for op, _ in wanted}
    assert contents["upsample_argmax"] == {USUAL, WORST} and contents["crop_add"] == {USUAL}
    assert contents["upsample_cross_entropy"] == set(CONTENTS) and len(CONTENTS) == 4
    for row in rows:
        assert (row["gb_s"], row["of_copy"]) == (None, None)
        assert row["coarse_bytes"] > 0 and row["outputs"] > 0 and row["moved_bytes"] > 0
        for name, entry in row["entries"].items():
            assert entry["fault"] is None
            assert 0 <= entry["error"] < 1e-5
            assert entry["peak_bytes"] > 0
            took = entry["time_ms"]
            assert 0 < took["low"] <= took["median"] <= took["high"] and took["calls"] == 2
            assert entry["as_called_ms"] is None and entry["cuda_graph"] is None
            if name != "fcnfast":
                ours = row["entries"]["fcnfast"]["time_ms"]["median"]
                assert entry["ratio"] == pytest.approx(took["median"] / ours)


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_every_contestant_is_right_in_other_types(dtype: str, tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    arguments = ["--suite", "tiny", "--repeats", "1", "--device", "cpu", "--dtype", dtype]
    assert run.main([*arguments, "--json", str(path)]) == 0
    found = [e["error"] for row in rows_of(path) for e in row["entries"].values()]
    assert max(found) < (1e-12 if dtype == "float64" else 0.05)


def _wrong_label(x, grid):
    labels = right_argmax(x, grid)
    labels[-1, -1, -1] = x.sum(-1).sum(-1)[-1].argmin()
    return labels


def _off_gradient(x, target, grid, **options):
    loss = right_loss(x, target, grid, **options)
    return loss + (x.sum() - x.sum().detach())


def _one_miscounted(x, target, grid, **options):
    counts = right_confusion(x, target, grid, **options)
    row = counts.sum(1).argmax()
    places = counts[row].argsort()
    counts[row, places[-1]] -= 1
    counts[row, places[0]] += 1
    return counts


def _fails(*_, **__):
    raise NotImplementedError("no such op today")


right_argmax, right_loss, right_upsample, right_confusion = (
    ops.upsample_argmax,
    ops.upsample_cross_entropy,
    ops.upsample,
    ops.upsample_confusion,
)


WRONG = {
    "one label": ("upsample_argmax", _wrong_label),
    "no class": ("upsample_argmax", lambda x, grid: right_argmax(x, grid) + 100),
    "one pixel": ("upsample_confusion", _one_miscounted),
    "a pixel more": ("upsample_confusion", lambda *a, **k: right_confusion(*a, **k) + 1),
    "NaN": ("upsample", lambda x, grid: right_upsample(x, grid) / 0 * 0),
    "a last digit": ("upsample", lambda x, grid: right_upsample(x, grid) * (1 + 3e-5)),
    "shape": ("upsample", lambda x, grid: right_upsample(x, grid)[..., :-1]),
    "gradient alone": ("upsample_cross_entropy", _off_gradient),
    "skip forgotten": ("crop_add", lambda x, skip, offset: x + 0 * skip.sum()),
    "failure": ("upsample", _fails),
}


@pytest.mark.parametrize("how", WRONG)
def test_wrong_op_is_caught_and_not_timed(how, monkeypatch, capsys, tmp_path) -> None:
    name, wrong = WRONG[how]
    calls = []

    def counted(*args, **kwargs):
        calls.append(name)
        return wrong(*args, **kwargs)

    monkeypatch.setattr(ops, name, counted)
    monkeypatch.setattr(measure, "peak_bytes", lambda *_: 1)  # the profiler takes its time
    path = tmp_path / "out.json"
    arguments = ["--suite", "tiny", "--op", name, "--device", "cpu", "--json", str(path)]
    assert run.main([*arguments, "--repeats", "5"]) == 1
    text = capsys.readouterr().out
    fault = "failed" if how == "failure" else "wrong"
    assert f"\n{fault.upper()}: fcnfast in {name}" in text
    assert "WRONG results in" in text
    rows = rows_of(path)
    bad = [r for r in rows if r["entries"]["fcnfast"]["fault"]]
    if how == "gradient alone":
        assert {r["pass"] for r in bad} == {"forward+backward", "backward"}
    else:
        assert bad == rows
        checks = [r for r in rows if r["pass"] != "backward"]  # which both passes together check
        assert len(calls) == len(checks)  # checked once each, never timed
    for row in bad:
        ours, eager = row["entries"]["fcnfast"], row["entries"]["eager"]
        assert ours["time_ms"] is None and ours["peak_bytes"] is None
        assert eager["time_ms"] is not None and eager["ratio"] is None


def test_wrong_or_missing_peer_is_shown(monkeypatch, capsys) -> None:
    operation = next(o for o in OPERATIONS if o.name == "crop_add")
    monkeypatch.setattr(measure, "peak_bytes", lambda *_: 1)
    arguments = ["--suite", "tiny", "--op", "crop_add", "--device", "cpu", "--repeats", "1"]
    monkeypatch.setitem(operation.peers, "eager", lambda p: p.maps[0] + p.maps[1][..., :6, :8])
    assert run.main(arguments) == 1
    assert "WRONG: eager in crop_add" in capsys.readouterr().out

    def no_memory(_):
        raise torch.OutOfMemoryError("tried to allocate too much")

    monkeypatch.setitem(operation.peers, "eager", no_memory)
    assert run.main(arguments) == 0  # a fact about the peer, not an error of ours
    assert "NO MEMORY: eager in crop_add: tried to allocate too much" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "tpu"], "--device must be cpu, cuda or cuda:N, not 'tpu'"),
        (["--device", "cuda:99"], "--device cuda:99: torch finds"),
        (["--json", "/no/such/folder/x.json"], "--json: /no/such/folder/x.json cannot be"),
        (["--json", "."], "--json: . cannot be"),
        (["--seed", "3"], "--seed belongs to --suite drawn"),
        (["--plot", "pyproject.toml"], "--plot: pyproject.toml is no folder"),
        (["--against", "pyproject.toml"], "pyproject.toml is no result of the benchmark"),
    ],
)
def test_bad_options_are_refused_before_anything_runs(arguments, message, capsys) -> None:
    assert run.main(arguments) == 2
    said = capsys.readouterr()
    assert message in said.err and said.err.count("\n") == 1
    assert said.out == ""


def test_baseline_decides_the_exit_code(tmp_path, capsys) -> None:
    baseline, again = tmp_path / "old.json", tmp_path / "new.json"
    arguments = ["--suite", "tiny", "--op", "crop_add", "--device", "cpu", "--repeats", "3"]
    assert run.main([*arguments, "--json", str(baseline)]) == 0
    old = json.loads(baseline.read_text())
    for factor, code in ((1e-3, 0), (1e3, 1)):  # it was a thousand times slower, or faster
        for row in old["rows"]:
            row["entries"]["eager"]["ratio"] *= factor
        again.write_text(json.dumps(old))
        capsys.readouterr()
        assert run.main([*arguments, "--against", str(again)]) == code
        said = capsys.readouterr().out
        assert "3 rows were compared with the baseline" in said
        assert said.count("LOST: crop_add") == 3 * code
        for row in old["rows"]:
            row["entries"]["eager"]["ratio"] /= factor
    assert run.main([*arguments, "--against", str(baseline), "--dtype", "float64"]) == 2
    assert "the baseline's dtype is 'float32', not 'float64'" in capsys.readouterr().err
    assert run.main([*arguments, "--op", "upsample", "--against", str(baseline)]) == 1
    assert "0 rows were compared" in capsys.readouterr().out


def test_no_op_begins_after_the_time(monkeypatch, capsys) -> None:
    monkeypatch.setattr(run.time, "monotonic", iter(range(0, 1000, 40)).__next__)
    arguments = ["--suite", "tiny", "--device", "cpu", "--repeats", "1", "--minutes", "1"]
    assert run.main([*arguments, "--op", "upsample", "crop_add"]) == 0
    said = capsys.readouterr().out
    assert f"NO TIME was left for upsample deconv, {TINY}" in said
    assert f"NO TIME was left for crop_add, {TINY}" in said and "all results of 3 rows" in said


def test_pictures(tmp_path: Path, capsys) -> None:
    pytest.importorskip("matplotlib")
    arguments = ["--suite", "tiny", "--op", "upsample", "upsample_argmax", "--device", "cpu"]
    assert run.main([*arguments, "--repeats", "1", "--plot", str(tmp_path / "new")]) == 0
    drawn = {path.name for path in (tmp_path / "new").iterdir()}
    assert drawn == {"time.png", "memory.png"}


def test_pictures_name_their_extra(monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert run.main(["--plot", "pictures"]) == 2
    assert (
        "--plot: pictures need matplotlib: pip install 'fcnfast[plots]'" in capsys.readouterr().err
    )
