"""Find the images nearest to a query image in a file that `swag-models embed` wrote.

swag-models embed examples/scenes --model regnety_nano_hashtags -o scenes.parquet
python examples/nearest.py scenes.parquet examples/scenes/chair.jpg

`swag-models nearest` does the same in one line. The model is the one that wrote the file.
"""

import sys

from swag_models.errors import SwagModelsError
from swag_models.inference import ImageSearch

NUMBER = 5


def main(file: str, image: str, model: str | None = None) -> None:
    """Print the similarity and name of each neighbour."""
    for result in ImageSearch(file, model=model)(image, NUMBER):
        if result.reason:
            sys.exit(result.reason)
        for neighbour in result.neighbours:
            print(f"{neighbour.similarity:.4f}  {neighbour.name}")
        for name in result.copies:
            print(f"copy    {name}")


if len(sys.argv) not in (3, 4):
    sys.exit("usage: python examples/nearest.py EMBEDDINGS IMAGE [MODEL]")
try:
    main(*sys.argv[1:])
except SwagModelsError as error:  # for example a file that embed did not write
    sys.exit(f"error: {error}")
