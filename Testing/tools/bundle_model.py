"""Make a bundled model: float16 weights with the card that stands beside them.

    python Testing/tools/bundle_model.py CHECKPOINT Resources/Models/coplenet-ctseg.json

The card is written by hand; network, arguments and hash in it are filled in here, in the JSON file and in the weights.
Convolutions are rounded to the 8 significant bits of bfloat16 first: the lowest bits of a float16 can't be compressed,
and a repository keeps every version of a model.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from COVIDLesionSegLib.files import write_json
from COVIDLesionSegLib.models import ModelCard, load_checkpoint, save_model


def main(checkpoint: Path, card_file: Path) -> None:
    card = ModelCard.from_json(card_file.read_text(encoding="utf-8"))
    network = load_checkpoint(checkpoint, network=card.network).network
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1:
                parameter.copy_(parameter.bfloat16())
    card = save_model(network, card, card_file.with_suffix(".safetensors"), dtype="float16")
    write_json(card_file, card.to_json())


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
