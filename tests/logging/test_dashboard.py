"""TensorBoard's view of a run, as TensorBoard itself reads it: few tags, one chart per role, the overview first."""

import io
import re

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.custom_scalar.custom_scalars_plugin import CustomScalarsPlugin
from tensorboard.plugins.hparams import backend_context

from jaxstab.logging import LogConfig, RunLogger, dashboard, heat_map
from jaxstab.logging.dashboard import HeatMapTimes, chart_layout, layer_tags

ROLES = ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj")
MEASUREMENTS = ("update_ratio", "grad_norm_effective", "norm")
SCALARS = {"train/loss": 3.0, "train/grad_norm": 0.5, "train/learning_rate": 1e-3, "train/spike": 0.0}
CONFIG = {
    "model.layers": 40,
    "model.bias": False,
    "optimizer.learning_rate": 1e-3,
    "data.files": ("a", "b"),
    "eval.every": 5,
}


def start(workdir, resume=None, attempt=0, every=1, total=20):
    return RunLogger(workdir, LogConfig(every, 0.0), resume, attempt, total, Console(quiet=True), CONFIG)


def arrays(step, layers, heads=0):
    values = step + np.arange(layers, dtype=np.float32)
    names = [f"stability/{measurement}/{role}" for measurement in MEASUREMENTS for role in ROLES]
    return dict.fromkeys([*names, "stability/dead_units"], values) | {
        f"stability/max_attention_logit/{head}": values * (1 + head) for head in range(heads)
    }


@pytest.fixture(scope="module")
def workdirs(tmp_path_factory):
    """Runs of 4 and 40 layers, the second with three heads."""
    root = tmp_path_factory.mktemp("runs")
    for layers, heads in ((4, 0), (40, 3)):
        with start(root / f"layers{layers}", total=3) as run:
            for step in (1, 2, 3):
                run.train(step, SCALARS | {"stability/norm/lm_head": 2.0}, arrays(step, layers, heads))
            run.eval(3, {"eval/validation/loss": 2.5})
            run.complete()
    return root


@pytest.fixture(scope="module")
def board(workdirs):
    """What TensorBoard's server has of both runs."""
    return read(workdirs)


def read(root):
    multiplexer = EventMultiplexer(tensor_size_guidance={"scalars": 0, "images": 0}).AddRunsFromDirectory(str(root))
    return multiplexer.Reload()


def scalar(board, run, tag):
    events = board.Tensors(f"{run}/tensorboard", tag)
    return [(event.step, event.tensor_proto.float_val[0]) for event in events]


def tags(board, run, plugin):
    return set(board.GetAccumulator(f"{run}/tensorboard").PluginTagToContent(plugin))


def test_few_layers_are_all_shown_and_of_many_eight_and_the_extremes(board):
    for layers, shown in ((4, range(4)), (40, (0, 6, 11, 17, 22, 28, 33, 39))):
        run, width = f"layers{layers}", len(str(layers - 1))
        lines = {f"norm/q_proj/layer_{layer:0{width}}": 2.0 + layer for layer in shown}
        if layers == 40:
            lines |= {"norm/q_proj/min_over_layers": 2.0, "norm/q_proj/max_over_layers": 41.0}
        assert {tag for tag in tags(board, run, "scalars") if tag.startswith("norm/q_proj")} == lines.keys()
        assert {tag: dict(scalar(board, run, tag))[2] for tag in lines} == lines
    assert len(tags(board, "layers40", "scalars")) < 1.5 * 10 * len(arrays(1, 40))


def test_every_measurement_is_a_section_and_the_overview_is_the_first(board):
    sections = {tag.split("/")[0] for tag in tags(board, "layers40", "scalars")}
    assert sections == {"Overview", "train", "eval", *MEASUREMENTS, "dead_units", "max_attention_logit"}
    assert min(sections) == "Overview"
    assert (
        scalar(board, "layers4", "Overview/loss")
        == scalar(board, "layers4", "train/loss")
        == [
            (1, 3.0),
            (2, 3.0),
            (3, 3.0),
        ]
    )
    assert scalar(board, "layers4", "Overview/eval_loss") == [(3, 2.5)]
    assert scalar(board, "layers4", "norm/lm_head") == [(1, 2.0), (2, 2.0), (3, 2.0)]


def test_heads_are_shown_by_the_lowest_and_the_highest(board):
    roles = {tag.split("/")[1] for tag in tags(board, "layers40", "scalars") if tag.startswith("max_attention_logit")}
    assert roles == {"min_over_heads", "max_over_heads"}
    assert scalar(board, "layers40", "max_attention_logit/min_over_heads/layer_06")[0] == (1, 7.0)
    assert scalar(board, "layers40", "max_attention_logit/max_over_heads/layer_06")[0] == (1, 21.0)


def test_one_chart_of_custom_scalars_holds_the_layers_of_a_role(board):
    """By TensorBoard's own plugin, which also merges the layouts of several runs."""
    plugin = CustomScalarsPlugin(TBContext(data_provider=MultiplexerDataProvider(board, "logdir")))
    layout = plugin.layout_impl(RequestContext(), "")
    assert "Overview" in layout and layout.index("Overview") < layout.index("dead_units")
    charts = chart_layout(tags(board, "layers40", "scalars"))
    assert next(iter(charts)) == "Overview" and next(iter(charts["Overview"])) == "loss"
    assert charts["norm"].keys() == {*ROLES, "lm_head"}
    assert charts.keys() == {tag.split("/")[0] for tag in tags(board, "layers40", "scalars")}
    for tag in tags(board, "layers40", "scalars"):
        patterns = [chart[0] for section in charts.values() for chart in section.values()]
        assert sum(bool(re.match(pattern, tag)) for pattern in patterns) == 1, tag


def test_a_layout_grows_with_what_is_measured_later(tmp_path):
    with start(tmp_path / "run") as run:
        run.train(1, SCALARS, None)
        run.train(2, SCALARS, {"stability/norm/q_proj": np.ones(2)})
        run.train(3, SCALARS, {"stability/norm/q_proj": np.ones(2)})
    events = read(tmp_path).Tensors("run/tensorboard", "custom_scalars__config__")
    assert [event.step for event in events] == [1, 2]
    assert b"norm/q_proj/" in events[1].tensor_proto.string_val[0]
    assert b"norm/q_proj/" not in events[0].tensor_proto.string_val[0]


def test_heat_maps_are_pictures_of_all_layers(board):
    assert tags(board, "layers40", "images") == {
        "update_ratio/heat_map",
        "grad_norm_effective/heat_map",
        "max_attention_logit/heat_map",
    }
    events = board.Tensors("layers40/tensorboard", "update_ratio/heat_map")
    assert [event.step for event in events] == [1, 3], "the first step, and the last although no minute has passed"
    width, height, png = events[0].tensor_proto.string_val
    assert Image.open(io.BytesIO(png)).size == (int(width), int(height))


def test_heat_maps_keep_their_distance(monkeypatch):
    now = 0.0
    monkeypatch.setattr(dashboard.time, "monotonic", lambda: now)
    times = HeatMapTimes(1000)
    drawn = []
    for step in range(1, 1001):
        now += 5.0 if step < 500 else 100.0
        drawn += [step] * times.due(step, "norm")
    assert drawn[:3] == [1, 13, 25], "a minute apart"
    late = [step for step in drawn if step >= 500]
    assert set(np.diff(late[:-1])) == {10}, "a hundredth of the run apart"
    assert late[-1] == 1000, "and at the end"
    assert times.due(1000, "update_ratio"), "each measurement by itself"


def test_colors_follow_the_values_and_gaps_are_gray():
    """Read off the picture: the brightest cell is the largest value, what has no logarithm is gray."""
    picture = {"a": np.array([1.0, 10.0, np.nan, 100.0]), "b": np.array([1000.0, 1.0, 0.0, np.inf])}
    png, width, height = heat_map.draw_heat_map(picture)
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)
    left, top = heat_map.LEFT * heat_map.DPI, heat_map.TOP * heat_map.DPI
    plot_width = width - (heat_map.LEFT + heat_map.RIGHT) * heat_map.DPI
    plot_height = height - (heat_map.TOP + heat_map.BOTTOM) * heat_map.DPI

    def cell(layer, column):
        return pixels[int(top + plot_height * (layer + 0.5) / 4), int(left + plot_width * (column + 0.5) / 2)]

    green = [cell(layer, 0)[1] for layer in (0, 1, 3)] + [cell(0, 1)[1]]
    assert green == sorted(green) and len(set(green)) == 4, "viridis grows in green"
    for layer, column in ((2, 0), (2, 1), (3, 1)):
        assert tuple(cell(layer, column)) == (211, 211, 211)


@pytest.mark.parametrize("values", [np.zeros(3), np.full(3, np.nan), np.ones(3), np.ones(1)])
def test_a_heat_map_is_drawn_of_anything(values):
    assert heat_map.draw_heat_map({"q_proj": values})[0].startswith(b"\x89PNG")


def test_the_config_is_a_text_and_a_line_of_hparams(workdirs, board):
    (config,) = board.Tensors("layers4/tensorboard", "config/text_summary")
    assert b"    optimizer.learning_rate = 0.001" in config.tensor_proto.string_val[0] and config.step == 0
    context = backend_context.Context(TBContext(data_provider=MultiplexerDataProvider(board, "logdir")))
    metadata = context.hparams_metadata(RequestContext(), "")
    experiment = context.experiment_from_metadata(RequestContext(), "", True, metadata, [])
    assert {info.name for info in experiment.hparam_infos} == CONFIG.keys() - {"eval.every"}
    assert experiment.metric_infos[0].name.tag.startswith("Overview/")
    for run in ("layers4", "layers40"):
        assert {"_hparams_/session_start_info", "_hparams_/session_end_info"} <= metadata[f"{run}/tensorboard"].keys()


def test_a_run_that_was_stopped_is_not_complete(tmp_path):
    with start(tmp_path / "run") as run:
        run.train(1, SCALARS, None)
    assert tags(read(tmp_path), "run", "hparams") == {"_hparams_/session_start_info"}


def test_spikes_are_counted_between_the_points_and_over_resumes(tmp_path):
    with start(tmp_path / "run", every=4) as run:
        for step in range(1, 8):
            run.train(step, SCALARS | {"train/spike": float(step in (2, 3, 7))}, None)
    with start(tmp_path / "run", resume=6, attempt=1, every=4) as run:  # step 7 of the first attempt stays a spike
        for step in range(7, 21):
            run.train(step, SCALARS | {"train/spike": float(step == 12)}, None)
    points = scalar(read(tmp_path), "run", "Overview/spikes")
    assert points == [(1, 0.0), (5, 2.0), (7, 3.0), (11, 3.0), (15, 4.0), (19, 4.0), (20, 4.0)]


def test_the_last_step_is_always_shown(tmp_path):
    with start(tmp_path / "run", every=50) as run:
        for step in range(1, 21):
            run.train(step, SCALARS, {"stability/norm/q_proj": np.full(2, step)})
    board = read(tmp_path)
    assert [step for step, _ in scalar(board, "run", "Overview/loss")] == [1, 20]
    assert scalar(board, "run", "norm/q_proj/layer_1") == [(1, 1.0), (20, 20.0)]


def test_a_layer_that_is_not_finite_shows_in_the_extremes():
    values = np.arange(40, dtype=np.float32)
    values[7] = np.nan  # none of the layers that have a line
    lines = layer_tags({"norm": {"q_proj": values}})
    assert sum(np.isnan(value) for value in lines.values()) == 2


def test_a_layout_that_could_not_be_written_is_written_later(tmp_path, monkeypatch):
    now = 1000.0
    monkeypatch.setattr("jaxstab.logging.tensorboard.time.monotonic", lambda: now)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "tensorboard").write_text("a file")
    with start(tmp_path / "run") as run:
        run.train(1, SCALARS, None)
        (tmp_path / "run" / "tensorboard").unlink()
        run.train(2, SCALARS, None)
        now += 61
        run.train(3, SCALARS, None)
    assert scalar(read(tmp_path), "run", "Overview/loss") == [(3, 3.0)]
    assert [event.step for event in read(tmp_path).Tensors("run/tensorboard", "custom_scalars__config__")] == [3]
