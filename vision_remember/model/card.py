"""The model card of a saved folder, which then holds everything that a hub repository needs.

    model.save_pretrained("my-model")
    processor.save_pretrained("my-model")
    write_card("my-model", model_id="my-lab/my-model", licence="apache-2.0")      # then: hf upload my-lab/my-model my-model

The licence is asked for and never guessed: it depends on both backbones and on the data.
"""

import json
from pathlib import Path
from string import Template

import torch
from huggingface_hub import ModelCardData

from vision_remember.model.configuration import VisionRememberConfig
from vision_remember.model.embedded import is_on_the_hub, public_name

NEEDED = ("config.json", "generation_config.json", "processor_config.json", "tokenizer.json", "chat_template.jinja")
BODY = Template("""\
---
$metadata
---

# $model_id

A vision-language model with a short prompt: $vision_name sees, `$projector` compresses $seen of $height x $width pixels to
$num_tokens vision tokens, $text_name answers, and between its layers `$refusion` $acts.

| | |
|---|---|
| vision encoder | $vision_name |
| projector | `$projector_options` |
| re-fusion | `$refusion_options` |
| language model | $text_name |
| licence | $licence |

It needs the Python package `vision-remember`; importing it registers the model with the Auto classes of `transformers`, and no code is
loaded from this repository:

```python
import vision_remember  # noqa: F401 - registers the model
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained("$model_id")
processor = AutoProcessor.from_pretrained("$model_id")
```

Training data, measurements and known weaknesses: not stated yet by whoever made the model.
""")


def write_card(folder: str | Path, *, model_id: str, licence: str) -> Path:
    """Write `README.md` into a folder that model and processor were saved to.

    Args:
        folder: What `save_pretrained` of both wrote.
        model_id: Where it will live on the hub, as `lab/name`.
        licence: Hub identifier of the licence, as `apache-2.0`.

    Returns:
        The file.

    Raises:
        ValueError: The folder lacks a file that others will need, or has a card already.
    """
    folder = Path(folder)
    missing = [name for name in NEEDED if not (folder / name).is_file()]
    missing += [] if list(folder.glob("model*.safetensors")) else ["model.safetensors"]
    if missing:
        raise ValueError(f"{folder} lacks {', '.join(missing)}; save the model and its processor there first")
    card = folder / "README.md"
    if card.exists():
        raise ValueError(f"{card} exists; a card that somebody may have written is not overwritten")
    config = VisionRememberConfig.from_pretrained(folder)
    backbones = (config.vision_config, config.text_config)
    vision_name, text_name = (public_name(part._name_or_path) or part.model_type for part in backbones)
    metadata = ModelCardData(
        license=licence,
        library_name="vision-remember",
        pipeline_tag="image-text-to-text",
        base_model=[part._name_or_path for part in backbones if is_on_the_hub(part._name_or_path)] or None,
        tags=["vision-remember", "transformers", config.refusion["type"], config.projector["type"]],
    )
    _, refusion = config.build_plugins(torch.device("meta"))
    layers, (height, width) = ", ".join(map(str, refusion.layers)), config.image_size
    text = BODY.substitute(
        metadata=metadata.to_yaml(),
        model_id=model_id,
        licence=licence,
        vision_name=vision_name,
        text_name=text_name,
        height=height,
        width=width,
        seen="every tile of an image" if config.tiling.is_anyres else "an image",
        num_tokens=config.token_grid.num_cells,
        projector=config.projector["type"],
        refusion=config.refusion["type"],
        projector_options=json.dumps(config.projector),
        refusion_options=json.dumps(config.refusion),
        acts=f"acts after layers {layers} (-1 is before the first, 0)" if layers else "adds nothing",
    )
    card.write_text(text, encoding="utf-8")
    return card
