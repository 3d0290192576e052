"""The estimate against what autograd really keeps, on backbones small enough to train here."""

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from vision_remember.model import VisionRememberConfig, VisionRememberForConditionalGeneration
from vision_remember.training.memory import RUNTIME, activations, memory_per_gpu
from vision_remember.training.recipe import TrainingSection

ROWS, LENGTH = 3, 200
PARTS = ("encoder", "projector", "refusion", "language_model")


def training(trainable=PARTS, **options) -> TrainingSection:
    return TrainingSection(trainable=trainable, learning_rates={}, steps=1, batch_size=ROWS, **options)


@pytest.fixture(scope="module")
def config() -> VisionRememberConfig:
    return shaped(decoder_layers=4)


def shaped(decoder_layers: int) -> VisionRememberConfig:
    shape = {"hidden_size": 64, "intermediate_size": 256, "num_attention_heads": 4}
    return VisionRememberConfig(
        vision_config={"model_type": "clip_vision_model", "num_hidden_layers": 4, "image_size": 96, "patch_size": 8, **shape},
        text_config={"model_type": "qwen2", "num_hidden_layers": decoder_layers, "num_key_value_heads": 2, "vocab_size": 500, **shape},
        projector={"type": "avg_pool", "scale": 2},
        refusion={"type": "remember", "layers": [0, 1], "levels": [2, 3, 4]},
        image_token_id=499,
        turn_start_token_id=498,
        turn_end_token_id=497,
    )  # fmt: skip


def kept_bytes(config, trainable, *, checkpointing: bool, precision: str = "float32") -> int:
    """Bytes of distinct storages that a forward pass keeps for its backward pass, parameters and the head's aside."""
    torch.manual_seed(0)
    model = VisionRememberForConditionalGeneration(config).train()
    if checkpointing:
        model.activation_checkpointing_enable()
    for part, members in model.parts().items():
        for _, parameter in members:
            parameter.requires_grad_(part in trainable)
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    seen: dict[int, tuple[int, torch.Tensor]] = {}  # the tensors are held, so that no address is used twice

    def keep(tensor):
        storage = tensor.untyped_storage()
        is_of_head = tensor.shape[-1:] == (config.text_config.vocab_size,)
        if storage.data_ptr() not in own and not is_of_head:
            seen[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    ids = torch.randint(0, 400, (ROWS, LENGTH))
    ids[:, 4:40] = config.image_token_id
    weights = sum(p.numel() for p in model.parameters()) * 2
    with (
        saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=precision != "float32"),
    ):
        model(input_ids=ids, pixel_values=torch.randn(ROWS, 3, 96, 96), labels=ids, use_cache=False)
    found = sum(size for size, _ in seen.values())
    return (
        found if precision == "float32" else found - weights
    )  # autocast's copies of the weights stand in another line


@pytest.mark.parametrize("trainable", [PARTS, PARTS[1:]])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_layers_keep_what_the_formula_says(config, trainable, precision):
    """Masks, statistics and what the projector keeps are left out, and what the CPU's attention keeps is not what a GPU's does."""
    estimate = activations(config, training(trainable, precision=precision), rows=ROWS, length=LENGTH)
    found = kept_bytes(config, trainable, checkpointing=False, precision=precision)
    expected = sum(
        size for part, size in estimate.items() if part != "head" and (part != "encoder" or "encoder" in trainable)
    )
    assert found == pytest.approx(expected, rel=0.2)


def test_a_checkpointed_layer_keeps_its_input():
    shallow, deep = shaped(decoder_layers=4), shaped(decoder_layers=12)
    chosen = training(activation_checkpointing=True)
    estimates = [sum(activations(config, chosen, rows=ROWS, length=LENGTH).values()) for config in (shallow, deep)]
    found = [kept_bytes(config, PARTS, checkpointing=True) for config in (shallow, deep)]
    assert found[1] - found[0] == estimates[1] - estimates[0] == 8 * 4 * ROWS * LENGTH * 64


def test_what_is_held_per_parameter(config):
    parameters = {"projector": {"total": 10, "trainable": 10}, "language_model": {"total": 90, "trainable": 0}}
    one = memory_per_gpu(config, parameters, training(), rows=1, length=8, num_gpus=1)
    many = memory_per_gpu(config, parameters, training(precision="bfloat16"), rows=1, length=8, num_gpus=4)
    assert (one.weights, one.copies, one.gradients, one.buckets, one.optimizer) == (400, 0, 40, 0, 80)
    assert (many.weights, many.copies, many.gradients, many.buckets, many.optimizer) == (400, 200, 40, 40, 80)
    assert one.total == 400 + 40 + 80 + RUNTIME + one.activations
