import json
import math
import struct
import subprocess
import sys
from dataclasses import replace

import pytest

pytest.importorskip("matplotlib")

from aent_verl.runs import live_changes
from aent_verl.runs.live_changes import Change
from aent_verl.viewing.palette import LIGHT
from aent_verl.viewing.plot import Setting, _moving_mean, figure, plot_run, read_setting

BAND = Setting(title="aent: run", functional="clamped", low=0.4, high=0.6, min=0.0, max=0.1)
CONFIG = """
recommended: {band: {low: 0.4, high: 0.6}}
trainer: {experiment_name: "cpu_${entropy_control.method}"}
entropy_control:
  method: aent
  functional: {name: clamped}
  bonus:
    controller:
      low: ${oc.select:recommended.band.low,0.15}
      high: ${oc.select:recommended.band.high,0.24}
      min: ${oc.select:recommended.band.min,0.0006}
      max: null
"""


def run(count):
    steps = {0: {"val-core/x/acc/mean@4": 0.25}}
    for step in range(1, count + 1):
        steps[step] = {
            "critic/score/mean": step / 100,
            "aent/entropy": 0.5,
            "aent/entropy_full": 0.9,
            "aent/coefficient": 0.01 * (1 + step // 10),
        }
        if step % 20 == 0:
            steps[step]["val-core/x/acc/mean@4"] = 0.5
    return steps


def write(folder, steps, name="metrics.jsonl"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("".join(json.dumps({"step": step, "data": steps[step]}) + "\n" for step in steps))


def line(panel, label):
    (found,) = [line for line in panel.get_lines() if line.get_label() == label]
    return found


def labels(panel):
    legend = panel.get_legend()
    return [text.get_text() for text in legend.get_texts()] if legend else []


def dots(panel):
    return [line for line in panel.get_lines() if line.get_linestyle() == "None"]


def test_three_panels_share_the_step_and_say_what_they_show():
    picture = figure(run(40), BAND)
    reward, entropy, coefficient = picture.axes
    assert [panel.get_title(loc="left") for panel in picture.axes] == ["Reward", "Entropy", "Entropy coefficient"]
    assert [panel.get_ylabel() for panel in picture.axes] == ["reward, accuracy", "entropy (nats)", "coefficient"]
    assert coefficient.get_xlabel() == "training step"
    assert reward.get_xlim() == entropy.get_xlim() == coefficient.get_xlim() == (-0.8, 40.8)
    assert labels(reward) == ["reward", "mean of 5 steps", "validation accuracy"]
    assert labels(entropy) == ["clamped entropy", "full entropy", "band 0.4 to 0.6 nats"]
    assert labels(coefficient) == ["coefficient", "bounds 0 and 0.1"]
    assert picture.get_suptitle() == "aent: run"


def test_the_lines_hold_the_metrics_in_their_styles():
    reward, entropy, coefficient = figure(run(40), BAND).axes
    assert list(line(reward, "reward").get_xdata()) == list(range(1, 41))
    assert list(line(reward, "reward").get_ydata()) == [step / 100 for step in range(1, 41)]
    assert line(reward, "reward").get_linewidth() < line(reward, "mean of 5 steps").get_linewidth()
    accuracy = line(reward, "validation accuracy")
    assert [*zip(accuracy.get_xdata(), accuracy.get_ydata(), strict=True)] == [(0, 0.25), (20, 0.5), (40, 0.5)]
    assert accuracy.get_marker() == "D"
    assert (line(entropy, "clamped entropy").get_linestyle(), line(entropy, "full entropy").get_linestyle()) == (
        "-",
        "--",
    )
    assert set(line(entropy, "clamped entropy").get_ydata()) == {0.5}
    assert set(line(entropy, "full entropy").get_ydata()) == {0.9}
    assert line(coefficient, "coefficient").get_drawstyle() == "steps-mid"
    bounds = [line.get_ydata()[0] for line in coefficient.get_lines() if line.get_color() == LIGHT.muted]
    assert bounds == [0.0, 0.1]


def test_the_band_is_shaded():
    entropy = figure(run(3), BAND).axes[1]
    (band,) = entropy.patches
    assert (band.get_y(), band.get_y() + band.get_height()) == (0.4, pytest.approx(0.6))


@pytest.mark.parametrize("ends", [(None, None), (0.4, None), (None, 0.6)])
def test_no_band(ends):
    entropy = figure(run(3), Setting(title="x", low=ends[0], high=ends[1])).axes[1]
    assert not entropy.patches
    assert labels(entropy) == ["controlled entropy", "full entropy"]


def test_the_full_functional_is_drawn_once():
    assert labels(figure(run(3), Setting(title="x", functional="full")).axes[1]) == ["full entropy"]


def test_a_band_upside_down_is_refused():
    with pytest.raises(ValueError, match=r"band=\(0.6, 0.4\).*low <= high"):
        figure(run(3), Setting(title="x", low=0.6, high=0.4))


def test_one_step_is_a_dot_in_every_panel():
    steps = run(1)
    picture = figure({1: steps[1]}, BAND)
    assert [len(dots(panel)) for panel in picture.axes] == [1, 2, 1]
    assert "mean of 5 steps" not in labels(picture.axes[0])
    assert picture.axes[0].get_xlim() == (0.5, 1.5)


def test_a_value_alone_among_nans_is_a_dot_and_lines_break():
    steps = run(10)
    for step in (4, 6):
        steps[step]["aent/entropy"] = math.nan
    entropy = figure(steps, BAND).axes[1]
    (dot,) = dots(entropy)
    assert list(dot.get_xdata()) == [5]
    assert math.isnan(line(entropy, "clamped entropy").get_ydata()[3])


def test_a_run_without_the_metrics_says_so():
    picture = figure({1: {"other": 1.0}}, Setting(title="x"))
    for panel in picture.axes:
        assert [text.get_text() for text in panel.texts] == ["not in this run's metrics"]
        assert not labels(panel)


def test_moving_mean_is_centred_and_ignores_nan():
    assert _moving_mean([1, 2, 6, 4, 5], 3) == [1.5, 3, 4, 5, 4.5]
    assert _moving_mean([1, 2, 6, 4, 5], 4)[2] == (1 + 2 + 6 + 4) / 4
    assert _moving_mean([1, math.nan, 6], 3) == [1, 3.5, 6]
    assert math.isnan(_moving_mean([math.nan], 3)[0])


@pytest.mark.parametrize(("count", "window"), [(5, 5), (40, 5), (200, 10), (2000, 25)])
def test_the_moving_mean_is_wider_on_longer_runs(count, window):
    assert f"mean of {window} steps" in labels(figure(run(count), BAND).axes[0])


def test_setting_from_the_config_resolves_its_interpolations(tmp_path):
    (tmp_path / "hydra").mkdir()
    (tmp_path / "hydra" / "config.yaml").write_text(CONFIG)
    assert read_setting(tmp_path) == Setting(
        title="aent: cpu_aent", functional="clamped", low=0.4, high=0.6, min=0.0006, max=None
    )


def test_a_value_that_cannot_be_resolved_is_left_out(tmp_path, caplog):
    (tmp_path / "hydra").mkdir()
    (tmp_path / "hydra" / "config.yaml").write_text(CONFIG.replace("oc.select:recommended.band.low", "nowhere:x"))
    setting = read_setting(tmp_path)
    assert (setting.low, setting.high) == (None, 0.6)
    assert "entropy_control.bonus.controller.low" in caplog.text


def test_without_a_config_the_title_is_the_folder(tmp_path):
    assert read_setting(tmp_path) == Setting(title=tmp_path.name)


def test_png_of_a_resumed_run(tmp_path):
    steps = run(6)
    write(tmp_path, {step: steps[step] for step in range(4)}, "metrics.1.jsonl")
    write(tmp_path, {step: steps[step] for step in range(3, 7)})
    path = plot_run(tmp_path)
    assert path == tmp_path / "plot.png"
    png = path.read_bytes()
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", png[16:24]) == (1200, 1260)


def test_output_goes_where_it_is_asked_to(tmp_path):
    write(tmp_path / "run", run(2))
    target = tmp_path / "new" / "folder" / "picture.png"
    assert plot_run(tmp_path / "run", str(target)) == target
    assert target.read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "run" / "plot.png").exists()


def test_the_band_of_the_config_is_drawn(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda picture, *_, **__: seen.append(picture))
    write(tmp_path, run(2))
    (tmp_path / "hydra").mkdir()
    (tmp_path / "hydra" / "config.yaml").write_text(CONFIG)
    plot_run(tmp_path)
    assert "band 0.4 to 0.6 nats" in labels(seen[0].axes[1])
    assert labels(seen[0].axes[2]) == ["coefficient", "bounds 0.0006"]


def test_a_metric_without_a_finite_value_is_drawn_as_nothing():
    steps = run(3)
    for data in steps.values():
        data |= {"aent/entropy": math.nan, "aent/entropy_full": math.inf}
    entropy = figure(steps, Setting(title="x")).axes[1]
    assert entropy.get_ylim() == (0, 1)
    assert not dots(entropy)


def test_without_matplotlib_the_message_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"the plot needs matplotlib: pip install .*\[compare\]"):
        figure(run(1), BAND)


@pytest.mark.slow
def test_pyplot_and_matplotlib_stay_out_of_the_importing_process(tmp_path):
    write(tmp_path, run(2))
    code = (
        "import sys; from aent_verl.viewing.plot import plot_run; print('matplotlib' in sys.modules);"
        f"plot_run({str(tmp_path)!r}); print('matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).split() == ["False", "False"]


def shaped(count, coefficient):
    steps = run(count)
    for step in range(1, count + 1):
        steps[step] |= {"aent/advantages_coefficient": step / count, "aent/coefficient": coefficient}
    return steps


def test_the_weight_of_advantages_takes_the_place_of_a_coefficient_of_zero():
    (_, _, panel) = figure(shaped(10, 0.0), BAND).axes
    assert panel.get_title(loc="left") == "Weight of advantages"
    assert list(line(panel, "weight of A > 0").get_ydata()) == [step / 10 for step in range(1, 11)]
    assert labels(panel) == ["weight of A > 0"]


def test_weight_and_coefficient_have_a_scale_each():
    (_, _, panel, right) = figure(shaped(10, 0.01), BAND).axes
    assert panel.get_title(loc="left") == "Coefficients"
    assert labels(panel)[:2] == ["weight of A > 0", "coefficient"]
    assert list(line(panel, "coefficient").get_ydata()) == [0.01] * 10
    assert list(right.get_lines()[0].get_ydata()) == [step / 10 for step in range(1, 11)]


def test_a_weight_of_one_is_not_drawn():
    steps = run(10)
    for step in range(1, 11):
        steps[step]["aent/advantages_coefficient"] = 1.0
    assert labels(figure(steps, BAND).axes[2])[0] == "coefficient"


def test_target_and_entropy_before_training_are_lines():
    steps = run(10)
    for step in range(1, 11):
        steps[step]["aent/initial_entropy"] = 1.25
    panel = figure(steps, Setting(title="x", functional="full", target=0.2)).axes[1]
    assert set(line(panel, "target 0.2 nats").get_ydata()) == {0.2}
    assert set(line(panel, "before training").get_ydata()) == {1.25}


CHANGES = (
    Change(21, "entropy_control.bonus.controller.low", 0.4, 0.2, "ann@node", "now"),
    Change(21, "entropy_control.bonus.controller.max", 0.1, 0.2, "ann@node", "now"),
    Change(25, "entropy_control.advantages.controller.max", 1.0, 0.5, "ann@node", "now"),
    Change(31, "entropy_control.bonus.coefficient", 0.03, 0.15, "ann@node", "now"),
)


def test_what_was_changed_while_the_run_trained_is_marked():
    reward, entropy, coefficient = figure(run(40), replace(BAND, changes=CHANGES)).axes
    assert [text.get_text() for text in entropy.texts] == ["low=0.2, max=0.2", "advantages.max=0.5", "coefficient=0.15"]
    marks = [
        [line.get_xdata()[0] for line in panel.get_lines() if line.get_linestyle() == ":"]
        for panel in (entropy, coefficient)
    ]
    assert marks == [[20.5, 24.5, 30.5]] * 2
    assert not [line for line in reward.get_lines() if line.get_label() == "" and line.get_linestyle() == ":"]
    assert labels(entropy)[-1] == "band 0.4 to 0.6 nats"


def test_band_and_bounds_follow_what_was_changed():
    pieces = replace(BAND, changes=CHANGES).over(range(1, 41))
    assert [(start, end, one.low, one.high, one.max) for start, end, one in pieces] == [
        (0.5, 20.5, 0.4, 0.6, 0.1),
        (20.5, 40.5, 0.2, 0.6, 0.2),
    ]
    assert BAND.over(range(1, 41)) == [(None, None, BAND)]
    _, entropy, _ = figure(run(40), replace(BAND, changes=CHANGES)).axes
    areas = [area.get_paths()[0].get_extents() for area in entropy.collections]
    # The run has a step 0, the validation before training.
    assert [tuple(area.extents) for area in areas] == [(-0.5, 0.4, 20.5, 0.6), (20.5, 0.2, 40.5, 0.6)]


def test_the_changes_lie_beside_the_checkpoints(tmp_path):
    (tmp_path / "hydra").mkdir()
    (tmp_path / "hydra" / "config.yaml").write_text(CONFIG)
    live_changes.write(tmp_path / "checkpoints", CHANGES)
    assert read_setting(tmp_path).changes == CHANGES
    (tmp_path / "checkpoints").rename(tmp_path / "elsewhere")
    assert read_setting(tmp_path).changes == ()
    (tmp_path / "hydra" / "config.yaml").write_text(
        CONFIG.replace("trainer: {", f"trainer: {{default_local_dir: {tmp_path}/elsewhere, ")
    )
    assert read_setting(tmp_path).changes == CHANGES


def test_damaged_changes_are_left_out_and_named(tmp_path, caplog):
    (tmp_path / "hydra").mkdir()
    (tmp_path / "hydra" / "config.yaml").write_text(CONFIG)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / live_changes.FILE).write_text("{")
    assert read_setting(tmp_path).changes == ()
    assert "changes are left out of the plot" in caplog.text
