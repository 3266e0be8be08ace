"""From a prompt to an image. Read the files in this order:

`pipeline`   encode, sample, decode, in the one loop that all models share
`flux1`      FLUX.1's side of it: its text encoders, its velocity, its VAE
`edits`      from a call's images to the edit that they ask for
`regions`    a prompt for each part of the image
`text`       prompts to token ids
`load`       a name, a folder or a file to a pipeline
`memory`     how much of the weights is held, and when
`cache`      encoded prompts, kept on disk
`arguments`  checks of what a caller asks for
"""
