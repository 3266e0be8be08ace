"""From a prompt to an image: text, pipeline, memory, loading."""
