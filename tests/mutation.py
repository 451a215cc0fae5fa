"""Damage to files, drawn at random; imports nothing, for processes that start fast."""

import random


def mutated(content, seed):
    """A file with a few bytes changed, cut off, copied elsewhere, inserted, or overwritten."""
    draw = random.Random(seed)
    content = bytearray(content)
    # Half of the damage goes where the structure is: into the first kilobyte.
    place = draw.randrange(min(1024, len(content)) if draw.random() < 0.5 else len(content))
    kind = draw.choice(["bytes", "bit", "cut", "copy", "insert", "fill"])
    length = draw.randrange(1, 64)
    if kind == "bytes":
        for _ in range(draw.choice((1, 2, 8))):
            content[draw.randrange(len(content))] = draw.randrange(256)
    elif kind == "bit":
        content[place] ^= 1 << draw.randrange(8)
    elif kind == "cut":
        del content[place:]
    elif kind == "copy":
        source = draw.randrange(len(content))
        content[place : place + length] = content[source : source + length]
    elif kind == "insert":
        content[place:place] = draw.randbytes(length)
    else:
        content[place : place + length] = bytes([draw.choice((0, 255, 127))]) * length
    return bytes(content)
