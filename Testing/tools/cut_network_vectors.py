"""Cut the networks' reference vectors down to what the repository can carry.

    python Testing/tools/cut_network_vectors.py ../shared

The whole vectors come from the released code run with random weights. A cut keeps the weights of a few early modules,
an input, and a coarse raster of those modules' outputs.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

TARGET = Path(__file__).resolve().parents[1] / "Python" / "vectors"


def main(shared: Path) -> None:
    vectors = shared / "vectors"
    state = torch.load(vectors / "cople_hilab_w8_checkpoint.pt", weights_only=True)["model_state_dict"]
    arrays = np.load(vectors / "cople_hilab_w8_io.npz")
    cut = {f"state/{k}": v.numpy() for k, v in state.items() if k.split(".")[0] in ("in_conv", "bridge0", "down1")}
    cut["x"] = arrays["x4"]
    for tap, step in (("in_conv", 4), ("bridge0", 4), ("down1", 2)):
        cut[f"tap_{tap}"] = arrays[f"tap_{tap}"][..., ::step, ::step]
    np.savez_compressed(TARGET / "coplenet_cut.npz", **cut)

    state = torch.load(vectors / "cares_w8_statedict.pt", weights_only=True)
    arrays = np.load(vectors / "cares_w8_io.npz")
    cut = {f"state/{k}": v.numpy() for k, v in state.items() if k.split(".")[0] in ("encoder1", "down1")}
    # CARAFE is heavy: the kernels of one of the four new pixels (first row, second column), eight output channels
    cut["up1/down.weight"], cut["up1/down.bias"] = state["up1.down.weight"].numpy(), state["up1.down.bias"].numpy()
    cut["up1/encoder.weight"] = state["up1.encoder.weight"].numpy()[1::4]
    cut["up1/encoder.bias"] = state["up1.encoder.bias"].numpy()[1::4]
    cut["up1/out.weight"], cut["up1/out.bias"] = state["up1.out.weight"].numpy()[:8], state["up1.out.bias"].numpy()[:8]
    cut["x"], cut["tap_decoder5"] = arrays["x"], arrays["tap_decoder5"]
    cut["tap_encoder1"], cut["tap_down1"] = arrays["tap_encoder1"][..., ::4, ::4], arrays["tap_down1"][..., ::2, ::2]
    cut["tap_up1"] = arrays["tap_up1"][:, :8, ::2, 1::2]
    np.savez_compressed(TARGET / "caresunet_cut.npz", **cut)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
