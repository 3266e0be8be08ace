"""FLUX.1, one idea a file. Read them in this order:

`linear`      linear maps, how their matrices are stored, and LoRAs beside them
`embeddings`  a token or a number in [0, 1] becomes a vector
`rope`        a position becomes a rotation
`modulation`  one vector steers every layer
`attention`   rotated queries and keys, normalised per head
`blocks`      two streams meet; one stream carries on
`flux`        the whole transformer
`flux2`       FLUX.2's: the same blocks, steered otherwise
`sd3`         another one of the same parts
`latents`     images as tokens: packing and position ids
`controlnet`  a copy of the first blocks, which adds to the image what a control image shows
`vae`         pixels to latents and back
`vae_bands`   the way back again, for large images
`t5`, `clip`  a prompt becomes `txt` and `y`
`hooks`       listen to all of them while they run
`concepts`    words that listen to the image: where is what they mean?
`flops`       how many operations each network takes, counted from its sizes

Everything is a pure function of arrays and a weight tree `p`, whose keys are the checkpoint's own names. (Two things
are said where they are so: `vae_bands` uses up its lists of bands, and a block writes what it has seen into a dict that
it is given.) Nothing here knows which array library computes.
"""
