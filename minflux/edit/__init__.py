"""Edits of an image: each is a start and a velocity, which the one loop of `inference/pipeline.py` follows.

Read the files in this order:

`base`            what an edit is, and the simplest one, text to image
`image_to_image`  begin with the image, noised, instead of noise alone
`inpaint`         outside a mask, go straight back to the image
`beside`          show the model a masked image or a control image beside the latents
`kontext`         reference images, as tokens beside the image's
`controlnet`      control images for ControlNets, as references are for Kontext
`flowedit`        follow the difference of two prompts' velocities, from the image itself
`rf_inversion`    find the noise that an image comes from, and draw anew from there
`canny`           the edges of a photo, to be shown beside the latents
`canvas`          which part of an image a model sees, and where its answer goes

Nothing here knows a model: an edit is made of latents, timesteps and velocities.
"""
