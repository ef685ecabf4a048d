"""What the tests of the ops share: grids, maps and labels from hypothesis, and the error rule."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest import mock

import torch
from hypothesis import event
from hypothesis import strategies as st

from fcnfast import reference
from fcnfast.geometry import SamplingGrid
from fcnfast.tiled import _cells, argmax, upsample

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
CHANNELS_LAST = ("channels_last", "channels_last sliced")
LAYOUTS = ("contiguous", "sliced", "transposed", "expanded", *CHANNELS_LAST)
LABELS = (torch.uint8, torch.int16, torch.int32, torch.int64)
_sizes = st.tuples(st.integers(1, 7), st.integers(1, 7))


@st.composite
def grids(draw, most: int = 24) -> SamplingGrid:
    """A grid of any builder: both borders, any stride, crops down to one pixel, down-sampling."""
    in_size = draw(_sizes)
    kind = draw(st.sampled_from(("deconv", "resize", "align", "factor", "centers")))
    size = draw(st.tuples(st.integers(1, most), st.integers(1, most)))
    if kind == "deconv":
        stride = draw(st.sampled_from((1, 2, 3, 4, 5, 8, 16, 32)))
        kernel = draw(st.sampled_from((2 * stride - stride % 2, 2 * stride - 1)))
        full = [(n - 1) * stride + kernel for n in in_size]
        crop = tuple(draw(st.integers(0, f - 1)) for f in full)
        left = tuple(min(most, f - c) for f, c in zip(full, crop, strict=True))
        kept = tuple(draw(st.integers(1, n)) for n in left)
        grid = SamplingGrid.deconv(in_size, stride, kernel, crop=crop, size=kept)
    elif kind == "factor":
        factor = draw(st.sampled_from((0.5, 1.0, 1.1, 1.5, 2.0, 2.7, 4.0)))
        if any(int(n * factor) < 1 for n in in_size):
            factor = 2.0
        grid = SamplingGrid.resize(in_size, scale_factor=factor)
    elif kind == "centers":
        stride = draw(st.sampled_from((1, 2, 4, 8)))
        offset = draw(st.integers(-20, 20)) / 2
        border = draw(st.sampled_from(("zero", "clamp")))
        grid = SamplingGrid.centers(in_size, stride, offset, size, border)
    else:
        grid = SamplingGrid.resize(in_size, size, align_corners=kind == "align")
    return grid


@st.composite
def any_grids(draw, dens=range(1, 10)) -> SamplingGrid:
    """Grids that no builder makes: any position, the axes unlike, also of large integers."""
    axes = []
    for most in (8, 12):
        num, off = draw(st.integers(0, 9)), draw(st.integers(-40, 40))
        den, large = draw(st.sampled_from(dens)), draw(st.sampled_from((1, 1, 2**15 + 1)))
        size, n = draw(st.integers(1, most)), draw(st.integers(1, 6))
        axes.append((n, size, num * large, off * large, den * large))  # the same place, unreduced
    border = draw(st.sampled_from(("zero", "clamp")))
    grid = SamplingGrid(*zip(*axes, strict=True), border)
    event(f"one place along an axis: {0 in grid.num}")
    event(f"large integers: {max(grid.den) > 2**15}")
    return grid


some_grids = st.one_of(grids(), any_grids())


def laid_out(
    values: torch.Tensor, layout: str, dtype: torch.dtype, device: str = "cpu"
) -> torch.Tensor:
    """`values` (N x C x H x W) in `dtype`, inside a larger tensor of poison.

    That is NaN, or labels that are out of range, and that no test ignores.
    """
    n, c, h, w = values.shape
    poison = torch.nan if dtype.is_floating_point else 251 if dtype == torch.uint8 else -777
    shape, view = {
        "contiguous": ((n + 2, c, h, w), lambda x: x[1:-1]),
        "channels_last": ((n + 2, h, w, c), lambda x: x.permute(0, 3, 1, 2)[1:-1]),
        "channels_last sliced": (
            (n + 2, h + 2, w + 2, c + 3),
            lambda x: x.permute(0, 3, 1, 2)[1:-1, 1 : 1 + c, 1:-1, 1:-1],
        ),
        "sliced": ((n + 2, c + 2, h + 2, 2 * w + 2), lambda x: x[1:-1, 1:-1, 1:-1, 1:-1:2]),
        "transposed": ((n + 2, c, w + 2, h + 2), lambda x: x[1:-1, :, 1:-1, 1:-1].mT),
        "expanded": ((n + 2, 1, h, w), lambda x: x[1:-1]),
    }[layout]
    inside = view(torch.full(shape, poison, dtype=dtype, device=device))
    return inside.copy_(values[:, : inside.shape[1]]).expand(n, c, h, w)


@st.composite
def maps(draw, in_size, dtype, batch=None, channels=None) -> torch.Tensor:
    """A score map N x C x h x w in any memory format, of small or large range, ties included."""
    batch = draw(st.integers(1, 2)) if batch is None else batch
    channels = draw(st.integers(1, 5)) if channels is None else channels
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    scale = draw(st.sampled_from((1.0, 1.0, 10.0, 1e4)))
    x = torch.randn(batch, channels, *in_size, generator=generator) * scale
    if draw(st.booleans()):
        x = x.round()  # ties
    return laid_out(x, draw(st.sampled_from(LAYOUTS)), dtype)


@st.composite
def labels(draw, shape, classes, ignore_index) -> torch.Tensor:
    """N x H x W labels as int64: noise, blocks, or one class; some pixels ignored, all, or none."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    target = torch.randint(0, classes, tuple(shape), generator=generator)
    kind = draw(st.sampled_from(("noise", "blocks", "one")))
    if kind != "noise":
        step = 5 if kind == "blocks" else max(shape)
        rows, columns = (torch.arange(n) // step for n in shape[1:])
        target = target[:, rows][:, :, columns]
    void = draw(st.sampled_from((0.0, 0.0, 0.3, 1.0)))
    target[torch.rand(target.shape, generator=generator) < void] = ignore_index
    return target


def counted(labels, target, classes, ignore_index) -> torch.Tensor:
    """(C + 1) x C pixels of each (true class, label), by the definition; last those of no class."""
    counts = torch.zeros(classes + 1, classes, dtype=torch.int64)
    for truth, label in zip(target.flatten().tolist(), labels.flatten().tolist(), strict=True):
        if truth != ignore_index:
            counts[truth if 0 <= truth < classes else classes, label] += 1
    return counts


def holding(target: torch.Tensor, *values: int) -> list[torch.dtype]:
    """The types of labels that hold a target's and further values."""
    held = (int(target.min()), int(target.max()), *values)
    least, most = min(held), max(held)
    return [d for d in LABELS if torch.iinfo(d).min <= least and most <= torch.iinfo(d).max]


def worst(result: torch.Tensor, truth: torch.Tensor) -> float:
    """The largest error against a float64 truth; equal infinities and NaNs count as none."""
    assert result.shape == truth.shape
    a, b = result.detach().cpu().double(), truth.detach().double()
    same = (a == b) | (a.isnan() & b.isnan())
    return torch.where(same, 0.0, (a - b).abs()).amax().item() if a.numel() else 0.0


def assert_accurate(result, truth, torchs: float, *terms) -> None:
    """The error is at most 1.25 times `torchs`, plain torch's in that dtype, plus one ulp.

    The ulp is that of the largest finite value in `terms`, of what is added up: how well a sum can
    be known when its terms cancel.
    """
    largest = max(torch.as_tensor(t).double().nan_to_num(0, 0, 0).abs().max().item() for t in terms)
    ulp = torch.finfo(result.dtype).eps * max(largest, torch.finfo(result.dtype).tiny)
    ulp += 4 * torch.finfo(torch.float64).eps * largest  # the truth is rounded too
    error = worst(result, truth)
    assert error <= 1.25 * torchs + ulp, f"error {error:.3g}, torch's {torchs:.3g}, ulp {ulp:.3g}"


def assert_is_argmax(labels, scores, grid, exact=False) -> None:
    """Each label's score is the largest, up to the rounding of the interpolation.

    Where scores are NaN or infinite, or with `exact`, it is the very label of the definition.
    """
    full = reference.upsample(scores.double(), grid)
    expected, found = full.argmax(1, keepdim=True), labels.cpu().long()[:, None]
    short = full.gather(1, expected) - full.gather(1, found)
    # Scores that lie closer than the arithmetic's rounding may come out in either order.
    eps = torch.finfo(torch.promote_types(scores.dtype, torch.float32)).eps
    corners = scores.double()[scores.isfinite()].abs()  # what cancels in a pixel
    allowed = 4 * eps * corners.amax() if corners.numel() and not exact else -1.0
    assert ((found == expected) | (short <= allowed)).all()


@contextmanager
def in_tiles(elements: int) -> Iterator[None]:
    """The portable ops hold so many values at a time: small maps have several tiles."""
    with (
        mock.patch.object(_cells, "tile_elements", lambda *_: elements),
        mock.patch.object(argmax, "TILE_ELEMENTS", elements),
        mock.patch.multiple(upsample, PIECE_ELEMENTS=elements, ROWS=8, COLUMNS=8),
    ):
        yield


tiles = st.sampled_from((400, 2000, 1 << 18)).map(in_tiles)


def allocations(call: Callable[[], object]) -> list[int]:
    """The bytes of every allocation that a call makes, in order, as torch's profiler sees them."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profiler:
        call()
    events = profiler.profiler.kineto_results.events()
    sizes = [event.nbytes() for event in events if event.name() == "[memory]"]
    return [size for size in sizes if size > 0]


# Classes, and grids of several strips and groups of cells, none with tiles of its own size.
FULL_SIZE = [
    (21, SamplingGrid.resize((32, 40), (256, 320))),
    (150, SamplingGrid.resize((32, 32), (128, 128))),
    (19, SamplingGrid.resize((32, 64), (250, 500), align_corners=True)),
    (21, SamplingGrid.deconv((34, 34), 8, crop=20, size=(250, 240))),
    (2, SamplingGrid.deconv((16, 16), 32, size=(500, 500))),
    (40, SamplingGrid.centers((20, 20), 4.1, 70, (230, 250), "clamp")),  # wide outer cells
]
