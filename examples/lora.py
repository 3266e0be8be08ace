"""Load a model with a LoRA, at several strengths.

A LoRA's file usually comes from its training; to have one at hand, this script first writes one of random numbers, for
two matrices, under PEFT's names. Its images are therefore the model's own, bent somewhere at random.
"""

import numpy as np

import minflux
from minflux.checkpoints.formats.safetensors import write_safetensors

RANK, WIDTH = 4, 192  # of the small model
rng = np.random.default_rng(0)
lora = {}
for block in (0, 1):
    name = f"transformer.transformer_blocks.{block}.attn.to_out.0"
    lora[f"{name}.lora_A.weight"] = rng.normal(0, 0.4, (RANK, WIDTH)).astype(np.float32)
    lora[f"{name}.lora_B.weight"] = rng.normal(0, 0.4, (WIDTH, RANK)).astype(np.float32)
write_safetensors("bent.safetensors", lora)

prompt = "a penguin on a yellow background"
plain = np.asarray(minflux.load("tiny")(prompt, seed=1, steps=8), np.float32)
for scale in (0.5, 1.0, 2.0):
    image = minflux.load("tiny", lora=f"bent.safetensors:{scale}")(prompt, seed=1, steps=8)
    change = np.abs(np.asarray(image, np.float32) - plain).mean()
    print(f"at {scale}: pixels change by {change:.1f} of 255 on average")
