"""The loss of naming what lies on each token, against PyTorch's binary cross-entropy."""

import numpy as np
import torch

from minflux.train.labels import RARE, Listener, label_loss, label_shapes
from minflux.world.labels import CLASSES


def test_the_loss_is_pytorchs(nx):
    rng = np.random.default_rng(0)
    p = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in label_shapes(6).items()}
    img = (9 * rng.standard_normal((2, 5, 6))).astype(np.float32)  # logits to ±60 and more
    shares = rng.random((2, 5, len(CLASSES))).astype(np.float32)
    z = torch.tensor(img) @ torch.tensor(p["weight"]).T + torch.tensor(p["bias"]) + RARE
    each = torch.nn.functional.binary_cross_entropy_with_logits(z, torch.tensor(shares), reduction="none")
    found = label_loss({k: nx.array(x) for k, x in p.items()}, nx.array(img), nx.array(shares))
    assert found.dtype == nx.float32
    np.testing.assert_allclose(float(found), float(each.sum(-1).mean()), rtol=1e-5)


def test_a_listener_keeps_the_image_tokens_after_its_block():
    listener = Listener("single_blocks.1")
    for i in range(3):
        listener(f"single_blocks.{i}", {"img": i, "txt": -i})
    assert listener.img == 1
