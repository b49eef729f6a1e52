"""Add a data source: any function that returns or yields texts; here, sums to learn arithmetic from.

From Python, give its result as `data`; or from the command line, in the folder of this file:

    positron train model=debug tokenizer=char data=custom data._target_=add_a_data_source.sums data.options={n:3000}

The texts are written to a file below outputs/data that is named by their content, so the function must return the same
texts whenever a run is continued.
"""

import random
from collections.abc import Iterator

import positron


def sums(n: int = 2000) -> Iterator[str]:
    """Yield n documents such as `17+25=42`."""
    draw = random.Random(0)
    for _ in range(n):
        a, b = draw.randrange(100), draw.randrange(100)
        yield f"{a}+{b}={a + b}"


if __name__ == "__main__":
    SMALL = {"model": "debug", "tokenizer": "char", "batch_tokens": 2048}  # a few seconds on a CPU
    run = positron.train(**SMALL, data=sums(), max_steps=20, name="sums")
    print(positron.load(run).generate("17+25=", max_tokens=3))
