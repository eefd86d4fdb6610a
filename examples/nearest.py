"""Find the images nearest to a query image in a file that `swag-models embed` wrote.

swag-models embed examples/scenes --model regnety_nano_hashtags -o scenes.parquet
python examples/nearest.py scenes.parquet examples/scenes/chair.jpg

`swag-models nearest` does the same in one line. The model is the one that wrote the file.
"""

import sys

from swag_models.inference import ImageSearch

NUMBER = 5

if len(sys.argv) < 3:
    sys.exit("usage: python examples/nearest.py EMBEDDINGS IMAGE [MODEL]")
file, image, *model = sys.argv[1:]
search = ImageSearch(file, model=model[0] if model else None)
for result in search(image, NUMBER):
    if result.reason:
        sys.exit(result.reason)
    for neighbour in result.neighbours:
        print(f"{neighbour.similarity:.4f}  {neighbour.name}")
    for name in result.copies:
        print(f"copy    {name}")
