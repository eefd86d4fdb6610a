"""A small world of generated pictures with hashtags as people write them, for the demo, the tests and the miniature study.

things.py says what there is and what it is called, shapes.py and drawings.py how it looks; painter.py paints, scene.py decides
what is in each picture, captions.py and posts.py word what is said of it; gallery.py writes the folder, sheet.py shows it.
wordnet/ is the part of WordNet 3.0 about these things.
"""

from studies.scenes.gallery import ScenesSummary, write_scenes

__all__ = ["ScenesSummary", "write_scenes"]
