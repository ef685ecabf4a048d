"""transformers: semantic segmentation models, their post-processing, and the Trainer."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from transformers import ConvNextConfig, Trainer, TrainingArguments

from fcnfast import UpsampledLogits, fuse, fuse_report, lazy_logits
from tests.interop.tools import images, labels, same_labels, same_training, spread

CLASSES = 7

STAGES = {"out_features": ["stage1", "stage2", "stage3", "stage4"]}
TREE = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
VIT = {"image_size": 64, "patch_size": 16, "hidden_size": 32, "num_hidden_layers": 4}
VIT |= {"intermediate_size": 32, "num_attention_heads": 2}
BEIT = {"out_indices": [1, 2, 3, 4], "use_mask_token": False, "auxiliary_channels": 8}
DPT = {"backbone_out_indices": [0, 1, 2, 3], "neck_hidden_sizes": [8] * 4, "fusion_hidden_size": 8}
UPERNET = {"hidden_size": 16, "auxiliary_channels": 8, "auxiliary_in_channels": 24}
UPERNET |= {"pool_scales": [1, 2], "backbone_config": ConvNextConfig(**TREE | STAGES)}
MOBILE = {"image_size": 64, "hidden_sizes": [16, 16, 24], "num_attention_heads": 2}
MOBILE |= {"neck_hidden_sizes": [8, 8, 8, 16, 16, 16, 24], "aspp_out_channels": 8}
# Small settings of each network.
MODELS = {
    "Segformer": TREE | {"num_attention_heads": [1, 1, 2, 2], "decoder_hidden_size": 16},
    "Beit": VIT | BEIT,
    "DPT": VIT | DPT,
    "UperNet": UPERNET,
    "MobileViT": MOBILE,
}


def build(name):
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(num_labels=CLASSES, **MODELS[name])
    return getattr(transformers, f"{name}ForSemanticSegmentation")(config)


@pytest.fixture(params=MODELS)
def model(request):
    return spread(build(request.param))


def test_training(model):
    target = labels(CLASSES)
    loss = same_training(model, lambda m: m(pixel_values=images(), labels=target).loss)
    assert 0.5 < loss < 20
    report = fuse_report(model, {"pixel_values": images(), "labels": target})
    heads = [row for row in report if "fused cross_entropy" in row.fused]
    assert heads and all(row.size == (64, 64) for row in heads), [str(row) for row in report]
    assert all(row.real is None or row.real == "torch" for row in heads)


def test_post_processing(model):
    kind = type(model).__name__.partition("For")[0].replace("UperNet", "Segformer")
    processor = getattr(transformers, f"{kind}ImageProcessor")()
    model.eval()
    with torch.no_grad():
        plain = model(images())
    for sizes in (None, [(100, 90), (64, 64)], [(33, 70), (64, 64)]):
        with torch.no_grad(), lazy_logits():
            found = processor.post_process_semantic_segmentation(model(images()), sizes)
        wanted = plain.logits
        for index, one in enumerate(found):
            logits = wanted[index]
            if sizes is not None:
                size = tuple(int(n) for n in sizes[index])
                logits = F.interpolate(logits[None], size=size, mode="bilinear")[0]
            same_labels(one, logits, dim=0)


QUIET = {"report_to": [], "use_cpu": True, "disable_tqdm": True}
STEPS = {"max_steps": 20, "save_steps": 20, "logging_steps": 1, "learning_rate": 1e-3, "seed": 5}
STEPS |= {"per_device_train_batch_size": 2, "per_device_eval_batch_size": 4}
STEPS |= {"remove_unused_columns": False}


class Photos(torch.utils.data.Dataset):
    def __len__(self):
        return 16

    def __getitem__(self, index):
        target = labels(CLASSES, 32, 1)[0].roll(index, 0)
        return {"pixel_values": images(32, 1, index)[0], "labels": target}


def mean_label(prediction):
    return {"mean": float(np.mean(prediction.predictions.argmax(1)))}


@pytest.mark.parametrize("name", ["Segformer", "UperNet"])
def test_trainer(name, tmp_path):
    """20 steps, evaluation, and prediction: the same curve, the same logits."""
    start = build(name)
    results = []
    for prepare in (fuse, lambda m: m):
        model = prepare(copy.deepcopy(start))
        arguments = TrainingArguments(**QUIET, **STEPS, output_dir=str(tmp_path / "run"))
        data = {"train_dataset": Photos(), "eval_dataset": Photos()}
        trainer = Trainer(model, arguments, compute_metrics=mean_label, **data)
        trainer.train()
        curve = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        predicted = trainer.predict(Photos())
        results.append((curve, trainer.evaluate()["eval_loss"], predicted.predictions))
    (curve, loss, logits), (wanted, its_loss, its_logits) = results
    assert len(curve) == 20 and curve[-1] < curve[0]
    np.testing.assert_allclose(curve, wanted, rtol=1e-3)
    assert abs(loss - its_loss) < 1e-3 * its_loss
    assert isinstance(logits, np.ndarray)
    np.testing.assert_allclose(logits, its_logits, atol=1e-2 * np.abs(its_logits).max())


def test_metrics_see_fused_labels(tmp_path):
    model = fuse(spread(build("UperNet")))
    seen = []

    def to_labels(logits, target):
        seen.append(type(logits))
        return logits.argmax(1)

    arguments = TrainingArguments(output_dir=str(tmp_path), **QUIET)
    trainer = Trainer(
        model, arguments, preprocess_logits_for_metrics=to_labels, compute_metrics=lambda p: {}
    )
    found = trainer.predict(Photos())
    assert found.predictions.shape == (16, 32, 32) and UpsampledLogits in seen
    model.eval()
    batch = torch.stack([Photos()[n]["pixel_values"] for n in range(2)])
    with torch.no_grad():
        same_labels(torch.from_numpy(found.predictions[:2]), model(batch).logits * 1)
