"""From a prompt to an image. Read the files in this order:

`pipeline`   encode, sample, decode, in the one loop that all models share
`with_vae`   what models with a VAE and text encoders share
`flux1`      FLUX.1's side of it: its text encoders, its velocity, its VAE
`flux2`      FLUX.2's side
`sd3`        SD3's side
`unet`       Stable Diffusion 1's side
`neighbour`  how models of other families than FLUX.1's are loaded
`edits`      from a call's images to the edit that they ask for
`regions`    a prompt for each part of the image
`text`       prompts to token ids
`load`       a name, a folder or a file to a pipeline
`settings`   what lies beside the weights as JSON, checked
`memory`     how much of the weights is held, and when
`cache`      encoded prompts, kept on disk
`display`    a pipeline as Jupyter shows it
`arguments`  checks of what a caller asks for
"""
