"""FLUX.1, one idea a file. Read them in this order:

`linear`      linear maps, how their matrices are stored, and LoRAs beside them
`embeddings`  a number in [0, 1] becomes a vector
`rope`        a position becomes a rotation
`modulation`  one vector steers every layer
`attention`   rotated queries and keys, normalised per head
`blocks`      two streams meet; one stream carries on
`flux`        the whole transformer
`latents`     pictures as tokens: packing and position ids
`vae`         pixels to latents and back
`vae_bands`   the way back again, for large images
`t5`, `clip`  a prompt becomes `txt` and `vec`

Everything is a pure function of arrays and a weight tree `p`, whose keys are the checkpoint's own names. Nothing
here knows which array library computes.
"""
