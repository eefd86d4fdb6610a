"""Evaluate a model's embeddings with scikit-learn: a linear classifier and nearest neighbours.

    python examples/sklearn_probe.py [model]

The images are generated, of 32 things; replace them by your own images, arrays or paths.
"""

import sys
from pathlib import Path

from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from swag_models.inference import Embedder

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the generated scenes
from studies.scenes.scene import plan_held_out, render
from studies.scenes.things import NAMES

scenes = [plan_held_out(0, number) for number in range(50 * len(NAMES))]
images = [render(scene, 64) for scene in scenes]
labels = [scene.things[0] for scene in scenes]
split = 40 * len(NAMES)

embedder = Embedder(*sys.argv[1:] or ["regnety_nano_hashtags"], fast=True)
train = embedder(images[:split]).vectors.numpy()  # (N, D)
test = embedder(images[split:]).vectors.numpy()
classifiers = {
    "linear": make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)),
    "nearest": KNeighborsClassifier(n_neighbors=5, metric="cosine"),
}
for name, classifier in classifiers.items():
    accuracy = classifier.fit(train, labels[:split]).score(test, labels[split:])
    print(f"{name} {accuracy:.2%} of {len(test)} held-out images from {train.shape[1]} features")
