"""One drawing, opened up: a page that shows what happened in a model while it drew. Read the files in this order:

`groups`       a drawing's tokens as words and cells of the image, and attention between those
`choice`       which steps, blocks and heads a page has room for
`record`       draw an image, and keep what the page shows
`modulations`  how blocks were steered, and which channels of it are shown
`motion`       how far and how straight each step went
`cost`         operations and seconds of each part
`frames`       what latents look like, step by step
`data`         arrays as text that a page can hold
`links`        the chapter and the lines of code that a panel is about
`write`        all of it as one HTML file

The page itself is written by hand in `page/`: HTML, CSS and JavaScript, which no tool translates. It loads nothing.
"""
