"""The data contract: episodes in WebDataset tar shards, with an index, a manifest and a digest.

`episode` holds the types, `writer` commits shards, `index` and `dataset` read them, `manifest` and `verify` keep a
dataset honest. Nothing here imports torch or another package of this project.
"""
