"""The benchmark: its table and JSON, that wrong results are caught, and that its sums are right."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench import floor, measure, report, run, timing
from bench.cases import CONTENTS, SUITES, VOID, Case, Content, fitted, noisy, smooth, undecided
from bench.check import call, errors, tolerance
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
    for words in (str(TINY), "eager ms", "dense ms", "grouped ms", "fwd+bwd", "float64"):
        assert words in done.stdout
    assert "GB/s and fraction of the floor: not measured" in done.stdout

    about = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert about["device"] == "cpu" and about["torch"] == torch.__version__
    assert about["device_name"] and {"commit", "triton", "python", "fcnfast"} <= about.keys()
    assert about["copy_gb_s"] is None
    rows = about["rows"]
    wanted = {(o.name, "forward") for o in OPERATIONS}
    wanted |= {(o.name, "forward+backward") for o in OPERATIONS if o.trainable}
    assert {(row["op"], row["pass"]) for row in rows} == wanted
    assert {r["content"] for r in rows if r["op"] == "upsample_argmax"} == set(CONTENTS)
    for row in rows:
        assert (row["gb_s"], row["floor_ms"], row["of_floor"]) == (None, None, None)
        for name, entry in row["entries"].items():
            assert entry["fault"] is None
            assert 0 <= entry["error"] < 1e-5
            assert entry["peak_bytes"] > 0
            took = entry["time_ms"]
            assert 0 < took["low"] <= took["median"] <= took["high"] and took["calls"] == 2
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


def _fails(*_, **__):
    raise NotImplementedError("no such op today")


right_argmax, right_loss, right_upsample = (
    ops.upsample_argmax,
    ops.upsample_cross_entropy,
    ops.upsample,
)
WRONG = {
    "one label": ("upsample_argmax", _wrong_label),
    "no class": ("upsample_argmax", lambda x, grid: right_argmax(x, grid) + 100),
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
        assert {r["pass"] for r in bad} == {"forward+backward"}
    else:
        assert bad == rows
        assert len(calls) == len(rows)  # checked once each, never timed
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
    ],
)
def test_bad_options_are_refused_before_anything_runs(arguments, message, capsys) -> None:
    assert run.main(arguments) == 2
    said = capsys.readouterr()
    assert message in said.err and said.err.count("\n") == 1
    assert said.out == ""


def test_calls_are_timed_in_turns() -> None:
    order = []
    calls = {name: lambda name=name: order.append(name) for name in "abc"}
    times = timing.interleaved(calls, 4, CPU)
    assert "".join(order) == "abc" * 5  # one round does not count
    assert {t.calls for t in times.values()} == {4}


def test_quantiles() -> None:
    summary = timing._summary([float(n) for n in range(11)])
    assert (summary.low, summary.median, summary.high, summary.calls) == (2.0, 5.0, 8.0, 11)


def test_peak_counts_what_is_held_at_one_time() -> None:
    megabyte = 1 << 20

    def one_after_another() -> None:
        for _ in range(3):
            torch.empty(megabyte, dtype=torch.uint8)

    def together() -> list[torch.Tensor]:
        return [torch.empty(megabyte, dtype=torch.uint8) for _ in range(3)]

    assert timing.peak_bytes(one_after_another, CPU) == pytest.approx(megabyte, rel=0.01)
    assert timing.peak_bytes(together, CPU) == pytest.approx(3 * megabyte, rel=0.01)


def test_floor_of_the_voc_loss() -> None:
    """16 x 21 x 512^2 at stride 8: 5.5 MB of scores twice and 33.6 MB of labels at 4.3 TB/s."""
    machine = floor.Machine(bandwidth=4.3e12, issue=3.35e13)
    case = Case("VOC", 16, 21, (64, 64), 8)
    operation = next(o for o in OPERATIONS if o.result == "loss")
    labels = torch.empty(16, 512, 512, dtype=torch.int64)
    content = Content(torch.empty(16, 21, 64, 64), labels)
    work = operation.least(operation.problem(case, content), True)
    assert 1e3 * work.bytes / machine.bandwidth == pytest.approx(10.4e-3, rel=0.01)
    assert machine.milliseconds(work) == pytest.approx(10.5e-3, rel=0.01)  # arithmetic is more
    assert floor.Machine(4.3e12, None).milliseconds(work) == pytest.approx(10.4e-3, rel=0.01)


def test_gpu_columns_show_only_what_was_measured() -> None:
    operation = OPERATIONS[0]
    took = timing.Time(0.5, 0.4, 0.6, 3)
    row = measure.Row(TINY, operation, "smooth", False)
    row.entries = {n: measure.Entry(0.0, time=took, peak_bytes=1) for n in ("fcnfast", "eager")}
    titles = report.header(["eager"], gpu=True)
    assert titles.split()[-3:] == ["GB/s", "of", "floor"]
    assert report.line(row, ["eager"], gpu=True).split()[-2:] == ["-", "-"]
    row.gb_s, row.of_floor = 3210.0, 0.75
    assert report.line(row, ["eager"], gpu=True).split()[-2:] == ["3210", "75%"]
    assert "GB/s" not in report.header(["eager"], gpu=False)


@pytest.mark.parametrize("suite", [name for name in SUITES if name != "tiny"])
def test_cpu_takes_one_image_and_says_so(suite: str) -> None:
    cases, notes = fitted(SUITES[suite], CPU)
    assert {case.images for case in cases} == {1}
    assert len(set(cases)) == len(cases)
    assert all("sized down on a CPU" in note for note in notes) and notes


def test_contents_are_what_they_are_called() -> None:
    case = Case("VOC", 2, 21, (64, 64), 8)
    calm, wild = (make(case, torch.bfloat16, CPU) for make in (smooth, noisy))
    for content in (calm, wild):
        assert content.scores.shape == (2, 21, 64, 64) and content.scores.dtype == torch.bfloat16
        assert content.labels.shape == (2, 512, 512)
        values = set(content.labels.unique().tolist())
        assert values - set(range(21)) == {VOID}
        assert 0.01 < (content.labels == VOID).double().mean() < 0.2
    # On real score maps 8 to 17 % of the cells are undecided, on noise nearly all.
    assert 0.05 < undecided(calm.scores) < 0.25
    assert undecided(wild.scores) > 0.95
    changes = [(c.labels[:, :, 1:] != c.labels[:, :, :-1]).double().mean() for c in (calm, wild)]
    assert changes[0] < 0.02 and changes[1] > 0.9
    again = smooth(case, torch.bfloat16, CPU)
    assert torch.equal(again.scores, calm.scores) and torch.equal(again.labels, calm.labels)


@pytest.mark.parametrize("operation", OPERATIONS, ids=TITLES)
def test_truth_in_pieces_is_the_whole_truth(operation, monkeypatch) -> None:
    """Rows of an image at a time give what one piece gives, gradients included."""
    case = Case("odd", 2, 3, (6, 10), 2)
    content = noisy(case, torch.float64, CPU)
    problem = operation.problem(case, content)
    if operation.trainable:
        problem = measure.with_gradients(operation, problem)
    outcome = {"ours": call(operation.ours, problem, operation.trainable)}
    for piece in (1 << 20, 100):  # everything, and a few rows
        monkeypatch.setitem(sys.modules["bench.check"].PIECE, "cpu", piece)
        assert errors(operation, problem, outcome)["ours"] < tolerance(torch.float64, True)


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0"), (1234.5, "1234"), (12.34, "12.3"), (0.01234, "0.0123")]
)
def test_three_digits(value: float, text: str) -> None:
    assert report.number(value) == text
