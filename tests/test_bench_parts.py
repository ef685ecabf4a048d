"""The parts of the benchmark: times, bytes, the table's lines, contents, truths, comparisons."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from bench import check, compare, measure, plots, report, timing
from bench.cases import (
    CONTENTS,
    SUITES,
    USUAL,
    VOID,
    WORST,
    Case,
    Content,
    drawn,
    fitted,
    undecided,
)
from bench.cases import content as make_content
from bench.check import backward_call, call, errors, tolerance
from bench.operations import OPERATIONS

CPU = torch.device("cpu")
TINY = SUITES["tiny"][0]
TITLES = [f"{o.name} {o.variant}".strip() for o in OPERATIONS]


def test_calls_are_timed_in_turns() -> None:
    order = []
    calls = {name: lambda name=name: order.append(name) for name in "abc"}
    times = timing.interleaved(calls, 4, CPU)
    assert "".join(order) == "abc" * 5  # one round does not count
    assert {t.own.calls for t in times.values()} == {4}


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


def test_bytes_of_the_voc_loss() -> None:
    """16 x 21 x 512^2 at stride 8: 5.5 MB of scores twice, and 33.6 MB of labels."""
    case = Case("VOC", 16, 21, (64, 64), 8)
    operation = next(o for o in OPERATIONS if o.result == "loss")
    labels = torch.empty(16, 512, 512, dtype=torch.int64)
    content = Content(torch.empty(16, 21, 64, 64), labels)
    moved = operation.moved(operation.problem(case, content))
    assert moved == (5505024 + 33554432, 2 * 5505024, 2 * 5505024 + 33554432)


def test_bytes_of_a_pass() -> None:
    """Two passes that share nothing add up; the loss makes its gradient in the forward pass."""
    for operation in OPERATIONS:
        problem = operation.problem(TINY, make_content(USUAL, TINY, torch.float32, CPU))
        forward, backward, both = operation.moved(problem)
        if operation.trainable:
            apart = forward + backward
            assert (both < apart) if operation.result == "loss" else (both == apart)


def a_row(**gpu: float) -> measure.Row:
    row = measure.Row(TINY, OPERATIONS[-1], USUAL, "forward")
    took = timing.Time(0.5, 0.4, 0.6, 3)
    own = timing.Times(took, timing.Time(0.7, 0.6, 0.8, 3), True) if gpu else timing.Times(took)
    row.entries = {n: measure.Entry(0.0, times=own, peak_bytes=1000) for n in ("fcnfast", "eager")}
    for name, value in gpu.items():
        setattr(row, name, value)
    return row


def test_gpu_columns_show_only_what_was_measured() -> None:
    assert "as called ms" in report.header(["eager"]) and "GB/s" in report.header(["eager"])
    assert report.line(a_row(), ["eager"]).split()[-6:] == ["not", "measured"] * 3
    row = a_row(gb_s=3210.0, of_copy=0.75)
    assert report.line(row, ["eager"]).split()[-3:] == ["0.700", "3210", "75%"]
    notes = report.footnotes([row], ["eager"], gpu=True)
    assert not any("not measured" in note or "CUDA graph:" in note for note in notes)


def test_a_call_that_no_graph_holds_is_marked() -> None:
    row = a_row(gb_s=1.0, of_copy=0.5)
    took = row.entries["eager"].times
    row.entries["eager"].times = timing.Times(took.own, took.called, "it waits for the GPU")
    assert "0.500!  1.00x" in report.line(row, ["eager"])
    (note,) = (n for n in report.footnotes([row], ["eager"], gpu=True) if n.startswith("!"))
    assert "eager in crop_add, fwd" in note and note.endswith("graph: it waits for the GPU")
    assert report.as_dict(row)["entries"]["eager"]["cuda_graph"] == "it waits for the GPU"


class Gpu:
    """What timing asks of torch.cuda, without one: a graph's replay repeats its call."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, refuses: str = "") -> None:
        self.log: list[str] = []
        gpu = self

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing

            def record(self) -> None:
                self.place = len(gpu.log)

            def elapsed_time(self, end: "Event") -> float:
                return float(end.place - self.place)

        class Graph:
            def replay(self) -> None:
                gpu.log.append("replay")

        @contextmanager
        def graph(_: Graph, stream: str) -> Iterator[None]:
            assert stream == "side"
            yield
            if gpu.log[-1] == refuses:
                raise RuntimeError("operation not permitted\nwhen stream is capturing")

        names = {"CUDAGraph": Graph, "graph": graph, "Event": Event}
        names |= {"synchronize": lambda: None, "current_stream": lambda: "side"}
        for name, value in names.items():
            monkeypatch.setattr(torch.cuda, name, value)
        empty = torch.empty
        small = lambda *_, device, dtype: empty(1, dtype=dtype)  # noqa: E731 - the cache to flush
        monkeypatch.setattr(timing.torch, "empty", small)


def test_gpu_times_come_from_graphs_where_they_can(monkeypatch) -> None:
    gpu = Gpu(monkeypatch, refuses="b")
    calls = {name: lambda name=name: gpu.log.append(name) for name in "abc"}
    times = timing.interleaved(calls, 2, torch.device("cuda"), {"c": "it waits"})
    assert times["a"].graph is True and times["c"].graph == "it waits"
    assert times["b"].graph == "operation not permitted"
    warmed = gpu.log.index("replay")
    assert gpu.log[:warmed].count("a") == gpu.log[:warmed].count("b") == timing.WARM_UP + 1
    assert gpu.log[:warmed].count("c") == 0
    assert gpu.log[warmed:] == ["replay", "b", "c"] * 3 + ["a", "b", "c"] * 3
    assert all(t.called is not None and t.called.calls == 2 for t in times.values())


@pytest.mark.parametrize("suite", [name for name in SUITES if name != "tiny"])
def test_cpu_takes_one_image_and_says_so(suite: str) -> None:
    cases, notes = fitted(SUITES[suite], CPU)
    assert {case.images for case in cases} == {1}
    assert len(set(cases)) == len(cases)
    assert all("sized down on a CPU" in note for note in notes) and notes


def test_drawn_cases_come_again_with_their_seed() -> None:
    assert drawn(7) == drawn(7) != drawn(8)
    for case in (case for seed in range(50) for case in drawn(seed)):
        assert case.images == 1 and 19 <= case.classes <= 171 and case.stride in (4, 8, 16, 32)
        assert all(320 - case.stride < size <= 640 for size in case.size)


def test_contents_are_what_they_are_called() -> None:
    case = Case("VOC", 2, 21, (64, 64), 8)
    made = {name: make_content(name, case, torch.bfloat16, CPU) for name in CONTENTS}
    for name, content in made.items():
        scores, labels = name.split(", ")
        assert content.scores.shape == (2, 21, 64, 64) and content.scores.dtype == torch.bfloat16
        assert content.labels.shape == (2, 512, 512)
        values = set(content.labels.unique().tolist())
        assert values - set(range(21)) == {VOID}
        assert 0.01 < (content.labels == VOID).double().mean() < 0.2
        # On real score maps 8 to 17 % of the cells are undecided, on noise nearly all.
        mixed = undecided(content.scores)
        assert 0.05 < mixed < 0.25 if scores == "smooth" else mixed > 0.95
        changes = (content.labels[:, :, 1:] != content.labels[:, :, :-1]).double().mean()
        assert changes < 0.02 if labels == "blobs" else changes > 0.9
    agree = (
        (
            made[USUAL].scores.argmax(1).repeat_interleave(8, 1).repeat_interleave(8, 2)
            == made[USUAL].labels
        )
        .double()
        .mean()
    )
    assert agree > 0.8  # smooth scores are of a network that knows its labels
    again = make_content(USUAL, case, torch.bfloat16, CPU)
    assert all(torch.equal(a, b) for a, b in zip(again, made[USUAL], strict=True))


@pytest.mark.parametrize("operation", OPERATIONS, ids=TITLES)
def test_truth_in_pieces_is_the_whole_truth(operation, monkeypatch) -> None:
    """Rows of an image at a time give what one piece gives, gradients included."""
    case = Case("odd", 2, 3, (6, 10), 2)
    problem = operation.problem(case, make_content(WORST, case, torch.float64, CPU))
    if operation.trainable:
        problem = measure.with_gradients(operation, problem)
    outcome = {"ours": call(operation.ours, problem, operation.trainable)}
    for piece in (1 << 20, 100):  # everything, and a few rows
        monkeypatch.setitem(check.PIECE, "cpu", piece)
        assert errors(operation, problem, outcome)["ours"] < tolerance(torch.float64, True)


def test_backward_alone_gives_the_gradients_again_and_again() -> None:
    for operation in filter(lambda o: o.trainable, OPERATIONS):
        content = make_content(USUAL, TINY, torch.float64, CPU)
        problem = measure.with_gradients(operation, operation.problem(TINY, content))
        _, *wanted = call(operation.ours, problem, True)
        backward = backward_call(operation.ours, problem)
        for _ in range(2):
            assert all(torch.equal(a, b) for a, b in zip(backward(), wanted, strict=True))


def result_of(*ratios: float, spread: float = 0.01, **about: str) -> dict:
    """A measurement of one row for each ratio to eager."""

    def entry(median: float) -> dict:
        took = {"median": median, "low": median * (1 - spread), "high": median * (1 + spread)}
        return {"time_ms": took}

    rows = []
    for k, ratio in enumerate(ratios):
        row = report.as_dict(a_row()) | {"variant": f"v{k}"}
        row["entries"] = {"fcnfast": entry(1.0), "eager": entry(ratio) | {"ratio": ratio}}
        rows.append(row)
    return {"device_name": "a GPU", "dtype": "float32", "rows": rows} | about


def test_only_what_is_lost_beyond_noise_is_named() -> None:
    old = result_of(4.0, 4.0, 4.0)
    lost, common = compare.regressions(result_of(3.8, 3.0, 9.0), old)
    assert common == 3
    assert lost == [
        "crop_add v1 (smooth, blobs), forward, tiny, 2 images, stride 4: eager 4.00x -> 3.00x "
        "(noise 12%)"
    ]
    assert compare.regressions(result_of(3.8, 3.0, spread=0.2), old) == ([], 2)
    failed = result_of(4.0)
    failed["rows"][0]["entries"]["eager"] = {"time_ms": None, "ratio": None}
    assert compare.regressions(failed, old) == ([], 1)


def test_pictures_of_a_gpu(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rows = [report.as_dict(a_row(gb_s=3000.0, of_copy=0.7)) for _ in range(2)]
    about = {"device": "cuda", "device_name": "a GPU", "dtype": "float32", "rows": rows}
    names = [path.name for path in plots.draw(about, tmp_path, "fp32-")]
    assert names == ["fp32-time.png", "fp32-memory.png"]
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in names)


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0"), (1234.5, "1234"), (12.34, "12.3"), (0.01234, "0.0123")]
)
def test_three_digits(value: float, text: str) -> None:
    assert report.number(value) == text
