"""Recipes, freezing, rates, early stopping, and what a run says and keeps."""

import functools
import json
import re
from dataclasses import asdict, replace

import pytest
import torch

from fcnfast import InputError, open_dataset, train
from fcnfast.models import create_model, list_models, vgg
from tests.train_tools import batch, final_state, rows, same, small


def test_each_network_has_its_own_rate_in_the_papers_recipes():
    heavy = train.make_settings({"recipe": "paper-heavy", "model": "fcn8s_vgg16"})
    assert (heavy.lr, heavy.iterations, heavy.momentum) == (1e-14, 100_000, 0.99)
    light = train.make_settings({"recipe": "paper-light", "model": "fcn32s_alexnet", "epochs": 3})
    assert (light.lr, light.grad_accum, light.momentum, light.epochs) == (1e-4, 20, 0.9, 3)
    assert train.make_settings({}) == train.TrainSettings()
    assert train.make_settings({"recipe": "paper-heavy", "lr": 1e-9}).lr == 1e-9
    for recipe in train.RECIPES.values():
        assert set(recipe.own or ()) <= set(list_models())


def test_settings_that_do_not_fit_together():
    for given, message in (
        ({"recipe": "paper-heavy", "model": "fcn32s_alexnet"}, "no learning rate for fcn32s_alex"),
        ({"recipe": "heavy"}, "--recipe must be modern or paper-heavy"),
        ({"epochs": 2, "iterations": 3}, "--epochs or --iterations, not both"),
        ({"crop_size": 0}, "--crop-size 0 takes whole pictures"),
        ({"weights": "a", "weights_backbone": "b"}, "--weights or --weights-backbone"),
        ({"warmup": 200.0}, "--warmup must be at most 1"),
        ({"amp_dtype": "fp16"}, "--amp-dtype has no meaning without --amp"),
    ):
        with pytest.raises(InputError, match=message):
            train.make_settings(given)


def test_a_run_starts_from_the_settings_of_another(scenes, tmp_path):
    first = small(scenes, tmp_path / "a", recipe="paper-light", lr=0.3, iterations=7)
    path = tmp_path / "settings.json"
    path.write_text(json.dumps(asdict(first)))
    again = train.make_settings({"output_dir": "b"}, str(path))
    assert again == replace(first, output_dir="b")
    assert train.make_settings({"epochs": 2}, str(path)).iterations == 0
    for content, message in {"{": "not a JSON", "3": "not the set", '{"rate": 1}': "rate"}.items():
        path.write_text(content)
        with pytest.raises(InputError, match=message):
            train.make_settings({}, str(path))
    with pytest.raises(InputError, match="nowhere.json: No such file"):
        train.make_settings({}, "nowhere.json")
    with pytest.raises(InputError, match="--config or --recipe"):
        train.make_settings({"recipe": "modern"}, str(path))


def test_staged_training_goes_from_coarse_to_fine(scenes, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(vgg, "STAGES", ((2,), (3,), (4,), (5,), (6,)))
    monkeypatch.setattr(vgg, "FULLY_CONNECTED", 7)
    given = {"recipe": "fcn8s-staged", "iterations": 2, "data_path": str(scenes), "device": "cpu"}
    given |= {"output_dir": str(tmp_path), "workers": 0, "val_freq": 9}
    settings = train.make_settings(given)
    assert train.train_stages(settings, train.Processes())
    names = ("fcn32s_vgg16", "fcn16s_vgg16", "fcn8s_vgg16")
    kept = [json.loads((tmp_path / name / "settings.json").read_text()) for name in names]
    assert [k["lr"] for k in kept] == pytest.approx([1e-10, 1e-12, 1e-14])
    assert kept[2]["weights"] == str(tmp_path / "fcn16s_vgg16" / "last.safetensors")
    before, after = (final_state(tmp_path / name)["model"] for name in names[1:])
    assert torch.allclose(before["fc7.weight"], after["fc7.weight"], atol=1e-5)
    said = capsys.readouterr().out
    assert "equals 3.1e-07 on a mean loss" in said  # 3072 pixels
    assert train.train_stages(settings, train.Processes())
    assert capsys.readouterr().out.count("finished after 2 iterations") == 3
    # Killed between the first validation and the first checkpoint of a stage.
    (tmp_path / names[2] / "checkpoint.pt").rename(tmp_path / names[2] / "best.safetensors")
    assert train.train_stages(settings, train.Processes())
    assert "Finished after 2 iterations" in capsys.readouterr().out
    with pytest.raises(InputError, match="needs a network such as fcn8s_vgg16"):
        train.train_stages(replace(settings, model="fcn4s_light"), train.Processes())


@pytest.mark.parametrize("what", ["trunk", "bn"])
def test_what_is_frozen_keeps_its_values(scenes, tmp_path, what):
    run = train.start(small(scenes, tmp_path, freeze=what, ema_decay=0.0))
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    torch.nn.init.normal_(run.model.score.weight)
    for _ in range(2):
        run.step([batch()])
    for name, value in run.model.state_dict().items():
        trunk, norm = name.startswith(("stem", "stages")), ".1." in name and "stages" not in name
        if (what == "trunk" and trunk) or (what == "bn" and "running" in name):
            assert torch.equal(value, before[name]), name
        elif what == "trunk" and norm and "running" in name:
            assert not torch.equal(value, before[name]), name
    assert not torch.equal(run.model.lateral[0][0].weight, before["lateral.0.0.weight"])


def test_every_network_tells_its_trunk():
    for name in list_models():
        with torch.device("meta"):
            model = create_model(name)
        children = dict(model.named_children())
        assert model.trunk_modules and set(model.trunk_modules) <= set(children), name
        outside = [key for key in children if key not in model.trunk_modules]
        assert any("score" in key or "head" in key or "classifier" in key for key in outside), name
        assert not any(key.startswith("score") for key in model.trunk_modules), name


def test_trunk_and_biases_have_rates_of_their_own(scenes, tmp_path):
    run = train.start(small(scenes, tmp_path, lr_backbone=0.1, lr_bias=2.0))
    shares = {g["share"]: g["weight_decay"] for g in run.optimizer.param_groups}
    assert shares == pytest.approx({0.1: 0.01, 0.2: 0.0, 1.0: 0.01, 2.0: 0.0})
    for group in run.optimizer.param_groups:  # biases and norms
        assert {p.dim() for p in group["params"]} == {4 if group["weight_decay"] else 1}
    run.step([batch()])
    rates = [1e-3 * run._lr_factor(0) * g["share"] for g in run.optimizer.param_groups]
    assert [g["lr"] for g in run.optimizer.param_groups] == pytest.approx(rates)


def test_a_run_stops_early_and_can_go_on(scenes, tmp_path, capsys):
    settings = small(scenes, tmp_path, lr=1e-12, ema_decay=0.0, patience=2, val_freq=1)
    train.start(replace(settings, freeze="bn")).train()
    said = capsys.readouterr().out
    for text in (
        "Finished after 9 iterations (3 epochs), 2 validations after the best",
        f"fcnfast evaluate --data-path {scenes} --split val --weights",
        "recipe modern (AdamW",
        "lr 1e-12 is that of a mean loss",
        "8/12: loss",
    ):
        assert text in said
    assert "9/12: loss" not in said
    assert train.resume(str(tmp_path), {}).train()
    assert "finished after 9 iterations" in capsys.readouterr().out
    run = train.resume(str(tmp_path), {"epochs": 5})
    assert run.iterations == 15 and not run.finished
    assert run.train(progress=False) and run.iteration == 12  # not better once more
    assert json.loads((tmp_path / "settings.json").read_text())["epochs"] == 5
    assert [row["val_mean_iu"] != "" for row in rows(tmp_path)].count(True) == 4


def test_blocks_computed_again_change_nothing(scenes, tmp_path, monkeypatch):
    group, ends = [batch()], []
    for again in (False, True):
        run = train.start(small(scenes, tmp_path, checkpoint_activations=again))
        for _ in range(2):
            run.step(group)
        ends.append([run.model.state_dict(), run.average.state_dict()])
    assert same(*ends)
    monkeypatch.setattr(vgg, "FULLY_CONNECTED", 7)
    changes = {"model": "fcn32s_vgg16", "weights": "", "checkpoint_activations": True}
    with pytest.raises(InputError, match="fcn32s_vgg16 is not made of blocks"):
        train.start(small(scenes, tmp_path, **changes))


def test_a_compiled_network_is_trained(scenes, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    ends = []
    for compiled in (False, True):
        run = train.start(small(scenes, tmp_path / str(compiled), compile=compiled, iterations=1))
        assert run.train(progress=False)
        assert hasattr(run.net, "_orig_mod") == compiled
        ends.append(run.model.state_dict())
    torch.testing.assert_close(*ends)


def test_parts_of_a_loss_add_up_to_the_mean_over_all(scenes):
    model = create_model("fcn4s_light", weights=scenes / "tiny.safetensors").eval()
    images = model.preprocess(torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8))
    targets = torch.randint(0, 11, (2, 16, 16))
    targets[1, 2:] = 255
    weight = torch.linspace(0.5, 2, 11)
    whole = model(images, targets, weight=weight)["loss"]
    total = weight[targets[targets < 255]].sum()
    parts = [
        model(images[i : i + 1], targets[i : i + 1], weight=weight, normalizer=n)["loss"]
        for i, n in ((0, total), (1, {"out": float(total)}))
    ]
    torch.testing.assert_close(sum(parts), whole)
    for given, options, message in (
        (targets, {"reduction": "sum", "normalizer": total}, "give reduction='sum' or a normal"),
        (None, {"normalizer": total}, "normalizer need targets"),
        (targets, {"normalizer": {"geo": total}}, "normalizer for 'geo', but the heads are out"),
    ):
        with pytest.raises(ValueError, match=message):
            model(images, given, **options)


def test_a_mean_says_over_how_many_classes_it_is(scenes, tmp_path, capsys):
    """Of classes that are neither in the validation pictures nor predicted there is no IU."""
    pictures = open_dataset("camvid", scenes, "train")
    two = [(image, labels % 2) for image, labels, _ in pictures]
    settings = small(scenes, tmp_path, data_path="", epochs=1, val_freq=1)
    train.start(settings, train=pictures, val=two[:1], table=pictures.table).train()
    assert re.search(r"mean IU [\d.]+ over \d+ of 11 classes", "".join(capsys.readouterr()))


def test_batch_norm_needs_more_than_one_value(scenes, tmp_path):
    with pytest.raises(InputError, match="--batch-size 1, --crop-size 32: batch norm needs more"):
        train.start(small(scenes, tmp_path, batch_size=1)).train(progress=False)


def test_tensorboard(scenes, tmp_path):
    settings = small(scenes, tmp_path, epochs=1, val_freq=1, log="tensorboard")
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ImportError:
        with pytest.raises(InputError, match=r"--log tensorboard needs .*fcnfast\[log\]"):
            train.start(settings).train(progress=False)
        return
    train.start(settings).train(progress=False)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert {"loss", "lr", "images_per_second", "memory_mib"} <= set(events.Tags()["scalars"])
    assert len(events.Scalars("val_mean_iu")) == 1
    assert events.Tags()["images"] == ["val/drive0_6", "val/drive1_7"]
    assert events.Images("val/drive0_6")[0].width == 3 * 64


def test_a_run_trains_the_network_of_its_weights(scenes, tmp_path):
    run = train.start(small(scenes, tmp_path / "run", model="", weights="bundled"))
    assert run.model.name == run.settings.model == "fcn4s_lite0"
