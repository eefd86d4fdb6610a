"""How much a model's features know: a linear classifier of scikit-learn's, and its nearest neighbours, on embeddings.

    python examples/sklearn_probe.py [model]

The pictures are painted, of 32 things; put your own, arrays, or lists of paths, in their place.
"""

import sys

from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from studies.scenes.scene import plan_held_out, render
from studies.scenes.things import NAMES
from swag_models.inference.predict import Embedder

scenes = [plan_held_out(0, number) for number in range(50 * len(NAMES))]
pictures, things = [render(scene, 64) for scene in scenes], [scene.things[0] for scene in scenes]

embedder = Embedder(*sys.argv[1:] or ["regnety_nano_hashtags"], fast=True)
train, test = (
    embedder(each).vectors.numpy()
    for each in (pictures[: 40 * len(NAMES)], pictures[40 * len(NAMES) :])
)  # (N, D)
classifiers = {
    "linear": make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)),
    "nearest": KNeighborsClassifier(n_neighbors=5, metric="cosine"),
}
for name, classifier in classifiers.items():
    accuracy = classifier.fit(train, things[: len(train)]).score(test, things[len(train) :])
    print(f"{name} {accuracy:.2%} of {len(test)} held-out pictures from {train.shape[1]} features")
