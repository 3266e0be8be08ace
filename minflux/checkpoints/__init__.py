"""What files hold, told from their headers, read into weight trees, and written. Read the files in this order:

`open`        a name, a folder or a file to all that is there, and all that is wrong with it
`components`  a file for each network: all that files know of it
`stored`      one network as a file holds it
`detect`      which networks a file holds
`folder`      a network's folder, as diffusers and transformers lay it out
`family`      which FLUX.1 it is
`formats`     safetensors and its dtypes, whole writing, JSON
`read`        weights from a file to a tree
`tree`        flat names and trees
`lazy`        trees whose weights stay in their file until they are used
`lora`        small changes to some matrices
`quantise`    matrices in 4 or 8 bits
`hub`         models by name from the Hugging Face Hub
"""
