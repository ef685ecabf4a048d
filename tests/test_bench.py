"""The benchmark: its table and JSON, that wrong results are caught, options, and its parts."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from bench import check, measure, networks, report, run
from bench.cases import CONTENTS, SUITES, USUAL, VOID, WORST, Case, content, fitted
from bench.operations import OPERATIONS
from fcnfast import ops

CPU = torch.device("cpu")
TINY = SUITES["tiny"][0]
each_op = pytest.mark.parametrize("operation", OPERATIONS, ids=[o.title for o in OPERATIONS])


def bench(*arguments: str, path: Path | None = None) -> tuple[int, list[dict]]:
    """The tiny suite in this process: the exit code, and the rows of the JSON file."""
    options = ["--suite", "tiny", "--device", "cpu", "--repeats", "1", *arguments]
    code = run.main([*options, *(["--json", str(path)] if path else [])])
    return code, json.loads(path.read_text(encoding="utf-8"))["rows"] if path else []


def test_command_prints_a_table_and_writes_json(root: Path, tmp_path: Path) -> None:
    """From another folder, with nothing on the path: a bare checkout is enough."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    arguments = ("--suite", "tiny", "--repeats", "2", "--device", "cpu", "--json", "out.json")
    command = (sys.executable, root / "bench" / "run.py", *arguments)
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "profiler" not in done.stderr  # it greets on stderr unless it is told not to
    words = (str(TINY), "plain torch: ms", "fwd+bwd", *(f"\n{o.title} " for o in OPERATIONS))
    assert all(word in done.stdout for word in words)

    about = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert about["device"] == "cpu" and about["torch"] == torch.__version__
    assert about["device_name"] and {"commit", "triton", "python", "fcnfast"} <= about.keys()
    assert {(row["op"], row["variant"], row["content"], row["pass"]) for row in about["rows"]} == {
        (o.name, o.variant, name, which)
        for o in OPERATIONS
        for name in o.contents
        for which in ("forward", "backward", "forward+backward")[: 3 if o.trainable else 1]
    }
    for row in about["rows"]:
        assert about["copy_gb_s"] is row["gb_s"] is row["of_copy"] is None
        assert row["coarse_bytes"] > 0 and row["outputs"] > 0 and row["moved_bytes"] > 0
        for name, entry in row["entries"].items():
            took, ours = entry["time_ms"], row["entries"]["fcnfast"]["time_ms"]
            assert entry["fault"] is None and 0 <= entry["error"] < 1e-5
            assert 0 < took["low"] <= took["median"] <= took["high"] and took["calls"] == 2
            assert entry["peak_bytes"] > 0
            assert entry["as_called_ms"] is entry["cuda_graph"] is None
            if name != "fcnfast":
                assert entry["ratio"] == pytest.approx(took["median"] / ours["median"])


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_every_contestant_is_right_in_other_types(dtype, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(measure, "peak_bytes", lambda *_: 1)  # the profiler takes its time
    code, rows = bench("--dtype", dtype, path=tmp_path / "out.json")
    errors = [entry["error"] for row in rows for entry in row["entries"].values()]
    assert code == 0 and max(errors) < (1e-12 if dtype == "float64" else 0.05)


def one_wrong(labels, x):
    labels[-1, -1, -1] = x[-1].sum((1, 2)).argmin()
    return labels


def one_miscounted(counts, x):
    row = counts.sum(1).argmax()
    places = counts[row].argsort()
    counts[row, places[-1]] -= 1
    counts[row, places[0]] += 1
    return counts


def failing(result, x):
    raise NotImplementedError("no such op today")


# The op, and what becomes of its right result for a map x.
WRONG = {
    "no class": ("upsample_argmax", lambda labels, x: labels + 100),
    "one label": ("upsample_argmax", one_wrong),
    "one pixel": ("upsample_confusion", one_miscounted),
    "a pixel more": ("upsample_confusion", lambda counts, x: counts + 1),
    "NaN": ("upsample", lambda fine, x: fine / 0 * 0),
    "a last digit": ("upsample", lambda fine, x: fine * (1 + 3e-5)),
    "shape": ("upsample", lambda fine, x: fine[..., :-1]),
    "gradient alone": ("upsample_cross_entropy", lambda loss, x: loss + (x - x.detach()).sum()),
    "skip forgotten": ("crop_add", lambda both, x: x + 0 * both),
    "failure": ("upsample", failing),
}


@pytest.mark.parametrize("how", WRONG)
def test_wrong_op_is_caught_and_not_timed(how, monkeypatch, capsys, tmp_path) -> None:
    name, spoiled = WRONG[how]
    calls, right = [], getattr(ops, name)

    def wrong(x, *rest, **options):
        calls.append(name)
        return spoiled(right(x, *rest, **options), x)

    monkeypatch.setattr(ops, name, wrong)
    monkeypatch.setattr(measure, "peak_bytes", lambda *_: 1)
    code, rows = bench("--op", name, path=tmp_path / "out.json")
    text = capsys.readouterr().out
    fault = "FAILED" if how == "failure" else "WRONG"
    assert code == 1 and f"\n{fault}: fcnfast in {name}" in text and "WRONG results in" in text
    bad = [r for r in rows if r["entries"]["fcnfast"]["fault"]]
    if how == "gradient alone":
        assert {r["pass"] for r in bad} == {"forward+backward", "backward"}
    else:
        assert bad == rows
        checks = [r for r in rows if r["pass"] != "backward"]  # which both passes together check
        assert len(calls) == len(checks)  # checked once each, never timed
    for row in bad:
        ours, eager = row["entries"]["fcnfast"], row["entries"]["eager"]
        assert ours["time_ms"] is ours["peak_bytes"] is eager["ratio"] is None
        assert eager["time_ms"] is not None


def test_wrong_or_missing_peer_is_shown(monkeypatch, capsys) -> None:
    operation = next(o for o in OPERATIONS if o.name == "crop_add")
    monkeypatch.setitem(operation.peers, "eager", lambda p: p.maps[0] + p.maps[1][..., :6, :8])
    assert bench("--op", "crop_add")[0] == 1
    assert "WRONG: eager in crop_add" in capsys.readouterr().out

    def no_memory(_):
        raise torch.OutOfMemoryError("tried to allocate too much")

    monkeypatch.setitem(operation.peers, "eager", no_memory)
    assert bench("--op", "crop_add")[0] == 0  # a fact about the peer, not an error of ours
    said = capsys.readouterr().out
    assert "NO MEMORY: eager in crop_add" in said and ": tried to allocate too much" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "tpu"], "device 'tpu' is not known"),
        (["--device", "cuda:99"], "device 'cuda:99' cannot be used"),
        (["--device", "meta"], "device 'meta' cannot be used"),
        (["--json", "/no/such/folder/x.json"], "No such file or directory: '/no/such/folder"),
        (["--json", "."], "Is a directory: '.'"),
        (["--repeats", "0"], "--repeats must be above 0, not 0"),
        (["--minutes", "nan"], "--minutes must be above 0, not nan"),
        (["--plot", "no"], "pictures need matplotlib: pip install 'fcnfast[plots]'"),
        (["--against", "pyproject.toml"], "pyproject.toml is not a result of the benchmark"),
        (
            ["--suite", "amortization", "voc"],
            "amortization or interop or shares takes no other",
        ),
        (["--suite", "interop", "--minutes", "3"], "takes no other, nor --plot, --against, --min"),
    ],
)
def test_bad_options_are_refused_before_anything_runs(
    arguments, message, monkeypatch, capsys
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    try:
        code = run.main(arguments)
    except SystemExit as error:  # of argparse
        code = error.code
    said = capsys.readouterr()
    assert code == 2 and message in said.err.splitlines()[-1] and said.out == ""


def test_baseline_decides_the_exit_code(tmp_path, capsys) -> None:
    baseline = tmp_path / "old.json"
    bench("--op", "crop_add", path=baseline)
    old = json.loads(baseline.read_text())
    for factor, code in ((1e-3, 0), (1e6, 1)):  # it was much slower, or much faster
        for row in old["rows"]:
            row["entries"]["eager"]["ratio"] *= factor
        baseline.write_text(json.dumps(old))
        capsys.readouterr()
        assert bench("--op", "crop_add", "--against", str(baseline))[0] == code
        said = capsys.readouterr().out
        assert "3 rows were compared with the baseline" in said
        assert said.count("LOST: crop_add") == 3 * code
    assert bench("--dtype", "float64", "--against", str(baseline))[0] == 2
    assert "the baseline's dtype is 'float32', not 'float64'" in capsys.readouterr().err
    assert bench("--op", "upsample", "--against", str(baseline))[0] == 1
    assert "0 rows were compared" in capsys.readouterr().out


def test_no_op_begins_after_the_time(monkeypatch, capsys) -> None:
    monkeypatch.setattr(run.time, "monotonic", iter(range(0, 1000, 40)).__next__)
    assert bench("--minutes", "1", "--op", "upsample", "crop_add")[0] == 0
    said = capsys.readouterr().out
    assert f"NO TIME was left for upsample deconv, {TINY}" in said
    assert f"NO TIME was left for crop_add, {TINY}" in said and "all results of 3 rows" in said


def test_pictures(tmp_path: Path, capsys) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "new"
    assert bench("--op", "upsample", "upsample_argmax", "--plot", str(path))[0] == 0
    assert {file.name for file in path.iterdir()} == {"time.png", "memory.png"}
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in path.iterdir())
    row = a_row() | {"gb_s": 3000.0, "of_copy": 0.7}
    row["entries"]["eager"].update(time_ms=None, peak_bytes=None, fault="failed")
    about = {"device": "cuda", "device_name": "a GPU", "dtype": "float32", "rows": [row, row]}
    assert len(report.draw(about, path)) == 2


# Times and memory.


def test_calls_are_timed_in_turns() -> None:
    order = []
    calls = {name: lambda name=name: order.append(name) for name in "abc"}
    times = measure.interleaved(calls, 4)
    assert "".join(order) == "abc" * 5  # one round does not count
    assert {t["calls"] for t in times.values()} == {4}
    summary = measure._summary([float(n) for n in range(11)])
    assert summary == {"low": 2.0, "median": 5.0, "high": 8.0, "calls": 11}


def test_gpu_times_come_from_graphs_where_they_can(monkeypatch) -> None:
    testing = pytest.importorskip("triton.testing")
    log = []

    def in_graph(call, rep, return_mode):
        call()
        if log[-1] == "b":
            raise RuntimeError("operation not permitted\nwhen stream is capturing")
        return [1.0, 2.0]

    monkeypatch.setattr(testing, "do_bench_cudagraph", in_graph)
    monkeypatch.setattr(testing, "do_bench", lambda call, warmup, rep, return_mode: [call() or 3.0])
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    calls = {name: lambda name=name: log.append(name) for name in "abc"}
    times = measure._on_gpu(calls, 2, {"c"})
    graphs = {name: entry["cuda_graph"] for name, entry in times.items()}
    assert graphs == {"a": True, "b": "operation not permitted", "c": "it waits for the GPU"}
    assert "".join(log) == "abbc" + "abc" + "abc" * 3
    assert times["a"]["time_ms"]["calls"] == 4 and times["b"]["time_ms"]["calls"] == 2
    assert all(entry["as_called_ms"]["calls"] == 2 for entry in times.values())


def test_peak_counts_what_is_held_at_one_time() -> None:
    megabyte = 1 << 20

    def one_after_another() -> None:
        for _ in range(3):
            torch.empty(megabyte, dtype=torch.uint8)

    def together() -> list[torch.Tensor]:
        return [torch.empty(megabyte, dtype=torch.uint8) for _ in range(3)]

    assert measure.peak_bytes(one_after_another, CPU) == pytest.approx(megabyte, rel=0.01)
    assert measure.peak_bytes(together, CPU) == pytest.approx(3 * megabyte, rel=0.01)


# Cases and operations.


def test_batches_fit_the_device(monkeypatch) -> None:
    for name, suite in SUITES.items():
        cases = fitted(suite, CPU)
        assert {case.images for case in cases} == {2 if name == "tiny" else 1}
        assert len(set(cases)) == len(cases)
    (case, *_), copy = SUITES["ade20k"], 4 * 150 * 512 * 512
    for copies, images in ((1 << 20, 16), (16 * 5, 4), (1, 1)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, free=copies * copy: (free, 0))
        assert [found.images for found in fitted((case,), torch.device("cuda"))] == [images]


def test_contents_are_what_they_are_called() -> None:
    case = Case("VOC", 2, 21, (64, 64), 8)
    for name in CONTENTS:
        kinds = name.split(", ")
        scores, labels = content(name, case, torch.bfloat16, CPU)
        assert scores.shape == (2, 21, 64, 64) and scores.dtype == torch.bfloat16
        assert labels.shape == (2, 512, 512)
        assert set(labels.unique().tolist()) - set(range(21)) == {VOID}
        assert 0.01 < (labels == VOID).double().mean() < 0.2
        # On real score maps 8 to 17 % of the cells between four neighbors have several winners.
        corners = scores.argmax(1).unfold(1, 2, 1).unfold(2, 2, 1).flatten(3)
        mixed = (corners != corners[..., :1]).any(-1).double().mean()
        assert 0.05 < mixed < 0.25 if kinds[0] == "smooth" else mixed > 0.95
        changes = (labels[:, :, 1:] != labels[:, :, :-1]).double().mean()
        assert changes < 0.02 if kinds[1] == "blobs" else changes > 0.9
        if name == USUAL:  # smooth scores are of a network that knows its labels
            winners = scores.argmax(1).repeat_interleave(8, 1).repeat_interleave(8, 2)
            assert (winners == labels).double().mean() > 0.8
        again = content(name, case, torch.bfloat16, CPU)
        assert torch.equal(again[0], scores) and torch.equal(again[1], labels)


def problem_of(operation, case=TINY, name=USUAL):
    problem = operation.problem(case, *content(name, case, torch.float64, CPU))
    return measure.with_gradients(operation, problem) if operation.trainable else problem


@each_op
def test_truth_in_pieces_is_the_whole_truth(operation, monkeypatch) -> None:
    """Rows of an image at a time give what one piece gives, gradients included.

    A backward pass alone gives them again and again.
    """
    problem = problem_of(operation, Case("odd", 2, 3, (6, 10), 2), WORST)
    outcome = measure.call(operation.ours, problem, operation.trainable)
    for piece in (1 << 20, 100):  # everything, and a few rows
        monkeypatch.setitem(check.PIECE, "cpu", piece)
        found = check.errors(operation, problem, {"ours": outcome})["ours"]
        assert found < check.tolerance(torch.float64, True)
    backward = measure.backward_call(operation.ours, problem) if operation.trainable else tuple
    for _ in range(2):
        assert all(torch.equal(a, b) for a, b in zip(backward(), outcome[1:], strict=True))


def test_bytes_that_must_be_moved() -> None:
    """TINY in float32: 480 coarse values, 7680 fine ones, 1536 pixels; a skip of 24 x 26 pixels."""
    coarse, full, labels, filters = 480 * 4, 7680 * 4, 1536 * 8, 5 * 8 * 8 * 4
    moved = {
        "upsample_cross_entropy": (coarse + labels, 2 * coarse),
        "upsample_argmax": (coarse + 1536, None),
        "upsample_confusion": (coarse + labels + 25 * 8, None),
        "upsample resize": (coarse + full, coarse + full),
        "upsample deconv": (coarse + full, coarse + full),
        "deconv learned": (coarse + filters + full, 2 * (coarse + filters) + full),
        "upsample_crop_add deconv x 2": (2.25 * coarse, 1.25 * coarse + 6240 * 4),
        "crop_add": (3 * coarse, coarse + 6240 * 4),
    }
    for operation in OPERATIONS:
        problem = operation.problem(TINY, *content(USUAL, TINY, torch.float32, CPU))
        found, (forward, backward) = operation.moved(problem), moved[operation.title]
        assert found["forward"] == forward
        if operation.trainable:  # the loss makes its gradient in the forward pass
            both = forward + (coarse if operation.result == "loss" else backward)
            assert (found["backward"], found["forward+backward"]) == (backward, both)


# The table and the comparison.


def a_row(ratio: float = 1.0, spread: float = 0.2, **facts) -> dict:
    """A row of crop_add; facts: further keys of its entries."""

    def entry(median: float) -> dict:
        took = {"median": median, "low": median * (1 - spread), "high": median * (1 + spread)}
        keys = ("error", "fault", "reason", "as_called_ms", "cuda_graph")
        return dict.fromkeys(keys) | {"time_ms": took, "peak_bytes": 1000, **facts}

    return {
        "case": vars(TINY), "op": "crop_add", "variant": "", "content": USUAL, "pass": "forward",
        "entries": {"fcnfast": entry(0.5), "eager": entry(0.5 * ratio) | {"ratio": ratio}},
        "gb_s": 3210.0, "of_copy": 0.75,
    }  # fmt: skip


def test_lines_of_the_table() -> None:
    """The fastest first, and why one has no time, or none from a CUDA graph; columns of a GPU."""
    assert "as called ms" not in report.header(gpu=False)
    assert "3210" not in report.line(a_row(), gpu=False)
    header = report.header(gpu=True)
    line = report.line(a_row(as_called_ms={"median": 0.7}), gpu=True)
    for column, value in (("as called ms", "0.700"), ("GB/s", "3210"), ("of copies", "75%")):
        assert line[: header.index(column) + len(column)].endswith(f" {value}")
    assert line.endswith("eager 0.500 (1.00x, 0.0010)")
    assert [report.number(v) for v in (0.0, 1234.5, 0.01234)] == ["0", "1234", "0.0123"]
    row = a_row(3.0)
    entries = row["entries"]
    failed = {"time_ms": None, "fault": "failed", "reason": "no compiler\nfound", "ratio": None}
    entries["compile"] = entries["eager"] | failed | {"peak_bytes": None}
    entries["max"] = entries["eager"] | {"time_ms": {"median": 1.0}, "ratio": 2.0}
    entries["eager"]["cuda_graph"] = "it waits for the GPU"
    line = report.line(row, gpu=False)
    assert line.endswith("max 1.00 (2.00x, 0.0010); eager 1.50! (3.00x, 0.0010); compile FAILED")
    notes = report.footnotes([row], gpu=True)
    where = "in crop_add (smooth, blobs), fwd, tiny"
    assert f"! eager {where}: not in a CUDA graph: it waits for the GPU" in notes
    assert f"FAILED: compile {where}: no compiler" in notes


def test_only_what_is_lost_beyond_noise_is_named(root: Path) -> None:
    def result(*ratios: float, spread: float = 0.01) -> dict:
        rows = [a_row(ratio, spread) | {"variant": f"v{k}"} for k, ratio in enumerate(ratios)]
        return {"rows": rows}

    old = result(4.0, 4.0, 4.0)
    lost, common = report.regressions(result(3.8, 3.0, 9.0), old)
    where = "crop_add v1 (smooth, blobs), forward, tiny, 2 images, stride 4"
    assert common == 3 and lost == [f"{where}: eager 4.00x -> 3.00x (noise 12%)"]
    assert report.regressions(result(3.8, 3.0, spread=0.2), old) == ([], 2)
    failed = result(4.0)
    failed["rows"][0]["entries"]["eager"] = {"time_ms": None, "ratio": None}
    assert report.regressions(failed, old) == ([], 1)
    kept = json.loads((root / "bench" / "results" / "cpu.json").read_text())
    assert report.regressions(kept, kept) == ([], len(kept["rows"]))


# The suites of whole networks; tests/interop has the other.


def test_patches_are_the_windows() -> None:
    image = torch.arange(3 * 500 * 500.0).reshape(1, 3, 500, 500)
    windows = networks.patches(image)
    assert windows.shape == (100, 3, 227, 227)
    assert torch.equal(windows[12], image[0, :, 32 : 32 + 227, 64 : 64 + 227])
    last = windows[99]
    assert torch.equal(last[:, :212, :212], image[0, :, 288:, 288:])
    assert not last[:, 212:].any() and not last[..., 212:].any()


def test_the_amortization_suite(monkeypatch, tmp_path, capsys) -> None:
    """On a small network of the same geometry, with times that are given."""
    small = {"field": nn.Conv2d(3, 1, 200, stride=32), "fc7": nn.Conv2d(1, 4096, 1)}
    monkeypatch.setattr(networks, "alexnet", lambda *_, **__: small)
    taken = iter([10.0, 80.0, 90.0, 30.0, 200.0, 210.0])
    times = lambda calls, repeats: {way: {"median": next(taken)} for way in calls}  # noqa: E731
    monkeypatch.setattr(networks, "interleaved", times)
    path = tmp_path / "out.json"
    arguments = ["--suite", "amortization", "--device", "cpu", "--json", str(path)]
    assert run.main(arguments) == 0
    said = capsys.readouterr().out
    assert "80 (8.0x)" in said and "200 (6.7x)" in said
    assert "120 (5.5x)" in said and "240 (6.5x)" in said  # the paper's
    found = json.loads(path.read_text())["amortization"]
    assert found["ms"]["whole image"]["both"]["median"] == 30 and found["paper_ms"]
    small["field"] = nn.Conv2d(3, 1, 200, stride=64)
    assert run.main(arguments) == 1 and "WRONG: the grid is (5, 5)" in capsys.readouterr().out
